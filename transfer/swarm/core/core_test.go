package core_test

import (
	"slices"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/transfer/swarm/core"
)

// host drives one Core by hand.
type host struct {
	t *testing.T
	*core.Core
	now time.Duration
}

func newTestHost(t *testing.T, cfg core.Config, have ...int) *host {
	if cfg.Chunks == nil {
		cfg.Chunks = lengths(40 * 256 << 10)
	}
	set := core.NewBits(len(cfg.Chunks))
	for _, i := range have {
		set.Set(i)
	}
	return &host{t: t, Core: core.New(cfg, set)}
}

func (h *host) step(ev core.Event) []core.Effect {
	return slices.Clone(h.Core.Step(h.now, ev))
}

// lengths cuts total bytes as the product does.
func lengths(total int64) []uint32 {
	var out []uint32
	for off := int64(0); off < total; {
		l := int64(256 << 10)
		switch n := len(out); {
		case n >= 1024:
			l = 4 << 20
		case n >= 768:
			l = 2 << 20
		case n >= 512:
			l = 1 << 20
		case n >= 256:
			l = 512 << 10
		}
		l = min(l, total-off)
		out = append(out, uint32(l))
		off += l
	}
	return out
}

// only returns the effects of a kind.
func only(effects []core.Effect, kind core.EffectKind) []core.Effect {
	return slices.DeleteFunc(slices.Clone(effects), func(e core.Effect) bool { return e.Kind != kind })
}

func set(n int, chunks ...int) core.Bits {
	b := core.NewBits(n)
	for _, i := range chunks {
		b.Set(i)
	}
	return b
}

func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func TestTheSeedSendsEachChunkOnceBeforeAnyTwice(t *testing.T) {
	h := newTestHost(t, core.Config{Server: true, Slots: 1}, upTo(40)...)
	for p := range core.Peer(8) {
		h.step(core.Event{Kind: core.PeerUp, Peer: p})
	}
	var order []int
	for i := range 40 {
		p := core.Peer(i % 8)
		served := only(h.step(core.Event{Kind: core.Pulled, Peer: p, Request: core.Request(i + 1)}), core.Serve)
		if len(served) != 1 {
			t.Fatalf("pull %d: %+v", i, served)
		}
		order = append(order, served[0].Chunk)
		h.step(core.Event{Kind: core.Sent, Peer: p, Request: core.Request(i + 1), OK: true})
	}
	if !slices.Equal(order, upTo(40)) {
		t.Errorf("the seed sent %v", order)
	}
}

func TestTheSeedKeepsASlotForTheLeastCoveredZone(t *testing.T) {
	const chunks, peers, small = 80, 17, core.Peer(16)
	h := newTestHost(t, core.Config{Chunks: lengths(chunks * 256 << 10), Server: true, Slots: 4}, upTo(chunks)...)
	type answer struct {
		peer    core.Peer
		request core.Request
	}
	var sending []answer
	sent, last := map[core.Peer]int{}, core.Request(0)
	took := func(effects []core.Effect) {
		for _, e := range only(effects, core.Serve) {
			sending = append(sending, answer{e.Peer, e.Request})
			sent[e.Peer]++
		}
	}
	pull := func(p core.Peer) {
		last++
		took(h.step(core.Event{Kind: core.Pulled, Peer: p, Request: last}))
	}
	for p := range core.Peer(peers) { // all of one zone, but for one
		zone := uint32(1)
		if p == small {
			zone = 2
		}
		h.step(core.Event{Kind: core.PeerUp, Peer: p, Near: 2, Zone: zone})
	}
	for p := range core.Peer(peers) {
		pull(p)
	}
	for len(sending) > 0 {
		done := sending[0]
		sending = sending[1:]
		took(h.step(core.Event{Kind: core.Sent, Peer: done.peer, Request: done.request, OK: true}))
		pull(done.peer)
	}
	total := 0
	for _, n := range sent {
		total += n
	}
	if total != chunks {
		t.Fatalf("%d of %d chunks were sent", total, chunks)
	}
	// In turn it would be 80/17. It pulls one at a time, and a send takes four turns.
	if n := sent[small]; n < 12 || n > 20 {
		t.Errorf("the small zone was sent %d of %d chunks", n, chunks)
	}
}

