package publication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Metadata is what a Builder reads and follows: a server's Store.
type Metadata interface {
	raftmeta.Asker
	raftmeta.Watcher
}

// Config is what a Builder is made of.
type Config struct {
	Self     meta.NodeID
	Formats  []Format
	Metadata Metadata
	Commands raftmeta.Doer
	Catalog  *catalog.Catalog
	// Open opens what was sealed to this server.
	Open func(sealed []byte) ([]byte, error)
	// Dir is where documents are spooled while they are written; it exists.
	Dir string
	// Every is how long after a build the next one of a repository begins at the earliest;
	// 0 is a second.
	Every time.Duration
	// KeyBits is the length of the RSA keys that are made; 0 is 3072.
	KeyBits int
	Metrics prometheus.Registerer // nil registers nothing
	Log     *slog.Logger
}

// Builder builds the publications of repositories, on a server.
type Builder struct {
	cfg     Config
	formats map[string]Format
	metrics metrics

	mu      sync.Mutex // guards below
	waiting map[meta.RepoRef][]chan struct{}
	// groups are the groups of formats that are built, by member.
	groups  map[meta.RepoRef][]meta.RepoRef
	tasks   map[meta.RepoRef]*task
	signers map[meta.RepoRef]*Signer
	// losses is when all are looked at for what was lost, zero when nothing was since.
	losses time.Time

	wake chan struct{} // a task may be due earlier than was thought
}

// task is a repository that is, or may be, to be built.
type task struct {
	at      time.Time // when to look
	running bool
	again   bool // it changed while it was built
	// stood is since when this server stands back for those before it, zero before.
	stood time.Time
	last  time.Time // when it was built here
	// failures is how often in a row a look at it failed.
	failures int
}

// again returns how long after so many failures in a row the next try is: a build that
// cannot succeed reads all of a repository each time. A change is not kept waiting.
func again(failures int) time.Duration {
	return min(retryEvery<<min(failures-1, 10), retryMost)
}

// New returns a Builder over the given parts.
func New(cfg Config) (*Builder, error) {
	if cfg.Metadata == nil || cfg.Commands == nil || cfg.Catalog == nil || cfg.Open == nil || cfg.Dir == "" || cfg.Self == "" {
		return nil, fmt.Errorf("a builder of publications needs metadata, commands, a catalog, a key and a folder: %w", meta.ErrInvalid)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Every == 0 {
		cfg.Every = buildEvery
	}
	if cfg.KeyBits == 0 {
		cfg.KeyBits = 3072
	}
	b := &Builder{
		cfg: cfg, formats: map[string]Format{}, waiting: map[meta.RepoRef][]chan struct{}{}, groups: map[meta.RepoRef][]meta.RepoRef{},
		tasks: map[meta.RepoRef]*task{}, signers: map[meta.RepoRef]*Signer{}, wake: make(chan struct{}, 1),
	}
	for _, f := range cfg.Formats {
		b.formats[f.Format()] = f
	}
	return b, b.metrics.register(cfg.Metrics)
}

// settle is how long a change waits for others.
func (b *Builder) settle() time.Duration { return min(settle, b.cfg.Every/4) }

func (b *Builder) rules(format string) uint32 {
	if f := b.formats[format]; f != nil {
		return f.Rules()
	}
	return 0
}

// Await waits until the documents of a repository contain what is committed at t, at
// most AwaitMost. It returns the point at which they do, and t when they do not yet: they
// will soon.
func (b *Builder) Await(ctx context.Context, repo meta.RepoRef, t meta.Token) meta.Token {
	if b == nil {
		return t
	}
	ctx, cancel := context.WithTimeout(ctx, AwaitMost)
	defer cancel()
	b.look(repo, 0)
	for {
		changed, forget := b.listen(repo)
		s, asOf, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Freshness{Mode: meta.ModeLocal, After: t}, state.GetSets{Repo: repo})
		if err == nil && s.Built >= t.Index {
			forget()
			return meta.Token{Epoch: asOf.Epoch, Index: asOf.Index}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			forget()
			return t
		}
	}
}

