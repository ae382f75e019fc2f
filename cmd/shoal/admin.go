package main

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// adminVerb makes a verb that calls the admin API and prints what it answers.
func adminVerb(cmd *cobra.Command, run func(context.Context, *client.Client, *output, []string) error) *cobra.Command {
	var (
		to  target
		out output
	)
	to.flags(cmd)
	out.flag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := to.client()
		if err != nil {
			return err
		}
		return run(cmd.Context(), c, &out, args)
	}
	return cmd
}

// collect reads a listing to its end.
func collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	all := []T{}
	for item, err := range seq {
		if err != nil {
			return nil, err
		}
		all = append(all, item)
	}
	return all, nil
}

func newTenant() *cobra.Command {
	root := group("tenant", "Tenants: owners of repositories")
	create := &cobra.Command{
		Use: "create NAME", Short: "Create a tenant", Args: cobra.ExactArgs(1),
		Example: "  shoal tenant create acme\n  shoal tenant create acme --tier premium",
	}
	tier := create.Flags().String("tier", "", "basic, standard or premium: the weight where tenants wait for one another (default standard)")
	list := &cobra.Command{Use: "list", Short: "List the tenants", Args: cobra.NoArgs, Example: "  shoal tenant list --json"}
	root.AddCommand(
		adminVerb(create, func(ctx context.Context, c *client.Client, out *output, args []string) error {
			t, err := c.NewTenant(ctx, client.NewTenant{Name: meta.TenantName(args[0]), Tier: meta.Tier(*tier)})
			if err != nil {
				return err
			}
			return out.print(create, t, func() { fmt.Fprintf(create.OutOrStdout(), "tenant %s is there\n", t.Name) })
		}),
		adminVerb(list, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
			tenants, err := collect(c.Tenants(ctx))
			if err != nil {
				return err
			}
			return out.print(list, tenants, func() { tenantTable(list, tenants) })
		}),
		newTenantSet(), newTenantShow(),
	)
	return root
}

func newRepo() *cobra.Command {
	root := group("repo", "Repositories: what a tenant publishes to")
	root.AddCommand(newRepoCreate(), newRepoList(), newRepoShow(), newRepoSet(), newRepoForget(), newRepoRemove())
	return root
}

func newRepoCreate() *cobra.Command {
	var (
		n       client.NewRepository
		regions []string
		kinds   kindFlags
	)
	create := &cobra.Command{
		Use: "create TENANT/REPOSITORY", Short: "Create a repository", Args: cobra.ExactArgs(1),
		Example: `  shoal repo create acme/app --format oci --class critical --home eu
  shoal repo create acme/core --regions eu,us --copies-before-ack 2
  shoal repo create acme/npm-proxy --format npm --kind proxy --upstream https://registry.npmjs.org --min-release-age 72h
  shoal repo create acme/npm-all --format npm --kind group --members npm,npm-proxy --write-to npm`,
	}
	f := create.Flags()
	f.StringSliceVar(&regions, "regions", nil, "regions that keep copies, instead of those of the class")
	f.Uint32Var(&n.CopiesBeforeAck, "copies-before-ack", 0, "1, or 2: a publish is answered when a second server has verified copies (default 1)")
	f.StringVar(&n.Format, "format", "oci", "what it holds: oci, generic, npm, pypi, maven ... (a format that the server does not know is answered with those it does)")
	f.StringVar((*string)(&n.Kind), "kind", "hosted", "hosted (what you publish), proxy (a cache of --upstream) or group (--members as one)")
	kinds.declare(f)
	f.StringVar((*string)(&n.Class), "class", "standard", "critical (all primary regions), standard (home and one more) or cold (home, others on demand)")
	f.StringVar(&n.Environment, "env", "", "environment: dev, staging, production ...")
	f.StringVar((*string)(&n.Home), "home", "", "home region (default: the answering server's)")
	f.StringVar((*string)(&n.Second), "second", "", "second region of class standard (default: chosen)")
	f.StringVar((*string)(&n.Visibility), "visibility", "private", "private or public")
	f.BoolVar(&n.Immutable, "immutable", false, "tags can be set once, never moved or deleted")
	return adminVerb(create, func(ctx context.Context, c *client.Client, out *output, args []string) (err error) {
		if n.Ref, err = meta.ParseRepoRef(args[0]); err != nil {
			return err
		}
		n.Regions = regionNames(regions)
		if n.Upstream, n.Members, n.WriteTo, err = kinds.create(create, n.Ref.Tenant); err != nil {
			return err
		}
		credential, err := kinds.credential(create)
		if err != nil {
			return err
		}
		r, err := c.CreateRepository(ctx, n)
		if err != nil {
			return err
		}
		if r, err = kinds.setCredential(ctx, c, r, credential); err != nil {
			return err
		}
		return printRepository(create, out, r)
	})
}

func printRepository(cmd *cobra.Command, out *output, r meta.Repository) error {
	return out.print(cmd, r, func() { repositoryTable(cmd, []meta.Repository{r}) })
}

