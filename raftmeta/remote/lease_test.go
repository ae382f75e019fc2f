package remote

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// manual is a clock that the test moves.
type manual struct{ now time.Duration }

func (m *manual) read() time.Duration { return m.now }

func openLease(t *testing.T, c LeaseConfig) *Lease {
	t.Helper()
	c.Cluster = "c1"
	if c.File == "" {
		c.File = filepath.Join(t.TempDir(), "head")
	}
	l, err := OpenLease(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func newKey(t *testing.T) *trust.Key {
	t.Helper()
	k, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// What a lease says is counted from the request, and never goes back.
func TestLease(t *testing.T) {
	server, stranger := newKey(t), newKey(t)
	clock := &manual{now: time.Hour}
	reg := prometheus.NewRegistry()
	changes := 0
	l := openLease(t, LeaseConfig{
		IsServer: func(id meta.NodeID) bool { return id == server.ID() },
		Clock:    clock.read, Changed: func() { changes++ }, Metrics: reg,
	})
	if l.Age() != meta.UnknownAge || l.Reachable() {
		t.Fatalf("a lease that knows nothing is %v old", l.Age())
	}
	nonce := bytes.Repeat([]byte{1}, trust.HeadNonceBytes)
	sign := func(k *trust.Key, access meta.AccessHead, age time.Duration) []byte {
		b, err := k.SignHead("c1", trust.Head{Access: access, Age: age, Nonce: nonce})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := sign(server, meta.AccessHead{Epoch: 1, Index: 10, Revision: 4}, time.Second)
	began := clock.now
	clock.now += 3 * time.Second // the answer took its time
	if err := l.offer(first, nonce, began); err != nil {
		t.Fatal(err)
	}
	if l.Age() != 4*time.Second || l.Revision() != 4 || !l.Reachable() || changes != 1 {
		t.Errorf("age %v, revision %d, %d changes", l.Age(), l.Revision(), changes)
	}
	clock.now += 6 * time.Second
	if err := l.offer(sign(server, meta.AccessHead{Epoch: 1, Index: 12, Revision: 11}, 0), nonce, clock.now); err != nil || l.Age() != 0 || changes != 2 {
		t.Errorf("%v: age %v, %d changes", err, l.Age(), changes)
	}
	clock.now += time.Second
	other := bytes.Repeat([]byte{2}, trust.HeadNonceBytes)
	for name, try := range map[string]func() error{
		"replayed":             func() error { return l.offer(first, nonce, clock.now) },
		"replayed, to another": func() error { return l.offer(first, other, clock.now) },
		"of no server": func() error {
			return l.offer(sign(stranger, meta.AccessHead{Epoch: 1, Index: 13, Revision: 11}, 0), nonce, clock.now)
		},
		"of an older epoch": func() error {
			return l.offer(sign(server, meta.AccessHead{Index: 99, Revision: 11}, 0), nonce, clock.now)
		},
		"with an older revision": func() error {
			return l.offer(sign(server, meta.AccessHead{Epoch: 1, Index: 13, Revision: 4}, 0), nonce, clock.now)
		},
		"that says nothing": func() error { return l.offer(nil, nonce, clock.now) },
	} {
		if err := try(); !errors.Is(err, meta.ErrDenied) || l.Age() != time.Second || l.Revision() != 11 {
			t.Errorf("a head %s: %v, age %v, revision %d", name, err, l.Age(), l.Revision())
		}
	}
	for reason, want := range map[string]float64{reasonOlder: 3, reasonForged: 2, reasonIssuer: 1} {
		if got := testutil.ToFloat64(l.metrics.refused.WithLabelValues(reason)); got != want {
			t.Errorf("%v heads counted as %s, want %v", got, reason, want)
		}
	}
	// A recovery begins a new epoch, whatever its index.
	if err := l.offer(sign(server, meta.AccessHead{Epoch: 2, Index: 5}, 0), nonce, clock.now); err != nil || changes != 3 {
		t.Errorf("a new epoch: %v", err)
	}
}

// A restart neither forgets nor renews.
func TestLeaseOverRestarts(t *testing.T) {
	server := newKey(t)
	clock := &manual{now: time.Hour}
	file := filepath.Join(t.TempDir(), "head")
	c := LeaseConfig{IsServer: func(meta.NodeID) bool { return true }, Clock: clock.read, File: file}
	l := openLease(t, c)
	nonce := make([]byte, trust.HeadNonceBytes)
	b, err := server.SignHead("c1", trust.Head{Access: meta.AccessHead{Epoch: 1, Index: 10, Revision: 4}, Nonce: nonce})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.offer(b, nonce, clock.now); err != nil {
		t.Fatal(err)
	}
	clock.now += 7 * time.Minute
	l = openLease(t, c)
	if l.Age() != 7*time.Minute || l.Revision() != 4 || l.Reachable() {
		t.Errorf("after a restart: age %v, revision %d", l.Age(), l.Revision())
	}
	old, err := server.SignHead("c1", trust.Head{Access: meta.AccessHead{Epoch: 1, Index: 9, Revision: 4}, Nonce: nonce})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.offer(old, nonce, clock.now); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("an older head after a restart: %v", err)
	}
}

// heads are what a test says they are.
type testHeads struct {
	mu      sync.Mutex
	head    meta.AccessHead
	changed chan struct{}
}

func (h *testHeads) AccessHead(ctx context.Context, seen meta.AccessHead, wait time.Duration) (meta.AccessHead, time.Duration, error) {
	h.mu.Lock()
	head, changed := h.head, h.changed
	h.mu.Unlock()
	if head.Revision == seen.Revision && wait > 0 {
		select {
		case <-changed:
		case <-time.After(wait):
		case <-ctx.Done():
			return head, 0, ctx.Err()
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.head, 0, nil
}

func (h *testHeads) revoke() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.head.Index++
	h.head.Revision = h.head.Index
	close(h.changed)
	h.changed = make(chan struct{})
}

// Over HTTPS: a revocation is told while the head is held back, a refusal is not
// taken for a server that is away, and an older build's is no head.
func TestLeaseFollows(t *testing.T) {
	key := newKey(t)
	h := &testHeads{head: meta.AccessHead{Epoch: 1, Index: 5, Revision: 2}, changed: make(chan struct{})}
	path, heads := HeadsHandler(h, key, "c1")
	var mu sync.Mutex
	status := 0
	set := func(s int) { mu.Lock(); defer mu.Unlock(); status = s }
	mux := http.NewServeMux()
	mux.Handle(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		s := status
		mu.Unlock()
		if s != 0 {
			w.WriteHeader(s)
			return
		}
		heads.ServeHTTP(w, r)
	}))
	server := httptest.NewUnstartedServer(mux)
	base, cancel := context.WithCancel(context.Background())
	server.Config.BaseContext = func(net.Listener) context.Context { return base }
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(func() { cancel(); server.Close() })
	t.Cleanup(server.Client().CloseIdleConnections)

	news := make(chan struct{}, 16)
	l := openLease(t, LeaseConfig{
		Client:   NewClient(Config{HTTP: server.Client(), Servers: func() []string { return []string{server.URL} }}),
		IsServer: func(id meta.NodeID) bool { return id == key.ID() },
		Changed:  func() { news <- struct{}{} },
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	defer func() { stop(); <-done }()
	<-l.Tried()
	<-news
	if l.Revision() != 2 || !l.Reachable() || l.Age() > time.Minute {
		t.Fatalf("revision %d, reachable %v, age %v", l.Revision(), l.Reachable(), l.Age())
	}
	h.revoke()
	<-news
	if l.Revision() != 6 {
		t.Fatalf("revision %d", l.Revision())
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	set(http.StatusServiceUnavailable)
	eventually("still reachable", func() bool { return !l.Reachable() })
	set(http.StatusForbidden)
	eventually("a refusal counts as absence", l.Reachable)
	set(0)
	h.revoke()
	<-news
	set(http.StatusNotFound)
	before := l.Age()
	eventually("an older build's servers give no lease", func() bool { return l.Reachable() && l.Age() < before+time.Second })
}

// A head is as old as the question to the server that answered, not as the one before, to
// a server that was silent. And what that one comes out with later is no answer to it.
func TestLeaseCountsFromWhoAnswered(t *testing.T) {
	key := newKey(t)
	clock := &manual{now: time.Hour}
	var nonces [][]byte
	h := &testHeads{head: meta.AccessHead{Epoch: 1, Index: 5, Revision: 2}, changed: make(chan struct{})}
	path, heads := HeadsHandler(h, key, "c1")
	note := func(r *http.Request) {
		b, err := io.ReadAll(r.Body)
		var request headRequest
		if err == nil {
			err = codec.Unmarshal(b, &request)
		}
		if err != nil {
			t.Error(err)
		}
		nonces = append(nonces, request.Nonce)
		r.Body = io.NopCloser(bytes.NewReader(b))
	}
	serve := func(f http.HandlerFunc) *httptest.Server {
		mux := http.NewServeMux()
		mux.HandleFunc(path, f)
		server := httptest.NewTLSServer(mux)
		t.Cleanup(server.Close)
		return server
	}
	silent := serve(func(w http.ResponseWriter, r *http.Request) {
		note(r)
		clock.now += 4 * time.Second
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	other := serve(func(w http.ResponseWriter, r *http.Request) {
		note(r)
		heads.ServeHTTP(w, r)
	})
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(transport.CloseIdleConnections)
	l := openLease(t, LeaseConfig{
		Client:   NewClient(Config{HTTP: &http.Client{Transport: transport}, Servers: func() []string { return []string{silent.URL, other.URL} }}),
		IsServer: func(id meta.NodeID) bool { return id == key.ID() }, Clock: clock.read,
	})
	if err := l.ask(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if l.Age() != 0 || l.Revision() != 2 {
		t.Errorf("age %v, revision %d", l.Age(), l.Revision())
	}
	if len(nonces) != 2 || bytes.Equal(nonces[0], nonces[1]) {
		t.Errorf("asked with %x", nonces)
	}
}
