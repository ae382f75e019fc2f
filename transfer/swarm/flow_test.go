package swarm

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/shoal-registry/shoal/transfer/limit"
)

// resetOnly is a stream that can only be reset.
type resetOnly struct {
	network.Stream
	resets int
}

func (r *resetOnly) Reset() error {
	r.resets++
	return nil
}

// ticks moves perTick bytes before each of n ticks and returns after how many the
// flow is to end, 0 when it lives.
func ticks(f *flow, n int, perTick int64) int {
	for i := range n {
		f.moved.Add(perTick)
		if !f.tick() {
			return i + 1
		}
	}
	return 0
}

func TestAFlowThatStandsStillEnds(t *testing.T) {
	room, full, less := newMemory(10), newMemory(10), newMemory(10)
	full.waiting.Store(1)
	less.waitingLess.Store(1)
	for _, c := range []struct {
		name         string
		memory       *memory
		busy, paused bool
		perTick      int64
		ends         int // after so many seconds
	}{
		{"idle", nil, false, false, 0, int(streamIdle / watchTick)},
		{"stuck in a chunk", room, true, false, 0, int(progress / watchTick)},
		{"stuck while it throws away", nil, true, false, 0, int(progress / watchTick)},
		{"waiting for its own node", room, true, true, 0, 0},
		{"slow, and memory is there", room, true, false, 1, 0},
		{"slow, and others wait for memory", full, true, false, slowBytes - 1, slowFor},
		{"slow and urgent, and less urgent ones wait for memory", less, true, false, 1, 0},
		{"fast enough, and others wait for memory", full, true, false, slowBytes, 0},
		{"held back by its own node while others wait for memory", full, true, true, 1, 0},
	} {
		f := &flow{idle: streamIdle}
		f.holding.Store(c.memory)
		f.busy.Store(c.busy)
		f.paused.Store(c.paused)
		if got := ticks(f, 200, c.perTick); got != c.ends {
			t.Errorf("%s: ends after %d s instead of %d", c.name, got, c.ends)
		}
	}
	f := &flow{}
	f.holding.Store(less)
	f.less.Store(true)
	f.busy.Store(true)
	if got := ticks(f, 200, 1); got != slowFor {
		t.Errorf("slow, and others of its class wait for memory: ends after %d s", got)
	}
	if got := ticks(&flow{}, 200, 0); got != 0 {
		t.Errorf("one that may rest for ever ends after %d s", got)
	}
}

func TestAFlowMayBeginAfterALongIdleTime(t *testing.T) {
	f := &flow{idle: streamIdle}
	if got := ticks(f, int(streamIdle/watchTick)-1, 0); got != 0 {
		t.Fatalf("an idle stream ended after %d s", got)
	}
	f.busy.Store(true)
	if got := ticks(f, 1, 20); got != 0 {
		t.Error("a stream ended when a chunk began")
	}
	if got := ticks(f, 100, 0); got != int(progress/watchTick) {
		t.Errorf("it stands still for %d s", got)
	}
}

func TestMemoryIsScarceWhileSomebodyWaits(t *testing.T) {
	m := newMemory(10)
	slow, waiting := &flow{}, &flow{}
	if err := m.take(t.Context(), slow, limit.Urgent, 10); err != nil || m.scarce(slow) {
		t.Fatalf("the first to come: %v, scarce %v", err, m.scarce(slow))
	}
	got := make(chan error, 1)
	go func() { got <- m.take(context.Background(), waiting, limit.Urgent, 5) }()
	for !m.scarce(slow) {
		time.Sleep(time.Millisecond)
	}
	m.drop(slow, 10)
	if err := <-got; err != nil || m.scarce(slow) || waiting.holding.Load() != m || slow.holding.Load() != nil {
		t.Errorf("after the memory came back: %v, scarce %v", err, m.scarce(slow))
	}
}

func TestFlowsEndWithTheirLinkAndTheSwarm(t *testing.T) {
	fs := &flows{all: map[*flow]struct{}{}}
	a, b := &link{}, &link{}
	one, two := &resetOnly{}, &resetOnly{}
	fa, fb := fs.begin(a, one, 0), fs.begin(b, two, 0)
	fs.endOf(a)
	fs.endOf(a)
	<-fa.ended
	if one.resets != 1 || two.resets != 0 {
		t.Errorf("resets %d and %d", one.resets, two.resets)
	}
	fs.finish(fa)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	fs.watch(ctx)
	<-fb.ended
	fs.finish(fb)
	late := &resetOnly{}
	<-fs.begin(a, late, 0).ended
	if two.resets != 1 || late.resets != 1 || len(fs.all) != 0 {
		t.Errorf("resets %d and %d, %d flows are left", two.resets, late.resets, len(fs.all))
	}
}

// stub is a stream on a connection that takes so many bytes of each write.
type stub struct {
	network.Stream
	conn  network.Conn
	takes int
}

func (s *stub) Conn() network.Conn { return s.conn }

func (s *stub) Write(p []byte) (int, error) {
	if len(p) > s.takes {
		return s.takes, io.ErrClosedPipe
	}
	return len(p), nil
}

type conn struct {
	network.Conn
	_ int // so that two have two addresses
}

// stuck is the outlet of a connection on which nothing goes out.
type stuck struct{}

func (stuck) Written() int64              { return 0 }
func (stuck) Reach(int64) <-chan struct{} { return nil }

func TestPiecesWaitForWhatIsOnTheirConnectionOnly(t *testing.T) {
	own, other := &conn{}, &conn{}
	l := &link{outlet: stuck{}, conn: own, turn: make(chan struct{}, 1)}
	put := func(st *stub) error {
		t.Helper()
		f := &flow{link: l, st: st, ended: make(chan struct{})}
		ended := time.AfterFunc(30*time.Second, func() { close(f.ended) })
		defer ended.Stop()
		return f.put(make([]byte, minPiece))
	}
	// What a stream refuses never goes out: it is not waited for.
	for range 8 {
		if err := put(&stub{conn: own}); !errors.Is(err, io.ErrClosedPipe) {
			t.Fatalf("a stream that was reset: %v", err)
		}
	}
	if err := put(&stub{conn: own, takes: minPiece}); err != nil {
		t.Errorf("after writes that failed: %v", err)
	}
	// The peer may be connected twice.
	for range 8 {
		if err := put(&stub{conn: other, takes: minPiece}); err != nil {
			t.Errorf("on another connection: %v", err)
		}
	}
	if l.given != minPiece {
		t.Errorf("%d bytes are thought to be on the way instead of %d", l.given, minPiece)
	}
}
