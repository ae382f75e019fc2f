package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/forward"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hang is how long a test waits for what must happen; it only guards against
// waiting for ever.
const hang = 30 * time.Second

var acme = meta.RepoRef{Tenant: "acme", Name: "app"}

// cluster makes nodes that share a trust root and a metadata.
type cluster struct {
	t         *testing.T
	authority *trust.Authority
	records   *protocoltest.Records
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	authority, err := trust.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, authority: authority, records: &protocoltest.Records{}}
	c.records.PutRepository(meta.Repository{Ref: acme, Format: "toy", Visibility: meta.VisibilityPrivate})
	return c
}

// testNode is one gateway of the cluster.
type testNode struct {
	*gateway.Gateway
	node     meta.Node
	key      *trust.Key
	cred     *trust.Credential
	gate     *access.Gate
	metrics  *prometheus.Registry
	toy      *protocoltest.Toy
	addr     string
	stop     context.CancelFunc
	finished chan error
}

func (c *cluster) credential(role meta.Role, read ...string) (*trust.Key, *trust.Credential, meta.Node) {
	c.t.Helper()
	key, err := trust.NewKey()
	if err != nil {
		c.t.Fatal(err)
	}
	node := meta.Node{ID: key.ID(), Role: role, Region: "eu", Read: read}
	chain, err := c.authority.Issue(node, []string{"127.0.0.1", "localhost"}, time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	cred, err := trust.NewCredential(key, c.authority.Root(), chain)
	if err != nil {
		c.t.Fatal(err)
	}
	return key, cred, node
}

func (c *cluster) identify(state *tls.ConnectionState) (meta.NodeID, error) {
	identity, ok, err := trust.PeerOf(c.authority.Root(), state)
	if !ok || err != nil {
		return "", err
	}
	return identity.ID, nil
}

// build makes a node's gateway without running it.
func (c *cluster) build(role meta.Role, change ...func(*testNode, *gateway.Config)) *testNode {
	t := c.t
	t.Helper()
	n := &testNode{metrics: prometheus.NewRegistry(), toy: &protocoltest.Toy{}, finished: make(chan error, 1)}
	n.key, n.cred, n.node = c.credential(role, "acme/app")
	policy := access.Policy{}
	if role == meta.RoleAgent {
		host := access.HostPrincipal(n.node)
		policy.Host = &host
	}
	var err error
	if n.gate, err = access.New(access.Config{
		Self: n.node.ID, Key: n.key.Private(), KeyOf: trust.PublicKeyOf, Identify: c.identify, Metadata: c.records, Policy: policy,
	}); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	forwarder, err := forward.New(forward.Config{
		Self: n.node.ID, Region: n.node.Region, Roster: c.records, TLS: trust.ClientTLS(n.cred), Identify: c.identify, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(forwarder.Close)
	config := gateway.Config{
		Self: n.node.ID, Role: role, Listen: "127.0.0.1:0", Protocols: []protocol.Protocol{n.toy}, Gate: n.gate, Repositories: c.records,
		Forward: forwarder, TLS: trust.ServerTLS(n.cred), Log: log, Metrics: n.metrics,
		Limits: gateway.Limits{Drain: hang},
	}
	for _, f := range change {
		f(n, &config)
	}
	n.toy.Put(acme, "doc", "hello")
	if n.Gateway, err = gateway.New(config); err != nil {
		t.Fatal(err)
	}
	n.addr = n.Addr().String()
	n.node.Gateway = n.addr
	c.records.PutNode(n.node)
	return n
}

// start runs a node's gateway until the test ends.
func (c *cluster) start(role meta.Role, change ...func(*testNode, *gateway.Config)) *testNode {
	c.t.Helper()
	n := c.build(role, change...)
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	go func() { n.finished <- n.Run(ctx) }()
	c.t.Cleanup(func() {
		cancel()
		n.await(c.t)
	})
	return n
}

// await waits for Run and expects no error; it may be called again.
func (n *testNode) await(t *testing.T) {
	t.Helper()
	select {
	case err := <-n.finished:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
		n.finished <- nil
	case <-time.After(hang):
		t.Fatal("Run does not end")
	}
}

// client is an HTTP client whose connections end with the test.
func client(t *testing.T, config *tls.Config, http2 bool) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	tr := &http.Transport{TLSClientConfig: config, Protocols: protocols, DisableCompression: true, ExpectContinueTimeout: hang}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * hang}
}

func (c *cluster) tls() *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.authority.Root().PEM())
	return &tls.Config{RootCAs: pool, ServerName: "localhost"}
}

