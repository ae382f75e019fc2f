package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func newSearch() *cobra.Command {
	var (
		s     client.Search
		found string
		most  int
	)
	cmd := &cobra.Command{
		Use:   "search [TENANT[/REPOSITORY]]",
		Short: "Find packages and versions in the repositories that you may list",
		Long: `search finds packages by their names and labels, or, with --digest or --publisher, versions. What is asked for has to
hold all at once. The digest may be that of a version, of one of its files, or of a layer that it uses.`,
		Example: `  shoal search --name api
  shoal search acme --contains log --label team=core
  shoal search --digest sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824
  shoal search acme/npm --publisher user:ada --json`,
		Args: cobra.MaximumNArgs(1),
	}
	f := cmd.Flags()
	f.StringVar(&s.Name, "name", "", "beginning of the package's name")
	f.StringVar(&s.Contains, "contains", "", "part of the package's name, whatever the case of letters")
	f.StringArrayVar(&s.Labels, "label", nil, "label NAME=VALUE, or NAME; several times for all of them")
	f.StringVar(&found, "digest", "", "digest of something in a version")
	f.StringVar(&s.Publisher, "publisher", "", "who published, as user:NAME or robot:TENANT/NAME")
	f.StringVar(&s.Format, "format", "", "format of the repository")
	f.IntVar(&most, "limit", 100, "how many at most, 0 for all")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		s.Digest = digest.Digest(found)
		if len(args) == 1 {
			tenant, repository, _ := strings.Cut(args[0], "/")
			s.Tenant, s.Repository = meta.TenantName(tenant), repository
		}
		matches, more := []client.Match{}, false
		for m, err := range c.Search(ctx, s) {
			if err != nil {
				return err
			}
			if more = most > 0 && len(matches) == most; more {
				break
			}
			matches = append(matches, m)
		}
		return out.print(cmd, map[string]any{"matches": matches, "more": more}, func() {
			rows := make([][]string, len(matches))
			for i, m := range matches {
				labels := make([]string, 0, len(m.Labels))
				for _, name := range slices.Sorted(maps.Keys(m.Labels)) {
					labels = append(labels, name+"="+m.Labels[name])
				}
				what := fmt.Sprintf("%d versions", m.Versions)
				if m.Version != "" {
					what = m.Version
				}
				rows[i] = []string{m.Repo.String(), m.Format, cmp.Or(m.Spelling, m.Package), what, m.Publisher, strings.Join(labels, " "), m.Path}
			}
			table(cmd, []string{"repository", "format", "package", "version", "publisher", "labels", "file"}, rows)
			if more {
				fmt.Fprintf(cmd.ErrOrStderr(), "there is more than %d: say --limit\n", most)
			}
		})
	})
}
