package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// kindFlags are the flags of proxies and groups.
type kindFlags struct {
	upstream, writeTo      string
	members, allow, block  []string
	age, document, missing time.Duration
	user, tokenFile        string
	noCredential           bool
}

// upstreamFlags are those of a proxy.
var upstreamFlags = []string{"upstream", "allow", "block", "min-release-age", "document-ttl", "negative-ttl"}

func (k *kindFlags) declare(f *pflag.FlagSet) {
	f.StringVar(&k.upstream, "upstream", "", "of a proxy: the URL of the registry that it caches")
	f.StringSliceVar(&k.allow, "allow", nil, "of a proxy: only packages of these names, in which * is any run of characters")
	f.StringSliceVar(&k.block, "block", nil, "of a proxy: no packages of these names")
	f.DurationVar(&k.age, "min-release-age", 0, "of a proxy: hide versions that were released less long ago, like 72h")
	f.DurationVar(&k.document, "document-ttl", 0, "of a proxy: how long a document is served before the upstream is asked again (default: the node's)")
	f.DurationVar(&k.missing, "negative-ttl", 0, "of a proxy: how long what the upstream lacks is not asked for again (default: the node's)")
	f.StringVar(&k.user, "upstream-user", "", "of a proxy: the user that it asks its upstream as; without one the token is a bearer token")
	f.StringVar(&k.tokenFile, "upstream-token-file", "", "of a proxy: a file with the password or token that it asks its upstream with, - is standard input")
	f.BoolVar(&k.noCredential, "no-upstream-credential", false, "of a proxy: ask the upstream without a credential again")
	f.StringSliceVar(&k.members, "members", nil, "of a group: repositories of the tenant, in the order in which they are asked")
	f.StringVar(&k.writeTo, "write-to", "", "of a group: the hosted member that pushes go to")
}

// memberNames takes `tenant/` from names of repositories.
func memberNames(tenant meta.TenantName, names []string) ([]string, error) {
	out := []string{}
	for _, name := range names {
		owner, rest, ok := strings.Cut(name, "/")
		if ok && meta.TenantName(owner) != tenant {
			return nil, fmt.Errorf("%s is of another tenant: a group has repositories of %s", name, tenant)
		}
		if ok {
			name = rest
		}
		if name != "" {
			out = append(out, name)
		}
	}
	return out, nil
}

// group returns the members and where pushes go, by name.
func (k *kindFlags) group(tenant meta.TenantName) (members []string, writeTo string, err error) {
	if members, err = memberNames(tenant, k.members); err != nil {
		return nil, "", err
	}
	to, err := memberNames(tenant, []string{k.writeTo})
	if err != nil {
		return nil, "", err
	}
	return members, strings.Join(to, ""), nil
}

// create returns what was given of a repository to be made.
func (k *kindFlags) create(cmd *cobra.Command, tenant meta.TenantName) (*meta.Upstream, []string, string, error) {
	members, writeTo, err := k.group(tenant)
	if err != nil || !slices.ContainsFunc(upstreamFlags, cmd.Flags().Changed) {
		return nil, members, writeTo, err
	}
	return &meta.Upstream{URL: k.upstream, Allow: k.allow, Block: k.block, MinReleaseAge: k.age, DocumentTTL: k.document, NegativeTTL: k.missing}, members, writeTo, nil
}

// change returns what was given of a repository that is there.
func (k *kindFlags) change(cmd *cobra.Command, tenant meta.TenantName) (u *client.UpstreamChange, members *[]string, writeTo *string, err error) {
	names, to, err := k.group(tenant)
	if err != nil {
		return nil, nil, nil, err
	}
	if slices.ContainsFunc(upstreamFlags, cmd.Flags().Changed) {
		u = &client.UpstreamChange{
			URL: given(cmd, "upstream", k.upstream), Allow: given(cmd, "allow", k.allow), Block: given(cmd, "block", k.block),
			MinReleaseAge: given(cmd, "min-release-age", k.age), DocumentTTL: given(cmd, "document-ttl", k.document), NegativeTTL: given(cmd, "negative-ttl", k.missing),
		}
	}
	return u, given(cmd, "members", names), given(cmd, "write-to", to), nil
}

// sourceOf says where a proxy or a group has its content from. The member that takes
// pushes has a star.
func sourceOf(r meta.Repository) string {
	switch {
	case r.Upstream != nil:
		return r.Upstream.URL
	case len(r.Members) > 0:
		names := slices.Clone(r.Members)
		if i := slices.Index(names, r.WriteTo); i >= 0 {
			names[i] += "*"
		}
		return strings.Join(names, ",")
	}
	return ""
}

func newRepoShow() *cobra.Command {
	show := &cobra.Command{
		Use: "show TENANT/REPOSITORY", Short: "Show all settings of a repository", Args: cobra.ExactArgs(1),
		Example: "  shoal repo show acme/npm-proxy",
	}
	return adminVerb(show, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		ref, err := meta.ParseRepoRef(args[0])
		if err != nil {
			return err
		}
		r, err := c.Repository(ctx, ref)
		if err != nil {
			return err
		}
		return out.print(show, r, func() { table(show, []string{"setting", "value"}, settingsOf(r)) })
	})
}

