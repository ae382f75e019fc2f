package upstream

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/semaphore"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// flightKey names a download: equal ones are one. What is promised of the bytes, and how
// many they may be, is part of it, so that a false promise fails for who made it only.
type flightKey struct {
	repo         meta.RepoRef
	upstream     string // that the repository has
	path, accept string
	kind         Kind
	promise      string
	max          int64
	raw          bool
}

func keyOf(repo *meta.Repository, w *Want) flightKey {
	var promise strings.Builder
	promise.WriteString(string(w.Digest))
	for _, algorithm := range slices.Sorted(maps.Keys(w.Sums)) {
		fmt.Fprintf(&promise, " %q:%q", algorithm, w.Sums[algorithm])
	}
	return flightKey{repo: repo.Ref, upstream: upstreamOf(repo, w.Path), path: w.Path, accept: w.Accept, kind: w.Kind, promise: promise.String(), max: w.MaxBytes, raw: w.Raw}
}

// flight is a download under way, with those that wait for it. It ends when it is done or
// when nobody waits any more.
type flight struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int      // under the engine's mu
	arrival *arrival // nil unless the first to board reads while it arrives
	found   *Found
	err     error
}

// own gets what is wanted, together with all others that want it. watch, when not nil, is
// told of what arrives.
func (e *Engine) own(ctx context.Context, repo *meta.Repository, w *Want, watch func(*arrival)) (*Found, error) {
	key := keyOf(repo, w)
	for {
		f, joined := e.board(key, repo, w, watch != nil)
		if joined {
			e.metrics.answers.WithLabelValues("coalesced").Inc()
		} else {
			e.metrics.answers.WithLabelValues("fetched").Inc()
		}
		if watch != nil && f.arrival != nil {
			watch(f.arrival)
		}
		select {
		case <-f.done:
			e.leave(f)
			if f.err != nil && context.Cause(e.base) == nil && ctx.Err() == nil && isCanceled(f.err) {
				continue // it ended as its last waiter left, at the moment this one came
			}
			if f.err != nil {
				return nil, f.err
			}
			copied := *f.found
			return &copied, nil
		case <-ctx.Done():
			e.leave(f)
			return nil, fmt.Errorf("wait for %s of the upstream of %s: %w", w.Path, repo.Ref, context.Cause(ctx))
		}
	}
}

func (e *Engine) board(key flightKey, repo *meta.Repository, w *Want, streams bool) (f *flight, joined bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.flights[key]; f != nil {
		f.waiters++
		return f, true
	}
	ctx, cancel := context.WithCancel(e.base)
	f = &flight{done: make(chan struct{}), cancel: cancel, waiters: 1}
	if streams {
		f.arrival = newArrival()
	}
	e.flights[key] = f
	r, want := *repo, *w
	e.running.Go(func() {
		defer cancel()
		f.found, f.err = e.get(ctx, &r, &want, key, f.arrival)
		e.mu.Lock()
		delete(e.flights, key)
		e.mu.Unlock()
		close(f.done)
	})
	return f, false
}

// share is what one tenant may have of the places for downloads.
type share struct {
	slots *semaphore.Weighted
	users int // under the engine's mu
}

// place waits for a place to download: first among those of the tenant, so that one whose
// upstreams are slow does not have the others wait. The caller calls leave.
func (e *Engine) place(ctx context.Context, tenant meta.TenantName) (leave func(), _ error) {
	e.mu.Lock()
	s := e.tenants[tenant]
	if s == nil {
		s = &share{slots: semaphore.NewWeighted(maxTenantDownloads)}
		e.tenants[tenant] = s
	}
	s.users++
	e.mu.Unlock()
	gone := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(e.tenants, tenant)
		}
	}
	err := s.slots.Acquire(ctx, 1)
	if err == nil {
		if err = e.slots.Acquire(ctx, 1); err != nil {
			s.slots.Release(1)
		}
	}
	if err != nil {
		gone()
		return nil, fmt.Errorf("wait for a place to download: %w", context.Cause(ctx))
	}
	return func() {
		e.slots.Release(1)
		s.slots.Release(1)
		gone()
	}, nil
}

func (e *Engine) leave(f *flight) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.cancel()
	}
}
