package gateway_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// head is a revocation head that a test sets.
type head struct {
	mu        sync.Mutex
	revision  uint64
	age       time.Duration
	reachable bool
}

func (h *head) Revision() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.revision
}

func (h *head) Age() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.age
}

func (h *head) Reachable() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reachable
}

func (h *head) set(age time.Duration, reachable bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.age, h.reachable = age, reachable
}

func (h *head) revoke() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.revision++
}

func (h *head) on(_ *testNode, g *gateway.Config) { g.Head = h }

// What the age of the head allows, over HTTP.
func TestLease(t *testing.T) {
	c := newCluster(t)
	h := &head{reachable: true}
	n := c.start(meta.RoleServer, h.on, upload(protocol.AnyServer, func(*protocol.Call) error { return nil }))
	open := meta.RepoRef{Tenant: "acme", Name: "open"}
	c.records.PutRepository(meta.Repository{Ref: open, Format: "toy", Visibility: meta.VisibilityPublic})
	n.toy.Put(open, "doc", "hello")
	none := time.Duration(0)
	strict := meta.RepoRef{Tenant: "acme", Name: "strict"}
	c.records.PutRepository(meta.Repository{Ref: strict, Format: "toy", Visibility: meta.VisibilityPrivate, DegradedReadMax: &none})
	n.toy.Put(strict, "doc", "hello")
	cl := client(t, nil, false)
	for _, test := range []struct {
		age       time.Duration
		reachable bool
		method    string
		path      string
		status    int
		stale     string
	}{
		{4 * time.Second, true, "POST", "/up/acme/app", 200, ""},
		{5 * time.Second, true, "POST", "/up/acme/app", 503, ""},
		{5 * time.Second, false, "POST", "/up/acme/open", 503, ""},
		{14 * time.Second, true, "GET", "/toy/acme/app/doc", 200, ""},
		{15 * time.Second, true, "GET", "/toy/acme/app/doc", 503, ""},
		{15 * time.Second, false, "GET", "/toy/acme/app/doc", 200, "1"},
		{15 * time.Minute, false, "GET", "/toy/acme/app/doc", 503, ""},
		{15 * time.Second, false, "GET", "/toy/acme/strict/doc", 503, ""},
		{meta.UnknownAge, true, "GET", "/toy/acme/app/doc", 503, ""},
		{meta.UnknownAge, true, "GET", "/toy/acme/open/doc", 200, ""},
		{meta.UnknownAge, false, "GET", "/toy/acme/open/doc", 200, ""},
	} {
		h.set(test.age, test.reachable)
		resp, body := call(t, cl, test.method, "http://"+n.addr+test.path, nil, asAdmin()...)
		if resp.StatusCode != test.status || resp.Header.Get(protocol.HeaderStale) != test.stale {
			t.Errorf("%s %s, head %v old, reachable %v: %d %q, stale %q", test.method, test.path, test.age, test.reachable, resp.StatusCode, body, resp.Header.Get(protocol.HeaderStale))
		}
		if resp.StatusCode == 503 && resp.Header.Get("Retry-After") == "" {
			t.Errorf("%s %s: no Retry-After", test.method, test.path)
		}
	}
	// Who may not read it learns nothing from the lease.
	h.set(meta.UnknownAge, true)
	if resp, _ := call(t, cl, "GET", "http://"+n.addr+"/toy/acme/app/doc", nil); resp.StatusCode != 401 {
		t.Errorf("without credentials: %d", resp.StatusCode)
	}
}

// starting is the head of a server before its first read round.
type starting struct {
	*head
	quorum bool
}

func (s starting) Confirm(context.Context) error {
	if !s.quorum {
		return &meta.UnavailableError{Reason: "no_quorum"}
	}
	s.set(0, true)
	return nil
}

// A server that has just started refuses nobody for want of a read round that it can have.
func TestLeaseOfAServerThatStarts(t *testing.T) {
	for _, quorum := range []bool{true, false} {
		c := newCluster(t)
		h := starting{&head{age: meta.UnknownAge, reachable: true}, quorum}
		n := c.start(meta.RoleServer, func(_ *testNode, g *gateway.Config) { g.Head = h })
		resp, body := call(t, client(t, nil, false), "GET", "http://"+n.addr+"/toy/acme/app/doc", nil, asAdmin()...)
		if got := resp.StatusCode == 200; got != quorum || !quorum && !strings.Contains(string(body), "no_quorum") {
			t.Errorf("with a quorum %v: %d %q", quorum, resp.StatusCode, body)
		}
	}
}

