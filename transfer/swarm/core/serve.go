package core

import (
	"math/bits"
	"slices"
	"time"
)

// Who pulls from a server is of its own region or of another; what the ones got
// does not serve the others.
const (
	own = iota
	beyond
	scopes
)

func (p *peer) scope() int {
	if p.near > 2 {
		return beyond
	}
	return own
}

// held counts for each chunk the pullers of a scope that have it or are getting it
// from here.
type held struct {
	by    []uint16 // nil until the first PULL
	at    []uint32 // when it was sent last, in ms
	fresh Bits     // chunks here that no puller of the scope has
	low   int      // no word of fresh before has a bit
}

// within reports whether what p has counts in a scope: a server of our region can give
// it to those beyond, too.
func (p *peer) within(scope int) bool {
	return p.pulling && !p.gone && (p.scope() == scope || scope == beyond && p.server)
}

// counts begins to count p, which pulls.
func (c *Core) counts(p *peer) {
	if h := &c.held[p.scope()]; h.by == nil {
		h.by, h.at, h.fresh = make([]uint16, c.count), make([]uint32, c.count), NewBits(c.count)
		copy(h.fresh, c.have)
		for _, q := range c.ups {
			if q.within(p.scope()) {
				c.holdAll(q, p.scope(), 1)
			}
		}
	}
	p.pulling = true
	for scope := range c.held {
		c.holdAll(p, scope, 1)
	}
}

// hold notes that p has, or has no more, chunk i.
func (c *Core) hold(p *peer, i, by int) {
	for scope := range c.held {
		c.hold1(p, scope, i, by)
	}
}

func (c *Core) hold1(p *peer, scope, i, by int) {
	h := &c.held[scope]
	if h.by == nil || !p.within(scope) {
		return
	}
	h.by[i] = uint16(int(h.by[i]) + by)
	if h.by[i] > 0 || !c.have.Has(i) {
		h.fresh.clear(i)
	} else {
		h.fresh.set(i)
		h.low = min(h.low, i>>6)
	}
}

func (c *Core) holdAll(p *peer, scope, by int) {
	for w := range p.have {
		for m := p.have[w] | p.given[w]; m != 0; m &= m - 1 {
			c.hold1(p, scope, w<<6+bits.TrailingZeros64(m), by)
		}
	}
}

// give and ungive note that p is getting chunk i, or not any more.
func (c *Core) give(p *peer, i int) {
	if !p.given.Has(i) {
		p.given.set(i)
		if !p.have.Has(i) {
			c.hold(p, i, 1)
		}
	}
}

func (c *Core) ungive(p *peer, i int) {
	if p.given.Has(i) {
		p.given.clear(i)
		if !p.have.Has(i) {
			c.hold(p, i, -1)
		}
	}
}

// fresh returns a chunk here of a class that nobody of the scope has: the lowest from
// where the puller reads, then the lowest; -1 when there is none.
func (c *Core) freshFor(u *upload) int {
	h := &c.held[u.peer.scope()]
	for h.low < len(h.fresh) && h.fresh[h.low] == 0 {
		h.low++
	}
	first := -1
	for w := h.low; w < len(h.fresh); w++ {
		for m := h.fresh[w] &^ u.peer.have[w]; m != 0; m &= m - 1 {
			i := w<<6 + bits.TrailingZeros64(m)
			if u.classes > 1 && i%u.classes != u.class || !owns(u.owners, i) {
				continue
			}
			if i >= u.from {
				return i
			}
			if first < 0 {
				first = i
			}
		}
	}
	return first
}

// smallFor returns a chunk of a small blob that the puller lacks and few have got, -1
// when there is none.
func (c *Core) smallFor(u *upload) int {
	if !c.small {
		return -1
	}
	for i := range c.count {
		if c.have.Has(i) && !u.peer.have.Has(i) && !u.peer.given.Has(i) && c.sent[i] < uint32(c.cfg.FewPeers) &&
			(u.classes <= 1 || i%u.classes == u.class) && owns(u.owners, i) {
			return i
		}
	}
	return -1
}

// asked takes a peer's WANT.
func (c *Core) asked(p *peer, ev Event) {
	if p == nil || p.state != up || ev.Chunk < 0 || ev.Chunk >= c.count {
		return
	}
	if !c.have.Has(ev.Chunk) {
		c.do(Effect{Kind: Busy, Peer: p.id, Request: ev.Request, Chunk: ev.Chunk})
		return
	}
	c.remove(p, ev.Chunk) // it must know
	c.enqueue(upload{id: ev.Request, peer: p, chunk: ev.Chunk})
}

