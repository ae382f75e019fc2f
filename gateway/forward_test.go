package gateway_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/forward"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/gateway/uploadid"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// upload is a route of the toy for bodies that a test serves itself.
func upload(place protocol.Place, serve func(*protocol.Call) error) func(*testNode, *gateway.Config) {
	pattern := "/up/{tenant}/{repository}"
	if place == protocol.Owner {
		pattern += "/{upload}"
	}
	return addRoute(protocol.Route{Name: fmt.Sprint("upload_", place), Method: "POST", Pattern: pattern, Action: access.Push, Place: place, Serve: serve})
}

// A write at an agent reaches a server with the client's own credential, and
// what the client sees is right where it is.
func TestAgentForwardsWrites(t *testing.T) {
	c := newCluster(t)
	seen := make(chan string, 1)
	c.start(meta.RoleServer, upload(protocol.AnyServer, func(c *protocol.Call) error {
		seen <- fmt.Sprintf("%s %s from %s loopback=%v", c.Who.Name, protocol.BaseURL(c.R), c.R.RemoteAddr, c.Loopback)
		c.W.Header().Set("Location", "/up/acme/app/here")
		c.Committed(meta.Token{Epoch: 1, Index: 9})
		c.W.WriteHeader(http.StatusAccepted)
		return nil
	}))
	var wrote atomic.Pointer[meta.Token]
	agent := c.start(meta.RoleAgent, upload(protocol.AnyServer, func(*protocol.Call) error {
		t.Error("an agent served a write")
		return nil
	}), func(_ *testNode, c *gateway.Config) { c.Wrote = func(t meta.Token) { wrote.Store(&t) } })
	cl := client(t, nil, false)
	url := "http://" + agent.addr + "/up/acme/app"
	resp, _ := call(t, cl, "POST", url, strings.NewReader("x"), asAdmin()...)
	if token := wrote.Load(); token == nil || *token != (meta.Token{Epoch: 1, Index: 9}) {
		t.Errorf("the agent noted %v of the write", token)
	}
	if resp.StatusCode != http.StatusAccepted || resp.Header.Get("Location") != "/up/acme/app/here" || resp.Header.Get(protocol.HeaderToken) != "1.9" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	if got, want := wait(t, "server", seen), "admin:bootstrap http://"+agent.addr+" from 127.0.0.1:0 loopback=false"; got != want {
		t.Errorf("the server saw %s, want %s", got, want)
	}
	if resp.Header.Get(protocol.HeaderRequestID) == "" || len(resp.Header.Values(protocol.HeaderRequestID)) != 1 {
		t.Errorf("request ids %v", resp.Header.Values(protocol.HeaderRequestID))
	}
	// Without credentials the client is challenged to the agent's token endpoint:
	// what the host may read gives no right to write.
	resp, body := call(t, cl, "POST", url, strings.NewReader("x"))
	if want := `Bearer realm="http://` + agent.addr + `/token",service="shoal"`; resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != want {
		t.Errorf("%d %q %s", resp.StatusCode, resp.Header.Get("WWW-Authenticate"), body)
	}
	// Reads are served by the agent, as the host.
	if resp, body := call(t, cl, "GET", "http://"+agent.addr+"/toy/acme/app/doc", nil); resp.StatusCode != 200 || body != "hello" {
		t.Errorf("host: %d %s", resp.StatusCode, body)
	}
}

// What the owner of an upload session has written is noted like any other write.
func TestAgentNotesWhatOwnersWrite(t *testing.T) {
	c := newCluster(t)
	server := c.start(meta.RoleServer, upload(protocol.Owner, func(c *protocol.Call) error {
		c.Committed(meta.Token{Epoch: 1, Index: 9})
		return nil
	}))
	var wrote atomic.Pointer[meta.Token]
	agent := c.start(meta.RoleAgent, upload(protocol.Owner, func(*protocol.Call) error { return nil }), func(_ *testNode, c *gateway.Config) {
		c.Wrote = func(t meta.Token) { wrote.Store(&t) }
	})
	minter, err := uploadid.NewMinter(server.node.ID, server.key.Private().Seed())
	if err != nil {
		t.Fatal(err)
	}
	resp, body := call(t, client(t, nil, false), "POST", "http://"+agent.addr+"/up/acme/app/"+minter.New("abc", "admin:bootstrap", acme), nil, asAdmin()...)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if token := wrote.Load(); token == nil || *token != (meta.Token{Epoch: 1, Index: 9}) {
		t.Errorf("the agent noted %v", token)
	}
}

