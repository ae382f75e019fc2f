package swarm

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/wire"
)

const (
	yieldEvery = 250 * time.Millisecond
	// yieldIdle is after how long without any pre-warm it begins slowly again.
	yieldIdle = 10 * time.Second
)

// yielding holds what is pre-warmed to a rate at which round trips to peers stay short,
// so that all other traffic of the host, whoever's, keeps its share.
type yielding struct {
	begin time.Time

	mu         sync.Mutex
	background *limit.Background
}

func newYielding() *yielding {
	return &yielding{begin: time.Now(), background: limit.NewBackground()}
}

// sample notes a round trip; y may be nil, as in forget.
func (y *yielding) sample(id peer.ID, rtt time.Duration) {
	if y != nil {
		y.mu.Lock()
		defer y.mu.Unlock()
		y.background.Sample(time.Since(y.begin), string(id), rtt)
	}
}

func (y *yielding) forget(id peer.ID) {
	if y != nil {
		y.mu.Lock()
		defer y.mu.Unlock()
		y.background.Forget(string(id))
	}
}

// run sets the rate until ctx ends. While there is something to pre-warm it pings the
// peers more often than they are otherwise.
func (y *yielding) run(ctx context.Context, s *Swarm) {
	ticker := time.NewTicker(yieldEvery)
	defer ticker.Stop()
	var seen [2]int64
	var used time.Time
	idle := true
	s.cfg.Budgets.SetBackground(limit.MinRate)
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		// The direction that is used more is the one to judge by.
		var moved int64
		for d, n := range prewarmed(s.cfg.Budgets) {
			moved = max(moved, n-seen[d])
			seen[d] = n
		}
		if moved > 0 {
			used = time.Now()
		}
		if time.Since(used) > yieldIdle {
			if !idle {
				idle = true
				y.mu.Lock()
				y.background.Restart(time.Since(y.begin))
				y.mu.Unlock()
				s.cfg.Budgets.SetBackground(limit.MinRate)
			}
			continue
		}
		idle = false
		y.mu.Lock()
		rate := y.background.Step(time.Since(y.begin), moved)
		y.mu.Unlock()
		s.cfg.Budgets.SetBackground(rate)
		s.pingAll()
	}
}

// prewarmed returns how many bytes of the class have passed each way.
func prewarmed(b *limit.Budgets) (bytes [2]int64) {
	for _, c := range b.Counts() {
		if c.Class == limit.Prewarm {
			bytes[c.Direction] += c.Bytes
		}
	}
	return bytes
}

// pingAll pings the peers that are connected.
func (s *Swarm) pingAll() {
	s.mu.Lock()
	links := make([]*link, 0, len(s.links))
	for _, l := range s.links {
		select {
		case <-l.ready:
			links = append(links, l)
		default:
		}
	}
	s.mu.Unlock()
	for _, l := range links {
		l.send(wire.Message{Ping: &wire.Ping{Nonce: uint64(time.Now().UnixNano())}})
	}
}
