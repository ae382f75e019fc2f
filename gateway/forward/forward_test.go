package forward

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
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

// Own region before others, the one that worked first, the one that failed last
// until its time is over.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newForwarder(t, "agent")
		servers := []meta.Node{{ID: "us-1", Region: "us"}, {ID: "eu-1", Region: "eu"}, {ID: "eu-2", Region: "eu"}}
		first := f.order(servers)
		if first[0].Region != "eu" || first[1].Region != "eu" || first[2].ID != "us-1" {
			t.Fatalf("%v", first)
		}
		f.failed(first[0].ID)
		f.failed(first[1].ID)
		if got := f.order(servers); got[0].ID != "us-1" {
			t.Errorf("with its region down: %v", got)
		}
		f.worked("us-1")
		time.Sleep(downFor + time.Second)
		if got := f.order(servers); got[0].ID != "us-1" || got[1].ID != first[0].ID {
			t.Errorf("sticky: %v", got)
		}
		f.failed("us-1")
		if got := f.order(servers); got[0].ID != first[0].ID || len(f.down) != 1 {
			t.Errorf("back in its region: %v, %v", got, f.down)
		}
	})
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