func TestThePullersReaderAndClassDecideAmongEquals(t *testing.T) {
	h := newTestHost(t, core.Config{Server: true}, upTo(40)...)
	h.step(core.Event{Kind: core.PeerUp, Peer: 1})
	served := only(h.step(core.Event{Kind: core.Pulled, Peer: 1, Request: 1, From: 30}), core.Serve)
	if served[0].Chunk != 30 {
		t.Errorf("served %d to a reader at 30", served[0].Chunk)
	}
	served = only(h.step(core.Event{Kind: core.Pulled, Peer: 1, Request: 2, From: 30, Class: 1, Classes: 4}), core.Serve)
	if served[0].Chunk != 33 {
		t.Errorf("served %d of class 1 of 4 to a reader at 30", served[0].Chunk)
	}
}

func TestARelayKeepsAPullUntilItHasAChunk(t *testing.T) {
	h := newTestHost(t, core.Config{Server: true})
	h.step(core.Event{Kind: core.PeerUp, Peer: 1})
	if e := h.step(core.Event{Kind: core.Pulled, Peer: 1, Request: 1}); len(e) != 0 {
		t.Fatalf("an empty relay answers %+v", e)
	}
	e := h.step(core.Event{Kind: core.Arrived, Peer: 9, Chunk: 17})
	if served := only(e, core.Serve); len(served) != 1 || served[0].Chunk != 17 {
		t.Errorf("after the chunk came: %+v", e)
	}
}

func TestACompletePullerIsRefused(t *testing.T) {
	h := newTestHost(t, core.Config{Server: true}, upTo(40)...)
	h.step(core.Event{Kind: core.PeerUp, Peer: 1, Have: set(40, upTo(40)...)})
	e := h.step(core.Event{Kind: core.Pulled, Peer: 1, Request: 1})
	if len(only(e, core.Busy)) != 1 {
		t.Errorf("a puller without a need gets %+v", e)
	}
}

func TestTwoBadChunksEndAPeer(t *testing.T) {
	h := newTestHost(t, core.Config{})
	h.step(core.Event{Kind: core.ReaderAt})
	wants := only(h.step(core.Event{Kind: core.PeerUp, Peer: 1, Have: set(40, upTo(40)...)}), core.Want)
	if len(wants) == 0 {
		t.Fatal("nothing is asked of the peer")
	}
	again := only(h.step(core.Event{Kind: core.Corrupt, Peer: 1, Request: wants[0].Request, Chunk: wants[0].Chunk}), core.Want)
	e := h.step(core.Event{Kind: core.Corrupt, Peer: 1, Request: again[0].Request, Chunk: again[0].Chunk})
	if len(only(e, core.Ban)) != 1 {
		t.Fatalf("after two bad chunks: %+v", e)
	}
	if e := h.step(core.Event{Kind: core.PeerUp, Peer: 1, Have: set(40, upTo(40)...)}); len(only(e, core.Ban)) != 1 {
		t.Errorf("it comes back: %+v", e)
	}
}

func TestALateAnswerIsAskedOfAnotherAndTheLoserCancelled(t *testing.T) {
	h := newTestHost(t, core.Config{TailChunks: 1})
	h.step(core.Event{Kind: core.ReaderAt, From: 0, To: 3})
	all := set(40, upTo(40)...)
	wants := only(h.step(core.Event{Kind: core.PeerUp, Peer: 1, Have: all}), core.Want)
	late := wants[0]
	h.step(core.Event{Kind: core.PeerUp, Peer: 2, Have: all})
	var hedges []core.Effect
	for len(hedges) == 0 && h.now < 3*time.Second {
		at, ok := h.Next()
		if !ok {
			t.Fatal("no tick is wanted while a request is out")
		}
		h.now = at
		for _, p := range []core.Peer{2, 1} { // both live
			hedges = append(hedges, only(h.step(core.Event{Kind: core.PeerHas, Peer: p}), core.Want)...)
		}
	}
	i := slices.IndexFunc(hedges, func(e core.Effect) bool { return e.Chunk == late.Chunk && e.Peer == 2 && e.Hedge })
	if i < 0 {
		t.Fatalf("after the timeout: %+v", hedges)
	}
	e := h.step(core.Event{Kind: core.Arrived, Peer: 2, Request: hedges[i].Request, Chunk: late.Chunk})
	cancels := only(e, core.Cancel)
	if len(cancels) != 1 || cancels[0].Peer != 1 || cancels[0].Request != late.Request {
		t.Errorf("the slower request: %+v", cancels)
	}
}

