package core

import (
	"math/bits"
	"slices"
	"time"
)

// asked takes a peer's WANT.
func (c *Core) asked(p *peer, ev Event) {
	if p == nil || p.state != up || ev.Chunk < 0 || ev.Chunk >= c.count {
		return
	}
	if !c.have.Has(ev.Chunk) {
		c.do(Effect{Kind: Busy, Peer: p.id, Request: ev.Request, Chunk: ev.Chunk})
		return
	}
	c.enqueue(&upload{id: ev.Request, peer: p, chunk: ev.Chunk})
}

// pulled takes a peer's PULL.
func (c *Core) pulled(p *peer, ev Event) {
	if p == nil || p.state != up {
		return
	}
	u := &upload{id: ev.Request, peer: p, chunk: -1, from: ev.From, class: ev.Class, classes: max(ev.Classes, 1)}
	if c.Complete() && c.pick(u) < 0 {
		c.do(Effect{Kind: Busy, Peer: p.id, Request: ev.Request, Chunk: -1})
		return
	}
	c.enqueue(u)
}

func (c *Core) enqueue(u *upload) {
	if len(c.queue) >= c.cfg.Queue || u.peer.queued >= max(c.cfg.QueuePerPeer, 2*c.cfg.DepthMax) {
		c.refuse(u, max(c.cfg.TimeoutMin, c.send*time.Duration(len(c.queue)/c.cfg.Slots)))
		return
	}
	u.peer.queued++
	c.queue = append(c.queue, u)
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

func (c *Core) cancelled(p *peer, ev Event) {
	for i, u := range c.queue {
		if u.peer == p && u.id == ev.Request {
			c.queue = slices.Delete(c.queue, i, i+1)
			p.queued--
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
		if ev.OK {
			c.send = smooth(c.send, c.now-u.began)
		} else {
			p.given.clear(u.chunk)
			if c.sent[u.chunk] > 0 {
				c.sent[u.chunk]--
			}
		}
		return
	}
}

// serve gives free slots to waiting requests: the oldest of a peer that gets the
// least now, since two sends to one peer share its link while ours would fill another's.
func (c *Core) serve() {
	slots := (c.cfg.Slots + c.servingRoots - 1) / c.servingRoots
	for c.slots < slots {
		best := -1
		for i := 0; i < len(c.queue); i++ {
			u := c.queue[i]
			if best >= 0 && u.peer.serving >= c.queue[best].peer.serving {
				continue
			}
			if u.chunk < 0 && c.pick(u) < 0 {
				if !c.Complete() {
					continue // it waits for a chunk to relay
				}
				c.queue = slices.Delete(c.queue, i, i+1)
				u.peer.queued--
				c.do(Effect{Kind: Busy, Peer: u.peer.id, Request: u.id, Chunk: -1})
				i--
				continue
			}
			if best = i; u.peer.serving == 0 {
				break
			}
		}
		if best < 0 {
			return
		}
		u := c.queue[best]
		c.queue = slices.Delete(c.queue, best, best+1)
		u.peer.queued--
		if u.chunk < 0 {
			u.chunk = c.pick(u)
		}
		if !c.have.Has(u.chunk) { // lost while it waited
			c.do(Effect{Kind: Busy, Peer: u.peer.id, Request: u.id, Chunk: u.chunk})
			continue
		}
		u.began = c.now
		u.peer.serving++
		u.peer.given.set(u.chunk)
		c.sent[u.chunk]++
		c.serving = append(c.serving, u)
		c.slots++
		c.do(Effect{Kind: Serve, Peer: u.peer.id, Request: u.id, Chunk: u.chunk})
	}
}

// pick returns the chunk for a PULL: of those here that the puller lacks, the one
// sent least, then the lowest from where its reader is, then the lowest; -1 when
// there is none.
func (c *Core) pick(u *upload) int {
	best := -1
	better := func(i int) bool {
		if best < 0 || c.sent[i] != c.sent[best] {
			return best < 0 || c.sent[i] < c.sent[best]
		}
		return best < u.from && i >= u.from
	}
	for w := range c.have {
		m := c.have[w] &^ u.peer.have[w] &^ u.peer.given[w]
		for ; m != 0; m &= m - 1 {
			i := w<<6 + bits.TrailingZeros64(m)
			if u.classes > 1 && i%u.classes != u.class {
				continue
			}
			if better(i) {
				best = i
			}
		}
	}
	return best
}
