package wave

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/wait"
	"github.com/shoal-registry/shoal/verify/digest"
)

// AgentConfig is what an Agent needs; Servers to Platform are required.
type AgentConfig struct {
	Servers Servers
	// News has a log index to read up to which waves may have changed.
	News     <-chan uint64
	Expander Expander
	Content  Content
	// Platform is the host's own, os/arch.
	Platform string
	// Log is silent when nil, Metrics unregistered when nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

const (
	// jitter spreads the hosts that hear of a wave at one time.
	jitter = 100 * time.Millisecond
	// retryFirst and retryMost bound the pause before what failed is tried again,
	// tries how often a piece of work may fail in a row without any progress.
	retryFirst = 500 * time.Millisecond
	retryMost  = 15 * time.Second
	tries      = 10
	// workers is how many blobs of a wave are fetched at once.
	workers = 4
)

// Agent is a host's side of waves.
type Agent struct {
	cfg     AgentConfig
	log     *slog.Logger
	parts   *prometheus.CounterVec
	results chan reply
	ended   chan outcome

	// Of the goroutine of Run.
	courses map[string]*course
	after   uint64             // of waves up to this log index was heard
	stop    context.CancelFunc // of the call of Sync that is under way, nil when none is
	waiting bool               // to ask anew when that call has ended
	failed  int                // calls in a row
	tidied  bool               // pins of waves that ended while the host was off are gone
}

// course is a wave that the host has a part in.
type course struct {
	wave   meta.Wave
	state  meta.HostState
	reason string
	bytes  int64 // of a settled one
	known  bool  // the metadata has its last state

	cancel context.CancelCauseFunc // of its fetch, nil when none runs
	lease  *time.Timer             // ends the fetch; nil without a bound
	load   *load
}

// load is what a course fetches.
type load struct {
	mu    sync.Mutex
	blobs []meta.Blob
	total int64
}

// reply is what a call of Sync brought.
type reply struct {
	asked  time.Time
	after  uint64 // the answer is as of this log index or later
	orders meta.WaveOrders
	said   map[string]meta.HostState
	err    error
	// stopped says that the call was ended to ask anew.
	stopped bool
}

// outcome is what came of a fetch. A zero state says that it was stopped.
type outcome struct {
	id     string
	load   *load
	state  meta.HostState
	reason string
	bytes  int64
}

// NewAgent returns an Agent.
func NewAgent(cfg AgentConfig) (*Agent, error) {
	if cfg.Servers == nil || cfg.News == nil || cfg.Expander == nil || cfg.Content == nil {
		return nil, fmt.Errorf("wave: Servers, News, Expander and Content are required: %w", meta.ErrInvalid)
	}
	if err := meta.CheckPlatform(cfg.Platform); err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Agent{
		cfg: cfg, log: log, courses: make(map[string]*course),
		results: make(chan reply), ended: make(chan outcome),
		parts: promauto.With(cfg.Metrics).NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_wave_parts_total",
			Help: "Waves that this host took part in, by how it ended: done, skipped, failed or stopped.",
		}, []string{"state"}),
	}, nil
}

// errOver ends a fetch whose wave is over for the host, errLease one whose lease was
// not renewed.
var (
	errOver  = errors.New("the wave is over")
	errLease = errors.New("the lease was not renewed")
)

// Run works until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	ask := time.NewTimer(0) // when a server is asked next
	defer ask.Stop()
	over := time.NewTimer(time.Hour) // when the next wave expires
	defer over.Stop()
	var due time.Time // of ask; zero when it is not set
	// later asks anew in a while, or when that is due sooner for another reason.
	later := func(in time.Duration) {
		if at := time.Now().Add(in); due.IsZero() || at.Before(due) {
			due = at
			ask.Reset(in)
		}
	}
	// soon asks anew, also if an answer is still awaited: it is to something older.
	soon := func(in time.Duration) {
		if a.stop != nil {
			a.stop()
		}
		later(in)
	}
	for {
		select {
		case <-ctx.Done():
			for _, c := range a.courses {
				c.halt(ctx.Err())
			}
			return nil
		case index := <-a.cfg.News:
			a.after = max(a.after, index)
			soon(rand.N(jitter))
		case <-ask.C:
			due = time.Time{}
			if a.stop != nil {
				a.waiting = true // for the answer to what was asked before
				break
			}
			try, stop := context.WithCancel(ctx)
			a.stop = stop
			after, parts := a.after, a.said()
			group.Go(func() { a.sync(ctx, try, after, parts) })
		case r := <-a.results:
			a.stop()
			a.stop = nil
			in, again := a.digest(ctx, &group, r)
			if a.waiting {
				a.waiting, in, again = false, 0, true
			}
			if again {
				later(in)
			}
		case o := <-a.ended:
			if a.finish(o) {
				soon(0)
			}
		case <-over.C:
			for id, c := range a.courses {
				if !time.Now().Before(c.wave.Expires.Std()) {
					a.drop(id, c)
				}
			}
		}
		over.Reset(a.nextExpiry())
	}
}