// call sends a request and reads the answer.
func call(t *testing.T, cl *http.Client, method, url string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	resp, text, err := tryCall(cl, method, url, body, header...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp, text
}

func tryCall(cl *http.Client, method, url string, body io.Reader, header ...string) (*http.Response, string, error) {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, "", err
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := cl.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func asAdmin() []string { return []string{"Authorization", "Bearer " + protocoltest.AdminToken} }

func wait[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(hang):
		t.Fatalf("%s: nothing in %v", what, hang)
		panic("unreachable")
	}
}

// addRoute adds a route to the node's toy protocol.
func addRoute(r protocol.Route) func(*testNode, *gateway.Config) {
	return func(n *testNode, _ *gateway.Config) { n.toy.Extra = append(n.toy.Extra, r) }
}

func get(name, pattern string, serve func(*protocol.Call) error) protocol.Route {
	return protocol.Route{Name: name, Method: http.MethodGet, Pattern: pattern, Action: access.Login, Serve: serve}
}

// The flow of docker login and docker pull, over plain HTTP on loopback.
func TestTokenFlow(t *testing.T) {
	n := newCluster(t).start(meta.RoleServer)
	cl := client(t, nil, false)
	base := "http://" + n.addr
	resp, _ := call(t, cl, "GET", base+"/toy/acme/app/doc", nil)
	if want := `Bearer realm="` + base + `/token",service="shoal"`; resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != want {
		t.Fatalf("%d %q, want %s", resp.StatusCode, resp.Header.Get("WWW-Authenticate"), want)
	}
	const scopes = "service=shoal&scope=repository:acme/app:pull,push&scope=repository:acme/other:pull"
	var token struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		IssuedAt    string `json:"issued_at"`
		Refresh     string `json:"refresh_token"`
	}
	for _, test := range []struct {
		name, method, url, body string
		basic                   string
		status                  int
		reads                   bool
	}{
		{"docker", "GET", "/token?account=x&offline_token=true&client_id=docker&" + scopes, "", protocoltest.AdminToken, 200, true},
		{"podman login without scope", "GET", "/token?service=shoal", "", protocoltest.AdminToken, 200, false},
		{"containerd", "POST", "/token", "grant_type=password&username=x&password=" + protocoltest.AdminToken + "&" + scopes, "", 200, true},
		{"identity token", "POST", "/token", "grant_type=refresh_token&refresh_token=" + protocoltest.AdminToken + "&scope=repository:acme/app:pull+repository:acme/x:pull", "", 200, true},
		{"form with Basic", "POST", "/token", scopes, protocoltest.AdminToken, 200, true},
		{"anonymous", "GET", "/token?" + scopes, "", "", 200, false},
		{"wrong password", "GET", "/token?" + scopes, "", "wrong", 401, false},
		{"wrong form password", "POST", "/token", "grant_type=password&password=wrong", "", 401, false},
		{"empty form password", "POST", "/token", "grant_type=password", "", 401, false},
		{"other grant", "POST", "/token", "grant_type=authorization_code&code=x", "", 400, false},
		{"no grant", "POST", "/token", "", "", 400, false},
		{"bad scope", "GET", "/token?scope=x", "", protocoltest.AdminToken, 400, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			header := []string{"Content-Type", "application/x-www-form-urlencoded"}
			if test.basic != "" {
				r := httptest.NewRequest("GET", "/", nil)
				r.SetBasicAuth("x", test.basic)
				header = append(header, "Authorization", r.Header.Get("Authorization"))
			}
			resp, body := call(t, cl, test.method, base+test.url, strings.NewReader(test.body), header...)
			if resp.StatusCode != test.status {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
			if resp.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("a token answer may be cached: %q", resp.Header.Get("Cache-Control"))
			}
			if test.status != 200 {
				if test.status == 401 && !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Basic ") {
					t.Errorf("challenge %q", resp.Header.Get("WWW-Authenticate"))
				}
				return
			}
			if err := json.Unmarshal([]byte(body), &token); err != nil || token.Token == "" || token.Token != token.AccessToken || token.ExpiresIn < 60 || token.Refresh != "" {
				t.Fatalf("%s: %v", body, err)
			}
			if _, err := time.Parse(time.RFC3339, token.IssuedAt); err != nil {
				t.Error(err)
			}
			resp, body = call(t, cl, "GET", base+"/toy/acme/app/doc", nil, "Authorization", "Bearer "+token.Token)
			if got := resp.StatusCode == 200 && body == "hello"; got != test.reads {
				t.Errorf("reading with it: %d %s", resp.StatusCode, body)
			}
		})
	}
	if resp, _ := call(t, cl, "DELETE", base+"/token", nil); resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("%d %s", resp.StatusCode, resp.Header.Get("Allow"))
	}
}

