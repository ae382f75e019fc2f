package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// limitFlags are the limits of a tenant as flags.
type limitFlags struct {
	cmd    *cobra.Command
	bytes  map[string]*string
	counts map[string]*int64
	period string
}

const limitHelp = `
The limits are of the whole cluster, in bytes of bodies and calls per second, and divided between nodes by demand.
Over a rate bodies are slowed and calls wait a moment, then get 429 with Retry-After; over a quota uploads
or downloads get 403 with the reason. From a percentage of a quota on clients are warned by the header
Shoal-Quota-Warning, operators by the log, shoal status and shoal usage. 0 or none takes a limit away.`

func newLimitFlags(cmd *cobra.Command) *limitFlags {
	f := &limitFlags{cmd: cmd, bytes: map[string]*string{}, counts: map[string]*int64{}}
	flags := cmd.Flags()
	text := func(name, help string) { f.bytes[name] = flags.String(name, "", help) }
	count := func(name, help string) { f.counts[name] = flags.Int64(name, 0, help) }
	text("publish-rate", "most that clients send, per second: 100MiB")
	count("publish-requests", "most calls that publish, per second")
	text("download-rate", "most that clients read, per second: 1GiB")
	count("download-requests", "most calls that read, per second")
	count("concurrent-uploads", "most bodies that come in at one time")
	count("principal-uploads", "most of them of one principal, at each server")
	text("storage-quota", "most that repositories hold, each blob once a repository: 1TiB")
	text("storage-warn", "percentage of the storage quota to warn at (default 80%)")
	text("egress-quota", "most that clients download in a period: 10TiB")
	text("egress-warn", "percentage of the egress quota to warn at (default 80%)")
	flags.StringVar(&f.period, "egress-period", "", "month or day, by UTC (default month)")
	return f
}

// change reads what was given; nil when nothing was.
func (f *limitFlags) change() (*meta.LimitsChange, error) {
	var c meta.LimitsChange
	changed := false
	size := func(name string) (*int64, error) {
		if !f.cmd.Flags().Changed(name) {
			return nil, nil
		}
		changed = true
		text := strings.TrimSuffix(*f.bytes[name], "/s")
		if text == "none" {
			text = "0"
		}
		n, err := config.ParseBytes(text)
		v := int64(n)
		if err != nil {
			err = fmt.Errorf("--%s: %w", name, err)
		}
		return &v, err
	}
	percent := func(name string) (*int64, error) {
		if !f.cmd.Flags().Changed(name) {
			return nil, nil
		}
		changed = true
		v, err := strconv.ParseInt(strings.TrimSuffix(*f.bytes[name], "%"), 10, 64)
		if err != nil || v < 0 || v > 100 {
			return nil, fmt.Errorf("--%s %q: write it like 80%%", name, *f.bytes[name])
		}
		return &v, nil
	}
	count := func(name string) *int64 {
		v := given(f.cmd, name, *f.counts[name])
		changed = changed || v != nil
		return v
	}
	var errs []error
	keep := func(v *int64, err error) *int64 {
		if err != nil {
			errs = append(errs, err)
		}
		return v
	}
	c.PublishBytes, c.DownloadBytes = keep(size("publish-rate")), keep(size("download-rate"))
	c.StorageBytes, c.EgressBytes = keep(size("storage-quota")), keep(size("egress-quota"))
	c.StorageWarn, c.EgressWarn = keep(percent("storage-warn")), keep(percent("egress-warn"))
	c.PublishRequests, c.DownloadRequests = count("publish-requests"), count("download-requests")
	c.Uploads, c.PrincipalUploads = count("concurrent-uploads"), count("principal-uploads")
	if period := given(f.cmd, "egress-period", meta.Period(f.period)); period != nil {
		c.EgressPeriod, changed = period, true
	}
	if len(errs) > 0 {
		return nil, errs[0]
	}
	if !changed {
		return nil, nil
	}
	return &c, nil
}

func newTenantShow() *cobra.Command {
	show := &cobra.Command{
		Use: "show NAME", Short: "Show the limits of a tenant and what it uses of them", Args: cobra.ExactArgs(1),
		Example: "  shoal tenant show acme",
	}
	return adminVerb(show, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		u, err := c.Usage(ctx, meta.TenantName(args[0]))
		if err != nil {
			return err
		}
		return out.print(show, u, func() { showUsage(show.OutOrStdout(), u) })
	})
}

