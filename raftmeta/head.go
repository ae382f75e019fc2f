package raftmeta

import (
	"context"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Revision is the access revision of this server's state: it is never behind what is
// applied.
func (s *Store) Revision() uint64 {
	revision, _ := s.machine.AccessRevision()
	return revision
}

// Age bounds how far this server's state may lie behind what was acknowledged: the age
// of its last read round; meta.UnknownAge before the first.
func (s *Store) Age() time.Duration {
	age, _ := s.node.Confirmed()
	return age
}

// Confirm makes Age small: it joins a read round.
//
// Errors: *meta.UnavailableError without a quorum; of ctx.
func (s *Store) Confirm(ctx context.Context) error {
	_, err := s.node.Read(ctx, meta.Strong)
	return err
}

// Reachable reports whether the last read round found a quorum.
func (s *Store) Reachable() bool {
	_, failing := s.node.Confirmed()
	return !failing
}

// AccessHead answers how far the revocation of rights has come, as of at most
// meta.Bounded before the answer and not before seen. While the revision is still that
// of seen it waits for another, up to wait.
//
// Errors: *meta.UnavailableError without a quorum; of ctx.
func (s *Store) AccessHead(ctx context.Context, seen meta.AccessHead, wait time.Duration) (meta.AccessHead, time.Duration, error) {
	if revision, changed := s.machine.AccessRevision(); revision == seen.Revision && wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return meta.AccessHead{}, 0, context.Cause(ctx)
		}
	}
	f := meta.Bounded
	f.Exact = true // a head that is not confirmed is none
	now, err := s.view.read()
	if err != nil {
		return meta.AccessHead{}, 0, err
	}
	if seen.Epoch >= now.epoch { // what is of an older one is void
		f.After = meta.Token{Epoch: seen.Epoch, Index: seen.Index}
	}
	h, asOf, err := Ask(ctx, s, f, state.GetAccessHead{})
	return h, asOf.Age, err
}
