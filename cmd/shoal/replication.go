package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newReplication() *cobra.Command {
	root := group("replication", "Replication: the copies that regions owe")
	root.AddCommand(newReplicationStatus())
	return root
}

// replicationStatus is what the verb prints as JSON.
type replicationStatus struct {
	client.ReplicationStatus
	Backlogs []client.Backlog `json:"backlogs"`
}

// shownTenants bounds the tenants that people are shown; --json has all.
const shownTenants = 20

func newReplicationStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show how far the copies are that regions owe, and who waits", Args: cobra.NoArgs,
		Long: `status shows, by region and class, how much the region owes, what part of it is verified, what waits and for how
long, and what has no copy in the region at all; then for which tenants most waits. While a change of servers,
regions or classes is being settled, the back-fill of a new region for example, it says how far that is.`,
		Example: "  shoal replication status\n  shoal replication status --json",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		r, err := c.ReplicationStatus(ctx)
		if err != nil {
			return err
		}
		s := replicationStatus{ReplicationStatus: r, Backlogs: []client.Backlog{}}
		if r.Counted {
			var regions []meta.RegionName
			for _, class := range r.Classes {
				if class.WaitingBlobs > 0 && !slices.Contains(regions, class.Region) {
					regions = append(regions, class.Region)
				}
			}
			for _, region := range regions {
				some, err := collect(c.Backlogs(ctx, region))
				if err != nil {
					return err
				}
				s.Backlogs = append(s.Backlogs, some...)
			}
		}
		return out.print(cmd, s, func() { replicationTables(cmd, s) })
	})
}

func waits(seconds float64) string {
	if seconds == 0 {
		return ""
	}
	return (time.Duration(seconds*1000) * time.Millisecond).Round(100 * time.Millisecond).String()
}

func replicationTables(cmd *cobra.Command, s replicationStatus) {
	w := cmd.OutOrStdout()
	if !s.Counted {
		fmt.Fprintln(w, "the cluster is being upgraded, and not all that regions owe is counted yet")
	}
	if at := s.Settlement; at != nil {
		of, what := "all", "the copies on record are looked at"
		if at.Repository != "" {
			of = at.Repository
		}
		if at.Phase == "links" {
			what = "what versions use is demanded"
		} else if at.Backfills {
			what += ", then what versions use is demanded"
		}
		fmt.Fprintf(w, "a change is being settled (of %s, %d in all): %s, %.0f %% done, %d found owing\n", of, s.Settlements, what, 100*at.Part, at.Owed)
	}
	var rows [][]string
	for _, c := range s.Classes {
		rows = append(rows, []string{
			string(c.Region), string(c.Class), fmt.Sprintf("%d (%s)", c.DemandedBlobs, size(c.DemandedBytes)), fmt.Sprintf("%.1f %%", 100*c.Progress),
			fmt.Sprintf("%d (%s)", c.WaitingBlobs, size(c.WaitingBytes)), fmt.Sprintf("%d (%s)", c.MissingBlobs, size(c.MissingBytes)),
			waits(c.LagSeconds), strconv.FormatUint(c.Tenants, 10),
		})
	}
	table(cmd, []string{"region", "class", "owed", "verified", "waiting", "of it without any copy", "lag", "tenants"}, rows)
	if len(s.Backlogs) == 0 {
		return
	}
	most := slices.Clone(s.Backlogs)
	slices.SortStableFunc(most, func(a, b client.Backlog) int { return int(min(max(b.Bytes-a.Bytes, -1), 1)) })
	rows = nil
	for _, b := range most[:min(shownTenants, len(most))] {
		tier := string(b.Tier)
		if tier == "" {
			tier = string(meta.TierStandard)
		}
		rows = append(rows, []string{
			b.Tenant, tier, string(b.Region), string(b.Class), fmt.Sprintf("%d (%s)", b.Blobs, size(b.Bytes)),
			fmt.Sprintf("%d (%s)", b.MissingBlobs, size(b.MissingBytes)), waits(b.LagSeconds),
		})
	}
	fmt.Fprintln(w)
	table(cmd, []string{"tenant", "tier", "region", "class", "waiting", "of it without any copy", "lag"}, rows)
	if more := len(most) - shownTenants; more > 0 {
		fmt.Fprintf(w, "and %d more, --json has them all\n", more)
	}
}

func newTenantSet() *cobra.Command {
	var tier string
	set := &cobra.Command{
		Use: "set NAME", Short: "Change a tenant", Args: cobra.ExactArgs(1),
		Long: `set changes a tenant. Its tier is its weight where tenants wait for one another, as in replication: a premium
tenant gets four times what a standard one does, a basic one a quarter.
` + limitHelp,
		Example: `  shoal tenant set acme --tier premium
  shoal tenant set acme --publish-rate 100MiB --publish-requests 200 --download-rate 1GiB --concurrent-uploads 32
  shoal tenant set acme --storage-quota 1TiB --storage-warn 80% --egress-quota 10TiB --egress-period month`,
	}
	set.Flags().StringVar(&tier, "tier", "", "basic, standard or premium")
	limits := newLimitFlags(set)
	return adminVerb(set, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		change, err := limits.change()
		if err != nil {
			return err
		}
		t, err := c.SetTenant(ctx, meta.TenantName(args[0]), client.TenantChange{Tier: given(set, "tier", meta.Tier(tier)), Limits: change})
		if err != nil {
			return err
		}
		return out.print(set, t, func() { tenantTable(set, []meta.Tenant{t}) })
	})
}

func tenantTable(cmd *cobra.Command, tenants []meta.Tenant) {
	var rows [][]string
	for _, t := range tenants {
		tier := t.Tier
		if tier == "" {
			tier = meta.TierStandard
		}
		rows = append(rows, []string{string(t.Name), string(tier), t.Created.Std().Format(time.RFC3339), t.CreatedBy})
	}
	table(cmd, []string{"tenant", "tier", "created", "by"}, rows)
}

// regionNames reads names as --regions has them.
func regionNames(names []string) []meta.RegionName {
	out := make([]meta.RegionName, 0, len(names))
	for _, n := range names {
		if n != "" {
			out = append(out, meta.RegionName(n))
		}
	}
	return out
}

func regionList(names []meta.RegionName) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = string(n)
	}
	return strings.Join(out, ",")
}
