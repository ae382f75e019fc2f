package remote_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/remote"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// serve serves s over TLS.
func serve(t *testing.T, s *metatest.Store) *httptest.Server {
	path, handler := remote.Handler(s, s)
	mux := http.NewServeMux()
	mux.Handle(path, handler(meta.Node{}))
	server := httptest.NewUnstartedServer(mux)
	base, cancel := context.WithCancel(context.Background())
	server.Config.BaseContext = func(net.Listener) context.Context { return base }
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(func() {
		cancel() // As a node does: it ends the feeds.
		server.Close()
	})
	return server
}

func client(t *testing.T, servers ...*httptest.Server) *remote.Client {
	// httptest's certificates are all of one authority.
	trusting := servers[0].Client()
	t.Cleanup(trusting.CloseIdleConnections)
	return remote.NewClient(remote.Config{HTTP: trusting, Servers: func() []string {
		var urls []string
		for _, s := range servers {
			urls = append(urls, s.URL)
		}
		return urls
	}})
}

func tenants(t *testing.T, c raftmeta.Asker) string {
	t.Helper()
	list, _, err := raftmeta.Ask(t.Context(), c, meta.Bounded, state.ListTenants{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tenant := range list {
		names = append(names, string(tenant.Name))
	}
	return strings.Join(names, " ")
}

func TestAsk(t *testing.T) {
	s := metatest.New(t)
	token := s.Must(state.CreateTenant{Name: "acme"})
	c := client(t, serve(t, s))
	tenant, asOf, err := raftmeta.Ask(t.Context(), c, meta.Freshness{Mode: meta.ModeStrong, After: token}, state.GetTenant{Name: "acme"})
	if err != nil || tenant.Name != "acme" || tenant.CreatedBy != "test" {
		t.Errorf("got %+v, %v", tenant, err)
	}
	if asOf.Index != token.Index || asOf.Epoch != 1 || asOf.Mode != meta.ModeStrong {
		t.Errorf("as of %+v", asOf)
	}
	// A refusal comes with its kind, its words and its index.
	_, asOf, err = raftmeta.Ask(t.Context(), c, meta.Bounded, state.GetTenant{Name: "globex"})
	if !errors.Is(err, meta.ErrNotFound) || !strings.Contains(err.Error(), "globex") || asOf.Index != token.Index {
		t.Errorf("got %v as of %+v", err, asOf)
	}
}

func TestAgentsDoNotGetSecrets(t *testing.T) {
	s := metatest.New(t)
	s.Must(state.SealRootKey{Node: "s1", Sealed: []byte("sealed")})
	cluster, _, err := raftmeta.Ask(t.Context(), client(t, serve(t, s)), meta.Bounded, state.GetCluster{})
	if err != nil || cluster.ID != "test" || len(cluster.RootKey) != 0 || len(cluster.AdminToken) != 0 {
		t.Errorf("got %+v, %v", cluster, err)
	}
	s.Must(state.BeginRotation{
		Next: []byte("next"), Cross: []byte("cross"), Root: meta.RootHash(cluster.Root), Keys: map[meta.NodeID][]byte{"s1": []byte("sealed")},
	})
	succession, _, err := raftmeta.Ask(t.Context(), client(t, serve(t, s)), meta.Bounded, state.GetTrust{})
	if err != nil || string(succession.Next) != "next" || len(succession.Keys) != 0 {
		t.Errorf("an agent is told of the next root: %+v, %v", succession, err)
	}
}

// In virtual time: a machine that pauses for as long as a silent server is given would ask
// the next one beside it.
func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := metatest.New(t), metatest.New(t)
		one.Must(state.CreateTenant{Name: "one"})
		two.Must(state.CreateTenant{Name: "two"})
		servers := hosts{}
		for host, s := range map[string]*metatest.Store{"first": one, "second": two} {
			path, handler := remote.Handler(s, s)
			mux := http.NewServeMux()
			mux.Handle(path, handler(meta.Node{}))
			servers[host] = mux
		}
		c := remote.NewClient(remote.Config{
			HTTP: &http.Client{Transport: servers}, Servers: func() []string { return []string{"https://first", "https://second"} },
		})
		for range 3 {
			if got := tenants(t, c); got != "one" {
				t.Fatalf("the first server is left for %s", got)
			}
		}
		// One without a quorum is not the last word.
		one.Break(&meta.UnavailableError{Reason: "no_quorum", RetryAfter: time.Second})
		if got := tenants(t, c); got != "two" {
			t.Fatalf("got %s", got)
		}
		two.Break(&meta.UnavailableError{Reason: "no_quorum", RetryAfter: time.Second})
		_, _, err := raftmeta.Ask(t.Context(), c, meta.Bounded, state.ListTenants{})
		if u, ok := errors.AsType[*meta.UnavailableError](err); !ok || u.Reason != "no_quorum" || u.RetryAfter != time.Second {
			t.Fatalf("got %v", err)
		}
		one.Break(nil)
		two.Break(nil)
		gone := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		servers["first"] = gone
		if got := tenants(t, c); got != "two" {
			t.Fatalf("got %s", got)
		}
		servers["second"] = gone
		_, _, err = raftmeta.Ask(t.Context(), c, meta.Bounded, state.ListTenants{})
		if u, ok := errors.AsType[*meta.UnavailableError](err); !ok || u.Reason != "no_server" {
			t.Fatalf("without servers: %v", err)
		}
	})
}