// One port: HTTP/1.1 and HTTP/2 over TLS, and plain HTTP from loopback.
func TestOnePort(t *testing.T) {
	c := newCluster(t)
	proto := make(chan string, 1)
	n := c.start(meta.RoleServer, addRoute(protocol.Route{Name: "proto", Method: "GET", Pattern: "/proto", Action: access.Public, Serve: func(c *protocol.Call) error {
		proto <- fmt.Sprintf("%s tls=%v %s", c.R.Proto, c.R.TLS != nil, protocol.BaseURL(c.R))
		return nil
	}}))
	for _, test := range []struct {
		scheme string
		http2  bool
		want   string
	}{
		{"http", false, "HTTP/1.1 tls=false http://" + n.addr},
		{"https", false, "HTTP/1.1 tls=true https://" + n.addr},
		{"https", true, "HTTP/2.0 tls=true https://" + n.addr},
	} {
		call(t, client(t, c.tls(), test.http2), "GET", test.scheme+"://"+n.addr+"/proto", nil)
		if got := wait(t, "request", proto); got != test.want {
			t.Errorf("%s http2=%v: %s, want %s", test.scheme, test.http2, got, test.want)
		}
	}
}

func TestPlainFromElsewhereIsRefused(t *testing.T) {
	c := newCluster(t)
	for _, plain := range []bool{false, true} {
		n := c.build(meta.RoleServer, func(_ *testNode, g *gateway.Config) { g.Plain = plain })
		defer n.Close()
		r := httptest.NewRequest("GET", "http://registry.example/toy/", nil)
		r.RemoteAddr = "192.0.2.7:1234"
		w := httptest.NewRecorder()
		n.Handler().ServeHTTP(w, r)
		want := http.StatusBadRequest
		if plain {
			want = http.StatusUnauthorized
		}
		if w.Code != want || !plain && !strings.Contains(w.Body.String(), "https://registry.example") {
			t.Errorf("plain=%v: %d %s", plain, w.Code, w.Body)
		}
	}
}

// What a client says about forwarding counts only from who may say it.
func TestForwardedHeaders(t *testing.T) {
	c := newCluster(t)
	seen := make(chan string, 1)
	n := c.build(meta.RoleServer, func(n *testNode, g *gateway.Config) {
		g.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		g.Plain = true
		addRoute(protocol.Route{Name: "seen", Method: "GET", Pattern: "/seen", Action: access.Public, Serve: func(c *protocol.Call) error {
			seen <- fmt.Sprintf("%s %s loopback=%v hops=%q", c.R.RemoteAddr, protocol.BaseURL(c.R), c.Loopback, c.R.Header.Get(forward.HeaderHops))
			return nil
		}})(n, g)
	})
	defer n.Close()
	for remote, want := range map[string]string{
		"127.0.0.1:99":  `127.0.0.1:99 http://gw:5000 loopback=true hops=""`,
		"203.0.113.1:9": `203.0.113.1:9 http://gw:5000 loopback=false hops=""`,
		"192.0.2.8:9":   `10.1.1.1:0 https://public.example loopback=false hops=""`,
	} {
		r := httptest.NewRequest("GET", "http://gw:5000/seen", nil)
		r.RemoteAddr = remote
		r.Header.Set("X-Forwarded-For", "127.0.0.1, 10.1.1.1")
		r.Header.Set("X-Forwarded-Proto", "https")
		r.Header.Set("X-Forwarded-Host", "public.example")
		r.Header.Set(forward.HeaderHops, "x")
		r.Header.Set(protocol.HeaderRequestID, "chosen")
		w := httptest.NewRecorder()
		n.Handler().ServeHTTP(w, r)
		if got := wait(t, "request", seen); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
		if w.Header().Get(protocol.HeaderRequestID) == "chosen" {
			t.Errorf("%s chose the request id", remote)
		}
	}
}

