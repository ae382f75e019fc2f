package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newGC() *cobra.Command {
	root := group("gc", "Garbage: bytes that no version uses any more")
	root.AddCommand(newGCStatus(), newGCRun(), newGCSet())
	return root
}

func newGCStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show what waits to be collected, and what was", Args: cobra.NoArgs,
		Long: `status shows, by tenant, the blobs that repositories hold, those that no version uses since one was deleted
and that wait for the end of the grace period, and those that were collected; and by server what it has removed
and is still to remove. Bytes are of one copy, by server of its own.`,
		Example: "  shoal gc status\n  shoal gc status --json",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		g, err := c.GC(ctx)
		if err != nil {
			return err
		}
		return out.print(cmd, g, func() { gcTable(cmd, g) })
	})
}

func instant(t meta.Time) string {
	if t == 0 {
		return "never"
	}
	return t.Std().Local().Format(time.DateTime)
}

func gcTable(cmd *cobra.Command, g client.GC) {
	w := cmd.OutOrStdout()
	waiting := func(blobs uint64, bytes int64) string { return fmt.Sprintf("%d (%s)", blobs, size(bytes)) }
	fmt.Fprintf(w, "what no version uses is kept for %v; last run %s\n", time.Duration(g.GraceSeconds)*time.Second, instant(g.LastRun))
	if g.HeldUntil != 0 {
		fmt.Fprintf(w, "a backup is being taken: nothing is collected until it ends, at the latest %s unless it goes on\n", instant(g.HeldUntil))
	}
	if g.Walking {
		fmt.Fprintln(w, "blobs of before the upgrade are still being counted")
	}
	fmt.Fprintf(w, "waiting: %s in repositories, %s of none; collected so far: %s\n\n",
		waiting(g.Released, g.ReleasedBytes), waiting(g.Garbage, g.GarbageBytes), waiting(g.Collected, g.CollectedBytes))
	var rows [][]string
	for _, t := range g.Tenants {
		rows = append(rows, []string{t.Tenant, waiting(t.Blobs, t.Bytes), waiting(t.Released, t.ReleasedBytes), waiting(t.Garbage, t.GarbageBytes), waiting(t.Collected, t.CollectedBytes)})
	}
	table(cmd, []string{"tenant", "held", "released", "unlinked", "collected"}, rows)
	if len(g.Servers) == 0 {
		return
	}
	fmt.Fprintln(w)
	rows = nil
	for _, s := range g.Servers {
		rows = append(rows, []string{string(s.Server), waiting(s.Ordered, s.OrderedBytes), waiting(s.Reclaimed, s.ReclaimedBytes), instant(s.Last)})
	}
	table(cmd, []string{"server", "to remove", "removed", "last"}, rows)
}

