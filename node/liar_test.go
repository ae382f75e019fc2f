package node_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/shoal-registry/shoal/dht"
	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/wire"
	"github.com/shoal-registry/shoal/verify/digest"
)

// liar makes the evil one a member like others: it says that it has all of a blob, and
// answers each request in form, with noise.
type liar struct {
	*evil
	cluster string
	sent    atomic.Int64 // chunks

	mu    sync.Mutex
	roots map[digest.CID]lie
}

type lie struct {
	grant []byte
	chunk *chunk.Map
}

func (e *evil) lies(server *node.Node) *liar {
	l := &liar{evil: e, cluster: server.Cluster(), roots: map[digest.CID]lie{}}
	e.host.SetStreamHandler(protocol.ID(wire.ControlProtocol(l.cluster)), func(s network.Stream) {
		defer s.Reset()
		l.speak(s)
	})
	return l
}

// claims tells the registrar that it has all of a root.
func (l *liar) claims(server *node.Node, root digest.CID) {
	l.t.Helper()
	s, err := l.stream(server, dht.RegistrarProtocol(l.cluster))
	if err != nil {
		l.t.Fatal(err)
	}
	defer s.Reset()
	r := bufio.NewReader(s)
	ask := func(request asks) (a answer) {
		l.t.Helper()
		if err := codec.WriteMessage(s, request); err != nil {
			l.t.Fatal(err)
		}
		if err := codec.ReadMessage(r, &a); err != nil || a.Error != nil {
			l.t.Fatalf("the registrar says %v %v", a.Error, err)
		}
		return a
	}
	a := ask(asks{Root: root})
	m, err := chunk.Decode(a.Map)
	if err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	l.roots[root] = lie{a.Grant, m}
	l.mu.Unlock()
	ask(asks{Root: root, Have: uint64(m.Len()), Complete: true, HasMap: true})
}

// speak answers one peer until its link ends.
func (l *liar) speak(s network.Stream) {
	var writes sync.Mutex
	tell := func(m wire.Message) {
		writes.Lock()
		defer writes.Unlock()
		_ = wire.Write(s, m) // the read below sees that the link has ended
	}
	tell(wire.Message{Hello: &wire.Hello{Version: wire.Version, Seq: uint64(time.Now().UnixNano()), Region: l.node.Region}})
	var mine uint32
	channels, theirs := map[uint32]lie{}, map[uint32]uint32{}
	r := bufio.NewReader(s)
	for {
		m, err := wire.Read(r)
		if err != nil {
			return
		}
		switch {
		case m.Join != nil:
			l.mu.Lock()
			lie, ok := l.roots[m.Join.Root]
			l.mu.Unlock()
			if !ok {
				tell(wire.Message{Leave: &wire.Leave{Channel: m.Join.Channel, Reason: "unknown"}})
				continue
			}
			mine++
			channels[mine], theirs[mine] = lie, m.Join.Channel
			have := chunk.NewBitmap(lie.chunk.Len())
			for i := range have.Len() {
				have.Set(i)
			}
			tell(wire.Message{Join: &wire.Join{Root: m.Join.Root, Channel: mine, Answer: true, Grant: lie.grant, Have: have.Bytes(), HasMap: true}})
		case m.Ping != nil && !m.Ping.Answer:
			tell(wire.Message{Ping: &wire.Ping{Nonce: m.Ping.Nonce, Answer: true}})
		case m.Want != nil:
			lie, ok := channels[m.Want.Channel]
			if !ok {
				continue
			}
			for _, item := range m.Want.Items {
				h := wire.Header{Channel: theirs[m.Want.Channel], Request: item.Request, Chunk: item.Chunk, Credit: m.Want.Credit}
				h.Bytes = uint32(lie.chunk.StoredOffset(int(item.Chunk)+1) - lie.chunk.StoredOffset(int(item.Chunk)))
				l.send(s.Conn().RemotePeer(), h)
			}
		}
	}
}

