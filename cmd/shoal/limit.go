package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/node/limits"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newLimit() *cobra.Command {
	root := group("limit", "Bandwidth limits of one node")
	root.AddCommand(newLimitShow(), newLimitSet(), newLimitReset())
	return root
}

// limitVerb makes a verb that asks a node's private listener about its limits.
func limitVerb(cmd *cobra.Command, run func(context.Context, limits.Client) (limits.View, error)) *cobra.Command {
	var (
		c   limits.Client
		out output
	)
	listen := "127.0.0.1:7072"
	if d, err := config.Defaults(meta.RoleAgent); err == nil {
		listen = cmp.Or(os.Getenv("SHOAL_OPS"), d.Ops)
	}
	cmd.Flags().StringVar(&c.Ops, "ops", listen, "the node's private listener, HOST:PORT; else $SHOAL_OPS")
	out.flag(cmd)
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v, err := run(cmd.Context(), c)
		if err != nil {
			return err
		}
		return out.print(cmd, v, func() { limitTable(cmd, v) })
	}
	return cmd
}

// limitTable prints the budgets that have a limit, are configured to, or were changed.
func limitTable(cmd *cobra.Command, v limits.View) {
	rate := func(r limits.Rates, budget string) string {
		if _, ok := r[budget]; !ok {
			return ""
		}
		return config.Rate(r[budget]).String()
	}
	var rows [][]string
	seen := map[string]bool{}
	for _, r := range []limits.Rates{v.Limits, v.Configured, v.Changed} {
		for budget := range r {
			if !seen[budget] {
				seen[budget] = true
				rows = append(rows, []string{
					strings.ReplaceAll(budget, "_", "-"), cmp.Or(rate(v.Limits, budget), "none"), rate(v.Configured, budget), rate(v.Changed, budget),
				})
			}
		}
	}
	if len(rows) == 0 {
		fmt.Fprintln(cmd.OutOrStdout(), "no limits")
		return
	}
	slices.SortFunc(rows, slices.Compare)
	table(cmd, []string{"budget", "limit", "configured", "changed"}, rows)
}

func newLimitShow() *cobra.Command {
	return limitVerb(&cobra.Command{
		Use: "show", Short: "Show the bandwidth limits in force, and where they come from",
		Example: "  shoal limit show\n  shoal limit show --ops 127.0.0.1:7072 --json",
	}, func(ctx context.Context, c limits.Client) (limits.View, error) { return c.View(ctx) })
}

func newLimitReset() *cobra.Command {
	return limitVerb(&cobra.Command{
		Use: "reset", Short: "Go back to the limits of the node's configuration",
		Example: "  shoal limit reset --ops 127.0.0.1:7072",
	}, func(ctx context.Context, c limits.Client) (limits.View, error) { return c.Reset(ctx) })
}

func newLimitSet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set", Short: "Change bandwidth limits of a running node",
		Long: `set changes limits at once, also for transfers that are under way. The node keeps the changes over restarts, until
they are set to "configured" or "shoal limit reset".

A rate is like 50MB/s or 400mbit; "none" is no limit; "configured" takes an earlier change back. Limits are of bytes
on the link to peers. A tenant's and a class's hold each way by itself; the classes are urgent (a client reads it), bulk
(copies that regions owe) and prewarm.`,
		Example: `  shoal limit set --up 50MB/s --ops 127.0.0.1:7072
  shoal limit set --wan-up 100mbit --class prewarm=10MB/s --tenant acme=50MB/s
  shoal limit set --up configured`,
	}
	values := map[string]*string{}
	for _, budget := range []struct{ flag, usage string }{
		{"up", "most that is sent to peers"},
		{"down", "most that is received from peers"},
		{"zone-up", "most that is sent to other zones of the region"},
		{"zone-down", "most that is received from other zones of the region"},
		{"wan-up", "most that is sent to other regions"},
		{"wan-down", "most that is received from other regions"},
	} {
		values[budget.flag] = cmd.Flags().String(budget.flag, "", budget.usage)
	}
	tenants := cmd.Flags().StringArray("tenant", nil, "most for a tenant's blobs, TENANT=RATE; repeatable")
	classes := cmd.Flags().StringArray("class", nil, "most for a class, CLASS=RATE; repeatable")
	return limitVerb(cmd, func(ctx context.Context, c limits.Client) (limits.View, error) {
		changes := limits.Changes{}
		put := func(budget, value string) error {
			if value == "configured" {
				changes[budget] = nil
				return nil
			}
			r, err := config.ParseRate(value)
			if err != nil {
				return fmt.Errorf("%s: %w", strings.ReplaceAll(budget, "_", "-"), err)
			}
			rate := int64(r)
			changes[budget] = &rate
			return nil
		}
		for flag, value := range values {
			if cmd.Flags().Changed(flag) {
				if err := put(strings.ReplaceAll(flag, "-", "_"), *value); err != nil {
					return limits.View{}, err
				}
			}
		}
		for prefix, list := range map[string][]string{"tenants.": *tenants, "classes.": *classes} {
			for _, entry := range list {
				name, value, ok := strings.Cut(entry, "=")
				if !ok {
					return limits.View{}, fmt.Errorf("%q: write NAME=RATE, as in acme=50MB/s", entry)
				}
				if err := put(prefix+name, value); err != nil {
					return limits.View{}, err
				}
			}
		}
		if len(changes) == 0 {
			return limits.View{}, errors.New("say what to change, as in --up 50MB/s")
		}
		return c.Change(ctx, changes)
	})
}
