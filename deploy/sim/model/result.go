package model

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"
)

// Result is what a run showed. Times of a host count from its own start; hosts that
// were slowed, frozen, sent away or made liars do not count in them.
type Result struct {
	Scenario string
	Seed     uint64
	Bound    time.Duration
	// Hosts that count, and those of them that did not finish.
	Hosts, Unfinished int
	// Finish, FirstByte, ReaderEnd and Stall are sorted, one for each host that
	// finished: when it had all, when its reader had the first chunk, all chunks, and
	// the longest time in which the reader waited after its first chunk.
	Finish, FirstByte, ReaderEnd, Stall []time.Duration
	// SeedCopies is what the origin sent, EnterCopies what entered each region, as
	// shares of all blobs; the origin's region has 0.
	SeedCopies  float64
	EnterCopies []float64
	// ZoneShare is the share of bytes from peers of the same zone; Waste what came
	// beyond one copy each.
	ZoneShare, Waste float64
	// Wrong chunks that came, peers shut out for it, wrong chunks that were taken or
	// sent on (must be 0), second requests, HAVEs.
	Wrong, Bans, Breaches, Hedges, Haves int64
	// Chunks delivered, events of the model, steps of cores; a hash of every step.
	Deliveries, Events, Steps int64
	Trace                     uint64
	Took                      time.Duration
	HeapBytes                 uint64
}

// Run simulates a scenario with a seed; 0 takes the scenario's own. The same
// scenario and seed give the same Result but for Took and HeapBytes.
func Run(sc *Scenario, seed uint64) *Result {
	if seed == 0 {
		seed = sc.Seed
	}
	began := time.Now()
	s := newSimulation(sc, seed)
	s.run(20*s.bound + 2*time.Minute)
	r := s.result()
	r.Seed, r.Took = seed, time.Since(began)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	r.HeapBytes = m.HeapAlloc
	runtime.KeepAlive(s)
	return r
}

func (s *simulation) result() *Result {
	r := &Result{
		Scenario: s.Name, Bound: s.bound, Trace: s.trace, Wrong: s.wrong, Bans: s.bans, Breaches: s.breaches,
		Hedges: s.hedges, Haves: s.haves, Deliveries: s.deliveries, Events: s.events, Steps: s.steps,
	}
	total := float64(s.total)
	r.SeedCopies = float64(s.hosts[0].upBytes) / total
	for i := range s.regions {
		r.EnterCopies = append(r.EnterCopies, float64(s.regions[i].entered)/total)
	}
	if s.received > 0 {
		r.ZoneShare = float64(s.zoneBytes) / float64(s.received)
	}
	var needed int64
	for id := range s.hosts {
		h := &s.hosts[id]
		if id > 0 {
			for b := range h.blobs {
				for c, l := range s.chunks[b] {
					if h.blobs[b].core.Has(c) {
						needed += int64(l)
					}
				}
			}
		}
		if h.server || h.hurt {
			continue
		}
		r.Hosts++
		if h.finished < 0 {
			r.Unfinished++
			continue
		}
		since := func(t int64) time.Duration { return time.Duration(t - h.started) }
		first, end, stall := int64(math.MaxInt64), int64(0), int64(0)
		for b := range h.blobs {
			p := &h.blobs[b]
			first, end, stall = min(first, p.firstByte), max(end, p.end), max(stall, p.stall)
		}
		r.Finish = append(r.Finish, since(h.finished))
		r.FirstByte = append(r.FirstByte, since(first))
		r.ReaderEnd = append(r.ReaderEnd, since(end))
		r.Stall = append(r.Stall, time.Duration(stall))
	}
	for _, list := range [][]time.Duration{r.Finish, r.FirstByte, r.ReaderEnd, r.Stall} {
		slices.Sort(list)
	}
	if needed > 0 {
		r.Waste = max(0, float64(s.received)/float64(needed)-1)
	}
	return r
}

