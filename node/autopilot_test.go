package node

import (
	"context"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

func TestPlanCare(t *testing.T) {
	const dead = time.Hour
	well := func(id meta.NodeID, region meta.RegionName) cared { return cared{id: id, region: region, voter: true} }
	gone := func(s cared) cared { s.away = 2 * dead; return s }
	byPilot := func(s cared) cared { s.draining = &meta.Drain{By: meta.DrainAutopilot}; return s }
	byHand := func(s cared) cared { s.draining = &meta.Drain{By: "user:ada"}; return s }
	empty := func(s cared) cared { s.empty = true; return s }
	voteless := func(s cared) cared { s.voter = false; return s }
	a, b, c, d := well("a", "eu"), well("b", "eu"), well("c", "eu"), voteless(well("d", "eu"))
	for name, tc := range map[string]struct {
		servers []cared
		want    state.Command
	}{
		"all is well":                   {[]cared{a, b, c}, nil},
		"a short absence":               {[]cared{a, b, {id: "c", region: "eu", away: dead / 2}}, nil},
		"a long one":                    {[]cared{a, b, gone(c)}, state.DrainServer{ID: "c", Drain: true, Autopilot: true}},
		"it is back":                    {[]cared{a, b, byPilot(c)}, state.DrainServer{ID: "c", Autopilot: true}},
		"an operator drains it":         {[]cared{a, b, byHand(c)}, nil},
		"nor is it removed then":        {[]cared{a, b, d, empty(gone(byHand(c)))}, nil},
		"what it has is still needed":   {[]cared{a, b, d, voteless(gone(byPilot(c)))}, nil},
		"nothing remains":               {[]cared{a, b, d, voteless(empty(gone(byPilot(c))))}, state.RemoveNode{ID: "c"}},
		"it votes":                      {[]cared{a, b, d, empty(gone(byPilot(c)))}, nil},
		"three stay":                    {[]cared{a, b, voteless(empty(gone(byPilot(c))))}, nil},
		"a region is cut off":           {[]cared{a, gone(well("x", "us")), gone(well("y", "us"))}, nil},
		"its only other one is leaving": {[]cared{byHand(a), gone(b), well("x", "us")}, nil},
		"one that must stay does not hold up another": {
			[]cared{a, gone(b), gone(byPilot(c)), d}, state.DrainServer{ID: "b", Drain: true, Autopilot: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := planCare(tc.servers, dead); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%#v, want %#v", got, tc.want)
			}
		})
	}
}

// TestTheLeaderRaisesTheLevel: when all servers knew a level twice in a row.
func TestTheLeaderRaisesTheLevel(t *testing.T) {
	m := metatest.NewAt(t, 3)
	answers := []raftmeta.Surveyed{{ID: "s1", Answered: true, Level: state.Level}, {ID: "s2", Answered: true, Level: 3}}
	a := &autopilot{
		metadata: m, doer: m, self: "s1", log: slog.New(slog.DiscardHandler), deadAfter: time.Hour,
		survey: func(context.Context) []raftmeta.Surveyed { return answers },
		voters: func() []meta.NodeID { return nil },
	}
	expect := func(when string, want uint32) {
		t.Helper()
		if err := a.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if level, _, err := raftmeta.Ask(t.Context(), m, meta.Local, state.GetLevel{}); err != nil || level != want {
			t.Fatalf("%s: the level is %d, want %d: %v", when, level, want, err)
		}
	}
	expect("one is older", 3)
	expect("and stays so", 3)
	answers[1].Level = state.Level
	expect("all know it", 3)
	answers[1].Answered = false
	expect("one is silent", 3)
	answers[1].Answered = true
	expect("it is back", 3)
	expect("all know it twice", state.Level)
	expect("that is all", state.Level)
}

func TestLevelOfAll(t *testing.T) {
	for name, tc := range map[string]struct {
		answers []raftmeta.Surveyed
		want    uint32
	}{
		"nobody":           {nil, 0},
		"all":              {[]raftmeta.Surveyed{{Answered: true, Level: 9}, {Answered: true, Level: 9}}, state.Level},
		"one is older":     {[]raftmeta.Surveyed{{Answered: true, Level: 9}, {Answered: true, Level: 3}}, 3},
		"one is not heard": {[]raftmeta.Surveyed{{Answered: true, Level: 9}, {}}, 0},
	} {
		if got := levelOfAll(tc.answers); got != tc.want {
			t.Errorf("%s: level %d, want %d", name, got, tc.want)
		}
	}
}
