package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newTrust() *cobra.Command {
	root := group("trust", "The cluster's trust root")
	root.AddCommand(newTrustShow(), newTrustRotate())
	return root
}

// trustReport is what `trust show` knows.
type trustReport struct {
	client.Trust
	// Waiting are the nodes without a certificate of the next root, while there is one.
	Waiting []client.RootHolder `json:"waiting,omitempty"`
	// Holding counts those that have one.
	Holding int `json:"holding,omitempty"`
}

func reportTrust(ctx context.Context, c *client.Client) (r trustReport, err error) {
	if r.Trust, err = c.Trust(ctx); err != nil || r.Next == nil {
		return r, err
	}
	for h, err := range c.RootHolders(ctx) {
		if err != nil {
			return r, err
		}
		if h.Has {
			r.Holding++
		} else {
			r.Waiting = append(r.Waiting, h)
		}
	}
	return r, nil
}

func newTrustShow() *cobra.Command {
	show := &cobra.Command{
		Use: "show", Short: "Show the root certificate and its hash", Args: cobra.NoArgs,
		Long: `show prints the cluster's root, and while it is being replaced the next one and who has no certificate of
it yet. Package clients need the certificates that --pem prints: during a replacement both.`,
		Example: `  shoal trust show
  shoal trust show --pem > /etc/docker/certs.d/first.example:5000/ca.crt`,
	}
	var pem bool
	show.Flags().BoolVar(&pem, "pem", false, "print the certificates alone, as package clients take them")
	return adminVerb(show, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		t, err := reportTrust(ctx, c)
		if err != nil {
			return err
		}
		return out.print(show, t, func() { printTrust(show, t, pem) })
	})
}

func printTrust(cmd *cobra.Command, t trustReport, pem bool) {
	w := cmd.OutOrStdout()
	if pem {
		fmt.Fprint(w, t.Certificate)
		if t.Next != nil {
			fmt.Fprint(w, t.Next.Certificate)
		}
		return
	}
	fmt.Fprintf(w, "cluster  %s\nsha256   %s\nexpires  %s\nits key is held, sealed, by %d servers\n", t.Cluster, t.SHA256, t.NotAfter.Format(time.RFC3339), len(t.Holders))
	if t.Former != "" {
		fmt.Fprintf(w, "replaced %s at %s\n", t.Former, t.Finished.Std().UTC().Format(time.DateTime))
	}
	if t.Next == nil {
		fmt.Fprint(w, t.Certificate)
		return
	}
	fmt.Fprintf(w, "\nis being replaced since %s by\nsha256   %s\nexpires  %s\n", t.Started.Std().UTC().Format(time.DateTime), t.Next.SHA256, t.Next.NotAfter.Format(time.RFC3339))
	switch {
	case len(t.Waiting) == 0:
		fmt.Fprintf(w, "all %d nodes have a certificate of it. Once package clients have both roots (shoal trust show --pem), say shoal trust rotate --finish\n", t.Holding)
	default:
		fmt.Fprintf(w, "%d nodes have a certificate of it, %d do not yet:\n", t.Holding, len(t.Waiting))
		tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		for _, h := range t.Waiting {
			fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\n", h.Role, h.Region, h.ID, h.Gateway)
		}
		tw.Flush() //nolint:errcheck // as all printing
	}
}

func newTrustRotate() *cobra.Command {
	var finish, force bool
	rotate := &cobra.Command{
		Use: "rotate", Short: "Replace the cluster's trust root", Args: cobra.NoArgs,
		Long: `rotate makes a second root. For as long as both are there, nodes trust both and get a certificate of each
by themselves, and package clients see the old one; give them both (shoal trust show --pem). rotate --finish then
drops the old root: it refuses while a node has no certificate of the next. deploy/runbooks/trust.md has the steps.`,
		Example: `  shoal trust rotate
  shoal trust show
  shoal trust rotate --finish`,
	}
	rotate.Flags().BoolVar(&finish, "finish", false, "drop the old root")
	rotate.Flags().BoolVar(&force, "force", false, "with --finish: leave behind nodes that have no certificate of the next root; they are led to it when they return")
	return adminVerb(rotate, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		if force && !finish {
			return fmt.Errorf("--force goes with --finish")
		}
		var err error
		if finish {
			_, err = c.FinishRotation(ctx, force)
		} else {
			_, err = c.RotateTrust(ctx)
		}
		if err != nil {
			return err
		}
		t, err := reportTrust(ctx, c)
		if err != nil {
			return err
		}
		return out.print(rotate, t, func() { printTrust(rotate, t, false) })
	})
}

// printJoinTokens shows what tokens there are; their secrets are not kept anywhere.
func printJoinTokens(cmd *cobra.Command, tokens []meta.JoinToken, now time.Time) {
	rows := make([][]string, 0, len(tokens))
	for _, t := range tokens {
		left := fmt.Sprintf("%s left", t.Expires.Std().Sub(now).Round(time.Second))
		switch {
		case now.After(t.Expires.Std()):
			left = "expired"
		case t.Uses == 0:
			left = "used up"
		}
		rows = append(rows, []string{t.ID[:min(12, len(t.ID))], string(t.Role), string(t.Region), fmt.Sprint(t.Uses), left, strings.Join(t.Read, " ")})
	}
	table(cmd, []string{"id", "role", "region", "uses", "time", "reads"}, rows)
}
