package swarm_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/swarm"
	"github.com/shoal-registry/shoal/verify/digest"
)

// patience bounds every wait; it only guards against hangs.
const patience = 60 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// town is a region of nodes on loopback with a registrar in memory.
type town struct {
	t testing.TB

	mu      sync.Mutex
	nodes   []*node
	maps    map[digest.CID][]byte
	inline  map[digest.CID][]byte
	members map[digest.CID]map[meta.NodeID]swarm.Peer
	denied  map[meta.NodeID]bool
	expires time.Duration
	refuse  error // of every Join
}

type node struct {
	*swarm.Swarm
	town  *town
	host  host.Host
	store store.Store
	self  swarm.Peer
	reg   *prometheus.Registry
	stop  context.CancelFunc
	ended chan struct{}
	joins int
}

func newTown(t testing.TB) *town {
	return &town{
		t: t, maps: map[digest.CID][]byte{}, inline: map[digest.CID][]byte{},
		members: map[digest.CID]map[meta.NodeID]swarm.Peer{}, denied: map[meta.NodeID]bool{}, expires: time.Minute,
	}
}

func newHost(t testing.TB) host.Host {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(
		libp2p.Identity(key), libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
	)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// settle is one node's config before it is made.
type settle func(*swarm.Config)

func server(c *swarm.Config)             { c.Self.Server = true }
func region(name meta.RegionName) settle { return func(c *swarm.Config) { c.Self.Region = name } }
func limits(l swarm.Limits) settle       { return func(c *swarm.Config) { c.Limits = l } }
func holding(s store.Store) settle       { return func(c *swarm.Config) { c.Store = s } }
func (w *town) add(with ...settle) *node { w.t.Helper(); return w.addOn(newHost(w.t), with...) }
func (w *town) logs() *slog.Logger {
	if os.Getenv("SWARM_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (w *town) addOn(h host.Host, with ...settle) *node {
	w.t.Helper()
	n := &node{town: w, host: h, reg: prometheus.NewRegistry(), ended: make(chan struct{})}
	cfg := swarm.Config{
		Host: h, Cluster: "test", Store: store.NewMemory(), Authorizer: w, Metrics: n.reg, Log: w.logs(),
		Self: swarm.Peer{ID: meta.NodeID(h.ID().String()), Region: "eu"},
	}
	cfg.Finder = &finder{n}
	for _, f := range with {
		f(&cfg)
	}
	n.store, n.self = cfg.Store, cfg.Self
	for _, a := range h.Addrs() {
		n.self.Addrs = append(n.self.Addrs, a.String())
	}
	w.mu.Lock()
	for _, other := range w.nodes { // as the roster does
		h.Peerstore().AddAddrs(other.host.ID(), other.host.Addrs(), peerstore.PermanentAddrTTL)
		other.host.Peerstore().AddAddrs(h.ID(), h.Addrs(), peerstore.PermanentAddrTTL)
	}
	w.nodes = append(w.nodes, n)
	w.mu.Unlock()
	var err error
	if n.Swarm, err = swarm.New(cfg); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	go func() {
		defer close(n.ended)
		if err := n.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	w.t.Cleanup(n.kill)
	return n
}

// kill stops a node as a crash would: its connections end.
func (n *node) kill() {
	n.stop()
	_ = n.host.Close()
	<-n.ended
}

// put stores content at a node and registers it as a holder.
func (w *town) put(n *node, content []byte) digest.CID {
	w.t.Helper()
	ctx := context.Background()
	u, err := n.store.NewUpload(ctx, store.UploadOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := u.Append(ctx, strings.NewReader(string(content))); err != nil {
		w.t.Fatal(err)
	}
	in, err := u.Commit(ctx, "")
	if err != nil {
		w.t.Fatal(err)
	}
	_ = u.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.maps[in.Root] = in.Map.Encode()
	w.join(in.Root, n.self)
	return in.Root
}

func (w *town) join(root digest.CID, p swarm.Peer) {
	if w.members[root] == nil {
		w.members[root] = map[meta.NodeID]swarm.Peer{}
	}
	w.members[root][p.ID] = p
}

// leave takes a node out of the registrar's list.
func (w *town) leave(root digest.CID, n *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.members[root], n.self.ID)
}

func (w *town) grant(p meta.NodeID, root digest.CID) ([]byte, time.Time) {
	expires := time.Now().Add(w.expires)
	return fmt.Appendf(nil, "%s %s %d", p, root.Hex(), expires.UnixNano()), expires
}

// Check is swarm.Authorizer.
func (w *town) Check(grant []byte, p meta.NodeID, root digest.CID, now time.Time) error {
	var peer, cid string
	var until int64
	if _, err := fmt.Sscanf(string(grant), "%s %s %d", &peer, &cid, &until); err != nil ||
		peer != string(p) || cid != root.Hex() || now.UnixNano() > until {
		return fmt.Errorf("grant: %w", meta.ErrDenied)
	}
	return nil
}

// finder is a node's way to the town's registrar.
type finder struct{ n *node }

func (f *finder) Join(_ context.Context, want swarm.Want) (swarm.Introduction, error) {
	w := f.n.town
	w.mu.Lock()
	defer w.mu.Unlock()
	f.n.joins++
	if w.refuse != nil {
		return swarm.Introduction{}, w.refuse
	}
	if w.denied[f.n.self.ID] {
		return swarm.Introduction{}, fmt.Errorf("join: %w", meta.ErrDenied)
	}
	in := swarm.Introduction{Map: w.maps[want.Root], Inline: w.inline[want.Root], Again: 500 * time.Millisecond}
	in.Grant, in.GrantExpires = w.grant(f.n.self.ID, want.Root)
	for _, p := range w.members[want.Root] {
		if p.ID != f.n.self.ID && (f.n.self.Server || p.Region == f.n.self.Region) {
			in.Peers = append(in.Peers, p)
		}
	}
	w.join(want.Root, f.n.self)
	return in, nil
}

func (f *finder) Leave(_ context.Context, root digest.CID) error {
	f.n.town.leave(root, f.n)
	return nil
}

// random returns n bytes that no other call returns.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func mapOf(t testing.TB, content []byte) *chunk.Map {
	t.Helper()
	var b chunk.Builder
	if _, err := b.Write(content); err != nil {
		t.Fatal(err)
	}
	m, err := b.Map()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// fetch reads the whole of root in order at n, as a client would.
func (n *node) fetch(ctx context.Context, root digest.CID) ([]byte, error) {
	session, err := n.Fetch(ctx, root, swarm.FetchOptions{})
	if err != nil {
		return nil, err
	}
	defer func() { _ = session.Close() }()
	return read(ctx, session, 0, -1)
}

func read(ctx context.Context, session *swarm.Session, from, to int) ([]byte, error) {
	blob, err := session.Blob(ctx)
	if err != nil {
		return nil, err
	}
	if to < 0 {
		to = blob.Map().Len()
	}
	var out []byte
	for i := from; i < to; i++ {
		session.Prefer(i, to)
		if err := session.Wait(ctx, i); err != nil {
			return out, err
		}
		b, err := blob.ReadChunk(ctx, i, nil)
		if err != nil {
			return out, err
		}
		out = append(out, b...)
	}
	return out, nil
}

// bytes sums a node's counter of moved bytes for which keep holds.
func (n *node) bytes(direction, kind string) int64 {
	families, _ := n.reg.Gather()
	var sum float64
	for _, f := range families {
		if f.GetName() != "shoal_swarm_bytes_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			match := true
			for _, l := range m.GetLabel() {
				match = match && (l.GetName() != "direction" || l.GetValue() == direction) &&
					(l.GetName() != "peer" || kind == "" || l.GetValue() == kind)
			}
			if match {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return int64(sum)
}

func (n *node) counter(name string) float64 {
	families, _ := n.reg.Gather()
	var sum float64
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// await polls for a condition that has no event to wait for.
func await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// selfSigned is a certificate for the yardstick of the benchmarks.
func selfSigned() (tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, err
}
