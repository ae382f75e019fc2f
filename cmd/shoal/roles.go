package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newRole() *cobra.Command {
	root := group("role", "Roles: named sets of actions")
	root.AddCommand(newRolePut("create"), newRoleList(), newRoleShow(), newRolePut("set"), newRoleRemove())
	return root
}

func actionList(actions []meta.Action) string {
	var names []string
	for _, a := range actions {
		names = append(names, string(a))
	}
	return strings.Join(names, ",")
}

func roleTable(cmd *cobra.Command, roles []meta.AccessRole) {
	var rows [][]string
	for _, r := range roles {
		note := r.Note
		if r.BuiltIn() {
			note = "built in"
		}
		rows = append(rows, []string{r.Name, actionList(r.Actions), note})
	}
	table(cmd, []string{"role", "actions", "note"}, rows)
}

// newRolePut makes create, which refuses a role that there is, and set, which refuses
// one that there is not.
func newRolePut(verb string) *cobra.Command {
	var (
		role    client.RoleActions
		actions []string
	)
	short := "Make a role"
	if verb == "set" {
		short = "Give a role other actions, at once for all who have it"
	}
	cmd := &cobra.Command{
		Use: verb + " [TENANT/]ROLE", Short: short, Args: cobra.ExactArgs(1),
		Example: "  shoal role " + verb + " acme/deployer --actions pull,promote\n  shoal role " + verb + " watcher --actions observe,list",
	}
	cmd.Flags().StringSliceVar(&actions, "actions", nil, "what it may: "+actionList(meta.GrantedActions))
	cmd.Flags().StringVar(&role.Note, "note", "", "what people should know of it")
	_ = cmd.MarkFlagRequired("actions") // it is there
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		for _, a := range actions {
			role.Actions = append(role.Actions, meta.Action(a))
		}
		_, err := c.Role(ctx, args[0])
		switch {
		case verb == "create" && err == nil:
			return fmt.Errorf("role %s is there already: change it by `shoal role set`", args[0])
		case verb == "set" && err != nil, err != nil && !errors.Is(err, meta.ErrNotFound):
			return err
		}
		r, err := c.PutRole(ctx, args[0], role)
		if err != nil {
			return err
		}
		return out.print(cmd, r, func() { roleTable(cmd, []meta.AccessRole{r}) })
	})
}

func newRoleList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list [TENANT]", Short: "List the roles of the cluster, or those of a tenant", Args: cobra.MaximumNArgs(1),
		Example: "  shoal role list\n  shoal role list acme",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		tenant := meta.TenantName("")
		if len(args) > 0 {
			tenant = meta.TenantName(args[0])
		}
		roles, err := collect(c.Roles(ctx, tenant))
		if err != nil {
			return err
		}
		return out.print(cmd, roles, func() { roleTable(cmd, roles) })
	})
}

func newRoleShow() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show [TENANT/]ROLE", Short: "Show what a role may", Args: cobra.ExactArgs(1),
		Example: "  shoal role show tenant-admin\n  shoal role show acme/deployer --json",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		r, err := c.Role(ctx, args[0])
		if err != nil {
			return err
		}
		return out.print(cmd, r, func() { roleTable(cmd, []meta.AccessRole{r}) })
	})
}

func newRoleRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm [TENANT/]ROLE", Short: "Remove a role that nobody has", Args: cobra.ExactArgs(1), Example: "  shoal role rm acme/deployer",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		if err := c.RemoveRole(ctx, args[0]); err != nil {
			return err
		}
		return out.print(cmd, map[string]string{"removed": args[0]}, func() { fmt.Fprintf(cmd.OutOrStdout(), "role %s is gone\n", args[0]) })
	})
}

func newBinding() *cobra.Command {
	root := group("binding", "Bindings: who has which role on what")
	root.AddCommand(newBindingAdd(), newBindingList(), newBindingRemove())
	return root
}

func bindingTable(cmd *cobra.Command, bindings []meta.Binding) {
	var rows [][]string
	for _, b := range bindings {
		role := b.Role
		if b.Deny {
			role = "not " + role
		}
		ends := "never"
		if b.Expires != 0 {
			ends = instant(b.Expires)
			if b.Expires.Std().Before(time.Now()) {
				ends += " (over)"
			}
		}
		rows = append(rows, []string{b.ID, b.Principal, role, b.Repository, b.Environment, ends, b.CreatedBy, b.Reason})
	}
	table(cmd, []string{"id", "principal", "role", "on", "env", "ends", "by", "reason"}, rows)
}

