package dht

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func kadProtocol(region meta.RegionName) protocol.ID {
	return Prefix(testCluster, region) + "/kad/1.0.0"
}

// TestUnenrolledCannotReachTheDHT is the test that the waiver of GO-2024-3218 in
// DESIGN.md rests on: Sybils are refused below the DHT, at the gate.
func TestUnenrolledCannotReachTheDHT(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	a, b := s.add("eu", "", meta.RoleAgent), s.add("eu", "", meta.RoleAgent)
	far := s.add("us", "", meta.RoleAgent)
	s.enrol()
	da, db := dhtOn(t, a, "eu"), dhtOn(t, b, "eu")
	dhtOn(t, far, "us")
	await(t, "acquaintance", func() bool { return da.Size() == 1 && db.Size() == 1 })
	var sybils []meta.NodeID
	for range 8 {
		other := &site{t: t}
		sybil := other.add("eu", "", meta.RoleAgent)
		// It knows the roster and speaks the protocol; nobody knows it.
		sybil.SetRoster([]meta.Node{a.Node, b.Node, sybil.Node})
		d := dhtOn(t, sybil, "eu")
		for _, victim := range []node{a, b} {
			if s, err := sybil.NewStream(ctx, peerIDOf(victim), kadProtocol("eu")); err == nil {
				s.SetDeadline(time.Now().Add(30 * time.Second))
				s.Write([]byte{0})
				if _, err := s.Read(make([]byte, 1)); err == nil {
					t.Fatal("an unenrolled peer reads from the DHT")
				}
				s.Reset()
			}
		}
		if err := d.Provide(ctx, digest.Sum([]byte("root"))); err == nil && d.Size() != 0 {
			t.Error("an unenrolled peer has somebody in its routing table")
		}
		sybils = append(sybils, sybil.id())
	}
	if da.Size() != 1 || db.Size() != 1 {
		t.Errorf("routing tables have %d and %d nodes: %v came in", da.Size(), db.Size(), sybils)
	}
	found, err := da.FindProviders(ctx, digest.Sum([]byte("root")), MaxPeers)
	if err != nil || len(found) != 0 {
		t.Errorf("found %v, %v", found, err)
	}
	// An enrolled node of another region is connected, and still no part of it.
	if stream, err := far.NewStream(ctx, peerIDOf(a), kadProtocol("us")); err == nil {
		stream.SetDeadline(time.Now().Add(30 * time.Second))
		stream.Write([]byte{0})
		if _, err := stream.Read(make([]byte, 1)); err == nil {
			t.Error("the DHT of another region answers")
		}
		stream.Reset()
	}
	if da.Size() != 1 {
		t.Error("a node of another region is in the routing table")
	}
}

func TestPrefixesAreApart(t *testing.T) {
	root := someRoot()
	keys, prefixes := map[string]bool{}, map[protocol.ID]bool{}
	for _, scope := range []struct {
		cluster string
		region  meta.RegionName
	}{{"a", "eu"}, {"a", "us"}, {"a", ""}, {"b", "eu"}, {"b", ""}} {
		d := &DHT{cfg: DHTConfig{Cluster: scope.cluster, Region: scope.region}}
		keys[d.key(root).String()] = true
		prefixes[Prefix(scope.cluster, scope.region)] = true
	}
	if len(keys) != 5 || len(prefixes) != 5 {
		t.Errorf("%d keys, %d prefixes", len(keys), len(prefixes))
	}
	if meta.CheckRegion(serversScope) == nil {
		t.Error("a region may be named as the scope of the servers")
	}
}

func TestDHTBeforeRun(t *testing.T) {
	s := &site{t: t}
	n := s.add("eu", "", meta.RoleAgent)
	d, err := NewDHT(DHTConfig{Host: n.Host, Cluster: testCluster, Region: "eu", Self: n.id(), Roster: n.Host})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Provide(t.Context(), someRoot()); err == nil {
		t.Error("provides before Run")
	}
	if _, err := d.FindProviders(t.Context(), someRoot(), 1); err == nil {
		t.Error("finds before Run")
	}
}

