package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// accountKind is what the verbs of users and robots differ in.
type accountKind struct {
	kind, arg, example string
}

var (
	userKind  = accountKind{meta.KindUser, "NAME", "ada"}
	robotKind = accountKind{meta.KindRobot, "TENANT/NAME", "acme/ci"}
)

// principal returns the principal of an argument, which may name its kind.
func (k accountKind) principal(arg string) (string, error) {
	name := k.kind + ":" + strings.TrimPrefix(arg, k.kind+":")
	return name, meta.CheckAccount(name)
}

func newUser() *cobra.Command {
	root := group("user", "Users: the people who may do something")
	list := &cobra.Command{Use: "list", Short: "List the users", Args: cobra.NoArgs, Example: "  shoal user list --json"}
	root.AddCommand(
		newUserCreate(),
		adminVerb(list, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
			users, err := collect(c.Users(ctx))
			if err != nil {
				return err
			}
			return out.print(list, users, func() { accountTable(list, users) })
		}),
		newUserPasswd(), newAccountShow(userKind), newAccountDisable(userKind, true), newAccountDisable(userKind, false), newAccountRemove(userKind),
	)
	return root
}

func newRobot() *cobra.Command {
	root := group("robot", "Robots: the machines of a tenant that may do something")
	list := &cobra.Command{Use: "list TENANT", Short: "List the robots of a tenant", Args: cobra.ExactArgs(1), Example: "  shoal robot list acme"}
	root.AddCommand(
		newRobotCreate(),
		adminVerb(list, func(ctx context.Context, c *client.Client, out *output, args []string) error {
			robots, err := collect(c.Robots(ctx, meta.TenantName(args[0])))
			if err != nil {
				return err
			}
			return out.print(list, robots, func() { accountTable(list, robots) })
		}),
		newAccountShow(robotKind), newAccountDisable(robotKind, true), newAccountDisable(robotKind, false), newAccountRemove(robotKind),
	)
	return root
}

// firstRole are the flags of an account's first binding.
type firstRole struct {
	role, repository, environment string
}

func (r *firstRole) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.role, "role", "", "role to bind it to at once, see `shoal role list`")
	f.StringVar(&r.repository, "on", "", "repositories of that role: acme/app, acme/*, * (default: a robot's tenant)")
	f.StringVar(&r.environment, "env", "", "environment of that role's repositories; may end in *")
}

// bind adds the binding, when one was asked for.
func (r *firstRole) bind(ctx context.Context, c *client.Client, principal string) (*meta.Binding, error) {
	if r.role == "" {
		return nil, nil
	}
	on := r.repository
	if tenant := meta.TenantOf(principal); on == "" && tenant != "" {
		on = string(tenant) + "/*"
	}
	if on == "" {
		return nil, fmt.Errorf("say what role %s is for: --on acme/app, --on 'acme/*', or --on '*' for all and the cluster", r.role)
	}
	b, err := c.AddBinding(ctx, client.NewBinding{Principal: principal, Role: r.role, Repository: on, Environment: r.environment})
	return &b, err
}

// made is what creating an account has brought about.
type made struct {
	meta.Account
	Binding *meta.Binding `json:"binding,omitempty"`
	Token   *client.Token `json:"first_token,omitempty"`
}

func (m made) say(w io.Writer) {
	fmt.Fprintf(w, "%s is there\n", m.Name)
	if m.Binding != nil {
		fmt.Fprintf(w, "binding %s: %s on %s\n", m.Binding.ID, m.Binding.Role, m.Binding.Repository)
	} else {
		fmt.Fprintf(w, "it may do nothing yet: shoal binding add %s ROLE --on PATTERN\n", m.Name)
	}
}

func newUserCreate() *cobra.Command {
	var (
		note  string
		first firstRole
	)
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a user", Args: cobra.ExactArgs(1),
		Example: "  shoal user create ada --role publisher --on 'acme/*'\n  shoal user create grace --role operator --on '*'",
	}
	cmd.Flags().StringVar(&note, "note", "", "what people should know of it")
	first.flags(cmd)
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		m, err := create(ctx, c, userKind, args[0], note, first)
		if err != nil {
			return err
		}
		return out.print(cmd, m, func() { m.say(cmd.OutOrStdout()) })
	})
}

// create makes an account and its first binding.
func create(ctx context.Context, c *client.Client, kind accountKind, arg, note string, first firstRole) (m made, err error) {
	name, err := kind.principal(arg)
	if err != nil {
		return m, err
	}
	if m.Account, err = c.CreateAccount(ctx, name, note); err != nil {
		return m, err
	}
	if m.Binding, err = first.bind(ctx, c, name); err != nil {
		return m, fmt.Errorf("%s is there, without a role: %w", name, err)
	}
	return m, nil
}

