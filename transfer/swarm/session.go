package swarm

import (
	"context"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
)

// Session is one caller's hold on the fetch of a root. It is safe for concurrent use.
type Session struct {
	m  *membership
	id uint32
	// Guarded by m.mu.
	from, to int
	closed   bool
	options  FetchOptions
}

// Blob waits until the map is known and the blob exists in the store, partial or
// complete. It stays valid until Close and belongs to the swarm: the caller does
// not close it.
//
// Errors: ctx's, with meta.ErrUnavailable and what was missing; the fetch's own (Err).
func (s *Session) Blob(ctx context.Context) (store.Blob, error) {
	m := s.m
	select {
	case <-m.opened:
	case <-m.failed:
		return nil, m.failure()
	case <-ctx.Done():
		return nil, m.gaveUp(ctx, "its chunk map")
	}
	return m.blob, nil
}

// Map is the map of Blob.
func (s *Session) Map(ctx context.Context) (*chunk.Map, error) {
	b, err := s.Blob(ctx)
	if err != nil {
		return nil, err
	}
	return b.Map(), nil
}

// Prefer says that this caller wants the chunks [from, to) and reads them in that
// order; to < 0 means to the end, from == to nothing. It replaces what was
// said before, and does not block.
func (s *Session) Prefer(from, to int) {
	m := s.m
	m.mu.Lock()
	s.from, s.to = from, to
	m.changed[s.id] = s
	m.local.wants(from, false)
	m.mu.Unlock()
	m.wake()
}

// Wait returns nil as soon as chunk i is in the store, verified. A chunk outside of
// what the caller preferred becomes wanted, up to the next Prefer.
//
// Errors: ctx's, with meta.ErrUnavailable and what was missing; the fetch's own.
func (s *Session) Wait(ctx context.Context, i int) error {
	m := s.m
	m.mu.Lock()
	if m.have.Has(i) {
		m.mu.Unlock()
		return nil
	}
	if i < s.from || s.to >= 0 && i >= s.to {
		s.from, s.to = i, i+1
		m.changed[s.id] = s
	}
	m.local.wants(i, true)
	arrived := make(chan struct{})
	m.waiters[i] = append(m.waiters[i], arrived)
	m.mu.Unlock()
	m.wake()
	defer m.unwait(i, arrived)
	select {
	case <-arrived:
		return nil
	case <-m.failed:
		return m.failure()
	case <-ctx.Done():
		return m.gaveUp(ctx, fmt.Sprintf("chunk %d", i))
	}
}

// Done is closed when every chunk has come or the fetch has failed; Err tells which.
func (s *Session) Done() <-chan struct{} { return s.m.done }

// Err returns why the fetch failed, nil while it runs and when the blob is complete.
//
// It wraps meta.ErrNotFound or meta.ErrDenied from the Finder, meta.ErrNoSpace from
// the store, or meta.ErrUnavailable when the swarm stops.
func (s *Session) Err() error {
	select {
	case <-s.m.failed:
		return s.m.failure()
	default:
		return nil
	}
}

// Close lets go. The last one ends the fetch; what has come stays in the store.
func (s *Session) Close() error {
	m := s.m
	m.s.mu.Lock() // attaching and ending are decided under it
	defer m.s.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	delete(m.sessions, s.id)
	m.changed[s.id] = s
	m.used = time.Now()
	m.reclassify()
	if len(m.sessions) == 0 {
		m.s.fetching.Release(1)
		if m.blob != nil {
			m.blob.Yield(true)
		}
	}
	m.wake()
	return nil
}

// gaveUp is the error of a caller that waited in vain for what.
func (m *membership) gaveUp(ctx context.Context, what string) error {
	m.mu.Lock()
	reason := m.trouble
	m.mu.Unlock()
	if reason == "" {
		reason = "no peer has sent it yet"
	}
	return fmt.Errorf("fetch %s: wait for %s: %s: %w: %w", m.root, what, reason, meta.ErrUnavailable, ctx.Err())
}
