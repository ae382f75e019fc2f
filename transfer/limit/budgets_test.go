package limit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func budgets(t testing.TB, l Limits) *Budgets {
	t.Helper()
	b, err := New(Config{Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Many callers, a limit that is set, changed and taken away under them: each second
// has its bytes, by the fake clock.
func TestTakeKeepsRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budgets(t, Limits{Up: 1_000_000})
		ctx, cancel := context.WithCancel(t.Context())
		var passed atomic.Int64
		var group sync.WaitGroup
		for i := range 30 {
			group.Go(func() {
				for {
					n, err := b.Take(ctx, Flow{Tenant: string(rune('a' + i%3)), Class: Class(i % classes)}, 256<<10)
					if err != nil {
						return
					}
					passed.Add(int64(n))
					select { // moving the bytes takes a while
					case <-time.After(time.Millisecond):
					case <-ctx.Done():
					}
				}
			})
		}
		second := func(rate float64) {
			t.Helper()
			before := passed.Load()
			time.Sleep(time.Second)
			if got := float64(passed.Load() - before); got > 1.05*rate || got < 0.95*rate {
				t.Errorf("%.0f bytes in a second at %.0f/s", got, rate)
			}
		}
		second(1e6)
		second(1e6)
		if err := b.Set(Limits{Up: 5_000_000}); err != nil {
			t.Fatal(err)
		}
		second(5e6)
		if err := b.Set(Limits{Up: 5_000_000, Classes: map[Class]int64{Urgent: 1_000_000, Bulk: 1_000_000, Prewarm: 1_000_000}}); err != nil {
			t.Fatal(err)
		}
		second(3e6)
		if err := b.Set(Limits{}); err != nil {
			t.Fatal(err)
		}
		before := passed.Load()
		time.Sleep(100 * time.Millisecond)
		if passed.Load()-before < 100<<20 {
			t.Error("without limits callers still wait")
		}
		if err := b.Set(Limits{Up: 2_000_000}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		second(2e6)
		cancel()
		group.Wait()
	})
}

// Who gives up leaves nothing behind, and does not keep others waiting.
func TestTakeGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budgets(t, Limits{Up: 1_000_000, Tenants: map[string]int64{"acme": MinRate}})
		if n, err := b.Take(t.Context(), Flow{Tenant: "acme"}, 5000); n == 0 || err != nil {
			t.Fatal(n, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		began := time.Now()
		for {
			if _, err := b.Take(ctx, Flow{Tenant: "acme"}, 256<<10); err != nil {
				if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 10*time.Millisecond {
					t.Errorf("gave up with %v after %v", err, time.Since(began))
				}
				break
			}
		}
		s := &b.sides[Up]
		if s.core.waiting != 0 || len(s.core.active) != 0 {
			t.Errorf("%d still wait", s.core.waiting)
		}
		if n, err := b.Take(t.Context(), Flow{}, 1000); n != 1000 || err != nil {
			t.Errorf("another got %d, %v", n, err)
		}
		if time.Since(began) != 10*time.Millisecond {
			t.Error("another waited")
		}
	})
}

// A background rate bounds the class it is of, below its limit, and goes away again.
func TestBackgroundRate(t *testing.T) {
	b := budgets(t, Limits{Classes: map[Class]int64{Prewarm: 5_000_000}})
	rate := func() (bytesPerSec float64) {
		if p := b.sides[Down].core.path(&Flow{Class: Prewarm}); p.n == 1 {
			bytesPerSec = p.list[0].rate
		}
		return bytesPerSec
	}
	for _, step := range []struct {
		background int64
		want       float64
	}{{2_000_000, 2e6}, {9_000_000, 5e6}, {0, 5e6}} {
		if b.SetBackground(step.background); rate() != step.want {
			t.Errorf("with %d in the background the rate is %f", step.background, rate())
		}
	}
	b.SetBackground(3_000_000)
	if err := b.Set(Limits{}); err != nil || rate() != 3e6 || len(b.Limits().List()) != 0 {
		t.Errorf("limits changed: rate %f, %v, limits %v", rate(), err, b.Limits())
	}
	if !b.Bounds(Flow{Class: Prewarm}) || b.Bounds(Flow{}) {
		t.Error("a flow is bounded that should not be, or the other way round")
	}
	b.SetBackground(0)
	if b.Bounds(Flow{Class: Prewarm}) {
		t.Error("still bounded")
	}
}

