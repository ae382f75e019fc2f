package dht

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/dht/host"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const testCluster = "test"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// await calls ok until it is true, with pauses; the deadline is only against hangs.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("%s did not happen", what)
		}
	}
}

// node is an enrolled node with its swarm host.
type node struct {
	*host.Host
	meta.Node
}

func (n node) id() meta.NodeID { return n.Node.ID }

// site is a set of nodes that know one another.
type site struct {
	t     testing.TB
	nodes []node
}

func (s *site) add(region meta.RegionName, zone string, role meta.Role) node {
	s.t.Helper()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	h, err := host.New(host.Config{Key: key, Plane: host.Swarm, Role: role, Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { h.Close() })
	n := node{h, meta.Node{ID: h.NodeID(), Role: role, Region: region, Zone: zone, Swarm: h.Advertised()}}
	s.nodes = append(s.nodes, n)
	return n
}

// enrol makes every node know every other.
func (s *site) enrol() {
	var all []meta.Node
	for _, n := range s.nodes {
		all = append(all, n.Node)
	}
	for _, n := range s.nodes {
		n.SetRoster(all)
	}
}

// start runs f until the test ends and waits for its end.
func start(t testing.TB, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// rights is a Granter: it knows roots, and nodes that may not have them.
type rights struct {
	mu     sync.Mutex
	roots  map[digest.CID]bool
	denied map[meta.NodeID]bool
	signed int
	err    error
	gate   chan struct{} // when set, Grant waits for it
}

func (r *rights) know(roots ...digest.CID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.roots == nil {
		r.roots = map[digest.CID]bool{}
	}
	for _, root := range roots {
		r.roots[root] = true
	}
}

func (r *rights) Grant(ctx context.Context, p meta.NodeID, root digest.CID) ([]byte, time.Time, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if gate := r.gate; gate != nil {
		r.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
		}
		r.mu.Lock()
	}
	switch {
	case r.err != nil:
		return nil, time.Time{}, r.err
	case r.denied[p]:
		return nil, time.Time{}, fmt.Errorf("node %s: %w", p, meta.ErrDenied)
	case !r.roots[root]:
		return nil, time.Time{}, fmt.Errorf("blob %s: %w", root, meta.ErrNotFound)
	}
	r.signed++
	return []byte("grant for " + p), time.Now().Add(time.Minute), nil
}

// shelf is a Maps: roots with their maps and small content.
type shelf struct {
	mu      sync.Mutex
	maps    map[digest.CID][]byte
	inlines map[digest.CID][]byte
	asked   int
}

func (s *shelf) put(encoded, inline []byte) digest.CID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.maps == nil {
		s.maps, s.inlines = map[digest.CID][]byte{}, map[digest.CID][]byte{}
	}
	root := digest.Sum(encoded)
	s.maps[root], s.inlines[root] = encoded, inline
	return root
}

func (s *shelf) Map(_ context.Context, root digest.CID) ([]byte, []byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if m, ok := s.maps[root]; ok {
		return m, s.inlines[root], nil
	}
	return nil, nil, meta.ErrUnavailable
}

func (s *shelf) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// registrarOn runs a registrar and waits until it answers.
func registrarOn(t testing.TB, n node, m Maps, g Granter, limits RegistrarLimits, with ...func(*RegistrarConfig)) (*Registrar, func()) {
	t.Helper()
	cfg := RegistrarConfig{
		Host: n.Host, Cluster: testCluster, Self: n.Node, Roster: n.Host, Maps: m, Granter: g, Limits: limits,
	}
	for _, f := range with {
		f(&cfg)
	}
	r, err := NewRegistrar(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop := start(t, r.Run)
	await(t, "the registrar's start", func() bool {
		for _, p := range n.Host.Mux().Protocols() {
			if p == RegistrarProtocol(testCluster) {
				return true
			}
		}
		return false
	})
	return r, stop
}

func finderOn(t testing.TB, n node, d *DHT) *Finder {
	t.Helper()
	f, err := NewFinder(FinderConfig{Host: n.Host, Cluster: testCluster, Self: n.Node, Roster: n.Host, DHT: d})
	if err != nil {
		t.Fatal(err)
	}
	start(t, f.Run)
	return f
}

func has(peers []Peer, id meta.NodeID) (Peer, bool) {
	for _, p := range peers {
		if p.ID == id {
			return p, true
		}
	}
	return Peer{}, false
}

var rootCount atomic.Uint64

func someRoot() digest.CID { return digest.Sum(fmt.Appendf(nil, "root %d", rootCount.Add(1))) }

// rootFor returns a root for which the server is asked first.
func rootFor(t testing.TB, first meta.NodeID, others ...meta.NodeID) digest.CID {
	for range 10000 {
		root, best := someRoot(), true
		for _, o := range others {
			best = best && score(root, first) > score(root, o)
		}
		if best {
			return root
		}
	}
	t.Fatal("no root prefers the server")
	return digest.CID{}
}

func peerIDOf(n node) peer.ID { return n.Host.ID() }
