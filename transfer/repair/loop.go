package repair

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/place"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	pageDemands  = 1000                  // asked of the metadata at once
	planMost     = 1024                  // copies planned ahead
	rememberMost = 1 << 16               // outcomes remembered; a forgotten one is found out again
	relistEvery  = 30 * time.Second      // without news, in case news were lost
	settleDelay  = 20 * time.Millisecond // demands come in bursts: one listing for all of a push
	listPause    = 5 * time.Second       // most that listing waits because lists are long
	trustIdle    = 30 * time.Second      // until a copy that needed nothing is looked at again
	trustCopy    = 5 * time.Minute       // and one that was made and reported
	retryFirst   = 250 * time.Millisecond
	retryMost    = 5 * time.Minute
	failAfter    = 3 // attempts after which a copy is reported failed
	reportMost   = 1000
	reportQueue  = 10_000
	damageQueue  = 1024
	reasonBytes  = 500
)

// Loop makes this server's copies. New builds it, Run works.
type Loop struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{}
	damaged chan damage
	reports chan meta.Replica
	results chan result
	backlog atomic.Int64

	// Of the goroutine of Run that plans. running is false for a copy that was found
	// damaged while it was being made.
	running map[digest.CID]bool
	known   *lru.Cache[digest.CID, outcome]
}

// outcome is what is remembered of a copy that is still owed: made but not yet seen in
// the metadata, held up by other servers, or failing.
type outcome struct {
	demand   meta.Time // when what it is the outcome of was demanded; a newer demand begins anew
	again    time.Time // until then it is left alone
	attempts int       // that failed in a row
	reported bool      // as failed
}

// result is what became of one copy.
type result struct {
	demand meta.Replica
	err    error
	// idle says that nothing was to be done.
	idle bool
}

// New returns a Loop.
func New(cfg Config) (*Loop, error) {
	if cfg.Self == "" || cfg.Region == "" || cfg.Demands == nil || cfg.Reporter == nil || cfg.Content == nil || cfg.Servers == nil {
		return nil, fmt.Errorf("repair: Self, Region, Demands, Reporter, Content and Servers are required: %w", meta.ErrInvalid)
	}
	if cfg.Copies == 0 {
		cfg.Copies = place.DefaultCopies
	}
	if cfg.Workers == 0 {
		cfg.Workers = 4
	}
	if cfg.StandIn == 0 {
		cfg.StandIn = 2 * time.Minute
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l := &Loop{
		cfg: cfg, log: log,
		wake: make(chan struct{}, 1), damaged: make(chan damage, damageQueue),
		reports: make(chan meta.Replica, reportQueue), results: make(chan result),
		running: map[digest.CID]bool{},
	}
	var err error
	if l.known, err = lru.New[digest.CID, outcome](rememberMost); err != nil {
		return nil, err
	}
	l.metrics = newMetrics(cfg.Metrics, l)
	return l, nil
}

// Damaged says that this server's copy of root is no longer whole: it is reported
// failed and made again if it is owed. It does not block; beyond a bound the news is
// dropped, and found again by the next reader.
func (l *Loop) Damaged(root digest.CID) {
	select {
	case l.damaged <- damage{root, "a chunk of it did not have its hash"}:
	default:
		l.metrics.dropped.Inc()
	}
}

// changed asks for a new plan soon.
func (l *Loop) changed() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run makes copies until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.watch(ctx) })
	group.Go(func() error { return l.report(ctx) })
	group.Go(func() error { return l.plan(ctx) })
	if err := group.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// watch turns news of the metadata into wake-ups.
