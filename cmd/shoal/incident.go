package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newIncident() *cobra.Command {
	root := group("incident", "Incidents: tokens and principals in the wrong hands, and what they did")
	root.AddCommand(newIncidentOpen(), newIncidentList(), newIncidentShow(), newIncidentRelease(), newIncidentClose())
	return root
}

// tokenID returns the id of a token that was given as its id or, as somebody in a hurry
// will, whole. The rest of it goes nowhere.
func tokenID(s string) (string, error) {
	if !credential.Looks(s) {
		return s, nil
	}
	t, err := credential.Parse(s)
	return t.ID, err
}

// parseInstant reads a time in RFC 3339, or how long ago it was.
func parseInstant(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("--%s %q: write how long ago, as 36h, or a time as 2026-11-22T10:00:00Z", flag, s)
	}
	return t, nil
}

func newIncidentOpen() *cobra.Command {
	var n client.NewCompromise
	var since, until string
	wait := 2 * time.Minute
	cmd := &cobra.Command{
		Use: "open", Short: "Contain a stolen token, or a principal that is not to be trusted", Args: cobra.NoArgs,
		Long: `open does all of this with one command: it ends the token, or all that the principal has; it finds what was done
with it in the window, and with the tokens that it made; it puts what was published into quarantine, where no
gateway serves it and nothing deletes it; it closes accounts and takes back bindings that were made; and it has the
bytes of what was published read again. With --restore-aliases, aliases go back to what they named before.

What other credentials published is left alone. What was deleted is listed: publish it again from its source.`,
		Example: `  shoal incident open --token 3f9k2m1x --reason "the runner was taken over"
  shoal incident open --principal robot:acme/ci --since 36h --reason "key found in a public log" --restore-aliases`,
	}
	f := cmd.Flags()
	f.StringVar(&n.Token, "token", "", "id of the token, or the token")
	f.StringVar(&n.Principal, "principal", "", "all tokens of a principal, as robot:acme/ci")
	f.StringVar(&since, "since", "", "only what was done since: a time, or how long ago (default: all)")
	f.StringVar(&until, "until", "", "only what was done until (default: now)")
	f.StringVar(&n.Reason, "reason", "", "why, for the report and for whoever is refused")
	f.BoolVar(&n.RestoreAliases, "restore-aliases", false, "take aliases back to what they named before")
	f.DurationVar(&wait, "wait", wait, "how long to wait until all that was done has been gone through, 0s not at all")
	cmd.MarkFlagsOneRequired("token", "principal")
	cmd.MarkFlagsMutuallyExclusive("token", "principal")
	_ = cmd.MarkFlagRequired("reason") // It is declared above.
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) (err error) {
		if n.Token, err = tokenID(n.Token); err != nil {
			return err
		}
		if n.Since, err = parseInstant("since", since); err != nil {
			return err
		}
		if n.Until, err = parseInstant("until", until); err != nil {
			return err
		}
		m, err := c.OpenCompromise(ctx, n)
		if err != nil {
			return err
		}
		for end := time.Now().Add(wait); m.State == meta.CompromiseContaining && time.Now().Before(end); {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(200 * time.Millisecond):
			}
			if m, err = c.Compromise(ctx, m.ID); err != nil {
				return err
			}
		}
		return showIncident(ctx, cmd, c, out, m)
	})
}

// incidentReport is what `incident show --json` prints.
type incidentReport struct {
	meta.Compromise
	Items []meta.Finding `json:"items"`
}

func showIncident(ctx context.Context, cmd *cobra.Command, c *client.Client, out *output, m meta.Compromise) error {
	items, err := collect(c.Findings(ctx, m.ID))
	if err != nil {
		return err
	}
	return out.print(cmd, incidentReport{m, items}, func() { incidentTable(cmd, m, items) })
}

