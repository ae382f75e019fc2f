package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func newWave() *cobra.Command {
	root := group("wave", "Waves: bring versions to many hosts before they are needed")
	root.AddCommand(newWaveCreate(), newWaveStatus(), newWaveList(), newWaveHosts(), newWaveCancel())
	return root
}

func newWaveCreate() *cobra.Command {
	var (
		n                client.NewWave
		targets          []string
		at, above, until string
	)
	create := &cobra.Command{
		Use: "create REFERENCE...", Short: "Plan a wave", Args: cobra.MinimumNArgs(1),
		Long: `create plans that hosts fetch versions and keep them, so that a later pull there needs no network, and
prints the id of the wave. References are resolved now: tenant/repository/image:tag or @digest, for
generic files tenant/repository/path. Of an image index each host takes what its own platform needs.

A host takes part when one of the targets matches it in all that the target names; without targets
all agents do. It needs the right to read the repository (shoal token join --read). Hosts that join
later catch up until the wave ends, which is --pin-for after its start; until then they keep it.`,
		Example: `  shoal wave create acme/app/api:2 acme/app/web:2 --target region=eu,zone=z1 --target region=us
  shoal wave create acme/app/api:2 --at 2030-01-01T06:00:00Z --max-parallel 200 --abort-above 5%
  shoal wave create acme/files/model.bin --at +10m --pin-for 72h --name launch`,
	}
	f := create.Flags()
	f.StringArrayVar(&targets, "target", nil, "hosts: region=NAME, zone=NAME, rack=NAME or several with commas; repeatable")
	f.StringVar(&n.Name, "name", "", "a name for people")
	f.StringVar(&at, "at", "", "when it begins: RFC 3339, or +10m from now (default at once)")
	f.Uint32Var(&n.MaxParallel, "max-parallel", 0, "hosts that fetch at one time, 0 is no bound")
	f.StringVar(&above, "abort-above", "", "stop when more hosts have failed: a number, or 5% of the hosts")
	f.StringVar(&n.Platform, "platform", "", "os/arch[/variant] for all hosts (default each host's own)")
	f.StringVar(&until, "pin-for", "24h", "how long hosts keep it, and hosts that join get it")
	return adminVerb(create, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		n.Refs = args
		for _, text := range targets {
			t, err := meta.ParseWaveTarget(text)
			if err != nil {
				return fmt.Errorf("--target: %w", err)
			}
			n.Targets = append(n.Targets, t)
		}
		var err error
		if n.NotBefore, n.InSeconds, err = parseAt(at); err != nil {
			return err
		}
		if n.Abort, err = parseAbort(above); err != nil {
			return err
		}
		kept, err := time.ParseDuration(until)
		if err != nil || kept < time.Minute {
			return fmt.Errorf("--pin-for %q: write a duration of a minute or more, as 24h", until)
		}
		n.PinSeconds = int64(kept / time.Second)
		w, err := c.CreateWave(ctx, n)
		if err != nil {
			return err
		}
		return out.print(create, w, func() {
			// Alone on its line, so that scripts can take it.
			fmt.Fprintln(create.OutOrStdout(), w.ID)
			fmt.Fprintf(create.ErrOrStderr(), "%d hosts match now; it begins %s and ends %s: shoal wave status %s --watch\n",
				w.Expected, w.NotBefore.Std().Local().Format(time.DateTime), w.Expires.Std().Local().Format(time.DateTime), w.ID)
			// The wave is planned, whether or not its status can be had.
			if s, err := c.Wave(ctx, w.ID); err == nil {
				io.WriteString(create.ErrOrStderr(), leftOutText(&s))
			}
		})
	})
}

// parseAt reads --at: an instant, or seconds from now, which is then by the server's
// clock.
func parseAt(s string) (at meta.Time, seconds int64, _ error) {
	if s == "" {
		return 0, 0, nil
	}
	if text, ok := strings.CutPrefix(s, "+"); ok {
		in, err := time.ParseDuration(text)
		if err != nil || in < 0 {
			return 0, 0, fmt.Errorf("--at %q: write +DURATION, as +10m", s)
		}
		return 0, int64(math.Ceil(in.Seconds())), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return 0, 0, fmt.Errorf("--at %q: write +DURATION or a time as 2030-01-31T06:00:00Z", s)
	}
	return meta.TimeOf(t), 0, nil
}