// TestBootstrapMixesServersAndAgents: with servers alone a region would lose its
// DHT together with them, which is when it is needed.
func TestBootstrapMixesServersAndAgents(t *testing.T) {
	s := &site{t: t}
	self := s.add("eu", "", meta.RoleAgent)
	for range 6 {
		s.add("eu", "", meta.RoleServer)
	}
	for range 6 {
		s.add("eu", "", meta.RoleAgent)
	}
	s.add("us", "", meta.RoleServer)
	s.enrol()
	d := &DHT{cfg: DHTConfig{Region: "eu", Self: self.id(), Roster: self.Host}}
	servers := 0
	got := d.bootstrap()
	for _, info := range got {
		n, ok := self.Host.Node(meta.NodeID(info.ID.String()))
		if !ok || n.Region != "eu" || n.ID == self.id() {
			t.Errorf("begins with %+v", n)
		}
		if n.Role == meta.RoleServer {
			servers++
		}
	}
	if len(got) != bootstrapPeers || servers != bootstrapPeers/2 {
		t.Errorf("%d nodes, %d servers", len(got), servers)
	}
}

func TestRecordsAreBounded(t *testing.T) {
	ctx := t.Context()
	s := newRecordStore(recordLimits{total: 20, perKey: 4, perProvider: 6})
	put := func(key, provider string) { s.Put(ctx, ds.NewKey("/providers/"+key+"/"+provider), []byte(provider)) }
	list := func(prefix string) []dsq.Entry {
		res, err := s.Query(ctx, dsq.Query{Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		entries, err := res.Rest()
		if err != nil {
			t.Fatal(err)
		}
		return entries
	}
	for i := range 10 {
		put("HOT", fmt.Sprint("P", i))
	}
	if got := len(list("/providers/HOT")); got != 4 {
		t.Errorf("%d records of one key", got)
	}
	for i := range 10 {
		put(fmt.Sprint("K", i), "GREEDY")
	}
	if got := s.perProvider["GREEDY"]; got != 6 {
		t.Errorf("%d records of one provider", got)
	}
	for i := range 100 {
		put(fmt.Sprint("X", i), fmt.Sprint("Q", i))
	}
	if got := len(list("/providers/")); got != 20 || s.total != 20 {
		t.Errorf("%d records, counted %d", got, s.total)
	}
	if got := len(list("/providers/NONE")) + len(list("/providers/X")); got != 0 {
		t.Errorf("%d records of keys that are not there", got)
	}
	k := ds.NewKey("/providers/HOT/P0")
	put("HOT", "P0") // a known record is refreshed also when full
	if v, err := s.Get(ctx, k); err != nil || string(v) != "P0" {
		t.Errorf("%q, %v", v, err)
	}
	for _, e := range list("/providers") {
		if err := s.Delete(ctx, ds.RawKey(e.Key)); err != nil {
			t.Fatal(err)
		}
	}
	if s.total != 0 || len(s.keys) != 0 || len(s.perProvider) != 0 {
		t.Errorf("left: %d records, %d keys, %d providers", s.total, len(s.keys), len(s.perProvider))
	}
	if _, err := s.Get(ctx, k); err != ds.ErrNotFound {
		t.Errorf("deleted: %v", err)
	}
}

// TestAnnouncerForgets runs the clock: what is neither a membership nor held is
// forgotten when it is due again; what is held stays.
func TestAnnouncerForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept, lost := someRoot(), someRoot()
		// The DHT never ran, so each announcement fails and is due with every tick.
		a := newAnnouncer("self", &DHT{}, func(_ context.Context, root digest.CID) bool { return root == kept })
		ctx, cancel := context.WithCancel(t.Context())
		ticks, done := 0, make(chan struct{}) // ticks is read after done
		go func() { defer close(done); a.run(ctx, func(time.Time) { ticks++ }) }()
		known := func(root digest.CID) bool { a.mu.Lock(); defer a.mu.Unlock(); return a.roots[root] != nil }
		a.add(kept, 10)
		a.add(lost, 10)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if !known(kept) || !known(lost) {
			t.Error("forgotten while a member")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if !known(kept) || known(lost) {
			t.Errorf("after the membership: what is held is known %v, what is not %v", known(kept), known(lost))
		}
		cancel()
		<-done
		if ticks != 63 {
			t.Errorf("%d ticks", ticks)
		}
		for i := range announceRoots + 10 {
			a.add(digest.Sum(fmt.Append(nil, i)), 1)
		}
		if len(a.roots) > announceRoots {
			t.Errorf("%d roots are remembered", len(a.roots))
		}
	})
}
