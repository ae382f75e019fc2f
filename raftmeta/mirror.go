package raftmeta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Upstream is what a Mirror asks: a remote.Client.
type Upstream interface {
	Asker
	// Follow yields the changes after an index that pass f, and feed.KindProgress at
	// least every few seconds.
	Follow(ctx context.Context, after uint64, f feed.Filter) iter.Seq2[feed.Change, error]
}

// MirrorConfig configures a Mirror.
type MirrorConfig struct {
	// Dir keeps the roster and the last known answers over restarts.
	Dir string
	// Region is the agent's own: of it the roster has all nodes.
	Region   meta.RegionName
	Upstream Upstream
	// Log, nil for none.
	Log *slog.Logger
	// Metrics, nil for none.
	Metrics prometheus.Registerer
}

// Bounds of a Mirror.
const (
	// maxAnswers and maxAnswerBytes bound the answers that are kept, and maxOneAnswer
	// what one may have to be kept.
	maxAnswers     = 10_000
	maxAnswerBytes = 64 << 20
	maxOneAnswer   = 1 << 20
	// reuse bounds how long after it came an answer is given again.
	reuse = 2 * time.Second
	// maxRepos bounds the repositories that are followed; answers of others are
	// given again for as long as their freshness allows.
	maxRepos = 256
	// resubscribeEvery bounds how often a new repository starts the feed anew, and
	// resubscribeFull how often it takes the place of another.
	resubscribeEvery = time.Second
	resubscribeFull  = time.Minute
	// rememberWrites is how long reads follow what was written through this agent;
	// the feed and the bound of an answer's age are far quicker.
	rememberWrites = time.Minute
)

// Mirror answers from a server, and for a while from what a server answered
// before. When none is reachable it answers with what it last knew, labelled
// Stale, unless the read is strong, or bounded by its reader's own word, or must
// follow a token that it has not seen. What was written through this agent (Wrote) is
// followed by all reads here for a minute, as long as a server can be asked; who may
// have written elsewhere (Freshness.Own) is given no kept answer.
// It is safe for concurrent use.
type Mirror struct {
	config  MirrorConfig
	roster  *Roster
	disk    *lastKnown
	metrics mirrorMetrics

	mu      sync.Mutex
	answers *simplelru.LRU[string, *answer]
	bytes   int
	// touched has the index of the last change of a scope: an answer that is older
	// is not given again.
	touched *simplelru.LRU[scope, uint64]
	// since is the index from which changes are heard of: an older answer is not
	// given again either, what changed after it may have been missed.
	since   uint64
	repos   map[meta.RepoRef]bool // that are followed
	news    bool                  // there are answers of others
	wrote   meta.Token            // the last write through this agent
	wroteAt time.Time             // when it was
	waves   chan uint64           // holds the index of the last change of waves
	lost    chan struct{}         // has a signal when blobs may have been lost
	cluster chan struct{}         // has a signal when the cluster's record may have changed
	flights map[string]*flight
	flown   uint64 // flights so far

	// alone is set while nothing is heard of any server, neither an answer nor the feed,
	// which Run goes on trying: what is known is given at once then, and no reader waits
	// for silence. heard is when something was, in Unix nanoseconds.
	alone   atomic.Bool
	heard   atomic.Int64
	running atomic.Bool
}

// answer is what a server said, encoded: what readers get they may change.
type answer struct {
	value []byte
	asOf  meta.AsOf // when it came
	came  time.Time
	about subject
	// saved is when it was written to disk, zero when it is not.
	saved time.Time
}

// subject is what a question asks about, as far as changes are concerned.
type subject struct {
	scope
	name string // of the version or alias, if one was named
}

// scope is a package, or with an empty Package a whole repository.
type scope struct {
	Repo    meta.RepoRef
	Package string
}

// flight is a question on its way; equal ones wait for it.
type flight struct {
	number uint64 // in the order in which they began
	done   chan struct{}
	answer answer
	err    error
	left   bool // who asked did not wait for the answer: err is of that reader only
}

