package core

import (
	"time"
)

// What is asked for, and what becomes of it.

// request returns p's request of a number, nil when there is none.
func (p *peer) request(id Request) *request {
	if p == nil {
		return nil
	}
	for _, r := range p.asked {
		if r.id == id {
			return r
		}
	}
	return nil
}

// request enters a request to p; its chunk is -1 for a PULL.
func (c *Core) request(p *peer, chunk int, soft bool) *request {
	var r *request
	if n := len(c.spare); n > 0 {
		r, c.spare = c.spare[n-1], c.spare[:n-1]
	} else {
		r = new(request)
	}
	c.lastID++
	*r = request{id: c.lastID, peer: p, chunk: chunk, asked: c.now, index: len(c.requests), soft: soft}
	c.requests = append(c.requests, r)
	p.asked = append(p.asked, r)
	if chunk >= 0 {
		c.fly(r)
	}
	c.note(c.deadline(r))
	return r
}

// end takes a request out of the lists.
func (c *Core) end(r *request) {
	last := c.requests[len(c.requests)-1]
	c.requests[r.index], last.index = last, r.index
	c.requests = c.requests[:len(c.requests)-1]
	asked := r.peer.asked
	for i, q := range asked {
		if q == r {
			r.peer.asked = append(asked[:i], asked[i+1:]...)
			break
		}
	}
	if r.pull && r.chunk < 0 {
		r.peer.pulls--
	}
	if r.chunk >= 0 {
		c.land(r.chunk)
	}
	if p := r.peer; p.late && !p.gone && len(p.asked) == 0 {
		// Others brought what it was late with: no answer will show that it is better.
		p.late, p.busy = false, max(p.busy, c.now+c.cfg.TimeoutMin)
		c.note(p.busy)
	}
	c.spare = append(c.spare, r)
}

// firm reports whether r keeps its chunk from being asked of others.
func (r *request) firm() bool { return !r.soft || r.began > 0 }

func (c *Core) fly(r *request) {
	c.flights[r.chunk]++
	c.firm(r)
}

func (c *Core) firm(r *request) {
	if r.firm() && !c.flying.Has(r.chunk) {
		c.flying.set(r.chunk)
		c.flyingCount++
	}
}

// land notes that a request for chunk i has left the lists.
func (c *Core) land(i int) {
	c.flights[i]--
	if !c.flying.Has(i) {
		return
	}
	c.flying.clear(i)
	c.flyingCount--
	if c.flights[i] > 0 {
		for _, q := range c.requests {
			if q.chunk == i {
				c.firm(q)
			}
		}
	}
}

// drop forgets a request; its chunk may be asked for again.
func (c *Core) drop(r *request) {
	c.end(r)
	if r.chunk < 0 || c.have.Has(r.chunk) {
		return
	}
	c.wet()
	for _, q := range c.requests {
		if q.chunk == r.chunk {
			q.given = false
			c.note(c.deadline(q))
		}
	}
}

func (c *Core) cancel(r *request) {
	c.do(Effect{Kind: Cancel, Peer: r.peer.id, Request: r.id})
	c.drop(r)
}

func (c *Core) ask(p *peer, chunk int, hedge bool) {
	c.askFor(p, chunk, hedge, false)
}

func (c *Core) askFor(p *peer, chunk int, hedge, soft bool) {
	r := c.request(p, chunk, soft)
	r.given = hedge
	c.do(Effect{Kind: Want, Peer: p.id, Request: r.id, Chunk: chunk, Hedge: hedge})
}

// scale is how much longer chunk i takes than the unit.
func (c *Core) scale(i int) float64 {
	if i < 0 {
		return 1
	}
	return scale(c.cfg.Chunks[i])
}

// patience is how long p may take to begin to answer with chunk i.
func (c *Core) patience(p *peer, i int) time.Duration {
	h := &p.reply
	if h.mean == 0 {
		h = &c.reply
	}
	return h.limit(c.cfg.TimeoutTimes, c.scale(i), c.cfg.TimeoutMin)
}

// silent reports whether p, by the rhythm of what it has sent so far, should have been
// heard.
func (c *Core) silent(p *peer) bool {
	return c.now-p.heard > p.gap.limit(2*c.cfg.TimeoutTimes, 1, c.cfg.TimeoutMin)
}

// deadline is when r is late. A PULL may have to wait until there is something.
func (c *Core) deadline(r *request) time.Duration {
	switch {
	case r.began > 0:
		return r.began + c.carry.limit(c.cfg.TimeoutTimes, c.scale(r.chunk), c.cfg.TimeoutMin)
	case r.pull:
		return r.asked + c.cfg.GiveUp
	default:
		return r.asked + c.patience(r.peer, r.chunk)
	}
}

// giveUpAt is when r, of which nothing has come, is forgotten.
func (c *Core) giveUpAt(r *request) time.Duration {
	wait := max(c.cfg.GiveUp<<min(r.peer.givenUp, 4), 4*c.patience(r.peer, r.chunk))
	if r.pull {
		wait *= 4
	}
	return r.asked + wait
}

