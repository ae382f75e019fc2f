package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newPromote() *cobra.Command {
	var n client.NewPromotion
	cmd := &cobra.Command{
		Use: "promote REFERENCE... TENANT/REPOSITORY", Short: "Make versions those of another repository, without copying bytes", Args: cobra.MinimumNArgs(2),
		Long: `promote makes versions visible in another repository of the tenant: all of them at once, or none, with what they refer
to and what is attached to them (images of an index, signatures, SBOMs). Who promoted what, when and why is kept with
the versions and in the audit log.

A reference that names an alias (a tag, a dist-tag) moves that alias in the other repository, too. What is in quarantine,
and what would replace other content, is refused.`,
		Example: `  shoal promote acme/dev/app:1.4 acme/release --reason "passed the soak test"
  shoal promote acme/npm-dev/left-pad@1.0.0 acme/npm-dev/right-pad@2.1.0 acme/npm --alias latest`,
	}
	f := cmd.Flags()
	f.StringSliceVar(&n.Aliases, "alias", nil, "aliases that move to each version there, besides the one that names it here")
	f.StringVar(&n.Reason, "reason", "", "why, for whoever asks later")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) (err error) {
		if n.To, err = meta.ParseRepoRef(args[len(args)-1]); err != nil {
			return fmt.Errorf("the last argument is where to: %w", err)
		}
		n.References = args[:len(args)-1]
		p, err := c.Promote(ctx, n)
		if err != nil {
			return err
		}
		return out.print(cmd, p, func() {
			var rows [][]string
			for _, v := range p.Versions {
				what := "promoted"
				if !v.Created {
					what = "was there"
				}
				rows = append(rows, []string{n.To.String() + "/" + v.Package, v.Version, what})
			}
			table(cmd, []string{"package", "version", "now"}, rows)
		})
	})
}
