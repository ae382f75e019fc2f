package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Times of calls that last.
const (
	// watchEvery is how often calls that last are looked at; with a change of the access
	// revision they are judged again.
	watchEvery = 500 * time.Millisecond
	// judgeEvery is how often they are judged again without one.
	judgeEvery = 10 * time.Second
	// judgedAtOnce bounds the calls that are judged again at the same time.
	judgedAtOnce = 16
)

// confirmer is a Head that can be made fresh on demand: a server that has just started
// takes calls before its first read round, and asks for one rather than refuse.
type confirmer interface {
	// Confirm waits for a quorum's word. Errors: meta.ErrUnavailable.
	Confirm(context.Context) error
}

// leased says whether the revocation head allows a call that was authorised. A read that
// goes on without a server says so.
//
// Errors: *access.LeaseError.
func (g *Gateway) leased(call *protocol.Call, action access.Action) error {
	fresh, err := g.judgeLease(call, action)
	if c, ok := g.Head.(confirmer); ok && fresh == access.Lapsed {
		if none := c.Confirm(call.R.Context()); none == nil {
			fresh, err = g.judgeLease(call, action)
		} else if errors.Is(none, meta.ErrUnavailable) {
			err = fmt.Errorf("whether rights were taken back: %w", none) // no_quorum says more than an age
		}
	}
	switch fresh {
	case access.Degraded:
		g.metrics.degraded.Inc()
		call.Degraded = true
		call.W.Header().Set(protocol.HeaderStale, "1")
	case access.Lapsed:
		g.metrics.lapsed.Inc()
	}
	return err
}

func (g *Gateway) judgeLease(call *protocol.Call, action access.Action) (access.Freshness, error) {
	writes, private := leaseOf(call, action)
	if g.Head == nil || !writes && !private {
		return access.Fresh, nil
	}
	return access.Judge(g.Head.Age(), g.Head.Reachable(), writes, private, access.DegradedOf(call.Repository))
}

// leaseOf says what a call needs the head for: to change something, or to read what not
// everybody may.
func leaseOf(call *protocol.Call, action access.Action) (writes, private bool) {
	switch action {
	case access.Public, access.Login, access.NodeOnly:
		return false, false
	}
	if call.R.Method != http.MethodGet && call.R.Method != http.MethodHead {
		return true, false
	}
	if call.Repository != nil {
		return false, call.Repository.Visibility != meta.VisibilityPublic
	}
	return false, call.Who.Name != meta.Anonymous.Name
}

// watched is a call that may last longer than the rights that it began with.
type watched struct {
	e      *exchange
	call   protocol.Call // as it was admitted
	route  *protocol.Route
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu   sync.Mutex
	over bool // it must not be cut any more

	// Of who has set judging.
	judging  atomic.Bool
	judged   time.Time
	revision uint64
}

// watcher keeps the calls under way that are judged again.
type watcher struct {
	mu    sync.Mutex
	calls map[*watched]struct{}
}

// watch has a call judged again until end is called, and ended when it may not go on.
func (g *Gateway) watch(e *exchange, call *protocol.Call, route *protocol.Route) (end func()) {
	writes, private := leaseOf(call, route.Action)
	if g.Head == nil || !writes && !private && call.Repository == nil && route.Action != access.NodeOnly {
		return func() {}
	}
	w := &watched{e: e, route: route, judged: time.Now(), revision: g.Head.Revision()}
	w.ctx, w.cancel = context.WithCancelCause(call.R.Context())
	call.R = call.R.WithContext(w.ctx)
	w.call = *call
	g.watcher.mu.Lock()
	g.watcher.calls[w] = struct{}{}
	g.watcher.mu.Unlock()
	return func() {
		g.watcher.mu.Lock()
		delete(g.watcher.calls, w)
		g.watcher.mu.Unlock()
		w.mu.Lock()
		w.over = true
		w.mu.Unlock()
		w.cancel(nil)
	}
}

// watchCalls judges calls that last again until ctx ends.
func (g *Gateway) watchCalls(ctx context.Context) error {
	if g.Head == nil {
		return nil
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var group errgroup.Group
	group.SetLimit(judgedAtOnce)
	defer func() { _ = group.Wait() }() // none fails
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			confirmed := false
			for _, w := range g.watcher.all() {
				if !w.judging.CompareAndSwap(false, true) {
					continue
				}
				_, err := g.judgeLease(&w.call, w.route.Action)
				if err != nil && !confirmed {
					// Nothing may have been taken back: the process may just have been stopped for a while.
					confirmed = true
					g.confirm(ctx)
					_, err = g.judgeLease(&w.call, w.route.Action)
				}
				if err != nil {
					g.cut(w, err)
				}
				revision := g.Head.Revision()
				if err != nil || revision == w.revision && now.Sub(w.judged) < judgeEvery {
					w.judging.Store(false)
					continue
				}
				group.Go(func() error {
					defer w.judging.Store(false)
					g.judgeAgain(w, revision)
					return nil
				})
			}
		}
	}
}

// confirm asks for a quorum's word, where that can be had on demand, for the time of one
// look at the calls.
func (g *Gateway) confirm(ctx context.Context) {
	if c, ok := g.Head.(confirmer); ok {
		ctx, cancel := context.WithTimeout(ctx, watchEvery)
		defer cancel()
		_ = c.Confirm(ctx) // the head's age tells
	}
}

func (ws *watcher) all() []*watched {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return slices.Collect(maps.Keys(ws.calls))
}

// errRemoved ends what a node asked for that is none any more.
var errRemoved = fmt.Errorf("the node was removed from the cluster: %w", meta.ErrDenied)

// judgeAgain ends a call that would not be admitted under a revision.
func (g *Gateway) judgeAgain(w *watched, revision uint64) {
	ctx, cancel := context.WithTimeout(w.ctx, access.WriteLease)
	defer cancel()
	err := g.admitAgain(ctx, w)
	if errors.Is(err, meta.ErrUnavailable) || err != nil && ctx.Err() != nil {
		return // Nothing was found out: the lease has the last word.
	}
	w.revision, w.judged = revision, time.Now()
	if err != nil {
		g.cut(w, err)
	}
}

func (g *Gateway) admitAgain(ctx context.Context, w *watched) error {
	if w.route.Action == access.NodeOnly {
		_, ok, err := g.Gate.Peer(w.e.r)
		if err == nil && !ok {
			err = errRemoved
		}
		return err
	}
	who, err := g.Gate.Again(ctx, w.call.Who)
	if err != nil {
		return err
	}
	var record *meta.Repository
	if w.call.Repository != nil {
		repo, err := g.Repositories.Repository(ctx, w.call.Repo, meta.Local)
		switch {
		case err == nil:
			record = &repo
		case !errors.Is(err, meta.ErrNotFound):
			return err
		}
	}
	return access.Authorize(g.Gate.Policy, who, w.route.Action, targetOf(&w.call, w.route, record))
}

// cut ends a call that may not go on: its context, what it reads and what it writes.
func (g *Gateway) cut(w *watched, err error) {
	w.mu.Lock()
	over := w.over
	if !over {
		w.over = true
		w.e.stream.cut(err)
	}
	w.mu.Unlock()
	if over {
		return
	}
	w.cancel(err)
	g.metrics.cut.Inc()
	g.Log.Info("a call was ended, its right was taken back", "request", w.e.id, "route", w.route.Name, "principal", w.call.Who.Name, "reason", err)
	if errors.Is(err, errRemoved) {
		g.Evict(w.call.Who.Node)
	}
}