// docker login and push at an agent: the token comes from a server, without
// credentials from the agent itself, and that one counts nowhere else.
func TestAgentTokens(t *testing.T) {
	c := newCluster(t)
	server, agent := c.start(meta.RoleServer), c.start(meta.RoleAgent)
	cl := client(t, nil, false)
	token := func(header ...string) string {
		resp, body := call(t, cl, "GET", "http://"+agent.addr+"/token?scope=repository:acme/app:pull,push", nil, header...)
		var answer struct{ Token string }
		if err := json.Unmarshal([]byte(body), &answer); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		return answer.Token
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.SetBasicAuth("ada", protocoltest.AdminToken)
	issued, own := token("Authorization", r.Header.Get("Authorization")), token()
	for _, test := range []struct {
		name, method, addr, token string
		status                    int
	}{
		{"push at the agent", "PUT", agent.addr, issued, 201},
		{"push at the server", "PUT", server.addr, issued, 201},
		{"read at the agent", "GET", agent.addr, issued, 200},
		{"the host's reads at the agent", "GET", agent.addr, own, 200},
		{"the host's does not write", "PUT", agent.addr, own, 401},
		{"the host's is nothing to a server", "GET", server.addr, own, 401},
	} {
		if resp, body := call(t, cl, test.method, "http://"+test.addr+"/toy/acme/app/doc", strings.NewReader("hello"), "Authorization", "Bearer "+test.token); resp.StatusCode != test.status {
			t.Errorf("%s: %d %s, want %d", test.name, resp.StatusCode, body, test.status)
		}
	}
	if resp, _ := call(t, cl, "POST", "http://"+agent.addr+"/token", strings.NewReader("grant_type=password&password="+protocoltest.AdminToken), "Content-Type", "application/x-www-form-urlencoded"); resp.StatusCode != 200 {
		t.Errorf("POST: %d", resp.StatusCode)
	}
	r.SetBasicAuth("ada", "wrong")
	if resp, _ := call(t, cl, "GET", "http://"+agent.addr+"/token", nil, "Authorization", r.Header.Get("Authorization")); resp.StatusCode != 401 {
		t.Errorf("wrong password: %d", resp.StatusCode)
	}
}

// 64 MiB go through an agent while never more than 4 MiB are on their way: the
// client sends a piece only once the server has what came 4 MiB before it, so a
// forwarder that waited for more would wait for ever. The live heap, looked at on
// the way, shows that nothing keeps the bytes.
func TestForwardStreams(t *testing.T) {
	const (
		total  = 64 << 20
		piece  = 1 << 20
		window = 4
		bound  = 24 << 20 // of client, agent and server together, on both ways
	)
	c := newCluster(t)
	liveHeap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	var most atomic.Int64
	arrived := make(chan struct{}, window)
	for range window {
		arrived <- struct{}{}
	}
	c.start(meta.RoleServer, upload(protocol.AnyServer, func(c *protocol.Call) error {
		buf := make([]byte, piece)
		c.W.Header().Set("X-Begun", "yes")
		for i := range total / piece {
			if i%8 == 7 {
				most.Store(max(most.Load(), liveHeap()))
			}
			if _, err := io.ReadFull(c.R.Body, buf); err != nil {
				return err
			}
			arrived <- struct{}{}
		}
		n, err := io.Copy(io.Discard, c.R.Body)
		if err != nil || n != 0 {
			return fmt.Errorf("%d bytes too many: %w", n, err)
		}
		// And back, through a buffer of the same size.
		_, err = io.Copy(c.W, io.LimitReader(endless{}, total))
		return err
	}))
	agent := c.start(meta.RoleAgent, upload(protocol.AnyServer, func(*protocol.Call) error { return nil }))
	for _, test := range []struct {
		name   string
		http2  bool
		length int64
	}{{"HTTP/1.1 chunked", false, -1}, {"HTTP/1.1 with length", false, total}, {"HTTP/2", true, -1}} {
		t.Run(test.name, func(t *testing.T) {
			most.Store(0)
			before := liveHeap()
			body := &paced{left: total, piece: piece, may: arrived}
			req, err := http.NewRequest("POST", "https://"+agent.addr+"/up/acme/app", body)
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = test.length
			req.Header.Set("Authorization", "Bearer "+protocoltest.AdminToken)
			resp, err := client(t, c.tls(), test.http2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			n, err := io.Copy(io.Discard, resp.Body)
			if err != nil || n != total || resp.StatusCode != 200 {
				t.Fatalf("%d, %d bytes back: %v", resp.StatusCode, n, err)
			}
			if held := most.Load() - before; held > bound {
				t.Errorf("%d MiB were held while %d MiB went through", held>>20, total>>20)
			}
			// The server gave a place back for each piece; the window is full again.
			if len(arrived) != window {
				t.Errorf("%d places in the window", len(arrived))
			}
		})
	}
}

// paced gives a piece only when one before it has arrived.
type paced struct {
	left, piece, now int
	may              <-chan struct{}
}

func (p *paced) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	if p.now == 0 {
		<-p.may
		p.now = p.piece
	}
	n := min(len(b), p.now)
	p.now -= n
	p.left -= n
	return n, nil
}

// deadAddr is an address where nobody listens.
func deadAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A server that cannot be reached, or is not who the roster says, is passed over.
func TestFailover(t *testing.T) {
	c := newCluster(t)
	var served atomic.Int32
	live := c.start(meta.RoleServer, upload(protocol.AnyServer, func(c *protocol.Call) error {
		b, err := io.ReadAll(c.R.Body)
		if string(b) != "body" {
			t.Errorf("the body is %q", b)
		}
		served.Add(1)
		return err
	}))
	live.node.Region = "us" // the dead ones are nearer
	c.records.PutNode(live.node)
	_, _, dead := c.credential(meta.RoleServer)
	dead.Gateway = deadAddr(t)
	c.records.PutNode(dead)
	_, _, impostor := c.credential(meta.RoleServer)
	impostor.Gateway = live.addr // answers, with the certificate of another
	c.records.PutNode(impostor)
	agent := c.start(meta.RoleAgent, upload(protocol.AnyServer, func(*protocol.Call) error { return nil }))
	for i := range 3 {
		resp, body := call(t, client(t, nil, false), "POST", "http://"+agent.addr+"/up/acme/app", strings.NewReader("body"), asAdmin()...)
		if resp.StatusCode != 200 || served.Load() != int32(i+1) {
			t.Errorf("%d: %d %s, served %d times", i, resp.StatusCode, body, served.Load())
		}
	}
	c.records.RemoveNode(live.node.ID)
	resp, body := call(t, client(t, nil, false), "POST", "http://"+agent.addr+"/up/acme/app", strings.NewReader("body"), asAdmin()...)
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("no server left: %d %s", resp.StatusCode, body)
	}
}

