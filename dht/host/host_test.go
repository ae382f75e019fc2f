package host

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

const echo = "/shoal/test/echo/1"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newHost(t *testing.T, cfg Config) *Host {
	t.Helper()
	if cfg.Key == nil {
		_, cfg.Key, _ = ed25519.GenerateKey(rand.Reader)
	}
	if cfg.Plane == "" {
		cfg.Plane = Swarm
	}
	if cfg.Listen == nil {
		cfg.Listen = []string{"127.0.0.1:0"}
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	h.SetStreamHandler(echo, func(s network.Stream) {
		defer s.Close()
		io.Copy(s, s)
	})
	return h
}

func enrolled(h *Host, role meta.Role) meta.Node {
	n := meta.Node{ID: h.NodeID(), Role: role, Region: "eu"}
	if h.cfg.Plane == Raft {
		n.Raft = h.Advertised()
	} else {
		n.Swarm = h.Advertised()
	}
	return n
}

// ping sends a byte through h's stream to other and back.
func ping(ctx context.Context, h *Host, other peer.ID) error {
	s, err := h.NewStream(ctx, other, echo)
	if err != nil {
		return err
	}
	defer s.Reset()
	deadline, _ := ctx.Deadline()
	s.SetDeadline(deadline)
	if _, err := s.Write([]byte{42}); err != nil {
		return err
	}
	var b [1]byte
	_, err = io.ReadFull(s, b[:])
	return err
}

func TestEnrolledNodesTalk(t *testing.T) {
	ctx := within(t)
	a, b := newHost(t, Config{QUIC: true}), newHost(t, Config{QUIC: true})
	roster := []meta.Node{enrolled(a, meta.RoleServer), enrolled(b, meta.RoleAgent)}
	a.SetRoster(roster)
	b.SetRoster(roster)
	if err := ping(ctx, a, b.ID()); err != nil {
		t.Fatal(err)
	}
	c := a.Network().ConnsToPeer(b.ID())[0]
	if got := c.ConnState(); got.Transport != "tcp" || got.Security != "/tls/1.0.0" || got.StreamMultiplexer != "/yamux/1.0.0" {
		t.Errorf("connection is %+v", got)
	}
}

// TestUnenrolledGetsNoStream asks at stream level, as the dialler's Connect may
// well succeed (security.md).
func TestUnenrolledGetsNoStream(t *testing.T) {
	ctx := within(t)
	reg := prometheus.NewRegistry()
	server := newHost(t, Config{Metrics: reg})
	reached := make(chan struct{}, 1)
	server.SetStreamHandler(echo, func(s network.Stream) { reached <- struct{}{}; s.Reset() })
	stranger := newHost(t, Config{})
	server.SetRoster([]meta.Node{enrolled(server, meta.RoleServer)})
	stranger.SetRoster([]meta.Node{enrolled(server, meta.RoleServer)}) // it believes what it likes
	for range 5 {
		if err := ping(ctx, stranger, server.ID()); err == nil {
			t.Fatal("an unenrolled peer was served")
		}
		stranger.Network().ClosePeer(server.ID())
	}
	if err := ping(ctx, server, stranger.ID()); err == nil {
		t.Fatal("an unenrolled peer was dialled")
	}
	select {
	case <-reached:
		t.Fatal("a handler saw an unenrolled peer")
	default:
	}
	if got := testutil.ToFloat64(mustCounter(t, reg, "shoal_host_refused_total")); got == 0 {
		t.Error("refusals are not counted")
	}
}

// mustCounter sums a family into a single metric for testutil.
func mustCounter(t *testing.T, reg *prometheus.Registry, name string) prometheus.Collector {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := prometheus.NewCounter(prometheus.CounterOpts{Name: "sum"})
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum.Add(m.GetCounter().GetValue())
			}
		}
	}
	return sum
}

