package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// tokenVerbs are the verbs about tokens of people and robots.
func tokenVerbs() []*cobra.Command {
	return []*cobra.Command{newTokenCreate(), newTokenList(), newTokenRevoke(), newTokenRotate()}
}

func newTokenCreate() *cobra.Command {
	var (
		n        client.NewToken
		ttl      time.Duration
		tenant   string
		robot    string
		actions  []string
		patterns []string
	)
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token, for yourself or a robot", Args: cobra.NoArgs,
		Long: `create prints a token that works with every client: as Bearer, as the password of Basic with any
user, bare (cargo), with docker, npm and the rest. It is shown once; the registry keeps a hash.

Without --tenant, --repo, --actions and --env it may all that its principal may, else only that part of it.`,
		Example: `  shoal token create --ttl 8h --note laptop
  shoal token create --robot acme/ci --repo acme/app --actions pull,push --ttl 2160h
  shoal token create --repo 'acme/*' --actions pull --env 'prod*'`,
	}
	f := cmd.Flags()
	f.StringVar(&n.Principal, "for", "", "whose it is: user:NAME, robot:TENANT/NAME (default: yours)")
	f.StringVar(&robot, "robot", "", "TENANT/NAME: the same as --for robot:TENANT/NAME")
	f.StringVar(&tenant, "tenant", "", "only repositories of this tenant")
	f.StringArrayVar(&patterns, "repo", nil, "only repositories that this pattern matches: acme/app, acme/web-*; repeatable")
	f.StringSliceVar(&actions, "actions", nil, "only these: pull, list, push, delete ... (see `shoal role list`)")
	f.StringVar(&n.Environment, "env", "", "only repositories of this environment; may end in *")
	f.DurationVar(&ttl, "ttl", meta.TokenLife, "how long it lives, at most "+meta.MaxTokenLife.String())
	f.StringVar(&n.Note, "note", "", "what people should know of it")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		if robot != "" {
			n.Principal = meta.KindRobot + ":" + strings.TrimPrefix(robot, meta.KindRobot+":")
		}
		n.Repositories, n.TTLSeconds = patterns, int64(ttl/time.Second)
		if tenant != "" {
			n.Repositories = append(n.Repositories, tenant+"/*")
		}
		for _, a := range actions {
			n.Actions = append(n.Actions, meta.Action(a))
		}
		t, err := c.CreateToken(ctx, n)
		if err != nil {
			return err
		}
		return printToken(cmd, out, t)
	})
}

// printToken prints a new token alone on its line, so that scripts can take it; what
// people should know goes to the other stream.
func printToken(cmd *cobra.Command, out *output, t client.Token) error {
	return out.print(cmd, t, func() {
		fmt.Fprintln(cmd.OutOrStdout(), t.Text)
		fmt.Fprintf(cmd.ErrOrStderr(), "token %s of %s, until %s; it is not shown again\n", t.ID, t.Principal, instant(t.Expires))
	})
}

func newTokenList() *cobra.Command {
	var (
		principal, tenant string
		all               bool
	)
	cmd := &cobra.Command{
		Use: "list", Short: "List tokens, those in use last first", Args: cobra.NoArgs,
		Long:    "list shows your tokens and sessions, those of a principal, of a tenant's robots and jobs, or all. Use is known to within some minutes.",
		Example: "  shoal token list\n  shoal token list --for robot:acme/ci\n  shoal token list --tenant acme",
	}
	f := cmd.Flags()
	f.StringVar(&principal, "for", "", "of this principal")
	f.StringVar(&tenant, "tenant", "", "of this tenant's robots and jobs")
	f.BoolVar(&all, "all", false, "of everybody")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		tokens, err := collect(c.Tokens(ctx, principal, meta.TenantName(tenant), all))
		if err != nil {
			return err
		}
		slices.SortStableFunc(tokens, func(a, b meta.Credential) int {
			return int(min(max(b.LastUsed-a.LastUsed, -1), 1))
		})
		return out.print(cmd, tokens, func() { tokenTable(cmd, tokens, time.Now()) })
	})
}

func tokenTable(cmd *cobra.Command, tokens []meta.Credential, now time.Time) {
	var rows [][]string
	for _, t := range tokens {
		state := "until " + instant(t.Expires)
		switch {
		case t.Revoked != 0:
			state = "revoked " + instant(t.Revoked)
		case t.Live(now) != nil:
			state = "ended " + instant(t.Expires)
		}
		used := "never"
		if t.LastUsed != 0 {
			used = instant(t.LastUsed)
		}
		rows = append(rows, []string{t.ID, t.Principal, string(t.Kind), used, state, narrowing(t.Limits), t.Note})
	}
	table(cmd, []string{"token", "principal", "kind", "last used", "state", "narrowed to", "note"}, rows)
}

// narrowing says what limits leave.
func narrowing(limits []meta.Right) string {
	if limits == nil {
		return ""
	}
	var parts []string
	for _, r := range limits {
		part := r.Repository
		if len(r.Actions) < len(meta.GrantedActions) {
			var actions []string
			for _, a := range r.Actions {
				actions = append(actions, string(a))
			}
			part += " " + strings.Join(actions, ",")
		}
		if r.Environment != "" {
			part += " in " + r.Environment
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

func newTokenRevoke() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke ID...", Short: "End tokens for good", Args: cobra.MinimumNArgs(1),
		Long:    "revoke ends tokens by the ids that `shoal token list` shows. At every node that reaches a server writes stop within 5 s, private reads within 15 s.",
		Example: "  shoal token revoke k3jx5q2mzv7ab4cd",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		for _, id := range args {
			if err := c.RevokeToken(ctx, id); err != nil {
				return err
			}
		}
		return out.print(cmd, map[string][]string{"revoked": args}, func() {
			fmt.Fprintf(cmd.OutOrStdout(), "revoked: %s\n", strings.Join(args, ", "))
		})
	})
}

func newTokenRotate() *cobra.Command {
	var ttl, overlap time.Duration
	cmd := &cobra.Command{
		Use: "rotate [ID]", Short: "Replace a token by a new one that may the same", Args: cobra.MaximumNArgs(1),
		Long:    "rotate prints a new token and lets the old one go on for --overlap. Without ID it is the one that you show, as a robot does it by itself.",
		Example: "  SHOAL_TOKEN=$OLD shoal token rotate --overlap 10m\n  shoal token rotate k3jx5q2mzv7ab4cd",
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "how long the new one lives (default: as long as the old one did)")
	cmd.Flags().DurationVar(&overlap, "overlap", 0, "how long the old one goes on, at most "+meta.TokenLife.String())
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		id := ""
		if len(args) == 1 {
			id = args[0]
		} else {
			who, err := c.Whoami(ctx)
			if err != nil {
				return err
			}
			if id = who.Token; !strings.Contains(who.Name, ":") || id == "" || id == "bootstrap" {
				return fmt.Errorf("%s shows no token that can be rotated: give its ID", who.Name)
			}
		}
		t, err := c.RotateToken(ctx, id, client.Rotation{TTLSeconds: int64(ttl / time.Second), OverlapSeconds: int64(overlap / time.Second)})
		if err != nil {
			return err
		}
		return printToken(cmd, out, t)
	})
}
