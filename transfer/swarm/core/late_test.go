package core_test

import (
	"testing"
	"time"

	"github.com/shoal-registry/shoal/transfer/swarm/core"
)

// Peer 1 has it all and lives, but is slow with what it was asked for; peer 2 has just
// that and is faster. What only peer 1 has must be asked of it again.
func TestAPeerWhoseLateAnswersOthersBroughtIsAskedAgain(t *testing.T) {
	const chunks = 8
	h := newTestHost(t, core.Config{Chunks: lengths(chunks * 256 << 10)})
	h.step(core.Event{Kind: core.PeerUp, Peer: 1, Have: set(chunks, upTo(chunks)...)})
	open := map[core.Request]core.Effect{}
	took := func(effects []core.Effect) {
		for _, e := range effects {
			switch e.Kind {
			case core.Want:
				open[e.Request] = e
			case core.Cancel:
				delete(open, e.Request)
			}
		}
	}
	took(h.step(core.Event{Kind: core.ReaderAt, Reader: 1}))
	var others []int
	for _, e := range open {
		others = append(others, e.Chunk)
	}
	if len(others) == 0 || len(others) == chunks {
		t.Fatalf("peer 1 is asked for %v", others)
	}
	took(h.step(core.Event{Kind: core.PeerUp, Peer: 2, Have: set(chunks, others...)}))
	for h.now < 3*time.Second { // it is heard, and not with a chunk
		h.now += 100 * time.Millisecond
		took(h.step(core.Event{Kind: core.PeerHas, Peer: 1}))
		took(h.step(core.Event{Kind: core.Tick}))
		for _, e := range open {
			if e.Peer == 2 {
				delete(open, e.Request)
				took(h.step(core.Event{Kind: core.Arrived, Peer: 2, Request: e.Request, Chunk: e.Chunk}))
			}
		}
	}
	for h.now < time.Minute {
		at, ok := h.Next()
		if !ok {
			break
		}
		h.now = at
		took(h.step(core.Event{Kind: core.Tick}))
		for _, e := range open {
			delete(open, e.Request)
			took(h.step(core.Event{Kind: core.Arrived, Peer: e.Peer, Request: e.Request, Chunk: e.Chunk}))
		}
		if h.Complete() {
			return
		}
	}
	t.Errorf("%d of %d chunks are missing at %v, and peer 1, which has them, is not asked", h.Missing(), chunks, h.now)
}

// A chunk that was given to a peer is wanted by another before it could have it from that
// one: it waits, and nothing else happens that would make the server look.
func TestAWantThatIsTooEarlyHasATime(t *testing.T) {
	const chunks = 20
	h := newTestHost(t, core.Config{Server: true, Chunks: lengths(chunks * 256 << 10), SmallBytes: 1}, upTo(chunks)...)
	h.step(core.Event{Kind: core.PeerUp, Peer: 1})
	h.step(core.Event{Kind: core.PeerUp, Peer: 2})
	last := 0
	for i := range chunks { // quickly, so that the server knows how long it takes
		served := only(h.step(core.Event{Kind: core.Pulled, Peer: 1, Request: core.Request(i + 1)}), core.Serve)
		last = served[0].Chunk
		h.now += time.Millisecond
		h.step(core.Event{Kind: core.Sent, Peer: 1, Request: core.Request(i + 1), Chunk: last, OK: true})
	}
	effects := h.step(core.Event{Kind: core.Asked, Peer: 2, Request: 1, Chunk: last})
	if len(only(effects, core.Serve)) > 0 {
		t.Fatal("it is sent at once")
	}
	for range 10 {
		if len(only(effects, core.Serve)) > 0 {
			return
		}
		at, ok := h.Next()
		if !ok {
			break
		}
		h.now = at
		effects = h.step(core.Event{Kind: core.Tick})
	}
	t.Errorf("a want waits, and nothing wakes the server")
}