func TestRemovedNodeIsCutOff(t *testing.T) {
	for name, remove := range map[string]func(*Host, meta.NodeID){
		"update":  func(h *Host, id meta.NodeID) { h.Update(nil, []meta.NodeID{id}) },
		"replace": func(h *Host, id meta.NodeID) { h.SetRoster(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx := within(t)
			server, agent := newHost(t, Config{}), newHost(t, Config{})
			roster := []meta.Node{enrolled(server, meta.RoleServer), enrolled(agent, meta.RoleAgent)}
			server.SetRoster(roster)
			agent.SetRoster(roster)
			s, err := agent.NewStream(ctx, server.ID(), echo)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			remove(server, agent.NodeID())
			s.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := s.Read(make([]byte, 1)); err == nil {
				t.Fatal("the stream of a removed node still lives")
			} else if timeout, ok := errors.AsType[interface {
				error
				Timeout() bool
			}](err); ok && timeout.Timeout() {
				t.Fatal("the stream of a removed node was not closed")
			}
			if err := ping(ctx, agent, server.ID()); err == nil {
				t.Fatal("a removed node came back")
			}
		})
	}
}

func TestRaftPlaneAdmitsServersOnly(t *testing.T) {
	ctx := within(t)
	a, b, agent := newHost(t, Config{Plane: Raft, QUIC: true}), newHost(t, Config{Plane: Raft}), newHost(t, Config{Plane: Raft})
	roster := []meta.Node{enrolled(a, meta.RoleServer), enrolled(b, meta.RoleServer), enrolled(agent, meta.RoleAgent)}
	for _, h := range []*Host{a, b, agent} {
		h.SetRoster(roster)
	}
	if err := ping(ctx, a, b.ID()); err != nil {
		t.Fatal(err)
	}
	if err := ping(ctx, agent, a.ID()); err == nil {
		t.Fatal("an agent reached the raft plane")
	}
	for _, addr := range a.Network().ListenAddresses() {
		if _, err := addr.ValueForProtocol(ma.P_UDP); err == nil {
			t.Errorf("the raft plane listens on %s", addr)
		}
	}
	// A server that becomes an agent loses its place.
	demoted := enrolled(b, meta.RoleAgent)
	a.Update([]meta.Node{demoted}, nil)
	if err := ping(ctx, b, a.ID()); err == nil {
		t.Fatal("a former server is still admitted")
	}
}

func TestBookTakesNobodysWord(t *testing.T) {
	ctx := within(t)
	a, b := newHost(t, Config{}), newHost(t, Config{})
	roster := []meta.Node{enrolled(a, meta.RoleServer), enrolled(b, meta.RoleServer)}
	a.SetRoster(roster)
	b.SetRoster(roster)
	lie := ma.StringCast("/ip4/203.0.113.7/tcp/9")
	ps := a.Peerstore()
	ps.AddAddr(b.ID(), lie, peerstore.PermanentAddrTTL)
	ps.SetAddrs(b.ID(), []ma.Multiaddr{lie}, peerstore.PermanentAddrTTL)
	ps.ClearAddrs(b.ID())
	if err := a.Connect(ctx, peer.AddrInfo{ID: b.ID(), Addrs: []ma.Multiaddr{lie}}); err != nil {
		t.Fatal(err)
	}
	if err := ping(ctx, a, b.ID()); err != nil {
		t.Fatal(err) // identify has run by now and has told b's addresses as well
	}
	if got := ps.Addrs(b.ID()); len(got) != 1 || got[0].String() != roster[1].Swarm[0] {
		t.Errorf("addresses of a peer: %v, the roster has %v", got, roster[1].Swarm)
	}
	stranger := newHost(t, Config{})
	ps.AddAddr(stranger.ID(), lie, peerstore.PermanentAddrTTL)
	if got := ps.Addrs(stranger.ID()); len(got) != 0 {
		t.Errorf("addresses of a stranger: %v", got)
	}
}