// listen returns a channel that is closed when the sets of a repository change.
func (b *Builder) listen(repo meta.RepoRef) (changed <-chan struct{}, forget func()) {
	ch := make(chan struct{})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting[repo] = append(b.waiting[repo], ch)
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		left := slices.DeleteFunc(b.waiting[repo], func(c chan struct{}) bool { return c == ch })
		if len(left) == 0 {
			delete(b.waiting, repo)
		} else {
			b.waiting[repo] = left
		}
	}
}

// tell ends the waiting for changes to the sets of a repository.
func (b *Builder) tell(repo meta.RepoRef) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ch := range b.waiting[repo] {
		close(ch)
	}
	delete(b.waiting, repo)
}

// look has a repository looked at after d.
func (b *Builder) look(repo meta.RepoRef, d time.Duration) {
	at := time.Now().Add(d)
	b.mu.Lock()
	t := b.tasks[repo]
	switch {
	case t == nil:
		b.tasks[repo] = &task{at: at}
	case t.running:
		t.again = true
	default:
		if earliest := t.last.Add(b.cfg.Every); at.Before(earliest) {
			at = earliest
		}
		if t.at.IsZero() || at.Before(t.at) {
			t.at = at
		}
	}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Run builds until ctx ends.
func (b *Builder) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group.Go(func() { b.follow(ctx) })
	ended := make(chan struct{}, maxBuilds)
	running := 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		b.lookLost()
		for running < maxBuilds {
			repo, ok := b.next()
			if !ok {
				break
			}
			running++
			group.Go(func() {
				b.work(ctx, repo)
				ended <- struct{}{}
			})
		}
		if d, ok := b.pause(); ok && running < maxBuilds {
			timer.Reset(d)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			running--
		case <-b.wake:
		case <-timer.C:
		}
	}
}

// next takes the task that has been due for longest.
func (b *Builder) next() (repo meta.RepoRef, ok bool) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	var best *task
	for r, t := range b.tasks {
		if !t.running && !t.at.IsZero() && !t.at.After(now) && (best == nil || t.at.Before(best.at)) {
			best, repo = t, r
		}
	}
	if best == nil {
		return repo, false
	}
	best.running, best.again, best.at = true, false, time.Time{}
	return repo, true
}

// pause returns how long it is until a task is due; false when none waits.
func (b *Builder) pause() (time.Duration, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	first := b.losses
	for _, t := range b.tasks {
		if !t.running && !t.at.IsZero() && (first.IsZero() || t.at.Before(first)) {
			first = t.at
		}
	}
	return max(time.Until(first), 0), !first.IsZero()
}