func (a *Agent) nextExpiry() time.Duration {
	next := time.Hour
	for _, c := range a.courses {
		next = min(next, time.Until(c.wave.Expires.Std()))
	}
	return max(next, time.Millisecond)
}

// part is a course as it is told to a server.
type part struct {
	meta.WavePart
	load *load
}

// said gathers what the host has to say.
func (a *Agent) said() (all []part) {
	for id, c := range a.courses {
		all = append(all, part{meta.WavePart{Wave: id, State: c.state, Reason: c.reason, Bytes: c.bytes, TotalBytes: c.bytes}, c.load})
	}
	return all
}

// sync asks a server, until try ends.
func (a *Agent) sync(ctx, try context.Context, after uint64, parts []part) {
	r := reply{asked: time.Now(), after: after, said: make(map[string]meta.HostState, len(parts))}
	word := meta.WaveWord{After: after}
	for _, p := range parts {
		if p.State == meta.HostFetching && p.load != nil {
			p.Bytes, p.TotalBytes = p.load.progress(ctx, a.cfg.Content)
		}
		word.Parts = append(word.Parts, p.WavePart)
		r.said[p.Wave] = p.State
	}
	r.orders, r.err = a.cfg.Servers.Sync(try, word, hold)
	r.stopped = try.Err() != nil
	select {
	case a.results <- r:
	case <-ctx.Done():
	}
}

// digest follows the orders; in is when to ask again.
func (a *Agent) digest(ctx context.Context, group *sync.WaitGroup, r reply) (in time.Duration, again bool) {
	if r.err != nil {
		if r.stopped {
			return 0, false // to ask anew, and that is due already
		}
		a.failed++
		in = min(retryFirst<<min(a.failed-1, 6), retryMost)
		a.log.Debug("no server took this host's word on waves", "error", r.err, "again_in", in)
		return in/2 + rand.N(in/2), true
	}
	a.failed = 0
	open := make(map[string]bool, len(r.orders.Orders))
	for _, o := range r.orders.Orders {
		open[o.ID] = true
		if a.courses[o.ID] == nil && o.Wave != nil {
			a.courses[o.ID] = &course{wave: *o.Wave}
		}
		c := a.courses[o.ID]
		if c == nil {
			continue
		}
		switch next(c.state, o.State) {
		case begin:
			a.begin(ctx, group, o, c, r.asked)
		case renew:
			c.extend(o, r.asked)
		case stop:
			c.halt(errOver)
			c.state = meta.HostWaiting
		case take:
			c.halt(errOver)
			if c.state, c.known = o.State, true; c.state != meta.HostDone {
				a.unpin(o.ID)
			}
		case rest:
			if c.state == "" {
				c.state = meta.HostWaiting
			}
		}
	}
	for id, c := range a.courses {
		if !open[id] {
			a.drop(id, c)
		}
	}
	if !a.tidied && r.after > 0 {
		// Before it has heard anything, a server that lags may know less than the pins.
		a.tidied = a.tidy(open)
	}
	for _, c := range a.courses {
		if c.state.Settled() && !c.known && r.said[c.wave.ID] != c.state {
			return 0, true // It settled while the answer was on its way.
		}
	}
	return r.orders.Again, r.orders.Again > 0
}

// begin fetches what a wave closes over.
func (a *Agent) begin(ctx context.Context, group *sync.WaitGroup, o meta.WaveOrder, c *course, asked time.Time) {
	var fetching context.Context
	fetching, c.cancel = context.WithCancelCause(ctx)
	c.state, c.load = meta.HostFetching, &load{}
	c.extend(o, asked)
	a.log.Info("a wave begins here", "wave", c.wave.ID, "name", c.wave.Name)
	id, w, l := c.wave.ID, c.wave, c.load
	group.Go(func() {
		out := outcome{id: id, load: l}
		err := a.fetch(fetching, w, l)
		_, out.bytes = l.progress(ctx, a.cfg.Content)
		switch {
		case fetching.Err() != nil:
		case errors.Is(err, errNothing):
			out.state, out.reason = meta.HostSkipped, err.Error()
		case err != nil:
			out.state, out.reason = meta.HostFailed, cut(strings.ToValidUTF8(err.Error(), "?"), meta.MaxWaveReason)
		default:
			out.state = meta.HostDone
		}
		select {
		case a.ended <- out:
		case <-ctx.Done():
		}
	})
}

// extend lets a fetch go on for as long as the order says.
func (c *course) extend(o meta.WaveOrder, asked time.Time) {
	if o.Lease == 0 || c.cancel == nil {
		return
	}
	cancel, left := c.cancel, max(time.Until(asked.Add(o.Lease)), 0)
	if c.lease != nil {
		c.lease.Stop()
	}
	c.lease = time.AfterFunc(left, func() { cancel(errLease) })
}