func orNone(n int64, text func(int64) string) string {
	if n == 0 {
		return "no limit"
	}
	return text(n)
}

// exact writes a size so that it can be given again.
func exact(n int64) string { return config.Bytes(n).String() }

func showUsage(w io.Writer, u client.Usage) {
	l := u.Limits
	row := func(name, limit, now string) { fmt.Fprintf(w, "%-22s %-14s %s\n", name, limit, now) }
	perSec := func(n int64) string { return exact(n) + "/s" }
	calls := func(n int64) string { return strconv.FormatInt(n, 10) + "/s" }
	plain := func(n int64) string { return strconv.FormatInt(n, 10) }
	rates := func(text func(r client.Rates) string) string {
		if u.Rates == nil {
			return ""
		}
		return "now " + text(*u.Rates)
	}
	fmt.Fprintf(w, "tenant %s\n", u.Tenant)
	row("publish rate", orNone(l.PublishBytes, perSec), rates(func(r client.Rates) string { return size(int64(r.PublishBytes)) + "/s" }))
	row("publish requests", orNone(l.PublishRequests, calls), rates(func(r client.Rates) string { return fmt.Sprintf("%.1f/s", r.PublishRequests) }))
	row("download rate", orNone(l.DownloadBytes, perSec), rates(func(r client.Rates) string { return size(int64(r.DownloadBytes)) + "/s" }))
	row("download requests", orNone(l.DownloadRequests, calls), rates(func(r client.Rates) string { return fmt.Sprintf("%.1f/s", r.DownloadRequests) }))
	row("concurrent uploads", orNone(l.Uploads, plain), rates(func(r client.Rates) string { return fmt.Sprintf("%.0f", r.Uploads) }))
	row("  of one principal", orNone(l.PrincipalUploads, plain), "")
	held := fmt.Sprintf("%s in %d blobs", size(u.StorageBytes), u.Blobs)
	if !u.Counted {
		held += ", still being counted"
	}
	if u.ReservedBytes > 0 {
		held += fmt.Sprintf(", %s more reserved by uploads", size(u.ReservedBytes))
	}
	row("storage quota", orNone(l.StorageBytes, exact), held+threshold(u.Storage, u.StorageBytes, l.StorageBytes))
	row("  warn at", percentText(l.StorageWarn), "")
	period := cmp.Or(l.EgressPeriod, meta.PerMonth)
	row("egress quota", orNone(l.EgressBytes, func(n int64) string { return exact(n) + "/" + string(period) }),
		size(u.EgressBytes)+" this "+string(period)+threshold(u.Egress, u.EgressBytes, l.EgressBytes))
	row("  warn at", percentText(l.EgressWarn), "")
	row("downloaded", "", fmt.Sprintf("today %s in %d calls, this month %s in %d, last month %s",
		size(u.TodayBytes), u.TodayRequests, size(u.MonthBytes), u.MonthRequests, size(u.LastMonthBytes)))
	if u.Checked != 0 {
		row("last recount", "", fmt.Sprintf("%s, corrected by %d bytes", u.Checked.Std().Format(time.RFC3339), u.DriftBytes))
	}
}

func percentText(n int64) string { return strconv.FormatInt(cmp.Or(n, meta.DefaultWarn), 10) + "%" }

// threshold says how much of a quota is used.
func threshold(t meta.Threshold, used, quota int64) string {
	if quota == 0 {
		return ""
	}
	text := fmt.Sprintf(" (%.0f%%)", float64(used)/float64(quota)*100)
	switch t {
	case meta.NearQuota:
		return text + " WARNING"
	case meta.OverQuota:
		return text + " FULL"
	}
	return text
}

