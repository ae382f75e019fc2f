package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/node"
)

func newLogin() *cobra.Command {
	var (
		to     target
		out    output
		remove bool
	)
	cmd := &cobra.Command{
		Use:   "login [URL]",
		Short: "Check a credential and keep it for the client verbs",
		Long: `login checks the token with the server and keeps both in a file that only you can read. The token comes
from --auth or SHOAL_TOKEN. With https and a cluster's own certificates, give the root's hash with --trust.`,
		Example: `  SHOAL_TOKEN=$(cat /var/lib/shoal/admin.token) shoal login https://first.example:5000 --trust 5f1c...
  shoal login --forget`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := loginFile()
			if err != nil {
				return err
			}
			if remove {
				if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
				return out.print(cmd, map[string]string{"forgotten": name}, func() {
					fmt.Fprintln(cmd.OutOrStdout(), "the credential is forgotten")
				})
			}
			if len(args) == 1 {
				to.server = args[0]
			}
			l, err := to.resolve()
			if err != nil {
				return err
			}
			c, err := l.client()
			if err != nil {
				return err
			}
			who, err := c.Whoami(cmd.Context())
			if err != nil {
				return err
			}
			raw, err := json.MarshalIndent(l, "", "  ")
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				return err
			}
			if err := node.WriteFileAtomic(name, raw, 0o600); err != nil {
				return err
			}
			return out.print(cmd, who, func() {
				fmt.Fprintf(cmd.OutOrStdout(), "%s knows you as %s; kept in %s\n", l.Server, who.Name, name)
			})
		},
	}
	to.flags(cmd)
	out.flag(cmd)
	cmd.Flags().BoolVar(&remove, "forget", false, "remove what is kept")
	return cmd
}
