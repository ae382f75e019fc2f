package dht

import (
	"context"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	// announceEvery is how often a root is announced again, a third of the time
	// for which the DHT keeps it.
	announceEvery = 10 * time.Minute
	announceValid = 3 * announceEvery
	announceTime  = 20 * time.Second
	announceRoots = 4096
	announceTick  = time.Second
)

// announcer announces in the DHT that this node has roots: soon after it was told
// of one, and again every announceEvery while it still holds it. One announcement
// is under way at a time.
type announcer struct {
	self meta.NodeID
	dht  *DHT
	held func(context.Context, digest.CID) bool

	mu    sync.Mutex
	roots map[digest.CID]*announcement
}

type announcement struct {
	members int
	due     time.Time
	told    time.Time // when add was last called
}

func newAnnouncer(self meta.NodeID, d *DHT, held func(context.Context, digest.CID) bool) *announcer {
	return &announcer{self: self, dht: d, held: held, roots: map[digest.CID]*announcement{}}
}

// add says that this node has some of root, in a swarm of that many members.
// When too many roots are remembered the new one is not announced.
func (a *announcer) add(root digest.CID, members int) {
	if a.dht == nil {
		return
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.roots[root]
	if r == nil {
		if len(a.roots) >= announceRoots {
			return
		}
		r = &announcement{due: now}
		a.roots[root] = r
	}
	r.told = now
	if members > 0 {
		r.members = members
	}
}

// run announces until ctx ends, and calls tick each second.
func (a *announcer) run(ctx context.Context, tick func(now time.Time)) error {
	ticker := time.NewTicker(announceTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			tick(now)
			a.round(ctx, now)
		}
	}
}

// round announces what is due. It stops at the first failure, which is the DHT's
// and not the root's.
func (a *announcer) round(ctx context.Context, now time.Time) {
	for root, members := range a.due(now) {
		if ctx.Err() != nil {
			return
		}
		if !a.stillHeld(ctx, root, now) {
			a.forget(root)
			continue
		}
		if provides(root, a.self, members) {
			limited, cancel := context.WithTimeout(ctx, announceTime)
			err := a.dht.Provide(limited, root)
			cancel()
			if err != nil {
				return // due again with the next tick
			}
		}
		a.mu.Lock()
		if r := a.roots[root]; r != nil {
			r.due = now.Add(announceEvery)
		}
		a.mu.Unlock()
	}
}

func (a *announcer) due(now time.Time) map[digest.CID]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[digest.CID]int{}
	for root, r := range a.roots {
		if !r.due.After(now) {
			out[root] = r.members
		}
	}
	return out
}

func (a *announcer) stillHeld(ctx context.Context, root digest.CID, now time.Time) bool {
	a.mu.Lock()
	r := a.roots[root]
	recent := r != nil && now.Sub(r.told) < 2*againComplete
	a.mu.Unlock()
	return recent || a.held != nil && a.held(ctx, root)
}

func (a *announcer) forget(root digest.CID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.roots, root)
}
