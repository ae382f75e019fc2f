package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newConfig() *cobra.Command {
	cmd := group("config", "Look at a node's configuration")
	cmd.AddCommand(newConfigExplain())
	return cmd
}

func newConfigExplain() *cobra.Command {
	var out output
	role := string(meta.RoleServer)
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Print every setting, its value, and where the value came from",
		Long: `Values come, in rising order, from defaults, the YAML file of --config, SHOAL_* variables and flags.
explain reads them as "shoal server" or "shoal agent" would.`,
		Example: "  shoal config explain --role agent --config /etc/shoal.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := meta.Role(role)
			if r != meta.RoleServer && r != meta.RoleAgent {
				return fmt.Errorf("--role %q: write server or agent", role)
			}
			_, explained, err := config.Load(r, cmd.Flags(), os.Getenv)
			if explained == nil {
				return err
			}
			if printErr := out.print(cmd, explained, func() {
				rows := make([][]string, 0, len(explained))
				for _, e := range explained {
					rows = append(rows, []string{e.Key, e.Value, e.Source, e.Usage})
				}
				table(cmd, []string{"key", "value", "from", "what it does"}, rows)
			}); printErr != nil {
				return printErr
			}
			return err
		},
	}
	// A server has every setting but the agent's cache.
	config.AddFlags(cmd.Flags(), meta.RoleServer)
	for _, s := range config.For(meta.RoleAgent) {
		if cmd.Flags().Lookup(s.Flag()) == nil {
			cmd.Flags().String(s.Flag(), s.Default, s.Usage)
		}
	}
	cmd.Flags().StringVar(&role, "role", role, "server or agent")
	out.flag(cmd)
	return cmd
}
