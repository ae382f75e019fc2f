package swarm_test

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/swarm"
)

// TestEachChunkEntersARegionOnce: two servers of one region share the fetch, a third
// region's takes from them what the origin has sent there.
func TestEachChunkEntersARegionOnce(t *testing.T) {
	w := newTown(t)
	origin := w.add(server, region("us"))
	content := random(40 * chunk.MinBytes)
	root := w.put(origin, content)
	nodes := []*node{w.add(server), w.add(server), w.add(server, region("ap"))}
	var all sync.WaitGroup
	for _, n := range nodes {
		all.Go(func() {
			got, err := n.fetch(within(t), root)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("a server got %d bytes: %v", len(got), err)
			}
		})
	}
	all.Wait()
	size := float64(len(content))
	entered := float64(nodes[0].Snapshot().Totals.In.WAN+nodes[1].Snapshot().Totals.In.WAN) / size
	sent := float64(origin.Snapshot().Totals.Out.WAN) / size
	t.Logf("%.2f copies entered the region of two servers, the origin sent %.2f for two regions", entered, sent)
	if entered > 1.2 {
		t.Errorf("%.2f copies entered the region of two servers", entered)
	}
	if sent > 1.7 {
		t.Errorf("the origin sent %.2f copies for two regions", sent)
	}
}

// TestAServerThatIsAwayIsKnownToBeForTheNextRoot: the fetch of a root finds out, and goes on
// beyond; one that is reached is not taken for away.
func TestAServerThatIsAwayIsKnownToBeForTheNextRoot(t *testing.T) {
	w := newTown(t)
	origin, away := w.add(server, region("us")), w.add(server)
	n := w.add(server)
	content := random(8 * chunk.MinBytes)
	root := w.put(origin, content)
	w.join(root, away.self)
	away.kill()
	if got, err := n.fetch(within(t), root); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	await(t, "what is away to be known", func() bool { return n.IsMissed(away.host.ID()) })
	if n.IsMissed(origin.host.ID()) {
		t.Error("the origin, which was reached, is taken for away")
	}
}

// elsewhere is the Finder of an agent that is elected to fetch from another region,
// until home is set.
type elsewhere struct {
	finder
	mu     sync.Mutex
	beyond swarm.Peer
	home   bool
}

func (f *elsewhere) Join(ctx context.Context, want swarm.Want) (swarm.Introduction, error) {
	in, err := f.finder.Join(ctx, want)
	f.mu.Lock()
	defer f.mu.Unlock()
	if in.Again = 20 * time.Millisecond; !f.home {
		in.Peers = []swarm.Peer{f.beyond}
	}
	return in, err
}

// TestAnElectedAgentFetchesFromBeyondUntilItsRegionHasAServer: the Finder decides, the
// swarm takes what it vouches for and lets it go again.
func TestAnElectedAgentFetchesFromBeyondUntilItsRegionHasAServer(t *testing.T) {
	w := newTown(t)
	origin := w.add(server, region("us"))
	content := random(8 * chunk.MinBytes)
	root := w.put(origin, content)
	f := &elsewhere{beyond: origin.self}
	agent := w.add(func(c *swarm.Config) { c.Finder = f })
	f.n = agent
	session, err := agent.Fetch(within(t), root, swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if got, err := read(within(t), session, 0, 4); err != nil || !bytes.Equal(got, content[:4*chunk.MinBytes]) {
		t.Fatalf("from beyond: %d bytes, %v", len(got), err)
	}
	local := w.add(server)
	if _, err := local.fetch(within(t), root); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.home = true
	f.mu.Unlock()
	joins := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return agent.joins
	}
	since := joins()
	await(t, "introductions at home", func() bool { return joins() >= since+3 })
	before := origin.bytes("sent", "")
	if got, err := read(within(t), session, 4, -1); err != nil || !bytes.Equal(got, content[4*chunk.MinBytes:]) {
		t.Fatalf("at home: %d bytes, %v", len(got), err)
	}
	if got := origin.bytes("sent", ""); got != before {
		t.Errorf("%d bytes came from beyond although the region has a server again", got-before)
	}
}
