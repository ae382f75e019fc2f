package round

import (
	"bytes"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/deploy/lab/faults/clients"
	"github.com/shoal-registry/shoal/deploy/lab/faults/history"
)

// Each promise has its line, and what breaks one fails the round; a slow checker does not.
func TestVerdicts(t *testing.T) {
	for line, r := range map[string]*Report{
		"lost acknowledged publishes":      {Audit: &clients.Audit{Lost: []string{"x"}}},
		"stale strong reads":               {Findings: []history.Finding{{Key: "x", Result: history.Wrong}}},
		"wrong bytes":                      {Seen: clients.Faults{Bytes: []string{"x"}}},
		"reads that lack":                  {Seen: clients.Faults{Tokens: []string{"x"}}},
		"bounded reads older":              {Findings: []history.Finding{{Key: "x", Result: history.Younger}}},
		"aliases that name another":        {Audit: &clients.Audit{Moved: []string{"x"}}},
		"deleted versions that are there":  {Audit: &clients.Audit{Alive: []string{"x"}}},
		"correct writes refused":           {Seen: clients.Faults{Refused: []string{"x"}}},
		"lost acknowledged publishes ":     {Seen: clients.Faults{Missing: []string{"x"}}},
		"keys that the checker could not ": {History: history.Totals{Undecided: 1}},
	} {
		broken := 0
		for _, v := range r.Verdicts() {
			if v.Count == 0 {
				continue
			}
			broken++
			if v.Count != 1 || !strings.HasPrefix(v.What, strings.TrimSpace(line)) || v.Must != r.Wrong() {
				t.Errorf("%s: %+v, wrong %v", line, v, r.Wrong())
			}
		}
		if broken != 1 {
			t.Errorf("%s: %d lines are broken", line, broken)
		}
	}
	if (&Report{}).Wrong() {
		t.Error("nothing is wrong, and it says so")
	}
}

func TestPrint(t *testing.T) {
	r := &Report{Profile: "site", Seed: 7, Servers: 3, Groups: map[string]int{"pause": 2, "kill": 3}, Flipped: 12,
		Ended:    map[string]int{"exit status 1: disk full": 1},
		Findings: []history.Finding{{Key: "file-1", Result: history.Wrong, Small: []history.Op{{Verb: history.Put, Version: 2, Outcome: history.Unknown, Node: "server r1"}}}},
		Audit:    &clients.Audit{Nodes: 3, Artifacts: 41}}
	var out bytes.Buffer
	r.Print(&out)
	for _, want := range []string{"seed 7", "kill 3, pause 2", "1 x: exit status 1: disk full", "file-1 wrong:", "put version 2 -> unknown", "41 artifacts",
		"12 blobs", "lost acknowledged publishes                        0  zero", "(keys)  1  NOT ZERO"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
