package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/node"
)

func newRejoin() *cobra.Command {
	var (
		out  output
		data string
	)
	cmd := &cobra.Command{
		Use:   "rejoin",
		Short: "Set a stopped server's damaged metadata aside; its next start takes it anew from the others",
		Long: `rejoin is for a server whose Raft log or state is damaged: it ended itself, and says so at
each start. It moves both into DATA/aside-TIME and touches nothing else. The next start has the
leader take the server out of the Raft configuration, joins it anew under its own key, without a
vote at first, and fetches the metadata from the other servers; blobs stay where they are.
A majority of the other servers has to be there.`,
		Example: `  systemctl stop shoal
  shoal rejoin --data /var/lib/shoal
  systemctl start shoal`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if data == "" {
				return errors.New("name the server's data directory with --data")
			}
			aside, err := node.Rejoin(data, time.Now())
			if err != nil {
				return err
			}
			return out.print(cmd, map[string]string{"aside": aside}, func() {
				fmt.Fprintf(cmd.OutOrStdout(), "The metadata is in %s now. Start the server as before; it joins anew.\n", aside)
			})
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "the server's data directory")
	out.flag(cmd)
	return cmd
}
