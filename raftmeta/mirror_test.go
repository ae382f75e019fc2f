package raftmeta_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

var appRef = meta.RepoRef{Tenant: "acme", Name: "app"}

// withApp returns a store with the repository acme/app.
func withApp(t *testing.T) *metatest.Store {
	s := metatest.New(t)
	s.Must(state.CreateRepository{CreateTenant: true, Repository: meta.Repository{
		Ref: appRef, Format: "oci", Kind: meta.KindHosted, Class: meta.ClassStandard, Home: "eu", Visibility: meta.VisibilityPublic,
	}})
	return s
}

// push publishes content as acme/app/api with an alias.
func push(s *metatest.Store, content, alias string) meta.Token {
	b := []byte(content)
	d := digest.FromBytes(b)
	return s.Must(state.Publish{
		Version: meta.Version{Repo: appRef, Package: "api", Name: string(d), Digest: d, State: meta.StateClosed, Size: int64(len(b))},
		Files:   []meta.File{{Path: "manifest.json", Digest: d, Size: int64(len(b))}},
		Blobs: []state.LinkBlob{{Repo: appRef, Digest: d, Server: "s1", Blob: meta.Blob{
			Context: "acme", Digest: d, PlainBytes: int64(len(b)), StoredBytes: int64(len(b)), Root: digest.Sum(b),
		}}},
		Aliases: []string{alias},
	})
}

func openMirror(t *testing.T, dir string, up raftmeta.Upstream) *raftmeta.Mirror {
	t.Helper()
	m, err := raftmeta.OpenMirror(raftmeta.MirrorConfig{Dir: dir, Region: "eu", Upstream: up})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

var latest = state.Resolve{Repo: appRef, Package: "api", Alias: "latest"}

// resolve returns what content latest names, as the mirror sees it.
func resolve(t *testing.T, m raftmeta.Asker, f meta.Freshness, contents ...string) (string, meta.AsOf) {
	t.Helper()
	a, asOf, err := raftmeta.Ask(t.Context(), m, f, latest)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range contents {
		if a.Version.Digest == digest.FromBytes([]byte(content)) {
			return content, asOf
		}
	}
	t.Fatalf("latest is %+v", a)
	return "", asOf
}

var noServer = &meta.UnavailableError{Reason: "no_server", RetryAfter: time.Second}

func TestMirrorReusesWithinFreshness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := withApp(t)
		push(s, "m1", "latest")
		m := openMirror(t, t.TempDir(), s)
		resolve(t, m, meta.Bounded, "m1")
		time.Sleep(time.Second)
		if _, asOf := resolve(t, m, meta.Bounded, "m1"); asOf.Age != time.Second || asOf.Mode != meta.ModeBounded || asOf.Stale {
			t.Errorf("reused as of %+v", asOf)
		}
		if n := s.Asked("Resolve"); n != 1 {
			t.Errorf("asked %d times", n)
		}
		resolve(t, m, meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Second / 2}, "m1")
		if n := s.Asked("Resolve"); n != 2 {
			t.Errorf("a stricter read asked %d times", n)
		}
		resolve(t, m, meta.Strong, "m1")
		if n := s.Asked("Resolve"); n != 3 {
			t.Errorf("a strong read asked %d times", n)
		}
		time.Sleep(3 * time.Second)
		resolve(t, m, meta.Local, "m1")
		if n := s.Asked("Resolve"); n != 4 {
			t.Errorf("after the reuse: asked %d times", n)
		}
	})
}

func TestMirrorHonoursTokens(t *testing.T) {
	s := withApp(t)
	push(s, "m1", "latest")
	m := openMirror(t, t.TempDir(), s)
	resolve(t, m, meta.Bounded, "m1")
	token := push(s, "m2", "latest")
	if got, asOf := resolve(t, m, meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Hour, After: token}, "m1", "m2"); got != "m2" || asOf.Index < token.Index {
		t.Errorf("after %s it is %s as of %+v", token, got, asOf)
	}
	s.Break(noServer)
	after := meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Hour, After: meta.Token{Epoch: 1, Index: token.Index + 1000}}
	if _, _, err := raftmeta.Ask(t.Context(), m, after, latest); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("a token that nobody has seen: %v", err)
	}
}

