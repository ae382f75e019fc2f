// Package upstreamtest has what tests of proxies need: a node with the proxy engine over
// a real catalog (New), and a registry that counts what it is asked and can be cut, held,
// or made to fail and to lie (NewRegistry).
//
//	registry := upstreamtest.NewRegistry(t)
//	registry.Put("left-pad", []byte(`{"name": ...}`), "Content-Type: application/json", `ETag: "1"`)
//	s := upstreamtest.New(t, catalogtest.Options{}, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
//		return []protocol.Protocol{npm.New(s.Catalog, e)}
//	})
//	s.Proxy(t, "acme/npm-proxy", "npm", registry.URL)
//
// What it starts ends with the test.
package upstreamtest

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/outbound"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Stack is a node with the proxy engine.
type Stack struct {
	*catalogtest.Stack
	Engine *upstream.Engine

	mu    sync.Mutex
	ahead time.Duration
}

// New starts a node with the protocols that build returns.
func New(t testing.TB, o catalogtest.Options, build func(*catalogtest.Stack, *upstream.Engine) []protocol.Protocol) *Stack {
	t.Helper()
	return NewWith(t, o, upstream.Config{}, build)
}

// NewWith is New with an engine of which the caller sets more; its parts and its clock are
// the Stack's.
func NewWith(t testing.TB, o catalogtest.Options, cfg upstream.Config, build func(*catalogtest.Stack, *upstream.Engine) []protocol.Protocol) *Stack {
	t.Helper()
	s := &Stack{}
	s.Stack = catalogtest.NewWith(t, o, func(node *catalogtest.Stack) []protocol.Protocol {
		s.serve(t, node, cfg)
		return build(node, s.Engine)
	})
	return s
}

// NewAgent is New of an agent. It asks a server, whose Engine is the Stack's, and which has
// protocols of its own.
func NewAgent(t testing.TB, o catalogtest.Options, build func(*catalogtest.Stack, *upstream.Engine) []protocol.Protocol) *Stack {
	t.Helper()
	s := &Stack{}
	s.Stack = catalogtest.NewWith(t, o, func(node *catalogtest.Stack) []protocol.Protocol {
		s.serve(t, node, upstream.Config{})
		build(node, s.Engine)
		return build(node, s.open(t, upstream.Config{Catalog: node.Catalog, Metadata: node.Metadata, Self: agent, Now: s.now, Peers: asker{s, t}}))
	})
	return s
}

// agent is a node that is no server.
const agent = meta.NodeID("agent")

// serve starts the Engine of a server.
func (s *Stack) serve(t testing.TB, node *catalogtest.Stack, cfg upstream.Config) {
	t.Helper()
	cfg.Catalog, cfg.Metadata, cfg.Commands, cfg.Self, cfg.Now = node.Catalog, node.Metadata, node.Metadata, catalogtest.Node, s.now
	cfg.Outgoing = outbound.Rules{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}}
	s.Engine = s.open(t, cfg)
}

func (s *Stack) open(t testing.TB, cfg upstream.Config) *upstream.Engine {
	t.Helper()
	e, err := upstream.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// asker has an agent ask the Stack's Engine.
type asker struct {
	stack *Stack
	t     testing.TB
}

// For implements upstream.Peers.
func (a asker) For(string) []meta.NodeID { return []meta.NodeID{catalogtest.Node} }

// Ask implements upstream.Peers.
func (a asker) Ask(ctx context.Context, _ meta.NodeID, q upstream.Question, told func(upstream.Progress)) (*upstream.Found, error) {
	return a.stack.AskAs(ctx, a.t, meta.Principal{Node: agent, Role: meta.RoleAgent}, q, told)
}

// AskAs asks the Engine as another node does, one that may have everything.
func (s *Stack) AskAs(ctx context.Context, t testing.TB, who meta.Principal, q upstream.Question, told func(upstream.Progress)) (*upstream.Found, error) {
	serve := s.Engine.Handler(func(meta.NodeID, *meta.Repository) bool { return true })
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := serve(&protocol.Call{W: w, R: r, Who: who}); err != nil && r.Context().Err() == nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	return upstream.AskServer(ctx, server.Client(), server.URL, q, told)
}

// Lie asks the Engine for what a stolen agent says that the upstream of a repository has.
func (s *Stack) Lie(t testing.TB, repo *meta.Repository, w upstream.Want) error {
	t.Helper()
	_, err := s.AskAs(Context(t), t, meta.Principal{Node: agent, Role: meta.RoleAgent}, upstream.Question{Repo: repo.Ref, Want: w}, nil)
	return err
}

func (s *Stack) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.ahead)
}

// Later sets the engine's clock ahead, so that what it knows is older.
func (s *Stack) Later(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead += d
}

// Ref reads `tenant/repository`.
func Ref(text string) meta.RepoRef {
	tenant, name, _ := strings.Cut(text, "/")
	return meta.RepoRef{Tenant: meta.TenantName(tenant), Name: name}
}

// Hosted makes a hosted repository, Proxy a proxy of an upstream, Group a group.
func (s *Stack) Hosted(t testing.TB, repo, format string) meta.Repository {
	t.Helper()
	return s.make(t, meta.Repository{Ref: Ref(repo), Format: format, Kind: meta.KindHosted})
}

