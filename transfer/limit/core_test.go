package limit

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world drives a core in virtual time: streams that take a piece, use it for a while
// and take the next.
type world struct {
	core    core
	now     time.Duration
	pauses  []pause // streams that use what they got
	streams []*stream
	passed  []passage
	changes []change
}

// stream is one caller.
type stream struct {
	Flow
	most  int
	think time.Duration
	r     *request
	got   int64
	since time.Duration // when its request was made
	worst time.Duration // it waited
}

type pause struct {
	until time.Duration
	s     *stream
}

// passage is bytes let through, change the limits from a moment on.
type passage struct {
	at   time.Duration
	flow Flow
	n    int
}

type change struct {
	at time.Duration
	l  Limits
}

func (w *world) set(l Limits) {
	w.core.set(w.now, l.Up, l.ZoneUp, l.WANUp, l.Tenants, l.Classes)
	w.changes = append(w.changes, change{w.now, l})
}

func (w *world) add(f Flow, count, most int, think time.Duration) {
	for range count {
		s := &stream{Flow: f, most: most, think: think}
		w.streams = append(w.streams, s)
		w.ask(s)
	}
}

func (w *world) ask(s *stream) {
	s.since = w.now
	if n := w.core.try(w.now, &s.Flow, s.most); n > 0 {
		w.got(s, n)
		return
	}
	s.r = &request{most: s.most}
	w.core.add(s.Flow, s.r)
}

func (w *world) got(s *stream, n int) {
	s.got += int64(n)
	s.worst = max(s.worst, w.now-s.since)
	s.r = nil
	w.passed = append(w.passed, passage{w.now, s.Flow, n})
	w.pauses = append(w.pauses, pause{w.now + s.think, s})
}

// run goes on until the end; what is free is handed out as late as late after it could be.
func (w *world) run(end, late time.Duration) {
	for {
		again, waiting := w.core.serve(w.now, func(r *request) {
			for _, s := range w.streams {
				if s.r == r {
					w.got(s, r.granted)
					return
				}
			}
			panic("granted to nobody")
		})
		next := end
		if waiting {
			next = min(next, max(again, w.now+1)+late)
		}
		for _, p := range w.pauses {
			next = min(next, max(p.until, w.now+1))
		}
		if next >= end {
			w.now = end
			return
		}
		w.now = next
		slices.SortStableFunc(w.pauses, func(a, b pause) int { return int(a.until - b.until) })
		for len(w.pauses) > 0 && w.pauses[0].until <= w.now {
			s := w.pauses[0].s
			w.pauses = w.pauses[1:]
			w.ask(s)
		}
	}
}

// sum returns what passed of the flows that match, in [from, to).
func (w *world) sum(from, to time.Duration, match func(Flow) bool) (n int64) {
	for _, p := range w.passed {
		if p.at >= from && p.at < to && match(p.flow) {
			n += int64(p.n)
		}
	}
	return n
}

// budgets lists each budget that any of the limits names: which flows it is of, and
// its rate in given limits.
func (w *world) budgets() map[string]struct {
	match func(Flow) bool
	rate  func(Limits) int64
} {
	type budget = struct {
		match func(Flow) bool
		rate  func(Limits) int64
	}
	all := map[string]budget{
		"up":   {func(Flow) bool { return true }, func(l Limits) int64 { return l.Up }},
		"zone": {func(f Flow) bool { return !f.Beyond && f.Zone != "" }, func(l Limits) int64 { return l.ZoneUp }},
		"wan":  {func(f Flow) bool { return f.Beyond }, func(l Limits) int64 { return l.WANUp }},
	}
	for _, c := range w.changes {
		for name := range c.l.Tenants {
			all["tenant "+name] = budget{func(f Flow) bool { return f.Tenant == name }, func(l Limits) int64 { return l.Tenants[name] }}
		}
		for class := range c.l.Classes {
			all["class "+class.String()] = budget{func(f Flow) bool { return f.Class == class }, func(l Limits) int64 { return l.Classes[class] }}
		}
	}
	return all
}

