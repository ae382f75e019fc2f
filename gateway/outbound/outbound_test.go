package outbound

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

func get(t *testing.T, c *http.Client, url string) (string, error) {
	t.Helper()
	t.Cleanup(c.CloseIdleConnections)
	res, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return string(body), err
}

func refused(t *testing.T, err error) {
	t.Helper()
	var r *RefusedError
	if !errors.As(err, &r) || !errors.Is(err, meta.ErrDenied) {
		t.Fatalf("not refused: %v", err)
	}
}

// Every spelling of an address that the resolver of this machine takes ends at the
// same check, and none of them reaches the listener.
func TestReservedAddressesAreNotDialled(t *testing.T) {
	var asked atomic.Int64
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) })}}
	s.Start()
	defer s.Close()
	port := l.Addr().(*net.TCPAddr).Port
	for _, host := range []string{"127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "0", "[::1]", "[::]",
		"[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "127.0.0.1.", "LOCALHOST"} {
		_, err := get(t, Client(Rules{Plain: true, Timeout: 5 * time.Second}), fmt.Sprintf("http://%s:%d/", host, port))
		if err == nil {
			t.Errorf("%s was reached", host)
			continue
		}
		// A spelling that the resolver refuses is no address at all.
		var dns *net.DNSError
		var r *RefusedError
		if !errors.As(err, &r) && !errors.As(err, &dns) {
			t.Errorf("%s: %v", host, err)
		}
	}
	if asked.Load() > 0 {
		t.Fatalf("the listener was asked %d times", asked.Load())
	}
	if body, err := get(t, Client(Rules{Plain: true, Allow: loopback}), s.URL); err != nil || body != "" {
		t.Fatalf("an allowed network: %q %v", body, err)
	}
}

// A name that resolves to a public address for a check and to a private one for the
// dial is refused: there is only the dial. The resolver here is a real one, on a
// real socket, that answers with whatever the test says.
func TestRebindingIsRefused(t *testing.T) {
	rules := Rules{Plain: true}
	for _, address := range []string{"169.254.169.254:80", "10.0.0.1:443", "[fd00:ec2::254]:80", "[fe80::1%eth0]:80", "100.100.100.200:80"} {
		network := "tcp4"
		if strings.HasPrefix(address, "[") {
			network = "tcp6"
		}
		refused(t, rules.check(network, address))
	}
	if err := rules.check("tcp4", "93.184.215.14:443"); err != nil {
		t.Fatal(err)
	}
	refused(t, rules.check("unix", "/run/docker.sock"))
}

func TestRedirects(t *testing.T) {
	var inner atomic.Int64
	// The inner service is on another loopback address than the outer, so that rules
	// can allow the one and not the other.
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skipf("no second loopback address: %v", err)
	}
	secret := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { inner.Add(1) })}}
	secret.Start()
	defer secret.Close()
	hops := atomic.Int64{}
	outer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/in":
			http.Redirect(w, r, secret.URL+"/latest/meta-data", http.StatusFound)
		case "/file":
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
		case "/loop":
			hops.Add(1)
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/user":
			http.Redirect(w, r, "http://a:b@"+r.Host+"/", http.StatusFound)
		case "/once":
			http.Redirect(w, r, "/", http.StatusFound)
		}
	}))
	defer outer.Close()
	only := Rules{Plain: true, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
	for _, path := range []string{"/in", "/file", "/loop", "/user"} {
		_, err := get(t, Client(only), outer.URL+path)
		refused(t, err)
		if strings.Contains(err.Error(), "a:b@") {
			t.Errorf("the error shows a password: %v", err)
		}
	}
	if inner.Load() != 0 || hops.Load() != 6 {
		t.Fatalf("inner service asked %d times, loop %d", inner.Load(), hops.Load())
	}
	if _, err := get(t, Client(only), outer.URL+"/once"); err != nil {
		t.Fatal(err)
	}
	only.Redirects = -1
	_, err = get(t, Client(only), outer.URL+"/once")
	refused(t, err)
}

func TestSchemes(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer plain.Close()
	_, err := get(t, Client(Rules{Allow: loopback}), plain.URL)
	refused(t, err)
	_, err = get(t, Client(Rules{Plain: true, Allow: loopback}), strings.Replace(plain.URL, "http://", "http://user:hunter2@", 1))
	refused(t, err)
	if strings.Contains(err.Error(), "hunter2") {
		t.Fatalf("the error shows a password: %v", err)
	}

	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/down" {
			http.Redirect(w, r, plain.URL, http.StatusFound)
		}
	}))
	defer secure.Close()
	if _, err = get(t, Client(Rules{Allow: loopback}), secure.URL); err == nil {
		t.Fatal("a certificate of nobody was taken")
	}
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	if _, err = get(t, Client(Rules{Allow: loopback, Roots: roots}), secure.URL); err != nil {
		t.Fatal(err)
	}
	_, err = get(t, Client(Rules{Allow: loopback, Roots: roots}), secure.URL+"/down")
	refused(t, err)
}

