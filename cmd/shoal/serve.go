package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newServer() *cobra.Command {
	cmd := newServing(meta.RoleServer, &cobra.Command{
		Use:   "server",
		Short: "Run a server of a region: metadata, durable blobs, gateway",
		Example: `  # the first server makes the cluster
  shoal server --data /var/lib/shoal --region eu --gateway 0.0.0.0:5000 --bootstrap

  # any other joins it with a token from "shoal token join --role server --region us"
  shoal server --data /var/lib/shoal --region us --gateway 0.0.0.0:5000 \
      --join https://first.example:5000 --token shoal1...`,
	})
	cmd.AddCommand(newServerList(), newServerDrain(), newServerUndrain(), newServerRemove())
	return cmd
}

func newAgent() *cobra.Command {
	return newServing(meta.RoleAgent, &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of a host: a cache that swarms with its neighbours",
		Example: `  # with a token from "shoal token join --role agent --region us --read 'acme/*'"
  shoal agent --data /var/lib/shoal --join https://first.example:5000 --token shoal1...`,
	})
}

// agentGC is the garbage an agent lets gather, in percent of what is live. That is
// some 7 MB, as chunks are not on the heap, so collecting it more often costs next to
// nothing and spares 3 MB of the host's memory.
const agentGC = 50

func newServing(role meta.Role, cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.NoArgs
	config.AddFlags(cmd.Flags(), role)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, _, err := config.Load(role, cmd.Flags(), os.Getenv)
		if err != nil {
			return err
		}
		cfg.Version = versionText()
		if role == meta.RoleAgent && os.Getenv("GOGC") == "" {
			debug.SetGCPercent(agentGC)
		}
		log := newLogger(cmd.ErrOrStderr(), cfg.LogLevel, cfg.LogFormat)
		n, err := node.New(cmd.Context(), cfg, log)
		if err != nil {
			return err
		}
		say := func() {
			fmt.Fprintf(cmd.OutOrStdout(), "shoal %s %s of region %s is ready\n  gateway  %s\n  ops      %s\n",
				role, n.ID(), n.Region(), n.Gateway(), cfg.Ops)
			if cfg.Bootstrap {
				fmt.Fprintf(cmd.OutOrStdout(), "  admin token in %s/%s\n", cfg.Data, node.AdminTokenFile)
			}
		}
		return announce(n.Ready(), say, func() error { return n.Run(cmd.Context()) })
	}
	return cmd
}

// announce calls run, and say when ready closes before run returns.
func announce(ready <-chan struct{}, say func(), run func() error) error {
	done := make(chan struct{})
	said := make(chan struct{})
	go func() {
		defer close(said)
		select {
		case <-ready:
			say()
		case <-done:
		}
	}()
	err := run()
	close(done)
	<-said
	return err
}

func newLogger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	opts := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
