package node

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// nearness measures how far regions are from an agent, so that it knows where to turn
// when its own has no server left: how long a TCP connection to one of their gateways
// takes. Servers know it from their metadata's own traffic.
type nearness struct {
	nodes interface {
		Nodes(meta.RegionName, meta.Role) []meta.Node
	}
	self meta.Node
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu      sync.Mutex
	regions map[meta.RegionName]*trips
}

// trips are the last measurements of a region.
type trips struct {
	last [4]time.Duration
	next int
}

const (
	// measureEvery is how often each region is measured, give or take a quarter; it costs
	// a server a connection an agent. The first times come sooner.
	measureEvery = time.Minute
	measureFirst = 2 * time.Second
	measureTime  = 2 * time.Second
	// maxMeasured bounds the regions.
	maxMeasured = 64
)

func newNearness(nodes interface {
	Nodes(meta.RegionName, meta.Role) []meta.Node
}, self meta.Node) *nearness {
	return &nearness{nodes: nodes, self: self, dial: (&net.Dialer{}).DialContext, regions: map[meta.RegionName]*trips{}}
}

// to returns the round trip to a region, 0 while it is unknown. The shortest of late is
// the link's own; the others met a busy machine.
func (n *nearness) to(region meta.RegionName) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	t, ok := n.regions[region]
	if !ok {
		return 0
	}
	least := time.Duration(0)
	for _, d := range t.last[:min(t.next, len(t.last))] {
		if least == 0 || d < least {
			least = d
		}
	}
	return least
}

// run measures until ctx ends.
func (n *nearness) run(ctx context.Context) error {
	for turn := 0; ; turn++ {
		pause := measureEvery - measureEvery/4 + rand.N(measureEvery/2)
		if turn < 3 {
			pause = measureFirst
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		n.measure(ctx)
	}
}

// measure connects to a server of each region, drawn anew each time.
func (n *nearness) measure(ctx context.Context) {
	regions := map[meta.RegionName][]meta.Node{}
	for _, s := range n.nodes.Nodes("", meta.RoleServer) {
		if s.Region != n.self.Region && (len(regions) < maxMeasured || regions[s.Region] != nil) {
			regions[s.Region] = append(regions[s.Region], s)
		}
	}
	n.mu.Lock()
	for region := range n.regions {
		if regions[region] == nil {
			delete(n.regions, region)
		}
	}
	n.mu.Unlock()
	for region, servers := range regions {
		limited, cancel := context.WithTimeout(ctx, measureTime)
		began := time.Now()
		conn, err := n.dial(limited, "tcp", servers[rand.IntN(len(servers))].Gateway)
		took := time.Since(began)
		cancel()
		if err != nil {
			continue // what it was is the best guess of what it will be
		}
		conn.Close()
		n.mu.Lock()
		t := n.regions[region]
		if t == nil {
			t = &trips{}
			n.regions[region] = t
		}
		t.last[t.next%len(t.last)] = max(took, time.Microsecond)
		t.next++
		n.mu.Unlock()
	}
}