func TestNodeOnly(t *testing.T) {
	c := newCluster(t)
	who := make(chan meta.Principal, 1)
	n := c.start(meta.RoleServer, func(_ *testNode, g *gateway.Config) {
		g.Mounts = []gateway.Mount{{Name: "ask", Pattern: "/internal/{rest...}", Methods: []string{"POST"}, Action: access.NodeOnly, Serve: func(c *protocol.Call) error {
			who <- c.Who
			return nil
		}}}
	})
	_, cred, agent := c.credential(meta.RoleAgent, "acme/*")
	url := "https://" + n.addr + "/internal/ask"
	asNode := client(t, trust.ClientTLS(cred), true)
	if resp, _ := call(t, asNode, "POST", url, nil); resp.StatusCode != 403 {
		t.Errorf("a node that is not in the roster: %d", resp.StatusCode)
	}
	c.records.PutNode(agent)
	if resp, body := call(t, asNode, "POST", url, nil); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if got := wait(t, "node", who); got.Node != agent.ID || got.Role != meta.RoleAgent || got.Admin {
		t.Errorf("%+v", got)
	}
	if resp, _ := call(t, asNode, "POST", url, nil, forward.HeaderHops, string(agent.ID)); resp.StatusCode != 403 {
		t.Errorf("what a node forwards acted as the node: %d", resp.StatusCode)
	}
	if resp, _ := call(t, client(t, c.tls(), true), "POST", url, nil, asAdmin()...); resp.StatusCode != 403 {
		t.Errorf("an administrator is no node: %d", resp.StatusCode)
	}
	// A node's certificate gives nothing on other routes.
	if resp, _ := call(t, asNode, "GET", "https://"+n.addr+"/toy/acme/app/doc", nil); resp.StatusCode != 401 {
		t.Errorf("a node read as a client: %d", resp.StatusCode)
	}
	c.records.RemoveNode(agent.ID)
	if resp, _ := call(t, asNode, "POST", url, nil); resp.StatusCode != 403 {
		t.Errorf("a node that was removed, on its open connection: %d", resp.StatusCode)
	}
}

// A handler that fails or breaks before it answers gets the protocol's error,
// after that the connection is cut: no half answer passes for a whole one.
func TestFailures(t *testing.T) {
	c := newCluster(t)
	begin := func(c *protocol.Call) {
		c.W.Header().Set("Content-Length", "100")
		c.W.WriteHeader(200)
		io.WriteString(c.W, "half")
	}
	n := c.start(meta.RoleServer,
		addRoute(get("panics", "/toy-panics", func(*protocol.Call) error { panic("broken") })),
		addRoute(get("fails", "/toy-fails", func(*protocol.Call) error { return errors.New("an internal secret") })),
		addRoute(get("panics_late", "/toy-panics-late", func(c *protocol.Call) error { begin(c); panic("broken") })),
		addRoute(get("fails_late", "/toy-fails-late", func(c *protocol.Call) error { begin(c); return meta.ErrCorrupt })))
	for _, http2 := range []bool{false, true} {
		cl := client(t, c.tls(), http2)
		for _, path := range []string{"/toy-panics", "/toy-fails"} {
			resp, body := call(t, cl, "GET", "https://"+n.addr+path, nil, asAdmin()...)
			if resp.StatusCode != 500 || strings.Contains(body, "secret") || !strings.HasPrefix(body, "toy error") || resp.Header.Get(protocol.HeaderRequestID) == "" {
				t.Errorf("http2=%v %s: %d %s", http2, path, resp.StatusCode, body)
			}
		}
		for _, path := range []string{"/toy-panics-late", "/toy-fails-late"} {
			if _, body, err := tryCall(cl, "GET", "https://"+n.addr+path, nil, asAdmin()...); err == nil {
				t.Errorf("http2=%v %s: %q without an error", http2, path, body)
			}
		}
	}
	if got, err := testutil.GatherAndCount(n.metrics, "shoal_gateway_panics_total"); err != nil || got != 1 {
		t.Errorf("panics metric: %d %v", got, err)
	}
}