func incidentTable(cmd *cobra.Command, m meta.Compromise, items []meta.Finding) {
	w := cmd.OutOrStdout()
	whose := "all that " + m.Principal + " has"
	if m.Credential != "" {
		whose = "token " + m.Credential + " of " + m.Principal
	}
	fmt.Fprintf(w, "incident %s: %s, %s\nopened %s by %s: %s\n", m.ID, whose, m.State, instant(m.Opened), m.OpenedBy, m.Reason)
	since := "the beginning"
	if m.Since != 0 {
		since = instant(m.Since)
	}
	fmt.Fprintf(w, "gone through: what was done from %s to %s", since, instant(m.Until))
	if m.Recorded > m.Since {
		fmt.Fprintf(w, " (recorded since %s; of earlier acts nothing is known)", instant(m.Recorded))
	}
	fmt.Fprintf(w, "\nended %s; quarantined %s, of which %d were read again, %d with other bytes, and %d released; %d aliases taken back\n",
		count(m.Revoked, "credential"), count(m.Quarantined, "version"), m.Rechecked, m.Bad, m.Released, m.Restored)
	if m.Closed != 0 {
		fmt.Fprintf(w, "closed %s by %s: %s\n", instant(m.Closed), m.ClosedBy, m.Note)
	}
	if len(items) == 0 {
		fmt.Fprintln(w, "nothing was done in that time")
		return
	}
	fmt.Fprintln(w)
	var rows [][]string
	for _, f := range items {
		note := f.Note
		if f.Check != nil {
			if note != "" {
				note += "; "
			}
			if note += fmt.Sprintf("%d files read again, ", f.Check.Files); len(f.Check.Bad) == 0 {
				note += "as published"
			} else {
				note += "BAD: " + strings.Join(f.Check.Bad, ", ")
			}
		}
		if f.Released != 0 {
			note = "released by " + f.ReleasedBy
		}
		audit := ""
		if f.Act.Audit != 0 {
			audit = strconv.FormatUint(f.Act.Audit, 10)
		}
		rows = append(rows, []string{audit, instant(f.Act.At), f.Act.Credential, string(f.Act.Kind), whatOf(f.Act), string(f.Outcome), note})
	}
	table(cmd, []string{"audit", "at", "token", "did", "what", "outcome", ""}, rows)
}

func count(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// whatOf names what an act was about; a version in the form that release takes.
func whatOf(a meta.Act) string {
	switch a.Kind {
	case meta.ActPublished, meta.ActExtended, meta.ActDeletedVersion:
		return a.Repo.String() + "/" + a.Package + "@" + a.Name
	case meta.ActMovedAlias, meta.ActDeletedAlias:
		return a.Repo.String() + "/" + a.Package + ":" + a.Name
	case meta.ActRepository:
		return a.Repo.String() + " " + a.Detail
	}
	return strings.TrimSpace(a.Name + " " + a.Detail)
}

func newIncidentList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List incidents, the newest first", Args: cobra.NoArgs,
		Example: "  shoal incident list\n  shoal incident list --json",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		all, err := collect(c.Compromises(ctx))
		if err != nil {
			return err
		}
		return out.print(cmd, all, func() {
			var rows [][]string
			for _, m := range all {
				whose := m.Principal
				if m.Credential != "" {
					whose += " " + m.Credential
				}
				rows = append(rows, []string{m.ID, string(m.State), instant(m.Opened), whose, strconv.FormatUint(m.Findings, 10), fmt.Sprintf("%d (%d released)", m.Quarantined, m.Released), m.Reason})
			}
			table(cmd, []string{"incident", "state", "opened", "of", "acts", "quarantined", "reason"}, rows)
		})
	})
}

func newIncidentShow() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show INCIDENT", Short: "Report all that was done, and what became of it", Args: cobra.ExactArgs(1),
		Long: `show lists every act of the credential and of what it made, with its number in the audit log
(shoal audit prove NUMBER), and what became of it.`,
		Example: "  shoal incident show 3f9k2m1x\n  shoal incident show 3f9k2m1x --json > report.json",
	}
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		m, err := c.Compromise(ctx, args[0])
		if err != nil {
			return err
		}
		return showIncident(ctx, cmd, c, out, m)
	})
}

// parseVersion reads TENANT/REPOSITORY/PACKAGE@VERSION.
func parseVersion(s string) (r meta.VersionRef, err error) {
	name, version, ok := cutLast(s, "@")
	tenant, rest, ok1 := strings.Cut(name, "/")
	repo, pkg, ok2 := strings.Cut(rest, "/")
	if !ok || !ok1 || !ok2 || pkg == "" || version == "" {
		return r, fmt.Errorf("version %q: write TENANT/REPOSITORY/PACKAGE@VERSION, as acme/app/api@sha256:6c3c62", s)
	}
	r = meta.VersionRef{Repo: meta.RepoRef{Tenant: meta.TenantName(tenant), Name: repo}, Package: pkg, Version: version}
	return r, r.Repo.Check()
}

func cutLast(s, sep string) (before, after string, found bool) {
	if at := strings.LastIndex(s, sep); at >= 0 {
		return s[:at], s[at+len(sep):], true
	}
	return s, "", false
}