// Who waits as one flow and becomes another asks again.
func TestTakeUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budgets(t, Limits{Classes: map[Class]int64{Prewarm: MinRate}})
		stop := make(chan struct{})
		time.AfterFunc(time.Millisecond, func() { close(stop) })
		for f, began := (Flow{Class: Prewarm}), time.Now(); ; {
			n, err := b.TakeUntil(t.Context(), stop, f, 256<<10)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				if time.Since(began) != time.Millisecond || b.sides[Up].core.waiting != 0 {
					t.Errorf("stopped after %v, %d wait", time.Since(began), b.sides[Up].core.waiting)
				}
				return
			}
		}
	})
}

// Downloads have budgets of their own, and nobody without a budget waits.
func TestDirectionsAndPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budgets(t, Limits{Down: MinRate, ZoneUp: MinRate, WANUp: MinRate, Tenants: map[string]int64{"acme": MinRate}})
		began := time.Now()
		for range 100 {
			for _, f := range []Flow{{}, {Class: Bulk}, {Tenant: "beta"}} {
				if n, err := b.Take(t.Context(), f, 1<<20); n != 1<<20 || err != nil {
					t.Fatal(n, err)
				}
			}
		}
		if time.Since(began) != 0 {
			t.Error("who has no budget waited")
		}
		for _, f := range []Flow{{Direction: Down}, {Zone: "b"}, {Beyond: true}, {Tenant: "acme"}, {Direction: Down, Beyond: true}} {
			began, got := time.Now(), 0
			for time.Since(began) < time.Second {
				n, err := b.Take(t.Context(), f, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				got += n
			}
			if got < MinRate*95/100 || got > MinRate*108/100 { // a last piece passes at the very end
				t.Errorf("%+v: %d bytes in a second", f, got)
			}
		}
	})
}

func TestNoBudgets(t *testing.T) {
	var b *Budgets
	if n, err := b.Take(t.Context(), Flow{}, 7); n != 7 || err != nil {
		t.Error(n, err)
	}
	if !reflect.DeepEqual(b.Limits(), Limits{}) {
		t.Error("no budgets have limits")
	}
}