func newBindingAdd() *cobra.Command {
	var (
		n   client.NewBinding
		ttl time.Duration
	)
	cmd := &cobra.Command{
		Use: "add PRINCIPAL ROLE", Short: "Give a principal a role, or deny it", Args: cobra.ExactArgs(2),
		Long: `add gives a principal (user:ada, robot:acme/ci, ci:acme/gitlab/app) a role on the repositories that a pattern
matches: acme/app, acme/*, or * for all of them and the cluster. With --deny it takes the role's actions there,
whatever else it is bound to.`,
		Example: `  shoal binding add user:ada publisher --on 'acme/*'
  shoal binding add robot:acme/ci promoter --on 'acme/*' --env staging --ttl 12h --reason 'release 1.4'
  shoal binding add user:ada publisher --on acme/frozen --deny`,
	}
	f := cmd.Flags()
	f.StringVar(&n.Repository, "on", "", "acme/app, acme/*, or * for all repositories and the cluster")
	f.StringVar(&n.Environment, "env", "", "only repositories of this environment; may end in *")
	f.BoolVar(&n.Deny, "deny", false, "take the role's actions instead of giving them")
	f.DurationVar(&ttl, "ttl", 0, "end it after so long (default: never)")
	f.StringVar(&n.Reason, "reason", "", "why")
	_ = cmd.MarkFlagRequired("on") // it is there
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		if ttl != 0 && ttl < time.Second {
			return fmt.Errorf("--ttl %v: a binding lasts a second or more", ttl)
		}
		n.Principal, n.Role, n.ExpiresInSeconds = args[0], args[1], int64(ttl/time.Second)
		b, err := c.AddBinding(ctx, n)
		if err != nil {
			return err
		}
		return out.print(cmd, b, func() { bindingTable(cmd, []meta.Binding{b}) })
	})
}

func newBindingList() *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use: "list [PRINCIPAL]", Short: "List the bindings of a principal, of a tenant, or all", Args: cobra.MaximumNArgs(1),
		Example: "  shoal binding list user:ada\n  shoal binding list --tenant acme\n  shoal binding list",
	}
	cmd.Flags().StringVar(&tenant, "tenant", "", "those that belong to a tenant")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		principal := ""
		if len(args) > 0 {
			principal = args[0]
		}
		bindings, err := collect(c.Bindings(ctx, principal, meta.TenantName(tenant)))
		if err != nil {
			return err
		}
		return out.print(cmd, bindings, func() { bindingTable(cmd, bindings) })
	})
}

func newBindingRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm ID", Short: "Take a binding back", Args: cobra.ExactArgs(1), Example: "  shoal binding rm b1042",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		if err := c.RemoveBinding(ctx, args[0]); err != nil {
			return err
		}
		return out.print(cmd, map[string]string{"removed": args[0]}, func() { fmt.Fprintf(cmd.OutOrStdout(), "binding %s is gone\n", args[0]) })
	})
}

func newCan() *cobra.Command {
	cmd := &cobra.Command{
		Use: "can PRINCIPAL ACTION [RESOURCE]", Short: "Say whether somebody may do something, and why", Args: cobra.RangeArgs(2, 3),
		Long: `can answers as the gate would, and names the binding that decides. PRINCIPAL is user:ada, robot:acme/ci, host:NODE,
anonymous, or me. RESOURCE is a repository (acme/app) or a tenant (acme); without one it is the cluster. It succeeds
whatever the answer is; --quiet fails when the answer is no.`,
		Example: "  shoal can user:ada push acme/app\n  shoal can me manage acme\n  shoal can robot:acme/ci promote acme/app --quiet && deploy",
	}
	quiet := cmd.Flags().Bool("quiet", false, "print nothing, and fail when the answer is no")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		q := client.Can{Principal: args[0], Action: meta.Action(args[1])}
		if q.Principal == "me" {
			q.Principal = ""
		}
		if len(args) > 2 {
			q.Resource = args[2]
		}
		a, err := c.Can(ctx, q)
		switch {
		case err != nil:
			return err
		case *quiet && !a.Allowed:
			return errors.New(a.Text)
		case *quiet:
			return nil
		}
		return out.print(cmd, a, func() {
			word := "no"
			if a.Allowed {
				word = "yes"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", word, a.Text)
		})
	})
}