func TestARequestThatNobodyAnswersIsMadeAgain(t *testing.T) {
	h := newTestHost(t, core.Config{})
	h.step(core.Event{Kind: core.ReaderAt, To: 1})
	wants := only(h.step(core.Event{Kind: core.PeerUp, Peer: 1, Have: set(40, 0)}), core.Want)
	if len(wants) != 1 {
		t.Fatalf("asked %+v", wants)
	}
	cancelled := false
	for h.now < 6*time.Second {
		at, ok := h.Next()
		if !ok {
			t.Fatal("no tick is wanted while a chunk is missing")
		}
		h.now = at
		effects := h.step(core.Event{Kind: core.Tick})
		for _, e := range only(effects, core.Cancel) {
			cancelled = cancelled || e.Request == wants[0].Request
		}
		if len(only(effects, core.Want)) > 0 {
			if !cancelled {
				t.Error("the first request is not cancelled")
			}
			return
		}
	}
	t.Error("the only peer is not asked again")
}

func TestAFullQueueAnswersBusyWithReferrals(t *testing.T) {
	h := newTestHost(t, core.Config{Slots: 1, Queue: 1, QueuePerPeer: 1}, upTo(40)...)
	h.step(core.Event{Kind: core.PeerUp, Peer: 1})
	h.step(core.Event{Kind: core.PeerUp, Peer: 2, Have: set(40, 5)})
	h.step(core.Event{Kind: core.Asked, Peer: 1, Request: 1, Chunk: 3})
	h.step(core.Event{Kind: core.Asked, Peer: 1, Request: 2, Chunk: 4})
	busy := only(h.step(core.Event{Kind: core.Asked, Peer: 1, Request: 3, Chunk: 5}), core.Busy)
	if len(busy) != 1 || busy[0].After <= 0 || !slices.Equal(busy[0].Peers, []core.Peer{2}) {
		t.Errorf("the answer is %+v", busy)
	}
}

func TestACancelledRequestIsNotServed(t *testing.T) {
	h := newTestHost(t, core.Config{Slots: 1}, upTo(40)...)
	h.step(core.Event{Kind: core.PeerUp, Peer: 1})
	h.step(core.Event{Kind: core.Asked, Peer: 1, Request: 1, Chunk: 3})
	h.step(core.Event{Kind: core.Asked, Peer: 1, Request: 2, Chunk: 4})
	h.step(core.Event{Kind: core.Cancelled, Peer: 1, Request: 2})
	if stop := only(h.step(core.Event{Kind: core.Cancelled, Peer: 1, Request: 1}), core.Stop); len(stop) != 1 {
		t.Errorf("what is being sent: %+v", stop)
	}
	if e := only(h.step(core.Event{Kind: core.Sent, Peer: 1, Request: 1}), core.Serve); len(e) != 0 {
		t.Errorf("a cancelled request is served: %+v", e)
	}
}

func TestARangeIsFetchedAndNoMore(t *testing.T) {
	h := newTestHost(t, core.Config{})
	h.step(core.Event{Kind: core.PeerUp, Peer: 1, Have: set(40, upTo(40)...)})
	pending := only(h.step(core.Event{Kind: core.ReaderAt, Reader: 1, From: 20, To: 23}), core.Want)
	got := map[int]bool{}
	for len(pending) > 0 {
		e := pending[0]
		got[e.Chunk] = true
		effects := h.step(core.Event{Kind: core.Arrived, Peer: 1, Request: e.Request, Chunk: e.Chunk})
		pending = append(pending[1:], only(effects, core.Want)...)
	}
	if len(got) != 3 || !got[20] || !got[21] || !got[22] || h.Missing() != 0 {
		t.Errorf("fetched %v, %d missing", got, h.Missing())
	}
}

