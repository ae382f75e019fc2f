package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// cutReference takes `tenant/repository` from the front of a reference.
func cutReference(s string) (repo meta.RepoRef, rest string, err error) {
	tenant, name, ok := strings.Cut(s, "/")
	end := strings.IndexAny(name, "/:@")
	if !ok || end <= 0 {
		return repo, "", fmt.Errorf("reference %q: write TENANT/REPOSITORY and what the format puts behind it, as acme/app/api:1.4, or TENANT/REPOSITORY/PACKAGE@VERSION", s)
	}
	repo = meta.RepoRef{Tenant: meta.TenantName(tenant), Name: name[:end]}
	return repo, name[end:], repo.Check()
}

// resolveVersion returns the version that a reference names now.
func resolveVersion(ctx context.Context, c *client.Client, s string) (r meta.VersionRef, err error) {
	repo, rest, err := cutReference(s)
	if err != nil {
		return r, err
	}
	found, err := c.Resolve(ctx, repo, rest)
	if err != nil {
		return r, err
	}
	return meta.VersionRef{Repo: repo, Package: found.Package, Version: found.Version.Name}, nil
}

func nameOf(r meta.VersionRef) string {
	return r.Repo.String() + "/" + r.Package + "@" + r.Version
}

// newMarkVerbs are the verbs that mark versions.
func newMarkVerbs() []*cobra.Command {
	verb := func(name, short, long, done string, marking meta.Marking, wantsReason bool) *cobra.Command {
		cmd := &cobra.Command{
			Use: name + " REFERENCE", Short: short, Long: long, Args: cobra.ExactArgs(1),
			Example: "  shoal version " + name + " acme/npm/left-pad@1.0.0" + map[bool]string{true: ` --reason "use right-pad"`}[wantsReason],
		}
		if wantsReason || marking.Yanked != nil && *marking.Yanked {
			cmd.Flags().StringVar(&marking.Reason, "reason", "", "why: clients show it")
		}
		if wantsReason {
			_ = cmd.MarkFlagRequired("reason") // It is declared above.
		}
		return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
			r, err := resolveVersion(ctx, c, args[0])
			if err != nil {
				return err
			}
			changed, err := c.MarkVersion(ctx, r, marking)
			if err != nil {
				return err
			}
			return out.print(cmd, map[string]any{"version": nameOf(r), "changed": changed.Changed > 0}, func() {
				if changed.Changed == 0 {
					fmt.Fprintf(cmd.OutOrStdout(), "%s was %s already\n", nameOf(r), done)
					return
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is %s\n", nameOf(r), done)
			})
		})
	}
	return []*cobra.Command{
		verb("yank", "Keep a version from being chosen", `yank marks a version so that clients choose it only when it is asked for by its very name. Its bytes stay, and what
is locked to it goes on working.`, "yanked", meta.Marking{Yanked: new(true)}, false),
		verb("unyank", "Take back a yank", "", "not yanked", meta.Marking{Yanked: new(false)}, false),
		verb("unlist", "Keep a version out of lists and searches", `unlist keeps a version out of searches, and out of lists where the format knows that. By its name it is served as before.`,
			"unlisted", meta.Marking{Unlisted: new(true)}, false),
		verb("relist", "Show a version again that was unlisted", "", "listed", meta.Marking{Unlisted: new(false)}, false),
		verb("deprecate", "Have clients warn of a version", `deprecate has clients that know of it warn whoever uses the version, with the reason.`, "deprecated", meta.Marking{Deprecated: new(true)}, true),
		verb("undeprecate", "Take back a deprecation", "", "not deprecated", meta.Marking{Deprecated: new(false)}, false),
	}
}

func newVersionDelete() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "delete REFERENCE", Short: "Delete a version", Args: cobra.ExactArgs(1),
		Long: `delete takes a version and its aliases away. Its name stays taken: other content never comes back under it, and the
name of its package is never looked for at an upstream. What nobody else uses of its bytes is collected later.`,
		Example: "  shoal version delete acme/npm/left-pad@1.0.0 --yes",
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it; without it only say what would be deleted")
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		r, err := resolveVersion(ctx, c, args[0])
		if err != nil {
			return err
		}
		if !yes {
			fmt.Fprintf(cmd.OutOrStdout(), "%s would be deleted, for good\n", nameOf(r))
			return errors.New("nothing was done: say --yes to delete it")
		}
		if err := c.DeleteVersion(ctx, r); err != nil {
			return err
		}
		return out.print(cmd, map[string]string{"deleted": nameOf(r)}, func() {
			fmt.Fprintf(cmd.OutOrStdout(), "%s is deleted\n", nameOf(r))
		})
	})
}