// OpenMirror opens a Mirror with what it knew when it was closed.
//
// Errors: of the files in Dir.
func OpenMirror(c MirrorConfig) (*Mirror, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	m := &Mirror{config: c, metrics: newMirrorMetrics(c.Metrics), repos: make(map[meta.RepoRef]bool), flights: make(map[string]*flight), waves: make(chan uint64, 1), lost: make(chan struct{}, 1), cluster: make(chan struct{}, 1)}
	var err error
	if m.answers, err = simplelru.NewLRU(maxAnswers, m.evicted); err != nil {
		return nil, err
	}
	if m.touched, err = simplelru.NewLRU[scope, uint64](maxAnswers, nil); err != nil {
		return nil, err
	}
	if m.disk, err = openLastKnown(c.Dir); err != nil {
		return nil, fmt.Errorf("open the metadata mirror in %s: %w", c.Dir, err)
	}
	nodes, err := m.disk.load(func(key string, a *answer) {
		m.answers.Add(key, a)
		m.bytes += len(a.value)
	})
	if err != nil {
		return nil, fmt.Errorf("open the metadata mirror in %s: %w", c.Dir, errors.Join(err, m.disk.close()))
	}
	m.roster = NewRoster(nodes)
	m.roster.OnChange(func(change RosterChange) {
		if err := m.disk.node(change); err != nil {
			c.Log.Warn("the roster is not kept", "error", err)
		}
	})
	return m, nil
}

// Roster returns the nodes of the region and all servers, current while Run runs.
func (m *Mirror) Roster() *Roster { return m.roster }

// Waves has a log index to read up to which waves may have been planned, done or
// over since the last one. It has one reader.
func (m *Mirror) Waves() <-chan uint64 { return m.waves }

// Lost has a signal when blobs may have been lost since the last one: no server has
// them any more. It has one reader.
func (m *Mirror) Lost() <-chan struct{} { return m.lost }

// Cluster has a signal when what all nodes share, like the trust root, may have changed
// since the last one. It has one reader.
func (m *Mirror) Cluster() <-chan struct{} { return m.cluster }

func (m *Mirror) mayBeLost() {
	select {
	case m.lost <- struct{}{}:
	default:
	}
}

// wavesChanged is called by Run only: of one writer the channel always has room
// after it was emptied.
func (m *Mirror) wavesChanged(index uint64) {
	select {
	case unread := <-m.waves:
		index = max(index, unread)
	default:
	}
	m.waves <- index
}

// Close closes the files.
func (m *Mirror) Close() error { return m.disk.close() }

// mirrorMetrics counts what readers got and what ran over its bounds.
type mirrorMetrics struct {
	answers *prometheus.CounterVec
	evicted prometheus.Counter
	breaks  prometheus.Counter
}

func newMirrorMetrics(r prometheus.Registerer) mirrorMetrics {
	f := promauto.With(r)
	return mirrorMetrics{
		answers: f.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_mirror_answers_total",
			Help: "Answers to metadata questions on this agent, by where they came from: a server, kept from before, or stale because no server was reachable.",
		}, []string{"source"}),
		evicted: f.NewCounter(prometheus.CounterOpts{
			Name: "shoal_mirror_evicted_answers_total",
			Help: "Kept answers dropped because the mirror was full.",
		}),
		breaks: f.NewCounter(prometheus.CounterOpts{
			Name: "shoal_mirror_feed_breaks_total",
			Help: "Times the feed from the servers broke off.",
		}),
	}
}

// Run follows the feed until ctx ends.
func (m *Mirror) Run(ctx context.Context) error {
	const longest = 5 * time.Second
	pause := 100 * time.Millisecond
	m.running.Store(true)
	defer func() {
		m.running.Store(false)
		m.alone.Store(false)
	}()
	for ctx.Err() == nil {
		began := time.Now()
		err := m.roster.Follow(ctx, m.config.Upstream, m.config.Region, m.changes)
		if ctx.Err() != nil {
			break
		}
		if unreachable(err) {
			m.alone.Store(true)
		}
		m.metrics.breaks.Inc()
		m.config.Log.Warn("the feed broke off", "error", err, "again_in", pause)
		if time.Since(began) > longest {
			pause = 100 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
	}
	return nil
}

var followed = []feed.Kind{
	feed.KindCluster, feed.KindNode, feed.KindRegion, feed.KindRepository,
	feed.KindAlias, feed.KindVersion, feed.KindPackage, feed.KindBlob, feed.KindWave, feed.KindLost, feed.KindHealth, feed.KindRespond,
}

// changes follows what the mirror depends on, forgets what changed, and passes it
// on. It subscribes anew when it has come to depend on more.
func (m *Mirror) changes(ctx context.Context, after uint64) iter.Seq2[feed.Change, error] {
	return func(yield func(feed.Change, error) bool) {
		m.wavesChanged(after) // what came before was not heard
		m.mayBeLost()
		for {
			filter, began := m.subscribe(after), time.Now()
			again := false
			for c, err := range m.config.Upstream.Follow(ctx, after, filter) {
				if err != nil {
					yield(c, err)
					return
				}
				m.hear()
				m.observe(c)
				if !yield(c, nil) {
					return
				}
				if c.Kind == feed.KindProgress {
					after = max(after, c.Index)
					if again = m.outgrown(time.Since(began)); again {
						break
					}
				}
			}
			if !again {
				return
			}
		}
	}
}

// subscribe returns what to follow from an index on: the roster, and the
// repositories of the answers that were used last.
func (m *Mirror) subscribe(after uint64) feed.Filter {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.since, m.news = after, false
	clear(m.repos)
	for _, key := range slices.Backward(m.answers.Keys()) {
		if a, ok := m.answers.Peek(key); ok && a.about.Repo != (meta.RepoRef{}) {
			m.repos[a.about.Repo] = true
		}
		if len(m.repos) == maxRepos {
			break
		}
	}
	f := feed.Filter{Kinds: followed, Region: m.config.Region, Repos: slices.Collect(maps.Keys(m.repos))}
	if len(f.Repos) == 0 {
		f.Kinds = []feed.Kind{feed.KindCluster, feed.KindNode, feed.KindRegion, feed.KindWave, feed.KindLost, feed.KindHealth}
	}
	return f
}

// outgrown reports whether a subscription of that age is to be made anew.
func (m *Mirror) outgrown(age time.Duration) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.repos) == maxRepos {
		return m.news && age > resubscribeFull
	}
	return m.news && age > resubscribeEvery
}