// expireRequests looks for what takes too long.
func (c *Core) expireRequests() {
	c.scratch = append(c.scratch[:0], c.requests...)
	for _, r := range c.scratch {
		if r.index >= len(c.requests) || c.requests[r.index] != r {
			continue // ended meanwhile
		}
		if r.began == 0 {
			at := c.giveUpAt(r)
			if c.now >= at {
				p := r.peer
				p.givenUp++
				p.late, p.dry = false, false
				c.cancel(r)
				continue
			}
			c.note(at)
		}
		if r.late && r.given {
			continue
		}
		at := c.deadline(r)
		if c.now >= at && !r.pull && !c.silent(r.peer) {
			at += at - max(r.asked, r.began) // it lives: it is slow, or has much to do
		}
		if c.now < at {
			c.note(max(at, c.now+c.cfg.TimeoutMin/8))
			continue
		}
		r.late = true
		r.peer.late = true
		if c.silent(r.peer) && !r.peer.server {
			c.suspend(r.peer)
			continue
		}
		if r.chunk < 0 {
			// The server may still answer; another takes over its class.
			c.wet()
			continue
		}
		if c.flights[r.chunk] > 1 {
			c.giveUpFirst(r)
		}
		if p := c.other(r.chunk, r.peer); p != nil && c.flights[r.chunk] < 2 {
			r.given = true
			c.ask(p, r.chunk, true)
			continue
		}
		c.note(c.now + c.cfg.TimeoutMin)
	}
}

// giveUpFirst cancels the other request for the chunk of r if both are late, so that a
// third peer can be asked.
func (c *Core) giveUpFirst(r *request) {
	for k := len(c.requests) - 1; k >= 0; k-- {
		if q := c.requests[k]; q != r && q.chunk == r.chunk && q.late {
			c.cancel(q)
		}
	}
}

// coming takes the first bytes of an answer.
func (c *Core) coming(p *peer, ev Event) {
	r := p.request(ev.Request)
	if r == nil || r.began > 0 || ev.Chunk < 0 || ev.Chunk >= c.count {
		return
	}
	r.began, r.late = c.now, false
	p.late, p.givenUp = false, 0
	c.note(c.deadline(r))
	if !r.pull {
		took := of(c.now-r.asked, 1/c.scale(r.chunk))
		p.reply.add(took)
		c.reply.add(took)
	}
	if r.chunk < 0 {
		p.pulls--
		r.chunk = ev.Chunk
		c.fly(r)
		if c.have.Has(r.chunk) {
			c.cancel(r)
			return
		}
	}
	c.firm(r)
	if c.flights[r.chunk] == 1 {
		return
	}
	// Another was asked for it, too: what began first goes on, unless it is stuck.
	for k := len(c.requests) - 1; k >= 0; k-- {
		q := c.requests[k]
		switch {
		case q.chunk != r.chunk || q == r || q.began > 0 && q.late:
		case q.began > 0:
			c.cancel(r)
			return
		default:
			c.cancel(q)
		}
	}
}

// arrived takes a verified chunk.
func (c *Core) arrived(p *peer, ev Event) {
	i := ev.Chunk
	if i < 0 || i >= c.count {
		return
	}
	fresh := int(c.others[i]) < c.cfg.Offers
	if r := p.request(ev.Request); r != nil {
		length := float64(c.cfg.Chunks[i])
		if r.began > 0 {
			c.carry.add(of(c.now-r.began, 1/c.scale(i)))
		}
		took := max(c.now-r.asked, time.Microsecond).Seconds()
		// What p delivers: all it has been asked for in the time of this answer.
		sample := length * float64(len(p.asked)) / took
		if p.rate == 0 {
			p.rate = sample
		} else {
			p.rate = (3*p.rate + sample) / 4
		}
		p.late = false
		p.dry = p.dry && len(p.asked) > c.depth(p)
		c.end(r)
	}
	c.measure(i)
	if p == nil || !p.seed {
		c.cameAt = c.now
	}
	c.noteCrossing(p)
	c.note(c.now + c.patienceOfReader())
	if c.have.Has(i) {
		return
	}
	if c.flights[i] > 0 {
		for k := len(c.requests) - 1; k >= 0; k-- {
			if q := c.requests[k]; q.chunk == i {
				c.cancel(q)
				k = min(k, len(c.requests))
			}
		}
	}
	c.have.set(i)
	c.haveCount++
	if c.wanted.Has(i) {
		c.missing--
	}
	for scope := range c.held {
		if h := &c.held[scope]; h.by != nil && h.by[i] == 0 {
			h.fresh.set(i)
			h.low = min(h.low, i>>6)
		}
	}
	c.came(i, fresh)
}

// measure counts chunk i for the rate at which chunks come.
func (c *Core) measure(i int) {
	c.rateSum += int64(c.cfg.Chunks[i])
	span := c.now - c.rateAt
	if span < 20*time.Millisecond || span < 4*c.carry.mean && span < 250*time.Millisecond {
		return
	}
	rate := float64(c.rateSum) / span.Seconds()
	if c.rate == 0 {
		c.rate = rate
	}
	c.rate = (c.rate + rate) / 2
	c.rateAt, c.rateSum = c.now, 0
}

func (c *Core) corrupt(p *peer, ev Event) {
	if p == nil {
		return
	}
	if r := p.request(ev.Request); r != nil {
		c.drop(r)
	}
	if p.bad++; p.bad >= c.cfg.BadChunks && p.state != banned {
		c.ban(p)
	}
}

func (c *Core) refused(p *peer, ev Event) {
	r := p.request(ev.Request)
	if r == nil {
		return
	}
	p.late = false
	switch {
	case ev.After > 0:
		p.busy = c.now + min(ev.After, 15*time.Second)
		c.note(p.busy)
	case r.chunk >= 0:
		c.remove(p, r.chunk)
	default:
		p.spent, p.dry = true, false
	}
	c.drop(r)
}

func (c *Core) lost(i int) {
	if i < 0 || i >= c.count || !c.have.Has(i) {
		return
	}
	c.have.clear(i)
	c.haveCount--
	for scope := range c.held {
		if h := &c.held[scope]; h.by != nil {
			h.fresh.clear(i)
		}
	}
	if c.wanted.Has(i) {
		c.missing++
		c.done = false
		c.note(c.now)
	}
	for _, r := range c.readers {
		if i >= r.from && i < r.to {
			r.head, r.high = r.from, 0
		}
	}
	c.wet()
}
