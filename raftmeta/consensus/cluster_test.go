package consensus

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// The tests run servers in one process over real libp2p hosts on loopback. Nothing
// in them asserts how long something takes; a test that hangs ends with its context.

// quick is a Timing for a machine that does other things too.
var quick = Timing{
	Heartbeat: 400 * time.Millisecond, Election: 400 * time.Millisecond, Lease: 200 * time.Millisecond, Commit: 5 * time.Millisecond,
	Members: 100 * time.Millisecond, Stable: 200 * time.Millisecond, Lost: time.Hour,
}

// registers is the machine of the tests: named values, written once a request id.
type registers struct {
	mu      sync.Mutex
	index   uint64
	values  map[string]string
	seen    map[string]uint64 // request id -> index
	applied int               // commands that had an effect
	times   []meta.Time
	durable []byte // of the last Flush or Restore
	fail    error  // of the next Apply
	// hold keeps commands from being stamped until it is closed; held counts them.
	hold  <-chan struct{}
	holds int
}

type write struct {
	ID, Key, Value string
	Time           meta.Time
	Refuse         bool
}

func newRegisters() *registers {
	return &registers{values: map[string]string{}, seen: map[string]uint64{}}
}

func (r *registers) Apply(entries []Entry) ([]any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return nil, r.fail
	}
	out := make([]any, len(entries))
	for i, e := range entries {
		if e.Index <= r.index {
			return nil, fmt.Errorf("entry %d comes after %d", e.Index, r.index)
		}
		r.index = e.Index
		var w write
		if len(e.Command) > 0 {
			if err := json.Unmarshal(e.Command, &w); err != nil {
				return nil, err
			}
			r.times = append(r.times, w.Time)
		}
		switch {
		case w.Key == "":
		case r.seen[w.ID] > 0:
			out[i] = r.seen[w.ID]
		default:
			r.values[w.Key] = w.Value
			r.seen[w.ID] = e.Index
			r.applied++
			out[i] = e.Index
		}
	}
	return out, nil
}

func (r *registers) Applied() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.index
}

func (r *registers) Get(key string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.values[key]
}

func (r *registers) effects() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.applied
}

type frozenRegisters struct {
	Index   uint64
	Values  map[string]string
	Seen    map[string]uint64
	Applied int
	bytes   []byte
}

func (f *frozenRegisters) Size() (int64, error) { return int64(len(f.bytes)), nil }
func (f *frozenRegisters) Close() error         { return nil }
func (f *frozenRegisters) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(f.bytes)
	return int64(n), err
}

func (r *registers) Freeze() (Frozen, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.freezeLocked(), nil
}

func (r *registers) freezeLocked() *frozenRegisters {
	f := &frozenRegisters{Index: r.index, Values: maps.Clone(r.values), Seen: maps.Clone(r.seen), Applied: r.applied}
	f.bytes, _ = json.Marshal(f)
	return f
}

func (r *registers) Flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.durable = r.freezeLocked().bytes
	return nil
}

func (r *registers) Restore(stream io.Reader) error {
	b, err := io.ReadAll(stream)
	if err != nil {
		return err
	}
	return r.load(b)
}

func (r *registers) load(b []byte) error {
	f := frozenRegisters{Values: map[string]string{}, Seen: map[string]uint64{}}
	if b != nil {
		if err := json.Unmarshal(b, &f); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index, r.values, r.seen, r.applied, r.durable = f.Index, f.Values, f.Seen, f.Applied, b
	return nil
}

// powerLoss takes the machine back to what it had made durable.
func (r *registers) powerLoss(t *testing.T) {
	t.Helper()
	if err := r.load(r.durable); err != nil {
		t.Fatal(err)
	}
}

func (r *registers) holdStamps(until <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold = until
}

func (r *registers) held() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.holds
}

func (r *registers) Stamp(command []byte, at meta.Time) ([]byte, error) {
	r.mu.Lock()
	hold := r.hold
	if hold != nil {
		r.holds++
	}
	r.mu.Unlock()
	if hold != nil {
		<-hold
	}
	var w write
	if err := json.Unmarshal(command, &w); err != nil {
		return nil, err
	}
	if w.Refuse {
		return nil, fmt.Errorf("refused as asked: %w", meta.ErrConflict)
	}
	w.Time = at
	return json.Marshal(w)
}