// follow has repositories looked at as they change.
func (b *Builder) follow(ctx context.Context) {
	for ctx.Err() == nil {
		after, err := b.scan(ctx)
		if err == nil {
			for c, e := range b.changes(ctx, after) {
				if e != nil {
					err = e
					break
				}
				b.observe(ctx, c)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, feed.ErrCompacted) {
			b.cfg.Log.Warn("changes of repositories are not followed, trying again", "error", err)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (b *Builder) changes(ctx context.Context, after uint64) iter.Seq2[feed.Change, error] {
	return b.cfg.Metadata.Watch(ctx, after)
}

// scan has all repositories of the formats looked at, and returns the index of the state
// that it began with.
func (b *Builder) scan(ctx context.Context) (uint64, error) {
	_, asOf, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.GetLevel{})
	if err != nil {
		return 0, err
	}
	page := state.Page{Limit: 1000}
	for {
		repos, _, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.ListRepositories{Page: page})
		if err != nil {
			return 0, err
		}
		if len(repos) == 0 {
			return asOf.Index, nil
		}
		for i := range repos {
			b.know(&repos[i])
		}
		page.After = repos[len(repos)-1].Ref.String()
	}
}

// know notes a repository as it is now, and has it looked at.
func (b *Builder) know(r *meta.Repository) {
	if b.formats[r.Format] == nil || r.Kind == meta.KindProxy {
		return
	}
	b.mu.Lock()
	for m, groups := range b.groups {
		if groups = slices.DeleteFunc(groups, func(g meta.RepoRef) bool { return g == r.Ref }); len(groups) == 0 {
			delete(b.groups, m)
		} else {
			b.groups[m] = groups
		}
	}
	for _, name := range r.Members {
		m := meta.RepoRef{Tenant: r.Ref.Tenant, Name: name}
		b.groups[m] = append(b.groups[m], r.Ref)
	}
	b.mu.Unlock()
	b.look(r.Ref, b.settle())
}

func (b *Builder) observe(ctx context.Context, c feed.Change) {
	switch c.Kind {
	case feed.KindRepository:
		r, _, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.GetRepository{Ref: c.Repo})
		switch {
		case err == nil:
			b.know(&r)
		case errors.Is(err, meta.ErrNotFound):
			b.forget(c.Repo)
		}
	case feed.KindVersion, feed.KindRespond:
		if c.Package != "" {
			b.touched(c.Repo)
		}
	case feed.KindSets:
		if c.Name == "" {
			b.tell(c.Repo)
			b.lookGroups(c.Repo)
		}
	case feed.KindCluster, feed.KindNode:
		// The level rose, or who builds may be another.
		b.lookAll(b.settle())
	case feed.KindLost:
		// Whose it was is not said. Many are lost at a time, when a server is.
		if !c.Deleted {
			b.lost()
		}
	}
}

// lost has all repositories looked at a while after the first of many losses.
func (b *Builder) lost() {
	b.mu.Lock()
	first := b.losses.IsZero()
	if first {
		b.losses = time.Now().Add(lostAfter * b.cfg.Every)
	}
	b.mu.Unlock()
	if !first {
		return
	}
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// lookLost has all repositories looked at when that is due. What is lost from now on is
// another time's.
func (b *Builder) lookLost() {
	b.mu.Lock()
	due := !b.losses.IsZero() && !b.losses.After(time.Now())
	if due {
		b.losses = time.Time{}
	}
	b.mu.Unlock()
	if due {
		b.lookAll(0)
	}
}

// lookAll has all repositories that are known looked at after d.
func (b *Builder) lookAll(d time.Duration) {
	b.mu.Lock()
	all := slices.Collect(maps.Keys(b.tasks))
	b.mu.Unlock()
	for _, r := range all {
		b.look(r, d)
	}
}

// touched has a repository looked at that is known to be built, and its groups.
func (b *Builder) touched(repo meta.RepoRef) {
	b.mu.Lock()
	known := b.tasks[repo] != nil
	b.mu.Unlock()
	if known {
		b.look(repo, b.settle())
	}
	b.lookGroups(repo)
}

func (b *Builder) lookGroups(member meta.RepoRef) {
	b.mu.Lock()
	groups := slices.Clone(b.groups[member])
	b.mu.Unlock()
	for _, g := range groups {
		b.look(g, b.settle())
	}
}

func (b *Builder) forget(repo meta.RepoRef) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t := b.tasks[repo]; t != nil && !t.running {
		delete(b.tasks, repo)
	}
	delete(b.signers, repo)
}

// work looks at one repository and builds it if that is due and this server's turn.
func (b *Builder) work(ctx context.Context, repo meta.RepoRef) {
	began := time.Now()
	later, err := b.attend(ctx, repo)
	b.mu.Lock()
	t := b.tasks[repo]
	t.running = false
	if err == nil {
		t.failures = 0
	} else if ctx.Err() == nil {
		t.failures++
		later = again(t.failures)
		if t.again {
			later = retryEvery
		}
		b.metrics.failed.Inc()
		b.cfg.Log.Warn("the documents of a repository are not built, trying again", "repository", repo.String(), "in", later, "error", err)
	}
	if later == 0 {
		t.last = began
	}
	if t.again && later == 0 {
		later = max(time.Until(began.Add(b.cfg.Every)), b.settle())
	}
	if later > 0 {
		t.at = time.Now().Add(later)
	}
	b.mu.Unlock()
}

// attend builds a repository if that is due and this server's turn. later, when not 0,
// is when to look again.
func (b *Builder) attend(ctx context.Context, ref meta.RepoRef) (later time.Duration, err error) {
	repo, _, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.GetRepository{Ref: ref})
	if errors.Is(err, meta.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	format := b.formats[repo.Format]
	if format == nil || repo.Kind == meta.KindProxy {
		return 0, nil
	}
	if level, _, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.GetLevel{}); err != nil || level < state.SetsLevel {
		return 0, err
	}
	sets, changed, members, at, err := b.stand(ctx, &repo)
	if err != nil {
		return 0, err
	}
	servers, all, err := b.servers(ctx)
	if err != nil {
		return 0, err
	}
	lost := format.Signed() && sets != nil && sets.Key != nil &&
		!slices.ContainsFunc(all, func(s meta.Node) bool { return slices.Contains(sets.Key.To, s.ID) })
	later = b.share(ctx, format, ref, sets, servers)
	if sets != nil && !lost && !due(*sets, changed, format.Rules()) {
		gone, err := b.damaged(ctx, ref)
		if err != nil {
			return 0, err
		}
		if len(gone) == 0 {
			if later == 0 {
				b.standing(ref, time.Time{})
			}
			return later, nil
		}
	}
	if wait := b.turn(&repo, sets, servers); wait > 0 {
		if later > 0 {
			wait = min(wait, later)
		}
		return wait, nil
	}
	if sets == nil || lost {
		if lost {
			b.cfg.Log.Warn("no server has the signing key of a repository any more, a new one is made: clients need that",
				"repository", ref.String(), "was", sets.Key.Fingerprint)
		}
		if _, err = b.open(ctx, ref, format, servers); err != nil {
			return 0, err
		}
		if sets, _, members, at, err = b.stand(ctx, &repo); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	if err := b.build(ctx, format, &repo, *sets, members, at, servers); err != nil {
		if errors.Is(err, meta.ErrConflict) {
			return standBack, nil // Another took the lease.
		}
		return 0, err
	}
	b.standing(ref, time.Time{})
	b.metrics.built.Observe(time.Since(began).Seconds())
	b.cfg.Log.Debug("the documents of a repository are built", "repository", ref.String(), "index", at, "took", time.Since(began))
	return 0, nil
}

// stand returns how the sets of a repository stand, nil when they were never opened; the
// index of the last change to what they are made of, whose these are, and the index of
// the state that says so.
func (b *Builder) stand(ctx context.Context, repo *meta.Repository) (sets *meta.Sets, changed uint64, members []meta.RepoRef, at uint64, err error) {
	s, asOf, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.GetSets{Repo: repo.Ref})
	at = asOf.Index
	switch {
	case err == nil:
		sets, changed = &s, s.Changed
	case !errors.Is(err, meta.ErrNotFound):
		return nil, 0, nil, 0, err
	}
	if repo.Kind != meta.KindGroup {
		return sets, changed, []meta.RepoRef{repo.Ref}, at, nil
	}
	changed = max(changed, repo.Revision)
	for _, name := range repo.Members {
		// What a group in the group has for members is in its own record alone.
		m, _, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.GetRepository{Ref: meta.RepoRef{Tenant: repo.Ref.Tenant, Name: name}})
		switch {
		case err == nil && m.Kind == meta.KindGroup:
			changed = max(changed, m.Revision)
		case err != nil && !errors.Is(err, meta.ErrNotFound):
			return nil, 0, nil, 0, err
		}
	}
	all, _, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.Members{Repo: repo.Ref})
	if err != nil {
		return nil, 0, nil, 0, err
	}
	for _, m := range all {
		if m.Kind != meta.KindHosted {
			continue
		}
		members = append(members, m.Ref)
		of, _, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.GetSets{Repo: m.Ref})
		switch {
		case err == nil:
			changed = max(changed, of.Changed)
		case !errors.Is(err, meta.ErrNotFound):
			return nil, 0, nil, 0, err
		}
	}
	return sets, changed, members, at, nil
}