// pulled takes a peer's PULL. It waits until there is a chunk to choose.
func (c *Core) pulled(p *peer, ev Event) {
	if p == nil || p.state != up {
		return
	}
	if !p.pulling {
		c.counts(p)
	}
	if c.Complete() && p.haveCount == c.count {
		c.do(Effect{Kind: Busy, Peer: p.id, Request: ev.Request, Chunk: -1})
		return
	}
	c.enqueue(upload{id: ev.Request, peer: p, chunk: -1, pulled: true, from: ev.From, class: ev.Class, classes: max(ev.Classes, 1), owners: ev.Owners})
}

func (c *Core) enqueue(u upload) {
	if len(c.queue) >= c.cfg.Queue || u.peer.queued >= max(c.cfg.QueuePerPeer, 2*c.cfg.DepthMax) {
		c.refuse(&u, max(c.cfg.GatherMin/2, of(c.send.mean, c.scale(u.chunk))*time.Duration(len(c.queue))/time.Duration(2*c.cfg.Slots)))
		return
	}
	u.peer.queued++
	var slot *upload
	if n := len(c.idle); n > 0 {
		slot, c.idle = c.idle[n-1], c.idle[:n-1]
	} else {
		slot = new(upload)
	}
	*slot = u
	c.queue = append(c.queue, slot)
}

// refuse says BUSY and names others that have the chunk.
func (c *Core) refuse(u *upload, after time.Duration) {
	e := Effect{Kind: Busy, Peer: u.peer.id, Request: u.id, Chunk: u.chunk, After: after}
	start := 0
	if n := len(c.ups); n > 0 {
		start = c.rand.IntN(n)
	}
	for k := range c.ups {
		p := c.ups[(start+k)%len(c.ups)]
		if len(e.Peers) >= c.cfg.Referrals {
			break
		}
		if p != u.peer && (u.chunk < 0 && p.haveCount > 0 || u.chunk >= 0 && p.have.Has(u.chunk)) {
			e.Peers = append(e.Peers, p.id)
		}
	}
	c.do(e)
}

// unqueue takes the request at index i out of the queue.
func (c *Core) unqueue(i int) *upload {
	u := c.queue[i]
	c.queue = slices.Delete(c.queue, i, i+1)
	u.peer.queued--
	return u
}

func (c *Core) cancelled(p *peer, ev Event) {
	for i, u := range c.queue {
		if u.peer == p && u.id == ev.Request {
			c.idle = append(c.idle, c.unqueue(i))
			return
		}
	}
	for _, u := range c.serving {
		if u.peer == p && u.id == ev.Request && !u.stopped {
			u.stopped = true
			c.do(Effect{Kind: Stop, Peer: p.id, Request: u.id, Chunk: u.chunk})
		}
	}
}

func (c *Core) sentTo(p *peer, ev Event) {
	for i, u := range c.serving {
		if u.peer != p || u.id != ev.Request {
			continue
		}
		c.serving = slices.Delete(c.serving, i, i+1)
		if !u.stuck {
			c.slots--
		}
		p.serving--
		switch {
		case ev.OK:
			c.send.add(of(c.now-u.began, 1/c.scale(u.chunk)))
			c.add1(p, u.chunk)
		case u.stopped && u.pulled && !u.peer.gone && !u.stuck:
			c.add1(p, u.chunk) // it has it, or gets it from another
		default:
			if c.sent[u.chunk] > 0 {
				c.sent[u.chunk]--
			}
		}
		c.ungive(p, u.chunk)
		c.idle = append(c.idle, u)
		return
	}
}

func (c *Core) expireUploads() {
	for _, u := range c.serving {
		slow, lost := c.sendLimits(u)
		if !u.stuck {
			if c.now < u.began+slow || len(c.serving) >= c.cfg.Stuck {
				c.note(max(u.began+slow, c.now+c.cfg.GatherMin))
				continue
			}
			u.stuck = true
			c.slots--
		}
		switch {
		case u.peer.gone:
		case c.now < max(u.began, u.peer.heard)+lost:
			c.note(max(u.began, u.peer.heard) + lost)
		default:
			// Who knows whether it ever arrives, and what else it has.
			c.ungive(u.peer, u.chunk)
			c.suspend(u.peer)
			if !u.stopped {
				u.stopped = true
				c.do(Effect{Kind: Stop, Peer: u.peer.id, Request: u.id, Chunk: u.chunk})
			}
		}
	}
}