func TestLimitsAreChecked(t *testing.T) {
	for name, l := range map[string]Limits{
		"too small":         {Up: 1000},
		"negative":          {WANDown: -1},
		"huge":              {Down: 1 << 62},
		"tenant's name":     {Tenants: map[string]int64{"Acme!": 1_000_000}},
		"tenant's rate":     {Tenants: map[string]int64{"acme": 1}},
		"class":             {Classes: map[Class]int64{7: 1_000_000}},
		"class's rate":      {Classes: map[Class]int64{Bulk: 5}},
		"too many tenants":  {Tenants: tenants(MaxTenants + 1)},
		"several at a time": {Up: 1, Tenants: map[string]int64{"acme": 1}},
	} {
		if err := l.Check(); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := Limits{Up: MinRate, Tenants: tenants(MaxTenants), Classes: map[Class]int64{Prewarm: 1_000_000}}
	b := budgets(t, good)
	if err := b.Set(Limits{Up: 1}); err == nil || b.Limits().Up != MinRate {
		t.Errorf("a bad limit: %v, and %v is in force", err, b.Limits().Up)
	}
	got := b.Limits()
	got.Tenants["t0"] = 0
	if !reflect.DeepEqual(b.Limits(), good) {
		t.Error("limits are shared with who asked for them")
	}
}

func tenants(n int) map[string]int64 {
	m := map[string]int64{}
	for i := range n {
		m[fmt.Sprintf("t%d", i)] = MinRate
	}
	return m
}

func TestLimitsByName(t *testing.T) {
	var l Limits
	all := []Rate{
		{"up", 1e6}, {"down", 2e6}, {"zone_up", 3e6}, {"zone_down", 4e6}, {"wan_up", 5e6}, {"wan_down", 6e6},
		{"classes.urgent", 7e6}, {"classes.bulk", 8e6}, {"classes.prewarm", 9e6}, {"tenants.acme", 10e6}, {"tenants.beta", 11e6},
	}
	for _, r := range all {
		if err := l.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.List(); !slices.Equal(got, all) {
		t.Errorf("put %v, got %v", all, got)
	}
	before := l
	for _, r := range all {
		if err := l.Put(Rate{r.Budget, 0}); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.List()) != 0 || len(before.Tenants) != 2 {
		t.Errorf("taken away are all but %v, and %v of the copy", l.List(), before.Tenants)
	}
	for _, r := range []Rate{{"upp", 1e6}, {"", 1e6}, {"tenants.", 1e6}, {"tenants.A", 1e6}, {"classes.fast", 1e6}, {"up", 5}, {"up", -1e6}} {
		if err := l.Put(r); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%v: %v", r, err)
		}
	}
}

func TestLimitsAsJSON(t *testing.T) {
	l := Limits{Up: 1e6, WANDown: 2e6, Tenants: map[string]int64{"acme": 3e6}, Classes: map[Class]int64{Prewarm: 4e6}}
	text, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"up":1000000,"wan_down":2000000,"tenants":{"acme":3000000},"classes":{"prewarm":4000000}}`; string(text) != want {
		t.Errorf("got %s", text)
	}
	var back Limits
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, l) {
		t.Errorf("got %+v, %v", back, err)
	}
}

func TestClassOfContext(t *testing.T) {
	if c := ClassOf(t.Context()); c != Urgent {
		t.Error(c)
	}
	if c := ClassOf(WithClass(t.Context(), Prewarm)); c != Prewarm {
		t.Error(c)
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	b, err := New(Config{Limits: Limits{Up: 1_000_000, Tenants: map[string]int64{"acme": 2_000_000}}, Metrics: registry})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []Flow{{}, {Direction: Down, Class: Bulk, Beyond: true}, {Class: Prewarm, Zone: "b"}} {
		if n, err := b.Take(t.Context(), f, 1000); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP shoal_limit_bytes_per_second Limits in force; one that is not set has no value.
# TYPE shoal_limit_bytes_per_second gauge
shoal_limit_bytes_per_second{budget="up"} 1e+06
shoal_limit_bytes_per_second{budget="tenants.acme"} 2e+06
`), "shoal_limit_bytes_per_second"); err != nil {
		t.Error(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.Metric {
			if family.GetName() == "shoal_limit_bytes_total" && m.GetCounter().GetValue() > 0 {
				var labels []string // sorted by name: class, direction, place
				for _, l := range m.Label {
					labels = append(labels, l.GetValue())
				}
				got[strings.Join(labels, " ")] = m.GetCounter().GetValue()
			}
		}
	}
	if want := map[string]float64{"urgent up zone": 1000, "bulk down wan": 1000, "prewarm up cross_zone": 1000}; !maps.Equal(got, want) {
		t.Errorf("counted %v", got)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
	if _, err := New(Config{Metrics: registry}); err == nil {
		t.Error("registered twice")
	}
}

func BenchmarkTakeWithoutLimits(b *testing.B) {
	budgets := budgets(b, Limits{})
	for b.Loop() {
		if _, err := budgets.Take(context.Background(), Flow{Tenant: "acme"}, 64<<10); err != nil {
			b.Fatal(err)
		}
	}
}

// All budgets of a flow limit it, nobody else waits.
func BenchmarkTakeUncontended(b *testing.B) {
	budgets := budgets(b, Limits{Up: 1 << 49, WANUp: 1 << 49, Tenants: map[string]int64{"acme": 1 << 49}, Classes: map[Class]int64{Urgent: 1 << 49}})
	f := Flow{Beyond: true, Tenant: "acme"}
	for b.Loop() {
		if _, err := budgets.Take(context.Background(), f, 64<<10); err != nil {
			b.Fatal(err)
		}
	}
}

// A handing out among waiters of many flows, which compete for the host's budget or
// wait each for one of their own.
func BenchmarkServe(b *testing.B) {
	for _, flows := range []int{1, 10, 100} {
		limits := map[string]int64{}
		for i := range flows {
			limits[fmt.Sprint(i)] = 10_000_000
		}
		for name, set := range map[string]func(*core){
			"host":    func(c *core) { c.set(0, 1_000_000_000, 0, 0, nil, nil) },
			"tenants": func(c *core) { c.set(0, 0, 0, 0, limits, nil) },
		} {
			b.Run(fmt.Sprintf("%s/%d", name, flows), func(b *testing.B) {
				var c core
				set(&c)
				for i := range 4 * flows {
					c.add(Flow{Tenant: fmt.Sprint(i % flows), Class: Class(i % classes)}, &request{most: 256 << 10})
				}
				now := time.Duration(0)
				var granted []*request
				for b.Loop() {
					granted = granted[:0]
					for len(granted) == 0 {
						now, _ = c.serve(now, func(r *request) { granted = append(granted, r) })
					}
					for _, r := range granted {
						c.add(r.flow.Flow, r)
					}
				}
			})
		}
	}
}