// servers returns the roster's servers that do not drain, and all of them.
func (b *Builder) servers(ctx context.Context) (serving, all []meta.Node, err error) {
	all, _, err = raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.ListNodes{Role: meta.RoleServer})
	if err != nil {
		return nil, nil, err
	}
	return slices.DeleteFunc(slices.Clone(all), func(n meta.Node) bool { return n.Draining != nil }), all, nil
}

// turn returns how long this server leaves a build to others, 0 when it is its turn.
func (b *Builder) turn(repo *meta.Repository, sets *meta.Sets, servers []meta.Node) time.Duration {
	now := time.Now()
	if sets != nil && sets.Until.Std().After(now) {
		if sets.Builder == b.cfg.Self {
			return 0
		}
		return time.Until(sets.Until.Std()) + standBack
	}
	var home, others []meta.NodeID
	for _, s := range servers {
		if s.Region == repo.Home {
			home = append(home, s.ID)
		} else {
			others = append(others, s.ID)
		}
	}
	place := rank(repo.Ref, b.cfg.Self, home, others)
	if place < 0 {
		return retryEvery
	}
	if place == 0 {
		return 0
	}
	since := b.standing(repo.Ref, now)
	return max(since.Add(time.Duration(place)*standBack).Sub(now), 0)
}