// checkCaps fails unless in each window of a second each budget let through at most
// 1.05 times the rate: the largest that was in force within the window, and more
// strictly the integral of the rate and 4 % of a second of the one at its begin.
func (w *world) checkCaps(t interface{ Fatalf(string, ...any) }) {
	for name, b := range w.budgets() {
		var mine []passage
		for _, p := range w.passed {
			if b.match(p.flow) {
				mine = append(mine, p)
			}
		}
		limited := slices.ContainsFunc(w.changes, func(c change) bool { return b.rate(c.l) > 0 })
		for i, first := range mine {
			if !limited {
				break
			}
			var bytes int64
			for _, p := range mine[i:] {
				if p.at >= first.at+time.Second {
					break
				}
				bytes += int64(p.n)
				// The window is [first.at, p.at]: as short as it can be for these bytes.
				allowed, most, limited := w.allowed(first.at, p.at, b.rate)
				if limited && float64(bytes) > allowed+1 {
					t.Fatalf("%s: %d bytes in [%v, %v], allowed are %.0f", name, bytes, first.at, p.at, allowed)
				}
				if limited && float64(bytes) > 1.05*most+1 {
					t.Fatalf("%s: %d bytes within a second from %v at %.0f/s", name, bytes, first.at, most)
				}
			}
		}
	}
}

// allowed returns the integral of the rate over [from, to] with the burst at its begin,
// and the largest rate; limited is false when there was no limit at some time.
func (w *world) allowed(from, to time.Duration, rate func(Limits) int64) (bytes, most float64, limited bool) {
	for i, c := range w.changes {
		end := to
		if i+1 < len(w.changes) {
			end = min(to, w.changes[i+1].at)
		}
		begin := max(from, c.at)
		if end < begin {
			continue
		}
		r := float64(rate(c.l))
		if r == 0 {
			return 0, 0, false
		}
		// A limit that comes anew begins with a burst of its own.
		bytes += r * (end - begin).Seconds()
		most = max(most, r)
	}
	return bytes + most*burstTime.Seconds(), most, true
}

// checkCounts fails unless what the core counts is what is there.
func (w *world) checkCounts(t interface{ Fatalf(string, ...any) }) {
	c := &w.core
	counts := map[*bucket][classes]int{}
	waiting := 0
	for _, f := range c.active {
		if f.first == nil {
			t.Fatalf("an active flow has no request")
		}
		for r := f.first; r != nil; r = r.next {
			waiting++
			for _, b := range f.path.buckets() {
				n := counts[b]
				n[f.Class]++
				counts[b] = n
			}
		}
	}
	if waiting != c.waiting {
		t.Fatalf("%d requests wait, counted are %d", waiting, c.waiting)
	}
	for _, b := range slices.Concat([]*bucket{c.host, c.zone, c.wan}, c.classes[:], slices.Collect(maps.Values(c.tenants))) {
		if b != nil && b.waiting != counts[b] {
			t.Fatalf("a budget is waited for by %v, counted are %v", counts[b], b.waiting)
		}
	}
}

var tenantNames = []string{"acme", "beta", ""}

func drawFlow(t *rapid.T) Flow {
	return Flow{
		Zone:   rapid.SampledFrom([]string{"", "b"}).Draw(t, "zone"),
		Beyond: rapid.Bool().Draw(t, "beyond"),
		Tenant: rapid.SampledFrom(tenantNames).Draw(t, "tenant"),
		Class:  Class(rapid.IntRange(0, classes-1).Draw(t, "class")),
	}
}

func drawRate(t *rapid.T, label string) int64 {
	return rapid.SampledFrom([]int64{0, MinRate, 300_000, 1_000_000, 12_500_000, 125_000_000}).Draw(t, label)
}

func drawLimits(t *rapid.T) Limits {
	return Limits{
		Up: drawRate(t, "up"), ZoneUp: drawRate(t, "zone_up"), WANUp: drawRate(t, "wan_up"),
		Tenants: map[string]int64{"acme": drawRate(t, "acme"), "beta": drawRate(t, "beta")},
		Classes: map[Class]int64{Prewarm: drawRate(t, "prewarm")},
	}
}