// What was written through the agent is followed by every read there, without a
// token; when that cannot be had, what is known is served and says so.
func TestMirrorFollowsItsOwnWrites(t *testing.T) {
	s := withApp(t)
	push(s, "m1", "latest")
	m := openMirror(t, t.TempDir(), s)
	long := meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Hour}
	resolve(t, m, long, "m1")
	m.Wrote(push(s, "m2", "latest"))
	if got, _ := resolve(t, m, long, "m1", "m2"); got != "m2" {
		t.Errorf("after a write through this agent latest is %s", got)
	}
	if n := s.Asked("Resolve"); n != 2 {
		t.Errorf("asked %d times", n)
	}
	resolve(t, m, long, "m2")
	if n := s.Asked("Resolve"); n != 2 {
		t.Errorf("an answer that has the write is asked for again, %d times", n)
	}
	token := push(s, "m3", "latest")
	m.Wrote(token)
	s.Break(noServer)
	if got, asOf := resolve(t, m, long, "m2", "m3"); got != "m2" || asOf.Index >= token.Index {
		t.Errorf("without a server latest is %s as of %+v", got, asOf)
	}
	after := long
	after.After = token
	if _, _, err := raftmeta.Ask(t.Context(), m, after, latest); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("with the token itself: %v", err)
	}
}

// Who may have written elsewhere is given no kept answer while a server can be asked.
func TestMirrorAsksForWhoMayHaveWritten(t *testing.T) {
	s := withApp(t)
	push(s, "m1", "latest")
	m := openMirror(t, t.TempDir(), s)
	own := meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Hour, Own: true}
	resolve(t, m, own, "m1")
	push(s, "m2", "latest")
	if got, _ := resolve(t, m, own, "m1", "m2"); got != "m2" {
		t.Errorf("latest is %s", got)
	}
	s.Break(noServer)
	if got, asOf := resolve(t, m, own, "m1", "m2"); got != "m2" || !asOf.Stale {
		t.Errorf("without a server latest is %s as of %+v", got, asOf)
	}
}

// unhurried is a server whose answers take a second.
type unhurried struct{ *metatest.Store }

func (s unhurried) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	asOf, err := s.Store.Answer(ctx, f, q)
	time.Sleep(time.Second)
	return asOf, err
}

// Many who may have written elsewhere ask at one time: the first asks, and all others
// share the question after that, which knows what had been written when they came.
func TestMirrorSharesWhatIsAskedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := unhurried{withApp(t)}
		push(s.Store, "m1", "latest")
		m := openMirror(t, t.TempDir(), s)
		own := meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Hour, Own: true}
		var group sync.WaitGroup
		defer group.Wait()
		group.Go(func() { resolve(t, m, own, "m1") })
		synctest.Wait()
		push(s.Store, "m2", "latest")
		for range 100 {
			group.Go(func() {
				if got, _ := resolve(t, m, own, "m1", "m2"); got != "m2" {
					t.Errorf("latest is %s", got)
				}
			})
		}
		group.Wait()
		if n := s.Asked("Resolve"); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}

// A bound that the reader named is kept, or nothing is served.
func TestMirrorKeepsABoundThatWasNamed(t *testing.T) {
	s := withApp(t)
	push(s, "m1", "latest")
	m := openMirror(t, t.TempDir(), s)
	named := meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Nanosecond, Exact: true}
	resolve(t, m, named, "m1")
	s.Break(noServer)
	if _, asOf, err := raftmeta.Ask(t.Context(), m, named, latest); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("bounded by name: %+v, %v", asOf, err)
	}
	local := meta.Freshness{Mode: meta.ModeLocal, Exact: true}
	if _, asOf := resolve(t, m, local, "m1"); asOf.Mode != meta.ModeLocal {
		t.Errorf("local is %+v", asOf)
	}
}

// progressed waits until the mirror has followed up to what was done.
type watched struct {
	*metatest.Store
	seen chan uint64
}