// Quantile returns the value of a sorted list below which the share q lies; 0 of none.
func Quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	return list[max(0, int(math.Ceil(q*float64(len(list))))-1)]
}

// Figures are the names that Result.Figure knows.
var Figures = []string{
	"p50", "p99", "p999", "last", "p50_s", "p99_s", "p999_s", "p99_ms",
	"seed", "enter", "first", "stall_s", "waste", "unfinished", "breaches",
}

// Figure returns a figure by its name in Scenario.Goals: p50, p99, p999 and last of
// the finish as multiples of the bound; p50_s, p99_s, p999_s in seconds; p99_ms;
// seed and enter (copies sent by the origin; most that entered a region);
// first (last first byte, share of the bound); stall_s (longest); waste; unfinished; breaches.
func (r *Result) Figure(name string) (float64, bool) {
	x := func(q float64) float64 { return Quantile(r.Finish, q).Seconds() }
	bound := max(r.Bound.Seconds(), 1e-9)
	switch name {
	case "p50":
		return x(.5) / bound, true
	case "p99":
		return x(.99) / bound, true
	case "p999":
		return x(.999) / bound, true
	case "last":
		return x(1) / bound, true
	case "p50_s":
		return x(.5), true
	case "p99_s":
		return x(.99), true
	case "p999_s":
		return x(.999), true
	case "p99_ms":
		return 1000 * x(.99), true
	case "seed":
		return r.SeedCopies, true
	case "enter":
		most := 0.0
		for _, c := range r.EnterCopies {
			most = max(most, c)
		}
		return most, true
	case "first":
		return Quantile(r.FirstByte, 1).Seconds() / bound, true
	case "stall_s":
		return Quantile(r.Stall, 1).Seconds(), true
	case "waste":
		return r.Waste, true
	case "unfinished":
		return float64(r.Unfinished), true
	case "breaches":
		return float64(r.Breaches), true
	}
	return 0, false
}

// String is the report of a run for people.
func (r *Result) String() string {
	bound := max(r.Bound.Seconds(), 1e-9)
	q := func(list []time.Duration, x float64) string {
		d := Quantile(list, x)
		return fmt.Sprintf("%.3f s (%.3f)", d.Seconds(), d.Seconds()/bound)
	}
	return fmt.Sprintf(`%s, seed %d: bound %.3f s, %d hosts, %d unfinished
  finish       p50 %s, p99 %s, p99.9 %s, last %s
  first byte   p50 %s, p99 %s, last %s
  reader       p99 %s, last %s; longest stall p99 %.3f s, most %.3f s
  copies       origin %.3f, entering regions %.3f; same zone %.1f %%, waste %.1f %%
  faults       %d hedges, %d wrong chunks, %d bans, %d breaches; %.1f HAVEs a chunk
  run          trace %016x; %d chunks, %d events, %d steps in %.1f s: %.0f chunks/s, %.0f events/s; %d MiB
`, r.Scenario, r.Seed, r.Bound.Seconds(), r.Hosts, r.Unfinished,
		q(r.Finish, .5), q(r.Finish, .99), q(r.Finish, .999), q(r.Finish, 1),
		q(r.FirstByte, .5), q(r.FirstByte, .99), q(r.FirstByte, 1),
		q(r.ReaderEnd, .99), q(r.ReaderEnd, 1), Quantile(r.Stall, .99).Seconds(), Quantile(r.Stall, 1).Seconds(),
		r.SeedCopies, r.EnterCopies, 100*r.ZoneShare, 100*r.Waste,
		r.Hedges, r.Wrong, r.Bans, r.Breaches, float64(r.Haves)/max(1, float64(r.Deliveries)),
		r.Trace, r.Deliveries, r.Events, r.Steps, r.Took.Seconds(),
		float64(r.Deliveries)/r.Took.Seconds(), float64(r.Events)/r.Took.Seconds(), r.HeapBytes>>20)
}