// A client that stops is let go; how long a moving one takes does not matter.
func TestStalls(t *testing.T) {
	c := newCluster(t)
	result := make(chan error, 1)
	takes := addRoute(protocol.Route{Name: "takes", Method: "POST", Pattern: "/takes", Action: access.Login, Serve: func(c *protocol.Call) error {
		_, err := io.Copy(io.Discard, c.R.Body)
		result <- err
		return err
	}})
	n := c.start(meta.RoleServer,
		func(_ *testNode, g *gateway.Config) { g.Limits.Stall = 100 * time.Millisecond }, takes,
		addRoute(get("gives", "/gives", func(c *protocol.Call) error {
			_, err := io.Copy(c.W, endless{})
			result <- err
			return err
		})))
	for _, tlsOn := range []bool{false, true} {
		for _, request := range []string{
			"POST /takes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n" + "Authorization: Bearer " + protocoltest.AdminToken + "\r\n\r\nsome",
			"GET /gives HTTP/1.1\r\nHost: localhost\r\n" + "Authorization: Bearer " + protocoltest.AdminToken + "\r\n\r\n",
		} {
			var conn net.Conn
			var err error
			if conn, err = net.Dial("tcp", n.addr); err != nil {
				t.Fatal(err)
			}
			if tlsOn {
				conn = tls.Client(conn, c.tls())
			}
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			if err := wait(t, request[:10], result); err == nil {
				t.Errorf("%.10s tls=%v: the handler went on", request, tlsOn)
			}
			conn.Close()
		}
	}
	// Longer in all than the limit, but moving: each piece waits for the one before
	// to have arrived. The limit is one that a busy machine does not reach between two.
	const stall, every = 2 * time.Second, 50 * time.Millisecond
	n = c.start(meta.RoleServer, func(_ *testNode, g *gateway.Config) { g.Limits.Stall = stall }, takes)
	reader, writer := io.Pipe()
	done := make(chan error, 1)
	go func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for range stall/every + 10 {
			<-ticker.C
			if _, err := io.WriteString(writer, "piece"); err != nil {
				done <- err
				return
			}
		}
		done <- writer.Close()
	}()
	if resp, body := call(t, client(t, c.tls(), true), "POST", "https://"+n.addr+"/takes", reader, asAdmin()...); resp.StatusCode != 200 {
		t.Errorf("a slow but moving client: %d %s", resp.StatusCode, body)
	}
	if err := wait(t, "slow body", done); err != nil {
		t.Error(err)
	}
	if err := wait(t, "slow handler", result); err != nil {
		t.Error(err)
	}
}

