package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/node/local"
)

func newDev() *cobra.Command {
	opts := local.Options{}
	var logLevel, outgoing string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster in this process, on loopback",
		Long: `dev runs servers (one a region) and agents in this process and keeps everything in one
directory, so that it comes back as it was. Server i serves on the gateway's port + i - 1, agents on
the ports after them. Callers without credentials may do everything, and a first push creates its
tenant and repository: it is for trying and testing, on loopback.`,
		Example: `  shoal dev
  shoal dev --regions 3 --agents 3 --data /tmp/shoal`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.Dir == "" {
				dir, err := dataHome()
				if err != nil {
					return err
				}
				opts.Dir = filepath.Join(dir, "dev")
			}
			opts.Log = newLogger(cmd.ErrOrStderr(), logLevel, "text")
			allow, err := config.ParsePrefixes(outgoing)
			if err != nil {
				return fmt.Errorf("--outgoing-allow: %w", err)
			}
			opts.Configure = func(c *config.Config) { c.Version, c.OutgoingAllow = versionText(), allow }
			cluster, err := local.Open(opts)
			if err != nil {
				return err
			}
			say := func() { greet(cmd.OutOrStdout(), opts.Dir, cluster.Description()) }
			return announce(cluster.Ready(), say, func() error { return cluster.Run(cmd.Context()) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.Dir, "data", "", "directory of everything (default ~/.local/share/shoal/dev)")
	f.StringVar(&opts.Gateway, "gateway", "127.0.0.1:5000", "address of the first gateway; port 0 chooses free ports and keeps them")
	f.IntVar(&opts.Regions, "regions", 1, "servers, one a region")
	f.IntVar(&opts.Agents, "agents", 0, "agents, spread over the regions")
	f.StringVar(&outgoing, "outgoing-allow", "", "reserved networks that proxies may reach, like 127.0.0.0/8 for an upstream on this machine")
	f.StringVar(&logLevel, "log-level", "warn", "debug, info, warn or error")
	return cmd
}

// dataHome is XDG's place for a user's data, or ~/.local/share.
func dataHome() (string, error) {
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "shoal"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("say where to keep things with --data: %w", err)
	}
	return filepath.Join(home, ".local", "share", "shoal"), nil
}

func greet(w io.Writer, dir string, d local.Description) {
	fmt.Fprintln(w, "shoal dev is ready")
	for _, s := range d.Servers {
		fmt.Fprintf(w, "  server %-4s http://%s   ops http://%s\n", s.Region, s.Gateway, s.Ops)
	}
	for _, a := range d.Agents {
		fmt.Fprintf(w, "  agent  %-4s http://%s   ops http://%s\n", a.Region, a.Gateway, a.Ops)
	}
	first, last := d.Servers[0].Gateway, d.Servers[len(d.Servers)-1].Gateway
	if len(d.Agents) > 0 {
		last = d.Agents[len(d.Agents)-1].Gateway
	}
	fmt.Fprintf(w, `kept in %s, described in %s

try:
  docker push %s/acme/app/api:1
  docker pull %s/acme/app/api:1
  curl -T README.md http://%s/generic/acme/files/README.md
`, dir, filepath.Join(dir, "dev.json"), first, last, first)
}