func TestQUICTakesOverWhenTCPIsRefused(t *testing.T) {
	ctx := within(t)
	a, b := newHost(t, Config{QUIC: true}), newHost(t, Config{QUIC: true})
	roster := []meta.Node{enrolled(a, meta.RoleServer), enrolled(b, meta.RoleServer)}
	a.SetRoster(roster)
	b.SetRoster(roster)
	var udp int
	for _, addr := range b.Network().ListenAddresses() {
		if _, err := addr.ValueForProtocol(ma.P_UDP); err == nil {
			udp++
			continue
		}
		b.Network().(interface{ ListenClose(...ma.Multiaddr) }).ListenClose(addr)
	}
	if udp != 1 {
		t.Fatalf("%d UDP listeners", udp)
	}
	if err := ping(ctx, a, b.ID()); err != nil {
		t.Fatal(err)
	}
	if got := a.Network().ConnsToPeer(b.ID())[0].ConnState().Transport; got != "quic-v1" {
		t.Errorf("transport is %s", got)
	}
	for _, text := range a.Advertised() {
		if _, err := ma.StringCast(text).ValueForProtocol(ma.P_UDP); err == nil {
			t.Errorf("%s is advertised", text)
		}
	}
}

func TestDialOrder(t *testing.T) {
	addrs := []ma.Multiaddr{
		ma.StringCast("/ip4/10.0.0.1/udp/7070/quic-v1"),
		ma.StringCast("/ip4/203.0.113.1/tcp/7070"),
		ma.StringCast("/ip4/10.0.0.1/tcp/7070"),
	}
	var got []string
	for _, r := range rankDials(addrs) {
		got = append(got, fmt.Sprint(r.Addr, " ", r.Delay))
	}
	want := []string{"/ip4/10.0.0.1/tcp/7070 0s", "/ip4/203.0.113.1/tcp/7070 250ms", "/ip4/10.0.0.1/udp/7070/quic-v1 1s"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if r := rankDials(addrs[:1]); r[0].Delay != 0 {
		t.Errorf("QUIC alone waits %v", r[0].Delay)
	}
}

// TestRestartedPeerIsDialledAtOnce covers libp2p's dial backoff, which would
// refuse to dial for 5 s and more after a failure.
func TestRestartedPeerIsDialledAtOnce(t *testing.T) {
	ctx := within(t)
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	a, b := newHost(t, Config{}), newHost(t, Config{Key: key})
	listen := b.Network().ListenAddresses()[0]
	port, _ := listen.ValueForProtocol(ma.P_TCP)
	roster := []meta.Node{enrolled(a, meta.RoleServer), enrolled(b, meta.RoleServer)}
	a.SetRoster(roster)
	b.Close()
	for range 3 {
		if err := ping(ctx, a, b.ID()); err == nil {
			t.Fatal("a closed host answers")
		}
	}
	again := newHost(t, Config{Key: key, Listen: []string{"127.0.0.1:" + port}})
	again.SetRoster(roster)
	a.mu.Lock()
	clear(a.dialed) // as if redialAfter had passed
	a.mu.Unlock()
	if err := ping(ctx, a, b.ID()); err != nil {
		t.Fatalf("after the restart: %v", err)
	}
}

func TestPortTaken(t *testing.T) {
	a := newHost(t, Config{})
	port, _ := a.Network().ListenAddresses()[0].ValueForProtocol(ma.P_TCP)
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	h, err := New(Config{Key: key, Plane: Swarm, Listen: []string{"127.0.0.1:" + port}})
	if err == nil {
		h.Close()
		t.Fatal("two hosts share a port")
	}
}

func TestAdvertise(t *testing.T) {
	for _, test := range []struct{ name, advertise, want string }{
		{"listen address", "", "/ip4/127.0.0.1/tcp/"},
		{"name", "node1.example.org", "/dns/node1.example.org/tcp/"},
		{"ipv4", "192.0.2.1", "/ip4/192.0.2.1/tcp/"},
		{"ipv6", "2001:db8::1", "/ip6/2001:db8::1/tcp/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHost(t, Config{Advertise: test.advertise, QUIC: true})
			listened := h.Network().ListenAddresses() // in no order; TCP and UDP have one number
			if len(listened) != 2 {
				t.Fatalf("listens on %v", listened)
			}
			port, err := listened[0].ValueForProtocol(ma.P_TCP)
			if err != nil {
				port, _ = listened[0].ValueForProtocol(ma.P_UDP)
			}
			if got := h.Advertised(); len(got) != 1 || got[0] != test.want+port {
				t.Errorf("advertises %q, want %s", got, test.want+port)
			}
		})
	}
}