func (r *registers) StampOf(command []byte) meta.Time {
	var w write
	_ = json.Unmarshal(command, &w)
	return w.Time
}

func (r *registers) Tick() []byte { return []byte(`{}`) }

// gater cuts peers off, both ways.
type gater struct {
	mu      sync.Mutex
	blocked map[peer.ID]bool
}

func (g *gater) allows(id peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.blocked[id]
}

func (g *gater) InterceptPeerDial(id peer.ID) bool                 { return g.allows(id) }
func (g *gater) InterceptAddrDial(id peer.ID, _ ma.Multiaddr) bool { return g.allows(id) }
func (g *gater) InterceptAccept(network.ConnMultiaddrs) bool       { return true }
func (g *gater) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) {
	return true, 0
}
func (g *gater) InterceptSecured(_ network.Direction, id peer.ID, _ network.ConnMultiaddrs) bool {
	return g.allows(id)
}

// roster is shared by all servers of a test, as if the state said it.
type roster struct {
	mu    sync.Mutex
	nodes []meta.Node
}

func (r *roster) Servers() []meta.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.nodes)
}

func (r *roster) put(n meta.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes = append(r.nodes, n)
}

func (r *roster) drop(id meta.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes = slices.DeleteFunc(r.nodes, func(n meta.Node) bool { return n.ID == id })
}

// server is one of a test cluster; it can be stopped and started.
type server struct {
	t       testing.TB
	key     crypto.PrivKey
	id      meta.NodeID
	dir     string
	listen  string
	roster  Roster
	machine *registers
	tune    func(*Config)

	host  host.Host
	gate  *gater
	node  *Node
	stop  func()
	alive bool
	fatal chan error
}

type cluster struct {
	t       testing.TB
	ctx     context.Context
	roster  *roster
	servers []*server
}

// newCluster starts count servers, one a region, and waits until the rule's voters
// are in place.
func newCluster(t testing.TB, count int, tune func(*Config)) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	c := &cluster{t: t, ctx: ctx, roster: &roster{}}
	for i := range count {
		s := c.add(tune)
		if i == 0 {
			s.open()
			if err := s.node.Bootstrap(); err != nil {
				t.Fatal(err)
			}
			s.run()
		} else {
			s.start()
		}
	}
	c.awaitVoters(map[int]int{1: 1, 2: 1, 3: 3, 4: 3, 5: 5}[count])
	return c
}

// add makes a server of the roster, in a region of its own, that is not started.
func (c *cluster) add(tune func(*Config)) *server {
	c.t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	s := &server{
		t: c.t, key: key, id: meta.NodeID(id.String()), dir: c.t.TempDir(), listen: "/ip4/127.0.0.1/tcp/0",
		roster: c.roster, machine: newRegisters(), tune: tune, fatal: make(chan error, 16),
	}
	s.makeHost()
	c.servers = append(c.servers, s)
	for _, a := range c.servers {
		for _, b := range c.servers {
			if a != b && a.host != nil && b.host != nil {
				a.host.Peerstore().AddAddrs(b.host.ID(), b.host.Addrs(), peerstore.PermanentAddrTTL)
			}
		}
	}
	c.roster.put(meta.Node{ID: s.id, Role: meta.RoleServer, Region: meta.RegionName(fmt.Sprintf("r%d", len(c.servers)))})
	c.t.Cleanup(func() {
		s.halt()
		_ = s.host.Close()
	})
	return s
}

func (s *server) makeHost() {
	s.t.Helper()
	s.gate = &gater{blocked: map[peer.ID]bool{}}
	h, err := libp2p.New(libp2p.Identity(s.key), libp2p.ListenAddrStrings(s.listen), libp2p.Transport(tcp.NewTCPTransport),
		libp2p.ConnectionGater(s.gate), libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		s.t.Fatal(err)
	}
	s.host = h
	s.listen = h.Addrs()[0].String()
}