// A server that breaks off after it saw some of the request is not replaced: what
// it did is unknown.
func TestNoRetryOnceSent(t *testing.T) {
	c := newCluster(t)
	var served atomic.Int32
	breaks := func(c *protocol.Call) error {
		served.Add(1)
		if _, err := io.ReadFull(c.R.Body, make([]byte, 4)); err != nil {
			return err
		}
		panic(http.ErrAbortHandler)
	}
	c.start(meta.RoleServer, upload(protocol.AnyServer, breaks))
	c.start(meta.RoleServer, upload(protocol.AnyServer, breaks))
	agent := c.start(meta.RoleAgent, upload(protocol.AnyServer, breaks))
	resp, _ := call(t, client(t, nil, false), "POST", "http://"+agent.addr+"/up/acme/app", strings.NewReader("body"), asAdmin()...)
	if resp.StatusCode != 503 || served.Load() != 1 {
		t.Errorf("%d, %d servers saw it", resp.StatusCode, served.Load())
	}
}

// An answer that breaks off at the server breaks off at the client.
func TestCutAnswer(t *testing.T) {
	c := newCluster(t)
	half := func(c *protocol.Call) error {
		c.W.Header().Set("Content-Length", "100")
		io.WriteString(c.W, "half")
		http.NewResponseController(c.W).Flush()
		return errors.New("disk")
	}
	c.start(meta.RoleServer, upload(protocol.AnyServer, half))
	agent := c.start(meta.RoleAgent, upload(protocol.AnyServer, half))
	for _, http2 := range []bool{false, true} {
		if resp, body, err := tryCall(client(t, c.tls(), http2), "POST", "https://"+agent.addr+"/up/acme/app", nil, asAdmin()...); err == nil {
			t.Errorf("http2=%v: %d %q without an error", http2, resp.StatusCode, body)
		}
	}
}

