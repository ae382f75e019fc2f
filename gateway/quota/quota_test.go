package quota

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// book is metadata that says the same of every tenant, without a state machine: for
// tests in virtual time.
type book struct{ limits meta.TenantLimits }

func (b book) Answer(_ context.Context, _ meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	posed, ok := q.(*state.Posed[state.TenantUsage])
	if !ok {
		return meta.AsOf{}, fmt.Errorf("%s: %w", q.Name(), meta.ErrInvalid)
	}
	asked := posed.Question.(state.GetUsage)
	posed.Result = state.TenantUsage{Tenant: meta.Tenant{Name: asked.Tenant, Limits: b.limits}, Counted: true}
	return meta.AsOf{}, nil
}

// nobody changes nothing.
type nobody struct{}

func (nobody) Do(context.Context, state.Origin, state.Command) (raftmeta.Receipt, error) {
	return raftmeta.Receipt{}, &meta.UnavailableError{Reason: "no_quorum"}
}

var errAlone = &UnsentError{errors.New("nobody is there")}

func newQuota(t testing.TB, c Config) *Quota {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Above == nil {
		c.Above = func(context.Context, *Report) (*Answer, bool, error) { return nil, false, errAlone }
	}
	if c.Nodes == nil {
		c.Nodes = func(bool) int { return 1 }
	}
	c.Metrics = prometheus.NewRegistry()
	q, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// offer sends calls at even intervals and counts those that pass.
func offer(ctx context.Context, q *Quota, publish bool, perSec int, passed *atomic.Int64) {
	var all sync.WaitGroup
	defer all.Wait()
	for ctx.Err() == nil {
		time.Sleep(time.Second / time.Duration(perSec))
		all.Go(func() {
			p, err := q.Admit(ctx, gateway.Charge{Tenant: "acme", Principal: "user:ada", Publish: publish})
			if err != nil {
				return
			}
			passed.Add(1)
			p.End()
		})
	}
}

// cell is a leader, another server and an agent of that one, who tell each other what
// they want, while connected says so.
func cell(t *testing.T, limits meta.TenantLimits, connected *atomic.Bool) (leader, server, agent *Quota) {
	nodes := func(publish bool) int { return map[bool]int{true: 2, false: 3}[publish] }
	leader = newQuota(t, Config{Self: "leader", Metadata: book{limits}, Doer: nobody{}, Nodes: nodes,
		Above: func(context.Context, *Report) (*Answer, bool, error) { return nil, true, nil }})
	server = newQuota(t, Config{Self: "server", Metadata: book{limits}, Doer: nobody{}, Nodes: nodes,
		Above: func(_ context.Context, r *Report) (*Answer, bool, error) {
			if !connected.Load() {
				return nil, false, errAlone
			}
			a, err := leader.Below(r, true)
			return a, false, err
		}})
	agent = newQuota(t, Config{Self: "agent", Metadata: book{limits}, Nodes: nodes,
		Above: func(_ context.Context, r *Report) (*Answer, bool, error) {
			if !connected.Load() {
				return nil, false, errAlone
			}
			a, err := server.Below(r, false)
			return a, false, err
		}})
	return leader, server, agent
}

// The nodes of a cluster keep within a rate together, each by what it could use; who
// hears nobody keeps to its fair part.
func TestRateIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var connected atomic.Bool
		connected.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		leader, server, agent := cell(t, meta.TenantLimits{DownloadRequests: 300}, &connected)
		var all sync.WaitGroup
		var passed [3]atomic.Int64
		for i, n := range []struct {
			q      *Quota
			perSec int
		}{{leader, 20}, {server, 500}, {agent, 1000}} {
			all.Go(func() { _ = n.q.Run(ctx) })
			all.Go(func() { offer(ctx, n.q, false, n.perSec, &passed[i]) })
		}
		during := func(d time.Duration) (sum float64, each [3]float64) {
			var before [3]int64
			for i := range passed {
				before[i] = passed[i].Load()
			}
			time.Sleep(d)
			for i := range passed {
				each[i] = float64(passed[i].Load()-before[i]) / d.Seconds()
				sum += each[i]
			}
			return sum, each
		}
		time.Sleep(10 * time.Second)
		sum, each := during(20 * time.Second)
		if sum < 270 || sum > 330 || each[0] < 18 || each[0] > 22 || each[1] < 100 || each[2] < 100 {
			t.Errorf("connected, %.0f calls a second pass, %.0f", sum, each)
		}
		connected.Store(false)
		time.Sleep(20 * time.Second)
		// The leader hears itself, and of it has wanted 20 a second throughout.
		if sum, each = during(20 * time.Second); each[1] < 90 || each[1] > 110 || each[2] < 90 || each[2] > 110 {
			t.Errorf("alone, %.0f calls a second pass, %.0f", sum, each)
		}
		connected.Store(true)
		time.Sleep(15 * time.Second)
		if sum, each = during(20 * time.Second); sum < 270 || sum > 330 {
			t.Errorf("connected again, %.0f calls a second pass, %.0f", sum, each)
		}
		cancel()
		all.Wait()
	})
}

