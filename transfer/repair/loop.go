package repair

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math"
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
	"github.com/shoal-registry/shoal/transfer/wait"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	pageFirst    = 64                    // demands asked of a lane at first
	pageDemands  = 1000                  // and at most, each page being twice the last
	planMost     = 64                    // copies planned ahead; more would make each new demand wait for the planning
	rememberMost = 1 << 16               // outcomes remembered; a forgotten one is found out again
	relistEvery  = 30 * time.Second      // without news, in case news were lost
	settleDelay  = 20 * time.Millisecond // demands come in bursts: one listing for all of a push
	listPause    = 5 * time.Second       // most that listing waits because lists are long
	trustIdle    = 30 * time.Second      // until a copy that needed nothing is looked at again
	trustCopy    = 5 * time.Minute       // and one that was made and reported
	retryFirst   = 250 * time.Millisecond
	slowAfter    = 2 * time.Second // a copy under way so long holds up no later ones
	retryMost    = 5 * time.Minute
	activeHalf   = 20 * time.Second // half-life of what was lately copied for a tenant
	activeLeast  = 256 << 10        // less, in bytes, is nothing
	failAfter    = 3                // attempts after which a copy is reported failed
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
	failed  chan digest.CID // copies that the metadata has as failed, whoever said so
	missed  atomic.Bool     // some such news was not taken in
	reports chan meta.Replica
	results chan result
	backlog atomic.Int64

	// Of the goroutine of Run that plans.
	running map[digest.CID]*making
	known   *lru.Cache[digest.CID, outcome]
	fair    place.Fair
	passed  map[laneName]passed
	active  map[string]activity // by tenant
	all     time.Time           // when everything was last looked at
}

// IncidentPause is how long copies that are not critical wait when a region or its
// blobs go out: what is left belongs to clients, failing over, and to what is critical.
// Longer they do not wait, since they are owed too, perhaps because of that incident.
const IncidentPause = 10 * time.Minute

// making is a copy under way.
type making struct {
	lane   place.Lane
	demand meta.Time
	began  time.Time
	// sound is false when it was found damaged while it was being made, doubted is true
	// when the metadata was told so meanwhile.
	sound, doubted bool
}

// activity is how much was lately copied for a tenant: work, in bytes, as of last, of
// which half is forgotten each activeHalf.
type activity struct {
	last   time.Time
	work   float64
	weight int
}

func (a activity) at(now time.Time) float64 {
	return a.work * math.Exp2(-now.Sub(a.last).Seconds()/activeHalf.Seconds())
}

// began notes the work of a copy.
func (l *Loop) began(c place.Copy) {
	now := time.Now()
	a := l.active[c.Lane.Tenant]
	l.active[c.Lane.Tenant] = activity{now, a.at(now) + place.Cost(c.Demand), max(c.Lane.Weight, 1)}
}

type laneName struct {
	class  meta.Class
	tenant string
}

func nameOf(l place.Lane) laneName { return laneName{l.Class, l.Tenant} }

