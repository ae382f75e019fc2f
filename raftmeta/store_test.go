package raftmeta_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/consensus"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// storeTiming is patient with a machine that does other things too.
var storeTiming = consensus.Timing{
	Heartbeat: 400 * time.Millisecond, Election: 400 * time.Millisecond, Lease: 200 * time.Millisecond, Commit: 5 * time.Millisecond,
	Members: 100 * time.Millisecond, Stable: 200 * time.Millisecond, Lost: time.Hour,
}

// member is a server of a test.
type member struct {
	t     testing.TB
	host  host.Host
	node  meta.Node
	cfg   raftmeta.StoreConfig
	store *raftmeta.Store
	stop  func()
}

// newMember makes the host and the record of a server, the first one founds the cluster.
func newMember(t testing.TB, region meta.RegionName, first *member) *member {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.Transport(tcp.NewTCPTransport),
		libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	m := &member{t: t, host: h, node: meta.Node{ID: meta.NodeID(h.ID().String()), Role: meta.RoleServer, Region: region}}
	m.cfg = raftmeta.StoreConfig{
		Dir: t.TempDir(), Self: m.node.ID, Cluster: "c1", Host: h, Timing: storeTiming,
		Fatal: func(err error) { t.Errorf("%s: %v", region, err) },
	}
	if first == nil {
		m.cfg.Bootstrap = &state.Bootstrap{
			Cluster: meta.Cluster{ID: "c1", Level: state.Level, Epoch: 1}, Node: m.node, Region: meta.Region{Name: region, Primary: true},
		}
	} else {
		m.cfg.Servers = []meta.Node{first.node, m.node}
	}
	t.Cleanup(func() {
		m.halt()
		_ = h.Close()
	})
	return m
}

func introduce(members ...*member) {
	for _, a := range members {
		for _, b := range members {
			if a != b {
				a.host.Peerstore().AddAddrs(b.host.ID(), b.host.Addrs(), peerstore.PermanentAddrTTL)
			}
		}
	}
}

func (m *member) start() {
	m.t.Helper()
	store, err := raftmeta.OpenStore(m.cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	m.store = store
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, store.Close()); err != nil {
			m.t.Error(err)
		}
	})
}

func (m *member) halt() {
	if m.stop != nil {
		m.stop()
	}
}

var operator = state.Origin{Principal: "admin:bootstrap"}

func (m *member) do(ctx context.Context, c state.Command) raftmeta.Receipt {
	m.t.Helper()
	r, err := m.store.Do(ctx, operator, c)
	if err != nil {
		m.t.Fatalf("%s: %v", state.Name(c), err)
	}
	return r
}

// admit joins m through by, as an operator with a token does.
func (m *member) admit(ctx context.Context, by *member) {
	m.t.Helper()
	token := meta.JoinToken{ID: rand.Text(), Role: meta.RoleServer, Region: m.node.Region, Uses: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour))}
	by.do(ctx, state.CreateJoinToken{Token: token})
	by.do(ctx, state.AdmitNode{TokenSecretHash: token.ID, Node: m.node})
}

// newStores starts a cluster of count servers, one a region.
func newStores(ctx context.Context, t testing.TB, count int) []*member {
	t.Helper()
	var all []*member
	for i := range count {
		var first *member
		if i > 0 {
			first = all[0]
		}
		all = append(all, newMember(t, meta.RegionName(fmt.Sprintf("r%d", i+1)), first))
		introduce(all...)
		if i > 0 {
			all[i].admit(ctx, first)
		}
		all[i].start()
		if err := all[i].store.Ready(ctx); err != nil {
			t.Fatal(err)
		}
	}
	await(ctx, t, "all voters", func() bool { return len(all[0].store.Status().Voters) == count-1+count%2 })
	return all
}

