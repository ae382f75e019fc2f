package main

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/node/cache"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newCache() *cobra.Command {
	root := group("cache", "What one node has on its disk")
	root.AddCommand(
		cacheVerb(&cobra.Command{
			Use: "list", Short: "List the blobs that are here", Args: cobra.NoArgs,
			Example: "  shoal cache list\n  shoal cache list --ops 127.0.0.1:7072 --json",
		}, func(ctx context.Context, c cache.Client, _ []string) (cache.View, error) { return c.View(ctx, true) }),
		cacheVerb(&cobra.Command{
			Use: "pin ROOT", Short: "Keep a blob until it is unpinned", Args: cobra.ExactArgs(1),
			Example: "  shoal cache pin 3f9a11c04d7e",
		}, func(ctx context.Context, c cache.Client, args []string) (cache.View, error) {
			return c.Do(ctx, cache.Request{Pin: args[0]})
		}),
		cacheVerb(&cobra.Command{
			Use: "unpin ROOT", Short: "Take a pin of `shoal cache pin` back", Args: cobra.ExactArgs(1),
			Example: "  shoal cache unpin 3f9a11c04d7e",
		}, func(ctx context.Context, c cache.Client, args []string) (cache.View, error) {
			return c.Do(ctx, cache.Request{Unpin: args[0]})
		}),
		cacheVerb(&cobra.Command{
			Use: "clear", Short: "Remove every blob that is neither pinned nor in use", Args: cobra.NoArgs,
			Example: "  shoal cache clear",
		}, func(ctx context.Context, c cache.Client, _ []string) (cache.View, error) {
			return c.Do(ctx, cache.Request{Clear: true})
		}),
	)
	return root
}

// cacheVerb makes a verb that asks an agent's private listener about its cache.
func cacheVerb(cmd *cobra.Command, run func(context.Context, cache.Client, []string) (cache.View, error)) *cobra.Command {
	var (
		c   cache.Client
		out output
	)
	listen := "127.0.0.1:7072"
	if d, err := config.Defaults(meta.RoleAgent); err == nil {
		listen = cmp.Or(os.Getenv("SHOAL_OPS"), d.Ops)
	}
	cmd.Flags().StringVar(&c.Ops, "ops", listen, "the agent's private listener, HOST:PORT; else $SHOAL_OPS")
	out.flag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		v, err := run(cmd.Context(), c, args)
		if err != nil {
			return err
		}
		return out.print(cmd, v, func() { cacheTable(cmd, v) })
	}
	return cmd
}

func cacheTable(cmd *cobra.Command, v cache.View) {
	w := cmd.OutOrStdout()
	var rows [][]string
	for _, b := range v.Blobs {
		state := "whole"
		if !b.Complete {
			state = "partial"
		}
		if b.Pinned {
			state += ", pinned"
		}
		rows = append(rows, []string{b.Root[:12], size(b.Bytes), state, b.LastUse, b.Name})
	}
	if len(rows) > 0 {
		table(cmd, []string{"root", "size", "state", "last use", "name"}, rows)
	}
	if v.More {
		fmt.Fprintln(w, "and others")
	}
	if v.Cleared > 0 {
		fmt.Fprintf(w, "%d blobs removed, %s freed\n", v.Cleared, size(v.ClearedBytes))
	}
	limit := ""
	if v.CapBytes > 0 {
		limit = " of " + size(v.CapBytes)
	}
	fmt.Fprintf(w, "%s%s used by %d blobs, %d partial; %d pinned with %s\n", size(v.UsedBytes), limit, v.BlobCount, v.Partial, v.Pinned, size(v.PinnedBytes))
	if read := v.LocalBytes + v.FetchedBytes; read > 0 {
		fmt.Fprintf(w, "since the start %d%% of %s that were read were here; %s of new blobs came from others here\n",
			100*v.LocalBytes/read, size(read), size(v.ReusedBytes))
	}
}
