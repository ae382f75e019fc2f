package raftmeta_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

func agent(id meta.NodeID, region meta.RegionName) meta.Node {
	return meta.Node{ID: id, Role: meta.RoleAgent, Region: region}
}

func server(id meta.NodeID, region meta.RegionName) meta.Node {
	return meta.Node{ID: id, Role: meta.RoleServer, Region: region, Gateway: string(id) + ":5000"}
}

// told collects the changes of a roster as text.
func told(r *raftmeta.Roster) <-chan string {
	out := make(chan string, 100)
	r.OnChange(func(c raftmeta.RosterChange) {
		if c.Removed {
			out <- "-" + string(c.Node.ID)
		} else {
			out <- "+" + string(c.Node.ID)
		}
	})
	return out
}

func expect(t *testing.T, got <-chan string, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case g := <-got:
			if g != w {
				t.Fatalf("told %s, want %s", g, w)
			}
		case <-t.Context().Done():
			t.Fatalf("never told %s", w)
		}
	}
}

// run runs f until the test ends.
func run(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestRosterFollows(t *testing.T) {
	s := metatest.New(t)
	s.Admit(agent("a1", "eu"))
	r := raftmeta.NewRoster([]meta.Node{agent("gone", "eu")})
	got := told(r)
	expect(t, got, "+gone")
	run(t, func(ctx context.Context) error { return r.Follow(ctx, s, "", s.Watch) })
	expect(t, got, "+a1", "+s1", "-gone")
	<-r.Ready()
	s.Admit(agent("a2", "us"))
	expect(t, got, "+a2")
	s.Must(state.RemoveNode{ID: "a1"})
	expect(t, got, "-a1")
	if n, ok := r.Get("a2"); !ok || n.Region != "us" {
		t.Errorf("a2 is %+v, %v", n, ok)
	}
	if got := r.Nodes(); len(got) != 2 || got[0].ID != "a2" {
		t.Errorf("nodes are %+v", got)
	}
}

func TestRosterOfARegion(t *testing.T) {
	s := metatest.New(t)
	s.Admit(agent("a1", "eu"))
	s.Admit(agent("b1", "us"))
	s.Admit(server("s2", "us"))
	r := raftmeta.NewRoster(nil)
	got := told(r)
	run(t, func(ctx context.Context) error {
		return r.Follow(ctx, s, "eu", func(ctx context.Context, after uint64) iter.Seq2[feed.Change, error] {
			return s.Follow(ctx, after, feed.Filter{Region: "eu"})
		})
	})
	expect(t, got, "+s1", "+s2", "+a1")
	s.Admit(agent("b2", "us"))
	s.Admit(agent("a2", "eu"))
	expect(t, got, "+a2")
	if got := r.Servers("us"); len(got) != 1 || got[0].ID != "s2" {
		t.Errorf("servers of us are %+v", got)
	}
}

func TestRosterListsAnewAfterCompaction(t *testing.T) {
	s := metatest.New(t)
	r := raftmeta.NewRoster(nil)
	got := told(r)
	calls := 0
	run(t, func(ctx context.Context) error {
		return r.Follow(ctx, s, "", func(ctx context.Context, after uint64) iter.Seq2[feed.Change, error] {
			if calls++; calls > 1 {
				return s.Watch(ctx, after)
			}
			return func(yield func(feed.Change, error) bool) {
				s.Admit(agent("missed", "eu"))
				yield(feed.Change{}, fmt.Errorf("follow: %w", feed.ErrCompacted))
			}
		})
	})
	expect(t, got, "+s1", "+missed")
}

// After a restore the only server is in the roster before its address is: an agent that took
// that list over would ask nobody any more.
func TestRosterWithoutAnAddressIsNotTakenOver(t *testing.T) {
	s := metatest.New(t)
	restored, _, err := raftmeta.Ask(t.Context(), s, meta.Local, state.GetNode{ID: "s1"})
	if err != nil {
		t.Fatal(err)
	}
	restored.Gateway = ""
	s.Must(state.UpdateNode{Node: restored})
	r := raftmeta.NewRoster([]meta.Node{server("old", "eu")})
	got := told(r)
	expect(t, got, "+old")
	follow := func(ctx context.Context) error {
		return r.Follow(ctx, s, "eu", func(ctx context.Context, after uint64) iter.Seq2[feed.Change, error] {
			return s.Follow(ctx, after, feed.Filter{Region: "eu"})
		})
	}
	if err := follow(t.Context()); !errors.Is(err, meta.ErrUnavailable) {
		t.Fatalf("a list without an address: %v", err)
	}
	if urls := r.Gateways("a1", "eu"); !slices.Equal(urls, []string{"https://old:5000"}) {
		t.Errorf("the agent asks %v", urls)
	}
	restored.Gateway = "s1:5000"
	s.Must(state.UpdateNode{Node: restored})
	run(t, follow)
	expect(t, got, "+s1", "-old")
	if urls := r.Gateways("a1", "eu"); !slices.Equal(urls, []string{"https://s1:5000"}) {
		t.Errorf("the agent asks %v", urls)
	}
}

func TestGatewaysSpreadAgents(t *testing.T) {
	var nodes []meta.Node
	for _, region := range []meta.RegionName{"eu", "us"} {
		for i := range 4 {
			nodes = append(nodes, server(meta.NodeID(fmt.Sprint(region, i)), region))
		}
	}
	r := raftmeta.NewRoster(nodes)
	firsts := map[string]int{}
	for i := range 100 {
		self := meta.NodeID(fmt.Sprint("agent", i))
		urls := r.Gateways(self, "eu")
		if len(urls) != 8 || !slices.Equal(urls, r.Gateways(self, "eu")) {
			t.Fatalf("gateways of %s are %v", self, urls)
		}
		for _, url := range urls[:4] {
			if !strings.HasPrefix(url, "https://eu") {
				t.Fatalf("another region's comes first: %v", urls)
			}
		}
		firsts[urls[0]]++
	}
	if len(firsts) != 4 {
		t.Errorf("agents begin with %v", firsts)
	}
}

// TestRosterServes: the health of regions comes with the roster, by the listing and by
// the feed.
func TestRosterServes(t *testing.T) {
	m := metatest.New(t)
	m.Admit(meta.Node{ID: "s2", Role: meta.RoleServer, Region: "eu", Gateway: "127.0.0.1:5001"})
	m.Must(state.ReportBlobs{Server: "s2", State: meta.BlobsFailing, Why: "gone"})
	r := raftmeta.NewRoster(nil)
	if !r.Serves("s2") {
		t.Error("without news a server does not serve")
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- r.Follow(ctx, m, "eu", m.Watch) }()
	<-r.Ready()
	await := func(id meta.NodeID, want bool) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); r.Serves(id) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s serves: %v", id, !want)
			}
		}
	}
	await("s2", false)
	await("s1", true)
	m.Must(state.ReportBlobs{Server: "s2"})
	await("s2", true)
	m.Must(state.SetRegionHealth{Region: "eu", Was: m.Must(state.ReportBlobs{Server: "s2", State: meta.BlobsLow}).Index, State: meta.HealthDegraded, Kind: meta.IncidentServers, Silent: []meta.NodeID{"s1"}})
	await("s1", false)
	await("s2", true)
	stop()
	<-done
}