func newGCRun() *cobra.Command {
	var (
		r            client.GCRun
		dry, wait    bool
		grace        time.Duration
		graceFlagged *time.Duration
	)
	cmd := &cobra.Command{
		Use: "run", Short: "Collect what is due now, or show what would be", Args: cobra.NoArgs,
		Long: `run collects what no version has used for the grace period; the cluster does so by itself. With --dry-run it
lists what would go, with who deleted it. What a push under way, a wave or a backup needs stays.

A --grace that is shorter than the cluster's needs --force: whoever pushes a deleted image again sends its layers
anew then.`,
		Example: `  shoal gc run --dry-run
  shoal gc run
  shoal gc run --grace 0s --force --wait`,
	}
	f := cmd.Flags()
	f.BoolVar(&dry, "dry-run", false, "only list what would be collected")
	f.DurationVar(&grace, "grace", 0, "instead of the cluster's grace period")
	f.BoolVar(&r.Force, "force", false, "also with a shorter grace period than the cluster's")
	f.BoolVar(&r.Strays, "strays", false, "servers also look through their stores for blobs that nobody knows")
	f.BoolVar(&wait, "wait", false, "wait until the servers have removed their copies")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		if graceFlagged = given(cmd, "grace", grace); graceFlagged != nil {
			if grace < 0 || grace%time.Second != 0 {
				return fmt.Errorf("--grace %v: write whole seconds, as 0s or 12h", grace)
			}
			seconds := int64(grace / time.Second)
			r.GraceSeconds = &seconds
		}
		if dry {
			return dryRun(ctx, cmd, c, out, graceFlagged)
		}
		var sum client.GCRunResult
		for more := true; more; {
			done, err := c.RunGC(ctx, r)
			if err != nil {
				return err
			}
			sum.Links, sum.Collected, sum.Bytes = sum.Links+done.Links, sum.Collected+done.Collected, sum.Bytes+done.Bytes
			sum.Held, more, r.Strays = done.Held, done.More, false
		}
		if wait {
			if err := awaitRemoval(ctx, c); err != nil {
				return err
			}
		}
		return out.print(cmd, sum, func() {
			fmt.Fprintf(cmd.OutOrStdout(), "%d blobs collected, %s; %d links taken away\n", sum.Collected, size(sum.Bytes), sum.Links)
			if sum.Held {
				fmt.Fprintln(cmd.OutOrStdout(), "a backup is being taken: blobs are collected when it has ended")
			}
		})
	})
}

// awaitRemoval waits until no server has anything to remove.
func awaitRemoval(ctx context.Context, c *client.Client) error {
	for {
		g, err := c.GC(ctx)
		if err != nil {
			return err
		}
		left := uint64(0)
		for _, s := range g.Servers {
			left += s.Ordered
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// dryReport is what a dry run found: bytes of one copy of what would be collected.
type dryReport struct {
	Blobs int              `json:"blobs"`
	Bytes int64            `json:"bytes"`
	Links int              `json:"links"`
	Items []client.Garbage `json:"items"`
}

func dryRun(ctx context.Context, cmd *cobra.Command, c *client.Client, out *output, grace *time.Duration) error {
	items, err := collect(c.Garbage(ctx, true, grace))
	if err != nil {
		return err
	}
	report := dryReport{Items: items}
	var rows [][]string
	for _, g := range items {
		goes := "link only"
		if !g.Kept {
			goes = size(g.Bytes)
			report.Blobs++
			report.Bytes += g.Bytes
		}
		if g.Released {
			report.Links++
		}
		by := g.By
		if by == "" {
			by = "nobody published it"
		}
		rows = append(rows, []string{g.Root.String(), goes, g.Repo.String(), string(g.Digest)[:min(len(g.Digest), 19)], instant(g.Since), by})
	}
	return out.print(cmd, report, func() {
		if len(rows) > 0 {
			table(cmd, []string{"root", "frees", "repository", "digest", "unused since", "by"}, rows)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s blobs would be collected, %s; %d links taken away\n", strconv.Itoa(report.Blobs), size(report.Bytes), report.Links)
	})
}

func newGCSet() *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "set", Short: "Set how long what no version uses is kept", Args: cobra.NoArgs,
		Example: "  shoal gc set --grace 72h\n  shoal gc set --default",
	}
	standard := cmd.Flags().Bool("default", false, "back to the default, 24h")
	cmd.Flags().DurationVar(&grace, "grace", 0, "the grace period, in whole seconds; at least as long as a push takes")
	cmd.MarkFlagsOneRequired("grace", "default")
	cmd.MarkFlagsMutuallyExclusive("grace", "default")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		chosen := &grace
		if *standard {
			chosen = nil
		} else if grace < 0 || grace%time.Second != 0 {
			return fmt.Errorf("--grace %v: write whole seconds, as 90s or 72h", grace)
		}
		s, err := c.SetGC(ctx, chosen)
		if err != nil {
			return err
		}
		return out.print(cmd, s, func() {
			fmt.Fprintf(cmd.OutOrStdout(), "what no version uses is kept for %v\n", time.Duration(*s.GraceSeconds)*time.Second)
		})
	})
}