// A handler may be silent for longer than the limit: only waiting for the client
// counts. On HTTP/2 a deadline left behind would end the stream.
func TestSilentHandler(t *testing.T) {
	c := newCluster(t)
	silence := make(chan struct{})
	const stall = 500 * time.Millisecond // what is written has as long
	n := c.start(meta.RoleServer,
		func(_ *testNode, g *gateway.Config) { g.Limits.Stall = stall },
		addRoute(get("silent", "/silent", func(c *protocol.Call) error {
			io.WriteString(c.W, "one ")
			http.NewResponseController(c.W).Flush()
			<-silence
			_, err := io.WriteString(c.W, "two")
			return err
		})))
	for _, http2 := range []bool{false, true} {
		req, err := http.NewRequest("GET", "https://"+n.addr+"/silent", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+protocoltest.AdminToken)
		resp, err := client(t, c.tls(), http2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		timer := time.NewTimer(2 * stall)
		<-timer.C
		silence <- struct{}{}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != "one two" {
			t.Errorf("http2=%v: %q %v", http2, body, err)
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// Shutdown lets a download finish, refuses new connections, and ends watches.
func TestShutdown(t *testing.T) {
	c := newCluster(t)
	half, rest := make(chan struct{}), make(chan struct{})
	watching := make(chan struct{})
	n := c.start(meta.RoleServer,
		addRoute(get("download", "/download", func(c *protocol.Call) error {
			io.WriteString(c.W, "half ")
			http.NewResponseController(c.W).Flush()
			close(half)
			<-rest
			_, err := io.WriteString(c.W, "whole")
			return err
		})),
		func(_ *testNode, g *gateway.Config) {
			g.Mounts = []gateway.Mount{{Name: "watch", Pattern: "/watch", Methods: []string{"GET"}, Action: access.Public, Long: true, Serve: func(c *protocol.Call) error {
				close(watching)
				<-c.R.Context().Done()
				return nil
			}}}
		})
	cl := client(t, nil, false)
	type answer struct {
		body string
		err  error
	}
	download, watch := make(chan answer, 1), make(chan answer, 1)
	go func() {
		_, body, err := tryCall(cl, "GET", "http://"+n.addr+"/download", nil, asAdmin()...)
		download <- answer{body, err}
	}()
	go func() {
		_, body, err := tryCall(cl, "GET", "http://"+n.addr+"/watch", nil)
		watch <- answer{body, err}
	}()
	wait(t, "download", half)
	wait(t, "watch", watching)
	n.stop()
	wait(t, "watch ends", watch)
	for { // the listener closes at once; nothing else is waited for
		conn, err := net.Dial("tcp", n.addr)
		if err != nil {
			break
		}
		conn.Close()
	}
	close(rest)
	if a := wait(t, "download ends", download); a.err != nil || a.body != "half whole" {
		t.Errorf("%q %v", a.body, a.err)
	}
	n.await(t)
}

// What was cancelled, and not by its client, is answered 503 with Retry-After: whose
// context ended is no client's affair. Clients that left are counted apart.
func TestWhoLeft(t *testing.T) {
	for _, version2 := range []bool{false, true} {
		c := newCluster(t)
		began := make(chan struct{}, 1)
		n := c.start(meta.RoleServer, addRoute(get("inner", "/inner", func(*protocol.Call) error {
			return fmt.Errorf("something of the node's own ended: %w", context.Canceled)
		})), addRoute(get("left", "/left", func(c *protocol.Call) error {
			began <- struct{}{}
			<-c.R.Context().Done()
			return fmt.Errorf("wait: %w: %w", meta.ErrUnavailable, c.R.Context().Err())
		})))
		cl := client(t, c.tls(), version2)
		counted := func(route, code string) bool {
			families, err := n.metrics.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					labels := map[string]string{}
					for _, l := range m.GetLabel() {
						labels[l.GetName()] = l.GetValue()
					}
					if f.GetName() == "shoal_gateway_requests_total" && labels["route"] == route && labels["code"] == code {
						return m.GetCounter().GetValue() == 1
					}
				}
			}
			return false
		}
		resp, body := call(t, cl, "GET", "https://"+n.addr+"/inner", nil, asAdmin()...)
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
			t.Errorf("a client that is there: %d %q %s", resp.StatusCode, resp.Header.Get("Retry-After"), body)
		}
		ctx, leave := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "GET", "https://"+n.addr+"/left", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", asAdmin()[1])
		go func() {
			<-began
			leave()
		}()
		if resp, err := cl.Do(req); err == nil {
			resp.Body.Close()
			t.Errorf("who left is answered %d", resp.StatusCode)
		}
		n.stop() // and its calls are over
		n.await(t)
		if !counted("inner", "503") || !counted("left", "499") {
			t.Errorf("counted wrongly: inner as 503 %t, left as 499 %t", counted("inner", "503"), counted("left", "499"))
		}
	}
}

func TestShutdownCutsOff(t *testing.T) {
	c := newCluster(t)
	begun, ended := make(chan struct{}), make(chan struct{})
	n := c.start(meta.RoleServer,
		func(_ *testNode, g *gateway.Config) { g.Limits.Drain = 50 * time.Millisecond },
		addRoute(get("endless", "/endless", func(c *protocol.Call) error {
			close(begun)
			<-c.R.Context().Done()
			close(ended)
			return c.R.Context().Err()
		})))
	done := make(chan error, 1)
	go func() {
		_, _, err := tryCall(client(t, nil, false), "GET", "http://"+n.addr+"/endless", nil, asAdmin()...)
		done <- err
	}()
	wait(t, "request", begun)
	n.stop()
	wait(t, "handler", ended)
	n.await(t)
	wait(t, "client", done)
}

func TestConnectionLimit(t *testing.T) {
	c := newCluster(t)
	n := c.start(meta.RoleServer, func(_ *testNode, g *gateway.Config) { g.Limits.Connections = 2 })
	var held []net.Conn
	for range 2 {
		conn, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// An answer shows that the connection has its place.
		fmt.Fprintf(conn, "GET /toy/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	third, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	third.SetReadDeadline(time.Now().Add(hang))
	if _, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a connection above the limit: %v", err)
	}
	// A place that is given back is taken again.
	held[0].Close()
	cl := client(t, nil, false)
	for deadline := time.Now().Add(hang); ; {
		if _, _, err := tryCall(cl, "GET", "http://"+n.addr+"/toy/", nil); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a closed connection is not given back")
		}
	}
}

func TestHeaderLimit(t *testing.T) {
	n := newCluster(t).start(meta.RoleServer)
	resp, _ := call(t, client(t, nil, false), "GET", "http://"+n.addr+"/toy/", nil, "X-Large", strings.Repeat("x", 80<<10))
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%d", resp.StatusCode)
	}
}