// Proxy makes a proxy of the registry at url; change, if any, changes what is said of it.
func (s *Stack) Proxy(t testing.TB, repo, format, url string, change ...func(*meta.Upstream)) meta.Repository {
	t.Helper()
	up := &meta.Upstream{URL: url}
	for _, c := range change {
		c(up)
	}
	return s.make(t, meta.Repository{Ref: Ref(repo), Format: format, Kind: meta.KindProxy, Upstream: up})
}

// Group makes a group that writes to its first member when that is writeTo, "" for none.
func (s *Stack) Group(t testing.TB, repo, format, writeTo string, members ...string) meta.Repository {
	t.Helper()
	return s.make(t, meta.Repository{Ref: Ref(repo), Format: format, Kind: meta.KindGroup, Members: members, WriteTo: writeTo})
}

func (s *Stack) make(t testing.TB, r meta.Repository) meta.Repository {
	t.Helper()
	s.Create(t, r)
	made, _, err := s.Catalog.Repository(t.Context(), By(), r.Ref)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// Registry is an upstream of tests. Paths are below its root, escaped, with their query.
type Registry struct {
	URL string

	server *httptest.Server
	mu     sync.Mutex
	files  map[string]file
	asked  map[string]int
	header map[string]http.Header // of the last request for a path
	cut    bool
	status int
	retry  string
	lie    func(path string, body []byte) []byte
	held   chan struct{}
	waits  chan struct{} // has one for each request that is held
	handle http.Handler
}

type file struct {
	body   []byte
	header http.Header
}

// NewRegistry starts a registry in which nothing is.
func NewRegistry(t testing.TB) *Registry {
	r := &Registry{files: map[string]file{}, asked: map[string]int{}, header: map[string]http.Header{}, waits: make(chan struct{}, 1<<16)}
	r.server = httptest.NewServer(r)
	r.URL = r.server.URL
	t.Cleanup(func() {
		r.Release()
		r.server.CloseClientConnections()
		r.server.Close()
	})
	return r
}

// Host returns its host and port.
func (r *Registry) Host() string {
	u, _ := url.Parse(r.URL)
	return u.Host
}

// Put puts a document at a path, with headers as `Name: value`.
func (r *Registry) Put(path string, body []byte, headers ...string) {
	h := http.Header{}
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		h.Add(name, value)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files[path] = file{body, h}
}

// Remove takes a document away.
func (r *Registry) Remove(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.files, path)
}

// Handle answers what no Put has.
func (r *Registry) Handle(h http.Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handle = h
}

// Asked returns how often a path was asked for, Total how often any was.
func (r *Registry) Asked(path string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[path]
}

// Total returns how many requests there were.
func (r *Registry) Total() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, times := range r.asked {
		n += times
	}
	return n
}

// All returns how often each path was asked for.
func (r *Registry) All() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.asked)
}

// Header returns the header of the last request for a path.
func (r *Registry) Header(path string) http.Header {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.header[path].Clone()
}

// Cut drops every connection without an answer, or heals.
func (r *Registry) Cut(cut bool) {
	r.mu.Lock()
	r.cut = cut
	r.mu.Unlock()
	if cut {
		r.server.CloseClientConnections()
	}
}

// Fail answers everything with a status, and a Retry-After when there is one; 0 heals.
func (r *Registry) Fail(status int, retryAfter string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status, r.retry = status, retryAfter
}

// Lie changes the bytes of every answer; nil is honest.
func (r *Registry) Lie(lie func(path string, body []byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lie = lie
}

// Hold lets requests wait until Release; Awaits returns once a further one does.
func (r *Registry) Hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held == nil {
		r.held = make(chan struct{})
	}
}

// Awaits returns once a request is held that no Awaits has returned for.
func (r *Registry) Awaits(t testing.TB) {
	t.Helper()
	select {
	case <-r.waits:
	case <-time.After(2 * time.Minute):
		t.Fatal("nobody asked the registry")
	}
}

// Release lets go of what is held.
func (r *Registry) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held != nil {
		close(r.held)
		r.held = nil
	}
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path := strings.TrimPrefix(req.URL.EscapedPath(), "/")
	if req.URL.RawQuery != "" {
		path += "?" + req.URL.RawQuery
	}
	r.mu.Lock()
	r.asked[path]++
	r.header[path] = req.Header.Clone()
	f, ok := r.files[path]
	cut, status, retry, lie, held, handle := r.cut, r.status, r.retry, r.lie, r.held, r.handle
	r.mu.Unlock()
	if held != nil {
		r.waits <- struct{}{}
		select {
		case <-held:
		case <-req.Context().Done():
			return
		}
	}
	switch {
	case cut:
		panic(http.ErrAbortHandler)
	case status != 0:
		if retry != "" {
			w.Header().Set("Retry-After", retry)
		}
		http.Error(w, http.StatusText(status), status)
		return
	case !ok && handle != nil:
		handle.ServeHTTP(w, req)
		return
	case !ok:
		http.NotFound(w, req)
		return
	}
	maps.Copy(w.Header(), f.header)
	body := f.body
	if lie != nil {
		body = lie(path, body)
	}
	if etag := f.header.Get("ETag"); etag != "" && req.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if f.header.Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	http.ServeContent(w, req, "", time.Time{}, strings.NewReader(string(body)))
}

var _ http.Handler = (*Registry)(nil)

// Context returns one of the test that ends after two minutes.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// By is a caller who may all.
func By() catalog.Caller {
	return catalog.Caller{Who: meta.Principal{Name: "user:ada", Admin: true}}
}