// standing notes since when this server stands back for others, and returns that; a zero
// now ends it.
func (b *Builder) standing(repo meta.RepoRef, now time.Time) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.tasks[repo]
	if t == nil {
		return now
	}
	if now.IsZero() || t.stood.IsZero() {
		t.stood = now
	}
	return t.stood
}

func (b *Builder) origin() state.Origin {
	return state.Origin{Principal: meta.KindNode + ":" + string(b.cfg.Self), Node: b.cfg.Self}
}

// open begins the sets of a repository, with its key.
func (b *Builder) open(ctx context.Context, repo meta.RepoRef, format Format, servers []meta.Node) (*meta.Sets, error) {
	cmd := state.OpenSets{Repo: repo}
	if format.Signed() {
		key, err := newKey(repo, servers, time.Now(), b.cfg.KeyBits)
		if err != nil {
			return nil, err
		}
		cmd.Key = key
	}
	receipt, err := b.cfg.Commands.Do(ctx, b.origin(), cmd)
	if err != nil {
		return nil, err
	}
	s, _ := receipt.Value.(meta.Sets)
	return &s, nil
}

// lacks reports whether a server cannot open what is sealed to some, and could be sealed
// to.
func lacks(to []meta.NodeID, servers []meta.Node) bool {
	return len(servers) <= meta.MaxSealedTo && slices.ContainsFunc(servers, func(s meta.Node) bool { return !slices.Contains(to, s.ID) })
}

// share sees to it that all servers can open the signing key, though nothing is to be
// built: a server that joins may be the next builder, and those that have the key may all
// leave before there is something to build. The first by name of those that have it does
// so, the others when it does not. later, when not 0, is when to look again.
func (b *Builder) share(ctx context.Context, format Format, repo meta.RepoRef, sets *meta.Sets, servers []meta.Node) (later time.Duration) {
	if !format.Signed() || sets == nil || sets.Key == nil || !lacks(sets.Key.To, servers) {
		return 0
	}
	place := slices.Index(sets.Key.To, b.cfg.Self)
	if place < 0 {
		return 0
	}
	now := time.Now()
	if wait := b.standing(repo, now).Add(time.Duration(place) * standBack).Sub(now); wait > 0 {
		return wait
	}
	if _, err := b.signer(ctx, repo, servers); err != nil && ctx.Err() == nil {
		b.cfg.Log.Warn("a signing key is not sealed to all servers, trying again", "repository", repo.String(), "error", err)
		return retryEvery
	}
	return 0
}

// signer returns the signer of a repository, and sees to it that all servers can be it.
func (b *Builder) signer(ctx context.Context, repo meta.RepoRef, servers []meta.Node) (*Signer, error) {
	key, _, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.GetSigningKey{Repo: repo})
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	signer := b.signers[repo]
	b.mu.Unlock()
	missing := lacks(key.To, servers)
	if signer != nil && signer.fingerprint == key.Fingerprint && !missing {
		return signer, nil
	}
	secret, err := b.cfg.Open(key.Sealed)
	if err != nil {
		return nil, fmt.Errorf("the signing key of %s is not sealed to this server yet, a server that can open it does so with its next build: %w: %w", repo, meta.ErrUnavailable, err)
	}
	defer clear(secret)
	if signer, err = openKey(key, secret); err != nil {
		return nil, err
	}
	if missing {
		sealed, to, err := seal(secret, servers)
		if err != nil {
			return nil, err
		}
		_, err = b.cfg.Commands.Do(ctx, b.origin(), state.SealSetsKey{Repo: repo, Sealed: sealed, To: to, From: key.To})
		if err != nil && !errors.Is(err, meta.ErrConflict) {
			return nil, err
		}
	}
	b.mu.Lock()
	b.signers[repo] = signer
	b.mu.Unlock()
	return signer, nil
}