// observe notes what changed, so that older answers are not given again, and
// forgets what is gone.
func (m *Mirror) observe(c feed.Change) {
	switch {
	case c.Kind == feed.KindWave:
		m.wavesChanged(c.Index)
	case c.Kind == feed.KindLost && !c.Deleted:
		m.mayBeLost()
	case c.Kind == feed.KindCluster:
		select {
		case m.cluster <- struct{}{}:
		default:
		}
	}
	if c.Repo == (meta.RepoRef{}) {
		return
	}
	s := scope{Repo: c.Repo, Package: c.Package}
	m.mu.Lock()
	defer m.mu.Unlock()
	if before, _ := m.touched.Peek(s); c.Index > before {
		m.touched.Add(s, c.Index)
	}
	if ofQuarantine(c) {
		m.quarantined(c)
	}
	if !c.Deleted {
		return
	}
	for _, key := range m.answers.Keys() {
		if a, _ := m.answers.Peek(key); a.about.scope == s && a.about.name == c.Name && a.asOf.Index < c.Index {
			m.answers.Remove(key)
		}
	}
}

// Watch implements Watcher: it follows all changes, from a server.
func (m *Mirror) Watch(ctx context.Context, after uint64) iter.Seq2[feed.Change, error] {
	return m.config.Upstream.Follow(ctx, after, feed.Filter{})
}

// Answer implements Asker.
//
// Errors: those of the server that was asked; *meta.UnavailableError with the
// reason no_server when none is reachable and nothing is known.
func (m *Mirror) Answer(ctx context.Context, f meta.Freshness, q Request) (meta.AsOf, error) {
	if f.Mode == meta.ModeStrong {
		return m.config.Upstream.Answer(ctx, f, q)
	}
	args, err := codec.Marshal(q.Args())
	if err != nil {
		return meta.AsOf{}, fmt.Errorf("%s: %w: %w", q.Name(), err, meta.ErrInvalid)
	}
	key := q.Name() + "\x00" + string(args)
	follow := f
	follow.After = m.followed(f.After)
	a, err := m.answer(ctx, key, follow, q)
	if follow.After != f.After && ctx.Err() == nil && (errors.Is(err, meta.ErrUnavailable) || errors.Is(err, meta.ErrConflict)) {
		// The reader named no such point: what can be had is served, and says what it is.
		a, err = m.answer(ctx, key, f, q)
	}
	asOf := a.asOf
	asOf.Mode = f.Mode
	if asOf.Stale {
		asOf.Mode = meta.ModeLocal
	}
	asOf.Age = a.age(time.Now())
	if err != nil {
		return asOf, err
	}
	if err := codec.Unmarshal(a.value, q.Into()); err != nil {
		return meta.AsOf{}, fmt.Errorf("kept answer of %s: %w: %w", q.Name(), err, meta.ErrCorrupt)
	}
	return asOf, nil
}

// Wrote notes a write that went through this agent.
func (m *Mirror) Wrote(t meta.Token) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wroteAt = time.Now()
	if m.wrote.Before(t) {
		m.wrote = t
	}
}

// followed returns the later of after and what was written here lately.
func (m *Mirror) followed(after meta.Token) meta.Token {
	m.mu.Lock()
	defer m.mu.Unlock()
	if after.Before(m.wrote) && time.Since(m.wroteAt) < rememberWrites {
		return m.wrote
	}
	return after
}