func repositoryTable(cmd *cobra.Command, repos []meta.Repository) {
	var rows [][]string
	for _, r := range repos {
		rows = append(rows, []string{
			r.Ref.String(), r.Format, string(r.Kind), string(r.Class), string(r.Home), string(r.Second), regionList(r.Regions),
			strconv.FormatUint(uint64(max(r.CopiesBeforeAck, 1)), 10), string(r.Visibility), strconv.FormatBool(r.Immutable), r.Environment, sourceOf(r),
		})
	}
	table(cmd, []string{"repository", "format", "kind", "class", "home", "second", "regions", "ack", "visibility", "immutable", "env", "from"}, rows)
}

func newRepoList() *cobra.Command {
	var tenant string
	list := &cobra.Command{
		Use: "list", Short: "List the repositories that the caller may read", Args: cobra.NoArgs,
		Example: "  shoal repo list --tenant acme",
	}
	list.Flags().StringVar(&tenant, "tenant", "", "only of this tenant")
	return adminVerb(list, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		repos, err := collect(c.Repositories(ctx, meta.TenantName(tenant)))
		if err != nil {
			return err
		}
		return out.print(list, repos, func() { repositoryTable(list, repos) })
	})
}

func newRepoSet() *cobra.Command {
	var (
		class, home, second, visibility, env string
		immutable                            bool
		regions                              []string
		copies                               uint32
		degraded                             time.Duration
		kinds                                kindFlags
	)
	set := &cobra.Command{
		Use: "set TENANT/REPOSITORY", Short: "Change a repository", Args: cobra.ExactArgs(1),
		Example: `  shoal repo set acme/app --class critical --immutable
  shoal repo set acme/app --regions eu,us --copies-before-ack 2
  shoal repo set acme/app --regions ''
  shoal repo set acme/npm-proxy --block 'evil-*' --min-release-age 72h
  shoal repo set acme/npm-proxy --upstream-user ada --upstream-token-file token.txt
  shoal repo set acme/npm-all --members npm,npm-proxy --write-to npm`,
	}
	f := set.Flags()
	f.StringSliceVar(&regions, "regions", nil, "regions that keep copies, instead of those of the class; empty gives them back")
	f.Uint32Var(&copies, "copies-before-ack", 1, "1, or 2: a publish is answered when a second server has verified copies")
	f.StringVar(&class, "class", "", "critical, standard or cold")
	f.StringVar(&home, "home", "", "home region")
	f.StringVar(&second, "second", "", "second region of class standard")
	f.StringVar(&visibility, "visibility", "", "private or public")
	f.StringVar(&env, "env", "", "environment")
	f.BoolVar(&immutable, "immutable", false, "tags can be set once, never moved or deleted")
	kinds.declare(f)
	f.DurationVar(&degraded, "degraded-read-max", 15*time.Minute, "how long a node that reaches no server goes on serving what is private; 0s not at all")
	return adminVerb(set, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		ref, err := meta.ParseRepoRef(args[0])
		if err != nil {
			return err
		}
		upstream, members, writeTo, err := kinds.change(set, ref.Tenant)
		if err != nil {
			return err
		}
		credential, err := kinds.credential(set)
		if err != nil {
			return err
		}
		r, err := c.SetRepository(ctx, ref, client.RepositoryChange{
			Upstream: upstream, Members: members, WriteTo: writeTo,
			Class: given(set, "class", meta.Class(class)), Home: given(set, "home", meta.RegionName(home)),
			Second: given(set, "second", meta.RegionName(second)), Visibility: given(set, "visibility", meta.Visibility(visibility)),
			Environment: given(set, "env", env), Immutable: given(set, "immutable", immutable),
			Regions: given(set, "regions", regionNames(regions)), CopiesBeforeAck: given(set, "copies-before-ack", copies),
			DegradedReadMax: given(set, "degraded-read-max", degraded),
		})
		if err != nil {
			return err
		}
		if r, err = kinds.setCredential(ctx, c, r, credential); err != nil {
			return err
		}
		return printRepository(set, out, r)
	})
}

// given returns v when its flag was on the command line, else nil.
func given[T any](cmd *cobra.Command, flag string, v T) *T {
	if !cmd.Flags().Changed(flag) {
		return nil
	}
	return &v
}

func newRepoRemove() *cobra.Command {
	rm := &cobra.Command{
		Use: "rm TENANT/REPOSITORY", Short: "Remove a repository that has no versions", Args: cobra.ExactArgs(1),
		Example: "  shoal repo rm acme/old",
	}
	return adminVerb(rm, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		ref, err := meta.ParseRepoRef(args[0])
		if err != nil {
			return err
		}
		if err := c.RemoveRepository(ctx, ref); err != nil {
			return err
		}
		return out.print(rm, map[string]string{"removed": ref.String()}, func() {
			fmt.Fprintf(rm.OutOrStdout(), "repository %s is removed\n", ref)
		})
	})
}

func newRegion() *cobra.Command {
	root := group("region", "Regions: failure and latency domains")
	root.AddCommand(newRegionStatus())
	root.AddCommand(newRegionList(), newRegionSet(), newRegionRemove(), newRegionKeep())
	return root
}

