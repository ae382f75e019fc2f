package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// auditors are servers of a test cluster that sign its audit log.
type auditors struct {
	t         *testing.T
	authority *trust.Authority
}

func newAuditors(t *testing.T) *auditors {
	t.Helper()
	authority, err := trust.NewAuthority("test", time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return &auditors{t, authority}
}

func (a *auditors) watcher(path string, metadata raftmeta.Asker) *watcher {
	a.t.Helper()
	w, err := newWatcher(path, metadata, func() audit.Trust { return trustsServers(a.authority.Root()) }, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		a.t.Fatal(err)
	}
	return w
}

func (a *auditors) notary(region meta.RegionName, leads bool, path string, s *metatest.Store) *notary {
	a.t.Helper()
	key, err := trust.NewKey()
	if err != nil {
		a.t.Fatal(err)
	}
	chain, err := a.authority.Issue(meta.Node{ID: key.ID(), Role: meta.RoleServer, Region: region}, []string{"127.0.0.1"}, time.Now().Add(-time.Hour))
	if err != nil {
		a.t.Fatal(err)
	}
	return &notary{
		watcher: a.watcher(path, s), metadata: s, doer: s, leads: func() bool { return leads }, turn: func() int { return 0 },
		region: region, key: key, chain: func() [][]byte { return chain }, log: slog.New(slog.DiscardHandler),
	}
}

// tenants makes n changes.
func tenants(s *metatest.Store, n int, name string) {
	for i := range n {
		s.Must(state.CreateTenant{Name: meta.TenantName(fmt.Sprint(name, i))})
	}
}

func checkpoint(t *testing.T, s *metatest.Store, trusted audit.Trust) (audit.Checkpoint, []meta.RegionName) {
	t.Helper()
	log, _, err := raftmeta.Ask(t.Context(), s, meta.Local, state.GetAuditLog{})
	if err != nil || log.Checked == nil {
		t.Fatalf("no checkpoint: %v", err)
	}
	point, regions, err := log.Checked.Verify(trusted)
	if err != nil {
		t.Fatal(err)
	}
	return point, regions
}

// TestNotary: the leader signs a minute, other regions sign what continues, once each.
func TestNotary(t *testing.T) {
	a, dir, s := newAuditors(t), t.TempDir(), metatest.New(t)
	leader := a.notary("eu", true, filepath.Join(dir, "eu"), s)
	other := a.notary("us", false, filepath.Join(dir, "us"), s)
	trusted := leader.watcher.trust()
	now := time.Now()
	step := func(at time.Time, who ...*notary) {
		t.Helper()
		for _, n := range who {
			if err := n.step(t.Context(), at); err != nil {
				t.Fatal(err)
			}
		}
	}
	tenants(s, 10, "a")
	step(now, leader, other, other, leader)
	first, regions := checkpoint(t, s, trusted)
	if !slices.Equal(regions, []meta.RegionName{"eu", "us"}) || first.Size == 0 {
		t.Fatalf("%+v is signed in %v", first, regions)
	}
	tenants(s, 10, "b")
	step(now.Add(30*time.Second), leader, other)
	if again, _ := checkpoint(t, s, trusted); again != first {
		t.Errorf("a checkpoint after half a minute: %+v", again)
	}
	step(now.Add(61*time.Second), leader, other, leader)
	second, regions := checkpoint(t, s, trusted)
	if second.Size != first.Size+10 || len(regions) != 2 {
		t.Errorf("%+v is signed in %v", second, regions)
	}
	step(now.Add(3*time.Minute), leader, other)
	if again, _ := checkpoint(t, s, trusted); again != second {
		t.Errorf("a checkpoint of nothing new: %+v", again)
	}
}

// TestNotaryRefusesARewoundLog: a majority puts another history in the place of the log.
// The server of another region does not sign it, and tells.
func TestNotaryRefusesARewoundLog(t *testing.T) {
	a, dir, s := newAuditors(t), t.TempDir(), metatest.New(t)
	honest := filepath.Join(dir, "us")
	tenants(s, 10, "a")
	for _, n := range []*notary{a.notary("eu", true, filepath.Join(dir, "eu"), s), a.notary("us", false, honest, s)} {
		if err := n.step(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for name, entries := range map[string]int{"shorter": 3, "of the same length": 10, "longer": 30} {
		other := metatest.New(t)
		tenants(other, entries, "b")
		evil := a.notary("eu", true, filepath.Join(dir, "evil"+fmt.Sprint(entries)), other)
		if err := evil.step(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		n := a.notary("us", false, honest, other) // It has started again, too.
		err := n.step(t.Context(), time.Now())
		if _, ok := errors.AsType[*audit.RewoundError](err); !ok {
			t.Errorf("a history that is %s: %v", name, err)
		}
		n.watcher.alarm(err)
		if n.watcher.rewound.Load() == nil {
			t.Errorf("a history that is %s: nobody is told", name)
		}
		if _, regions := checkpoint(t, other, n.watcher.trust()); slices.Contains(regions, "us") {
			t.Errorf("a history that is %s was signed in %v", name, regions)
		}
	}
}

// TestWatcherOfADamagedFile: what was seen last is not forgotten in silence.
func TestWatcherOfADamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "witness")
	for _, text := range []string{"", "{", `{"checkpoint":"nothing signed"}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := newWatcher(path, metatest.New(t), nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestWatcherRefusesOldCheckpoints: an agent that is shown an older log keeps the later
// one, and says so; a server that is only behind is asked again.
func TestWatcherRefusesOldCheckpoints(t *testing.T) {
	a, dir, s, old := newAuditors(t), t.TempDir(), metatest.New(t), metatest.New(t)
	path := filepath.Join(dir, "agent")
	tenants(s, 20, "a")
	tenants(old, 5, "a")
	for _, on := range []*metatest.Store{s, old} {
		if err := a.notary("eu", true, filepath.Join(t.TempDir(), "eu"), on).step(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	w := a.watcher(path, s)
	if err := w.look(t.Context()); err != nil || w.rewound.Load() != nil {
		t.Fatal(err)
	}
	kept := w.witness.Checkpoint
	w = a.watcher(path, old)
	if err := w.look(t.Context()); err == nil || w.rewound.Load() == nil || w.witness.Checkpoint != kept {
		t.Errorf("an old log: %v, kept %q", err, w.witness.Checkpoint)
	}
	w.metadata = behind{s, old}
	if err := w.look(t.Context()); err != nil || w.rewound.Load() != nil {
		t.Errorf("a server that is behind: %v", err)
	}
	w.metadata = forger{s, a}
	if err := w.look(t.Context()); !errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("a checkpoint by a stranger: %v", err)
	}
}

// behind answers strong reads from one store and others from another.
type behind struct{ strong, bounded *metatest.Store }

func (b behind) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	if f.Mode == meta.ModeStrong {
		return b.strong.Answer(ctx, f, q)
	}
	return b.bounded.Answer(ctx, f, q)
}

// forger signs with the key of a node that is no server.
type forger struct {
	*metatest.Store
	a *auditors
}

func (f forger) Answer(ctx context.Context, fresh meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	asOf, err := f.Store.Answer(ctx, fresh, q)
	if log, ok := q.Into().(*state.AuditLog); ok && err == nil {
		key, err := trust.NewKey()
		if err != nil {
			return asOf, err
		}
		chain, err := f.a.authority.Issue(meta.Node{ID: key.ID(), Role: meta.RoleAgent, Region: "eu"}, []string{"127.0.0.1"}, time.Now().Add(-time.Hour))
		if err != nil {
			return asOf, err
		}
		point, err := log.Checked.Check()
		if err != nil {
			return asOf, err
		}
		log.Checked = &audit.Signed{}
		return asOf, audit.Sign(point, audit.Signer{Node: key.ID(), Region: "eu", Chain: chain}, key.Private(), log.Checked)
	}
	return asOf, err
}

// TestAnchors: what moved is anchored, once; what could not be is anchored later; a head
// that goes back is counted.
func TestAnchors(t *testing.T) {
	s := metatest.New(t)
	head := func(node meta.NodeID, seq uint64) audit.Head {
		return audit.Head{Node: node, Seq: seq, Sum: strings.Repeat(fmt.Sprint(seq%10), 64), Time: 1}
	}
	own := head("s1", 1)
	a := &anchors{metadata: s, doer: s, self: "s1", own: func() audit.Head { return own }, log: slog.New(slog.DiscardHandler)}
	chain := func(node meta.NodeID) audit.Chain {
		t.Helper()
		c, _, err := raftmeta.Ask(t.Context(), s, meta.Local, state.GetChain{Node: node})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	size := func() uint64 {
		log, _, err := raftmeta.Ask(t.Context(), s, meta.Local, state.GetAuditLog{})
		if err != nil {
			t.Fatal(err)
		}
		return log.Size
	}
	step := func() {
		t.Helper()
		if err := a.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 1200 {
		if err := a.tell(head(meta.NodeID(fmt.Sprint("a", i)), 7)); err != nil {
			t.Fatal(err)
		}
	}
	before := size()
	step()
	if got := size() - before; got != 3 || chain("s1").Head != own || chain("a1199").Head.Seq != 7 {
		t.Errorf("%d entries anchor 1,201 chains", got)
	}
	before = size()
	step()
	if size() != before {
		t.Error("what did not move is anchored again")
	}
	if err := a.tell(head("a5", 9)); err != nil {
		t.Fatal(err)
	}
	s.Break(&meta.UnavailableError{Reason: "no_quorum"})
	if err := a.step(t.Context()); err == nil {
		t.Error("anchored without a quorum")
	}
	s.Break(nil)
	if err := a.tell(head("a6", 3)); err != nil {
		t.Fatal(err)
	}
	step()
	step()
	if chain("a5").Head.Seq != 9 {
		t.Errorf("what waited is %+v", chain("a5"))
	}
	if c := chain("a6"); c.Rewound != 1 || c.Lost != 4 || c.Head.Seq != 3 {
		t.Errorf("a chain that went back is %+v", c)
	}
}

// failing is a Doer whose first commands fail.
type failing struct {
	raftmeta.Doer
	left int
}

func (f *failing) Do(ctx context.Context, o state.Origin, c state.Command) (raftmeta.Receipt, error) {
	if f.left > 0 {
		f.left--
		return raftmeta.Receipt{}, &meta.UnavailableError{Reason: "no_quorum"}
	}
	return f.Doer.Do(ctx, o, c)
}

// TestAnchorsWait: agents tell the end of a chain once, so those behind a part that could
// not be anchored wait with it.
func TestAnchorsWait(t *testing.T) {
	s := metatest.New(t)
	a := &anchors{metadata: s, doer: &failing{Doer: s, left: 1}, self: "s1", own: func() audit.Head { return audit.Head{} }, log: slog.New(slog.DiscardHandler)}
	const chains = 2*state.MaxAnchors + 1
	for i := range chains {
		if err := a.tell(audit.Head{Node: meta.NodeID(fmt.Sprint("a", i)), Seq: 1, Sum: strings.Repeat("1", 64), Time: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.step(t.Context()); err == nil {
		t.Fatal("anchored by a command that failed")
	}
	if err := a.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range chains {
		if c, _, err := raftmeta.Ask(t.Context(), s, meta.Local, state.GetChain{Node: meta.NodeID(fmt.Sprint("a", i))}); err != nil || c.Head.Seq != 1 {
			t.Fatalf("the chain of a%d is %+v: %v", i, c, err)
		}
	}
}

// What is wrong with the log and with chains is told where people look.
func TestAuditTroubleIsShown(t *testing.T) {
	a, s := newAuditors(t), metatest.New(t)
	s.Must(state.SetLevel{Level: state.Level})
	key, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	server := meta.Node{ID: key.ID(), Role: meta.RoleServer, Region: "eu"}
	s.Admit(server)
	w := a.watcher(filepath.Join(t.TempDir(), "witness"), s)
	metrics := prometheus.NewRegistry()
	h := newAuditHealth(w, s, slog.New(slog.DiscardHandler), metrics)
	anchor := func(seq uint64, sum string) {
		t.Helper()
		s.Must(state.AnchorChains{Server: server.ID, Heads: []audit.Head{{Node: "host-1", Seq: seq, Sum: strings.Repeat(sum, 64)}, {Node: "host-2", Seq: seq + 20, Sum: strings.Repeat(fmt.Sprint(seq%10), 64)}}})
		if err := h.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	anchor(10, "a")
	anchor(20, "b")
	if got := h.trouble(); got.Rewound != "" || len(got.Chains) != 0 {
		t.Errorf("all is well, and it says %+v", got)
	}
	s.Must(state.AnchorChains{Server: server.ID, Heads: []audit.Head{{Node: "host-1", Seq: 15, Sum: strings.Repeat("c", 64)}}})
	if err := h.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.alarm(&audit.RewoundError{Why: "it has fewer entries"})
	got := h.trouble()
	if len(got.Chains) != 1 || got.Chains[0].Node != "host-1" || got.Chains[0].Lost != 5 || got.Chains[0].Times != 1 || got.Chains[0].Last == 0 {
		t.Errorf("chains: %+v", got.Chains)
	}
	if !strings.Contains(got.Rewound, "fewer entries") {
		t.Errorf("the log: %q", got.Rewound)
	}
	families, err := metrics.Gather()
	if err != nil || len(families) != 1 || families[0].GetMetric()[0].GetGauge().GetValue() != 1 {
		t.Errorf("metrics: %v %v", families, err)
	}
}