func newRobotCreate() *cobra.Command {
	var (
		note  string
		first firstRole
		ttl   time.Duration
	)
	cmd := &cobra.Command{
		Use: "create TENANT/NAME", Short: "Create a robot, and its first token", Args: cobra.ExactArgs(1),
		Long: `create prints a token of the new robot, alone on its line: it may all that the robot may, works with every client
and is shown once. Make others by shoal token create --robot. With --ttl 0 it makes none.`,
		Example: "  shoal robot create acme/ci --role publisher\n  shoal robot create acme/deploy --role reader --env 'prod*'",
	}
	cmd.Flags().StringVar(&note, "note", "", "what people should know of it")
	cmd.Flags().DurationVar(&ttl, "ttl", meta.TokenLife, "how long the first token lives, at most "+meta.MaxTokenLife.String()+"; 0 makes none")
	first.flags(cmd)
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		m, err := create(ctx, c, robotKind, args[0], note, first)
		if err != nil {
			return err
		}
		if ttl != 0 {
			token, err := c.CreateToken(ctx, client.NewToken{Principal: m.Name, TTLSeconds: int64(ttl / time.Second)})
			if err != nil {
				return fmt.Errorf("%s is there, without a token: %w", m.Name, err)
			}
			m.Token = &token
		}
		if m.Token == nil {
			return out.print(cmd, m, func() { m.say(cmd.OutOrStdout()) })
		}
		if out.json {
			return out.print(cmd, m, nil)
		}
		m.say(cmd.ErrOrStderr())
		return printToken(cmd, out, *m.Token)
	})
}

func accountTable(cmd *cobra.Command, accounts []meta.Account) {
	var rows [][]string
	for _, a := range accounts {
		state := "enabled"
		if a.Disabled {
			state = "disabled"
		}
		rows = append(rows, []string{a.Name, state, instant(a.Created), a.CreatedBy, a.Note})
	}
	table(cmd, []string{"principal", "state", "created", "by", "note"}, rows)
}

// shown is an account with what it is bound to.
type shown struct {
	meta.Account
	Bindings []meta.Binding `json:"bindings"`
}

func newAccountShow(kind accountKind) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show " + kind.arg, Short: "Show a " + kind.kind + " and its bindings", Args: cobra.ExactArgs(1),
		Example: "  shoal " + kind.kind + " show " + kind.example,
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		name, err := kind.principal(args[0])
		if err != nil {
			return err
		}
		s := shown{}
		if s.Account, err = c.Account(ctx, name); err != nil {
			return err
		}
		if s.Bindings, err = collect(c.Bindings(ctx, name, "")); err != nil {
			return err
		}
		return out.print(cmd, s, func() {
			accountTable(cmd, []meta.Account{s.Account})
			fmt.Fprintln(cmd.OutOrStdout())
			bindingTable(cmd, s.Bindings)
		})
	})
}

func newAccountDisable(kind accountKind, disabled bool) *cobra.Command {
	verb, short := "enable", "Let a "+kind.kind+" act again"
	if disabled {
		verb, short = "disable", "Stop a "+kind.kind+": its tokens and its password are refused until it is enabled"
	}
	cmd := &cobra.Command{
		Use: verb + " " + kind.arg, Short: short, Args: cobra.ExactArgs(1),
		Example: "  shoal " + kind.kind + " " + verb + " " + kind.example,
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		name, err := kind.principal(args[0])
		if err != nil {
			return err
		}
		a, err := c.SetAccount(ctx, name, client.AccountChange{Disabled: &disabled})
		if err != nil {
			return err
		}
		return out.print(cmd, a, func() { fmt.Fprintf(cmd.OutOrStdout(), "%s is %sd\n", a.Name, verb) })
	})
}

func newAccountRemove(kind accountKind) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm " + kind.arg, Short: "Remove a " + kind.kind + " with its bindings and tokens", Args: cobra.ExactArgs(1),
		Example: "  shoal " + kind.kind + " rm " + kind.example,
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		name, err := kind.principal(args[0])
		if err != nil {
			return err
		}
		if err := c.RemoveAccount(ctx, name); err != nil {
			return err
		}
		return out.print(cmd, map[string]string{"removed": name}, func() { fmt.Fprintf(cmd.OutOrStdout(), "%s is gone\n", name) })
	})
}
