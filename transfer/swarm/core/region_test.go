package core_test

import (
	"slices"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/transfer/swarm/core"
)

// The servers of a region in these tests: the one that is driven, and others by key.
const (
	ownKey  = 11
	nextKey = 22
	origin  = core.Peer(1)
	beside  = core.Peer(2)
	abroad  = core.Peer(3)
)

// region returns a server that fetches, with a complete server beyond.
func region(t *testing.T) *host {
	h := newTestHost(t, core.Config{Server: true, Key: ownKey, Depth: 40, DepthMax: 64, Outstanding: 64})
	h.step(core.Event{Kind: core.ReaderAt})
	return h
}

func (h *host) up(p core.Peer, key uint64, near uint8, have ...int) []core.Effect {
	return h.step(core.Event{Kind: core.PeerUp, Peer: p, Server: true, Key: key, Near: near, RTT: 50 * time.Millisecond, Have: set(40, have...)})
}

func TestAServerAloneFetchesAllFromBeyond(t *testing.T) {
	h := region(t)
	pulls := only(h.up(origin, 99, 3, upTo(40)...), core.Pull)
	if len(pulls) == 0 {
		t.Fatal("a server pulls nothing from the origin")
	}
	for _, e := range pulls {
		if len(e.Owners) > 0 {
			t.Errorf("alone in its region it names owners: %+v", e)
		}
	}
}

// TestServersOfARegionShareItsFetch: each chunk has one owner, and both servers and
// the origin agree who.
func TestServersOfARegionShareItsFetch(t *testing.T) {
	owned := func(mine, other uint64) []int {
		h := newTestHost(t, core.Config{Server: true, Key: mine, Depth: 40, DepthMax: 64, Outstanding: 64})
		h.step(core.Event{Kind: core.ReaderAt})
		h.up(beside, other, 1)
		pulls := only(h.up(origin, 99, 3, upTo(40)...), core.Pull)
		if len(pulls) == 0 || len(pulls[0].Owners) != 2 || pulls[0].Owners[0] != mine {
			t.Fatalf("server %d pulls %+v", mine, pulls)
		}
		seed := newTestHost(t, core.Config{Server: true, Slots: 64}, upTo(40)...)
		seed.step(core.Event{Kind: core.PeerUp, Peer: 5, Server: true, Key: mine, Near: 3})
		var out []int
		for i := range 40 {
			for _, e := range only(seed.step(core.Event{Kind: core.Pulled, Peer: 5, Request: core.Request(i + 1), Owners: pulls[0].Owners}), core.Serve) {
				out = append(out, e.Chunk)
			}
		}
		if len(out) != len(pulls) {
			t.Errorf("server %d pulls %d chunks, the origin finds %d for it", mine, len(pulls), len(out))
		}
		return out
	}
	first, second := owned(ownKey, nextKey), owned(nextKey, ownKey)
	both := append(slices.Clone(first), second...)
	slices.Sort(both)
	if !slices.Equal(both, upTo(40)) {
		t.Errorf("%v and %v are not each chunk once", first, second)
	}
	if len(first) < 10 || len(second) < 10 {
		t.Errorf("the shares are %d and %d", len(first), len(second))
	}
}

// asked returns the chunks that effects ask of p by WANT.
func asked(effects []core.Effect, p core.Peer) []int {
	var out []int
	for _, e := range only(effects, core.Want) {
		if e.Peer == p {
			out = append(out, e.Chunk)
		}
	}
	return out
}

func TestWhatAnotherOwnsIsTakenFromIt(t *testing.T) {
	h := region(t)
	h.up(beside, nextKey, 1)
	h.up(abroad, 33, 3, upTo(40)[:39]...) // fetching itself: no seed
	var mine []int
	for range 100 {
		h.now += 10 * time.Millisecond
		mine = append(mine, asked(h.step(core.Event{Kind: core.Tick}), abroad)...)
	}
	e := h.step(core.Event{Kind: core.PeerHas, Peer: beside, Chunks: []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}})
	theirs := asked(e, beside)
	if len(theirs) == 0 {
		t.Errorf("nothing is asked of the server next door: %+v", e)
	}
	for _, i := range theirs {
		if slices.Contains(mine, i) {
			t.Errorf("chunk %d is asked for at home and beyond", i)
		}
	}
}