// publications yields the sets of a repository that are in place.
func (b *Builder) publications(ctx context.Context, repo meta.RepoRef) iter.Seq2[meta.Publication, error] {
	return func(yield func(meta.Publication, error) bool) {
		var page state.Page
		for {
			list, _, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.ListPublications{Repo: repo, Page: page})
			if err != nil {
				yield(meta.Publication{}, err)
				return
			}
			for _, p := range list {
				if !yield(p, nil) {
					return
				}
			}
			if len(list) == 0 {
				return
			}
			page.After = list[len(list)-1].Name
		}
	}
}

// damaged names the sets in place of which no server has some file any more. It reads
// them only while something is lost.
func (b *Builder) damaged(ctx context.Context, repo meta.RepoRef) (map[string]bool, error) {
	some, _, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.ListLost{Page: state.Page{Limit: 1}})
	if err != nil || len(some) == 0 {
		return nil, err
	}
	gone := map[string]bool{}
	for p, err := range b.publications(ctx, repo) {
		if err != nil {
			return nil, err
		}
		for _, f := range p.Files {
			blob, _, err := raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.GetBlob{Repo: repo, Digest: f.Digest})
			lost := errors.Is(err, meta.ErrNotFound)
			if err == nil {
				lost, _, err = raftmeta.Ask(ctx, b.cfg.Metadata, meta.Local, state.IsLost{Root: blob.Blob.Root})
			}
			if lost {
				gone[p.Name] = true
				break
			}
			if err != nil {
				return nil, fmt.Errorf("file %s of the documents of %s: %w", f.Path, repo, err)
			}
		}
	}
	return gone, nil
}

// build takes the lease and builds.
func (b *Builder) build(ctx context.Context, format Format, repo *meta.Repository, sets meta.Sets, members []meta.RepoRef, at uint64, servers []meta.Node) (err error) {
	var signer *Signer
	if format.Signed() {
		// Before the lease: who cannot open the key leaves the build to who can.
		if signer, err = b.signer(ctx, repo.Ref, servers); err != nil {
			return err
		}
	}
	lease := func(ctx context.Context) error {
		_, err := b.cfg.Commands.Do(ctx, b.origin(), state.LeaseSets{Repo: repo.Ref, Node: b.cfg.Self, For: leaseFor})
		return err
	}
	if sets.Builder != b.cfg.Self || time.Until(sets.Until.Std()) < leaseFor/2 {
		if err := lease(ctx); err != nil {
			return err
		}
	}
	// While it takes long, the lease is kept; a build that has lost it ends at its commit.
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		tick := time.NewTicker(renewLease)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if err := lease(ctx); err != nil && ctx.Err() == nil {
					b.cfg.Log.Warn("the lease of a build was not renewed", "repository", repo.Ref.String(), "error", err)
				}
			}
		}
	})
	defer group.Wait()
	defer cancel()

	current := map[string]meta.Publication{}
	for p, err := range b.publications(ctx, repo.Ref) {
		if err != nil {
			return err
		}
		current[p.Name] = p
	}
	gone, err := b.damaged(ctx, repo.Ref)
	if err != nil {
		return err
	}
	if len(gone) > 0 {
		b.cfg.Log.Warn("documents of a repository are lost, they are built again", "repository", repo.Ref.String(), "sets", len(gone))
	}
	build := &Build{
		Repo: *repo, At: at, Signer: signer, Current: current, members: members, builder: b,
		by:     catalog.Caller{Who: meta.Principal{Name: meta.KindNode + ":" + string(b.cfg.Self), Node: b.cfg.Self}, Origin: b.origin()},
		stored: map[digest.Digest]catalog.Stored{}, kept: map[string]bool{},
	}
	defer func() { err = cmp.Or(err, build.close()) }()
	for name, p := range current {
		// What was made by other rules, or has lost a file, is made anew.
		if sets.Format != format.Rules() || gone[name] {
			p.Sum = ""
			current[name] = p
		}
	}
	if err := format.Build(ctx, build); err != nil {
		return fmt.Errorf("build the documents of %s: %w", repo.Ref, err)
	}
	return build.finish(ctx)
}
