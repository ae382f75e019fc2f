package node

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// swallowing passes connections on to an address. Those that were open when it is cut stay
// open, and what is sent over them is lost, as in a network that has forgotten them.
func swallowing(t *testing.T, to string) (address string, cut func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.Map // *atomic.Bool
	var group sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() {
		stop()
		l.Close()
		group.Wait()
	})
	pass := func(lost *atomic.Bool, to io.Writer, from io.Reader) {
		buffer := make([]byte, 4096)
		for {
			n, err := from.Read(buffer)
			if n > 0 && !lost.Load() {
				_, err = to.Write(buffer[:n])
			}
			if err != nil {
				return
			}
		}
	}
	group.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			lost := new(atomic.Bool)
			open.Store(lost, nil)
			context.AfterFunc(ctx, func() { in.Close(); out.Close() })
			group.Go(func() { pass(lost, out, in); out.Close() })
			group.Go(func() { pass(lost, in, out); in.Close() })
		}
	})
	return l.Addr().String(), func() {
		open.Range(func(lost, _ any) bool {
			lost.(*atomic.Bool).Store(true)
			return true
		})
	}
}

// A connection that leads nowhere any more is left for a new one, although it is not
// closed.
func TestALostConnectionIsLeft(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	address, cut := swallowing(t, server.Listener.Addr().String())
	transport := transportWith(&tls.Config{InsecureSkipVerify: true})
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	ask := func(within time.Duration) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(r)
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		b, err := io.ReadAll(response.Body)
		return string(b), err
	}
	if proto, err := ask(time.Minute); err != nil || proto != "HTTP/2.0" {
		t.Fatalf("%q %v", proto, err)
	}
	cut()
	const question = 2 * time.Second // as long as a server is given
	if _, err := ask(question); err == nil {
		t.Fatal("the connection was not cut")
	}
	began := time.Now()
	for {
		_, err := ask(question)
		if err == nil {
			break
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("the lost connection is still used: %v", err)
		}
	}
	t.Logf("another was made %v later", time.Since(began).Round(10*time.Millisecond))
}