// settingsOf lists the settings of a repository, those of its kind only.
func settingsOf(r meta.Repository) [][]string {
	or := func(s, standard string) string {
		if s == "" {
			return standard
		}
		return s
	}
	span := func(d time.Duration, standard string) string {
		if d == 0 {
			return standard
		}
		return d.String()
	}
	degraded := 15 * time.Minute
	if r.DegradedReadMax != nil {
		degraded = *r.DegradedReadMax
	}
	rows := [][]string{
		{"repository", r.Ref.String()}, {"format", r.Format}, {"kind", string(r.Kind)}, {"class", string(r.Class)},
		{"home", string(r.Home)}, {"second", or(string(r.Second), "-")}, {"regions", or(regionList(r.Regions), "of the class")},
		{"copies before ack", strconv.FormatUint(uint64(max(r.CopiesBeforeAck, 1)), 10)}, {"visibility", string(r.Visibility)},
		{"immutable", strconv.FormatBool(r.Immutable)}, {"environment", or(r.Environment, "-")}, {"degraded reads", degraded.String()},
	}
	if u := r.Upstream; u != nil {
		rows = append(rows, [][]string{
			{"upstream", u.URL}, {"credential", or(u.Credential, "-")}, {"allow", or(strings.Join(u.Allow, ", "), "all")}, {"block", or(strings.Join(u.Block, ", "), "-")},
			{"minimum release age", span(u.MinReleaseAge, "-")}, {"document ttl", span(u.DocumentTTL, "the node's")}, {"negative ttl", span(u.NegativeTTL, "the node's")},
		}...)
	}
	if r.Kind == meta.KindGroup {
		rows = append(rows, []string{"members", or(strings.Join(r.Members, ", "), "-")}, []string{"write to", or(r.WriteTo, "- (read only)")})
	}
	return append(rows, []string{"created", r.Created.Std().Format(time.RFC3339) + " by " + r.CreatedBy})
}

// credential reads what a proxy is to ask its upstream with, before anything is changed;
// nil when that was not given.
func (k *kindFlags) credential(cmd *cobra.Command) (*client.UpstreamCredential, error) {
	switch {
	case k.noCredential && k.tokenFile != "":
		return nil, fmt.Errorf("give --upstream-token-file or --no-upstream-credential, not both")
	case k.tokenFile == "" && k.user != "":
		return nil, fmt.Errorf("--upstream-user needs --upstream-token-file with the password")
	case k.tokenFile == "":
		return nil, nil
	}
	from := cmd.InOrStdin()
	if k.tokenFile != "-" {
		f, err := os.Open(k.tokenFile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from = f
	}
	secret, err := readSecret(from)
	if err != nil {
		return nil, fmt.Errorf("--upstream-token-file %s: %w", k.tokenFile, err)
	}
	return &client.UpstreamCredential{User: k.user, Secret: secret}, nil
}

// setCredential sets or removes what a proxy asks its upstream with, when that was given,
// and returns r as it is then.
func (k *kindFlags) setCredential(ctx context.Context, c *client.Client, r meta.Repository, credential *client.UpstreamCredential) (meta.Repository, error) {
	switch {
	case k.noCredential:
		return c.RemoveUpstreamCredential(ctx, r.Ref)
	case credential == nil:
		return r, nil
	}
	return c.SetUpstreamCredential(ctx, r.Ref, *credential)
}

func newRepoForget() *cobra.Command {
	forget := &cobra.Command{
		Use: "forget TENANT/REPOSITORY [PATH]", Short: "Have a proxy forget what it has of its upstream, all or one path, or a group where it takes a package from", Args: cobra.RangeArgs(1, 2),
		Example: `  shoal repo forget acme/npm-proxy
  shoal repo forget acme/npm-proxy left-pad
  shoal repo forget acme/npm-all --package left-pad`,
	}
	accept := forget.Flags().String("accept", "", "the Accept that the path was asked for with, when the format asks for one")
	pkg := forget.Flags().String("package", "", "of a group: forget from which proxy it takes this package, so that it is looked for in all of them again")
	return adminVerb(forget, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		ref, err := meta.ParseRepoRef(args[0])
		if err != nil {
			return err
		}
		what := client.Forget{Accept: *accept, Package: *pkg}
		if len(args) == 2 {
			what.Path = args[1]
		}
		n, err := c.ForgetFetched(ctx, ref, what)
		if err != nil {
			return err
		}
		return out.print(forget, n, func() {
			of := "of its upstream"
			if *pkg != "" {
				of = "of where " + *pkg + " comes from"
			}
			fmt.Fprintf(forget.OutOrStdout(), "%s forgot %d records %s\n", ref, n.Records, of)
		})
	})
}
