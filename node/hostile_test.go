package node_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/shoal-registry/shoal/dht"
	"github.com/shoal-registry/shoal/dht/host"
	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/node/join"
	"github.com/shoal-registry/shoal/node/local"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/remote"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/wire"
	"github.com/shoal-registry/shoal/verify/digest"
	"github.com/shoal-registry/shoal/verify/trust"
)

// patience is against hangs only.
const patience = 2 * time.Minute

// begin runs a cluster of one region until the test ends.
func begin(t *testing.T, agents int) *local.Cluster {
	t.Helper()
	cluster, err := local.Open(local.Options{
		Dir: t.TempDir(), Regions: 1, Agents: agents, Gateway: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- cluster.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the cluster ended with %v", err)
		}
	})
	select {
	case <-cluster.Ready():
	case err := <-ended:
		ended <- nil
		t.Fatalf("the cluster ended before it was ready: %v", err)
	case <-time.After(patience):
		t.Fatal("the cluster does not get ready")
	}
	return cluster
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s did not happen", what)
		}
	}
}

// call makes one request and returns its status and answer.
func call(ctx context.Context, method, url, token string, body io.Reader) (int, http.Header, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return 0, nil, nil, err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return res.StatusCode, res.Header, answer, err
}

// evil is an enrolled node that is a program of its own: its key, its certificate and
// raw streams, no shoal.
type evil struct {
	t    *testing.T
	key  *trust.Key
	host *host.Host
	cred *trust.Credential
	node meta.Node
}