// parseAbort reads --abort-above.
func parseAbort(s string) (*meta.WaveAbort, error) {
	if s == "" {
		return nil, nil
	}
	text, percent := strings.CutSuffix(s, "%")
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || percent && n > 100 {
		return nil, fmt.Errorf("--abort-above %q: write a number of hosts, or a share as 5%%", s)
	}
	return &meta.WaveAbort{Above: uint32(n), Percent: percent}, nil
}

func newWaveStatus() *cobra.Command {
	var watch bool
	status := &cobra.Command{
		Use: "status ID", Short: "Show how far a wave has come", Args: cobra.ExactArgs(1),
		Long: `status shows the hosts of a wave by region. With --watch it goes on until the wave is done, aborted or
cancelled, and fails unless it is done without failures; with --json too it prints an object a line.`,
		Example: `  shoal wave status 0d3c9bq2x4f --watch
  shoal wave status 0d3c9bq2x4f --json | jq .hosts`,
	}
	status.Flags().BoolVar(&watch, "watch", false, "follow it until its end")
	return adminVerb(status, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		if !watch {
			s, err := c.Wave(ctx, args[0])
			if err != nil {
				return err
			}
			return out.print(status, s, func() { io.WriteString(status.OutOrStdout(), waveText(&s, waveSpeed{}, false)) })
		}
		return watchWave(ctx, status, c, args[0], out.json)
	})
}