func (w watched) Follow(ctx context.Context, after uint64, f feed.Filter) iter.Seq2[feed.Change, error] {
	return func(yield func(feed.Change, error) bool) {
		for c, err := range w.Store.Follow(ctx, after, f) {
			if !yield(c, err) {
				return
			}
			if c.Kind == feed.KindProgress {
				select {
				case w.seen <- c.Index:
				case <-ctx.Done():
				}
			}
		}
	}
}

func (w watched) wait(index uint64) {
	for seen := uint64(0); seen < index; {
		seen = <-w.seen
	}
}

func TestMirrorForgetsByTheFeed(t *testing.T) {
	s := watched{withApp(t), make(chan uint64)}
	push(s.Store, "m1", "latest")
	m := openMirror(t, t.TempDir(), s)
	hour := meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Hour}
	resolve(t, m, hour, "m1") // The repository is one to follow from now on.
	run(t, m.Run)
	s.wait(push(s.Store, "m2", "latest").Index)
	if got, _ := resolve(t, m, hour, "m1", "m2"); got != "m2" {
		t.Errorf("after the move was heard of, it is %s", got)
	}
	asked := s.Asked("Resolve")
	resolve(t, m, hour, "m2")
	if s.Asked("Resolve") != asked {
		t.Error("what has not changed was asked again")
	}
	// What is gone is not served when no server is left.
	s.wait(s.Must(state.DeleteAlias{Repo: appRef, Package: "api", Name: "latest"}).Index)
	go func() {
		for range s.seen {
		}
	}()
	s.Break(noServer)
	if a, asOf, err := raftmeta.Ask(t.Context(), m, hour, latest); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("a deleted alias is %+v as of %+v, %v", a, asOf, err)
	}
}

func TestMirrorServesTheLastKnown(t *testing.T) {
	s := withApp(t)
	s.Admit(agent("a1", "eu"))
	push(s, "m1", "latest")
	dir := t.TempDir()
	m, err := raftmeta.OpenMirror(raftmeta.MirrorConfig{Dir: dir, Region: "eu", Upstream: s})
	if err != nil {
		t.Fatal(err)
	}
	resolve(t, m, meta.Bounded, "m1")
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error)
	go func() { stopped <- m.Run(ctx) }()
	<-m.Roster().Ready()
	stop()
	if err := errors.Join(<-stopped, m.Close()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := raftmeta.Ask(t.Context(), m, meta.Local, state.GetRepository{Ref: appRef}); err != nil {
		t.Errorf("a question to a closed mirror: %v", err)
	}

	s.Break(noServer)
	m = openMirror(t, dir, s)
	fresh := meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Nanosecond}
	if _, asOf := resolve(t, m, fresh, "m1"); !asOf.Stale || asOf.Mode != meta.ModeLocal || asOf.Age <= 0 {
		t.Errorf("the last known answer is as of %+v", asOf)
	}
	if _, _, err := raftmeta.Ask(t.Context(), m, meta.Strong, latest); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("a strong read without servers: %v", err)
	}
	if _, _, err := raftmeta.Ask(t.Context(), m, meta.Local, state.GetVersion{Repo: appRef, Package: "api", Version: "x"}); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("what was never known: %v", err)
	}
	if nodes := m.Roster().Nodes(); len(nodes) != 2 || nodes[0].ID != "a1" {
		t.Errorf("the roster is %+v", nodes)
	}
}

// mute is a store that can stop to answer without a word.
type mute struct {
	*metatest.Store
	silent atomic.Bool
}

const silence = 7 * time.Second

func (m *mute) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	if m.silent.Load() {
		time.Sleep(silence)
		return meta.AsOf{}, noServer
	}
	return m.Store.Answer(ctx, f, q)
}

func (m *mute) Follow(ctx context.Context, after uint64, f feed.Filter) iter.Seq2[feed.Change, error] {
	return func(yield func(feed.Change, error) bool) {
		for !m.silent.Load() {
			if !yield(feed.Change{Kind: feed.KindProgress, Index: after}, nil) {
				return
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				yield(feed.Change{}, ctx.Err())
				return
			}
		}
		time.Sleep(silence)
		yield(feed.Change{}, noServer)
	}
}