// hosts are servers by the host of their URL; one that is nil is silent, one that aborts
// breaks the connection.
type hosts map[string]http.Handler

func (h hosts) RoundTrip(r *http.Request) (_ *http.Response, err error) {
	defer r.Body.Close()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the connection broke: %v", p)
		}
	}()
	if h[r.URL.Host] == nil {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	w := httptest.NewRecorder()
	h[r.URL.Host].ServeHTTP(w, r)
	return w.Result(), nil
}

// A question waits for a silent server no longer than a try may take, nor than it takes to
// ask the next, of which others are told, and those after it do not wait at all.
func TestSilentServerIsLeft(t *testing.T) {
	const hedge = 400 * time.Millisecond
	for try, want := range map[time.Duration]time.Duration{100 * time.Millisecond: 100 * time.Millisecond, time.Hour: hedge} {
		synctest.Test(t, func(t *testing.T) {
			s := metatest.New(t)
			s.Must(state.CreateTenant{Name: "two"})
			path, handler := remote.Handler(s, s)
			mux := http.NewServeMux()
			mux.Handle(path, handler(meta.Node{}))
			var silent []string
			c := remote.NewClient(remote.Config{
				HTTP: &http.Client{Transport: hosts{"stuck": nil, "good": mux}}, Timeout: try,
				Servers: func() []string { return []string{"https://stuck", "https://good"} },
				Silent:  func(url string) { silent = append(silent, url) },
			})
			began := time.Now()
			for range 3 {
				if got := tenants(t, c); got != "two" {
					t.Fatalf("got %s", got)
				}
			}
			if took := time.Since(began); took != want {
				t.Errorf("a try of %v: three questions took %v, want %v", try, took, want)
			}
			if told := slices.Equal(silent, []string{"https://stuck"}); told != (want == hedge) || !told && len(silent) > 0 {
				t.Errorf("a try of %v: told that %v are silent", try, silent)
			}
		})
	}
}