// watchWave shows a wave each second until it is over. A gateway that does not answer
// is asked again for a while: the wave does not depend on it.
func watchWave(ctx context.Context, cmd *cobra.Command, c *client.Client, id string, asJSON bool) error {
	const patience = 2 * time.Minute
	w := cmd.OutOrStdout()
	screen, redraw := w.(*os.File)
	redraw = redraw && terminalSize(screen) != [2]int{}
	var (
		speed waveSpeed
		drawn int // lines on the terminal
		heard = time.Now()
		last  string
	)
	for {
		s, err := c.Wave(ctx, id)
		switch {
		case err == nil:
			heard = time.Now()
			speed.add(heard, s.Bytes)
			switch text := waveText(&s, speed, true); {
			case asJSON:
				if err := json.NewEncoder(w).Encode(s); err != nil {
					return err
				}
			case redraw:
				if drawn > 0 {
					fmt.Fprintf(w, "\x1b[%dA\x1b[J", drawn)
				}
				drawn = 0
				for line := range strings.Lines(text) {
					// A line that wraps would be drawn over only in part.
					fmt.Fprintln(w, clip(strings.TrimSuffix(line, "\n"), terminalSize(screen)[0]))
					drawn++
				}
			case text != last:
				io.WriteString(w, text)
				last = text
			}
			if s.Over() {
				return waveResult(&s)
			}
		case ctx.Err() == nil && (!errors.Is(err, meta.ErrUnavailable) || time.Since(heard) > patience):
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no longer watched, wave %s goes on: %w", id, ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

// waveResult is nil for a wave that reached everybody.
func waveResult(s *client.WaveStatus) error {
	switch {
	case s.Wave.State != meta.WaveDone:
		return fmt.Errorf("wave %s is %s: %s", s.Wave.ID, s.Wave.State, clip(s.Wave.Reason, 0))
	case s.Hosts.Failed > 0:
		return fmt.Errorf("wave %s is done, %d of %d hosts failed", s.Wave.ID, s.Hosts.Failed, s.Hosts.Targeted)
	}
	return nil
}

// waveSpeed measures over the last seconds of a watch.
type waveSpeed struct {
	at    []time.Time
	bytes []int64
}

func (s *waveSpeed) add(now time.Time, bytes int64) {
	const window = 6
	s.at, s.bytes = append(s.at, now), append(s.bytes, bytes)
	if len(s.at) > window {
		s.at, s.bytes = s.at[1:], s.bytes[1:]
	}
}

// perSec returns bytes a second; ok is false before there are two looks.
func (s *waveSpeed) perSec() (_ float64, ok bool) {
	last := len(s.at) - 1
	if last < 1 {
		return 0, false
	}
	elapsed := s.at[last].Sub(s.at[0]).Seconds()
	return float64(max(s.bytes[last]-s.bytes[0], 0)) / max(elapsed, 0.001), true
}

// leftOutText says which hosts get nothing of a wave, "" when all do.
func leftOutText(s *client.WaveStatus) string {
	if s.LeftOutHosts == 0 {
		return ""
	}
	names := make([]string, len(s.LeftOut))
	for i, id := range s.LeftOut {
		names[i] = string(id)
	}
	return clip(fmt.Sprintf("%d hosts are left out, for they may not hold what is of these tenants: %s", s.LeftOutHosts, strings.Join(names, ", ")), 0) + "\n"
}

// waveText renders a status for people.
func waveText(s *client.WaveStatus, speed waveSpeed, bars bool) string {
	var b strings.Builder
	w := &s.Wave
	title := w.ID
	if w.Name != "" {
		title += " (" + w.Name + ")"
	}
	fmt.Fprintf(&b, "wave %s is %s", title, w.State)
	switch {
	case w.State == meta.WavePlanned:
		fmt.Fprintf(&b, ", begins %s", w.NotBefore.Std().Local().Format(time.DateTime))
	case w.Finished != 0 && w.Started != 0:
		fmt.Fprintf(&b, " after %v", w.Finished.Std().Sub(w.Started.Std()).Round(100*time.Millisecond))
	}
	if w.Reason != "" {
		b.WriteString(clip(": "+w.Reason, 0))
	}
	b.WriteByte('\n')
	for _, r := range w.Refs {
		fmt.Fprintf(&b, "  %s\n", r)
	}
	perSec, seconds := s.BytesPerSec, s.EtaSeconds
	if now, ok := speed.perSec(); ok {
		if perSec, seconds = now, -1; now > 0 {
			seconds = float64(s.TotalBytes-s.Bytes) / now
		}
	}
	fmt.Fprintf(&b, "%d hosts: %d waiting, %d fetching, %d done", s.Hosts.Targeted, s.Hosts.Waiting, s.Hosts.Fetching, s.Hosts.Done)
	for _, more := range []struct {
		n    int
		what string
	}{{s.Hosts.Skipped, "skipped (no image for them)"}, {s.Hosts.Failed, "failed"}, {s.Hosts.Lost, "lost"}, {s.Hosts.Silent, "silent"}} {
		if more.n > 0 {
			fmt.Fprintf(&b, ", %d %s", more.n, more.what)
		}
	}
	b.WriteByte('\n')
	if s.Hosts.Targeted == 0 && w.Ended == 0 {
		fmt.Fprintf(&b, "no host matches it yet; those that join get it until %s\n", w.Expires.Std().Local().Format(time.DateTime))
	}
	if w.State == meta.WaveRunning {
		fmt.Fprintf(&b, "%s of %s, %s, %s left\n", size(s.Bytes), size(s.TotalBytes), rate(perSec), left(seconds))
	}
	for _, r := range s.Regions {
		fmt.Fprintf(&b, "  %-12s ", r.Region)
		if bars {
			b.WriteString(bar(share(r)) + " ")
		}
		fmt.Fprintf(&b, "%d/%d hosts, %s", r.Hosts.Done+r.Hosts.Skipped, r.Hosts.Targeted, size(r.Bytes))
		if r.Hosts.Fetching > 0 {
			fmt.Fprintf(&b, ", %d fetching", r.Hosts.Fetching)
		}
		if bad := r.Hosts.Failed + r.Hosts.Lost; bad > 0 {
			fmt.Fprintf(&b, ", %d failed or lost", bad)
		}
		b.WriteByte('\n')
	}
	for _, h := range w.Failures {
		b.WriteString(clip(fmt.Sprintf("  failed: %s in %s: %s", h.Node, h.Region, h.Reason), 0) + "\n")
	}
	if more := s.Hosts.Failed - len(w.Failures); more > 0 {
		fmt.Fprintf(&b, "  and %d more: shoal wave hosts %s --state failed\n", more, w.ID)
	}
	b.WriteString(leftOutText(s))
	for _, id := range s.Unreached {
		fmt.Fprintf(&b, "  server %s did not answer: what its hosts fetch is not in the sums\n", id)
	}
	return b.String()
}

// share is how much of the bytes is there, or while nobody knows them of the hosts.
func share(r client.WaveRegion) float64 {
	switch {
	case r.TotalBytes > 0:
		return float64(r.Bytes) / float64(r.TotalBytes)
	case r.Hosts.Targeted > 0:
		return float64(r.Hosts.Done+r.Hosts.Skipped) / float64(r.Hosts.Targeted)
	}
	return 0
}

func left(seconds float64) string {
	if seconds < 0 {
		return "unknown time"
	}
	return (time.Duration(seconds) * time.Second).String()
}

func newWaveList() *cobra.Command {
	var every bool
	list := &cobra.Command{
		Use: "list", Short: "List the waves, newest first", Args: cobra.NoArgs,
		Example: "  shoal wave list --all",
	}
	list.Flags().BoolVar(&every, "all", false, "those that are over, too")
	return adminVerb(list, func(ctx context.Context, c *client.Client, out *output, _ []string) error {
		waves, err := collect(c.Waves(ctx, !every))
		if err != nil {
			return err
		}
		return out.print(list, waves, func() {
			var rows [][]string
			for _, w := range waves {
				t := w.Total()
				names := make([]string, len(w.Refs))
				for i, r := range w.Refs {
					names[i] = r.String()
				}
				rows = append(rows, []string{
					w.ID, w.Name, string(w.State), w.NotBefore.Std().Local().Format(time.DateTime),
					strconv.Itoa(int(t.Done + t.Skipped)), strconv.Itoa(int(t.Fetching)), strconv.Itoa(int(t.Failed)), w.CreatedBy, strings.Join(names, " "),
				})
			}
			table(list, []string{"wave", "name", "state", "begins", "done", "fetching", "failed", "by", "references"}, rows)
		})
	})
}

func newWaveHosts() *cobra.Command {
	var state string
	hosts := &cobra.Command{
		Use: "hosts ID", Short: "List the hosts that took part in a wave", Args: cobra.ExactArgs(1),
		Example: "  shoal wave hosts 0d3c9bq2x4f --state failed",
	}
	hosts.Flags().StringVar(&state, "state", "", "only fetching, done, skipped, failed or lost ones")
	return adminVerb(hosts, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		all, err := collect(c.WaveHosts(ctx, args[0], meta.HostState(state)))
		if err != nil {
			return err
		}
		return out.print(hosts, all, func() {
			var rows [][]string
			for _, h := range all {
				rows = append(rows, []string{
					string(h.Node), string(h.Region), string(h.State), size(h.Bytes), h.Changed.Std().Local().Format(time.DateTime), h.Reason,
				})
			}
			table(hosts, []string{"host", "region", "state", "bytes", "since", "reason"}, rows)
		})
	})
}

func newWaveCancel() *cobra.Command {
	var reason string
	cancel := &cobra.Command{
		Use: "cancel ID", Short: "Stop a wave: hosts stop fetching, and keep what they have no longer pinned", Args: cobra.ExactArgs(1),
		Example: `  shoal wave cancel 0d3c9bq2x4f --reason "wrong version"`,
	}
	cancel.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return adminVerb(cancel, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		w, err := c.CancelWave(ctx, args[0], reason)
		if err != nil {
			return err
		}
		return out.print(cancel, w, func() {
			fmt.Fprintf(cancel.OutOrStdout(), "wave %s is %s\n", cmp.Or(w.Name, w.ID), w.State)
		})
	})
}