// stopped is the head of a server that goes on.
type stopped struct {
	starting
	asked chan struct{}
}

func (s stopped) Confirm(ctx context.Context) error {
	defer func() {
		select {
		case s.asked <- struct{}{}:
		default: // a call that was cut may be looked at again before it has ended
		}
	}()
	return s.starting.Confirm(ctx)
}

// A server that was stopped for a while, and so has heard nothing, ends no call if a quorum
// still tells it that nothing was taken back.
func TestCallsOfAServerThatWasStopped(t *testing.T) {
	for _, quorum := range []bool{true, false} {
		c := newCluster(t)
		h := stopped{starting{&head{reachable: true}, quorum}, make(chan struct{}, 1)}
		begun := make(chan struct{}, 1)
		n := c.start(meta.RoleServer, func(_ *testNode, g *gateway.Config) { g.Head = h }, upload(protocol.AnyServer, func(c *protocol.Call) error {
			begun <- struct{}{}
			_, err := io.Copy(io.Discard, c.R.Body)
			return err
		}))
		body, feed := io.Pipe()
		answered := make(chan int, 1)
		go func() {
			resp, _, err := tryCall(client(t, nil, false), "POST", "http://"+n.addr+"/up/acme/app", body, asAdmin()...)
			if err != nil {
				answered <- 0
				return
			}
			answered <- resp.StatusCode
		}()
		wait(t, "the upload", begun)
		h.set(time.Hour, true)
		wait(t, "a question for the quorum", h.asked)
		if quorum {
			feed.Close()
		}
		if status := wait(t, "the upload's answer", answered); (status == http.StatusOK) != quorum {
			t.Errorf("with a quorum %v: %d", quorum, status)
		}
		feed.Close()
	}
}

// What began with a right ends when that is taken back, on its way.
func TestCallsEndWithTheirRight(t *testing.T) {
	c := newCluster(t)
	h := &head{reachable: true}
	begun := make(chan struct{}, 1)
	pushed := make(chan struct{}, 1)
	read := make(chan error, 1)
	download := protocol.Route{Name: "long", Method: "GET", Pattern: "/long/{tenant}/{repository}", Action: access.Pull, Serve: func(c *protocol.Call) error {
		for {
			if _, err := io.WriteString(c.W, strings.Repeat("x", 1024)); err != nil {
				return err
			}
			if err := http.NewResponseController(c.W).Flush(); err != nil {
				return err
			}
			select {
			case begun <- struct{}{}:
			case <-c.R.Context().Done():
			case <-time.After(time.Millisecond):
			}
		}
	}}
	n := c.start(meta.RoleServer, h.on, addRoute(download), upload(protocol.AnyServer, func(c *protocol.Call) error {
		pushed <- struct{}{}
		_, err := io.Copy(io.Discard, c.R.Body)
		read <- err
		return err
	}))
	takeBack := func() {
		c.records.RemoveRepository(acme)
		h.revoke()
	}
	giveBack := func() {
		c.records.PutRepository(meta.Repository{Ref: acme, Format: "toy", Visibility: meta.VisibilityPrivate})
	}
	for _, http2 := range []bool{false, true} {
		for name, end := range map[string]func(){
			"right taken back": takeBack,
			"head lapsed":      func() { h.set(time.Hour, true) },
		} {
			giveBack()
			h.set(0, true)
			cl := client(t, c.tls(), http2)
			req, err := http.NewRequest("GET", "https://"+n.addr+"/long/acme/app", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", asAdmin()[1])
			resp, err := cl.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			wait(t, "the download", begun)
			h.revoke() // somebody else's
			wait(t, "the download to go on", begun)
			end()
			if _, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Errorf("http2=%v, %s: the download ended as if it were whole", http2, name)
			}
			resp.Body.Close()

			giveBack()
			h.set(0, true)
			end = func() { h.set(time.Hour, true) } // an administrator may push to what is not there yet
			body, feed := io.Pipe()
			go func() {
				for {
					if _, err := feed.Write(make([]byte, 1024)); err != nil {
						return
					}
				}
			}()
			answered := make(chan int, 1)
			go func() {
				resp, _, err := tryCall(cl, "POST", "https://"+n.addr+"/up/acme/app", body, asAdmin()...)
				if err != nil {
					answered <- 0
					return
				}
				answered <- resp.StatusCode
			}()
			wait(t, "the upload", pushed)
			end()
			if err := wait(t, "the upload's end", read); err == nil {
				t.Errorf("http2=%v, %s: the upload was read to its end", http2, name)
			}
			status := wait(t, "the upload's answer", answered)
			body.CloseWithError(errors.New("over"))
			if status == 200 {
				t.Errorf("http2=%v, %s: the upload was taken", http2, name)
			}
		}
	}
	if got, err := testutil.GatherAndCount(n.metrics, "shoal_gateway_cut_total"); err != nil || got != 1 {
		t.Errorf("metric of calls that were cut: %d %v", got, err)
	}
}

