package gateway_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// frozen is a way to a server that can be frozen: connections stay, and new ones are
// accepted, as with a process that is stopped, but nothing passes.
type frozen struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	thaw     chan struct{} // closed while it is not frozen
	group    sync.WaitGroup
}

func newFrozen(t *testing.T, to string) *frozen {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &frozen{listener: l, to: to, thaw: make(chan struct{})}
	close(f.thaw)
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() {
		stop()
		l.Close()
		f.group.Wait()
	})
	f.group.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			f.group.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				context.AfterFunc(ctx, func() { in.Close(); out.Close() })
				f.group.Go(func() { f.pass(ctx, out, in); out.Close() })
				f.pass(ctx, in, out)
			})
		}
	})
	return f
}

// pass copies from one side to the other while it is not frozen.
func (f *frozen) pass(ctx context.Context, to io.Writer, from io.Reader) {
	buffer := make([]byte, 4096)
	for {
		n, err := from.Read(buffer)
		f.mu.Lock()
		thaw := f.thaw
		f.mu.Unlock()
		select {
		case <-thaw:
		case <-ctx.Done():
			return
		}
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (f *frozen) freeze(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if on {
		f.thaw = make(chan struct{})
	} else {
		close(f.thaw)
	}
}

// A server that stops answering keeps nobody waiting: a request that it has is broken
// off, the next goes to another region, and comes back when the server does.
func TestASilentServerIsLeft(t *testing.T) {
	c := newCluster(t)
	var at [2]atomic.Int64
	route := func(i int) func(*protocol.Call) error {
		return func(c *protocol.Call) error {
			at[i].Add(1)
			_, err := io.Copy(c.W, c.R.Body)
			return err
		}
	}
	near := c.start(meta.RoleServer, upload(protocol.AnyServer, route(0)))
	far := c.start(meta.RoleServer, upload(protocol.AnyServer, route(1)))
	way := newFrozen(t, near.node.Gateway)
	near.node.Gateway = way.listener.Addr().String()
	far.node.Region = "us"
	c.records.PutNode(near.node)
	c.records.PutNode(far.node)
	agent := c.start(meta.RoleAgent, upload(protocol.AnyServer, route(0)))
	cl := client(t, nil, false)
	post := func() int {
		resp, _ := call(t, cl, "POST", "http://"+agent.addr+"/up/acme/app", strings.NewReader("x"), asAdmin()...)
		return resp.StatusCode
	}
	if status := post(); status != http.StatusOK || at[0].Load() != 1 {
		t.Fatalf("%d, %d requests at the near server", status, at[0].Load())
	}
	way.freeze(true)
	began := time.Now()
	status := post()
	t.Logf("broken off after %v", time.Since(began).Round(10*time.Millisecond))
	if status != http.StatusServiceUnavailable {
		t.Errorf("a request that a silent server has: %d", status)
	}
	if status := post(); status != http.StatusOK || at[1].Load() != 1 {
		t.Errorf("the next: %d, %d requests at the far server", status, at[1].Load())
	}
	way.freeze(false)
	for before := at[0].Load(); at[0].Load() == before; {
		if status := post(); status != http.StatusOK {
			t.Fatalf("while it comes back: %d", status)
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatal("the server is back and nobody uses it")
		}
	}
	t.Logf("back %v later", time.Since(began).Round(10*time.Millisecond))
}

// A server that cannot use its blobs sends on what needs them, and serves it itself when
// there is nobody else; what needs none stays.
func TestElsewhere(t *testing.T) {
	c := newCluster(t)
	var lost, leaving atomic.Bool
	at := func(name string) func(*protocol.Call) error {
		return func(c *protocol.Call) error {
			_, err := io.WriteString(c.W, name)
			return err
		}
	}
	other := c.start(meta.RoleServer, upload(protocol.AnyServer, at("other")))
	lame := c.start(meta.RoleServer, upload(protocol.AnyServer, at("lame")), func(_ *testNode, g *gateway.Config) {
		g.Elsewhere, g.Leaving = lost.Load, leaving.Load
	})
	cl := client(t, nil, false)
	post := func() (int, string) {
		resp, body := call(t, cl, "POST", "http://"+lame.addr+"/up/acme/app", strings.NewReader("x"), asAdmin()...)
		return resp.StatusCode, body
	}
	if status, body := post(); status != http.StatusOK || body != "lame" {
		t.Errorf("a server that is well: %d %s", status, body)
	}
	leaving.Store(true)
	if status, body := post(); status != http.StatusOK || body != "other" {
		t.Errorf("a server that leaves: %d %s", status, body)
	}
	leaving.Store(false)
	lost.Store(true)
	if status, body := post(); status != http.StatusOK || body != "other" {
		t.Errorf("without its blobs: %d %s", status, body)
	}
	if resp, _ := call(t, cl, "POST", "http://"+lame.addr+"/up/acme/app", nil); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without credentials: %d", resp.StatusCode)
	}
	other.stop()
	other.await(t)
	status, body := post()
	if status == http.StatusServiceUnavailable {
		status, body = post() // the first was on its way to the other when that ended
	}
	if status != http.StatusOK || body != "lame" {
		t.Errorf("with nobody else: %d %s", status, body)
	}
}

// Servers that all turn away serve themselves what one of them was sent: it does not go
// in circles.
func TestNobodyElseIsLeft(t *testing.T) {
	c := newCluster(t)
	var turned atomic.Bool
	turned.Store(true)
	var all []*testNode
	for range 4 {
		all = append(all, c.start(meta.RoleServer, upload(protocol.AnyServer, func(c *protocol.Call) error {
			_, err := io.Copy(c.W, c.R.Body)
			return err
		}), func(_ *testNode, g *gateway.Config) { g.Elsewhere, g.Leaving = turned.Load, turned.Load }))
	}
	cl := client(t, nil, false)
	for _, n := range all {
		resp, body := call(t, cl, "POST", "http://"+n.addr+"/up/acme/app", strings.NewReader("x"), asAdmin()...)
		if resp.StatusCode != http.StatusOK || body != "x" {
			t.Errorf("a push at %s: %d %s", n.node.ID, resp.StatusCode, body)
		}
	}
}
