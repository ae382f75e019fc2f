package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// newHealthBench is newBench at the level of health.
func newHealthBench(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: healthLevel})
	settle(b, maxSettled)
	return b
}

func healthIn(b *bench, region meta.RegionName) meta.RegionHealth {
	b.Helper()
	return ask(b, RegionHealth{Region: region})[0]
}

// judge is what the leader decides by the record as it is.
func (b *bench) judge(c SetRegionHealth) meta.RegionHealth {
	b.Helper()
	c.Was = healthIn(b, c.Region).Revision
	return b.must(c).Value.(meta.RegionHealth)
}

func down(region meta.RegionName, silent []meta.NodeID, backups ...meta.RegionName) SetRegionHealth {
	return SetRegionHealth{Region: region, State: meta.HealthDown, Kind: meta.IncidentDown, Why: "gone", Silent: silent, Backups: backups}
}

func well(region meta.RegionName) SetRegionHealth {
	return SetRegionHealth{Region: region, State: meta.HealthHealthy}
}

func events(i meta.Incident) string {
	var out []string
	for _, e := range i.Events {
		out = append(out, strings.TrimSpace(fmt.Sprint(e.Kind, " ", e.Server, e.Region)))
	}
	return strings.Join(out, ", ")
}

func TestIncident(t *testing.T) {
	b := newHealthBench(t)
	if all := ask(b, RegionHealth{}); len(all) != 3 || all[0].State != meta.HealthHealthy || all[0].Incident != 0 {
		t.Fatalf("at first %+v", all)
	}
	missing(b, RegionHealth{Region: "mars"})
	b.refuse(SetRegionHealth{Region: "mars", State: meta.HealthHealthy}, meta.ErrNotFound)

	opened := b.now
	first := b.judge(down("eu", []meta.NodeID{"eu-1", "eu-2"}, "us", "ap"))
	if first.Incident != first.Revision || first.Since != meta.TimeOf(b.now) || !slices.Equal(first.Backups, []meta.RegionName{"us", "ap"}) {
		t.Fatalf("eu is %+v", first)
	}
	doubtful := first.Server("eu-1").Unchecked
	if doubtful != first.Revision || first.Server("eu-1").Serves() {
		t.Errorf("eu-1 is %+v", first.Server("eu-1"))
	}
	// Another leader that judged by what was before does nothing.
	if got := b.must(SetRegionHealth{Region: "eu", State: meta.HealthHealthy}).Value.(meta.RegionHealth); got.Revision != first.Revision {
		t.Errorf("a judgement of old changed the record: %+v", got)
	}

	b.now = b.now.Add(time.Minute)
	h := b.judge(SetRegionHealth{Region: "eu", State: meta.HealthDegraded, Kind: meta.IncidentServers, Why: "half", Silent: []meta.NodeID{"eu-2"}})
	if s := h.Server("eu-1"); s.Silent != 0 || s.Counts() || !s.Serves() {
		t.Errorf("eu-1 is heard and %+v, want its copies not to count yet", s)
	}
	if s := h.Server("eu-2"); s.Silent != meta.TimeOf(opened) || s.Unchecked != doubtful {
		t.Errorf("eu-2 is %+v, silent all the time", s)
	}
	b.must(ReportChecked{Server: "eu-1", Unchecked: doubtful + 1, Copies: 9})
	if healthIn(b, "eu").Server("eu-1").Counts() {
		t.Error("a look at another doubt counts")
	}
	b.must(ReportChecked{Server: "eu-1", Unchecked: doubtful, Copies: 9, Missing: 2})
	if s := healthIn(b, "eu").Server("eu-1"); !s.Counts() || s.Copies != 9 || s.Missing != 2 || s.Checked != meta.TimeOf(b.now) {
		t.Errorf("eu-1 is %+v", s)
	}
	b.must(ReportChecked{Server: "eu-2", Unchecked: doubtful})
	b.now = b.now.Add(time.Minute)
	h = b.judge(well("eu"))
	if h.Incident != 0 || h.State != meta.HealthHealthy || h.Kind != "" || h.Why != "" {
		t.Errorf("eu is %+v", h)
	}
	all := ask(b, ListIncidents{})
	if len(all) != 1 || all[0].Kind != meta.IncidentDown || all[0].Opened != meta.TimeOf(opened) || all[0].Closed != meta.TimeOf(b.now) {
		t.Fatalf("incidents are %+v", all)
	}
	want := "opened, server_silent eu-1, server_silent eu-2, writes_moved us, server_heard eu-1, writes_returned eu, changed, " +
		"copies_checked eu-1, copies_checked eu-2, server_heard eu-2, closed"
	if got := events(all[0]); got != want {
		t.Errorf("the timeline is\n%s\nwant\n%s", got, want)
	}
	// Followers have the record as it is.
	changes, _, err := b.Changes(0, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	last := changes[len(changes)-1]
	if last.Kind != feed.KindHealth || last.Region != "eu" || last.Health == nil || last.Health.Revision != h.Revision || last.Health.Incident != 0 {
		t.Errorf("the last change is %+v", last)
	}
	check(b)
}

func TestBlobStoresOfServers(t *testing.T) {
	b := newHealthBench(t)
	b.refuse(ReportBlobs{Server: "nobody"}, meta.ErrNotFound)
	b.refuse(ReportChecked{Server: "nobody"}, meta.ErrNotFound)
	b.must(ReportBlobs{Server: "eu-1"})
	if h := healthIn(b, "eu"); h.Revision != 0 {
		t.Errorf("that all is well is nothing to record: %+v", h)
	}
	b.must(ReportBlobs{Server: "eu-1", State: meta.BlobsLow, Why: "full"})
	if s := healthIn(b, "eu").Server("eu-1"); s.Blobs != meta.BlobsLow || !s.Counts() {
		t.Errorf("eu-1 is %+v", s)
	}
	b.must(ReportBlobs{Server: "eu-1", State: meta.BlobsFailing, Why: "gone"})
	s := healthIn(b, "eu").Server("eu-1")
	if s.Serves() || s.Unchecked != b.index {
		t.Errorf("eu-1 is %+v", s)
	}
	b.must(ReportBlobs{Server: "eu-1"})
	if s := healthIn(b, "eu").Server("eu-1"); !s.Serves() || s.Counts() || s.Why != "" {
		t.Errorf("eu-1 has its store again and %+v", s)
	}
	check(b)
}

// TestStandIns: what a region that is out would owe, another takes beside it.
func TestStandIns(t *testing.T) {
	for _, c := range []struct {
		out  []SetRegionHealth
		want string
	}{
		{nil, "eu=pending eu-1=verified us=pending"},
		{[]SetRegionHealth{down("eu", []meta.NodeID{"eu-1", "eu-2"}, "us", "ap")}, "ap=pending eu=pending eu-1=verified us=pending"},
		{[]SetRegionHealth{down("us", []meta.NodeID{"us-1"}, "ap", "eu")}, "ap=pending eu=pending eu-1=verified us=pending"},
		// A backup that is out itself takes nothing, nor does one that is not there.
		{[]SetRegionHealth{down("us", []meta.NodeID{"us-1"}, "ap"), down("ap", []meta.NodeID{"ap-1"}, "eu")}, "eu=pending eu-1=verified us=pending"},
		{[]SetRegionHealth{down("us", []meta.NodeID{"us-1"}, "mars", "ap")}, "ap=pending eu=pending eu-1=verified us=pending"},
		// One server of two: the region takes what it owes itself.
		{[]SetRegionHealth{{Region: "eu", State: meta.HealthDegraded, Kind: meta.IncidentServers, Silent: []meta.NodeID{"eu-2"}}}, "eu=pending eu-1=verified us=pending"},
	} {
		b := newHealthBench(t)
		for _, out := range c.out {
			b.judge(out)
		}
		b.must(link("layer", "eu-1"))
		b.must(image("m1", "layer"))
		if got := states(b, "layer"); got != c.want {
			t.Errorf("with %+v copies are %s, want %s", c.out, got, c.want)
		}
		check(b)
	}
}

// TestDoubtfulCopiesAreNoCopies: nothing goes because of a copy that may be lost.
func TestDoubtfulCopiesAreNoCopies(t *testing.T) {
	b := newHealthBench(t)
	b.must(link("layer", "eu-1"))
	b.must(image("m1", "layer"))
	b.must(report("us-1", meta.ReplicaVerified, "layer", "m1"))
	last := func() int { return len(ask(b, LastCopies{Leaving: []meta.NodeID{"eu-1"}}).Roots) }
	if n := last(); n != 0 {
		t.Fatalf("%d blobs of eu-1 are the last", n)
	}
	h := b.judge(down("us", []meta.NodeID{"us-1"}, "eu"))
	if n := last(); n != 2 {
		t.Errorf("with us out %d blobs of eu-1 are the last, want 2", n)
	}
	b.must(DrainServer{ID: "eu-1", Drain: true})
	settle(b, maxSettled)
	b.must(report("eu-2", meta.ReplicaVerified, "layer", "m1"))
	b.refuse(RemoveNode{ID: "eu-1"}, meta.ErrConflict, "us-1", "region status us")
	b.must(ReportChecked{Server: "us-1", Unchecked: h.Server("us-1").Unchecked, Copies: 2})
	if n := last(); n != 0 {
		t.Errorf("us-1 is back, has looked, and %d blobs of eu-1 are the last", n)
	}
	b.must(RemoveNode{ID: "eu-1"})
	settle(b, maxSettled)
	check(b)
}

// TestWhoIsGoneIsNotDoubted: a server that was removed before it had looked at its copies
// will never look, and keeps nobody.
func TestWhoIsGoneIsNotDoubted(t *testing.T) {
	b := newHealthBench(t)
	b.judge(down("us", []meta.NodeID{"us-1"}, "eu"))
	b.judge(well("us"))
	b.must(RemoveNode{ID: "us-1", Force: true})
	b.must(DrainServer{ID: "eu-1", Drain: true})
	settle(b, maxSettled)
	b.must(RemoveNode{ID: "eu-1"})
	check(b)
}

// TestWhoDrainsStandsInForNobody: what is owed where no server counts is never paid.
func TestWhoDrainsStandsInForNobody(t *testing.T) {
	b := newHealthBench(t)
	b.must(DrainServer{ID: "ap-1", Drain: true})
	b.judge(down("us", []meta.NodeID{"us-1"}, "ap", "eu"))
	b.must(image("m1"))
	if got := states(b, "m1"); got != "eu=pending eu-1=verified us=pending" {
		t.Errorf("copies are %q", got)
	}
}

// TestHistoryIsBounded: incidents and their timelines have an end.
func TestHistoryIsBounded(t *testing.T) {
	b := newHealthBench(t)
	b.judge(SetRegionHealth{Region: "ap", State: meta.HealthDegraded, Kind: meta.IncidentServers, Why: "for ever"})
	for i := range meta.MaxIncidentEvents + 20 {
		b.judge(SetRegionHealth{Region: "eu", State: meta.HealthDegraded, Kind: meta.IncidentServers, Why: fmt.Sprint(i)})
	}
	b.judge(well("eu"))
	i := ask(b, ListIncidents{Region: "eu"})[0]
	if n := len(i.Events); n != meta.MaxIncidentEvents || i.More != 21 || i.Events[n-1].Kind != meta.EventClosed {
		t.Errorf("%d events and %d more, the last %+v", n, i.More, i.Events[n-1])
	}
	for range maxIncidents + 30 {
		b.judge(SetRegionHealth{Region: "eu", State: meta.HealthDegraded, Kind: meta.IncidentServers})
		b.judge(well("eu"))
	}
	all := ask(b, ListIncidents{Page: Page{Limit: 10_000}})
	if len(all) != maxIncidents {
		t.Errorf("%d incidents are kept", len(all))
	}
	if oldest := all[len(all)-1]; oldest.Region != "ap" || oldest.Closed != 0 {
		t.Errorf("the open one is not kept, the oldest is %+v", oldest)
	}
	if !slices.IsSortedFunc(all, func(a, b meta.Incident) int { return int(b.ID) - int(a.ID) }) {
		t.Error("not the newest first")
	}
	page := ask(b, ListIncidents{Page: Page{After: fmt.Sprint(all[9].ID), Limit: 5}})
	if len(page) != 5 || page[0].ID != all[10].ID {
		t.Errorf("the page behind %d begins with %d", all[9].ID, page[0].ID)
	}
	check(b)
}

// TestARegionIsForgotten: with a removed region its incident ends.
func TestARegionIsForgotten(t *testing.T) {
	b := newHealthBench(t)
	b.judge(down("ap", []meta.NodeID{"ap-1"}, "eu"))
	b.must(LeaveRegion{Name: "ap", Leave: true})
	b.must(RemoveRegion{Name: "ap", Since: meta.TimeOf(b.now), Force: true})
	settle(b, maxSettled)
	if all := ask(b, RegionHealth{}); len(all) != 2 {
		t.Errorf("health is known of %+v", all)
	}
	i := ask(b, ListIncidents{Region: "ap"})
	if len(i) != 1 || i[0].Closed == 0 {
		t.Errorf("incidents are %+v", i)
	}
	// A server that is removed and its entry.
	b.judge(SetRegionHealth{Region: "eu", State: meta.HealthDegraded, Kind: meta.IncidentServers, Silent: []meta.NodeID{"eu-2"}})
	b.must(RemoveNode{ID: "eu-2", Force: true})
	settle(b, maxSettled)
	if h := b.judge(well("eu")); len(h.Servers) != 0 {
		t.Errorf("eu is %+v", h)
	}
	check(b)
}

// auditIncidents checks a record of the health of regions.
func auditIncidents(v *View, k, value []byte) error {
	switch k[1] {
	case inHealth:
		h, err := decode[meta.RegionHealth](k, value)
		if err != nil {
			return err
		}
		if h.Incident == 0 != (h.State == meta.HealthHealthy) && h.Revision != 0 {
			return fmt.Errorf("region %s is %s in incident %d", h.Region, h.State, h.Incident)
		}
		if h.Incident == 0 {
			return nil
		}
		if i, err := find[meta.Incident](v, keyIncident(h.Incident), "incident", h.Incident); err != nil || i.Region != h.Region || i.Closed != 0 {
			return fmt.Errorf("region %s has the open incident %+v: %v", h.Region, i, err)
		}
	case inIncidents:
		i, err := decode[meta.Incident](k, value)
		if err != nil {
			return err
		}
		h, err := healthOf(v, i.Region)
		if err != nil || (i.Closed == 0) != (h.Incident == i.ID) {
			return fmt.Errorf("incident %d is closed at %d, its region has %d open: %v", i.ID, i.Closed, h.Incident, err)
		}
	case keyIncidents[1]:
		counted := uint64(0)
		for _, err := range v.scan(within(key{spaceIncidents, inIncidents})) {
			if err != nil {
				return err
			}
			counted++
		}
		if n, err := number(v, keyIncidents); err != nil || n != counted {
			return fmt.Errorf("%d incidents are counted, there are %d: %v", n, counted, err)
		}
	}
	return nil
}