// sendLimits are how long a send may take before its slot goes to another, and before
// its receiver, if nothing is heard from it, seems not to live.
func (c *Core) sendLimits(u *upload) (slow, lost time.Duration) {
	how := c.scale(u.chunk)
	return c.send.limit(c.cfg.TimeoutTimes, how, c.cfg.TimeoutMin/8), c.send.limit(2*c.cfg.TimeoutTimes, how, c.cfg.TimeoutMin)
}

// serve gives free slots to waiting requests.
func (c *Core) serve() {
	slots := (c.cfg.Slots + c.servingRoots - 1) / c.servingRoots
	for c.slots < slots && len(c.queue) > 0 {
		i, chunk := c.next()
		if i < 0 {
			return
		}
		u := c.unqueue(i)
		u.chunk = chunk
		if !c.have.Has(u.chunk) { // lost while it waited
			c.do(Effect{Kind: Busy, Peer: u.peer.id, Request: u.id, Chunk: u.chunk})
			c.idle = append(c.idle, u)
			continue
		}
		u.began = c.now
		u.peer.serving++
		u.peer.got++
		if u.pulled && u.peer.scope() == own {
			c.cover(u.peer.zone)
		}
		c.give(u.peer, u.chunk)
		c.sent[u.chunk]++
		c.took(u.peer.scope(), c.cfg.Chunks[u.chunk])
		if h := &c.held[u.peer.scope()]; h.by != nil {
			h.at[u.chunk] = uint32(c.now / time.Millisecond)
		}
		c.serving = append(c.serving, u)
		c.slots++
		c.turns++
		slow, _ := c.sendLimits(u)
		c.note(c.now + slow)
		c.do(Effect{Kind: Serve, Peer: u.peer.id, Request: u.id, Chunk: u.chunk})
	}
}

// again is when chunk i, which a puller has, may be sent to another that asks for it:
// by then it should have come from the others.
func (c *Core) again(h *held, i int) time.Duration {
	if c.sent[i] == 0 {
		return 0
	}
	return time.Duration(h.at[i])*time.Millisecond + max(c.cfg.Patience/4, of(8*c.send.mean, c.scale(i)))
}

// cover notes a chunk of our choice for a zone. If that was the zone with the fewest,
// it has had its turn.
func (c *Core) cover(zone uint32) {
	least := true
	for _, n := range c.zoned {
		least = least && c.zoned[zone] <= n
	}
	c.zoned[zone]++
	if least {
		c.zoneTurn = c.turns + c.cfg.Slots
	}
}

// next returns the request to answer next and with which chunk, -1 when none can be.
//
// Of the chunks the one that was sent least goes first, as the others have other
// sources; of the peers the one that gets the least now, since two sends to one peer
// share its link while ours would fill another's. One send in Slots is for the zone
// that was given the least, so that a small zone does not wait for the large ones to
// pass things on. A server sends what nobody has; what
// others have, too, only when there is nothing else, or now and then to those who ask
// for it, as they have waited in vain.
func (c *Core) next() (index, chunk int) {
	index, chunk = -1, -1
	var best int
	var failed *upload
	patient := c.turns%8 != 7
	for i, u := range c.queue {
		n := u.chunk
		score := 0
		if u.peer.gone {
			continue
		}
		if u.pulled {
			if failed != nil && failed.class == u.class && failed.classes == u.classes && failed.peer.scope() == u.peer.scope() && (len(u.owners) < 2 || u.peer == failed.peer) {
				continue
			}
			score = int(min(u.peer.got, 1<<15))
			if n = c.freshFor(u); n < 0 {
				if n = c.smallFor(u); n < 0 {
					failed = u
					continue
				}
				score += 1 << 29
			}
			if c.turns >= c.zoneTurn && len(c.zoned) > 1 && u.peer.scope() == own {
				score += min(c.zoned[u.peer.zone], 1<<15) - min(u.peer.got, 1<<15)
			}
		} else if h := &c.held[u.peer.scope()]; h.by != nil && h.by[n] > 0 {
			// Others have it.
			score = int(min(u.peer.got, 1<<15))
			if patient {
				score += 1 << 30
			}
			if at := c.again(h, n); c.now < at {
				c.note(at)
				continue
			}
		} else if h.by != nil {
			score = int(min(u.peer.got, 1<<15))
		} else if c.turns%3 != 2 { // or the oldest: what was sent often must not wait for ever
			score = int(min(c.sent[n], 1<<15))
		}
		score += u.peer.serving<<16 + c.turn(u.peer.scope())<<28
		if index < 0 || score < best {
			index, chunk, best = i, n, score
		}
	}
	return index, chunk
}