// send sends noise as a chunk, as slowly as it is let.
func (l *liar) send(to peer.ID, h wire.Header) {
	s, err := l.host.NewStream(l.t.Context(), to, protocol.ID(wire.ChunkProtocol(l.cluster)))
	if err != nil {
		return
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(patience))
	var head [wire.HeaderBytes]byte
	h.Put(&head)
	if _, err := s.Write(head[:]); err != nil {
		return
	}
	noise := make([]byte, h.Bytes)
	_, _ = rand.Read(noise)
	for len(noise) > 0 {
		n := len(noise)
		if h.Credit {
			var credit [wire.CreditBytes]byte
			if _, err := io.ReadFull(s, credit[:]); err != nil {
				return
			}
			n = min(n, int(binary.BigEndian.Uint32(credit[:])))
		}
		if _, err := s.Write(noise[:n]); err != nil {
			return
		}
		noise = noise[n:]
	}
	l.sent.Add(1)
}

// Wrong bytes for chunks that an honest agent asks for: found, dropped and counted, the
// transfer ends with the right bytes, and who sends them is told of. Then a flood, each
// of which counts.
func TestHostileNodeSendsWrongBytes(t *testing.T) {
	cluster := begin(t, 1)
	server, agent := cluster.Nodes()[0], cluster.Nodes()[1]
	e := enrol(t, server, "acme")
	l := e.lies(server)
	e.meet(server, agent)

	const corrupt = "shoal_swarm_chunks_received_total"
	fetched := 0
	// Whom the agent asks for what is its choice: until it has asked the liar.
	for deadline := time.Now().Add(patience); agent.Counted(corrupt, "corrupt") == 0; fetched++ {
		if time.Now().After(deadline) {
			t.Fatalf("in %d transfers the agent took nothing of the liar, which sent %d chunks", fetched, l.sent.Load())
		}
		content := make([]byte, 16<<20)
		_, _ = rand.Read(content)
		path := fmt.Sprintf("/generic/acme/files/%d.bin", fetched)
		status, _, text, err := call(t.Context(), http.MethodPut, "http://"+server.Gateway()+path, "", bytes.NewReader(content))
		if err != nil || status != http.StatusCreated {
			t.Fatalf("PUT %s: %d %s %v", path, status, text, err)
		}
		a, _, err := raftmeta.Ask(t.Context(), server.Metadata(), meta.Strong, state.GetBlob{Repo: meta.RepoRef{Tenant: "acme", Name: "files"}, Digest: digest.FromBytes(content)})
		if err != nil {
			t.Fatal(err)
		}
		l.claims(server, a.Blob.Root)
		status, _, got, err := call(t.Context(), http.MethodGet, "http://"+agent.Gateway()+path, "", nil)
		if err != nil || status != http.StatusOK || !bytes.Equal(got, content) {
			t.Fatalf("the transfer beside a liar: %d, %d bytes, %v", status, len(got), err)
		}
	}
	t.Logf("%d transfers, all whole; %d wrong chunks were sent, %.0f found", fetched, l.sent.Load(), agent.Counted(corrupt, "corrupt"))

	// A flood of joins without a right: each is counted, and the agent serves on.
	const flood = 500
	const refused = "shoal_swarm_refused_total"
	before := server.Counted(refused, "missing")
	s, r := e.control(server)
	defer s.Reset()
	go func() { // ends with the stream
		for {
			if _, err := wire.Read(r); err != nil {
				return
			}
		}
	}()
	for range flood {
		var guess digest.CID
		_, _ = rand.Read(guess[:])
		if err := wire.Write(s, wire.Message{Join: &wire.Join{Root: guess, Channel: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "each of the flood to be counted", func() bool { return server.Counted(refused, "missing") >= before+flood })
	if status, _, _, err := call(t.Context(), http.MethodGet, "http://"+agent.Gateway()+"/generic/acme/files/0.bin", "", nil); err != nil || status != http.StatusOK {
		t.Errorf("after the flood: %d %v", status, err)
	}
}