// While servers are silent a reader waits once; what is known is given at once after
// that, and no longer when a server is back.
func TestMirrorWaitsForSilenceOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := &mute{Store: withApp(t)}
		push(up.Store, "m1", "latest")
		m := openMirror(t, t.TempDir(), up)
		ctx, stop := context.WithCancel(t.Context())
		stopped := make(chan error, 1)
		go func() { stopped <- m.Run(ctx) }()
		<-m.Roster().Ready()
		resolve(t, m, meta.Bounded, "m1")
		up.silent.Store(true)
		time.Sleep(5 * time.Second)
		read := func() (took time.Duration, asOf meta.AsOf) {
			start := time.Now()
			_, asOf = resolve(t, m, meta.Bounded, "m1", "m2")
			return time.Since(start), asOf
		}
		if took, asOf := read(); took > silence || !asOf.Stale {
			t.Errorf("the first read took %v, as of %+v", took, asOf)
		}
		for range 20 {
			if took, asOf := read(); took > 0 || !asOf.Stale {
				t.Errorf("a further read took %v, as of %+v", took, asOf)
			}
			time.Sleep(time.Second)
		}
		push(up.Store, "m2", "latest")
		up.silent.Store(false)
		time.Sleep(time.Minute)
		if got, asOf := resolve(t, m, meta.Bounded, "m2"); asOf.Stale {
			t.Errorf("with a server there again: %s as of %+v", got, asOf)
		}
		stop()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}

func TestMirrorForgetsWhatIsNotThere(t *testing.T) {
	s := withApp(t)
	push(s, "m1", "latest")
	m := openMirror(t, t.TempDir(), s)
	resolve(t, m, meta.Bounded, "m1")
	s.Must(state.DeleteAlias{Repo: appRef, Package: "api", Name: "latest"})
	fresh := meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Nanosecond}
	if _, asOf, err := raftmeta.Ask(t.Context(), m, fresh, latest); !errors.Is(err, meta.ErrNotFound) || asOf.Index == 0 {
		t.Errorf("got %v as of %+v", err, asOf)
	}
	s.Break(noServer)
	if _, _, err := raftmeta.Ask(t.Context(), m, fresh, latest); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// slow holds questions back until released, or the asker's context ends.
type slow struct {
	*metatest.Store
	asking  chan struct{}
	release chan struct{}
}

func (s slow) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	s.asking <- struct{}{}
	select {
	case <-s.release:
		return s.Store.Answer(ctx, f, q)
	case <-ctx.Done():
		return meta.AsOf{}, context.Cause(ctx)
	}
}

func TestMirrorAsksOnceForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := slow{withApp(t), make(chan struct{}, 1), make(chan struct{})}
		push(s.Store, "m1", "latest")
		m := openMirror(t, t.TempDir(), s)
		first, giveUp := context.WithCancel(t.Context())
		var readers sync.WaitGroup
		readers.Go(func() {
			if _, _, err := raftmeta.Ask(first, m, meta.Bounded, latest); !errors.Is(err, context.Canceled) {
				t.Errorf("who gave up got %v", err)
			}
		})
		<-s.asking
		for range 10 {
			readers.Go(func() { resolve(t, m, meta.Bounded, "m1") })
		}
		synctest.Wait()
		giveUp() // Another of them asks then.
		<-s.asking
		close(s.release)
		readers.Wait()
		if n := s.Asked("Resolve"); n != 1 {
			t.Errorf("%d questions reached the store", n)
		}
	})
}