// A client whose call was cut goes on with its next one: nothing of the cut stays with
// the connection, which clients and forwarders keep.
func TestConnectionAfterACut(t *testing.T) {
	c := newCluster(t)
	h := &head{reachable: true}
	begun, connection := make(chan context.Context, 1), make(chan context.Context, 1)
	n := c.start(meta.RoleServer, h.on, upload(protocol.AnyServer, func(c *protocol.Call) error {
		select {
		case begun <- c.R.Context():
		case <-c.R.Context().Done():
		}
		if c.R.Header.Get("Hold") == "" {
			return c.R.Context().Err()
		}
		// Until net/http has seen the cut too, as it has by the time a slow handler returns.
		<-(<-connection).Done()
		<-c.R.Context().Done()
		return c.R.Context().Err()
	}))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Hold") != "" {
			connection <- r.Context()
		}
		n.Handler().ServeHTTP(w, r)
	}))
	defer server.Close()
	cl := client(t, nil, false)
	post := func(header ...string) (int, string) {
		resp, text, err := tryCall(cl, "POST", server.URL+"/up/acme/app", nil, append(header, asAdmin()...)...)
		if err != nil {
			return 0, err.Error()
		}
		return resp.StatusCode, text
	}
	for range 3 {
		h.set(0, true)
		answered := make(chan int, 1)
		go func() {
			status, _ := post("Hold", "1")
			answered <- status
		}()
		wait(t, "the call", begun)
		h.set(time.Hour, true)
		if status := wait(t, "its answer", answered); status != http.StatusServiceUnavailable {
			t.Errorf("a call that was cut: %d", status)
		}
		h.set(0, true)
		if status, text := post(); status != http.StatusOK {
			t.Fatalf("the next call: %d %s", status, text)
		}
		<-begun
	}
}

// The connections of a node that was removed are closed with what goes on over them,
// idle ones too.
func TestRemovedNodeIsEvicted(t *testing.T) {
	c := newCluster(t)
	h := &head{reachable: true}
	begun := make(chan struct{}, 8)
	n := c.start(meta.RoleServer, h.on, func(_ *testNode, g *gateway.Config) {
		g.Mounts = []gateway.Mount{{Name: "follow", Pattern: "/internal/{rest...}", Methods: []string{"POST"}, Action: access.NodeOnly, Serve: func(c *protocol.Call) error {
			c.W.WriteHeader(200)
			_ = http.NewResponseController(c.W).Flush()
			begun <- struct{}{}
			<-c.R.Context().Done()
			return c.R.Context().Err()
		}}}
	})
	for _, how := range []string{"evicted", "found out"} {
		_, cred, agent := c.credential(meta.RoleAgent)
		c.records.PutNode(agent)
		cl := client(t, trust.ClientTLS(cred), true) // as nodes call
		resp, err := cl.Post("https://"+n.addr+"/internal/feed", "text/plain", nil)
		if err != nil {
			t.Fatal(err)
		}
		wait(t, "the feed", begun)
		c.records.RemoveNode(agent.ID)
		if how == "evicted" {
			n.Evict(agent.ID)
		} else {
			h.revoke()
		}
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Errorf("%s: the feed ended as if all were well", how)
		}
		resp.Body.Close()
	}
}
