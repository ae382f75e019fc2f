package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// grouped is a group of a hosted repository and two proxies.
type grouped struct {
	*upstreamtest.Stack
	t             testing.TB
	first, second *upstreamtest.Registry
	group         meta.Repository
}

func startGroup(t testing.TB, change ...func(*meta.Upstream)) *grouped {
	g := &grouped{t: t, first: upstreamtest.NewRegistry(t), second: upstreamtest.NewRegistry(t)}
	g.Stack = upstreamtest.New(t, catalogtest.Options{}, func(*catalogtest.Stack, *upstream.Engine) []protocol.Protocol { return nil })
	g.Hosted(t, "acme/own", "npm")
	g.Proxy(t, "acme/first", "npm", g.first.URL, change...)
	g.Proxy(t, "acme/second", "npm", g.second.URL)
	g.group = g.Group(t, "acme/all", "npm", "own", "own", "first", "second")
	return g
}

func probe(pkg string) func(*meta.Repository) upstream.Want {
	return func(*meta.Repository) upstream.Want { return upstream.Want{Path: pkg} }
}

func (g *grouped) sources(pkg string) ([]string, error) {
	repos, err := g.Engine.Sources(upstreamtest.Context(g.t), upstreamtest.By(), &g.group, pkg, probe(pkg))
	var names []string
	for _, r := range repos {
		names = append(names, r.Ref.Name)
	}
	return names, err
}

func (g *grouped) expect(pkg string, want ...string) {
	g.t.Helper()
	if got, err := g.sources(pkg); err != nil || !slices.Equal(got, want) {
		g.t.Fatalf("%s comes from %v, %v, want %v", pkg, got, err, want)
	}
}