// answer returns what is kept, if it is fresh enough, or what the server says. One
// of several equal questions asks, for all; readers who may have written elsewhere join
// only what is asked after they came.
func (m *Mirror) answer(ctx context.Context, key string, f meta.Freshness, q Request) (answer, error) {
	flightKey := fmt.Sprintf("%s\x00%s %d %t %t %s", key, f.Mode, f.MaxAge, f.Exact, f.Own, f.After)
	var came uint64 // how many questions had been asked when this reader came
	here := false
	for {
		m.mu.Lock()
		if a, ok := m.answers.Get(key); ok && !f.Own && m.serves(a, f, time.Now()) {
			m.mu.Unlock()
			m.metrics.answers.WithLabelValues("kept").Inc()
			return *a, nil
		}
		if m.alone.Load() {
			if known, ok := m.stale(key, f); ok {
				m.mu.Unlock()
				return known, nil
			}
		}
		if !here {
			here, came = true, m.flown
		}
		fl := m.flights[flightKey]
		mine := fl == nil
		if mine {
			m.flown++
			fl = &flight{number: m.flown, done: make(chan struct{})}
			m.flights[flightKey] = fl
		}
		m.mu.Unlock()
		if mine {
			return m.lead(ctx, fl, flightKey, key, f, q)
		}
		select {
		case <-fl.done:
		case <-ctx.Done():
			return answer{}, fmt.Errorf("ask %s: %w", q.Name(), context.Cause(ctx))
		}
		if f.Own && fl.number <= came {
			continue // It may not know what this reader wrote: the next one will.
		}
		if !fl.left {
			return fl.answer, fl.err
		}
		// The reader that asked gave up; ask oneself.
	}
}

// lead asks for all who wait for fl.
func (m *Mirror) lead(ctx context.Context, fl *flight, flightKey, key string, f meta.Freshness, q Request) (answer, error) {
	fl.left = true // stays when asking panics
	defer func() {
		m.mu.Lock()
		delete(m.flights, flightKey)
		m.mu.Unlock()
		close(fl.done)
	}()
	fl.answer, fl.err = m.ask(ctx, key, f, q)
	// The error may be why the context ended, whatever that is: the reader's right that was
	// taken back is nobody else's.
	fl.left = fl.err != nil && ctx.Err() != nil
	return fl.answer, fl.err
}

// serves reports whether a may be given again. It holds mu.
func (m *Mirror) serves(a *answer, f meta.Freshness, now time.Time) bool {
	for _, s := range []scope{a.about.scope, {Repo: a.about.Repo}} {
		if changed, ok := m.touched.Peek(s); ok && changed > a.asOf.Index {
			return false
		}
	}
	if a.asOf.Index < m.since {
		return false
	}
	if kept := now.Sub(a.came); kept < 0 || kept > reuse || !a.follows(f.After) {
		return false
	}
	return f.Mode == meta.ModeLocal || a.age(now) <= f.MaxAge
}

// follows reports whether the answer is of a state that includes t.
func (a *answer) follows(t meta.Token) bool {
	return !meta.Token{Epoch: a.asOf.Epoch, Index: a.asOf.Index}.Before(t)
}

// age bounds how far the answer lies behind; one that came in the future, before
// the clock was set back, has no bound.
func (a *answer) age(now time.Time) time.Duration {
	kept := now.Sub(a.came)
	if kept < 0 || a.asOf.Age > meta.UnknownAge-kept {
		return meta.UnknownAge
	}
	return a.asOf.Age + kept
}