// halt stops a fetch.
func (c *course) halt(cause error) {
	if c.lease != nil {
		c.lease.Stop()
	}
	if c.cancel != nil {
		c.cancel(cause)
	}
	c.cancel, c.lease = nil, nil
}

// finish takes over what came of a fetch; it reports whether that is to be said.
func (a *Agent) finish(o outcome) bool {
	c := a.courses[o.id]
	if c == nil || c.load != o.load || c.state != meta.HostFetching {
		return false // of a fetch that was stopped before
	}
	c.halt(nil)
	if o.state == "" {
		a.log.Warn("a wave pauses here: no server has renewed the lease", "wave", o.id)
		c.state = meta.HostWaiting
		return true
	}
	c.state, c.reason, c.bytes = o.state, o.reason, o.bytes
	a.parts.WithLabelValues(string(o.state)).Inc()
	if o.state == meta.HostFailed {
		a.log.Warn("a wave failed here", "wave", o.id, "reason", o.reason)
		a.unpin(o.id)
	} else {
		a.log.Info("a wave is here", "wave", o.id, "state", o.state, "bytes", o.bytes)
	}
	return true
}

// drop ends a course: its wave is over.
func (a *Agent) drop(id string, c *course) {
	if c.cancel != nil {
		a.parts.WithLabelValues("stopped").Inc()
		a.log.Info("a wave stops here", "wave", id)
	}
	c.halt(errOver)
	a.unpin(id)
	delete(a.courses, id)
}

func (a *Agent) unpin(id string) {
	for owner, roots := range a.cfg.Content.Owned(pinPrefix + id) {
		if owner != pinPrefix+id {
			continue
		}
		for _, root := range roots {
			if err := a.cfg.Content.Unpin(root, owner); err != nil {
				a.log.Warn("a wave's content stays pinned", "wave", id, "error", err)
			}
		}
	}
}

// tidy drops the pins of waves that ended while this host was off.
func (a *Agent) tidy(open map[string]bool) bool {
	for owner := range a.cfg.Content.Owned(pinPrefix) {
		if id := strings.TrimPrefix(owner, pinPrefix); !open[id] {
			a.unpin(id)
		}
	}
	return true
}

// errNothing says that nothing of a wave is for this host.
var errNothing = errors.New("nothing of it is for this platform")

// fetch brings all blobs of a wave here, pinned.
func (a *Agent) fetch(ctx context.Context, w meta.Wave, l *load) error {
	ctx = limit.WithClass(ctx, limit.Prewarm)
	platform := w.Platform
	if platform == "" {
		platform = a.cfg.Platform
	}
	for _, ref := range w.Refs {
		var blobs []meta.Blob
		err := a.persist(ctx, l, func() (err error) {
			blobs, err = a.cfg.Expander.Expand(ctx, ref, platform)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
		l.add(blobs)
	}
	if len(l.blobs) == 0 {
		return fmt.Errorf("%s: %w", platform, errNothing)
	}
	for _, b := range l.blobs {
		if err := a.cfg.Content.Pin(b.Root, pinPrefix+w.ID); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for _, b := range l.blobs {
		group.Go(func() error {
			return a.persist(ctx, l, func() error { return a.cfg.Content.Ensure(ctx, b) })
		})
	}
	return group.Wait()
}

// persist tries until it works, what is wrong will not go away by itself, or nothing
// came of many tries.
func (a *Agent) persist(ctx context.Context, l *load, do func() error) error {
	pauseFor, held, failures := retryFirst, int64(-1), 0
	for {
		err := do()
		if err == nil || !transient(err) || ctx.Err() != nil {
			return err
		}
		if now, _ := l.progress(ctx, a.cfg.Content); now > held {
			pauseFor, held, failures = retryFirst, now, 0
		}
		if failures++; failures == tries {
			return err
		}
		a.log.Debug("part of a wave is tried again", "error", err, "in", pauseFor)
		if !wait.For(ctx, pauseFor/2+rand.N(pauseFor/2)) {
			return err
		}
		pauseFor = min(2*pauseFor, retryMost)
	}
}

// add takes blobs in, each root once.
func (l *load) add(blobs []meta.Blob) {
	l.mu.Lock()
	defer l.mu.Unlock()
	have := make(map[digest.CID]bool, len(l.blobs))
	for _, b := range l.blobs {
		have[b.Root] = true
	}
	for _, b := range blobs {
		if !have[b.Root] {
			have[b.Root] = true
			l.blobs = append(l.blobs, b)
			l.total += b.StoredBytes
		}
	}
}

// progress returns how many bytes are here, of how many.
func (l *load) progress(ctx context.Context, c Content) (held, total int64) {
	l.mu.Lock()
	blobs, total := slices.Clone(l.blobs), l.total
	l.mu.Unlock()
	for _, b := range blobs {
		held += c.Held(ctx, b.Root)
	}
	return held, total
}

// cut shortens s to at most n bytes, at a letter.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
