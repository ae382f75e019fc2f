package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

type nobody struct{}

func (nobody) Servers(context.Context) ([]meta.Node, error) { return nil, nil }
func (nobody) Node(context.Context, meta.NodeID) (meta.Node, error) {
	return meta.Node{}, meta.ErrNotFound
}

func newForwarder(t *testing.T, self meta.NodeID) *Forwarder {
	t.Helper()
	f, err := New(Config{
		Self: self, Region: "eu", Roster: nobody{}, TLS: &tls.Config{}, Log: slog.New(slog.DiscardHandler),
		Identify: func(*tls.ConnectionState) (meta.NodeID, error) { return "", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Own region before others, the nearest of these first, what is recorded not to serve
// behind, what did not prove that it lives last.
func TestOrder(t *testing.T) {
	f := newForwarder(t, "agent")
	defer f.Close()
	lame := meta.NodeID("")
	f.Serves = func(id meta.NodeID) bool { return id != lame }
	f.Distance = func(r meta.RegionName) time.Duration {
		return map[meta.RegionName]time.Duration{"us": 80 * time.Millisecond, "ap": 30 * time.Millisecond}[r]
	}
	servers := []meta.Node{{ID: "sa-1", Region: "sa"}, {ID: "us-1", Region: "us"}, {ID: "us-2", Region: "us"}, {ID: "eu-1", Region: "eu"}, {ID: "ap-1", Region: "ap"}, {ID: "eu-2", Region: "eu"}}
	order := func() (out []string) {
		for _, n := range f.order(servers) {
			out = append(out, string(n.ID))
		}
		return out
	}
	regions := func() (out []string) {
		for _, id := range order() {
			out = append(out, id[:2])
		}
		return out
	}
	if got := fmt.Sprint(regions()); got != "[eu eu ap us us sa]" {
		t.Fatalf("at first %v", order())
	}
	second := order()[1]
	f.worked(meta.NodeID(second))
	if got := order(); got[0] != second || got[1][:2] != "eu" {
		t.Errorf("sticky: %v", got)
	}
	lame = meta.NodeID(second)
	if got := order(); got[0] == second || got[5] != second {
		t.Errorf("one that is recorded not to serve: %v", got)
	}
	lame = ""
	f.down["eu-1"], f.down["eu-2"] = true, true
	if got := fmt.Sprint(regions()); got != "[ap us us sa eu eu]" {
		t.Errorf("without its region: %v", order())
	}
	f.worked("us-2")
	if got := order(); got[0] != "us-2" || got[1] != "ap-1" {
		t.Errorf("another region that did well is kept: %v", got)
	}
	delete(f.down, "eu-2")
	if got := order(); got[0] != "eu-2" || got[5] != "eu-1" {
		t.Errorf("back in its region: %v", got)
	}
}

// Agents spread over the servers of their region.
func TestOrderSpreads(t *testing.T) {
	servers := []meta.Node{{ID: "eu-1", Region: "eu"}, {ID: "eu-2", Region: "eu"}, {ID: "eu-3", Region: "eu"}}
	count := map[meta.NodeID]int{}
	for i := range 300 {
		count[newForwarder(t, meta.NodeID(fmt.Sprint("agent-", i))).order(servers)[0].ID]++
	}
	for _, s := range servers {
		if count[s.ID] < 50 {
			t.Errorf("%s is the first of %d of 300", s.ID, count[s.ID])
		}
	}
}

// one is a roster of one server.
type one struct{ node meta.Node }

func (o one) Servers(context.Context) ([]meta.Node, error)         { return []meta.Node{o.node}, nil }
func (o one) Node(context.Context, meta.NodeID) (meta.Node, error) { return o.node, nil }

// A client that leaves says nothing about the server that had its request.
func TestAClientThatLeavesTakesNoServerDown(t *testing.T) {
	f := newForwarder(t, "agent")
	defer f.Close()
	f.Roster = one{meta.Node{ID: "eu-1", Region: "eu", Role: meta.RoleServer, Gateway: "127.0.0.1:1"}}
	gone, leave := context.WithCancel(t.Context())
	leave()
	r := httptest.NewRequestWithContext(gone, http.MethodPost, "/", http.NoBody)
	if err := f.Server(httptest.NewRecorder(), r); err == nil {
		t.Error("a request whose client has left is answered")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down["eu-1"] || f.watching {
		t.Error("the server counts as down")
	}
}

// spoilt is a body that ends with an error.
type spoilt struct{ err error }

func (s spoilt) Read([]byte) (int, error) { return 0, s.err }

// What is wrong with a client's body is said of the client, and no server is left for it.
func TestABodyThatFailsTakesNoServerDown(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // it breaks off
	}))
	defer server.Close()
	f := newForwarder(t, "agent")
	defer f.Close()
	f.TLS.InsecureSkipVerify = true
	f.Identify = func(*tls.ConnectionState) (meta.NodeID, error) { return "eu-1", nil }
	f.Roster = one{meta.Node{ID: "eu-1", Region: "eu", Role: meta.RoleServer, Gateway: server.Listener.Addr().String()}}
	send := func(body io.Reader) error {
		return f.Server(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", body))
	}
	if err := send(strings.NewReader("whole")); err != nil {
		t.Fatal(err)
	}
	for name, cause := range map[string]error{"malformed": errors.New("malformed chunk"), "slow": os.ErrDeadlineExceeded, "cut": io.ErrUnexpectedEOF} {
		err := send(spoilt{cause})
		if !errors.Is(err, cause) || errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		f.mu.Lock()
		if f.sticky != "eu-1" || f.down["eu-1"] || f.watching {
			t.Errorf("%s: the server counts as down", name)
		}
		f.mu.Unlock()
	}
}

// A server that lets somebody else wait, and does not live, is left: what it has is given
// up, and the next request goes to another.
func TestDoubt(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it accepts, as a stopped process does, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	f := newForwarder(t, "agent")
	defer f.Close()
	f.TLS.InsecureSkipVerify = true
	f.Roster = one{meta.Node{ID: "eu-1", Region: "eu", Role: meta.RoleServer, Gateway: silent.Addr().String()}}
	has, giveUp := context.WithCancelCause(t.Context())
	f.mu.Lock()
	f.waiting[&giveUp] = "eu-1"
	other, spare := context.WithCancelCause(t.Context())
	f.waiting[&spare] = "us-1"
	f.mu.Unlock()
	f.Doubt("eu-1")
	f.Doubt("eu-1")
	<-has.Done()
	if err := context.Cause(has); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the request is given up for %v", err)
	}
	if other.Err() != nil {
		t.Error("a request that another server has is given up")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.down["eu-1"] || !f.watching {
		t.Error("the server does not count as down")
	}
}

func TestHops(t *testing.T) {
	f := newForwarder(t, "b")
	for _, test := range []struct{ in, out string }{{"", "b"}, {"a", "a,b"}, {"a,c", "a,c,b"}, {"a,b", ""}, {"x,y,z", ""}} {
		h := http.Header{}
		if test.in != "" {
			h.Set(HeaderHops, test.in)
		}
		got, err := f.hops(h)
		if got != test.out || (err != nil) != (test.out == "") || err != nil && !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("%q: %q %v", test.in, got, err)
		}
	}
}

func TestHopByHop(t *testing.T) {
	h := http.Header{"Connection": {"X-Private, close"}, "X-Private": {"1"}, "Upgrade": {"h2c"}, "Expect": {"100-continue"}, "Authorization": {"Bearer x"}}
	removeHopByHop(h)
	if len(h) != 2 || h.Get("Expect") == "" || h.Get("Authorization") == "" {
		t.Errorf("%v", h)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
