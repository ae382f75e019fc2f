// Command shoal is the whole product: server, agent, and the tools to run them.
//
// Each verb is a file with the function that makes its cobra command; start
// reading at newRoot. Verbs that serve build a node (package node) and run it
// until a signal; the other verbs are clients of the admin API (client.go).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		// A second signal does what the first one asked for, at once.
		<-ctx.Done()
		stop()
	}()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "shoal:", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "shoal",
		Short: "A globally distributed artifact repository whose hosts share what they pull",
		Long: `shoal keeps artifacts in every region, durably on servers, and lets the hosts of a
launch wave swarm them, so that the origin sends about one copy per region.

Try it:
  shoal dev                                   one server on this machine
  docker push 127.0.0.1:5000/acme/app/api:1   any OCI client works`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newDev(), newServer(), newAgent(),
		newUser(), newRobot(), newRole(), newBinding(), newCan(),
		newToken(), newTenant(), newRepo(), newPromote(), newWave(), newReplication(), newRegion(), newNode(), newRevoke(), newCluster(), newTrust(), newLimit(), newCache(), newScrub(), newGC(), newAudit(), newUsage(),
		newBackup(), newRecover(),
		newIncident(), newBreakGlass(),
		newStatus(), newTop(), newDoctor(), newRejoin(), newConfig(), newLogin(), newLogout(), newWhoami(), newOIDC(), newVersion(), newSetup(), newSearch(),
	)
	return root
}

// group makes the command that holds verbs, as `shoal repo` does. Cobra would
// answer a verb that it lacks with the help and success.
func group(use, short string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				text += fmt.Sprintf(", did you mean %q?", near[0])
			}
			return errors.New(text)
		},
	}
}