func await(ctx context.Context, t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		}
	}
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestStoreFoundsAndReturns(t *testing.T) {
	ctx := within(t)
	m := newStores(ctx, t, 1)[0]
	r := m.do(ctx, state.CreateTenant{Name: "acme"})
	if tenant, ok := r.Value.(meta.Tenant); !ok || tenant.Name != "acme" || tenant.Created == 0 || tenant.CreatedBy != operator.Principal {
		t.Errorf("%+v", r.Value)
	}
	if r.Token.Epoch != 1 || r.Token.Index == 0 {
		t.Errorf("token %s", r.Token)
	}
	tenant, asOf, err := raftmeta.Ask(ctx, m.store, meta.Strong, state.GetTenant{Name: "acme"})
	if err != nil || tenant.Name != "acme" || asOf.Index < r.Token.Index || asOf.Mode != meta.ModeStrong || asOf.Epoch != 1 {
		t.Errorf("%+v, %+v, %v", tenant, asOf, err)
	}
	if _, asOf, err := raftmeta.Ask(ctx, m.store, meta.Strong, state.GetTenant{Name: "none"}); !errors.Is(err, meta.ErrNotFound) || asOf.Index == 0 {
		t.Errorf("%+v, %v", asOf, err)
	}
	st := m.store.Status()
	if st.State != "Leader" || st.Level != state.Level || st.Epoch != 1 || st.Leader != m.node.ID {
		t.Errorf("%+v", st)
	}
	if _, err := json.Marshal(st); err != nil {
		t.Error(err)
	}
	m.halt()
	m.start()
	if err := m.store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, err := raftmeta.Ask(ctx, m.store, meta.Strong, state.GetTenant{Name: "acme"}); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func TestStoreNeedsToKnowSomebody(t *testing.T) {
	m := newMember(t, "r1", nil)
	m.cfg.Bootstrap = nil
	if _, err := raftmeta.OpenStore(m.cfg); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("a server without state, servers or bootstrap: %v", err)
	}
	m.cfg.Profile = "moon"
	if _, err := raftmeta.OpenStore(m.cfg); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("an unknown profile: %v", err)
	}
}

func TestStoreRefusals(t *testing.T) {
	ctx := within(t)
	all := newStores(ctx, t, 3)
	for _, m := range all {
		if _, err := m.store.Do(ctx, operator, state.CreateTenant{Name: "Not Allowed"}); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("an invalid command: %v", err)
		}
		// Decided by the state, on the leader and here alike.
		if _, err := m.store.Do(ctx, operator, state.RemoveRepository{Ref: meta.RepoRef{Tenant: "acme", Name: "none"}}); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("a refused command: %v", err)
		}
	}
}

func TestStoreReadsYourWritesEverywhere(t *testing.T) {
	ctx := within(t)
	all := newStores(ctx, t, 3)
	for i, writer := range all {
		name := meta.TenantName(fmt.Sprintf("t%d", i))
		r := writer.do(ctx, state.CreateTenant{Name: name})
		for _, reader := range all {
			for _, f := range []meta.Freshness{meta.Strong, {Mode: meta.ModeLocal, After: r.Token}, {Mode: meta.ModeBounded, MaxAge: time.Hour, After: r.Token}} {
				if _, asOf, err := raftmeta.Ask(ctx, reader.store, f, state.GetTenant{Name: name}); err != nil || asOf.Index < r.Token.Index {
					t.Errorf("%s read at %s: %+v, %v", f.Mode, reader.node.Region, asOf, err)
				}
			}
		}
	}
	if _, _, err := raftmeta.Ask(ctx, all[0].store, meta.Freshness{Mode: meta.ModeLocal, After: meta.Token{Epoch: 0, Index: 1}}, state.GetCluster{}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("a token from before a recovery: %v", err)
	}
	if _, _, err := raftmeta.Ask(ctx, all[0].store, meta.Freshness{Mode: meta.ModeLocal, After: meta.Token{Epoch: 9, Index: 1}}, state.GetCluster{}); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("a token of an epoch to come: %v", err)
	}
}

func TestStoreRepeatsARequestOnce(t *testing.T) {
	ctx := within(t)
	all := newStores(ctx, t, 3)
	origin := operator
	origin.RequestID = "once"
	var first raftmeta.Receipt
	for i := range 6 {
		r, err := all[i%3].store.Do(ctx, origin, state.CreateTenant{Name: "acme"})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = r
		} else if r.Value != first.Value {
			t.Errorf("%+v, first %+v", r.Value, first.Value)
		}
	}
}

