package swarm_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/swarm"
	"github.com/shoal-registry/shoal/transfer/wire"
	"github.com/shoal-registry/shoal/verify/digest"
)

func want(t *testing.T, n *node, root digest.CID, content []byte) {
	t.Helper()
	got, err := n.fetch(within(t), root)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("got %d of %d bytes, %v", len(got), len(content), err)
	}
}

func TestAFetchBringsTheBlob(t *testing.T) {
	w := newTown(t)
	seed, agent := w.add(server), w.add()
	for _, size := range []int{0, 1, 256 << 10, 3<<20 + 17} {
		content := random(size)
		root := w.put(seed, content)
		want(t, agent, root, content)
		blob, err := agent.store.Open(within(t), root)
		if err != nil || !blob.Complete() {
			t.Errorf("%d bytes: the store's blob: %v", size, err)
		}
	}
}

func TestAgentsTradeAmongThemselves(t *testing.T) {
	w := newTown(t)
	content := random(16 << 20)
	seed := w.add(server)
	root := w.put(seed, content)
	var agents []*node
	for range 6 {
		agents = append(agents, w.add())
	}
	var wg sync.WaitGroup
	for _, a := range agents {
		wg.Go(func() { want(t, a, root, content) })
	}
	wg.Wait()
	copies := float64(seed.bytes("sent", "")) / float64(len(content))
	t.Logf("the seed sent %.2f copies to %d agents", copies, len(agents))
	if copies > 5 {
		t.Errorf("the seed sent %.2f copies: the agents did not trade", copies)
	}
}

// gate is a store whose reads or writes of chunks wait or lie.
type gate struct {
	store.Store
	read  func(i int, b []byte) ([]byte, error)
	write func(i int)
}

type gated struct {
	store.Blob
	g *gate
}

func (g *gate) Open(ctx context.Context, root digest.CID) (store.Blob, error) {
	b, err := g.Store.Open(ctx, root)
	if err != nil {
		return nil, err
	}
	return gated{b, g}, nil
}

func (g *gate) Create(ctx context.Context, m *chunk.Map) (store.Blob, error) {
	b, err := g.Store.Create(ctx, m)
	if err != nil {
		return nil, err
	}
	return gated{b, g}, nil
}

func (b gated) ReadChunk(ctx context.Context, i int, dst []byte) ([]byte, error) {
	got, err := b.Blob.ReadChunk(ctx, i, dst)
	if err != nil || b.g.read == nil {
		return got, err
	}
	return b.g.read(i, got)
}

func (b gated) WriteChunk(ctx context.Context, i int, p []byte) error {
	if b.g.write != nil {
		b.g.write(i)
	}
	return b.Blob.WriteChunk(ctx, i, p)
}

