package round

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/shoal-registry/shoal/deploy/lab/faults/clients"
	"github.com/shoal-registry/shoal/deploy/lab/faults/history"
)

// Report is what came out of a round.
type Report struct {
	Profile      string               `json:"profile"`
	Seed         uint64               `json:"seed"`
	Servers      int                  `json:"servers"`
	Agents       int                  `json:"agents"`
	Clients      int                  `json:"clients"`
	LoadBefore   string               `json:"load_before"`
	LoadAfter    string               `json:"load_after"`
	DurationSec  float64              `json:"duration_sec"`
	Availability clients.Availability `json:"availability"`
	Faults       map[string]int       `json:"faults"`   // by kind
	Groups       map[string]int       `json:"groups"`   // kills, pauses, partitions ...
	Ended        map[string]int       `json:"ended"`    // servers that ended by themselves, by their last words
	Rejoined     int                  `json:"rejoined"` // servers that joined anew, their metadata being damaged
	Flipped      int                  `json:"flipped"`  // blobs
	History      history.Totals       `json:"history"`
	Findings     []history.Finding    `json:"findings,omitempty"`
	Audit        *clients.Audit       `json:"audit"`
	Seen         clients.Faults       `json:"seen"`
}

// Verdict is one line of the table at the end.
type Verdict struct {
	What  string
	Count int
	First string // an example
	Must  bool   // anything but zero fails the round
}

// Verdicts are the promises, with how often each was broken.
func (r *Report) Verdicts() []Verdict {
	audit := r.Audit
	if audit == nil {
		audit = &clients.Audit{}
	}
	var wrong, younger []string
	for _, f := range r.Findings {
		if f.Result == history.Younger {
			younger = append(younger, f.Key)
		} else {
			wrong = append(wrong, f.Key)
		}
	}
	line := func(what string, must bool, lists ...[]string) Verdict {
		v := Verdict{What: what, Must: must}
		for _, list := range lists {
			v.Count += len(list)
			if v.First == "" && len(list) > 0 {
				v.First = list[0]
			}
		}
		return v
	}
	return []Verdict{
		line("lost acknowledged publishes", true, audit.Lost, r.Seen.Missing),
		line("stale strong reads, or writes out of order (keys)", true, wrong),
		line("wrong bytes", true, audit.Wrong, r.Seen.Bytes),
		line("reads that lack the write of their token", true, r.Seen.Tokens),
		line("bounded reads older than they say (keys)", true, younger),
		line("aliases that name another version at the end", true, audit.Moved),
		line("deleted versions that are there", true, audit.Alive),
		line("correct writes refused", true, r.Seen.Refused),
		{What: "keys that the checker could not decide in time", Count: r.History.Undecided},
	}
}

// Wrong reports whether the product broke a promise.
func (r *Report) Wrong() bool {
	return slices.ContainsFunc(r.Verdicts(), func(v Verdict) bool { return v.Must && v.Count > 0 })
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer) {
	fmt.Fprintf(w, "profile %s, seed %d: %d servers in %d regions, %d agents, %d clients, %.0f s, load %s -> %s\n\n",
		r.Profile, r.Seed, r.Servers, r.Servers, r.Agents, r.Clients, r.DurationSec, r.LoadBefore, r.LoadAfter)
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s %s:\n", f.Key, f.Result)
		for _, o := range f.Small {
			fmt.Fprintf(w, "  %v\n", o)
		}
	}
	fmt.Fprintf(w, "faults      %s\n", counts(r.Groups))
	fmt.Fprintf(w, "            %s\n", counts(r.Faults))
	for _, why := range slices.Sorted(maps.Keys(r.Ended)) {
		fmt.Fprintf(w, "ended by itself %d x: %s\n", r.Ended[why], why)
	}
	if r.Rejoined+r.Flipped > 0 {
		fmt.Fprintf(w, "damaged     %d blobs, by a byte each; %d servers rejoined, their log or state being damaged\n", r.Flipped, r.Rejoined)
	}
	a := r.Availability
	fmt.Fprintf(w, "available   %.2f %% of 100 ms, %.2f %% of seconds had an acknowledged operation; longest gap %.1f s; %d acknowledged, %.0f a second\n",
		100*a.Tenths, 100*a.Seconds, a.LongestSec, a.Acknowledged, float64(a.Acknowledged)/max(1, r.DurationSec))
	h := r.History
	fmt.Fprintf(w, "checked     %d operations of %d keys: %d writes (%d of unknown outcome), %d strong and %d bounded reads\n",
		h.Operations, h.Keys, h.Writes, h.Unknown, h.Strong, h.Weak)
	if r.Audit != nil {
		fmt.Fprintf(w, "audited     %d artifacts (%d MiB), %d deleted versions, %d aliases, each at %d servers\n",
			r.Audit.Artifacts, r.Audit.Bytes>>20, r.Audit.Gone, r.Audit.Aliases, r.Audit.Nodes)
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, v := range r.Verdicts() {
		mark := "zero"
		if v.Count > 0 {
			mark = "NOT ZERO"
		}
		fmt.Fprintf(table, "%s\t%d\t%s\n", v.What, v.Count, mark)
	}
	table.Flush()
	for _, v := range r.Verdicts() {
		if v.First != "" {
			fmt.Fprintf(w, "%s, the first: %s\n", v.What, v.First)
		}
	}
}

// counts is a line such as `kill 12, pause 9`.
func counts(m map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, m[name]))
	}
	return strings.Join(parts, ", ")
}