// ask asks a server, keeps what it says, and falls back to what is known.
func (m *Mirror) ask(ctx context.Context, key string, f meta.Freshness, q Request) (answer, error) {
	began := time.Now()
	asOf, err := m.config.Upstream.Answer(ctx, f, q)
	a := answer{asOf: asOf, came: time.Now(), about: subjectOf(q.Args())}
	if err == nil {
		m.hear()
		if a.value, err = codec.Marshal(q.Into()); err != nil {
			return a, fmt.Errorf("answer of %s: %w", q.Name(), err)
		}
		m.keep(key, a, lasting(q.Args()))
		m.metrics.answers.WithLabelValues("server").Inc()
		return a, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(err, meta.ErrNotFound) {
		m.answers.Remove(key)
		return a, err
	}
	if !unreachable(err) {
		return a, err
	}
	if m.heard.Load() < began.UnixNano() {
		m.alone.Store(m.running.Load())
	}
	if known, ok := m.stale(key, f); ok {
		return known, nil
	}
	return a, err
}

// hear notes that a server was heard of.
func (m *Mirror) hear() {
	m.heard.Store(time.Now().UnixNano())
	m.alone.Store(false)
}

// unreachable reports whether no server could be asked.
func unreachable(err error) bool {
	u, ok := errors.AsType[*meta.UnavailableError](err)
	return ok && u.Reason == "no_server"
}

// stale returns what is known, labelled so, unless the reader wants no older answer
// than it said, or must follow something later. It holds mu.
func (m *Mirror) stale(key string, f meta.Freshness) (answer, bool) {
	known, ok := m.answers.Get(key)
	if !ok || f.Exact && f.Mode == meta.ModeBounded || !known.follows(f.After) {
		return answer{}, false
	}
	a := *known
	a.asOf.Stale = true
	m.metrics.answers.WithLabelValues("stale").Inc()
	return a, true
}

// keep keeps an answer, on disk too when it is of the lasting kind.
func (m *Mirror) keep(key string, a answer, lasting bool) {
	if len(a.value) > maxOneAnswer {
		return
	}
	// An answer on disk is written again when it says something else, or to renew
	// its time.
	const renew = time.Minute
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.answers.Peek(key); ok {
		if !a.asOf.Stale && (old.asOf.Epoch > a.asOf.Epoch || (old.asOf.Epoch == a.asOf.Epoch && old.asOf.Index > a.asOf.Index)) {
			return // A slower flight brought an older answer.
		}
		a.saved = old.saved
		if !bytes.Equal(old.value, a.value) || a.came.Sub(old.saved) > renew {
			a.saved = time.Time{}
		}
		m.bytes -= len(old.value)
	}
	if lasting && a.saved.IsZero() {
		a.saved = a.came
		if err := m.disk.put(key, &a); err != nil {
			a.saved = time.Time{}
			m.config.Log.Warn("the answer is not kept over a restart", "error", err)
		}
	}
	if m.answers.Add(key, &a) {
		m.metrics.evicted.Inc()
	}
	for m.bytes += len(a.value); m.bytes > maxAnswerBytes; {
		m.answers.RemoveOldest()
		m.metrics.evicted.Inc()
	}
	if repo := a.about.Repo; repo != (meta.RepoRef{}) && !m.repos[repo] {
		m.news = true
	}
}

// evicted forgets an answer on disk when memory does. It is called under mu.
func (m *Mirror) evicted(key string, a *answer) {
	m.bytes -= len(a.value)
	if a.saved.IsZero() {
		return
	}
	if err := m.disk.drop(key); err != nil {
		m.config.Log.Warn("an old answer stays on disk", "error", err)
	}
}

// lasting reports whether answers to the question are kept over a restart: those
// that a read of known content needs.
func lasting(question any) bool {
	switch question.(type) {
	case state.Resolve, state.GetVersion, state.GetBlob, state.GetRepository, state.GetCluster, state.GetPackage, state.GetFile, state.GetSources, state.GetFetched:
		return true
	}
	return false
}

// subjectOf returns what an answer to the question depends on; what it does not
// know, and what depends on several repositories (the sources of a name in a group), is
// reused without regard to changes.
func subjectOf(question any) subject {
	about := func(repo meta.RepoRef, pkg, name string) subject {
		return subject{scope: scope{Repo: repo, Package: pkg}, name: name}
	}
	switch q := question.(type) {
	case state.GetRepository:
		return about(q.Ref, "", "")
	case state.GetBlob:
		return about(q.Repo, "", "")
	case state.GetPackage:
		return about(q.Repo, q.Package, "")
	case state.GetVersion:
		return about(q.Repo, q.Package, q.Version)
	case state.GetTombstone:
		return about(q.Repo, q.Package, q.Version)
	case state.Resolve:
		return about(q.Repo, q.Package, q.Alias)
	case state.ListVersions:
		return about(q.Repo, q.Package, "")
	case state.ListAliases:
		return about(q.Repo, q.Package, "")
	case state.ListFiles:
		return about(q.Repo, q.Package, q.Version)
	case state.GetFile:
		return about(q.Repo, q.Package, q.Version)
	case state.ListPackageFiles:
		return about(q.Repo, q.Package, "")
	case state.AliasHistory:
		return about(q.Repo, q.Package, q.Alias)
	case state.Attachments:
		return about(q.Repo, q.Package, "")
	case state.GetSets:
		return about(q.Repo, "", "")
	case state.GetPublication:
		return about(q.Repo, "", q.Name)
	case state.ListPublications:
		return about(q.Repo, "", "")
	}
	return subject{}
}