func TestAReaderStreamsWhileTheRestIsOnItsWay(t *testing.T) {
	w := newTown(t)
	open := make(chan struct{})
	const held = 12 // the server does not send these and later chunks yet
	g := &gate{Store: store.NewMemory(), read: func(i int, b []byte) ([]byte, error) {
		if i >= held {
			<-open
		}
		return b, nil
	}}
	seed := w.add(server, holding(g))
	content := random(20 * chunk.MinBytes)
	root := w.put(seed, content)
	agent := w.add()
	session, err := agent.Fetch(within(t), root, swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	got, err := read(within(t), session, 0, held)
	if err != nil || !bytes.Equal(got, content[:held*chunk.MinBytes]) {
		t.Fatalf("the first chunks: %d bytes, %v", len(got), err)
	}
	select {
	case <-session.Done():
		t.Fatal("the fetch is done although the server holds chunks back")
	default:
	}
	close(open)
	session.Prefer(held, -1)
	<-session.Done()
	if err := session.Err(); err != nil {
		t.Fatal(err)
	}
}

func TestAnIncompleteServerRelays(t *testing.T) {
	w := newTown(t)
	open := make(chan struct{})
	const held = 6
	g := &gate{Store: store.NewMemory(), read: func(i int, b []byte) ([]byte, error) {
		if i >= held {
			<-open
		}
		return b, nil
	}}
	origin := w.add(server, region("us"), holding(g))
	content := random(12 * chunk.MinBytes)
	root := w.put(origin, content)
	relay := w.add(server)
	hold, err := relay.Fetch(within(t), root, swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	if err := hold.Wait(within(t), 0); err != nil {
		t.Fatal(err)
	}
	// The agents are of the relay's region: they do not know the origin.
	var agents sync.WaitGroup
	early := make(chan struct{}, 3)
	var list []*node
	for range 3 {
		a := w.add()
		list = append(list, a)
		agents.Go(func() {
			session, err := a.Fetch(within(t), root, swarm.FetchOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			defer session.Close()
			if _, err := read(within(t), session, 0, held-4); err != nil {
				t.Error(err)
			}
			early <- struct{}{}
			if got, err := read(within(t), session, 0, -1); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	for range 3 {
		<-early // all have chunks of a blob that the relay has only a part of
	}
	close(open)
	agents.Wait()
	// What it held back for long may have been asked for twice, a few chunks at a time.
	if sent := origin.bytes("sent", ""); sent > int64(len(content))*3/2 {
		t.Errorf("the origin sent %d bytes of a blob of %d", sent, len(content))
	}
	for _, a := range list {
		if n := a.bytes("received", "server"); n == 0 {
			t.Log("an agent got all from agents")
		}
	}
}

func TestAPeerThatSendsWrongBytesReachesNobody(t *testing.T) {
	w := newTown(t)
	content := random(40 * chunk.MinBytes)
	g := &gate{Store: store.NewMemory(), read: func(i int, b []byte) ([]byte, error) {
		bad := bytes.Clone(b)
		bad[len(bad)/2] ^= 1
		return bad, nil
	}}
	liar := w.add(holding(g))
	caught := make(chan struct{}) // the seed alone would be done before the liar has said a word
	seed := w.add(server, holding(&gate{Store: store.NewMemory(), read: func(_ int, b []byte) ([]byte, error) {
		<-caught
		return b, nil
	}}))
	root := w.put(liar, content)
	w.put(seed, content)
	// The liar serves only while somebody fetches: hold it present.
	a, b := w.add(), w.add()
	var wg sync.WaitGroup
	for _, n := range []*node{a, b} {
		wg.Go(func() { want(t, n, root, content) })
	}
	bans := func() float64 { return a.counter("shoal_swarm_bans_total") + b.counter("shoal_swarm_bans_total") }
	func() {
		defer close(caught)
		await(t, "somebody has banned the liar", func() bool { return bans() > 0 })
	}()
	wg.Wait()
	for _, n := range []*node{a, b} {
		if bad := n.counter("shoal_swarm_bans_total"); bad > 1 {
			t.Errorf("%v peers were banned", bad)
		}
		// Nothing more comes from a banned peer.
		if got := n.bytes("received", "agent"); got > int64(len(content))+4*chunk.MinBytes {
			t.Errorf("%d bytes came from agents", got)
		}
	}
}

func TestAPeerKilledMidChunkIsReplaced(t *testing.T) {
	w := newTown(t)
	content := random(24 * chunk.MinBytes)
	reached := make(chan struct{})
	var once sync.Once
	block := make(chan struct{})
	g := &gate{Store: store.NewMemory(), read: func(i int, b []byte) ([]byte, error) {
		if i >= 4 {
			once.Do(func() { close(reached) })
			<-block
		}
		return b, nil
	}}
	first := w.add(server, holding(g))
	root := w.put(first, content)
	agent := w.add()
	done := make(chan struct{})
	go func() {
		defer close(done)
		want(t, agent, root, content)
	}()
	<-reached
	second := w.add(server)
	w.put(second, content)
	w.leave(root, first)
	close(block)
	first.kill()
	<-done
}

func TestAFrozenPeerStopsNobody(t *testing.T) {
	w := newTown(t)
	content := random(24 * chunk.MinBytes)
	block := make(chan struct{})
	g := &gate{Store: store.NewMemory(), read: func(i int, b []byte) ([]byte, error) {
		if i >= 2 {
			<-block
		}
		return b, nil
	}}
	frozen, healthy := w.add(holding(g)), w.add()
	root := w.put(frozen, content)
	w.put(healthy, content)
	agent := w.add()
	want(t, agent, root, content) // while the frozen one still holds its answers back
	close(block)
}

func TestRangesOfAnArrivingBlob(t *testing.T) {
	w := newTown(t)
	content := random(32 * chunk.MinBytes)
	seed := w.add(server)
	root := w.put(seed, content)
	agent := w.add()
	w.mu.Lock() // nothing comes before it is said what is wanted: until then that is all
	session, err := agent.Fetch(within(t), root, swarm.FetchOptions{})
	if err == nil {
		defer session.Close()
		session.Prefer(28, 30)
	}
	w.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	got, err := read(within(t), session, 28, 30)
	if err != nil || !bytes.Equal(got, content[28*chunk.MinBytes:30*chunk.MinBytes]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	blob, _ := session.Blob(within(t))
	if n := blob.Have().Count(); n > 8 {
		t.Errorf("%d chunks came, 2 were wanted", n)
	}
	if err := session.Wait(within(t), 3); err != nil {
		t.Fatal(err)
	}
}

func TestAHundredSessionsShareOneFetch(t *testing.T) {
	w := newTown(t)
	content := random(24 * chunk.MinBytes)
	seed := w.add(server)
	root := w.put(seed, content)
	agent := w.add()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			session, err := agent.Fetch(within(t), root, swarm.FetchOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			defer session.Close()
			from := i % 24
			got, err := read(within(t), session, from, -1)
			if err != nil || !bytes.Equal(got, content[from*chunk.MinBytes:]) {
				t.Errorf("from %d: %d bytes, %v", from, len(got), err)
			}
		})
	}
	wg.Wait()
	if sent := seed.bytes("sent", ""); sent > int64(len(content))*115/100 {
		t.Errorf("%d bytes were sent for one copy of %d", sent, len(content))
	}
}

func TestInlineContentNeedsNoPeer(t *testing.T) {
	w := newTown(t)
	content := random(10 << 10)
	m := mapOf(t, content)
	w.maps[m.Root()], w.inline[m.Root()] = m.Encode(), content
	want(t, w.add(), m.Root(), content)
}

func TestWrongInlineContentIsNotTaken(t *testing.T) {
	w := newTown(t)
	content := random(10 << 10)
	seed := w.add(server)
	root := w.put(seed, content)
	w.inline[root] = random(10 << 10)
	want(t, w.add(), root, content)
}

func TestTheMapComesFromAPeer(t *testing.T) {
	w := newTown(t)
	content := random(5 * chunk.MinBytes)
	seed := w.add(server)
	root := w.put(seed, content)
	delete(w.maps, root)
	agent := w.add()
	encoded, err := agent.Map(within(t), root)
	if err != nil || digest.Sum(encoded) != root {
		t.Fatalf("%d bytes, %v", len(encoded), err)
	}
	want(t, agent, root, content)
}

// Maps that are asked of one peer all at once come all at once: none is left to be asked
// for again.
func TestManyMapsComeFromOnePeer(t *testing.T) {
	w := newTown(t)
	seed := w.add(server)
	var roots []digest.CID
	for range 200 {
		root := w.put(seed, random(1<<10))
		delete(w.maps, root)
		roots = append(roots, root)
	}
	agent := w.add()
	var group errgroup.Group
	for _, root := range roots {
		group.Go(func() error {
			encoded, err := agent.Map(within(t), root)
			if err == nil && digest.Sum(encoded) != root {
				err = errors.New("it is another map")
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestAWrongMapFromTheFinderIsNotTaken(t *testing.T) {
	w := newTown(t)
	content := random(5 * chunk.MinBytes)
	seed := w.add(server)
	root := w.put(seed, content)
	w.maps[root] = mapOf(t, random(1000)).Encode()
	session, err := w.add().Fetch(within(t), root, swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	// The map then comes from the seed, which vouches by the root.
	if m, err := session.Map(within(t)); err != nil || m.Root() != root {
		t.Fatal(err)
	}
}

func TestAPartialBlobResumes(t *testing.T) {
	w := newTown(t)
	content := random(20 * chunk.MinBytes)
	seed := w.add(server)
	root := w.put(seed, content)
	disk := store.NewMemory()
	m := mapOf(t, content)
	blob, err := disk.Create(within(t), m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 15 {
		if err := blob.WriteChunk(within(t), i, content[i*chunk.MinBytes:(i+1)*chunk.MinBytes]); err != nil {
			t.Fatal(err)
		}
	}
	agent := w.add(holding(disk))
	want(t, agent, root, content)
	if got := agent.bytes("received", ""); got > 6*chunk.MinBytes {
		t.Errorf("%d bytes came, 5 chunks were missing", got)
	}
}

func TestAServerThatGetsTheBlobLaterServesItThen(t *testing.T) {
	w := newTown(t)
	content := random(3 * chunk.MinBytes)
	lacking := w.add(server)
	m := mapOf(t, content)
	root := m.Root()
	w.maps[root] = m.Encode()
	w.join(root, lacking.self)
	agent := w.add()
	session, err := agent.Fetch(within(t), root, swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	await(t, "the server has refused", func() bool {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return strings.Contains(session.Wait(ctx, 0).Error(), "absent")
	})
	w.put(lacking, content)
	if got, err := read(within(t), session, 0, -1); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestWhatTheStoreLostIsFetchedAgain(t *testing.T) {
	w := newTown(t)
	content := random(3 * chunk.MinBytes)
	seed := w.add(server)
	root := w.put(seed, content)
	memory := store.NewMemory()
	agent := w.add(holding(memory))
	want(t, agent, root, content)
	// Its membership lingers and believes to have all.
	memory.Damage(root, 1)
	blob, err := memory.Open(within(t), root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blob.ReadChunk(within(t), 1, nil); !errors.Is(err, meta.ErrCorrupt) {
		t.Fatalf("the damaged chunk: %v", err)
	}
	want(t, agent, root, content)
	if err := memory.Remove(within(t), root); err != nil {
		t.Fatal(err)
	}
	want(t, agent, root, content)
}

// A bucket or a disk fails for a moment, or the blob is made whole again: the server has
// what it could not read, and there is nobody else to ask.
func TestAChunkThatCanBeReadAgainIsServed(t *testing.T) {
	for name, failure := range map[string]error{
		"bucket":  &meta.UnavailableError{Reason: "bucket", RetryAfter: time.Second},
		"damaged": meta.ErrCorrupt,
	} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			var failed sync.Map
			from := w.add(server, limits(swarm.Limits{IdleAfter: time.Hour}), holding(&gate{Store: store.NewMemory(), read: func(i int, b []byte) ([]byte, error) {
				if _, again := failed.LoadOrStore(i, true); !again {
					return nil, failure
				}
				return b, nil
			}}))
			content := random(2 << 20)
			root := w.put(from, content)
			want(t, w.add(), root, content)
		})
	}
}

func TestAFetchWithoutPeersSaysWhy(t *testing.T) {
	w := newTown(t)
	m := mapOf(t, random(1000))
	w.maps[m.Root()] = m.Encode()
	agent := w.add()
	session, err := agent.Fetch(within(t), m.Root(), swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	await(t, "the finder was asked twice", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return agent.joins > 1
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err = session.Wait(ctx, 0)
	if !errors.Is(err, meta.ErrUnavailable) || !errors.Is(err, context.Canceled) || !bytes.Contains([]byte(err.Error()), []byte("no peer")) {
		t.Errorf("the error is %v", err)
	}
}

func TestARefusedFetchFails(t *testing.T) {
	w := newTown(t)
	agent := w.add()
	for _, kind := range []error{meta.ErrDenied, meta.ErrNotFound} {
		w.mu.Lock()
		w.refuse = kind
		w.mu.Unlock()
		session, err := agent.Fetch(within(t), digest.Sum(random(8)), swarm.FetchOptions{})
		if err != nil {
			t.Fatal(err)
		}
		<-session.Done()
		if err := session.Wait(within(t), 0); !errors.Is(err, kind) || !errors.Is(session.Err(), kind) {
			t.Errorf("%v instead of %v", err, kind)
		}
		_ = session.Close()
	}
}

func TestAFullDiskEndsTheFetchWithItsError(t *testing.T) {
	w := newTown(t)
	root := w.put(w.add(server), random(3*chunk.MinBytes))
	agent := w.add(holding(full{store.NewMemory()}))
	if _, err := agent.fetch(within(t), root); !errors.Is(err, meta.ErrNoSpace) {
		t.Errorf("the error is %v", err)
	}
}

type full struct{ store.Store }

func (full) Create(context.Context, *chunk.Map) (store.Blob, error) { return nil, meta.ErrNoSpace }

func TestWhatNobodyWantsEnds(t *testing.T) {
	w := newTown(t)
	quick := limits(swarm.Limits{IdleAfter: 50 * time.Millisecond, Linger: 50 * time.Millisecond})
	content := random(2 * chunk.MinBytes)
	seed := w.add(server, quick)
	root := w.put(seed, content)
	agent := w.add(quick)
	want(t, agent, root, content)
	for _, n := range []*node{seed, agent} {
		await(t, "the membership ends", func() bool { return n.counter("shoal_swarm_roots") == 0 })
	}
	await(t, "the finder was told", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		_, there := w.members[root][agent.self.ID]
		return !there
	})
	want(t, w.add(), root, content) // and it begins again
}

// Members that have it all and renew their grants do not keep one another for ever.
func TestWhatLingersKeepsNobody(t *testing.T) {
	w := newTown(t)
	w.expires = 600 * time.Millisecond
	quick := limits(swarm.Limits{IdleAfter: 700 * time.Millisecond, Linger: 1500 * time.Millisecond})
	content := random(2 * chunk.MinBytes)
	nodes := []*node{w.add(server, quick)}
	root := w.put(nodes[0], content)
	for range 3 {
		n := w.add(server, quick)
		want(t, n, root, content)
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		await(t, "the membership ends", func() bool { return n.counter("shoal_swarm_roots") == 0 })
	}
}

// A node that serves as much as it may lets go what lies idle there sooner.
func TestAFullTableMakesRoom(t *testing.T) {
	w := newTown(t)
	seed := w.add(server, limits(swarm.Limits{Serving: 8, IdleAfter: time.Hour, Linger: time.Hour}))
	agent := w.add()
	for range 40 {
		content := random(1 << 10)
		root := w.put(seed, content)
		want(t, agent, root, content)
	}
}

func TestAPeerTooManyIsReferred(t *testing.T) {
	w := newTown(t)
	content := random(16 * chunk.MinBytes)
	seed := w.add(server, limits(swarm.Limits{Members: 2}))
	root := w.put(seed, content)
	var wg sync.WaitGroup
	for range 5 {
		a := w.add()
		wg.Go(func() { want(t, a, root, content) })
	}
	wg.Wait()
}

func TestStopFailsWhatRuns(t *testing.T) {
	w := newTown(t)
	m := mapOf(t, random(1000))
	w.maps[m.Root()] = m.Encode()
	agent := w.add()
	session, err := agent.Fetch(within(t), m.Root(), swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	agent.kill()
	if err := session.Wait(within(t), 0); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("the error is %v", err)
	}
	_ = session.Close()
	if _, err := agent.Fetch(within(t), m.Root(), swarm.FetchOptions{}); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("a fetch after the stop: %v", err)
	}
}

// stranger is a raw speaker of the protocol, without a Swarm.
type stranger struct {
	t  *testing.T
	st network.Stream
	r  *bufio.Reader
}

func (w *town) stranger(t *testing.T, to *node) (*stranger, *node) {
	t.Helper()
	h := newHost(t)
	t.Cleanup(func() { _ = h.Close() })
	h.Peerstore().AddAddrs(to.host.ID(), to.host.Addrs(), time.Hour)
	st, err := h.NewStream(within(t), to.host.ID(), protocol.ID(wire.ControlProtocol("test")))
	if err != nil {
		t.Fatal(err)
	}
	s := &stranger{t, st, bufio.NewReader(st)}
	s.say(wire.Message{Hello: &wire.Hello{Version: 1, Seq: 1, Region: "eu"}})
	if m := s.hear(); m.Hello == nil {
		t.Fatalf("heard %+v instead of a hello", m)
	}
	return s, &node{host: h, self: swarm.Peer{ID: meta.NodeID(h.ID().String())}}
}

func (s *stranger) say(m wire.Message) {
	s.t.Helper()
	if err := wire.Write(s.st, m); err != nil {
		s.t.Fatal(err)
	}
}

// hear returns the next message that is no ping.
func (s *stranger) hear() wire.Message {
	s.t.Helper()
	for {
		_ = s.st.SetReadDeadline(time.Now().Add(patience))
		m, err := wire.Read(s.r)
		if err != nil {
			s.t.Fatal(err)
		}
		if m.Ping == nil {
			return m
		}
	}
}

func TestWithoutAGrantNothingIsToldOrSent(t *testing.T) {
	w := newTown(t)
	seed := w.add(server)
	root := w.put(seed, random(4*chunk.MinBytes))
	want(t, w.add(), root, mustRead(t, seed, root)) // there are members to tell of
	s, me := w.stranger(t, seed)
	chunks := make(chan struct{}, 1)
	me.host.SetStreamHandler(protocol.ID(wire.ChunkProtocol("test")), func(network.Stream) { chunks <- struct{}{} })

	expired, _ := w.grant(me.self.ID, root)
	other, _ := w.grant(seed.self.ID, root)
	for name, grant := range map[string][]byte{"none": nil, "garbage": []byte("x"), "another peer's": other} {
		s.say(wire.Message{Join: &wire.Join{Root: root, Channel: 1, Grant: grant}})
		present := s.hear()
		s.say(wire.Message{Join: &wire.Join{Root: digest.Sum(random(8)), Channel: 1, Grant: grant}})
		absent := s.hear()
		if present.Leave == nil || absent.Leave == nil || *present.Leave != *absent.Leave {
			t.Errorf("grant %s: present %+v, absent %+v", name, present.Leave, absent.Leave)
		}
	}
	// It guesses the channel and asks all the same.
	for channel := uint32(1); channel < 4; channel++ {
		s.say(wire.Message{Want: &wire.Want{Channel: channel, Items: []wire.WantItem{{Request: 1}}}})
		s.say(wire.Message{Pull: &wire.Pull{Channel: channel, Request: 2}})
		s.say(wire.Message{MapAsk: &wire.MapAsk{Channel: channel}})
	}
	// With its grant it is served: so the silence before was a refusal.
	s.say(wire.Message{Join: &wire.Join{Root: root, Channel: 9, Grant: expired}})
	m := s.hear()
	if m.Join == nil || len(m.Join.Have) == 0 {
		t.Fatalf("with a grant: %+v", m)
	}
	select {
	case <-chunks:
		t.Fatal("a chunk came without a grant")
	default:
	}
	s.say(wire.Message{Want: &wire.Want{Channel: m.Join.Channel, Items: []wire.WantItem{{Request: 1}}}})
	<-chunks
}

func TestAnExpiredGrantEndsTheService(t *testing.T) {
	w := newTown(t)
	seed := w.add(server)
	root := w.put(seed, random(4*chunk.MinBytes))
	s, me := w.stranger(t, seed)
	w.expires = 1200 * time.Millisecond
	grant, until := w.grant(me.self.ID, root)
	s.say(wire.Message{Join: &wire.Join{Root: root, Channel: 9, Grant: grant}})
	m := s.hear()
	if m.Join == nil {
		t.Fatalf("heard %+v", m)
	}
	await(t, "the grant has expired for a second", func() bool { return time.Since(until) > time.Second })
	s.say(wire.Message{Want: &wire.Want{Channel: m.Join.Channel, Items: []wire.WantItem{{Request: 1}}}})
	for m = s.hear(); m.Leave == nil; m = s.hear() {
		if m.Pex == nil {
			t.Fatalf("heard %+v instead of a leave", m)
		}
	}
	if m.Leave.Channel != 9 {
		t.Errorf("the leave is %+v", m.Leave)
	}
}

// Whose right has ended hears of no more peers and no more chunks, also when it asks
// for nothing and is not looked at for that.
func TestWithAnExpiredGrantNothingIsTold(t *testing.T) {
	w := newTown(t)
	step := make(chan struct{})
	g := &gate{Store: store.NewMemory(), read: func(i int, b []byte) ([]byte, error) { <-step; return b, nil }}
	seed := w.add(server, holding(g))
	content := random(4 * chunk.MinBytes)
	root := w.put(seed, content)
	agent := w.add()
	session, err := agent.Fetch(within(t), root, swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if _, err := session.Blob(within(t)); err != nil {
		t.Fatal(err)
	}
	s, me := w.stranger(t, agent)
	until := time.Now().Add(1200 * time.Millisecond)
	grant := fmt.Appendf(nil, "%s %s %d", me.self.ID, root.Hex(), until.UnixNano())
	s.say(wire.Message{Join: &wire.Join{Root: root, Channel: 9, Grant: grant}})
	m := s.hear()
	for m.Join == nil {
		m = s.hear()
	}
	hear := func(until time.Time) (heard []wire.Message) {
		_ = s.st.SetReadDeadline(until)
		for {
			m, err := wire.Read(s.r)
			if err != nil {
				return heard
			}
			if m.Ping == nil {
				heard = append(heard, m)
			}
		}
	}
	hear(until.Add(time.Second)) // what it may know
	close(step)
	<-session.Done()
	want(t, w.add(), root, content)
	// Chunks are told of at once, peers every few seconds.
	if heard := hear(time.Now().Add(6 * time.Second)); len(heard) > 0 {
		t.Errorf("heard %+v", heard)
	}
}

func TestGrantsAreRenewedOnTheStream(t *testing.T) {
	w := newTown(t)
	w.expires = 1500 * time.Millisecond
	content := random(8 * chunk.MinBytes)
	step := make(chan struct{})
	g := &gate{Store: store.NewMemory(), read: func(i int, b []byte) ([]byte, error) { <-step; return b, nil }}
	seed := w.add(server, holding(g))
	root := w.put(seed, content)
	agent := w.add()
	session, err := agent.Fetch(within(t), root, swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	began := time.Now()
	step <- struct{}{}
	await(t, "the first grant is over", func() bool { return time.Since(began) > 2*w.expires })
	close(step)
	if got, err := read(within(t), session, 0, -1); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n := seed.counter("shoal_swarm_refused_total"); n > 0 {
		t.Errorf("the agent was refused %v times", n)
	}
}

func TestWhatWasNotAskedForEndsTheLink(t *testing.T) {
	w := newTown(t)
	m := mapOf(t, random(1000))
	w.maps[m.Root()] = m.Encode()
	agent := w.add()
	session, err := agent.Fetch(within(t), m.Root(), swarm.FetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	s, me := w.stranger(t, agent)
	grant, _ := w.grant(me.self.ID, m.Root())
	if _, err := session.Blob(within(t)); err != nil {
		t.Fatal(err)
	}
	s.say(wire.Message{Join: &wire.Join{Root: m.Root(), Channel: 1, Grant: grant}})
	j := s.hear()
	st, err := me.host.NewStream(within(t), agent.host.ID(), protocol.ID(wire.ChunkProtocol("test")))
	if err != nil {
		t.Fatal(err)
	}
	var head [wire.HeaderBytes]byte
	wire.Header{Channel: j.Join.Channel, Request: 77, Bytes: 1000}.Put(&head)
	if _, err := st.Write(head[:]); err != nil {
		t.Fatal(err)
	}
	_ = s.st.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, s.st); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the link goes on: %v", err)
	}
}

func mustRead(t *testing.T, n *node, root digest.CID) []byte {
	t.Helper()
	blob, err := n.store.Open(within(t), root)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	var out []byte
	for i := range blob.Map().Len() {
		b, err := blob.ReadChunk(within(t), i, nil)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}
