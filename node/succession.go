package node

import (
	"bytes"
	"context"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// succession keeps this node's papers at what the cluster says of its roots: when one is
// to be replaced it gets a certificate of the next too, says so, and when the old one was
// dropped it forgets it.
type succession struct {
	node *Node
	// news has a signal when the cluster's record may have changed; nil never does.
	news <-chan struct{}
	// every is how often it looks without news.
	every time.Duration
	// spread is by how long the nodes of a cluster come apart.
	spread func() time.Duration
}

// Bounds of following.
const (
	// cutOff is how long a node hears nothing before it supposes that its certificate may
	// be why, and once in a while proves its key instead.
	cutOff  = 20 * time.Second
	proving = time.Minute
	// again is when it looks whether what it began is through: behind the time for which
	// an agent's mirror gives an answer twice.
	again = 2500 * time.Millisecond
	// spreadEach is what each further node of a region adds to the time over which they
	// renew: 10,000 take 200 s.
	spreadEach = 20 * time.Millisecond
)

func (s succession) run(ctx context.Context) error {
	heard, proved := time.Now(), time.Now()
	for soon := false; ; {
		due, err := s.due(ctx)
		wait := s.every
		if due || soon {
			wait = min(wait, again) // What was begun has a second step; an agent's answer may be of before the news.
		}
		soon = false
		switch {
		case err != nil && time.Since(heard) > cutOff && time.Since(proved) > proving:
			proved = time.Now()
			s.node.cred.RenewEarly()
		case err == nil:
			heard = time.Now()
			if due && s.rest(ctx) {
				s.node.cred.RenewEarly()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.news:
			soon = true
		case <-time.After(wait):
		}
	}
}

// rest waits this node's turn.
func (s succession) rest(ctx context.Context) bool {
	longest := s.spread()
	if longest <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-time.After(rand.N(longest)):
		return true
	case <-ctx.Done():
		return false
	}
}

// due says whether the papers are not what they should be, or the cluster does not know
// yet that they are.
func (s succession) due(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	succession, _, err := raftmeta.Ask(ctx, s.node.metadata, meta.Local, state.GetTrust{})
	if err != nil {
		return false, err
	}
	cluster, asOf, err := raftmeta.Ask(ctx, s.node.metadata, meta.Local, state.GetCluster{})
	if err != nil {
		return false, err
	}
	if asOf.Stale {
		return false, &meta.UnavailableError{Reason: "no_server"}
	}
	papers := s.node.cred.Papers()
	switch {
	case !bytes.Equal(papers.Root, cluster.Root), !bytes.Equal(papers.Next, succession.Next):
		return true, nil
	case len(succession.Next) == 0:
		return false, nil
	}
	confirmed := s.node.confirmed.Load()
	return confirmed == nil || !bytes.Equal(*confirmed, meta.RootHash(succession.Next)), nil
}

// joinsHeld counts callers that were held back at the doors for those who are no nodes yet.
func (n *Node) joinsHeld() func() {
	return promauto.With(n.metrics).NewCounter(prometheus.CounterOpts{
		Name: "shoal_join_held_total", Help: "Calls to join, renew or ask for one's standing that were held back by their rate.",
	}).Inc
}
