package dht

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// dhtOn runs a DHT and waits until it takes part.
func dhtOn(t testing.TB, n node, region meta.RegionName) *DHT {
	t.Helper()
	d, err := NewDHT(DHTConfig{Host: n.Host, Cluster: testCluster, Region: region, Self: n.id(), Roster: n.Host})
	if err != nil {
		t.Fatal(err)
	}
	start(t, d.Run)
	await(t, "the start of the DHT", func() bool { return d.kad.Load() != nil })
	return d
}

func TestFailover(t *testing.T) {
	for name, break_ := range map[string]func(node){
		"gone": func(n node) { n.Host.Close() },
		"silent": func(n node) {
			n.SetStreamHandler(RegistrarProtocol(testCluster), func(s network.Stream) { io.Copy(io.Discard, s); s.Reset() })
		},
		"resets":  func(n node) { n.SetStreamHandler(RegistrarProtocol(testCluster), func(s network.Stream) { s.Reset() }) },
		"no such": func(node) {},
		"babbles": func(n node) {
			n.SetStreamHandler(RegistrarProtocol(testCluster), func(s network.Stream) {
				s.Write([]byte("\x05hello"))
				io.Copy(io.Discard, s)
				s.Reset()
			})
		},
		"busy": func(n node) {
			n.SetStreamHandler(RegistrarProtocol(testCluster), func(s network.Stream) {
				codec.WriteMessage(s, refusal(&meta.UnavailableError{Reason: "busy", RetryAfter: time.Second}))
				io.Copy(io.Discard, s)
				s.Reset()
			})
		},
		"behind": func(n node) {
			n.SetStreamHandler(RegistrarProtocol(testCluster), func(s network.Stream) {
				codec.WriteMessage(s, refusal(meta.ErrNotFound))
				io.Copy(io.Discard, s)
				s.Reset()
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := within(t)
			s := &site{t: t}
			bad, good, agent := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleAgent)
			s.enrol()
			break_(bad)
			root, rights := rootFor(t, bad.id(), good.id()), &rights{}
			rights.know(root)
			registrarOn(t, good, &shelf{}, rights, RegistrarLimits{})
			f := finderOn(t, agent, nil)
			begin := time.Now()
			in, err := f.Join(ctx, Want{Root: root})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("failover took %v", time.Since(begin))
			if _, ok := has(in.Peers, good.id()); !ok {
				t.Errorf("peers: %+v", in.Peers)
			}
			if !f.Reachable() {
				t.Error("a server answered and counts as unreachable")
			}
			if name == "gone" {
				if first := f.servers(root)[0].ID; first != good.id() {
					t.Error("a server that failed is asked first again")
				}
			}
		})
	}
}

// TestStreamsAreKept counts streams, and survives a registrar's restart on them.
func TestStreamsAreKept(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server, agent := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleAgent)
	s.enrol()
	root, rights := someRoot(), &rights{}
	rights.know(root)
	r, stop := registrarOn(t, server, &shelf{}, rights, RegistrarLimits{})
	f := finderOn(t, agent, nil)
	for range 10 {
		if _, err := f.Join(ctx, Want{Root: root, Have: 1}); err != nil {
			t.Fatal(err)
		}
	}
	r.mu.Lock()
	streams := len(r.streams)
	r.mu.Unlock()
	if streams != 1 {
		t.Errorf("%d streams for calls one after the other", streams)
	}
	stop()
	registrarOn(t, server, &shelf{}, rights, RegistrarLimits{})
	in, err := f.Join(ctx, Want{Root: root, Have: 1})
	if err != nil || in.Members != 1 {
		t.Fatalf("after a restart: %+v, %v", in, err)
	}
	f.caller.tidy(time.Now().Add(time.Hour), false)
	f.caller.mu.Lock()
	defer f.caller.mu.Unlock()
	if len(f.caller.servers) != 0 {
		t.Errorf("idle streams are kept for ever: %d", len(f.caller.servers))
	}
}

func TestFalseMapIsDropped(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server, agent := s.add("eu", "", meta.RoleServer), s.add("eu", "", meta.RoleAgent)
	s.enrol()
	root := someRoot()
	server.SetStreamHandler(RegistrarProtocol(testCluster), func(s network.Stream) {
		defer s.Reset()
		codec.WriteMessage(s, reply{Map: []byte("of another blob"), Inline: []byte("content"), Grant: []byte{1}})
		io.Copy(io.Discard, s)
	})
	in, err := finderOn(t, agent, nil).Join(ctx, Want{Root: root})
	if err != nil || in.Map != nil || in.Inline != nil {
		t.Errorf("%+v, %v", in, err)
	}
}

