package dht

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// The DHT of a region knows no tenants: who may not have those of all is told nothing by
// it, not even by a node that holds the very root. Nor is a node of another region.
func TestNarrowedNodesAreToldNothingByTheDHT(t *testing.T) {
	ctx := within(t)
	s := &site{t: t}
	a, b := s.add("eu", "", meta.RoleAgent), s.add("eu", "", meta.RoleAgent)
	narrow, far := s.add("eu", "", meta.RoleAgent), s.add("us", "", meta.RoleAgent)
	for i := range s.nodes {
		if s.nodes[i].id() == narrow.id() {
			s.nodes[i].Tenants = []string{"acme"}
		}
	}
	s.enrol()
	var refused atomic.Int64
	join := func(n node) *DHT {
		d, err := NewDHT(DHTConfig{Host: n.Host, Cluster: testCluster, Region: "eu", Self: n.id(), Roster: n.Host, Refused: func(meta.NodeID) { refused.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		start(t, d.Run)
		return d
	}
	da, db := join(a), join(b)
	await(t, "acquaintance", func() bool { return da.Size() == 1 && db.Size() == 1 })
	root := digest.Sum([]byte("another tenant's"))
	if err := db.Provide(ctx, root); err != nil {
		t.Fatal(err)
	}
	if found, err := da.FindProviders(ctx, root, MaxPeers); err != nil || len(found) != 1 {
		t.Fatalf("found %v, %v", found, err)
	}
	// Its own part does not begin, and without it it is told nothing either.
	if found, _ := join(narrow).FindProviders(ctx, root, MaxPeers); len(found) != 0 {
		t.Errorf("a narrowed node found %v", found)
	}
	for _, n := range []node{narrow, far} {
		for _, victim := range []node{a, b} {
			before := refused.Load()
			stream, err := n.NewStream(ctx, peerIDOf(victim), kadProtocol("eu"))
			if err != nil {
				continue // refused earlier still
			}
			_ = stream.SetDeadline(time.Now().Add(30 * time.Second))
			_, _ = stream.Write([]byte{2, 8, 3}) // a GET_PROVIDERS of nothing
			if _, err := stream.Read(make([]byte, 1)); err == nil {
				t.Errorf("the DHT answered %v of %s", n.Tenants, n.Region)
			}
			_ = stream.Reset()
			await(t, "the refusal to be counted", func() bool { return refused.Load() > before })
		}
	}
	if da.Size() != 1 || db.Size() != 1 {
		t.Errorf("routing tables have %d and %d nodes", da.Size(), db.Size())
	}
}
