package node

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/shoal-registry/shoal/dht"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/wait"
	"github.com/shoal-registry/shoal/verify/digest"
)

// rescue offers what this agent has in its cache of blobs that no server has any more:
// it joins their swarms, so that the region's servers find it, until they have them.
type rescue struct {
	metadata raftmeta.Asker
	store    store.Store
	finder   interface {
		Join(context.Context, dht.Want) (dht.Introduction, error)
	}
	// lost has a signal when blobs may have been lost.
	lost <-chan struct{}
	log  *slog.Logger
	// spread is how long agents wait at most before they ask, each as long as chance
	// says; they hear of a loss at the same time.
	spread time.Duration
}

const (
	rescueSpread = 2 * time.Second
	rescueMost   = 10_000           // lost blobs looked at
	rescueAgain  = 10 * time.Second // a membership lasts a little longer
	rescueFor    = 10 * time.Minute // after which it waits for the next signal
)

func (r rescue) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.lost:
		}
		for until := time.Now().Add(rescueFor); time.Now().Before(until); {
			if !wait.For(ctx, rand.N(r.spread+1)) {
				return nil
			}
			if offered, err := r.offer(ctx); err != nil {
				r.log.Debug("not all that is lost was offered, trying again", "error", err)
			} else if offered == 0 {
				break
			}
			if !wait.For(ctx, rescueAgain) {
				return nil
			}
		}
	}
}

// offer joins the swarm of each lost blob that is here, also in part, and returns how
// many there are. It reads strongly: after an answer of before the loss it would not ask
// again, as the signal is spent.
//
// Errors: of the question; of a blob that could not be offered.
func (r rescue) offer(ctx context.Context) (offered int, _ error) {
	page := state.Page{Limit: 1000}
	var failed error
	for seen := 0; seen < rescueMost; {
		lost, _, err := raftmeta.Ask(ctx, r.metadata, meta.Strong, state.ListLost{Page: page})
		if err != nil {
			return offered, err
		}
		for _, l := range lost {
			want, ok := r.have(ctx, l.Root)
			if !ok {
				continue
			}
			if _, err := r.finder.Join(ctx, want); err != nil {
				failed = fmt.Errorf("offer %s: %w", l.Root, err)
				continue
			}
			r.log.Info("offering a blob that no server has any more", "root", l.Root.String(), "complete", want.Complete)
			offered++
		}
		if seen += len(lost); len(lost) < page.Limit {
			return offered, failed
		}
		page.After = lost[len(lost)-1].Root.String()
	}
	return offered, failed
}

// relief takes in what hosts of this region offer of blobs that no server has, also of
// those that other regions owe: from then on there is a server to copy it from.
type relief struct {
	metadata raftmeta.Asker
	doer     raftmeta.Doer
	self     meta.NodeID
	holder   meta.NodeID // whose copy it becomes
	// offered returns how many hosts of the region have all of a blob.
	offered func(digest.CID) int
	ensure  func(context.Context, meta.Blob) error
	log     *slog.Logger
}

const (
	reliefEvery = 5 * time.Second
	reliefTime  = 10 * time.Minute // for one blob
)

func (r relief) run(ctx context.Context) error {
	for wait.For(ctx, reliefEvery) {
		lost, _, err := raftmeta.Ask(ctx, r.metadata, meta.Local, state.ListLost{})
		if err != nil {
			continue // it is asked again
		}
		for _, l := range lost {
			if r.offered(l.Root) == 0 {
				continue
			}
			if err := r.take(ctx, l); err != nil && ctx.Err() == nil {
				r.log.Warn("a blob that no server has was not taken from a host's cache", "root", l.Root.String(), "error", err)
			}
		}
	}
	return nil
}

// take fetches a blob and says that it is here.
func (r relief) take(ctx context.Context, l meta.LostBlob) error {
	limited, cancel := context.WithTimeout(limit.WithClass(ctx, limit.Bulk), reliefTime)
	defer cancel()
	if err := r.ensure(limited, meta.Blob{Context: l.Context, Digest: l.Digest, Root: l.Root, StoredBytes: l.StoredBytes}); err != nil {
		return err
	}
	r.log.Info("took a blob that no server had from a host's cache", "root", l.Root.String())
	return reporter{r.metadata, r.doer, r.self}.Report(ctx, []meta.Replica{{Root: l.Root, Server: r.holder, State: meta.ReplicaVerified}})
}

// have says what is here of a blob.
func (r rescue) have(ctx context.Context, root digest.CID) (dht.Want, bool) {
	b, err := r.store.Open(ctx, root)
	if err != nil {
		return dht.Want{}, false
	}
	defer b.Close()
	want := dht.Want{Root: root, Have: b.Have().Count(), Complete: b.Complete()}
	return want, want.Have > 0
}