func newToken() *cobra.Command {
	root := group("token", "Tokens of people and robots, and those that let nodes join")
	root.AddCommand(tokenVerbs()...)
	var (
		n          client.NewJoinToken
		role, area string
		ttl        time.Duration
		list       bool
		revoke     string
	)
	join := &cobra.Command{
		Use: "join", Short: "Make a token that lets nodes join the cluster", Args: cobra.NoArgs,
		Long: `join prints a token that admits --uses nodes of one role to one region until it expires. It also carries
the hash of the cluster's trust root, so that a node knows that it joins the right cluster.`,
		Example: `  shoal token join --role server --region us
  shoal token join --role agent --region us --uses 200 --ttl 1h --read 'acme/*'
  shoal token join --list
  shoal token join --revoke 5f1c9a02`,
	}
	f := join.Flags()
	f.StringVar(&role, "role", "", "server or agent")
	f.StringVar(&area, "region", "", "region that the nodes belong to")
	f.DurationVar(&ttl, "ttl", 10*time.Minute, "how long it can be used")
	f.Uint64Var(&n.Uses, "uses", 1, "how many nodes it admits")
	f.StringArrayVar(&n.Read, "read", nil, "tenant/repository pattern that clients on an agent's host may read without credentials; repeatable")
	f.StringSliceVar(&n.Tenants, "tenants", nil, "tenants of which agents may hold what is not public, each a name or its beginning and * (default all)")
	f.BoolVar(&list, "list", false, "list the join tokens instead, without their secrets")
	f.StringVar(&revoke, "revoke", "", "end the join token whose id begins so instead")
	root.AddCommand(adminVerb(join, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		switch {
		case list:
			tokens, err := collect(c.JoinTokens(ctx))
			if err != nil {
				return err
			}
			return out.print(join, tokens, func() { printJoinTokens(join, tokens, time.Now()) })
		case revoke != "":
			if err := c.RevokeJoinToken(ctx, revoke); err != nil {
				return err
			}
			return out.print(join, map[string]string{"revoked": revoke}, func() {
				fmt.Fprintln(join.OutOrStdout(), "no node joins with it any more; those that have joined stay")
			})
		case role == "" || area == "":
			return fmt.Errorf("say whom the token is for: --role server or agent, and --region")
		}
		n.Role, n.Region, n.TTLSeconds = meta.Role(role), meta.RegionName(area), int64(ttl/time.Second)
		t, err := c.CreateJoinToken(ctx, n)
		if err != nil {
			return err
		}
		// Alone on its line, so that scripts can take it.
		return out.print(join, t, func() { fmt.Fprintln(join.OutOrStdout(), t.Token) })
	}))
	return root
}

func newStatus() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show the cluster as one gateway's node sees it", Args: cobra.NoArgs, Example: "  shoal status --json"}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		return out.print(cmd, s, func() {
			age := "unknown"
			if s.AgeSeconds >= 0 {
				age = fmt.Sprintf("%.1fs", s.AgeSeconds)
			}
			leader := cmp.Or(string(s.Leader), "none known")
			if !s.QuorumKnown {
				leader = "not known to an agent, ask a server"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "cluster %s, level %d, epoch %d\nseen from %s %s of region %s, shoal %s: index %d, age %s\nleader %s\n\n",
				s.Cluster, s.Level, s.Epoch, s.Role, s.Node, s.Region, s.Version, s.Index, age, leader)
			regionTable(cmd, s.Regions, s.QuorumKnown)
			fmt.Fprintln(cmd.OutOrStdout())
			var rows [][]string
			for _, n := range s.Servers {
				part := "non-voter"
				switch {
				case !s.QuorumKnown:
					part = "?"
				case n.Leader:
					part = "leader"
				case n.Voter:
					part = "voter"
				}
				rows = append(rows, []string{string(n.ID), string(n.Region), n.Zone, n.Gateway, part})
			}
			table(cmd, []string{"server", "region", "zone", "gateway", "raft"}, rows)
			if s.Unrepairable > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "\nWARNING: %s in use with no sound copy anywhere: shoal scrub list --unrepairable\n", blobs(s.Unrepairable))
			}
			quotaNotes(cmd.OutOrStdout(), s.Quotas)
			brokenGlass(cmd, s.Elevations)
			auditNotes(cmd.OutOrStdout(), s.Audit)
			if len(s.Reported) == 0 {
				return
			}
			fmt.Fprintf(cmd.OutOrStdout(), "\nnodes that sent wrong chunks: look at their memory, their disk, and who owns them\n")
			rows = nil
			for _, p := range s.Reported {
				state := "reported by one node alone"
				if p.KeptAway {
					state = "kept away until " + p.KeptUntil.Format(time.RFC3339)
				}
				rows = append(rows, []string{string(p.ID), strconv.Itoa(p.By), p.Last.Format(time.RFC3339), state})
			}
			table(cmd, []string{"node", "reported by", "last", ""}, rows)
		})
	})
}