func (l *Loop) watch(ctx context.Context) error {
	for {
		err := l.cfg.Demands.Watch(ctx, l.cfg.Region, l.changed)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.log.Debug("the watch on demands broke", "error", err)
		// What was missed meanwhile shows in the next listing.
		l.changed()
		if !sleep(ctx, time.Second) {
			return ctx.Err()
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// plan owns what is known of the copies; it hands them to workers and takes in what
// became of them.
func (l *Loop) plan(ctx context.Context) error {
	var workers errgroup.Group
	defer func() { _ = workers.Wait() }() // they return no errors
	var (
		queue   []place.Copy
		more    bool // the last plan was cut at its limit
		pause   = settleDelay
		dueAt   = time.Now()
		due     = time.NewTimer(0)
		bringTo = func(t time.Time) {
			if t.Before(dueAt) {
				dueAt = t
				due.Reset(time.Until(t))
			}
		}
	)
	defer due.Stop()
	for {
		for len(queue) > 0 && len(l.running) < l.cfg.Workers {
			demand := queue[0].Demand
			queue = queue[1:]
			l.running[demand.Root] = true
			workers.Go(func() error {
				r := l.make(ctx, demand)
				select {
				case l.results <- r:
				case <-ctx.Done():
				}
				return nil
			})
		}
		if more && len(queue) == 0 {
			more = false
			bringTo(time.Now().Add(pause))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-l.results:
			if again := l.conclude(ctx, r); !again.IsZero() {
				bringTo(again)
			}
		case d := <-l.damaged:
			root := d.root
			if _, making := l.running[root]; making {
				l.running[root] = false
			}
			l.known.Remove(root)
			l.tell(meta.Replica{Root: root, State: meta.ReplicaFailed, Reason: d.reason})
		case <-l.wake:
			bringTo(time.Now().Add(pause))
		case <-due.C:
			began := time.Now()
			planned, next, err := l.list(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			wait := relistEvery
			if err != nil {
				l.log.Warn("demands cannot be listed", "error", err)
				wait = time.Second
			} else {
				queue, more = planned, len(planned) == planMost
			}
			// A long list is not listed all the time.
			pause = min(max(4*time.Since(began), settleDelay), listPause)
			dueAt = time.Now().Add(wait)
			due.Reset(wait)
			if !next.IsZero() {
				bringTo(later(next, time.Now().Add(pause)))
			}
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// list plans over all that is owed and is neither under way nor to be left alone. next
// is when something that waits becomes due.
func (l *Loop) list(ctx context.Context) (planned []place.Copy, next time.Time, err error) {
	now := time.Now()
	soonest := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	demands := func(yield func(meta.Replica) bool) {
		for d, listErr := range l.pending(ctx) {
			if listErr != nil {
				err = listErr
				return
			}
			if _, running := l.running[d.Root]; running {
				continue
			}
			if o, ok := l.known.Peek(d.Root); ok && o.demand == d.Demand && now.Before(o.again) {
				soonest(o.again)
				continue
			}
			if !yield(d) {
				return
			}
		}
	}
	planned, wake := place.Plan(place.Question{
		Self: l.cfg.Self, Servers: l.cfg.Servers(), Copies: l.cfg.Copies,
		Now: now, StandIn: l.cfg.StandIn, Limit: planMost,
	}, demands)
	if err != nil {
		return nil, next, err
	}
	soonest(wake)
	l.backlog.Store(int64(len(planned)))
	return planned, next, nil
}

// pending yields all demands of the region.
func (l *Loop) pending(ctx context.Context) iter.Seq2[meta.Replica, error] {
	return func(yield func(meta.Replica, error) bool) {
		var after *meta.Replica
		for {
			page, err := l.cfg.Demands.Pending(ctx, l.cfg.Region, after, pageDemands)
			if err != nil {
				yield(meta.Replica{}, fmt.Errorf("list demands of %s: %w", l.cfg.Region, err))
				return
			}
			for _, d := range page {
				if !yield(d, nil) {
					return
				}
				after = &d
			}
			if len(page) < pageDemands {
				return
			}
		}
	}
}

// make brings one copy here, unless enough servers have verified theirs.
func (l *Loop) make(ctx context.Context, d meta.Replica) result {
	copies, err := l.cfg.Demands.Copies(ctx, d.Root)
	if err != nil {
		return result{demand: d, err: err}
	}
	servers, verified := l.cfg.Servers(), 0
	for _, r := range copies {
		// The metadata keeps the word of a server that has left, and does not count it.
		if r.Region != l.cfg.Region || r.State != meta.ReplicaVerified || !slices.Contains(servers, r.Server) {
			continue
		}
		verified++
		if r.Server == l.cfg.Self {
			return result{demand: d, idle: true}
		}
	}
	if verified >= min(l.cfg.Copies, len(servers)) {
		return result{demand: d, idle: true}
	}
	start := time.Now()
	err = l.cfg.Content.Ensure(limit.WithClass(ctx, limit.Bulk), meta.Blob{Context: d.Context, Digest: d.Digest, Root: d.Root, StoredBytes: d.StoredBytes})
	if err == nil {
		l.metrics.seconds.Observe(time.Since(start).Seconds())
		l.metrics.bytes.Add(float64(d.StoredBytes))
		if !d.Demand.Std().IsZero() {
			l.metrics.lag.WithLabelValues(className(d.Class)).Observe(time.Since(d.Demand.Std()).Seconds())
		}
	} else if len(place.Sources(l.cfg.Region, copies, nil)) == 0 {
		err = fmt.Errorf("no server has a verified copy: %w", err)
	}
	return result{demand: d, err: err}
}

// conclude notes what became of a copy. again is when to try once more, zero when it
// is done.
func (l *Loop) conclude(ctx context.Context, r result) (again time.Time) {
	root, now := r.demand.Root, time.Now()
	sound := l.running[root]
	delete(l.running, root)
	if r.err == nil && !sound {
		r.err = fmt.Errorf("it was damaged again: %w", meta.ErrCorrupt)
	}
	if r.err == nil {
		trust := trustIdle
		if !r.idle {
			trust = trustCopy
		}
		l.known.Add(root, outcome{demand: r.demand.Demand, again: now.Add(trust)})
		if !r.idle {
			l.metrics.outcomes.WithLabelValues("verified").Inc()
			l.tell(meta.Replica{Root: root, State: meta.ReplicaVerified, Seen: r.demand.Seen})
		}
		return time.Time{}
	}
	if ctx.Err() != nil {
		return time.Time{} // we are being stopped
	}
	l.metrics.outcomes.WithLabelValues("failed").Inc()
	o, _ := l.known.Peek(root)
	if o.demand != r.demand.Demand {
		o = outcome{demand: r.demand.Demand}
	}
	delay := min(retryMost, retryFirst<<min(o.attempts, 16))
	o.attempts++
	o.again = now.Add(delay/2 + rand.N(delay/2+1))
	// A source may only be on its way; a wrong content or a full disk is news at once.
	report := !o.reported && (o.attempts >= failAfter || errors.Is(r.err, meta.ErrCorrupt) || errors.Is(r.err, meta.ErrNoSpace))
	o.reported = o.reported || report
	l.known.Add(root, o)
	if report {
		l.log.Warn("a copy cannot be made, trying on", "root", root.String(), "digest", r.demand.Digest, "error", r.err)
		l.tell(meta.Replica{Root: root, State: meta.ReplicaFailed, Reason: cut(r.err.Error())})
	}
	return o.again
}

// cut makes a reason fit its report.
func cut(reason string) string {
	return strings.ToValidUTF8(reason[:min(len(reason), reasonBytes)], "")
}

// tell queues a report. What does not fit is not lost: the demand stays pending and
// is looked at again.
func (l *Loop) tell(r meta.Replica) {
	r.Region, r.Server = l.cfg.Region, l.cfg.Self
	select {
	case l.reports <- r:
	default:
		l.known.Remove(r.Root)
		l.metrics.dropped.Inc()
	}
}

// report sends reports in batches, in order: the later word on a root holds.
func (l *Loop) report(ctx context.Context) error {
	for {
		var batch []meta.Replica
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-l.reports:
			batch = append(batch, r)
		}
		if !sleep(ctx, settleDelay) {
			return ctx.Err()
		}
		for more := true; more && len(batch) < reportMost; {
			select {
			case r := <-l.reports:
				batch = append(batch, r)
			default:
				more = false
			}
		}
		for wait := retryFirst; ; wait = min(2*wait, 10*time.Second) {
			err := l.cfg.Reporter.Report(ctx, batch)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.log.Warn("copies cannot be reported, trying again", "count", len(batch), "error", err)
			if !sleep(ctx, wait/2+rand.N(wait/2+1)) {
				return ctx.Err()
			}
		}
	}
}
