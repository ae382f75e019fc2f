package swarm_test

import (
	"bufio"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/protocol"
	mocknet "github.com/libp2p/go-libp2p/p2p/net/mock"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/wire"
)

// Two thousand peers join one server at once: it takes as many as it may have and
// sends every other away at once, with when to come back and who is there, never by
// a timeout. The network is in memory, the server a real one.
func TestAServerOverCapacityRefersTwoThousand(t *testing.T) {
	const joining, capacity = 2000, 1024 // the default of a server
	net := mocknet.New()
	defer net.Close()
	newHost := func() host.Host {
		h, err := net.GenPeer()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	w := newTown(t)
	seed := w.addOn(newHost(), server)
	root := w.put(seed, random(8*chunk.MinBytes))
	peers := make([]host.Host, joining)
	for i := range peers {
		peers[i] = newHost()
		if _, err := net.LinkPeers(seed.host.ID(), peers[i].ID()); err != nil {
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	type answer struct {
		accepted bool
		busy     *wire.Busy
	}
	join := func(h host.Host) (a answer, err error) {
		st, err := h.NewStream(within(t), seed.host.ID(), protocol.ID(wire.ControlProtocol("test")))
		if err != nil {
			return a, err
		}
		grant, _ := w.grant(meta.NodeID(h.ID().String()), root)
		for _, m := range []wire.Message{
			{Hello: &wire.Hello{Version: 1, Seq: 1, Region: "eu"}}, {Join: &wire.Join{Root: root, Channel: 1, Grant: grant}},
		} {
			if err := wire.Write(st, m); err != nil {
				return a, err
			}
		}
		r := bufio.NewReader(st)
		for {
			m, err := wire.Read(r)
			switch {
			case err != nil:
				return a, err
			case m.Join != nil:
				return answer{accepted: true}, nil
			case m.Busy != nil && m.Busy.Request == 0:
				return answer{busy: m.Busy}, nil
			case m.Leave != nil:
				return a, fmt.Errorf("refused: %s", m.Leave.Reason)
			}
		}
	}
	answers := make([]answer, joining)
	var slowest atomic.Int64
	var group sync.WaitGroup
	began := time.Now()
	for i, h := range peers {
		group.Go(func() {
			start := time.Now()
			var err error
			if answers[i], err = join(h); err != nil {
				t.Errorf("peer %d: %v", i, err)
			}
			for took := int64(time.Since(start)); ; {
				if old := slowest.Load(); took <= old || slowest.CompareAndSwap(old, took) {
					break
				}
			}
		})
	}
	group.Wait()
	took := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)
	members := map[meta.NodeID]bool{}
	for i, a := range answers {
		if a.accepted {
			members[meta.NodeID(peers[i].ID().String())] = true
		}
	}
	referred, referrals := 0, 0
	for i, a := range answers {
		if a.busy == nil {
			continue
		}
		referred++
		referrals += len(a.busy.Peers)
		if a.busy.After <= 0 || len(a.busy.Peers) == 0 || len(a.busy.Peers) > wire.MaxPeers {
			t.Errorf("peer %d is to come back after %v, with %d referrals", i, a.busy.After, len(a.busy.Peers))
		}
		for _, p := range a.busy.Peers {
			if !members[p.ID] {
				t.Errorf("peer %d is referred to %s, who is no member", i, p.ID)
			}
		}
	}
	if len(members) != capacity || referred != joining-capacity {
		t.Errorf("%d taken, %d referred", len(members), referred)
	}
	t.Logf("%d joins in %v, the slowest %v: %d taken, %d referred to %.1f members each; %d KiB of memory a join, both sides and the network included",
		joining, took.Round(time.Millisecond), time.Duration(slowest.Load()).Round(time.Millisecond), len(members), referred,
		float64(referrals)/float64(max(referred, 1)), (int64(after.HeapAlloc)-int64(before.HeapAlloc))/joining>>10)
	if s := seed.Snapshot(); s.Roots[0].Peers > capacity {
		t.Errorf("the server has %d members", s.Roots[0].Peers)
	}
}
