package limit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxWaiting bounds the callers that wait in one direction. The swarm's streams keep
// far below.
const maxWaiting = 1 << 16

// leastWait is the least time between two handings out while somebody waits: at
// high rates several pieces go out at once instead of a timer for each.
const leastWait = time.Millisecond

// Config is what a Budgets needs; all fields may be zero.
type Config struct {
	Limits Limits
	// Metrics is where the counters are registered; none when nil.
	Metrics prometheus.Registerer
}

// Budgets lets bytes through within limits. A nil *Budgets has none. It is safe for
// concurrent use, and has nothing to run or close.
type Budgets struct {
	epoch    time.Time
	sides    [2]side
	requests sync.Pool // of *request

	mu         sync.Mutex
	limits     Limits
	background int64 // of SetBackground
}

// side is one direction.
type side struct {
	limited atomic.Bool
	bytes   [classes][places]atomic.Int64
	waited  [classes]atomic.Int64 // nanoseconds

	mu    sync.Mutex
	core  core
	timer *time.Timer
	armed bool
	due   time.Duration // when the timer fires
}

// New returns the budgets of c.Limits.
//
// Errors: meta.ErrInvalid; of Metrics.
func New(c Config) (*Budgets, error) {
	b := &Budgets{epoch: time.Now()}
	if err := b.Set(c.Limits); err != nil {
		return nil, err
	}
	if c.Metrics != nil {
		if err := c.Metrics.Register(collector{b}); err != nil {
			return nil, fmt.Errorf("register metrics of budgets: %w", err)
		}
	}
	return b, nil
}

// Limits returns the limits in force. It is the caller's.
func (b *Budgets) Limits() Limits {
	if b == nil {
		return Limits{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.limits.Clone()
}

// Bounds reports whether any budget applies to f.
func (b *Budgets) Bounds(f Flow) bool {
	if b == nil || !b.sides[f.Direction].limited.Load() {
		return false
	}
	s := &b.sides[f.Direction]
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.core.path(&f)
	return p.n > 0
}

// Set changes the limits at once, also for who waits.
//
// Errors: meta.ErrInvalid; then nothing has changed.
func (b *Budgets) Set(l Limits) error {
	if err := l.Check(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limits = l.Clone()
	b.apply()
	return nil
}

// SetBackground holds the class Prewarm to a rate, each way, beside the limits; 0 lets
// it go. A Background finds it.
func (b *Budgets) SetBackground(bytesPerSec int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.background != bytesPerSec {
		b.background = bytesPerSec
		b.apply()
	}
}

// apply puts limits and background into force. b.mu is held.
func (b *Budgets) apply() {
	l := b.limits
	byClass := l.Classes
	if old := l.Classes[Prewarm]; b.background > 0 && (old == 0 || b.background < old) {
		byClass = with(l.Classes, Prewarm, b.background)
	}
	rates := [2][3]int64{Up: {l.Up, l.ZoneUp, l.WANUp}, Down: {l.Down, l.ZoneDown, l.WANDown}}
	for d := range b.sides {
		s, r := &b.sides[d], rates[d]
		s.mu.Lock()
		now := time.Since(b.epoch)
		s.core.set(now, r[0], r[1], r[2], l.Tenants, byClass)
		s.limited.Store(s.core.limited())
		b.serve(s, now)
		s.mu.Unlock()
	}
}

// Take waits until some of the next most bytes of f may pass, and returns how many:
// from 1 to most, at most 256 KiB where a limit applies. The caller moves so many and
// asks again for the rest.
//
// Errors: ctx's; meta.ErrUnavailable when too many wait.
func (b *Budgets) Take(ctx context.Context, f Flow, most int) (int, error) {
	return b.TakeUntil(ctx, nil, f, most)
}

// TakeUntil is Take for a flow that may become another: when stop is closed before
// anything may pass, it returns 0 and no error.
func (b *Budgets) TakeUntil(ctx context.Context, stop <-chan struct{}, f Flow, most int) (int, error) {
	if b == nil || most <= 0 {
		return most, nil
	}
	s := &b.sides[f.Direction]
	n := most
	if s.limited.Load() {
		var err error
		if n, err = b.take(ctx, stop, s, f, most); n == 0 {
			return 0, err
		}
	}
	s.bytes[f.Class][f.place()].Add(int64(n))
	return n, nil
}

func (b *Budgets) take(ctx context.Context, stop <-chan struct{}, s *side, f Flow, most int) (int, error) {
	s.mu.Lock()
	now := time.Since(b.epoch)
	if n := s.core.try(now, &f, most); n > 0 {
		s.mu.Unlock()
		return n, nil
	}
	if s.core.waiting >= maxWaiting {
		s.mu.Unlock()
		return 0, fmt.Errorf("%d transfers wait for bandwidth: %w", maxWaiting, meta.ErrUnavailable)
	}
	r, _ := b.requests.Get().(*request)
	if r == nil {
		r = &request{ready: make(chan struct{}, 1)}
	}
	defer b.requests.Put(r)
	r.most = most
	s.core.add(f, r)
	if r.flow.first == r { // the others behind it wait anyway
		b.serve(s, now)
	}
	s.mu.Unlock()
	defer func() { s.waited[f.Class].Add(int64(time.Since(b.epoch) - now)) }()
	var err error
	select {
	case <-r.ready:
		return r.granted, nil
	case <-stop:
	case <-ctx.Done():
		err = fmt.Errorf("wait for bandwidth: %w", context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.granted > 0 {
		<-r.ready // what has been let through is used
		return r.granted, nil
	}
	s.core.remove(r)
	b.serve(s, time.Since(b.epoch)) // it may have kept others waiting
	return 0, err
}

// serve hands out what is free and arms the timer for the next time. s.mu is held.
func (b *Budgets) serve(s *side, now time.Duration) {
	again, waiting := s.core.serve(now, func(r *request) { r.ready <- struct{}{} })
	if !waiting {
		return // a timer that still fires finds nobody
	}
	again = max(again, now+leastWait)
	if s.armed && s.due <= again {
		return
	}
	s.armed, s.due = true, again
	if s.timer == nil {
		s.timer = time.AfterFunc(again-now, func() { b.fire(s) })
	} else {
		s.timer.Reset(again - now)
	}
}

func (b *Budgets) fire(s *side) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = false
	b.serve(s, time.Since(b.epoch))
}
