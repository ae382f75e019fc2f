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

// regionStatus is what `shoal region status --json` prints.
type regionStatus struct {
	Regions   []meta.RegionHealth `json:"regions"`
	Incidents []meta.Incident     `json:"incidents"`
}

func newRegionStatus() *cobra.Command {
	var most int
	status := &cobra.Command{
		Use: "status [REGION]", Short: "Show how regions fare, and what happened in their incidents", Args: cobra.MaximumNArgs(1),
		Long: `status shows for each region whether it is healthy, degraded (some servers are not heard, or a blob store
fails or is full, or copies were not looked at since an outage) or down (none of its servers is heard), since
when and why, where its writes go meanwhile, and the timeline of its incidents, the newest first. It is
metadata: it can be asked of any region, and survives the server that judged.`,
		Example: `  shoal region status
  shoal region status us --incidents 20
  shoal region status us --json`,
	}
	status.Flags().IntVar(&most, "incidents", 5, "how many incidents to show, 0 for none")
	return adminVerb(status, func(ctx context.Context, c *client.Client, out *output, args []string) error {
		var region meta.RegionName
		if len(args) > 0 {
			region = meta.RegionName(args[0])
		}
		s := regionStatus{Incidents: []meta.Incident{}}
		var err error
		if s.Regions, err = c.Health(ctx, region); err != nil {
			return err
		}
		if most > 0 {
			for i, err := range c.Incidents(ctx, region) {
				if err != nil {
					return err
				}
				if s.Incidents = append(s.Incidents, i); len(s.Incidents) == most {
					break
				}
			}
		}
		return out.print(status, s, func() { printRegionStatus(status, s, time.Now()) })
	})
}

func printRegionStatus(cmd *cobra.Command, s regionStatus, now time.Time) {
	var rows [][]string
	for _, h := range s.Regions {
		since := "-"
		if h.Since != 0 {
			since = stamp(h.Since) + " (" + ago(now, h.Since) + ")"
		}
		rows = append(rows, []string{string(h.Region), string(h.State), since, writesOf(h), h.Why})
	}
	table(cmd, []string{"region", "health", "since", "writes", "why"}, rows)
	rows = nil
	for _, h := range s.Regions {
		for _, server := range h.Servers {
			if words := serverWords(server); words != "" {
				rows = append(rows, []string{string(server.Server), string(h.Region), words})
			}
		}
	}
	w := cmd.OutOrStdout()
	if len(rows) > 0 {
		fmt.Fprintln(w)
		table(cmd, []string{"server", "region", "what is known"}, rows)
	}
	for _, i := range s.Incidents {
		fmt.Fprintln(w)
		printIncident(w, i, now)
	}
}

// writesOf says where a region's writes go.
func writesOf(h meta.RegionHealth) string {
	if len(h.Backups) == 0 {
		return "here"
	}
	return "to " + string(h.Backups[0])
}

func serverWords(s meta.ServerHealth) string {
	var words []string
	if s.Silent != 0 {
		words = append(words, "not heard since "+stamp(s.Silent))
	}
	switch s.Blobs {
	case meta.BlobsFailing:
		words = append(words, "blob store fails since "+stamp(s.BlobsSince)+": "+s.Why)
	case meta.BlobsLow:
		words = append(words, "no room for blobs since "+stamp(s.BlobsSince)+": "+s.Why)
	}
	switch {
	case s.Unchecked != 0:
		words = append(words, "its copies do not count before it has looked whether they are there")
	case s.Checked != 0:
		words = append(words, fmt.Sprintf("looked at %d copies at %s, %d were missing", s.Copies, stamp(s.Checked), s.Missing))
	}
	return strings.Join(words, "; ")
}

// printIncident writes the timeline of one incident, a line an event.
func printIncident(w io.Writer, i meta.Incident, now time.Time) {
	how := "open for " + ago(now, i.Opened)
	if i.Closed != 0 {
		how = "closed after " + round(i.Closed.Std().Sub(i.Opened.Std()))
	}
	fmt.Fprintf(w, "incident %d: region %s, %s, %s\n", i.ID, clip(string(i.Region), 0), i.Kind, how)
	for _, e := range i.Events {
		fmt.Fprintf(w, "  %s  +%-8s %s\n", stamp(e.At), round(e.At.Std().Sub(i.Opened.Std())), clip(eventWords(e), 0))
	}
	if i.More > 0 {
		fmt.Fprintf(w, "  and %d more\n", i.More)
	}
}

func eventWords(e meta.IncidentEvent) string {
	switch e.Kind {
	case meta.EventOpened:
		return "opened: " + e.Text
	case meta.EventChanged:
		return "now " + e.Text
	case meta.EventSilent:
		return fmt.Sprintf("server %s is not heard", e.Server)
	case meta.EventHeard:
		return fmt.Sprintf("server %s is heard again", e.Server)
	case meta.EventBlobs:
		return fmt.Sprintf("blob store of %s: %s", e.Server, e.Text)
	case meta.EventWritesMoved:
		return fmt.Sprintf("writes moved to region %s", e.Region)
	case meta.EventWritesReturned:
		return "writes returned"
	case meta.EventChecked:
		return fmt.Sprintf("server %s looked at its %d copies, %d were missing", e.Server, e.Copies, e.Missing)
	case meta.EventClosed:
		return "closed"
	}
	return strings.TrimSpace(string(e.Kind) + " " + e.Text)
}

func stamp(t meta.Time) string { return t.Std().Format("2006-01-02T15:04:05Z") }

// ago is how long before now t was, at least nothing: clocks differ.
func ago(now time.Time, t meta.Time) string { return round(max(0, now.Sub(t.Std()))) }

// round leaves of a duration what people read.
func round(d time.Duration) string {
	unit := 100 * time.Millisecond
	switch {
	case d >= time.Hour:
		unit = time.Minute
	case d >= time.Minute:
		unit = time.Second
	}
	return d.Round(unit).String()
}