// A body is slowed to the rate and never cut; calls beyond are refused when what is under
// way takes too long already, and told when to come again.
func TestBodiesAreSlowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuota(t, Config{Self: "s", Metadata: book{meta.TenantLimits{PublishBytes: 1 << 20}}, Doer: nobody{}})
		ctx := t.Context()
		began := time.Now()
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				p, err := q.Admit(ctx, gateway.Charge{Tenant: "acme", Publish: true, Length: 2 << 20})
				if err != nil {
					t.Error(err)
					return
				}
				defer p.End()
				for range 8 {
					p.Received(ctx, 256<<10)
				}
			})
		}
		all.Wait()
		if took := time.Since(began); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("10 MiB at 1 MiB/s took %v", took)
		}
		// Twenty more bodies at once are more than is admitted.
		var refused atomic.Int64
		for range 40 {
			all.Go(func() {
				p, err := q.Admit(ctx, gateway.Charge{Tenant: "acme", Publish: true, Length: 2 << 20})
				if err != nil {
					var over *meta.QuotaError
					if !errors.As(err, &over) || over.RetryAfter <= 0 || !errors.Is(err, meta.ErrOverQuota) {
						t.Errorf("refused with %v", err)
					}
					refused.Add(1)
					return
				}
				p.Received(ctx, 256<<10)
				p.End()
			})
			time.Sleep(time.Millisecond)
		}
		all.Wait()
		if n := refused.Load(); n < 10 || n > 35 {
			t.Errorf("%d of 40 bodies are refused", n)
		}
	})
}

// Uploads at one time are bounded, for the tenant and for a principal; who waits gets a
// place that is free in time.
func TestUploadsAtOneTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuota(t, Config{Self: "s", Metadata: book{meta.TenantLimits{Uploads: 3, PrincipalUploads: 2}}, Doer: nobody{}})
		ctx := t.Context()
		upload := func(who string) (gateway.Pass, error) {
			return q.Admit(ctx, gateway.Charge{Tenant: "acme", Principal: who, Publish: true, Length: -1})
		}
		var held []gateway.Pass
		for _, who := range []string{"ada", "ada", "bob"} {
			p, err := upload(who)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, p)
		}
		for _, who := range []string{"ada", "eve"} {
			began := time.Now()
			if _, err := upload(who); !errors.Is(err, meta.ErrOverQuota) || time.Since(began) != MaxWait {
				t.Errorf("%s gets %v after %v", who, err, time.Since(began))
			}
		}
		if _, err := q.Admit(ctx, gateway.Charge{Tenant: "acme", Principal: "ada"}); err != nil {
			t.Errorf("a read is refused: %v", err)
		}
		go func() {
			time.Sleep(time.Second)
			held[2].End()
		}()
		p, err := upload("eve")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range append(held[:2], p) {
			p.End()
		}
		if taken, waiting := q.tenant("acme").places.use(); taken != 0 || waiting != 0 || len(q.tenant("acme").uploads) != 0 {
			t.Errorf("%d places are taken and %d waited for, of %v", taken, waiting, q.tenant("acme").uploads)
		}
	})
}

// store is metadata that may be told to fail.
type store struct {
	*metatest.Store
	unknown atomic.Int64 // outcomes of which nothing is known
}

func (s *store) Do(ctx context.Context, o state.Origin, c state.Command) (raftmeta.Receipt, error) {
	r, err := s.Store.Do(ctx, o, c)
	if s.unknown.Load() > 0 {
		s.unknown.Add(-1)
		return raftmeta.Receipt{}, &meta.UnknownOutcomeError{Cause: errors.New("the line was cut")}
	}
	return r, err
}

// newStore has the tenant acme with limits.
func newStore(t *testing.T, l meta.LimitsChange) *store {
	s := &store{Store: metatest.New(t)}
	s.Must(state.CreateTenant{Name: "acme"})
	s.Must(state.CreateRepository{Repository: meta.Repository{
		Ref: meta.RepoRef{Tenant: "acme", Name: "app"}, Format: "generic", Kind: meta.KindHosted, Class: meta.ClassStandard, Home: "eu", Visibility: meta.VisibilityPrivate,
	}})
	s.Must(state.SetTenant{Name: "acme", Limits: &l})
	return s
}

// stale lets a Quota ask the metadata at once again.
func (q *Quota) stale() {
	t := q.tenant("acme")
	t.mu.Lock()
	t.asked = time.Time{}
	t.mu.Unlock()
}