// All copies of the state are one, also after the leader goes and a server that
// was away is fed from a snapshot or the log.
func TestStoreCopiesAgree(t *testing.T) {
	ctx := within(t)
	all := newStores(ctx, t, 3)
	for i := range 30 {
		all[i%3].do(ctx, state.CreateTenant{Name: meta.TenantName(fmt.Sprintf("t%d", i))})
	}
	leader := -1
	await(ctx, t, "a leader", func() bool { // an election may be under way
		leader = slices.IndexFunc(all, func(m *member) bool { return m.store.Leader() == m.node.ID })
		return leader >= 0
	})
	all[leader].halt()
	rest := slices.DeleteFunc(slices.Clone(all), func(m *member) bool { return m == all[leader] })
	for i := range 30 {
		rest[i%2].do(ctx, state.CreateTenant{Name: meta.TenantName(fmt.Sprintf("u%d", i))})
	}
	all[leader].start()
	var token meta.Token
	once := operator
	once.RequestID = "last" // a try whose outcome is unknown may have been applied
	await(ctx, t, "a write through the one that returned", func() bool {
		r, err := all[leader].store.Do(ctx, once, state.CreateTenant{Name: "last"})
		token = r.Token
		return err == nil
	})
	type at struct {
		index uint64
		sum   [32]byte
	}
	await(ctx, t, "equal hashes at one index", func() bool {
		var sums []at
		for _, m := range all {
			if _, _, err := raftmeta.Ask(ctx, m.store, meta.Freshness{Mode: meta.ModeLocal, After: token}, state.GetTenant{Name: "last"}); err != nil {
				t.Fatal(err)
			}
			index, sum, err := m.store.Hash(ctx)
			if err != nil {
				t.Fatal(err)
			}
			sums = append(sums, at{index, sum})
		}
		for _, s := range sums[1:] {
			if s.index == sums[0].index && s.sum != sums[0].sum {
				t.Fatalf("copies differ at index %d", s.index)
			}
		}
		return !slices.ContainsFunc(sums, func(s at) bool { return s.index != sums[0].index })
	})
}

// A server joins while another leads than the one that founded the cluster: the
// past that it replays does not know the leader.
func TestStoreJoinsUnderAnotherLeader(t *testing.T) {
	ctx := within(t)
	all := newStores(ctx, t, 3)
	all[0].halt()
	await(ctx, t, "another leads", func() bool { l := all[1].store.Leader(); return l != "" && l != all[0].node.ID })
	all[0].start()
	fourth := newMember(t, "r4", all[0])
	introduce(append(all, fourth)...)
	fourth.admit(ctx, all[1])
	fourth.cfg.Servers = []meta.Node{all[0].node, all[1].node, all[2].node, fourth.node}
	fourth.start()
	if err := fourth.store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	fourth.do(ctx, state.CreateTenant{Name: "acme"})
}

// A server that joins when the log no longer reaches back gets the state itself.
func TestStoreJoinsBySnapshot(t *testing.T) {
	ctx := within(t)
	first := newMember(t, "r1", nil)
	first.cfg.Snapshots = consensus.Snapshots{Every: 20 * time.Millisecond, Entries: 16, Trailing: 1, SegmentBytes: 4 << 10}
	first.start()
	if err := first.store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		first.do(ctx, state.CreateTenant{Name: meta.TenantName(fmt.Sprintf("t%d", i))})
	}
	await(ctx, t, "a snapshot", func() bool { return first.store.Status().Snapshot > 20 })
	second := newMember(t, "r2", first)
	introduce(first, second)
	second.admit(ctx, first)
	second.start()
	if err := second.store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, err := raftmeta.Ask(ctx, second.store, meta.Strong, state.GetTenant{Name: "t0"}); err != nil {
		t.Error(err)
	}
	if n := second.store.Status().Snapshot; n == 0 {
		t.Error("it came without a snapshot")
	}
	second.do(ctx, state.CreateTenant{Name: "after"})
	second.halt()
	second.start()
	if err := second.store.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if _, _, err := raftmeta.Ask(ctx, second.store, meta.Strong, state.GetTenant{Name: "after"}); err != nil {
		t.Error(err)
	}
}