func (s *server) open() {
	s.t.Helper()
	if err := s.tryOpen(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) tryOpen() error {
	cfg := Config{
		Dir: s.dir, Self: s.id, Cluster: "test", Host: s.host, Machine: s.machine, Roster: s.roster, Timing: quick,
		Fatal: func(err error) { s.fatal <- err }, Log: slog.New(slog.DiscardHandler),
	}
	if s.tune != nil {
		s.tune(&cfg)
	}
	var err error
	s.node, err = New(cfg)
	return err
}

func (s *server) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	node := s.node
	go func() { done <- node.Run(ctx) }()
	s.alive = true
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, node.Close()); err != nil {
			s.t.Errorf("%s: %v", s.id, err)
		}
	})
}

func (s *server) start() {
	s.t.Helper()
	s.open()
	s.run()
}

// halt stops the server as an operator would.
func (s *server) halt() {
	if s.alive {
		s.alive = false
		s.stop()
	}
}

// cut keeps s from all others, or lets it back.
func (c *cluster) cut(s *server, off bool) {
	for _, other := range c.servers {
		if other != s {
			c.cutLink(s, other, off)
		}
	}
}

func (c *cluster) cutLink(a, b *server, off bool) {
	for _, pair := range [][2]*server{{a, b}, {b, a}} {
		pair[0].gate.mu.Lock()
		pair[0].gate.blocked[pair[1].host.ID()] = off
		pair[0].gate.mu.Unlock()
		if off {
			_ = pair[0].host.Network().ClosePeer(pair[1].host.ID())
		}
	}
}

// await polls until ok. It is for conditions that have no event.
func (c *cluster) await(what string, ok func() bool) {
	c.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			for _, s := range c.servers {
				if s.alive {
					c.t.Logf("%+v", s.node.Status())
				}
			}
			c.t.Fatalf("never: %s", what)
		}
	}
}

func (c *cluster) awaitVoters(count int) {
	c.t.Helper()
	c.await(fmt.Sprintf("%d voters", count), func() bool {
		l := c.leader()
		if l == nil {
			return false
		}
		select {
		case <-l.node.leading.opened():
		default:
			return false
		}
		for _, s := range c.servers {
			if s.alive && len(s.node.voters()) != count {
				return false
			}
		}
		return true
	})
}

// leader returns the server that a majority of the living take for the leader and
// that does too, nil when there is none.
func (c *cluster) leader() *server {
	for _, s := range c.servers {
		if !s.alive || s.node.Leader() != s.id {
			continue
		}
		votes := 0
		for _, other := range c.servers {
			if other.alive && other.node.Leader() == s.id {
				votes++
			}
		}
		if votes*2 > len(c.servers) {
			return s
		}
	}
	return nil
}

func (c *cluster) awaitLeader(not ...*server) *server {
	c.t.Helper()
	var l *server
	c.await("a leader", func() bool {
		l = c.leader()
		return l != nil && !slices.Contains(not, l)
	})
	return l
}

// followers returns the living servers but the leader.
func (c *cluster) followers() []*server {
	c.t.Helper()
	l := c.awaitLeader()
	return slices.DeleteFunc(slices.Clone(c.servers), func(s *server) bool { return s == l || !s.alive })
}

func encodeWrite(t testing.TB, w write) []byte {
	t.Helper()
	if w.ID == "" {
		w.ID = rand.Text()
	}
	b, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// set writes through s and must succeed.
func (c *cluster) set(s *server, key, value string) Outcome {
	c.t.Helper()
	out, err := s.set(c.ctx, key, value)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (s *server) set(ctx context.Context, key, value string) (Outcome, error) {
	return s.node.Propose(ctx, encodeWrite(s.t, write{Key: key, Value: value}))
}

// get reads strongly through s.
func (s *server) get(ctx context.Context, key string) (string, error) {
	if _, err := s.node.Read(ctx, meta.Strong); err != nil {
		return "", err
	}
	return s.machine.Get(key), nil
}

type raftServer = raft.Server

func raftID(id meta.NodeID) raft.ServerID           { return raft.ServerID(id) }
func raftAddress(id meta.NodeID) raft.ServerAddress { return raft.ServerAddress(id) }