func (g *grouped) publish(pkg string) {
	g.t.Helper()
	_, err := g.Catalog.Publish(g.t.Context(), upstreamtest.By(), upstreamtest.Ref("acme/own"), catalog.Draft{
		Version:   meta.Version{Package: pkg, Name: "1.0.0", State: meta.StateClosed},
		Documents: []catalog.Document{{Path: "package.tgz", Body: []byte(pkg)}},
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

func TestSources(t *testing.T) {
	g := startGroup(t)
	g.first.Put("both", []byte("1"))
	g.second.Put("both", []byte("2"))
	g.second.Put("later", []byte("2"))
	g.expect("both", "first")
	g.expect("later", "second")
	// The first proxy to have it stays, also when another one comes to have it, or it
	// goes there.
	g.first.Put("later", []byte("1"))
	g.Later(time.Hour)
	g.expect("later", "second")
	if _, err := g.sources("nobody"); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("what nobody has: %v", err)
	}
	// What is owned here is nobody else's, whatever was remembered of it.
	g.publish("both")
	g.publish("internal")
	g.expect("both", "own")
	g.first.Put("internal", []byte("9.9.9"))
	before := g.first.Asked("internal")
	g.expect("internal", "own")
	if g.first.Asked("internal") != before {
		t.Error("a proxy was asked for a name that is owned here")
	}
	if _, err := g.Catalog.DeleteVersion(t.Context(), upstreamtest.By(), catalog.Package{Repo: upstreamtest.Ref("acme/own"), Name: "internal"}, "1.0.0"); err != nil {
		t.Fatal(err)
	}
	g.expect("internal", "own") // for ever
}

// TestSourcesWaitForAProxy: a proxy that cannot be asked is not passed over.
func TestSourcesWaitForAProxy(t *testing.T) {
	g := startGroup(t)
	g.second.Put("pkg", []byte("2"))
	g.first.Cut(true)
	if got, err := g.sources("pkg"); !errors.Is(err, meta.ErrUnavailable) {
		t.Fatalf("%v, %v", got, err)
	}
	g.first.Cut(false)
	g.Later(time.Minute)
	g.expect("pkg", "second")
	g.first.Cut(true)
	g.second.Cut(true)
	g.Later(time.Hour)
	g.expect("pkg", "second") // it is remembered
}

func TestSourcesPassRules(t *testing.T) {
	g := startGroup(t, func(u *meta.Upstream) { u.Block = []string{"evil*"} })
	g.first.Put("evil-pkg", []byte("1"))
	g.second.Put("evil-pkg", []byte("2"))
	g.expect("evil-pkg", "second")
	var blocked *upstream.BlockedError
	if _, err := g.sources("evil-other"); !errors.As(err, &blocked) {
		t.Errorf("%v", err)
	}
}

// TestSourcesRace: many that look for one name at once agree, also when it is published
// here meanwhile.
func TestSourcesRace(t *testing.T) {
	g := startGroup(t)
	g.first.Put("raced", []byte("1"))
	var group sync.WaitGroup
	group.Go(func() { g.publish("raced") })
	for range 20 {
		group.Go(func() {
			if _, err := g.sources("raced"); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	g.expect("raced", "own")
}

// servers are the peers of an engine that asks over HTTP.
type servers struct {
	urls  map[meta.NodeID]string
	order []meta.NodeID
	mu    sync.Mutex
	asked []meta.NodeID
}

func (s *servers) For(string) []meta.NodeID { return s.order }

func (s *servers) Ask(ctx context.Context, server meta.NodeID, q upstream.Question, told func(upstream.Progress)) (*upstream.Found, error) {
	s.mu.Lock()
	s.asked = append(s.asked, server)
	s.mu.Unlock()
	return upstream.AskServer(ctx, http.DefaultClient, s.urls[server], q, told)
}

// TestOwnerIsAsked: an agent has the owner ask, and the next server when that one is
// away; what the owner says comes over with its kind.
func TestOwnerIsAsked(t *testing.T) {
	g := startGroup(t, func(u *meta.Upstream) { u.Block = []string{"evil"} })
	repo, _, err := g.Catalog.Repository(t.Context(), upstreamtest.By(), upstreamtest.Ref("acme/first"))
	if err != nil {
		t.Fatal(err)
	}
	may := true
	serve := g.Engine.Handler(func(meta.NodeID, *meta.Repository) bool { return may })
	owner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := serve(&protocol.Call{W: w, R: r, Who: meta.Principal{Node: "agent"}}); err != nil {
			t.Error(err)
		}
	}))
	defer owner.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	peers := &servers{order: []meta.NodeID{"gone", "owner"}, urls: map[meta.NodeID]string{"gone": gone.URL, "owner": owner.URL}}
	agent, err := upstream.New(upstream.Config{Catalog: g.Catalog, Metadata: g.Metadata, Self: "agent", Peers: peers})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	fetch := func(w upstream.Want) (*upstream.Found, error) {
		return agent.Fetch(upstreamtest.Context(t), upstreamtest.By(), &repo, w)
	}
	g.first.Put("doc", []byte("from the owner"), `ETag: "1"`)
	f, err := fetch(upstream.Want{Path: "doc"})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := agent.Document(t.Context(), f, 1<<20); err != nil || string(b) != "from the owner" {
		t.Errorf("%q, %v", b, err)
	}
	if !slices.Equal(peers.asked, []meta.NodeID{"gone", "owner"}) {
		t.Errorf("asked %v", peers.asked)
	}
	for path, kind := range map[string]error{"none": meta.ErrNotFound, "lie": protocol.ErrUpstream} {
		g.first.Put("lie", []byte("other"))
		if _, err := fetch(upstream.Want{Path: path, Sums: map[string]string{"sha1": strings.Repeat("0", 40)}}); !errors.Is(err, kind) {
			t.Errorf("%s: %v", path, err)
		}
	}
	g.first.Fail(503, "90")
	var later interface{ RetryIn() time.Duration }
	if _, err := fetch(upstream.Want{Path: "new"}); !errors.Is(err, meta.ErrUnavailable) || !errors.As(err, &later) || later.RetryIn() != 90*time.Second {
		t.Errorf("a busy upstream: %v", err)
	}
	g.first.Fail(0, "")
	may = false
	if _, err := fetch(upstream.Want{Path: "secret"}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a repository that is not for the node: %v", err)
	}
	may = true
	// A group that the agent reads takes its source through the owner, which remembers it.
	g.second.Put("pkg", []byte("2"))
	got, err := agent.Sources(upstreamtest.Context(t), upstreamtest.By(), &g.group, "pkg", probe("pkg"))
	if err != nil || len(got) != 1 || got[0].Ref.Name != "second" {
		t.Fatalf("%v, %v", got, err)
	}
	a, _, err := g.Catalog.Sources(t.Context(), upstreamtest.By(), g.group.Ref, "pkg")
	if err != nil || a.Remembered != "second" {
		t.Errorf("remembered is %q, %v", a.Remembered, err)
	}
	// With no server in reach what is known serves.
	peers.order = []meta.NodeID{"gone"}
	if f, err := fetch(upstream.Want{Path: "doc", TTL: time.Nanosecond}); err != nil || !f.Stale {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := fetch(upstream.Want{Path: "new"}); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

// TestSourcesByKey: rules are of the name that is wanted, a group keeps a package by its
// key, also when another node asks.
func TestSourcesByKey(t *testing.T) {
	g := startGroup(t)
	g.first.Put("socket.io", []byte("1"))
	owner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := g.Engine.Handler(func(meta.NodeID, *meta.Repository) bool { return true })(&protocol.Call{W: w, R: r, Who: meta.Principal{Node: "agent"}}); err != nil {
			t.Error(err)
		}
	}))
	defer owner.Close()
	f, err := upstream.AskServer(upstreamtest.Context(t), http.DefaultClient, owner.URL, upstream.Question{
		Repo: upstreamtest.Ref("acme/first"), Want: upstream.Want{Path: "socket.io", Package: "socket.io"}, Group: "all", Package: "socket-io",
	}, nil)
	if err != nil || f.Source != "first" {
		t.Fatalf("%+v, %v", f, err)
	}
	a, _, err := g.Catalog.Sources(t.Context(), upstreamtest.By(), g.group.Ref, "socket-io")
	if err != nil || a.Remembered != "first" {
		t.Errorf("remembered is %q, %v", a.Remembered, err)
	}
}

// TestAServerThatStops: what a server that stops was asked, it does not answer; the next
// one is asked, whether the first had begun to answer or not.
func TestAServerThatStops(t *testing.T) {
	g := startGroup(t)
	repo, _, err := g.Catalog.Repository(t.Context(), upstreamtest.By(), upstreamtest.Ref("acme/first"))
	if err != nil {
		t.Fatal(err)
	}
	for _, begun := range []bool{false, true} {
		stop, again, answered := make(chan func(), 1), make(chan struct{}), make(chan struct{})
		var asked atomic.Int32
		owner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if asked.Add(1) == 2 {
				close(again)
			} else {
				if begun {
					if err := http.NewResponseController(w).Flush(); err != nil {
						t.Error(err)
					}
				}
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				stop <- cancel
				r = r.WithContext(ctx)
			}
			err := g.Engine.Handler(func(meta.NodeID, *meta.Repository) bool { return true })(&protocol.Call{W: w, R: r, Who: meta.Principal{Node: "agent"}})
			switch { // as the gateway does
			case err != nil && begun:
				panic(http.ErrAbortHandler)
			case err != nil:
				w.WriteHeader(protocol.Status(err))
			}
		}))
		peers := &servers{order: []meta.NodeID{"stops", "next"}, urls: map[meta.NodeID]string{"stops": owner.URL, "next": owner.URL}}
		agent, err := upstream.New(upstream.Config{Catalog: g.Catalog, Metadata: g.Metadata, Self: "agent", Peers: peers})
		if err != nil {
			t.Fatal(err)
		}
		path := fmt.Sprint("late-", begun)
		g.first.Put(path, []byte("late"))
		g.first.Hold()
		var group sync.WaitGroup
		group.Go(func() {
			end := <-stop
			g.first.Awaits(t)
			end()
			select {
			case <-again:
			case <-answered:
			}
			g.first.Release()
		})
		f, err := agent.Fetch(upstreamtest.Context(t), upstreamtest.By(), &repo, upstream.Want{Path: path})
		if err != nil || f.Record.Size != 4 || asked.Load() != 2 {
			t.Errorf("begun %t: %+v, %v after %d questions", begun, f, err, asked.Load())
		}
		close(answered)
		group.Wait()
		agent.Close()
		owner.Close()
	}
}