func TestBounds(t *testing.T) {
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/long":
			w.Header().Set("Content-Length", "2000")
			w.Write(make([]byte, 2000)) //nolint:errcheck // the client goes away
		case "/endless":
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 100)); err != nil {
					return
				}
				w.(http.Flusher).Flush()
			}
		case "/exact":
			w.Write(make([]byte, 1000)) //nolint:errcheck // the test would fail
		case "/silent":
			w.Write([]byte("x")) //nolint:errcheck // the test would fail
			w.(http.Flusher).Flush()
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	}))
	defer s.Close()
	defer close(release)
	rules := Rules{Plain: true, Allow: loopback, MaxBytes: 1000}
	if _, err := get(t, Client(rules), s.URL+"/long"); !errors.Is(err, meta.ErrTooLarge) {
		t.Errorf("a long answer: %v", err)
	}
	if body, err := get(t, Client(rules), s.URL+"/endless"); !errors.Is(err, meta.ErrTooLarge) || len(body) != 1000 {
		t.Errorf("an endless answer: %d bytes, %v", len(body), err)
	}
	if body, err := get(t, Client(rules), s.URL+"/exact"); err != nil || len(body) != 1000 {
		t.Errorf("an answer of just the limit: %d bytes, %v", len(body), err)
	}
	rules.Stall, rules.Timeout = time.Second, -1 // its first byte has as long
	if _, err := get(t, Client(rules), s.URL+"/silent"); !errors.Is(err, errStalled) || !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("a silent answer: %v", err)
	}
	rules.Stall, rules.Timeout = time.Hour, 50*time.Millisecond
	var timeout net.Error
	if _, err := get(t, Client(rules), s.URL+"/silent"); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("an answer over its time: %v", err)
	}
}

// The environment's proxy would dial for us, past every rule.
func TestNoProxy(t *testing.T) {
	var asked atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer proxy.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("http_proxy", proxy.URL)
	_, err := get(t, Client(Rules{Plain: true}), "http://10.255.255.1/")
	refused(t, err)
	if asked.Load() != 0 {
		t.Fatal("the proxy was asked")
	}
}

func TestReserved(t *testing.T) {
	for _, a := range []string{"8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::808:808", "2a00:1450:4001:830::200e", "100.128.0.1"} {
		if name, yes := Reserved(netip.MustParseAddr(a)); yes {
			t.Errorf("%s is %s", a, name)
		}
	}
	for _, a := range []string{"172.31.255.255", "192.168.1.1", "169.254.169.254", "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:10.0.0.1",
		"64:ff9b::a00:1", "2002:a00:1::1", "2001::1", "fd00::1", "fe80::1%lo", "ff02::1", "198.19.0.1", "0.1.2.3"} {
		if _, yes := Reserved(netip.MustParseAddr(a)); !yes {
			t.Errorf("%s is of the Internet", a)
		}
	}
	if _, yes := Reserved(netip.Addr{}); !yes {
		t.Error("no address is of the Internet")
	}
}

// A connection that is reused was judged when it was made, with the same rules.
func TestContextEndsARequest(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := Client(Rules{Plain: true, Allow: loopback})
	defer c.CloseIdleConnections()
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := c.Do(r); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// losing is a listener whose connections can be lost: they stay open, and nothing passes.
type losing struct {
	net.Listener
	mu   sync.Mutex
	open []*losable
}

func (l *losing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	one := &losable{Conn: c}
	l.open = append(l.open, one)
	return one, nil
}

func (l *losing) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.open {
		c.lost.Store(true)
	}
}

type losable struct {
	net.Conn
	lost atomic.Bool
}

func (c *losable) Read(p []byte) (int, error) {
	for {
		if n, err := c.Conn.Read(p); err != nil || !c.lost.Load() {
			return n, err
		}
	}
}

func (c *losable) Write(p []byte) (int, error) {
	if c.lost.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// A connection that was lost on its way, and not closed, is left for a new one.
func TestALostConnectionIsLeft(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	l := &losing{Listener: s.Listener}
	s.Listener, s.EnableHTTP2 = l, true
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	c := Client(Rules{Allow: loopback, Roots: roots, Stall: 6 * time.Second})
	if got, err := get(t, c, s.URL); err != nil || got != "HTTP/2.0" {
		t.Fatalf("%q %v", got, err)
	}
	l.lose()
	began := time.Now()
	for {
		got, err := get(t, c, s.URL)
		if err == nil && got == "HTTP/2.0" {
			break
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("the lost connection is still used: %v", err)
		}
	}
}