// TestDHTFallback takes the only server away: those who know each other by the
// DHT find each other, with the map and grant of before.
func TestDHTFallback(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	server := s.add("eu", "", meta.RoleServer)
	var agents []node
	for range 6 {
		agents = append(agents, s.add("eu", "", meta.RoleAgent))
	}
	far := s.add("us", "", meta.RoleAgent)
	s.enrol()
	shelf, rights := &shelf{}, &rights{}
	root := shelf.put([]byte("a chunk map"), nil)
	rights.know(root)
	registrarOn(t, server, shelf, rights, RegistrarLimits{})
	dhts := []*DHT{dhtOn(t, server, "eu")}
	var finders []*Finder
	for _, n := range agents {
		d := dhtOn(t, n, "eu")
		dhts = append(dhts, d)
		finders = append(finders, finderOn(t, n, d))
	}
	dhtOn(t, far, "us")
	await(t, "acquaintance", func() bool {
		for _, d := range dhts {
			if d.Size() < 3 {
				return false
			}
		}
		return true
	})
	if _, err := finders[0].Join(ctx, Want{Root: root, Have: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := finders[1].Join(ctx, Want{Root: root}); err != nil { // learns map and grant, has nothing
		t.Fatal(err)
	}
	await(t, "the announcement", func() bool {
		found, err := dhts[3].FindProviders(ctx, root, MaxPeers)
		return err == nil && len(found) == 1 && found[0] == agents[0].id()
	})
	server.Host.Close()
	in, err := finders[1].Join(ctx, Want{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := has(in.Peers, agents[0].id()); !ok || p.Addrs[0] != agents[0].Swarm[0] || len(in.Peers) != 1 {
		t.Errorf("peers: %+v", in.Peers)
	}
	if string(in.Map) != "a chunk map" || string(in.Grant) != "grant for "+string(agents[1].id()) || in.Again != standAfter {
		t.Errorf("introduction: %+v", in)
	}
	if finders[1].Reachable() {
		t.Error("the server counts as reachable")
	}
	if _, err := finders[2].Join(ctx, Want{Root: someRoot()}); !errors.Is(err, meta.ErrUnavailable) || errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a root that nobody has: %v", err)
	}
	if err := finders[2].Leave(ctx, root); err == nil {
		t.Error("left at a server that is gone")
	}
}

func TestNoServerInTheRoster(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	agent := s.add("eu", "", meta.RoleAgent)
	s.enrol()
	reg := prometheus.NewRegistry()
	f, err := NewFinder(FinderConfig{Host: agent.Host, Cluster: testCluster, Self: agent.Node, Roster: agent.Host, Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Join(ctx, Want{Root: someRoot()}); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if f.Reachable() {
		t.Error("no server counts as reachable")
	}
	if err := f.Leave(ctx, someRoot()); err != nil {
		t.Errorf("leave: %v", err)
	}
	if _, err := f.Join(ctx, Want{}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("no root: %v", err)
	}
	if got := testutil.ToFloat64(f.metrics.joins.WithLabelValues("nobody")); got != 1 {
		t.Errorf("counted %v", got)
	}
}

// fixedHolders is a Holders.
type fixedHolders struct {
	ids []meta.NodeID
	err error
}

func (h fixedHolders) Holders(context.Context, digest.CID) ([]meta.NodeID, error) {
	return h.ids, h.err
}

func TestServerFinder(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	self, beside, agent := s.add("eu", "z", meta.RoleServer), s.add("eu", "z", meta.RoleServer), s.add("eu", "z", meta.RoleAgent)
	near, far, unknown := s.add("us", "", meta.RoleServer), s.add("ap", "", meta.RoleServer), s.add("sa", "", meta.RoleServer)
	farAgent := s.add("us", "", meta.RoleAgent)
	s.enrol()
	root, rights := someRoot(), &rights{}
	rights.know(root)
	r, _ := registrarOn(t, self, &shelf{}, rights, RegistrarLimits{})
	if _, err := finderOn(t, agent, nil).Join(ctx, Want{Root: root, Have: 1}); err != nil {
		t.Fatal(err)
	}
	holders := fixedHolders{ids: []meta.NodeID{unknown.id(), far.id(), "nobody", near.id(), self.id(), near.id(), farAgent.id()}}
	newFinder := func(h Holders, d *DHT) *ServerFinder {
		f, err := NewServerFinder(ServerFinderConfig{
			Registrar: r, Self: self.Node, Roster: self.Host, Granter: rights, Holders: h, DHT: d,
			RTT: func(r meta.RegionName) time.Duration {
				return map[meta.RegionName]time.Duration{"us": 80 * time.Millisecond, "ap": 200 * time.Millisecond}[r]
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		start(t, f.Run)
		return f
	}
	f := newFinder(holders, nil)
	in, err := f.Join(ctx, Want{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	var got []meta.NodeID
	for _, p := range in.Peers {
		got = append(got, p.ID)
	}
	want := []meta.NodeID{near.id(), far.id(), unknown.id(), beside.id(), agent.id()}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("peers %v, want %v", got, want)
	}
	if !in.Peers[0].Complete || in.Peers[3].Complete || in.Members != 2 || len(in.Grant) == 0 {
		t.Errorf("introduction: %+v", in)
	}
	// Its region's agents see that it is on the way, not that it has the blob.
	seen, err := finderOn(t, agent, nil).Join(ctx, Want{Root: root, Have: 1})
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := has(seen.Peers, self.id()); !ok || p.Complete {
		t.Errorf("the fetching server: %+v", p)
	}
	if err := f.Leave(ctx, root); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Join(ctx, Want{Root: someRoot()}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("an unknown root: %v", err)
	}

	// Without the metadata's word, the DHT of the servers knows.
	here, there := dhtOn(t, self, ""), dhtOn(t, far, "")
	// The other servers run no DHT here, and two of them may be tried first. A new
	// connection tells both ends of each other's DHT; on one that stood before, that
	// hangs on a single message.
	if err := self.Host.Network().ClosePeer(peerIDOf(far)); err != nil {
		t.Fatal(err)
	}
	if err := self.Host.Connect(ctx, far.Host.Peerstore().PeerInfo(peerIDOf(far))); err != nil {
		t.Fatal(err)
	}
	await(t, "acquaintance", func() bool { return here.Size() > 0 && there.Size() > 0 })
	await(t, "the announcement", func() bool { return there.Provide(ctx, root) == nil })
	in, err = newFinder(fixedHolders{err: meta.ErrUnavailable}, here).Join(ctx, Want{Root: root})
	if err != nil || len(in.Peers) == 0 || in.Peers[0].ID != far.id() {
		t.Errorf("by the DHT: %+v, %v", in.Peers, err)
	}
}

func TestReferrals(t *testing.T) {
	s := &site{t: t}
	server, agent, other := s.add("eu", "", meta.RoleServer), s.add("eu", "z", meta.RoleAgent), s.add("eu", "", meta.RoleAgent)
	far, farAgent := s.add("us", "", meta.RoleServer), s.add("us", "", meta.RoleAgent)
	s.enrol()
	var told []Peer
	for _, n := range s.nodes {
		told = append(told, Peer{ID: n.id(), Addrs: []string{"/ip4/203.0.113.1/tcp/1"}, Zone: "lie", Server: true, Complete: true})
	}
	told = append(told, Peer{ID: "12D3KooWSybil"})
	ids := func(peers []Peer) (out []meta.NodeID) {
		for _, p := range peers {
			out = append(out, p.ID)
		}
		return out
	}
	got := Referrals(agent.Host, agent.Node, told)
	if fmt.Sprint(ids(got)) != fmt.Sprint([]meta.NodeID{server.id(), other.id()}) {
		t.Errorf("an agent keeps %v", ids(got))
	}
	if p := got[1]; p.Addrs[0] != other.Swarm[0] || p.Zone != "" || p.Server || !p.Complete {
		t.Errorf("a referral is %+v", p)
	}
	got = Referrals(server.Host, server.Node, told)
	if fmt.Sprint(ids(got)) != fmt.Sprint([]meta.NodeID{agent.id(), other.id(), far.id()}) {
		t.Errorf("a server keeps %v, not %s", ids(got), farAgent.id())
	}
}

func TestRankAndProvides(t *testing.T) {
	var nodes []meta.Node
	for i := range 10000 {
		nodes = append(nodes, meta.Node{ID: meta.NodeID(fmt.Sprint("n", i))})
	}
	root := digest.Sum([]byte("root"))
	providers := 0
	for _, n := range nodes {
		if provides(root, n.ID, len(nodes)) {
			providers++
		}
		if !provides(root, n.ID, 64) || !provides(root, n.ID, 0) {
			t.Fatal("a small swarm leaves one out")
		}
	}
	if providers < 32 || providers > 112 { // 64 expected, 6 sigma
		t.Errorf("%d of 10,000 announce", providers)
	}
	few := nodes[:3]
	first := map[meta.NodeID]int{}
	for i := range 300 {
		first[rank(digest.Sum(fmt.Append(nil, i)), few)[0].ID]++
	}
	for id, n := range first {
		if n < 50 || n > 150 {
			t.Errorf("%s is first for %d of 300 roots", id, n)
		}
	}
	if fmt.Sprint(rank(root, few)) != fmt.Sprint(rank(root, []meta.Node{few[2], few[0], few[1]})) {
		t.Error("the order of the roster shows")
	}
}

func TestKnowledgeIsBounded(t *testing.T) {
	k := newKnowledge(8, 1000)
	for i := range 20 {
		k.put(digest.CID{byte(i)}, known{encoded: bytes.Repeat([]byte{1}, 300)})
	}
	if k.bytes != 900 || k.lru.Len() != 3 {
		t.Errorf("%d bytes in %d entries", k.bytes, k.lru.Len())
	}
	for range 10 {
		k.put(digest.CID{19}, known{encoded: make([]byte, 100)})
	}
	for i := range 20 {
		k.put(digest.CID{100, byte(i)}, known{})
	}
	if k.bytes != 0 || k.lru.Len() != 8 {
		t.Errorf("%d bytes in %d entries", k.bytes, k.lru.Len())
	}
	k.put(digest.CID{1}, known{encoded: make([]byte, 5000)})
	if k.bytes != 0 || k.lru.Len() != 0 {
		t.Errorf("a map over the bound leaves %d bytes in %d entries", k.bytes, k.lru.Len())
	}
}