func TestWildcardAdvertisesNoLoopback(t *testing.T) {
	h := &Host{}
	all := []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/7070"), ma.StringCast("/ip4/10.1.2.3/tcp/7070"),
		ma.StringCast("/ip4/10.1.2.3/udp/7070/quic-v1"), ma.StringCast("/ip6/fe80::1/tcp/7070")}
	if got := h.advertise(all); len(got) != 1 || got[0].String() != "/ip4/10.1.2.3/tcp/7070" {
		t.Errorf("advertises %v", got)
	}
	if got := h.advertise(all[:1]); len(got) != 1 {
		t.Errorf("on loopback alone: %v", got)
	}
}

func TestBadConfig(t *testing.T) {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	for name, cfg := range map[string]Config{
		"no plane":  {Key: key, Listen: []string{"127.0.0.1:0"}},
		"no key":    {Plane: Swarm, Listen: []string{"127.0.0.1:0"}},
		"no port":   {Key: key, Plane: Swarm, Listen: []string{"127.0.0.1"}},
		"bad port":  {Key: key, Plane: Swarm, Listen: []string{"127.0.0.1:70000"}},
		"host name": {Key: key, Plane: Swarm, Listen: []string{"example.org:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := New(cfg)
			if !errors.Is(err, meta.ErrInvalid) {
				if err == nil {
					h.Close()
				}
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestRosterLists(t *testing.T) {
	r := newRoster(Swarm, true)
	var nodes []meta.Node
	for i := range 6 {
		k, err := trust.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		n := meta.Node{ID: k.ID(), Role: meta.RoleAgent, Region: "eu", Swarm: []string{"/ip4/10.0.0.1/tcp/7070", "rubbish", "/ip4/10.0.0.1/udp/1"}}
		if i < 2 {
			n.Role = meta.RoleServer
		}
		if i%2 == 0 {
			n.Region = "us"
		}
		nodes = append(nodes, n)
	}
	if _, bad := r.replace(append(nodes, meta.Node{ID: "nobody"})); len(bad) != 1 {
		t.Errorf("unusable: %v", bad)
	}
	for _, test := range []struct {
		region meta.RegionName
		role   meta.Role
		want   int
	}{{"", "", 6}, {"eu", "", 3}, {"", meta.RoleServer, 2}, {"us", meta.RoleServer, 1}, {"mars", "", 0}} {
		if got := r.list(test.region, test.role); len(got) != test.want {
			t.Errorf("list(%q, %q) has %d nodes, want %d", test.region, test.role, len(got), test.want)
		}
	}
	p, _ := trust.PeerID(nodes[0].ID)
	if got := r.addrs(p); len(got) != 2 || got[1].String() != "/ip4/10.0.0.1/udp/7070/quic-v1" {
		t.Errorf("addresses: %v", got)
	}
	gone, _ := r.update(nil, []meta.NodeID{nodes[0].ID, "nobody"})
	if len(gone) != 1 || gone[0] != p || len(r.list("us", "")) != 2 {
		t.Errorf("gone: %v, left in us: %d", gone, len(r.list("us", "")))
	}
}

// TestManyPeersFromOneAddress passes the limits that hide on loopback with few
// peers: connections in all, inbound, by address, in handshake, and streams.
func TestManyPeersFromOneAddress(t *testing.T) {
	ctx := within(t)
	const peers = 200
	server := newHost(t, Config{})
	all := []meta.Node{enrolled(server, meta.RoleServer)}
	var agents []*Host
	for range peers {
		h := newHost(t, Config{Role: meta.RoleAgent})
		agents = append(agents, h)
		all = append(all, enrolled(h, meta.RoleAgent))
	}
	server.SetRoster(all)
	var wg sync.WaitGroup
	failed := make(chan error, peers)
	for _, h := range agents {
		h.SetRoster(all[:1])
		wg.Go(func() {
			if err := ping(ctx, h, server.ID()); err != nil {
				failed <- err
			}
		})
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
	if got := len(server.Network().Peers()); got != peers {
		t.Errorf("%d peers are connected, want %d", got, peers)
	}
}

// TestLimitsWrittenOut refuses any scope of the resource manager that was left to
// libp2p's defaults, which scale with the machine.
func TestLimitsWrittenOut(t *testing.T) {
	for _, plane := range []Plane{Swarm, Raft} {
		for _, role := range []meta.Role{meta.RoleServer, meta.RoleAgent} {
			l := Limits{}.withDefaults(plane, role)
			got := l.concrete().ToPartialLimitConfig()
			if int(got.System.ConnsInbound) != l.Conns || int64(got.System.Memory) != l.WindowBytes {
				t.Errorf("%s %s: system %+v", plane, role, got.System)
			}
			if got.PeerDefault.Streams == 0 || got.Transient.Conns == 0 || got.Conn.Memory == 0 || got.Stream.Memory == 0 ||
				got.ProtocolDefault.Streams == 0 || got.ProtocolPeerDefault.Streams == 0 || got.ServiceDefault.Streams == 0 {
				t.Errorf("%s %s: a scope has no limit: %+v", plane, role, got)
			}
			if l.LowWater > l.HighWater || l.HighWater > l.Conns {
				t.Errorf("%s %s: water marks %d and %d of %d", plane, role, l.LowWater, l.HighWater, l.Conns)
			}
		}
	}
}

// TestBigStream moves more than one window through a stream, so that a receive
// window that the limits refused would show as a stall.
func TestBigStream(t *testing.T) {
	ctx := within(t)
	a, b := newHost(t, Config{}), newHost(t, Config{})
	roster := []meta.Node{enrolled(a, meta.RoleServer), enrolled(b, meta.RoleServer)}
	a.SetRoster(roster)
	b.SetRoster(roster)
	const size = 64 << 20
	received := make(chan int64, 1)
	b.SetStreamHandler("/shoal/test/sink/1", func(s network.Stream) {
		n, _ := io.Copy(io.Discard, s)
		received <- n
		s.Close()
	})
	start := time.Now()
	s, err := a.NewStream(ctx, b.ID(), "/shoal/test/sink/1")
	if err != nil {
		t.Fatal(err)
	}
	unit := bytes.Repeat([]byte{7}, 256<<10)
	for range size / len(unit) {
		if _, err := s.Write(unit); err != nil {
			t.Fatal(err)
		}
	}
	s.CloseWrite()
	select {
	case n := <-received:
		if n != size {
			t.Errorf("received %d bytes of %d", n, size)
		}
	case <-ctx.Done():
		t.Fatal("the stream stalled")
	}
	t.Logf("%d MB/s", int64(size)/max(1, time.Since(start).Microseconds()))
}

// BenchmarkStream prints what one connection moves (design.md: 1.2 GB/s a core a side).
func BenchmarkStream(b *testing.B) {
	newHost := func() *Host {
		_, key, _ := ed25519.GenerateKey(rand.Reader)
		h, err := New(Config{Key: key, Plane: Swarm, Listen: []string{"127.0.0.1:0"}})
		if err != nil {
			b.Fatal(err)
		}
		return h
	}
	x, y := newHost(), newHost()
	defer x.Close()
	defer y.Close()
	roster := []meta.Node{enrolled(x, meta.RoleServer), enrolled(y, meta.RoleServer)}
	x.SetRoster(roster)
	y.SetRoster(roster)
	done := make(chan struct{})
	y.SetStreamHandler(echo, func(s network.Stream) { io.Copy(io.Discard, s); s.Close(); close(done) })
	s, err := x.NewStream(context.Background(), y.ID(), echo)
	if err != nil {
		b.Fatal(err)
	}
	unit := make([]byte, 256<<10)
	b.SetBytes(int64(len(unit)))
	for b.Loop() {
		if _, err := s.Write(unit); err != nil {
			b.Fatal(err)
		}
	}
	s.CloseWrite()
	<-done
}