// passed is how far the front of a lane holds nothing to be done before a time: made and
// not yet seen, others' to make, failing. So what waits for others does not have to be
// read again for each new demand.
type passed struct {
	last  meta.Replica
	until time.Time
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
		failed:  make(chan digest.CID, damageQueue),
		reports: make(chan meta.Replica, reportQueue), results: make(chan result),
		running: map[digest.CID]*making{}, passed: map[laneName]passed{}, active: map[string]activity{},
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

// doubted says that this server's copy of root does not count any more, be it by the
// word of another: those that share a bucket share its copies. It does not block.
func (l *Loop) doubted(root digest.CID) {
	select {
	case l.failed <- root:
	default:
		l.missed.Store(true)
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
	var broken atomic.Bool // and what happened since is not known yet
	for {
		err := l.cfg.Demands.Watch(ctx, l.cfg.Region, func() {
			if broken.Swap(false) {
				l.missed.Store(true)
			}
			l.changed()
		}, l.doubted)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.log.Debug("the watch on demands broke", "error", err)
		// What was missed meanwhile shows in the next listing.
		broken.Store(true)
		l.missed.Store(true)
		l.changed()
		if !wait.For(ctx, time.Second) {
			return ctx.Err()
		}
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
		for at := l.next(queue); at >= 0; at = l.next(queue) {
			copy := queue[at]
			queue = slices.Delete(queue, at, at+1)
			l.fair.Serve(copy)
			l.began(copy)
			l.running[copy.Demand.Root] = &making{lane: copy.Lane, demand: copy.Demand.Demand, began: time.Now(), sound: true}
			workers.Go(func() error {
				r := l.make(ctx, copy.Demand)
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
		if len(queue) > 0 {
			bringTo(time.Now().Add(slowAfter)) // by then those under way may be slow
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-l.results:
			for more := true; more; { // what is doubted comes first, or it would count
				select {
				case root := <-l.failed:
					l.doubt(root)
				default:
					more = false
				}
			}
			if again := l.conclude(ctx, r); !again.IsZero() {
				bringTo(again)
			}
		case d := <-l.damaged:
			if m := l.running[d.root]; m != nil {
				m.sound = false
			}
			l.forget(d.root)
			l.tell(meta.Replica{Root: d.root, State: meta.ReplicaFailed, Reason: d.reason})
		case root := <-l.failed:
			l.doubt(root)
			bringTo(time.Now().Add(pause)) // what woke it may have been listed already
		case <-l.wake:
			if l.missed.Swap(false) {
				for _, m := range l.running {
					m.doubted = true
				}
				l.known.Purge()
				clear(l.passed)
			}
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

// next returns which copy of the queue may begin, -1 when none may.
//
// A copy whose source is out of reach keeps its worker until it is given up, and when a
// region was lost there may be many, demanded in its last moments. What was demanded
// later than those that are slow may then begin beside them, as if they were not there.
func (l *Loop) next(queue []place.Copy) int {
	if at := l.choose(queue, l.running); at >= 0 {
		return at
	}
	quick, slow := map[digest.CID]*making{}, meta.Time(0)
	for root, m := range l.running {
		if time.Since(m.began) < slowAfter {
			quick[root] = m
		} else {
			slow = max(slow, m.demand)
		}
	}
	if slow == 0 || len(l.running) >= 2*l.cfg.Workers {
		return -1
	}
	later := slices.DeleteFunc(slices.Clone(queue), func(c place.Copy) bool {
		return l.running[c.Demand.Root] != nil || c.Demand.Demand <= slow+meta.Time(slowAfter)
	})
	at := l.choose(later, quick)
	if at < 0 {
		return -1
	}
	return slices.IndexFunc(queue, func(c place.Copy) bool { return c.Demand.Root == later[at].Demand.Root })
}

// choose is next among the copies that are running.
//
// The link is shared by what is under way, so whose turn it is alone would not keep a
// tenant with much waiting from filling it. No tenant takes all workers. One that had
// more copied lately than its part among the tenants of that time has at most half its
// part of the workers, and begins nothing beside another's copy of its class or a more
// urgent one: what the others leave is its. It is held up no longer than that they
// catch up with it. The cold class never has more than half of the workers.
func (l *Loop) choose(queue []place.Copy, running map[digest.CID]*making) int {
	if len(queue) == 0 || len(running) >= l.cfg.Workers {
		return -1
	}
	tenants, cold := map[string]int{}, 0
	for _, m := range running {
		tenants[m.lane.Tenant]++
		if m.lane.Class == meta.ClassCold {
			cold++
		}
	}
	weights, beyond := l.parts()
	most := max(l.cfg.Workers-max(l.cfg.Workers/4, 1), 1)
	may := func(lane place.Lane) bool {
		its := tenants[lane.Tenant]
		if !beyond(lane.Tenant) {
			return its < most
		}
		for _, m := range running {
			if m.lane.Tenant != lane.Tenant && !place.MoreUrgent(lane.Class, m.lane.Class) && !beyond(m.lane.Tenant) {
				return false
			}
		}
		return its < max(min(most, l.cfg.Workers*l.active[lane.Tenant].weight/weights/2), 1)
	}
	mostCold := max(l.cfg.Workers/2, 1)
	return slices.IndexFunc(queue, func(c place.Copy) bool {
		return running[c.Demand.Root] == nil && (c.Lane.Class != meta.ClassCold || cold < mostCold) && may(c.Lane)
	})
}

// parts says which tenants had more copied lately than their part among those of that
// time; weights is the sum of theirs.
func (l *Loop) parts() (weights int, beyond func(tenant string) bool) {
	now, works := time.Now(), 0.0
	for tenant, a := range l.active {
		work := a.at(now)
		if work < activeLeast {
			delete(l.active, tenant)
			continue
		}
		weights, works = weights+a.weight, works+work
	}
	return weights, func(tenant string) bool {
		a, ok := l.active[tenant]
		return ok && a.at(now)*float64(weights) > works*float64(a.weight)
	}
}

// forget makes the Loop look at a copy again.
func (l *Loop) forget(root digest.CID) {
	l.known.Remove(root)
	clear(l.passed)
}

// doubt is forget for a copy that the metadata does not count, which may be under way.
func (l *Loop) doubt(root digest.CID) {
	if m := l.running[root]; m != nil {
		m.doubted = true
	}
	l.forget(root)
}

// list plans over what is owed and is neither under way nor to be left alone. wake is
// when something that waits becomes due, zero when nothing waits.
func (l *Loop) list(ctx context.Context) (planned []place.Copy, wake time.Time, err error) {
	lanes, err := l.cfg.Demands.Lanes(ctx, l.cfg.Region)
	if err != nil {
		return nil, wake, fmt.Errorf("list the lanes of %s: %w", l.cfg.Region, err)
	}
	p := &listing{
		Loop: l, now: time.Now(),
		question: place.Question{
			Self: l.cfg.Self, Servers: slices.Compact(slices.Sorted(slices.Values(l.cfg.Servers()))),
			Copies: l.cfg.Copies, Now: time.Now(), StandIn: l.cfg.StandIn,
		},
	}
	if p.now.Sub(l.all) >= relistEvery {
		// News may have been lost, servers may have come or gone.
		l.all = p.now
		clear(l.passed)
	}
	lanes = p.urgent(lanes)
	planned = l.fair.Order(lanes, planMost, func(lane place.Lane) iter.Seq[place.Copy] { return p.due(ctx, lane) })
	if p.err != nil {
		return nil, p.wake, p.err
	}
	there := make(map[laneName]bool, len(lanes))
	for _, lane := range lanes {
		there[nameOf(lane)] = true
	}
	maps.DeleteFunc(l.passed, func(name laneName, _ passed) bool { return !there[name] })
	l.backlog.Store(int64(len(planned)))
	return planned, p.wake, nil
}

// listing is one list.
type listing struct {
	*Loop
	now      time.Time
	question place.Question
	wake     time.Time
	err      error // the first
}

// soonest notes that something is due at t.
func (p *listing) soonest(t time.Time) {
	if !t.IsZero() && (p.wake.IsZero() || t.Before(p.wake)) {
		p.wake = t
	}
}

// urgent leaves out what waits for the end of an incident.
func (p *listing) urgent(lanes []place.Lane) []place.Lane {
	if p.cfg.Incident == nil {
		return lanes
	}
	since, severe := p.cfg.Incident()
	end := since.Add(IncidentPause)
	if !severe || !p.now.Before(end) {
		p.metrics.paused.Set(0)
		return lanes
	}
	p.metrics.paused.Set(1)
	p.soonest(end)
	return slices.DeleteFunc(lanes, func(l place.Lane) bool { return l.Class != meta.ClassCritical })
}

// due yields the copies of a lane that may begin now.
func (p *listing) due(ctx context.Context, lane place.Lane) iter.Seq[place.Copy] {
	return func(yield func(place.Copy) bool) {
		name := nameOf(lane)
		front, known := p.passed[name]
		if known = known && p.now.Before(front.until); !known {
			front = passed{until: p.now.Add(relistEvery)}
		}
		p.soonest(front.until)
		atFront := true // nothing so far has to be read again before front.until
		keep := func() {
			if front.last.Root != (digest.CID{}) {
				p.passed[name] = front
			}
		}
		defer keep()
		var after *meta.Replica
		if known {
			after = &front.last
		}
		for limit := pageFirst; ; limit = min(2*limit, pageDemands) {
			page, err := p.cfg.Demands.Pending(ctx, p.cfg.Region, lane, after, limit)
			if err != nil {
				p.err = cmp.Or(p.err, fmt.Errorf("list demands of %s: %w", p.cfg.Region, err))
				return
			}
			for _, d := range page {
				c, due, wake := p.look(d)
				if due || p.running[d.Root] != nil {
					atFront = false
				}
				if atFront {
					front.last = d
					if !wake.IsZero() && wake.Before(front.until) {
						front.until = wake
					}
				}
				p.soonest(wake)
				if due && !yield(c) {
					return
				}
			}
			if len(page) == 0 {
				return
			}
			after = &page[len(page)-1]
		}
	}
}

// look says whether a copy of d may begin, and if not, when it may.
func (p *listing) look(d meta.Replica) (c place.Copy, due bool, wake time.Time) {
	if p.running[d.Root] != nil {
		return c, false, wake
	}
	if p.cfg.Mine != nil && !p.cfg.Mine(d.Root) {
		return c, false, wake // it is another's, until the next listing of all
	}
	if o, ok := p.known.Peek(d.Root); ok && o.demand == d.Demand && p.now.Before(o.again) {
		return c, false, o.again
	}
	return p.question.Due(d)
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
	m := l.running[root]
	delete(l.running, root)
	if r.err == nil && !m.sound {
		r.err = fmt.Errorf("it was damaged again: %w", meta.ErrCorrupt)
	}
	if r.err == nil && m.doubted {
		// It may be older than the doubt: it is not reported but looked at again.
		l.forget(root)
		return now
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
		l.forget(r.Root)
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
		if !wait.For(ctx, settleDelay) {
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
		for pause := retryFirst; ; pause = min(2*pause, 10*time.Second) {
			err := l.cfg.Reporter.Report(ctx, batch)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.log.Warn("copies cannot be reported, trying again", "count", len(batch), "error", err)
			if !wait.For(ctx, pause/2+rand.N(pause/2+1)) {
				return ctx.Err()
			}
		}
	}
}