// Caps hold for every budget and every window, whoever asks for what, also while the
// limits change, callers give up and the timer is late.
func TestCapsHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w world
		w.set(drawLimits(t))
		for range rapid.IntRange(1, 6).Draw(t, "flows") {
			w.add(drawFlow(t), rapid.IntRange(1, 3).Draw(t, "streams"), rapid.IntRange(1, 300<<10).Draw(t, "most"),
				// An endless number of pieces in no time is no test of anything.
				time.Duration(rapid.IntRange(10_000, 200_000).Draw(t, "think"))*time.Microsecond)
		}
		for range rapid.IntRange(1, 3).Draw(t, "phases") {
			w.run(w.now+time.Duration(rapid.IntRange(1, 1000).Draw(t, "ms"))*time.Millisecond,
				time.Duration(rapid.IntRange(0, 5000).Draw(t, "late"))*time.Microsecond)
			w.checkCounts(t)
			if rapid.Bool().Draw(t, "give up") {
				s := w.streams[rapid.IntRange(0, len(w.streams)-1).Draw(t, "who")]
				if s.r != nil {
					w.core.remove(s.r)
					s.r = nil
					w.checkCounts(t)
				}
			}
			w.set(drawLimits(t))
			w.checkCounts(t)
		}
		w.run(w.now+time.Second, 0)
		w.checkCaps(t)
	})
}

// A budget that is wanted is used: none is left idle because of order, floors or
// another budget.
func TestBudgetsAreUsed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w world
		l := Limits{Up: 12_500_000, WANUp: 2_000_000, ZoneUp: 3_000_000, Tenants: map[string]int64{"acme": 1_000_000}}
		w.set(l)
		// Somebody who only the host limits wants all of it; the others as may be.
		w.add(Flow{Class: Class(rapid.IntRange(0, classes-1).Draw(t, "class"))}, 4, 256<<10, 0)
		w.add(Flow{Beyond: true, Class: Class(rapid.IntRange(0, classes-1).Draw(t, "wan class"))}, 2, 256<<10, 0)
		for range rapid.IntRange(0, 5).Draw(t, "flows") {
			w.add(drawFlow(t), rapid.IntRange(1, 3).Draw(t, "streams"), 64<<10, time.Duration(rapid.IntRange(0, 20).Draw(t, "think"))*time.Millisecond)
		}
		w.run(4*time.Second, 0)
		w.checkCaps(t)
		got := w.sum(time.Second, 4*time.Second, func(Flow) bool { return true })
		if want := 3 * l.Up; float64(got) < 0.97*float64(want) {
			t.Fatalf("%d of %d bytes were used", got, want)
		}
	})
}

// share runs saturating flows and returns what each got of the last eight of ten seconds.
func share(l Limits, flows ...Flow) []float64 {
	var w world
	w.set(l)
	for _, f := range flows {
		w.add(f, 4, 256<<10, 0)
	}
	w.run(10*time.Second, 0)
	out := make([]float64, len(flows))
	total := w.sum(2*time.Second, 10*time.Second, func(Flow) bool { return true })
	for i, f := range flows {
		out[i] = float64(w.sum(2*time.Second, 10*time.Second, func(g Flow) bool { return g == f })) / float64(total)
	}
	return out
}

// The more urgent class gets what it wants but for the floors of the others.
func TestClassesAndFloors(t *testing.T) {
	for _, rate := range []int64{MinRate, 1_000_000, 12_500_000, 1_250_000_000} {
		got := share(Limits{Up: rate}, Flow{Class: Urgent}, Flow{Class: Bulk}, Flow{Class: Prewarm})
		t.Logf("%d bytes/s: urgent %.3f, bulk %.3f, prewarm %.3f", rate, got[0], got[1], got[2])
		if got[0] < 0.9 || got[1] < 0.04 || got[2] < 0.015 {
			t.Errorf("at %d bytes/s the shares are %.3f", rate, got)
		}
		got = share(Limits{Up: rate}, Flow{Class: Bulk}, Flow{Class: Prewarm})
		if got[0] < 0.95 || got[1] < 0.015 {
			t.Errorf("at %d bytes/s bulk and prewarm have %.3f", rate, got)
		}
	}
}