// What clients download is counted once, whatever becomes of the report; a quota warns
// and then refuses.
func TestEgress(t *testing.T) {
	quota, day := int64(1000), meta.PerDay
	s := newStore(t, meta.LimitsChange{EgressBytes: &quota, EgressPeriod: &day})
	q := newQuota(t, Config{Self: "s1", Metadata: s, Doer: s, Fresh: meta.Local})
	read := func(n int) ([]string, error) {
		p, err := q.Admit(t.Context(), gateway.Charge{Tenant: "acme"})
		if err != nil {
			return nil, err
		}
		defer p.End()
		p.Sent(t.Context(), n)
		return p.Warnings(), nil
	}
	report := func() {
		t.Helper()
		if err := q.reportEgress(t.Context()); err != nil {
			t.Fatal(err)
		}
		q.stale()
	}
	if w, err := read(500); err != nil || len(w) != 0 {
		t.Fatal(w, err)
	}
	s.unknown.Store(2) // it arrives all the same
	report()
	if w, err := read(350); err != nil || len(w) != 0 {
		t.Fatal(w, err)
	}
	// What is not reported yet counts here.
	if w, err := read(200); err != nil || len(w) != 1 || !strings.Contains(w[0], "85%") {
		t.Fatal(w, err)
	}
	if _, err := read(1); !errors.Is(err, meta.ErrDenied) {
		t.Fatal(err)
	}
	report()
	u, _, err := raftmeta.Ask(t.Context(), s, meta.Local, state.GetUsage{Tenant: "acme"})
	if err != nil || u.Egress.DayBytes != 1050 || u.Egress.DayRequests != 3 {
		t.Fatalf("%+v, %v", u.Egress, err)
	}
	if _, err := read(1); !errors.Is(err, meta.ErrDenied) {
		t.Fatal(err)
	}
	// Publishing goes on.
	p, err := q.Admit(t.Context(), gateway.Charge{Tenant: "acme", Publish: true})
	if err != nil {
		t.Fatal(err)
	}
	p.Sent(t.Context(), 10)
	p.End()
	// An agent's report counts once, also when it comes twice.
	r := &Report{Node: "agent", Run: "r", Sequence: 1, Egress: []state.EgressSum{{Tenant: "acme", Bytes: 7, Requests: 1}}}
	for range 2 {
		if _, err := q.Below(r, false); err != nil {
			t.Fatal(err)
		}
	}
	report()
	if u, _, _ = raftmeta.Ask(t.Context(), s, meta.Local, state.GetUsage{Tenant: "acme"}); u.Egress.DayBytes != 1057 {
		t.Fatalf("%+v", u.Egress)
	}
	for _, bad := range []*Report{
		{Node: "agent", Wants: []Amount{{"acme", kinds, 1}}}, {Node: "agent", Wants: []Amount{{"acme", 0, -1}}},
		{Node: "agent", Egress: []state.EgressSum{{Tenant: "acme", Bytes: -1}}}, {Node: "agent", Egress: []state.EgressSum{{Tenant: "NO", Bytes: 1}}}, {},
	} {
		if _, err := q.Below(bad, false); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%+v is taken: %v", bad, err)
		}
	}
}