func enrol(t *testing.T, server *node.Node, tenants ...string) *evil {
	t.Helper()
	key, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	h, err := host.New(host.Config{Key: key.Private(), Plane: host.Swarm, Role: meta.RoleAgent, Listen: []string{"127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	text, err := server.JoinToken(t.Context(), meta.JoinToken{
		Role: meta.RoleAgent, Region: server.Region(), Uses: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour)), Tenants: tenants,
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := trust.ParseJoinToken(text)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := join.Enter(t.Context(), "https://"+server.Gateway(), token, key, join.Request{
		Node: meta.Node{ID: key.ID(), Role: meta.RoleAgent, Swarm: h.Advertised(), Gateway: "127.0.0.1:1", Seal: key.Recipient()}, Hosts: []string{"127.0.0.1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	root, err := trust.ParseRoot(reply.Root)
	if err != nil {
		t.Fatal(err)
	}
	cred, err := trust.NewCredential(key, root, reply.Chain)
	if err != nil {
		t.Fatal(err)
	}
	return &evil{t: t, key: key, host: h, cred: cred, node: reply.Node}
}

// meet tells the evil one whom there is, once they know it.
func (e *evil) meet(nodes ...*node.Node) {
	e.t.Helper()
	roster := []meta.Node{e.node}
	for _, n := range nodes {
		await(e.t, "the roster", func() bool { _, ok := n.SwarmHost().Node(e.node.ID); return ok })
		known, _ := n.SwarmHost().Node(n.ID())
		if known.ID == "" {
			known = meta.Node{ID: n.ID(), Role: n.Role(), Region: n.Region(), Swarm: n.SwarmHost().Advertised()}
		}
		roster = append(roster, known)
	}
	e.host.SetRoster(roster)
}

func (e *evil) stream(to *node.Node, id protocol.ID) (network.Stream, error) {
	p, err := peer.Decode(string(to.ID()))
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(e.t.Context(), patience)
	defer cancel()
	s, err := e.host.NewStream(ctx, p, id)
	if err == nil {
		_ = s.SetDeadline(time.Now().Add(patience))
	}
	return s, err
}

// asks is a request to a registrar, answer what of its reply matters here.
type asks struct {
	Root     digest.CID `cbor:"1,keyasint,omitempty"`
	Have     uint64     `cbor:"2,keyasint,omitempty"`
	Complete bool       `cbor:"3,keyasint,omitempty"`
	HasMap   bool       `cbor:"5,keyasint,omitempty"`
	Look     bool       `cbor:"6,keyasint,omitempty"`
}

type answer struct {
	Error  *meta.WireError `cbor:"1,keyasint,omitempty"`
	Map    []byte          `cbor:"3,keyasint,omitempty"`
	Inline []byte          `cbor:"4,keyasint,omitempty"`
	Grant  []byte          `cbor:"5,keyasint,omitempty"`
	Peers  []codecRaw      `cbor:"7,keyasint,omitempty"`
}

// codecRaw is any value.
type codecRaw map[int]any

// registrar asks a server's registrar for a root.
func (e *evil) registrar(server *node.Node, root digest.CID, look bool) answer {
	e.t.Helper()
	s, err := e.stream(server, dht.RegistrarProtocol(server.Cluster()))
	if err != nil {
		e.t.Fatal(err)
	}
	defer s.Reset()
	if err := codec.WriteMessage(s, asks{Root: root, Look: look}); err != nil {
		e.t.Fatal(err)
	}
	var a answer
	if err := codec.ReadMessage(bufio.NewReader(s), &a); err != nil {
		e.t.Fatal(err)
	}
	return a
}

// control opens a control stream and says hello.
func (e *evil) control(to *node.Node) (network.Stream, *bufio.Reader) {
	e.t.Helper()
	s, err := e.stream(to, protocol.ID(wire.ControlProtocol(to.Cluster())))
	if err != nil {
		e.t.Fatal(err)
	}
	hello := wire.Message{Hello: &wire.Hello{Version: wire.Version, Seq: uint64(time.Now().UnixNano()), Region: e.node.Region}}
	if err := wire.Write(s, hello); err != nil {
		e.t.Fatal(err)
	}
	r := bufio.NewReader(s)
	if m, err := wire.Read(r); err != nil || m.Hello == nil {
		e.t.Fatalf("no hello: %+v %v", m, err)
	}
	return s, r
}

// joins tries to become a member and returns what it is told: joined, or why not.
func (e *evil) joins(to *node.Node, root digest.CID, grant []byte) string {
	e.t.Helper()
	s, r := e.control(to)
	defer s.Reset()
	if err := wire.Write(s, wire.Message{Join: &wire.Join{Root: root, Channel: 7, Grant: grant}}); err != nil {
		return "ended"
	}
	for {
		m, err := wire.Read(r)
		switch {
		case err != nil:
			return "ended"
		case m.Join != nil:
			return "joined"
		case m.Leave != nil:
			return m.Leave.Reason
		case m.Busy != nil:
			return "busy"
		}
	}
}

// An enrolled node that is hostile: whatever it tries is refused and counted, it learns
// nothing of another tenant, and the honest nodes go on. In the end it is removed.
func TestHostileNode(t *testing.T) {
	cluster := begin(t, 2)
	nodes := cluster.Nodes()
	server, agents := nodes[0], nodes[1:]
	put := func(path string, size int) []byte {
		content := make([]byte, size)
		_, _ = rand.Read(content)
		status, _, text, err := call(t.Context(), http.MethodPut, "http://"+server.Gateway()+path, "", bytes.NewReader(content))
		if err != nil || status != http.StatusCreated {
			t.Fatalf("PUT %s: %d %s %v", path, status, text, err)
		}
		return content
	}
	root := func(ref meta.RepoRef, content []byte) digest.CID {
		a, _, err := raftmeta.Ask(t.Context(), server.Metadata(), meta.Strong, state.GetBlob{Repo: ref, Digest: digest.FromBytes(content)})
		if err != nil {
			t.Fatal(err)
		}
		return a.Blob.Root
	}
	const size = 2 << 20
	mine := root(meta.RepoRef{Tenant: "acme", Name: "files"}, put("/generic/acme/files/mine.bin", size))
	secret := put("/generic/globex/files/secret.bin", size)
	theirs := root(meta.RepoRef{Tenant: "globex", Name: "files"}, secret)
	small := root(meta.RepoRef{Tenant: "globex", Name: "files"}, put("/generic/globex/files/small.bin", 100))
	absent := digest.Sum([]byte("nothing has this root"))

	e, other := enrol(t, server, "acme"), enrol(t, server, "acme")
	e.meet(nodes...)
	other.meet(nodes...)

	// The honest ones read all the while; each time something new, so that it moves.
	ctx, stop := context.WithCancel(t.Context())
	var reads, failed atomic.Int64
	var honest sync.WaitGroup
	for i, n := range nodes {
		honest.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				path := fmt.Sprintf("/generic/globex/files/%d-%d.bin", i, k)
				content := fmt.Appendf(nil, "%d %d", i, k)
				content = bytes.Repeat(content, 20<<10)
				status, _, _, err := call(ctx, http.MethodPut, "http://"+n.Gateway()+path, "", bytes.NewReader(content))
				var got []byte
				if err == nil && status == http.StatusCreated {
					status, _, got, err = call(ctx, http.MethodGet, "http://"+nodes[(i+1)%len(nodes)].Gateway()+path, "", nil)
				}
				switch {
				case ctx.Err() != nil:
				case err != nil || status != http.StatusOK || !bytes.Equal(got, content):
					failed.Add(1)
					t.Errorf("an honest node: %d %v", status, err)
					return
				default:
					reads.Add(1)
				}
			}
		})
	}
	defer honest.Wait()
	defer stop()

	counted := func(n *node.Node, metric, label string, do func()) {
		t.Helper()
		before := n.Counted(metric, label)
		do()
		await(t, metric+" "+label, func() bool { return n.Counted(metric, label) > before })
	}

	// Another tenant's roots: no grant, map, content or peer, and the words of an absent one.
	good := e.registrar(server, mine, true)
	if good.Error != nil || len(good.Grant) == 0 {
		t.Fatalf("its own tenant's: %+v", good.Error)
	}
	for _, look := range []bool{true, false} {
		for _, r := range []digest.CID{theirs, small} {
			counted(server, "shoal_grants_refused_total", "", func() {
				a, none := e.registrar(server, r, look), e.registrar(server, absent, look)
				if a.Error == nil || none.Error == nil || a.Error.Kind != none.Error.Kind || len(a.Error.Error()) != len(none.Error.Error()) {
					t.Errorf("another tenant's root says %v, an absent one %v", a.Error, none.Error)
				}
				if len(a.Grant)+len(a.Map)+len(a.Inline)+len(a.Peers) > 0 {
					t.Errorf("another tenant's root brings %d bytes of grant, %d of map, %d of content, %d peers", len(a.Grant), len(a.Map), len(a.Inline), len(a.Peers))
				}
			})
		}
	}

	// Grants that are none, at a server and at an agent.
	now := time.Now()
	sign := func(change func(*trust.Grant)) []byte {
		g := trust.Grant{Peer: e.node.ID, Context: "acme", Root: mine, Expires: meta.TimeOf(now.Add(trust.GrantLife))}
		change(&g)
		b, err := server.SignGrant(g)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	own, err := e.key.SignGrant(server.Cluster(), trust.Grant{Peer: e.node.ID, Context: "acme", Root: mine, Expires: meta.TimeOf(now.Add(trust.GrantLife))})
	if err != nil {
		t.Fatal(err)
	}
	replayed := other.registrar(server, mine, true).Grant
	if len(replayed) == 0 {
		t.Fatal("the other one gets no grant")
	}
	for _, to := range []*node.Node{server, agents[0]} {
		for _, try := range []struct {
			reason string
			root   digest.CID
			grant  []byte
		}{
			{trust.GrantMissing, mine, nil},
			{trust.GrantMissing, theirs, nil},
			{trust.GrantMalformed, mine, []byte("let me in")},
			{trust.GrantRoot, theirs, good.Grant},
			{trust.GrantPeer, mine, replayed},
			{trust.GrantExpired, mine, sign(func(g *trust.Grant) { g.Expires = meta.TimeOf(now.Add(-time.Hour)) })},
			{trust.GrantAhead, mine, sign(func(g *trust.Grant) { g.Expires = meta.TimeOf(now.Add(time.Hour)) })},
			{trust.GrantIssuer, mine, own},
			{trust.GrantForged, mine, forged(good.Grant)},
			// Even one that a server did sign: the roster of the peer that is asked counts.
			{trust.GrantTenant, theirs, sign(func(g *trust.Grant) { g.Context, g.Root = "globex", theirs })},
		} {
			counted(to, "shoal_swarm_refused_total", try.reason, func() {
				if got := e.joins(to, try.root, try.grant); got != "unknown" {
					t.Errorf("%s at a %s: %s", try.reason, to.Role(), got)
				}
			})
		}
		if to == server {
			if got := e.joins(to, mine, good.Grant); got != "joined" {
				t.Errorf("with its grant: %s", got)
			}
		}

		// Frames that are none.
		for where, bytes := range map[string][]byte{
			"frame":   binary.AppendUvarint(nil, 2<<20),                                   // over the limit
			"frame ":  append(binary.AppendUvarint(nil, 5), 0xff, 0xff, 0xff, 0xff, 0xff), // no CBOR
			"message": nil,                                                                // a second hello
		} {
			label := where[:min(len(where), len("message"))]
			if label == "frame " {
				label = "frame"
			}
			counted(to, "shoal_swarm_broken_total", label, func() {
				s, r := e.control(to)
				defer s.Reset()
				if bytes == nil {
					_ = wire.Write(s, wire.Message{Hello: &wire.Hello{Version: wire.Version, Seq: 1}})
				} else {
					_, _ = s.Write(bytes)
				}
				for {
					if _, err := wire.Read(r); err != nil {
						return // the link ended
					}
				}
			})
		}
		// A chunk that nobody asked for, beside a link that stands.
		s, r := e.control(to)
		if data, err := e.stream(to, protocol.ID(wire.ChunkProtocol(to.Cluster()))); err == nil {
			_, _ = data.Write(bytes.Repeat([]byte{0xEE}, 1<<16))
			if _, err := io.ReadFull(data, make([]byte, 1)); err == nil {
				t.Error("a chunk that nobody asked for was answered")
			}
			_ = data.Reset()
		}
		// A flood of requests for what it may not have.
		for range 2000 {
			var guess digest.CID
			_, _ = rand.Read(guess[:])
			if wire.Write(s, wire.Message{Join: &wire.Join{Root: guess, Channel: 1}}) != nil {
				break
			}
		}
		for range 100 {
			if m, err := wire.Read(r); err != nil || m.Join != nil {
				break
			}
		}
		_ = s.Reset()
		// A provider record, of what it has not: the DHT of the region knows no narrowed node.
		counted(to, "shoal_dht_refused_total", "", func() {
			s, err := e.stream(to, dht.Prefix(to.Cluster(), to.Region())+"/kad/1.0.0")
			if err != nil {
				return
			}
			defer s.Reset()
			_, _ = s.Write([]byte{2, 8, 2}) // an ADD_PROVIDER of nothing
			if _, err := io.ReadFull(s, make([]byte, 1)); err == nil {
				t.Error("the DHT answers")
			}
		})
	}
	// Streams without end at the registrar.
	var open []network.Stream
	for range 64 {
		if s, err := e.stream(server, dht.RegistrarProtocol(server.Cluster())); err == nil {
			_ = codec.WriteMessage(s, asks{Root: theirs})
			open = append(open, s)
		}
	}
	await(t, "the registrar's limit", func() bool { return server.Counted("shoal_registrar_requests_total", "refused_stream") > 0 })
	for _, s := range open {
		_ = s.Reset()
	}
	await(t, "an oversized request to be refused", func() bool { // once the streams before are gone
		if s, err := e.stream(server, dht.RegistrarProtocol(server.Cluster())); err == nil {
			_, _ = s.Write(binary.AppendUvarint(nil, 1<<20))
			_, _ = io.ReadFull(s, make([]byte, 1))
			_ = s.Reset()
		}
		return server.Counted("shoal_registrar_requests_total", "malformed") > 0
	})

	// It is removed: what it has open ends on all planes.
	s, r := e.control(server)
	defer s.Reset()
	near, nearReader := e.control(agents[0])
	defer near.Reset()
	ended := make(chan string, 3)
	began := make(chan struct{})
	client := remote.NewClient(remote.Config{
		HTTP:    &http.Client{Transport: &http.Transport{TLSClientConfig: trust.ClientTLS(e.cred), ForceAttemptHTTP2: true}},
		Servers: func() []string { return []string{"https://" + server.Gateway()} },
	})
	var ends sync.WaitGroup
	ends.Go(func() {
		once := sync.OnceFunc(func() { close(began) })
		for _, err := range client.Watch(t.Context(), 0) {
			if err != nil {
				break
			}
			once()
		}
		ended <- "metadata of a server"
	})
	for where, stream := range map[string]*bufio.Reader{"swarm of a server": r, "swarm of an agent": nearReader} {
		ends.Go(func() {
			for {
				if _, err := wire.Read(stream); err != nil {
					ended <- where
					return
				}
			}
		})
	}
	<-began
	removed := time.Now()
	if _, err := server.Do(t.Context(), state.RemoveNode{ID: e.node.ID}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		select {
		case where := <-ended:
			t.Logf("removed: %s ended after %v (bound 5 s)", where, time.Since(removed).Round(time.Millisecond))
		case <-time.After(patience):
			t.Fatal("something that the removed node has open goes on")
		}
	}
	ends.Wait()
	for _, n := range nodes {
		await(t, "connections to end", func() bool { return len(n.SwarmHost().Network().ConnsToPeer(e.host.ID())) == 0 })
		if s, err := e.stream(n, protocol.ID(wire.ControlProtocol(n.Cluster()))); err == nil {
			if _, err := io.ReadFull(s, make([]byte, 1)); err == nil {
				t.Errorf("a removed node speaks with a %s", n.Role())
			}
		}
	}
	if _, _, err := raftmeta.Ask(t.Context(), client, meta.Bounded, state.ListNodes{}); err == nil || !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("a removed node asks the metadata: %v", err)
	}
	before := reads.Load()
	await(t, "honest reads to go on", func() bool { return reads.Load() > before+3 || failed.Load() > 0 })
	stop()
	honest.Wait()
	t.Logf("honest nodes: %d pushes and pulls meanwhile, %d failed", reads.Load(), failed.Load())
}

// forged is a grant with another byte in its signature.
func forged(grant []byte) []byte {
	b := bytes.Clone(grant)
	b[len(b)-1] ^= 1
	return b
}