func TestASilentOwnerIsReplaced(t *testing.T) {
	h := region(t)
	h.up(beside, nextKey, 1)
	first := only(h.up(origin, 99, 3, upTo(40)...), core.Pull)
	h.now = 1900 * time.Millisecond
	e := h.step(core.Event{Kind: core.Tick})
	wants := len(asked(e, origin)) // its reader waits
	if e := only(e, core.Pull); len(e) > 0 {
		t.Errorf("after 1.9 s it takes over: %+v", e)
	}
	h.now = 2100 * time.Millisecond
	e = h.step(core.Event{Kind: core.Tick})
	more := only(e, core.Pull)
	if wants += len(asked(e, origin)); len(more) < 15 || len(first)+len(more)+wants < 40 {
		t.Fatalf("after 2.1 s it pulls %d chunks and asks for %d, and %d before", len(more), wants, len(first))
	}
	for _, e := range more {
		if len(e.Owners) > 1 {
			t.Errorf("the silent server still counts: %+v", e)
		}
	}
}

func TestADeadOwnerIsReplacedAtOnce(t *testing.T) {
	h := region(t)
	h.up(beside, nextKey, 1)
	first := only(h.up(origin, 99, 3, upTo(40)...), core.Pull)
	more := only(h.step(core.Event{Kind: core.PeerDown, Peer: beside}), core.Pull)
	if len(first)+len(more) != 40 {
		t.Errorf("it pulls %d chunks, and %d after the other's end", len(first), len(more))
	}
}

// TestAServerThatWasMissedOwnsNothing: one that is only known may be about to join, and has its
// share; not when it was not reached for other roots, until it is.
func TestAServerThatWasMissedOwnsNothing(t *testing.T) {
	share := func(missed bool) (h *host, pulls int) {
		h = region(t)
		e := h.step(core.Event{Kind: core.PeerKnown, Peer: beside, Server: true, Key: nextKey, Near: 1, Missed: missed})
		if dials := only(e, core.Dial); len(dials) != 1 || dials[0].Peer != beside {
			t.Errorf("missed is %v: it dials %+v", missed, dials)
		}
		return h, len(only(h.up(origin, 99, 3, upTo(40)...), core.Pull))
	}
	if _, pulls := share(false); pulls == 0 || pulls > 30 {
		t.Errorf("beside one that may join it pulls %d chunks of 40", pulls)
	}
	h, pulls := share(true)
	if pulls != 40 {
		t.Errorf("beside one that was missed it pulls %d chunks of 40", pulls)
	}
	h.up(beside, nextKey, 1)
	h.step(core.Event{Kind: core.PeerDown, Peer: origin})
	if pulls := len(only(h.up(origin, 99, 3, upTo(40)...), core.Pull)); pulls == 0 || pulls > 30 {
		t.Errorf("beside one that was missed and has joined it pulls %d chunks of 40", pulls)
	}
}

func TestACompleteServerAtHomeEndsTheFetchFromBeyond(t *testing.T) {
	h := region(t)
	h.up(beside, nextKey, 1, upTo(40)...)
	e := h.up(origin, 99, 3, upTo(40)...)
	for _, e := range append(only(e, core.Pull), only(e, core.Want)...) {
		if e.Peer == origin {
			t.Errorf("it asks beyond although the region has all: %+v", e)
		}
	}
}

// TestTheOriginSendsToBothScopesInTurn: many agents must not starve another region.
func TestTheOriginSendsToBothScopesInTurn(t *testing.T) {
	h := newTestHost(t, core.Config{Server: true, Slots: 1}, upTo(40)...)
	for p := range core.Peer(20) {
		h.step(core.Event{Kind: core.PeerUp, Peer: p, Near: 1})
	}
	h.step(core.Event{Kind: core.PeerUp, Peer: 20, Near: 3, Server: true})
	sent := map[core.Peer]core.Request{}
	count := [2]int{}
	take := func(effects []core.Effect) {
		for _, e := range only(effects, core.Serve) {
			sent[e.Peer] = e.Request
			if e.Peer == 20 {
				count[1]++
			} else {
				count[0]++
			}
		}
	}
	for p := range core.Peer(21) {
		for r := range core.Request(10) {
			take(h.step(core.Event{Kind: core.Pulled, Peer: p, Request: r + 1}))
		}
	}
	for range 19 {
		for p, r := range sent {
			delete(sent, p)
			h.now += time.Millisecond
			take(h.step(core.Event{Kind: core.Sent, Peer: p, Request: r, OK: true}))
			break
		}
	}
	if count[1] < 9 || count[0] < 9 {
		t.Errorf("%d chunks to twenty agents, %d to the other region", count[0], count[1])
	}
}