// Nobody without rights makes the cluster run strong reads.
func TestStrongReadsNeedRights(t *testing.T) {
	c := newCluster(t)
	n := c.start(meta.RoleServer)
	cl := client(t, nil, false)
	url := "http://" + n.addr + "/toy/acme/gone/doc"
	if resp, _ := call(t, cl, "GET", url, nil); resp.StatusCode != 401 || c.records.StrongReads() != 0 {
		t.Errorf("anonymous: %d, %d strong reads", resp.StatusCode, c.records.StrongReads())
	}
	if resp, _ := call(t, cl, "GET", url, nil, asAdmin()...); resp.StatusCode != 404 || c.records.StrongReads() != 1 {
		t.Errorf("admin: %d, %d strong reads", resp.StatusCode, c.records.StrongReads())
	}
	if resp, _ := call(t, cl, "GET", "http://"+n.addr+"/toy/acme/app/doc", nil, asAdmin()...); resp.StatusCode != 200 || c.records.StrongReads() != 1 {
		t.Errorf("present: %d, %d strong reads", resp.StatusCode, c.records.StrongReads())
	}
}

func TestOtherFormatAndBadNames(t *testing.T) {
	c := newCluster(t)
	c.records.PutRepository(meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "js"}, Format: "npm"})
	n := c.start(meta.RoleServer)
	cl := client(t, nil, false)
	for _, test := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/toy/acme/js/doc", 404}, {"PUT", "/toy/acme/js/doc", 400}, {"PUT", "/toy/ACME/x/doc", 400}, {"GET", "/toy/ACME/x/doc", 404},
	} {
		if resp, body := call(t, cl, test.method, "http://"+n.addr+test.path, nil, asAdmin()...); resp.StatusCode != test.status {
			t.Errorf("%s %s: %d %s, want %d", test.method, test.path, resp.StatusCode, body, test.status)
		}
	}
}

func TestCrossOrigin(t *testing.T) {
	n := newCluster(t).start(meta.RoleServer)
	cl := client(t, nil, false)
	resp, _ := call(t, cl, "PUT", "http://"+n.addr+"/toy/acme/app/x", strings.NewReader("x"), append(asAdmin(), "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site")...)
	if resp.StatusCode != 403 {
		t.Errorf("a web page wrote: %d", resp.StatusCode)
	}
}