// Why one reader's context ended is no answer to another: a call whose right was taken
// back ends with that as its cause, and the mirror's question says it.
func TestMirrorKeepsCausesApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := slow{withApp(t), make(chan struct{}, 1), make(chan struct{})}
		push(s.Store, "m1", "latest")
		m := openMirror(t, t.TempDir(), s)
		first, end := context.WithCancelCause(t.Context())
		var readers sync.WaitGroup
		readers.Go(func() {
			if _, _, err := raftmeta.Ask(first, m, meta.Bounded, latest); !errors.Is(err, meta.ErrDenied) {
				t.Errorf("whose right was taken back got %v", err)
			}
		})
		<-s.asking
		for range 10 {
			readers.Go(func() {
				if _, _, err := raftmeta.Ask(t.Context(), m, meta.Bounded, latest); err != nil {
					t.Errorf("another reader got %v", err)
				}
			})
		}
		synctest.Wait()
		end(fmt.Errorf("the right was taken back: %w", meta.ErrDenied))
		synctest.Wait() // another of them asks
		close(s.release)
		readers.Wait()
	})
}

// breaking is an Upstream that panics when it is asked first.
type breaking struct {
	*metatest.Store
	asking, release chan struct{}
	once            *sync.Once
}

func (b breaking) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	b.once.Do(func() {
		b.asking <- struct{}{}
		<-b.release
		panic("broken")
	})
	return b.Store.Answer(ctx, f, q)
}

// A question that panicked keeps nobody waiting.
func TestMirrorOutlivesAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := breaking{withApp(t), make(chan struct{}), make(chan struct{}), new(sync.Once)}
		push(b.Store, "m1", "latest")
		m := openMirror(t, t.TempDir(), b)
		var readers sync.WaitGroup
		readers.Go(func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic is hidden")
				}
			}()
			_, _, _ = raftmeta.Ask(t.Context(), m, meta.Bounded, latest) // it panics
		})
		<-b.asking
		readers.Go(func() { resolve(t, m, meta.Bounded, "m1") })
		synctest.Wait()
		close(b.release)
		readers.Wait()
	})
}

func TestMirrorFollowsNewRepositories(t *testing.T) {
	s := withApp(t)
	push(s, "m1", "latest")
	filters := make(chan feed.Filter, 10)
	m := openMirror(t, t.TempDir(), filtered{s, filters})
	run(t, m.Run)
	if f := <-filters; len(f.Repos) != 0 || f.Match(feed.Change{Kind: feed.KindAlias, Repo: appRef}) {
		t.Errorf("at first it follows %+v", f)
	}
	resolve(t, m, meta.Bounded, "m1")
	// The next change after a second finds that there is more to follow.
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-tick.C:
				s.Break(nil)
			case <-stop:
				tick.Stop()
				return
			}
		}
	}()
	if f := <-filters; len(f.Repos) != 1 || !f.Match(feed.Change{Kind: feed.KindAlias, Repo: appRef}) {
		t.Errorf("then it follows %+v", f)
	}
}

type filtered struct {
	*metatest.Store
	filters chan feed.Filter
}

func (f filtered) Follow(ctx context.Context, after uint64, filter feed.Filter) iter.Seq2[feed.Change, error] {
	f.filters <- filter
	return f.Store.Follow(ctx, after, filter)
}

// The news of waves reaches an agent before and after it follows repositories, with
// the index at which a server is to be asked.
func TestMirrorTellsOfWaves(t *testing.T) {
	s := withApp(t)
	push(s, "v1", "latest")
	plan := func(id string) uint64 {
		return s.Must(state.CreateWave{Life: time.Hour, Wave: meta.Wave{ID: id, Refs: []meta.WaveRef{
			{Repo: appRef, Package: "api", Version: string(digest.FromBytes([]byte("v1")))},
		}}}).Index
	}
	plan("before")
	m := openMirror(t, t.TempDir(), s)
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error)
	go func() { stopped <- m.Run(ctx) }()
	heard := func(index uint64) {
		t.Helper()
		for at := uint64(0); at < index; {
			select {
			case at = <-m.Waves():
			case <-time.After(time.Minute):
				t.Fatalf("heard of nothing behind %d, want %d", at, index)
			}
		}
	}
	applied, _ := s.Applied()
	heard(applied)
	heard(plan("second"))
	resolve(t, m, meta.Bounded, "v1")
	heard(plan("third"))
	heard(s.Must(state.CancelWave{ID: "second"}).Index)
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