// Sessions reserve what they bring; what is refused or given up goes back; a server that
// crashed with reservations blocks nobody for longer than their lease.
func TestStorage(t *testing.T) {
	quota := int64(1000)
	s := newStore(t, meta.LimitsChange{StorageBytes: &quota})
	serve := func() *Quota { return newQuota(t, Config{Self: "s1", Metadata: s, Doer: s, Fresh: meta.Local}) }
	q := serve()
	ctx := t.Context()
	reserved := func() int64 {
		u, _, err := raftmeta.Ask(ctx, s, meta.Local, state.GetUsage{Tenant: "acme"})
		if err != nil {
			t.Fatal(err)
		}
		return u.Reserved
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	st := q.Storage()
	must(st.Reserve(ctx, "acme", "one", 400))
	must(st.Reserve(ctx, "acme", "two", 300))
	must(st.Reserve(ctx, "acme", "two", 250)) // it has that
	if err := st.Reserve(ctx, "acme", "three", 400); !errors.Is(err, meta.ErrDenied) {
		t.Fatal(err)
	}
	if st.Held("acme", "one") != 400 || st.Held("acme", "two") != 300 || st.Held("acme", "three") != 0 {
		t.Fatal("sessions hold something else")
	}
	index, _ := s.Applied()
	for range 10 { // what is not there is not asked for
		if err := st.Reserve(ctx, "acme", "three", 5000); !errors.Is(err, meta.ErrDenied) {
			t.Fatal(err)
		}
	}
	if now, _ := s.Applied(); now != index {
		t.Errorf("refusals cost %d entries of the log", now-index)
	}
	q.stale()
	st.Release("acme", "one")
	must(st.Reserve(ctx, "acme", "three", 400))
	must(st.renew(ctx))
	if got := reserved(); got != 700 {
		t.Fatalf("reserved are %d", got)
	}
	// Nobody reserves for a tenant without a quota, and nothing is asked.
	before := s.Asked("GetUsage")
	for i := range 100 {
		must(st.Reserve(ctx, "nobody", "x", int64(i)))
	}
	if asked := s.Asked("GetUsage") - before; asked > 2 {
		t.Errorf("the metadata was asked %d times", asked)
	}
	// The process dies; its successor says what it needs, which replaces the old word.
	next := serve()
	must(next.Storage().Reserve(ctx, "acme", "five", 900))
	if got := reserved(); got < 900 || got > 1000 {
		t.Fatalf("after the restart %d are reserved", got)
	}
	next.Storage().Settled("acme", "five")
	must(next.Storage().renew(ctx))
	if got := reserved(); got != 0 {
		t.Fatalf("in the end %d are reserved", got)
	}
	must(next.Storage().renew(ctx))
	if len(next.storage.tenants) != 0 || len(next.storage.told) != 0 {
		t.Error("tenants without sessions are remembered")
	}
}

// What sessions hold is never more than what was granted, and adds up.
func TestLedger(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var c ledgerCore
		now, free := time.Unix(0, 0), int64(10_000)
		for range rapid.IntRange(1, 60).Draw(r, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 400).Draw(r, "later")) * time.Second)
			id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "session")
			bytes := int64(rapid.IntRange(0, 6000).Draw(r, "bytes"))
			switch rapid.IntRange(0, 3).Draw(r, "act") {
			case 0, 1:
				if want := c.need(id, bytes); want > 0 {
					c.granted = min(want, free)
				}
				had := int64(0)
				if s := c.sessions[id]; s != nil {
					had = s.bytes
				}
				fits := c.held+max(0, bytes-had) <= c.granted
				if c.take(id, bytes, now) != fits {
					r.Fatalf("%d bytes, %d of %d held", bytes, c.held, c.granted)
				}
			case 2:
				if spent := rapid.Bool().Draw(r, "spent"); spent {
					free -= c.drop(id, true)
				} else {
					c.drop(id, false)
				}
			case 3:
				c.sweep(now)
				c.granted = min(c.held, free)
			}
			sum := int64(0)
			for _, s := range c.sessions {
				sum += s.bytes
			}
			if sum != c.held || c.held > c.granted || c.granted > 10_000 {
				r.Fatalf("sessions have %d, %d is counted, %d granted", sum, c.held, c.granted)
			}
		}
	})
}

// A call that waits for its turn in vain is told that the node is busy; it waits for
// nobody once the others are done.
func TestBusyNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQuota(t, Config{Self: "s", Metadata: book{}, Doer: nobody{}, Slots: 1})
		first, err := q.Admit(t.Context(), gateway.Charge{Tenant: "other"})
		if err != nil {
			t.Fatal(err)
		}
		second, err := q.Admit(t.Context(), gateway.Charge{Tenant: "acme"})
		if err != nil {
			t.Fatalf("a tenant's first turn waits: %v", err)
		}
		began := time.Now()
		third, err := q.Admit(t.Context(), gateway.Charge{Tenant: "acme"})
		if err != nil || time.Since(began) > holdMax+time.Millisecond {
			t.Fatalf("a turn that lasts keeps others out for %v: %v", time.Since(began), err)
		}
		for _, p := range []gateway.Pass{first, second, third} {
			p.Sent(t.Context(), 1000)
			p.End()
		}
		if q.turns.core.taken != 0 || q.turns.core.waiting != 0 {
			t.Errorf("%d turns are taken, %d waited for", q.turns.core.taken, q.turns.core.waiting)
		}
	})
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 20: "5 MiB", 3 << 50: "3072 TiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}

// What nodes say of tenants that there are none of is not remembered: names cost a node
// that was taken over nothing.
func TestLeaderForgetsWhatIsNoTenant(t *testing.T) {
	store := metatest.New(t)
	store.Must(state.CreateTenant{Name: "acme"})
	q := newQuota(t, Config{Self: "s1", Metadata: store, Doer: store})
	r := &Report{Node: "s2", Run: "r", Sequence: 1, Wants: []Amount{{"acme", Uploads, 1}}}
	for i := range 1000 {
		r.Wants = append(r.Wants, Amount{meta.TenantName(fmt.Sprintf("t%d", i)), Uploads, 1})
	}
	if _, err := q.Below(r, true); err != nil {
		t.Fatal(err)
	}
	if len(q.tenants) != 1 || q.tenants["acme"] == nil {
		t.Errorf("%d tenants are remembered", len(q.tenants))
	}
}