func TestALostChunkIsFetchedAgain(t *testing.T) {
	h := newTestHost(t, core.Config{}, upTo(40)...)
	h.step(core.Event{Kind: core.ReaderAt})
	h.step(core.Event{Kind: core.PeerUp, Peer: 1, Have: set(40, upTo(40)...)})
	wants := only(h.step(core.Event{Kind: core.Lost, Chunk: 12}), core.Want)
	if len(wants) == 0 || wants[0].Chunk != 12 {
		t.Errorf("after the loss: %+v", wants)
	}
}

// FuzzStep throws events in any order at a Core: it must not panic, ask for what is
// here or serve what is not.
func FuzzStep(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	f.Fuzz(func(t *testing.T, script []byte) {
		server := len(script) > 0 && script[0]&1 != 0
		h := newTestHost(t, core.Config{Server: server, Chunks: []uint32{10, 10, 10, 10, 10}, Queue: 3, QueuePerPeer: 2, Members: 4, Degree: 2})
		next := func() int {
			if len(script) == 0 {
				return 0
			}
			b := script[0]
			script = script[1:]
			return int(b)
		}
		for len(script) > 0 {
			h.now += time.Duration(next()) * time.Millisecond
			ev := core.Event{
				Kind: core.EventKind(next() % 20), Peer: core.Peer(next() % 5), Request: core.Request(next() % 8),
				Chunk: next()%7 - 1, Chunks: []uint32{uint32(next() % 6)}, Server: next()%3 == 0, OK: next()%2 == 0,
				Near: uint8(next() % 4), Key: uint64(next()), Load: next(), Serving: next() % 3, Fetching: next() % 3,
				From: next() % 6, To: next() % 6, Class: next() % 2, Classes: next() % 3, After: time.Duration(next()) * time.Millisecond,
				Have: core.Bits{uint64(next())},
			}
			for _, e := range h.step(ev) {
				switch e.Kind {
				case core.Want:
					if h.Has(e.Chunk) {
						t.Fatalf("asks for chunk %d that is here", e.Chunk)
					}
				case core.Serve:
					if !h.Has(e.Chunk) {
						t.Fatalf("serves chunk %d that is not here", e.Chunk)
					}
				}
			}
			if h.Missing() < 0 {
				t.Fatal("less than nothing is missing")
			}
		}
	})
}

// BenchmarkStep is the cost of a decision: a chunk arrives at a member with 24
// peers, is announced, and the next is asked for.
func BenchmarkStep(b *testing.B) {
	const n = 2064 // 5 GiB
	chunks := make([]uint32, n)
	for i := range chunks {
		chunks[i] = 1 << 20
	}
	var c *core.Core
	var pending []core.Effect
	fresh := func() {
		c = core.New(core.Config{Chunks: chunks, Seed: 1}, core.NewBits(n))
		pending = pending[:0]
		keep := func(effects []core.Effect) {
			for _, e := range effects {
				if e.Kind == core.Want {
					pending = append(pending, e)
				}
			}
		}
		keep(c.Step(0, core.Event{Kind: core.ReaderAt}))
		for p := range core.Peer(24) {
			keep(c.Step(0, core.Event{Kind: core.PeerUp, Peer: p, Have: set(n, upTo(n)...)}))
		}
	}
	fresh()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if len(pending) == 0 {
			b.StopTimer()
			fresh()
			b.StartTimer()
		}
		e := pending[0]
		pending = pending[1:]
		for _, e := range c.Step(time.Duration(i)*time.Millisecond, core.Event{Kind: core.Arrived, Peer: e.Peer, Request: e.Request, Chunk: e.Chunk}) {
			if e.Kind == core.Want {
				pending = append(pending, e)
			}
		}
	}
}