func TestStoreWatch(t *testing.T) {
	ctx := within(t)
	all := newStores(ctx, t, 3)
	r := all[0].do(ctx, state.CreateTenant{Name: "acme"})
	for change, err := range all[2].store.Watch(ctx, r.Token.Index-1) {
		if err != nil {
			t.Fatal(err)
		}
		if change.Kind == feed.KindTenant {
			if change.Name != "acme" || change.Index != r.Token.Index {
				t.Errorf("%+v", change)
			}
			break
		}
	}
}

func TestStoreRemovesAServer(t *testing.T) {
	ctx := within(t)
	all := newStores(ctx, t, 3)
	gone := all[2]
	all[0].do(ctx, state.RemoveNode{ID: gone.node.ID, Force: true})
	await(ctx, t, "the removed server is out", func() bool {
		st := all[0].store.Status()
		return !slices.Contains(st.Voters, gone.node.ID) && !slices.Contains(st.NonVoters, gone.node.ID)
	})
	gone.halt()
	all[1].do(ctx, state.CreateTenant{Name: "acme"})
}

// An agent's record among those of servers never becomes a member.
func TestStoreAgentsAreNoMembers(t *testing.T) {
	ctx := within(t)
	m := newStores(ctx, t, 1)[0]
	token := meta.JoinToken{ID: "agents", Role: meta.RoleAgent, Region: "r1", Uses: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour))}
	m.do(ctx, state.CreateJoinToken{Token: token})
	agent := newMember(t, "r1", m)
	agent.node.Role = meta.RoleAgent
	m.do(ctx, state.AdmitNode{TokenSecretHash: token.ID, Node: agent.node})
	introduce(m, agent)
	s, err := agent.host.NewStream(ctx, m.host.ID(), "/shoal/c1/round/1")
	if err == nil {
		_, _ = s.Write([]byte{1, 0xa0})
		if _, err = s.Read(make([]byte, 1)); err == nil {
			t.Error("an agent's question is answered")
		}
	}
	if st := m.store.Status(); len(st.Voters)+len(st.NonVoters) != 1 {
		t.Errorf("%+v", st)
	}
}

// BenchmarkCommits measures durable commands a second: fsynced on a majority,
// applied, answered.
func BenchmarkCommits(b *testing.B) {
	for _, servers := range []int{1, 3} {
		for _, clients := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("servers=%d/clients=%d", servers, clients), func(b *testing.B) {
				ctx := within(b)
				all := newStores(ctx, b, servers)
				leader := all[0]
				for _, m := range all {
					if m.store.Leader() == m.node.ID {
						leader = m
					}
				}
				benchClients(b, clients, func(i int) error {
					_, err := leader.store.DoHere(ctx, operator, state.PutRegion{Region: meta.Region{Name: meta.RegionName(fmt.Sprintf("x%d", i%1000))}})
					return err
				})
			})
		}
	}
}

// BenchmarkStrongReads measures linearizable reads a second at a server that does
// not lead.
func BenchmarkStrongReads(b *testing.B) {
	for _, clients := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("servers=3/clients=%d", clients), func(b *testing.B) {
			ctx := within(b)
			all := newStores(ctx, b, 3)
			reader := all[0]
			for _, m := range all {
				if m.store.Leader() != m.node.ID {
					reader = m
				}
			}
			benchClients(b, clients, func(int) error {
				_, _, err := raftmeta.Ask(ctx, reader.store, meta.Strong, state.GetCluster{})
				return err
			})
		})
	}
}

// benchClients does b.N operations by so many clients.
func benchClients(b *testing.B, clients int, do func(i int) error) {
	var group sync.WaitGroup
	work := make(chan int)
	for range clients {
		group.Go(func() {
			for i := range work {
				if err := do(i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	b.ResetTimer()
	for i := range b.N {
		work <- i
	}
	close(work)
	group.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}
