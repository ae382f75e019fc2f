package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newNode() *cobra.Command {
	root := group("node", "The nodes of the cluster, agents and servers")
	root.AddCommand(newNodeList(), newNodeRemove(), newNodeNarrow())
	return root
}

func newNodeList() *cobra.Command {
	var role, region string
	list := &cobra.Command{
		Use: "list", Short: "List the nodes of the cluster", Args: cobra.NoArgs,
		Example: "  shoal node list --role agent --region us",
	}
	list.Flags().StringVar(&role, "role", "", "server or agent (default both)")
	list.Flags().StringVar(&region, "region", "", "of one region")
	return adminVerb(list, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		nodes, err := collect(c.Nodes(ctx, meta.Role(role), meta.RegionName(region)))
		if err != nil {
			return err
		}
		return out.print(list, nodes, func() {
			w := tabwriter.NewWriter(list.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NODE\tROLE\tREGION\tZONE\tGATEWAY\tTENANTS")
			for _, n := range nodes {
				tenants := strings.Join(n.Tenants, ",")
				if !n.Narrowed() {
					tenants = "all"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", n.ID, n.Role, n.Region, n.Zone, n.Gateway, tenants)
			}
			_ = w.Flush()
		})
	})
}

func newNodeRemove() *cobra.Command {
	remove := &cobra.Command{
		Use: "remove NODE", Short: "Take a node out of the cluster, and end all that it has open", Args: cobra.ExactArgs(1),
		Long: `remove takes a node out of the roster. Nobody lets it in any more, and its connections everywhere end within 5
seconds: swarm, metadata and gateways. An agent has caches only, so nothing is lost. A server goes when nothing
remains at it: see shoal server remove.`,
		Example: "  shoal node remove 12D3KooW...",
	}
	force := remove.Flags().Bool("force", false, "a server also when it has the last copies of blobs: they are lost")
	return adminVerb(remove, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		id := meta.NodeID(args[0])
		if err := c.RemoveNode(ctx, id, *force); err != nil {
			return err
		}
		return out.print(remove, map[string]meta.NodeID{"removed": id}, func() {
			fmt.Fprintf(remove.OutOrStdout(), "node %s is removed; a new token of `shoal token join` and an empty --data let its machine join again\n", id)
		})
	})
}

func newNodeNarrow() *cobra.Command {
	narrow := &cobra.Command{
		Use: "narrow NODE [TENANT...]", Short: "Say of which tenants an agent may hold what is not public; none is all", Args: cobra.MinimumNArgs(1),
		Long: `narrow changes what shoal token join --tenants said when the agent joined: a tenant, or the beginning of names and *.
Of other tenants the agent gets no byte, no name and no word of who has them any more.`,
		Example: "  shoal node narrow 12D3KooW... acme 'team-*'",
	}
	return adminVerb(narrow, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		n, err := c.NarrowNode(ctx, meta.NodeID(args[0]), args[1:])
		if err != nil {
			return err
		}
		return out.print(narrow, n, func() {
			of := "all tenants"
			if n.Narrowed() {
				of = strings.Join(n.Tenants, ", ")
			}
			fmt.Fprintf(narrow.OutOrStdout(), "node %s may hold what is of %s\n", n.ID, of)
		})
	})
}

func newRevoke() *cobra.Command {
	var n client.NewRevocation
	var tenant string
	revoke := &cobra.Command{
		Use: "revoke [PRINCIPAL]", Short: "Void all tokens of a principal, or of a tenant's robots and jobs", Args: cobra.MaximumNArgs(1),
		Long: `revoke voids what was issued until now; new tokens count. Writes end within 5 seconds and private reads within 15 on
every node that reaches a server, also those under way. One token is revoked with shoal token revoke.`,
		Example: `  shoal revoke user:ada --reason 'left the company'
  shoal revoke --tenant acme`,
	}
	revoke.Flags().StringVar(&tenant, "tenant", "", "the tenant, instead of a principal")
	revoke.Flags().StringVar(&n.Reason, "reason", "", "why, for the record")
	return adminVerb(revoke, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		if (len(args) == 1) == (tenant != "") {
			return fmt.Errorf("name a principal, like user:ada or robot:acme/ci, or give --tenant")
		}
		n.Tenant = meta.TenantName(tenant)
		whose := "tenant " + tenant
		if len(args) == 1 {
			n.Principal, whose = args[0], args[0]
		}
		r, err := c.Revoke(ctx, n)
		if err != nil {
			return err
		}
		return out.print(revoke, r, func() {
			fmt.Fprintf(revoke.OutOrStdout(), "what was issued to %s until %s is void\n", whose, r.At.Std().Format("15:04:05 MST"))
		})
	})
}