func newUsage() *cobra.Command {
	var recount bool
	var top int
	cmd := &cobra.Command{
		Use: "usage [TENANT]", Short: "Show what tenants store, download and do", Args: cobra.MaximumNArgs(1),
		Long: `usage lists the tenants by what they store, with what their clients downloaded this month and do now; of one
tenant it shows the limits too, and the repositories that hold most. Storage is what repositories hold, each blob
once a repository, without what only deleted versions used. Downloads are some seconds behind. --recount counts
a tenant's storage anew while it goes on to change, and says by how much the count was off: by nothing.`,
		Example: "  shoal usage\n  shoal usage acme --json\n  shoal usage acme --recount",
	}
	cmd.Flags().BoolVar(&recount, "recount", false, "count the tenant's storage anew first")
	cmd.Flags().IntVar(&top, "top", 20, "how many to list; --json has all")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		if len(args) == 1 {
			return tenantUsage(ctx, cmd, c, out, meta.TenantName(args[0]), recount, top)
		}
		if recount {
			return fmt.Errorf("--recount is of one tenant: shoal usage TENANT --recount")
		}
		all, err := collect(c.Usages(ctx))
		if err != nil {
			return err
		}
		return out.print(cmd, all, func() { usageTable(cmd, all, top) })
	})
}

func usageTable(cmd *cobra.Command, all []client.Usage, top int) {
	slices.SortStableFunc(all, func(a, b client.Usage) int { return cmp.Compare(b.StorageBytes, a.StorageBytes) })
	rate := func(r *client.Rates, of func(client.Rates) float64) string {
		if r == nil {
			return "?"
		}
		return size(int64(of(*r))) + "/s"
	}
	var rows [][]string
	for _, u := range all[:min(top, len(all))] {
		rows = append(rows, []string{
			string(u.Tenant), size(u.StorageBytes) + threshold(u.Storage, u.StorageBytes, u.Limits.StorageBytes), strconv.FormatUint(u.Blobs, 10),
			size(u.MonthBytes) + threshold(u.Egress, u.EgressBytes, u.Limits.EgressBytes), size(u.TodayBytes),
			rate(u.Rates, func(r client.Rates) float64 { return r.PublishBytes }), rate(u.Rates, func(r client.Rates) float64 { return r.DownloadBytes }),
		})
	}
	table(cmd, []string{"tenant", "stored", "blobs", "downloaded this month", "today", "publishes now", "downloads now"}, rows)
	if more := len(all) - len(rows); more > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "and %d more, --top shows them, --json has all\n", more)
	}
}

// tenantReport is what `usage TENANT --json` prints.
type tenantReport struct {
	client.Usage
	Repositories []client.RepositoryUsage `json:"repositories"`
}

func tenantUsage(ctx context.Context, cmd *cobra.Command, c *client.Client, out *output, tenant meta.TenantName, recount bool, top int) error {
	for more := recount; more; {
		r, err := c.RecountUsage(ctx, tenant)
		if err != nil {
			return err
		}
		more = r.More
	}
	u, err := c.Usage(ctx, tenant)
	if err != nil {
		return err
	}
	repos, err := collect(c.RepositoryUsages(ctx, tenant))
	if err != nil {
		return err
	}
	return out.print(cmd, tenantReport{u, repos}, func() {
		showUsage(cmd.OutOrStdout(), u)
		slices.SortStableFunc(repos, func(a, b client.RepositoryUsage) int { return cmp.Compare(b.Bytes, a.Bytes) })
		var rows [][]string
		for _, r := range repos[:min(top, len(repos))] {
			rows = append(rows, []string{string(tenant) + "/" + r.Repository, size(r.Bytes), strconv.FormatUint(r.Blobs, 10)})
		}
		fmt.Fprintln(cmd.OutOrStdout())
		table(cmd, []string{"repository", "stored", "blobs"}, rows)
		if more := len(repos) - len(rows); more > 0 {
			fmt.Fprintf(cmd.OutOrStdout(), "and %d more, --top shows them, --json has all\n", more)
		}
	})
}

// quotaNotes says which tenants have passed a threshold.
func quotaNotes(w io.Writer, all []client.Usage) {
	for _, u := range all {
		for what, at := range map[string]struct {
			state       meta.Threshold
			used, quota int64
		}{"storage": {u.Storage, u.StorageBytes, u.Limits.StorageBytes}, "egress": {u.Egress, u.EgressBytes, u.Limits.EgressBytes}} {
			if at.state > meta.BelowQuota {
				fmt.Fprintf(w, "\n%s: tenant %s uses %s of its %s quota of %s%s: shoal usage %s\n", strings.ToUpper(at.state.String()), u.Tenant,
					size(at.used), what, size(at.quota), threshold(meta.BelowQuota, at.used, at.quota), u.Tenant)
			}
		}
	}
}
