package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func newScrub() *cobra.Command {
	root := group("scrub", "The bytes that servers keep: look at them, and what was found")
	root.AddCommand(newScrubRun(), newScrubStatus(), newScrubList())
	return root
}

func newScrubRun() *cobra.Command {
	var (
		n       client.NewScrub
		roots   []string
		servers []string
		wait    bool
	)
	run := &cobra.Command{
		Use: "run", Short: "Look at the bytes of servers now", Args: cobra.NoArgs,
		Long: `run asks servers to compare the files of all their copies with the records, and with --full to read every
byte, at the pace that clients leave. They do both by themselves, daily and over 14 days. What is damaged is set
aside, reported failed and repaired from any sound copy.`,
		Example: `  shoal scrub run
  shoal scrub run --full --wait
  shoal scrub run --root 3f9a11c04d7e6a...`,
	}
	f := run.Flags()
	f.BoolVar(&n.Full, "full", false, "read every byte, not only look what is there")
	f.StringArrayVar(&roots, "root", nil, "only this blob, which is read; repeatable, up to 100")
	f.StringArrayVar(&servers, "at", nil, "only at this server, by its id; repeatable")
	f.BoolVar(&wait, "wait", false, "wait until they have, and fail if a copy is not whole then")
	return adminVerb(run, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		for _, text := range roots {
			id, err := parseRoot(text)
			if err != nil {
				return err
			}
			n.Roots = append(n.Roots, id)
		}
		for _, s := range servers {
			n.Servers = append(n.Servers, meta.NodeID(s))
		}
		r, err := c.RunScrub(ctx, n)
		if err != nil {
			return err
		}
		if !wait {
			return out.print(run, r, func() {
				fmt.Fprintf(run.OutOrStdout(), "request %d: `shoal scrub status` shows how far it is\n", r.ID)
			})
		}
		s, err := awaitScrub(ctx, c, r.ID)
		if err != nil {
			return err
		}
		if err := out.print(run, s, func() { scrubTable(run, s) }); err != nil {
			return err
		}
		return scrubResult(s)
	})
}

// parseRoot reads a root in either of its forms.
func parseRoot(text string) (digest.CID, error) {
	id, err := digest.ParseCID(text)
	if err != nil {
		if id, err = digest.ParseHex(text); err != nil {
			return id, fmt.Errorf("--root %q is no root: `shoal scrub list` prints them: %w", text, meta.ErrInvalid)
		}
	}
	return id, nil
}

