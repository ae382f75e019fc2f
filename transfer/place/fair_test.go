package place

import (
	"fmt"
	"iter"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// world is lanes with what waits in them, a Fair, and a server that works off one copy
// after the other.
type world struct {
	fair  Fair
	lanes []Lane
	queue map[Lane][]meta.Replica
	read  int
	n     int
}

func newWorld() *world { return &world{queue: map[Lane][]meta.Replica{}} }

func (w *world) add(lane Lane, storedBytes int64, count int) {
	if !slices.Contains(w.lanes, lane) {
		w.lanes = append(w.lanes, lane)
	}
	for range count {
		w.n++
		d := demand(w.n, lane.Class, 0)
		d.StoredBytes = storedBytes
		w.queue[lane] = append(w.queue[lane], d)
	}
}

func (w *world) due(lane Lane) iter.Seq[Copy] {
	return func(yield func(Copy) bool) {
		for _, d := range w.queue[lane] {
			w.read++
			if !yield(Copy{Demand: d}) {
				return
			}
		}
	}
}

func (w *world) waiting() []Lane {
	return slices.DeleteFunc(slices.Clone(w.lanes), func(l Lane) bool { return len(w.queue[l]) == 0 })
}

// serve begins the next copy; ok is false when nothing waits.
func (w *world) serve() (c Copy, ok bool) {
	order := w.fair.Order(w.waiting(), 1, w.due)
	if len(order) == 0 {
		return c, false
	}
	c = order[0]
	w.fair.Serve(c)
	w.queue[c.Lane] = w.queue[c.Lane][1:]
	return c, true
}

func lane(class meta.Class, tenant string, tier meta.Tier) Lane {
	return Lane{Class: class, Tenant: tenant, Weight: tier.Weight()}
}

// Within a lane the oldest comes first; a plan of many is what one by one would be.
func TestOrderIsWhatServingIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		for range rapid.IntRange(1, 8).Draw(t, "lanes") {
			l := lane(rapid.SampledFrom([]meta.Class{meta.ClassCritical, meta.ClassStandard, meta.ClassCold}).Draw(t, "class"),
				rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tenant"), meta.TierStandard)
			w.add(l, rapid.Int64Range(0, 1<<30).Draw(t, "bytes"), rapid.IntRange(1, 5).Draw(t, "count"))
		}
		for range rapid.IntRange(0, 5).Draw(t, "served") {
			w.serve()
		}
		limit := rapid.IntRange(0, 20).Draw(t, "limit")
		plan := w.fair.Order(w.waiting(), limit, w.due)
		for i, want := range plan {
			if got, ok := w.serve(); !ok || got.Demand.Root != want.Demand.Root || got.Lane != want.Lane {
				t.Fatalf("copy %d is of %v, planned was %v", i, got.Lane, want.Lane)
			}
		}
		if _, ok := w.serve(); ok && len(plan) < limit {
			t.Fatalf("a plan of %d, at most %d, left something out", len(plan), limit)
		}
	})
}

// While all have more than is served, each class and tenant gets its part of the bytes.
func TestParts(t *testing.T) {
	w := newWorld()
	lanes := []Lane{
		lane(meta.ClassCritical, "a", meta.TierStandard), lane(meta.ClassStandard, "a", meta.TierStandard),
		lane(meta.ClassStandard, "b", meta.TierPremium), lane(meta.ClassStandard, "c", meta.TierBasic), lane(meta.ClassCold, "a", ""),
	}
	for i, l := range lanes {
		w.add(l, int64(1+i)<<20, 10_000)
	}
	got, sum := map[Lane]float64{}, 0.0
	for range 10_000 {
		c, _ := w.serve()
		got[c.Lane] += Cost(c.Demand)
		sum += Cost(c.Demand)
	}
	for i, part := range []float64{16.0 / 21, 4.0 / 21 * 4 / 21, 4.0 / 21 * 16 / 21, 4.0 / 21 * 1 / 21, 1.0 / 21} {
		if share := got[lanes[i]] / sum; share < part*0.95 || share > part*1.05 {
			t.Errorf("%s of %s got %.4f of the bytes, its part is %.4f", lanes[i].Class, lanes[i].Tenant, share, part)
		}
	}
}

// Who asks for little is served next, whatever others have waiting and however large
// that is; who was away saves nothing up; nobody is left out for good.
func TestSmallOnesAreServedAtOnce(t *testing.T) {
	w := newWorld()
	loud, calm := lane(meta.ClassStandard, "loud", ""), lane(meta.ClassStandard, "calm", "")
	w.add(loud, 1<<20, 3_000)
	for range 1000 {
		w.serve()
	}
	for range 50 {
		w.add(calm, 1<<20, 1)
		if c, _ := w.serve(); c.Lane != calm {
			t.Fatal("the calm tenant waits for the loud one")
		}
		for range 9 {
			if c, _ := w.serve(); c.Lane != loud {
				t.Fatal("the loud tenant does not get what is left")
			}
		}
	}
	w.add(calm, 1<<20, 1000)
	count := map[Lane]int{}
	for range 100 {
		c, _ := w.serve()
		count[c.Lane]++
	}
	if count[calm] < 49 || count[calm] > 52 {
		t.Errorf("after a long time with little, the calm tenant got %d of 100", count[calm])
	}
	huge := lane(meta.ClassCold, "huge", meta.TierBasic)
	w.add(huge, 1<<40, 2)
	for i := 0; ; i++ {
		if c, _ := w.serve(); c.Lane == huge {
			break
		}
		if i > 100 {
			t.Fatal("a large cold blob never comes")
		}
	}
}

// A plan reads no more than it needs, and nothing is kept of lanes that are gone.
func TestOrderReadsLittle(t *testing.T) {
	w := newWorld()
	for i := range 300 {
		w.add(lane(meta.ClassStandard, fmt.Sprint("tenant-", i), ""), 1<<20, 3)
	}
	if plan := w.fair.Order(w.lanes, 100, w.due); len(plan) != 100 || w.read > 200 {
		t.Errorf("%d demands were read for a plan of %d", w.read, len(plan))
	}
	for {
		if _, ok := w.serve(); !ok {
			break
		}
	}
	one := lane(meta.ClassStandard, "one", "")
	w.add(one, 1<<30, 3)
	for range 3 {
		w.serve()
	}
	if n := len(w.fair.ofClass(meta.ClassStandard).finish); n > 2 {
		t.Errorf("%d tenants are remembered", n)
	}
}

// BenchmarkOrder is the claim that planning costs milliseconds with a backlog of
// 100,000 demands in 1,000 lanes.
func BenchmarkOrder(b *testing.B) {
	w := newWorld()
	for i := range 1000 {
		w.add(lane(meta.ClassStandard, fmt.Sprint("tenant-", i), ""), 1<<20, 100)
	}
	all := servers(3)
	for b.Loop() {
		q := Question{Self: all[0], Servers: all, Now: epoch, StandIn: time.Minute}
		w.fair.Order(w.lanes, 512, func(l Lane) iter.Seq[Copy] {
			return func(yield func(Copy) bool) {
				for _, d := range w.queue[l] {
					if c, due, _ := q.Due(d); due && !yield(c) {
						return
					}
				}
			}
		})
	}
}