func newIncidentRelease() *cobra.Command {
	var reason, all string
	cmd := &cobra.Command{
		Use: "release VERSION...", Short: "Give versions back to readers that an incident quarantined",
		Long: `release gives versions back, each by a curator's decision, which is audited: those that are named, or with --all
all that an incident has in quarantine.`,
		Example: `  shoal incident release acme/app/api@sha256:9f86d0... --reason "built again from the same commit, byte for byte"
  shoal incident release --all 3f9k2m1x --reason "a false alarm"`,
	}
	f := cmd.Flags()
	f.StringVar(&reason, "reason", "", "why it may be read again")
	f.StringVar(&all, "all", "", "all versions of this incident")
	_ = cmd.MarkFlagRequired("reason") // It is declared above.
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		if (all == "") == (len(args) == 0) {
			return errors.New("name versions, or an incident with --all")
		}
		var refs []meta.VersionRef
		for _, arg := range args {
			r, err := parseVersion(arg)
			if err != nil {
				return err
			}
			refs = append(refs, r)
		}
		if all != "" {
			items, err := collect(c.Findings(ctx, all))
			if err != nil {
				return err
			}
			for _, i := range items {
				if i.Outcome == meta.OutcomeQuarantined && i.Released == 0 {
					refs = append(refs, meta.VersionRef{Repo: i.Act.Repo, Package: i.Act.Package, Version: i.Act.Name})
				}
			}
		}
		return releaseAll(ctx, cmd, c, out, refs, reason)
	})
}

// releaseAll releases versions one by one and stops at the first that is refused.
func releaseAll(ctx context.Context, cmd *cobra.Command, c *client.Client, out *output, refs []meta.VersionRef, reason string) error {
	released := []meta.Version{}
	var failed error
	for _, r := range refs {
		v, err := c.ReleaseVersion(ctx, r, reason)
		if err != nil {
			failed = fmt.Errorf("%s: %w", r, err)
			break
		}
		released = append(released, v)
	}
	err := out.print(cmd, released, func() {
		for _, v := range released {
			fmt.Fprintf(cmd.OutOrStdout(), "%s/%s@%s is released\n", v.Repo, v.Package, v.Name)
		}
	})
	return errors.Join(failed, err)
}

func newIncidentClose() *cobra.Command {
	var note string
	cmd := &cobra.Command{
		Use: "close INCIDENT", Short: "End the work on an incident", Args: cobra.ExactArgs(1),
		Long:    `close ends the work on an incident. What it has in quarantine stays there until it is released.`,
		Example: `  shoal incident close 3f9k2m1x --note "the runner was rebuilt, its secrets were replaced"`,
	}
	cmd.Flags().StringVar(&note, "note", "", "what came of it")
	_ = cmd.MarkFlagRequired("note") // It is declared above.
	return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		m, err := c.CloseCompromise(ctx, args[0], note)
		if err != nil {
			return err
		}
		return out.print(cmd, m, func() {
			fmt.Fprintf(cmd.OutOrStdout(), "incident %s is closed; %d versions are in quarantine\n", m.ID, m.Quarantined-min(m.Released, m.Quarantined))
		})
	})
}

// newVersionVerbs are `shoal version quarantine` and `release`.
func newVersionVerbs() []*cobra.Command {
	verb := func(use, short, long, example string, run func(context.Context, *cobra.Command, *client.Client, *output, meta.VersionRef, string) error) *cobra.Command {
		var reason string
		cmd := &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: cobra.ExactArgs(1)}
		cmd.Flags().StringVar(&reason, "reason", "", "why")
		_ = cmd.MarkFlagRequired("reason") // It is declared above.
		return adminVerb(cmd, func(ctx context.Context, c *client.Client, out *output, args []string) error {
			r, err := parseVersion(args[0])
			if err != nil {
				return err
			}
			return run(ctx, cmd, c, out, r, reason)
		})
	}
	return []*cobra.Command{
		verb("quarantine VERSION", "Keep a version from all readers",
			`quarantine keeps a version from all readers: by every name, and its blobs where nothing else uses them. Its bytes
stay, are copied and repaired as before, and cannot be deleted until it is released.`,
			`  shoal version quarantine acme/app/api@sha256:9f86d0... --reason "behaves oddly, being looked at"`,
			func(ctx context.Context, cmd *cobra.Command, c *client.Client, out *output, r meta.VersionRef, reason string) error {
				v, err := c.QuarantineVersion(ctx, r, reason)
				if err != nil {
					return err
				}
				return out.print(cmd, v, func() {
					fmt.Fprintf(cmd.OutOrStdout(), "%s/%s@%s is in quarantine\n", v.Repo, v.Package, v.Name)
				})
			}),
		verb("release VERSION", "Give a version in quarantine back to readers", "",
			`  shoal version release acme/app/api@sha256:9f86d0... --reason "a false alarm"`,
			func(ctx context.Context, cmd *cobra.Command, c *client.Client, out *output, r meta.VersionRef, reason string) error {
				return releaseAll(ctx, cmd, c, out, slices.Clip([]meta.VersionRef{r}), reason)
			}),
	}
}
