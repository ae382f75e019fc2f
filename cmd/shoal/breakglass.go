package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newBreakGlass() *cobra.Command {
	root := group("break-glass", "Break-glass: a role for an hour at most, with a reason, that others approve and all see")
	root.AddCommand(newBreakGlassRequest(), newBreakGlassList(), newBreakGlassSet(),
		breakGlassWord("approve", "Approve what somebody else asks for", "note", false),
		breakGlassWord("refuse", "Refuse what somebody else asks for", "note", false),
		breakGlassWord("end", "End an elevation before its time", "note", false),
		breakGlassWord("review", "Write down what came of an elevation that is over", "note", true))
	return root
}

func newBreakGlassRequest() *cobra.Command {
	var n client.NewElevation
	ttl := 30 * time.Minute
	cmd := &cobra.Command{
		Use: "request", Short: "Ask for a role, for a while", Args: cobra.NoArgs,
		Long: `request asks for a role on a scope. Somebody else who may ask for it there approves; then you have the role until
its time is over, which the cluster sees to by itself. All that you do with it is marked with its name, operators
see it, and somebody else reviews it afterwards.`,
		Example: `  shoal break-glass request --role curator --scope 'acme/*' --reason "prod is down, the fix is staged" --ttl 30m`,
	}
	f := cmd.Flags()
	f.StringVar(&n.Role, "role", "", "the role, see shoal role list")
	f.StringVar(&n.Scope, "scope", "", "on what: TENANT/REPOSITORY, TENANT/* or *")
	f.StringVar(&n.Environment, "environment", "", "only repositories of an environment")
	f.StringVar(&n.Reason, "reason", "", "why, for those who approve and those who review")
	f.DurationVar(&ttl, "ttl", ttl, "for how long, 1s to 60m")
	for _, name := range []string{"role", "scope", "reason"} {
		_ = cmd.MarkFlagRequired(name) // It is declared above.
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		if ttl%time.Second != 0 {
			return fmt.Errorf("--ttl %v: write whole seconds", ttl)
		}
		n.TTLSeconds = int64(ttl / time.Second)
		e, err := c.RequestElevation(ctx, n)
		if err != nil {
			return err
		}
		return out.print(cmd, e, func() {
			fmt.Fprintf(cmd.OutOrStdout(), "%s is asked for until %s; %d of your colleagues have to say:\n  shoal break-glass approve %s\n",
				e.ID, instant(e.Expires), e.Need, e.ID)
		})
	})
}

func newBreakGlassList() *cobra.Command {
	var open, unreviewed bool
	cmd := &cobra.Command{
		Use: "list", Short: "List elevations, the newest first", Args: cobra.NoArgs,
		Example: "  shoal break-glass list --open\n  shoal break-glass list --unreviewed --json",
	}
	cmd.Flags().BoolVar(&open, "open", false, "only those that are asked for or active")
	cmd.Flags().BoolVar(&unreviewed, "unreviewed", false, "only those that are over and that nobody has reviewed")
	cmd.MarkFlagsMutuallyExclusive("open", "unreviewed")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		which := ""
		switch {
		case open:
			which = "open"
		case unreviewed:
			which = "unreviewed"
		}
		all, err := collect(c.Elevations(ctx, which))
		if err != nil {
			return err
		}
		return out.print(cmd, all, func() {
			var rows [][]string
			for _, e := range all {
				rows = append(rows, []string{e.ID, stateOf(&e), e.Principal, e.Role + " on " + e.Scope, approvers(&e), strconv.FormatUint(e.Acts, 10), reviewOf(&e), e.Reason})
			}
			table(cmd, []string{"elevation", "state", "who", "role", "approved by", "acts", "review", "reason"}, rows)
		})
	})
}

func stateOf(e *meta.Elevation) string {
	switch e.State {
	case meta.ElevationActive:
		return "ACTIVE until " + instant(e.Expires)
	case meta.ElevationRequested:
		return fmt.Sprintf("asked for, %d of %d approvals", len(e.Approvals), e.Need)
	}
	return string(e.State) + " " + instant(e.Ended)
}

func approvers(e *meta.Elevation) string {
	var names []string
	for _, a := range e.Approvals {
		names = append(names, a.By)
	}
	return strings.Join(names, ", ")
}

func reviewOf(e *meta.Elevation) string {
	switch {
	case e.Review != nil:
		return e.Review.By + ": " + e.Review.Note
	case e.Unreviewed():
		return "MISSING"
	}
	return ""
}

func breakGlassWord(word, short, flag string, required bool) *cobra.Command {
	var note string
	example := "  shoal break-glass " + word + " 3f9k2m1x"
	if required {
		example += ` --note "one tag was moved, as asked"`
	}
	cmd := &cobra.Command{Use: word + " ELEVATION", Short: short, Args: cobra.ExactArgs(1), Example: example}
	cmd.Flags().StringVar(&note, flag, "", "what there is to say")
	if required {
		_ = cmd.MarkFlagRequired(flag) // It is declared above.
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		e, err := c.DecideElevation(ctx, args[0], word, note)
		if err != nil {
			return err
		}
		return out.print(cmd, e, func() {
			fmt.Fprintf(cmd.OutOrStdout(), "%s of %s, %s on %s: %s\n", e.ID, e.Principal, e.Role, e.Scope, stateOf(&e))
		})
	})
}

func newBreakGlassSet() *cobra.Command {
	var approvers uint32
	var most time.Duration
	cmd := &cobra.Command{
		Use: "set", Short: "Set how many must approve, and the longest time", Args: cobra.NoArgs,
		Long:    `set changes what the cluster wants of elevations; without flags it shows it.`,
		Example: "  shoal break-glass set\n  shoal break-glass set --approvers 2 --max-ttl 30m",
	}
	cmd.Flags().Uint32Var(&approvers, "approvers", 1, "how many must approve beside who asks, 1 to 8")
	cmd.Flags().DurationVar(&most, "max-ttl", time.Hour, "the longest elevation, up to 60m")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		p, err := c.ElevationPolicy(ctx)
		if err != nil {
			return err
		}
		changed := false
		if cmd.Flags().Changed("approvers") {
			p.Approvers, changed = approvers, true
		}
		if cmd.Flags().Changed("max-ttl") {
			if most%time.Second != 0 {
				return errors.New("--max-ttl: write whole seconds")
			}
			p.MaxTTLSeconds, changed = int64(most/time.Second), true
		}
		if changed {
			if p, err = c.SetElevationPolicy(ctx, p); err != nil {
				return err
			}
		}
		return out.print(cmd, p, func() {
			fmt.Fprintf(cmd.OutOrStdout(), "%d others approve, for %v at most\n", p.Approvers, time.Duration(p.MaxTTLSeconds)*time.Second)
		})
	})
}

// brokenGlass tells whoever looks at the cluster who has broken the glass.
func brokenGlass(cmd *cobra.Command, elevations []meta.Elevation) {
	for _, e := range elevations {
		if e.State == meta.ElevationActive {
			fmt.Fprintf(cmd.OutOrStdout(), "\nBREAK-GLASS: %s is %s on %s until %s (%s, approved by %s): %s\n",
				e.Principal, e.Role, e.Scope, instant(e.Expires), e.ID, approvers(&e), e.Reason)
		}
	}
}