// awaitScrub waits until all servers of a request have answered it and what they found
// is whole again, or nothing changes for a while.
func awaitScrub(ctx context.Context, c *client.Client, request uint64) (s client.ScrubStatus, err error) {
	const settle = 30 * time.Second
	var since time.Time
	before := uint64(0)
	for {
		if s, err = c.Scrub(ctx); err != nil {
			return s, err
		}
		if done, of := s.Answered(request); done == of {
			open := openCopies(s)
			if open == 0 {
				return s, nil
			}
			if open != before || since.IsZero() {
				before, since = open, time.Now()
			}
			if time.Since(since) > settle {
				return s, nil
			}
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("no longer waited for, the scrub goes on: %w", ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

func openCopies(s client.ScrubStatus) (open uint64) {
	for _, a := range s.Servers {
		open += a.Report.Open
	}
	return open
}

func scrubResult(s client.ScrubStatus) error {
	switch open := openCopies(s); {
	case s.Unrepairable > 0:
		return fmt.Errorf("%d blobs in use have no sound copy: shoal scrub list --unrepairable", s.Unrepairable)
	case open > 0:
		return fmt.Errorf("%d copies are not whole again yet: shoal scrub list", open)
	}
	return nil
}

func newScrubStatus() *cobra.Command {
	status := &cobra.Command{
		Use: "status", Short: "Show what servers say of their bytes", Args: cobra.NoArgs,
		Example: "  shoal scrub status\n  shoal scrub status --json",
	}
	return adminVerb(status, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		s, err := c.Scrub(ctx)
		if err != nil {
			return err
		}
		return out.print(status, s, func() { scrubTable(status, s) })
	})
}

func scrubTable(cmd *cobra.Command, s client.ScrubStatus) {
	var rows [][]string
	for _, a := range s.Servers {
		r := a.Report
		waiting := ""
		if a.Wanted.ID > r.Answered {
			waiting = fmt.Sprintf("request %d", a.Wanted.ID)
		}
		rows = append(rows, []string{
			shortID(a.Server), passText(r.Existence), passText(r.Full), size(r.Full.Bytes),
			fmt.Sprint(r.DamagedChunks), fmt.Sprint(r.FailedCopies), fmt.Sprint(r.Repaired), fmt.Sprint(r.Open), waiting,
		})
	}
	table(cmd, []string{"server", "existence", "full", "read", "damaged chunks", "failed copies", "repaired", "open", "waiting"}, rows)
	if s.Unrepairable > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "\nWARNING: %s in use with no sound copy anywhere: shoal scrub list --unrepairable\n", blobs(s.Unrepairable))
	}
}

// blobs counts them; 1,000 is where counting ends.
func blobs(n int) string {
	switch {
	case n == 1:
		return "1 blob"
	case n >= 1000:
		return fmt.Sprintf("%d blobs or more", n)
	}
	return fmt.Sprintf("%d blobs", n)
}

func passText(p meta.AuditPass) string {
	switch {
	case p.Started == 0:
		return "never"
	case p.Finished == 0:
		return fmt.Sprintf("%d.%d %%, %s", p.PerMille/10, p.PerMille%10, blobs(int(p.Blobs)))
	}
	return fmt.Sprintf("%s, %s", p.Finished.Std().Local().Format(time.DateTime), blobs(int(p.Blobs)))
}

func newScrubList() *cobra.Command {
	var unrepairable bool
	list := &cobra.Command{
		Use: "list", Short: "List copies that are not whole, or what nobody has any more", Args: cobra.NoArgs,
		Long: `list shows the copies that servers reported failed, with the reason. With --unrepairable it shows the blobs
in use of which no server has a sound copy, by the names of what they are: push those again, or restore
them. A host that has one in its cache gives it back by itself.`,
		Example: "  shoal scrub list\n  shoal scrub list --unrepairable --json",
	}
	list.Flags().BoolVar(&unrepairable, "unrepairable", false, "what no server has a sound copy of, by name")
	return adminVerb(list, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		if unrepairable {
			all, err := collect(c.Unrepairable(ctx))
			if err != nil {
				return err
			}
			return out.print(list, all, func() { unrepairableTable(list, all) })
		}
		all, err := collect(c.FailedCopies(ctx))
		if err != nil {
			return err
		}
		return out.print(list, all, func() {
			var rows [][]string
			for _, r := range all {
				rows = append(rows, []string{r.Root.String(), string(r.Region), shortID(r.Server), size(r.StoredBytes), r.Reason})
			}
			table(list, []string{"root", "region", "server", "size", "reason"}, rows)
		})
	})
}

func unrepairableTable(cmd *cobra.Command, all []client.Unrepairable) {
	w := cmd.OutOrStdout()
	if len(all) == 0 {
		fmt.Fprintln(w, "every blob in use has a sound copy")
		return
	}
	var rows [][]string
	for _, u := range all {
		names := []string{"no version, an upload that nobody published"}
		if len(u.Uses) > 0 {
			names = nil
		}
		for _, use := range u.Uses {
			names = append(names, use.String())
		}
		if u.More {
			names = append(names, "and others")
		}
		for i, name := range names {
			row := []string{"", "", "", "", name}
			if i == 0 {
				sum := strings.TrimPrefix(string(u.Digest), "sha256:")
				row = []string{u.Root.String(), sum[:min(12, len(sum))], size(u.StoredBytes), u.Since.Std().Local().Format(time.DateTime), name}
			}
			rows = append(rows, row)
		}
		rows = append(rows, []string{"", "", "", "", "  because: " + u.Reason})
	}
	table(cmd, []string{"root", "sha256", "size", "since", "what it is"}, rows)
}