func TestTraceAndToken(t *testing.T) {
	c := newCluster(t)
	calls := make(chan *protocol.Call, 1)
	n := c.start(meta.RoleServer, addRoute(get("call", "/call", func(c *protocol.Call) error { calls <- c; return nil })))
	cl := client(t, nil, false)
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	resp, _ := call(t, cl, "GET", "http://"+n.addr+"/call", nil, append(asAdmin(), "Traceparent", "00-"+trace+"-00f067aa0ba902b7-01", protocol.HeaderToken, "1.77")...)
	got := wait(t, "call", calls)
	if !strings.HasPrefix(got.Trace, "00-"+trace+"-") || !strings.HasSuffix(got.Trace, "-01") || strings.Contains(got.Trace, "00f067aa0ba902b7") {
		t.Errorf("trace %s", got.Trace)
	}
	origin := got.Origin()
	if got.After != (meta.Token{Epoch: 1, Index: 77}) || origin.RequestID != resp.Header.Get(protocol.HeaderRequestID) || origin.RequestID == "" || origin.Principal != "admin:bootstrap" || origin.Source == "" {
		t.Errorf("%+v %+v", got.After, origin)
	}
	for mode, want := range map[string]meta.Freshness{
		"":              {Mode: meta.ModeBounded, MaxAge: 2 * time.Second, Own: true},
		"strong":        {Mode: meta.ModeStrong, Exact: true},
		"bounded=100ms": {Mode: meta.ModeBounded, MaxAge: 100 * time.Millisecond, Exact: true},
		"local":         {Mode: meta.ModeLocal, Exact: true},
	} {
		call(t, cl, "GET", "http://"+n.addr+"/call", nil, append(asAdmin(), protocol.HeaderMode, mode)...)
		if got := wait(t, "call", calls).Fresh(meta.Bounded); got != want {
			t.Errorf("Shoal-Mode %q: %+v", mode, got)
		}
	}
	if resp, _ := call(t, cl, "GET", "http://"+n.addr+"/call", nil, append(asAdmin(), protocol.HeaderMode, "eventual")...); resp.StatusCode != 400 {
		t.Errorf("a bad mode: %d", resp.StatusCode)
	}
	if resp, _ := call(t, cl, "GET", "http://"+n.addr+"/call", nil, append(asAdmin(), protocol.HeaderToken, "soon")...); resp.StatusCode != 400 {
		t.Errorf("a bad token: %d", resp.StatusCode)
	}
	for _, bad := range []string{"", "x", "00-0-0-0", "ff-" + trace + "-00f067aa0ba902b7-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"} {
		call(t, cl, "GET", "http://"+n.addr+"/call", nil, append(asAdmin(), "Traceparent", bad)...)
		if got := wait(t, "call", calls); len(got.Trace) != 55 || strings.Contains(got.Trace, trace) {
			t.Errorf("%q became %s", bad, got.Trace)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	c := newCluster(t)
	n := c.build(meta.RoleServer)
	defer n.Close()
	good := gateway.Config{Self: "n", Role: meta.RoleServer, Listen: "127.0.0.1:0", Gate: n.gate, Repositories: c.records, Log: slog.New(slog.DiscardHandler)}
	for name, change := range map[string]func(*gateway.Config){
		"no action": func(g *gateway.Config) {
			g.Mounts = []gateway.Mount{{Name: "x", Pattern: "/x", Methods: []string{"GET"}, Serve: func(*protocol.Call) error { return nil }}}
		},
		"no methods": func(g *gateway.Config) {
			g.Mounts = []gateway.Mount{{Name: "x", Pattern: "/x", Action: access.Public, Serve: func(*protocol.Call) error { return nil }}}
		},
		"no handler": func(g *gateway.Config) {
			g.Mounts = []gateway.Mount{{Name: "x", Pattern: "/x", Methods: []string{"GET"}, Action: access.Public}}
		},
		"two protocols, a tie":  func(g *gateway.Config) { g.Protocols = []protocol.Protocol{&protocoltest.Toy{}, &protocoltest.Toy{}} },
		"no gate":               func(g *gateway.Config) { g.Gate = nil },
		"agent without forward": func(g *gateway.Config) { g.Role = meta.RoleAgent },
	} {
		config := good
		config.Metrics = prometheus.NewRegistry()
		change(&config)
		if gw, err := gateway.New(config); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
			if gw != nil {
				gw.Close()
			}
		}
	}
}

// Pushing over one HTTP/2 stream and pulling it back moves every byte.
func TestHTTP2Bodies(t *testing.T) {
	c := newCluster(t)
	var received atomic.Int64
	n := c.start(meta.RoleServer,
		addRoute(protocol.Route{Name: "takes", Method: "POST", Pattern: "/takes", Action: access.Login, Serve: func(c *protocol.Call) error {
			n, err := io.Copy(io.Discard, c.R.Body)
			received.Store(n)
			return err
		}}),
		addRoute(get("gives", "/gives", func(c *protocol.Call) error {
			return protocol.ServeBytes(c.W, c.R, bytes.Repeat([]byte("x"), 8<<20), protocol.Content{})
		})))
	cl := client(t, c.tls(), true)
	if resp, _ := call(t, cl, "POST", "https://"+n.addr+"/takes", io.LimitReader(endless{}, 32<<20), asAdmin()...); resp.StatusCode != 200 || received.Load() != 32<<20 {
		t.Errorf("push: %d, %d bytes", resp.StatusCode, received.Load())
	}
	if resp, body := call(t, cl, "GET", "https://"+n.addr+"/gives", nil, asAdmin()...); resp.StatusCode != 200 || len(body) != 8<<20 {
		t.Errorf("pull: %d, %d bytes", resp.StatusCode, len(body))
	}
}