// A class that competes in the WAN's budget keeps its floor of that one, and takes no
// more of it because the host's budget is large.
func TestFloorsOfInnerBudgets(t *testing.T) {
	l := Limits{Up: 125_000_000, WANUp: 1_250_000}
	flows := []Flow{{Class: Urgent}, {Class: Urgent, Beyond: true}, {Class: Bulk, Beyond: true}}
	got := share(l, flows...)
	wan := got[1] + got[2]
	t.Logf("host %.4f, wan urgent %.4f, wan bulk %.4f", got[0], got[1], got[2])
	if wan < 0.0097 || got[2]/wan < 0.04 || got[2]/wan > 0.12 {
		t.Errorf("of the WAN %.3f is used, bulk has %.3f of it", wan*100, got[2]/wan)
	}
}

// Flows of a class share evenly, however many streams and how large pieces each has;
// one that is held up by a budget of its own does not make up for it afterwards.
func TestFlowsShareEvenly(t *testing.T) {
	var w world
	w.set(Limits{Up: 10_000_000, Tenants: map[string]int64{"slow": 1_000_000}})
	a, b, slow := Flow{Tenant: "a"}, Flow{Tenant: "b"}, Flow{Tenant: "slow"}
	w.add(a, 1, 16<<10, 0)
	w.add(b, 40, 256<<10, 0)
	w.add(slow, 10, 256<<10, 0)
	is := func(f Flow) func(Flow) bool { return func(g Flow) bool { return f == g } }
	w.run(5*time.Second, 0)
	ga, gb, gs := w.sum(time.Second, 5*time.Second, is(a)), w.sum(time.Second, 5*time.Second, is(b)), w.sum(time.Second, 5*time.Second, is(slow))
	if d := ga - gb; d > 512<<10 || d < -512<<10 {
		t.Errorf("a stream got %d, forty got %d", ga, gb)
	}
	if float64(gs) < 0.97*4_000_000 {
		t.Errorf("the slow tenant got %d of its 1 MB/s in 4 s", gs)
	}
	w.set(Limits{Up: 10_000_000})
	w.run(6*time.Second, 0)
	if gs := w.sum(5*time.Second, 6*time.Second, is(slow)); gs > 4_000_000 {
		t.Errorf("the tenant makes up for its limit: %d in a second, a third is 3.3 MB", gs)
	}
}

// Within a flow the first to come is served first.
func TestFirstComeFirstServed(t *testing.T) {
	var c core
	c.set(0, MinRate, 0, 0, nil, nil)
	f := Flow{}
	c.try(0, &f, int(c.host.burst())) // one piece
	var order []int
	requests := make([]*request, 20)
	for i := range requests {
		requests[i] = &request{most: 1000}
		c.add(f, requests[i])
	}
	c.remove(requests[7])
	for now, waiting := time.Duration(0), true; waiting; {
		now, waiting = c.serve(now, func(r *request) { order = append(order, slices.Index(requests, r)) })
	}
	if want := "[0 1 2 3 4 5 6 8 9 10 11 12 13 14 15 16 17 18 19]"; fmt.Sprint(order) != want {
		t.Errorf("served in order %v", order)
	}
}

// What is remembered of flows that nobody waits in is bounded.
func TestFlowsAreForgotten(t *testing.T) {
	var c core
	c.set(0, MinRate, 0, 0, nil, nil)
	now := time.Duration(0)
	for i := range 5 * keptFlows {
		r := &request{most: 100}
		c.add(Flow{Tenant: fmt.Sprint(i)}, r)
		for waiting := true; waiting; {
			now, waiting = c.serve(now, func(*request) {})
		}
	}
	if len(c.flows) > keptFlows+1 || len(c.active) != 0 {
		t.Errorf("%d flows are remembered", len(c.flows))
	}
}