func TestCallerWhoLeavesBlamesNobody(t *testing.T) {
	s := metatest.New(t)
	server := serve(t, s)
	c := client(t, server)
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, _, err := raftmeta.Ask(gone, c, meta.Bounded, state.ListTenants{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := tenants(t, c); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestUnknownQuestion(t *testing.T) {
	s := metatest.New(t)
	c := client(t, serve(t, s))
	if _, err := c.Answer(t.Context(), meta.Bounded, &unknown{}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

type unknown struct{ state.Posed[meta.Tenant] }

func (*unknown) Name() string { return "GetEverything" }
func (*unknown) Args() any    { return struct{}{} }

func TestFollow(t *testing.T) {
	s := metatest.New(t)
	c := client(t, serve(t, s))
	from, _ := s.Applied()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	f := feed.Filter{Kinds: []feed.Kind{feed.KindTenant}}
	var names []string
	for change, err := range c.Follow(ctx, from, f) {
		if err != nil {
			t.Fatal(err)
		}
		if change.Kind == feed.KindProgress {
			if change.Index == from { // The stream stands.
				s.Admit(meta.Node{ID: "a1", Role: meta.RoleAgent, Region: "eu"})
				s.Must(state.CreateTenant{Name: "acme"})
				s.Must(state.CreateTenant{Name: "globex"})
			}
			continue
		}
		if names = append(names, change.Kind.String()+" "+change.Name); len(names) == 2 {
			break
		}
	}
	if strings.Join(names, ", ") != "tenant acme, tenant globex" {
		t.Errorf("followed %v", names)
	}
}

func TestFollowEndsWithItsServer(t *testing.T) {
	s := metatest.New(t)
	server := serve(t, s)
	c := client(t, server)
	var got error
	for _, err := range c.Follow(t.Context(), 0, feed.Filter{}) {
		if err != nil {
			got = err
			break
		}
		server.CloseClientConnections()
		server.Listener.Close()
	}
	if !errors.Is(got, meta.ErrUnavailable) {
		t.Errorf("ended with %v", got)
	}
	for _, err := range c.Follow(t.Context(), 0, feed.Filter{}) {
		if u, ok := errors.AsType[*meta.UnavailableError](err); !ok || u.Reason != "no_server" {
			t.Errorf("without servers: %v", err)
		}
	}
}

func TestFollowTellsOfCompaction(t *testing.T) {
	s := metatest.New(t)
	s.Break(feed.ErrCompacted)
	for _, err := range client(t, serve(t, s)).Follow(t.Context(), 1, feed.Filter{}) {
		if err != nil && !errors.Is(err, feed.ErrCompacted) {
			t.Errorf("got %v", err)
		}
	}
}

// TestMirrorOverTheWire puts the whole of an agent's metadata together.
func TestMirrorOverTheWire(t *testing.T) {
	s := metatest.New(t)
	s.Must(state.CreateTenant{Name: "acme"})
	server := serve(t, s)
	m, err := raftmeta.OpenMirror(raftmeta.MirrorConfig{Dir: t.TempDir(), Region: "eu", Upstream: client(t, server)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error)
	go func() { stopped <- m.Run(ctx) }()
	admitted := make(chan meta.Node, 10)
	m.Roster().OnChange(func(c raftmeta.RosterChange) { admitted <- c.Node })
	<-admitted
	<-m.Roster().Ready()
	s.Admit(meta.Node{ID: "a1", Role: meta.RoleAgent, Region: "eu"})
	if n := <-admitted; n.ID != "a1" {
		t.Errorf("admitted %+v", n)
	}
	if tenant, _, err := raftmeta.Ask(t.Context(), m, meta.Bounded, state.GetTenant{Name: "acme"}); err != nil || tenant.Name != "acme" {
		t.Errorf("got %+v, %v", tenant, err)
	}
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// FuzzHandler feeds the handler bodies that no client of ours sends.
func FuzzHandler(f *testing.F) {
	f.Add("Ask", "application/cbor", []byte{0xa1, 1, 'x'})
	f.Add("Ask", "application/cbor", []byte{0xa2, 1, 0x6a, 'G', 'e', 't', 'C', 'l', 'u', 's', 't', 'e', 'r', 2, 0x41, 0xa0})
	f.Add("Watch", "application/connect+cbor", []byte{0, 0, 0, 0, 1, 0xa0})
	s := metatest.New(f)
	s.Break(&meta.UnavailableError{Reason: "busy"}) // A Watch ends at once.
	_, handlers := remote.Handler(s, s)
	handler := handlers(meta.Node{})
	f.Fuzz(func(t *testing.T, procedure, contentType string, body []byte) {
		if strings.ContainsAny(procedure, " ?#%\x00\r\n\t") {
			return
		}
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(body)))
		r.URL.Path = "/shoal.raftmeta.v1.Metadata/" + procedure
		r.Header.Set("Content-Type", contentType)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code >= 500 && w.Code != http.StatusServiceUnavailable && w.Code != http.StatusNotImplemented {
			t.Errorf("%q gets %d: %s", body, w.Code, w.Body)
		}
	})
}