// A refusal reaches a client that asked first (Expect: 100-continue) before it has
// sent a byte of its body.
func TestExpectContinue(t *testing.T) {
	c := newCluster(t)
	serve := func(c *protocol.Call) error {
		_, err := io.Copy(io.Discard, c.R.Body)
		return err
	}
	c.start(meta.RoleServer, upload(protocol.AnyServer, serve))
	agent := c.start(meta.RoleAgent, upload(protocol.AnyServer, serve))
	for _, test := range []struct {
		header []string
		status int
		sent   int64
	}{{nil, 401, 0}, {asAdmin(), 200, 8 << 20}} {
		var sent atomic.Int64
		body := io.LimitReader(endless{}, 8<<20)
		req := append([]string{"Expect", "100-continue"}, test.header...)
		resp, text := call(t, client(t, nil, false), "POST", "http://"+agent.addr+"/up/acme/app", counted{body, &sent}, req...)
		if resp.StatusCode != test.status || sent.Load() != test.sent {
			t.Errorf("%d %s after %d bytes, want %d after %d", resp.StatusCode, text, sent.Load(), test.status, test.sent)
		}
	}
}

type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// An upload session is served by its owner, wherever the request arrives.
func TestOwner(t *testing.T) {
	c := newCluster(t)
	var minters [2]*uploadid.Minter
	owner := func(i int) func(*protocol.Call) error {
		return func(c *protocol.Call) error {
			session, err := minters[i].Session(c.Params.Get(protocol.UploadParam), c.Who.Name, c.Repo)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.W, "server %d, session %s", i, session)
			return err
		}
	}
	servers := []*testNode{
		c.start(meta.RoleServer, upload(protocol.Owner, owner(0))),
		c.start(meta.RoleServer, upload(protocol.Owner, owner(1))),
	}
	agent := c.start(meta.RoleAgent, upload(protocol.Owner, owner(0)))
	for i, s := range servers {
		var err error
		if minters[i], err = uploadid.NewMinter(s.node.ID, s.key.Private().Seed()); err != nil {
			t.Fatal(err)
		}
	}
	id := minters[1].New("abc", "admin:bootstrap", acme)
	cl := client(t, nil, false)
	for _, at := range []*testNode{servers[0], servers[1], agent} {
		if resp, body := call(t, cl, "POST", "http://"+at.addr+"/up/acme/app/"+id, nil, asAdmin()...); resp.StatusCode != 200 || body != "server 1, session abc" {
			t.Errorf("at %s: %d %s", at.node.Role, resp.StatusCode, body)
		}
	}
	if resp, _ := call(t, cl, "POST", "http://"+servers[0].addr+"/up/acme/app/"+id, nil); resp.StatusCode != 401 {
		t.Errorf("without credentials: %d", resp.StatusCode)
	}
	for name, id := range map[string]string{
		"of another principal":      minters[1].New("abc", "user:eve", acme),
		"of a node that is gone":    "12D3KooWGone~abc~" + id[strings.LastIndex(id, "~")+1:],
		"no id at all":              "abc",
		"of the agent, that is one": string(agent.node.ID) + "~abc~def",
	} {
		if resp, body := call(t, cl, "POST", "http://"+servers[0].addr+"/up/acme/app/"+id, nil, asAdmin()...); resp.StatusCode != 404 {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
	}
	// In the roster but not answering: try again, nothing is lost yet.
	_, _, down := c.credential(meta.RoleServer)
	down.Gateway = deadAddr(t)
	c.records.PutNode(down)
	if resp, _ := call(t, cl, "POST", "http://"+servers[0].addr+"/up/acme/app/"+string(down.ID)+"~abc~def", nil, asAdmin()...); resp.StatusCode != 503 {
		t.Errorf("owner down: %d", resp.StatusCode)
	}
}

// A request that was here before, or has passed too many nodes, is not sent on.
func TestLoopIsRefused(t *testing.T) {
	c := newCluster(t)
	serve := func(*protocol.Call) error { return nil }
	a := c.start(meta.RoleServer, upload(protocol.Owner, serve))
	b := c.start(meta.RoleServer, upload(protocol.Owner, serve))
	id := string(b.node.ID) + "~abc~def"
	r, err := http.NewRequest("POST", "http://"+a.addr+"/up/acme/app/"+id, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	forwarder, err := forward.New(forward.Config{Self: a.node.ID, Region: "eu", Roster: c.records, TLS: c.tls(), Identify: c.identify, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer forwarder.Close()
	w := httptest.NewRecorder()
	for _, hops := range []string{string(a.node.ID), "x,y,z"} {
		r.Header.Set(forward.HeaderHops, hops)
		if err := forwarder.Node(w, r.WithContext(context.Background()), b.node.ID); !errors.Is(err, meta.ErrUnavailable) || !strings.Contains(err.Error(), "circles") {
			t.Errorf("%s: %v", hops, err)
		}
	}
}
