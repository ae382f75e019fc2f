package core

import (
	"math/bits"
	"slices"
	"time"
)

// Readers.

func (c *Core) readerAt(ev Event) {
	i := slices.IndexFunc(c.readers, func(r *reader) bool { return r.id == ev.Reader })
	if i < 0 {
		i = len(c.readers)
		c.readers = append(c.readers, &reader{id: ev.Reader, from: -1})
	}
	r := c.readers[i]
	to := ev.To
	if to <= 0 || to > c.count {
		to = c.count
	}
	from := min(max(ev.From, 0), to)
	grew := r.from < 0 || from < r.from || to != r.to
	r.from, r.to, r.head, r.high = from, to, from, 0
	c.look(r)
	if grew || from > r.from {
		c.rewant()
	}
}

// rewant recomputes what is wanted: the ranges of all readers together.
func (c *Core) rewant() {
	c.wanted.zero()
	for _, r := range c.readers {
		c.wanted.fill(r.from, r.to)
	}
	c.missing = 0
	for w := range c.wanted {
		c.missing += bits.OnesCount64(c.wanted[w] &^ c.have[w])
	}
	if c.missing > 0 {
		c.done = false
	}
	for _, r := range slices.Clone(c.requests) {
		if r.chunk >= 0 && !c.wanted.Has(r.chunk) && r.began == 0 {
			c.cancel(r)
		}
	}
	c.wet()
}

// wet forgets which peers had nothing for us.
func (c *Core) wet() {
	for _, p := range c.active {
		p.dry = false
	}
}

// look moves a reader's head and window over what has come.
func (c *Core) look(r *reader) {
	head := r.head
	for head < r.to && c.have.Has(head) {
		head++
	}
	if head == r.head && r.high > 0 {
		return
	}
	r.head, r.since = head, c.now
	least := max(c.cfg.WindowBytes, int64(2*c.rate*c.reply.Seconds()))
	var sum int64
	high := head
	for high < r.to && (high-head < c.cfg.WindowChunks || sum < least) {
		sum += int64(c.cfg.Chunks[high])
		high++
	}
	r.high = max(high, 1)
}

// blocked reports whether the chunk that r needs next is not even asked for.
func (c *Core) blocked(r *reader) bool {
	return r.head < r.to && !c.have.Has(r.head) && !c.flying.Has(r.head)
}

func (c *Core) patienceOfReader() time.Duration { return max(c.cfg.Patience, 2*c.reply) }

// Requests.

func (c *Core) request(p *peer, id Request) *request {
	for _, r := range c.requests {
		if r.id == id && r.peer == p {
			return r
		}
	}
	return nil
}

func (c *Core) fly(i int) {
	if c.flights[i]++; c.flights[i] == 1 {
		c.flying.set(i)
		c.flyingCount++
	}
}

func (c *Core) land(i int) {
	if c.flights[i]--; c.flights[i] == 0 {
		c.flying.clear(i)
		c.flyingCount--
	}
}

// drop forgets a request; its chunk may be asked for again.
func (c *Core) drop(r *request) {
	c.requests = slices.DeleteFunc(c.requests, func(q *request) bool { return q == r })
	r.peer.out--
	if r.pull && r.chunk < 0 {
		r.peer.pulls--
	}
	if r.chunk < 0 {
		return
	}
	c.land(r.chunk)
	if !c.have.Has(r.chunk) {
		c.wet()
		for _, q := range c.requests {
			if q.chunk == r.chunk {
				q.given = false
			}
		}
	}
}

func (c *Core) cancel(r *request) {
	c.do(Effect{Kind: Cancel, Peer: r.peer.id, Request: r.id})
	c.drop(r)
}

func (c *Core) ask(p *peer, chunk int, hedge bool) {
	c.lastID++
	c.requests = append(c.requests, &request{id: c.lastID, peer: p, chunk: chunk, asked: c.now, given: hedge})
	p.out++
	c.fly(chunk)
	c.do(Effect{Kind: Want, Peer: p.id, Request: c.lastID, Chunk: chunk, Hedge: hedge})
}

// usual is how long p takes to begin an answer.
func (c *Core) usual(p *peer) time.Duration {
	if p.reply > 0 {
		return p.reply
	}
	return c.reply
}

func (c *Core) deadline(r *request) time.Duration {
	if r.began > 0 {
		return r.began + c.patience(c.carry)
	}
	return r.asked + c.patience(c.usual(r.peer))
}

// giveUpAt is when r, of which nothing has come, is forgotten.
func (c *Core) giveUpAt(r *request) time.Duration {
	return r.asked + max(c.cfg.GiveUp<<min(r.peer.givenUp, 4), 4*c.patience(c.usual(r.peer)))
}

// depth is how many requests p is to have: twice what fills its round trip, so
// that the rate that is measured can grow.
func (c *Core) depth(p *peer) int {
	if c.count == 0 {
		return 0
	}
	d := c.cfg.Depth
	if len(c.active) < c.cfg.FewPeers {
		d++
	}
	if mean := c.mean(); mean > 0 {
		d += int(2 * p.rate * p.rtt.Seconds() / mean)
	}
	return min(d, c.cfg.DepthMax)
}

// mean is the length of a chunk near the readers.
func (c *Core) mean() float64 {
	i := 0
	if len(c.readers) > 0 {
		i = min(c.readers[0].head, c.count-1)
	}
	return float64(c.cfg.Chunks[i])
}

// room is how many chunks may be asked of all peers together.
func (c *Core) room() int {
	limit := max(c.cfg.Outstanding/c.fetchingRoots, min(c.cfg.Outstanding, c.cfg.FewPeers))
	for _, p := range c.active {
		limit += c.depth(p) - 1
	}
	return limit - len(c.requests)
}

// fill asks for what is missing as far as peers and bounds allow.
func (c *Core) fill() {
	if c.missing == 0 {
		return
	}
	for _, r := range c.readers {
		c.look(r)
	}
	c.unblock()
	c.pull()
	room := c.room()
	for room > 0 {
		var best *peer
		ties := 0
		for _, p := range c.active {
			if p.dry || p.late || p.busy > c.now || p.haveCount == 0 {
				continue
			}
			if p.out >= c.depth(p) {
				continue
			}
			if best == nil || c.before(p, best) {
				best, ties = p, 1
			} else if !c.before(best, p) {
				if ties++; c.rand.IntN(ties) == 0 {
					best = p
				}
			}
		}
		if best == nil {
			return
		}
		i := c.choose(best)
		if i < 0 {
			best.dry = true
			continue
		}
		c.ask(best, i, false)
		room--
	}
}

// before orders the peers that could be asked: agents before servers, then the
// one with the least to do for us.
func (c *Core) before(a, b *peer) bool {
	if a.server != b.server {
		return b.server
	}
	return a.out < b.out
}

// choose returns the chunk to ask of p, -1 when there is none.
func (c *Core) choose(p *peer) int {
	tail := c.inTail()
	if p.server && !p.spent && !c.allShared() {
		return -1 // it picks better than we do: pull
	}
	if n := len(c.readers); n > 0 && c.rand.IntN(100) >= c.cfg.Stray {
		r := c.readers[c.rand.IntN(n)]
		if i := c.rarest(p, r.head, r.high, tail); i >= 0 {
			return i
		}
	}
	return c.rarest(p, 0, c.count, tail)
}

func (c *Core) inTail() bool {
	return c.missing <= max(c.cfg.TailChunks, c.count*c.cfg.TailPercent/100) && c.missing <= c.flyingCount
}

// allShared reports whether all that is missing is with some peer that is no server.
func (c *Core) allShared() bool {
	for w := range c.wanted {
		if c.wanted[w]&^c.have[w]&^c.flying[w]&^c.agents[w] != 0 {
			return false
		}
	}
	return true
}

// rarest returns the chunk within [from, to) that p has, we need and the fewest
// peers have; by chance among equals. With again, what is asked of one other peer
// and has not begun to come counts too.
func (c *Core) rarest(p *peer, from, to int, again bool) int {
	best, ties := -1, 0
	for w := from >> 6; w<<6 < to; w++ {
		m := p.have[w] &^ c.have[w] & c.wanted[w]
		if !again {
			m &^= c.flying[w]
		}
		for m != 0 {
			i := w<<6 + bits.TrailingZeros64(m)
			m &= m - 1
			if i < from || i >= to || again && !c.again(p, i) {
				continue
			}
			switch {
			case best < 0 || c.avail[i] < c.avail[best]:
				best, ties = i, 1
			case c.avail[i] == c.avail[best]:
				if ties++; c.rand.IntN(ties) == 0 {
					best = i
				}
			}
		}
	}
	return best
}

// again reports whether chunk i may be asked of p although it is asked of another.
func (c *Core) again(p *peer, i int) bool {
	if c.flights[i] > 1 {
		return false
	}
	for _, r := range c.requests {
		if r.chunk == i && (r.peer == p || r.began > 0) {
			return false
		}
	}
	return true
}

// pull asks the servers for chunks of their choice while there are some that no
// other peer has. With several servers each is asked for its own class of
// chunks, so that two do not send the same.
func (c *Core) pull() {
	usable := func(p *peer) bool { return !p.late && !p.spent && p.busy <= c.now }
	classes := 0
	for _, p := range c.servers {
		if usable(p) {
			classes++
		}
	}
	class := -1
	for _, p := range c.servers {
		if !usable(p) {
			continue
		}
		class++
		spare := c.depth(p) - p.out
		if spare <= 0 {
			continue
		}
		for range min(spare, c.fresh(class, classes)-p.pulls) {
			from := 0
			if len(c.readers) > 0 {
				from = c.readers[c.rand.IntN(len(c.readers))].head
			}
			c.lastID++
			c.requests = append(c.requests, &request{id: c.lastID, peer: p, chunk: -1, pull: true, asked: c.now})
			p.out++
			p.pulls++
			c.do(Effect{Kind: Pull, Peer: p.id, Request: c.lastID, From: from, Class: class, Classes: classes})
		}
	}
}

// fresh counts the chunks of a class that we need and no other agent has, up to
// DepthMax.
func (c *Core) fresh(class, classes int) int {
	n := 0
	for w := range c.wanted {
		m := c.wanted[w] &^ c.have[w] &^ c.flying[w] &^ c.agents[w]
		if classes == 1 {
			n += bits.OnesCount64(m)
		} else {
			for ; m != 0; m &= m - 1 {
				if (w<<6+bits.TrailingZeros64(m))%classes == class {
					n++
				}
			}
		}
		if n >= c.cfg.DepthMax {
			break
		}
	}
	return n
}

// unblock asks a server for the very chunk that a reader has waited for too long.
func (c *Core) unblock() {
	for _, r := range c.readers {
		if !c.blocked(r) || c.now < r.since+c.patienceOfReader() {
			continue
		}
		if p := c.other(r.head, nil); p != nil {
			r.since = c.now
			c.ask(p, r.head, false)
		}
	}
}

// other returns the best peer to ask for chunk i besides not, nil when there is none.
func (c *Core) other(i int, not *peer) *peer {
	var best *peer
	for _, p := range c.active {
		if p == not || p.late || p.busy > c.now || !p.have.Has(i) || p.out >= 2*c.depth(p) {
			continue
		}
		if best == nil || c.before(p, best) {
			best = p
		}
	}
	return best
}

// expire looks for what takes too long.
func (c *Core) expire() {
	for _, r := range slices.Clone(c.requests) {
		if r.began == 0 && c.now >= c.giveUpAt(r) {
			p := r.peer
			p.givenUp++
			p.late, p.dry = false, false
			c.cancel(r)
			continue
		}
		if r.given || c.now < c.deadline(r) {
			continue
		}
		r.late = true
		r.peer.late = true
		if r.chunk < 0 {
			// The server may still answer; another takes over its class.
			c.wet()
			continue
		}
		if p := c.other(r.chunk, r.peer); p != nil && c.flights[r.chunk] < 2 {
			r.given = true
			c.ask(p, r.chunk, true)
		}
	}
	for _, u := range c.serving {
		if !u.stuck && c.now >= u.began+c.patience(c.send) && len(c.serving) < 4*c.cfg.Slots {
			u.stuck = true
			c.slots--
		}
	}
}

// Answers.

func (c *Core) coming(p *peer, ev Event) {
	r := c.request(p, ev.Request)
	if r == nil || r.began > 0 || ev.Chunk < 0 || ev.Chunk >= c.count {
		return
	}
	r.began, r.late = c.now, false
	p.late, p.givenUp = false, 0
	if !r.pull {
		p.reply = smooth(p.reply, c.now-r.asked)
		c.reply = smooth(c.reply, c.now-r.asked)
	} else {
		p.reply = smooth(p.reply, c.now-r.asked)
	}
	if r.chunk >= 0 {
		return
	}
	r.chunk = ev.Chunk
	p.pulls--
	if c.have.Has(r.chunk) {
		c.fly(r.chunk)
		c.cancel(r)
		return
	}
	if c.flying.Has(r.chunk) {
		// The server chose what another was asked for: keep what is further on.
		for _, q := range slices.Clone(c.requests) {
			if q.chunk == r.chunk && q != r {
				if q.began > 0 {
					c.fly(r.chunk)
					c.cancel(r)
					return
				}
				c.cancel(q)
			}
		}
	}
	c.fly(r.chunk)
}

func (c *Core) arrived(p *peer, ev Event) {
	i := ev.Chunk
	if i < 0 || i >= c.count {
		return
	}
	if r := c.request(p, ev.Request); r != nil {
		length := float64(c.cfg.Chunks[i])
		if r.began > 0 {
			took := max(c.now-r.began, time.Microsecond)
			c.carry = smooth(c.carry, took)
		}
		took := max(c.now-r.asked, time.Microsecond).Seconds()
		// What p delivers: all it has been asked for in the time of this answer.
		sample := length * float64(p.out) / took
		if p.rate == 0 {
			p.rate = sample
		} else {
			p.rate = (3*p.rate + sample) / 4
		}
		p.late = false
		if r.chunk != i { // it never began: the shell saw it whole
			if r.chunk >= 0 {
				c.land(r.chunk)
			} else {
				p.pulls--
			}
			r.chunk = i
			c.fly(i)
		}
		p.dry = p.dry && p.out > c.depth(p)
		c.requests = slices.DeleteFunc(c.requests, func(q *request) bool { return q == r })
		p.out--
		c.land(i)
	}
	c.rateSum += int64(c.cfg.Chunks[i])
	if span := c.now - c.rateAt; span >= 250*time.Millisecond {
		c.rate = (c.rate + float64(c.rateSum)/span.Seconds()) / 2
		c.rateAt, c.rateSum = c.now, 0
	}
	if c.have.Has(i) {
		return
	}
	for _, q := range slices.Clone(c.requests) {
		if q.chunk == i {
			c.cancel(q)
		}
	}
	c.have.set(i)
	c.haveCount++
	if c.wanted.Has(i) {
		c.missing--
	}
	c.do(Effect{Kind: Announce, Chunk: i})
}

func (c *Core) corrupt(p *peer, ev Event) {
	r := c.request(p, ev.Request)
	if p == nil {
		return
	}
	if r != nil {
		c.drop(r)
	}
	if p.bad++; p.bad >= c.cfg.BadChunks && p.state != banned {
		c.ban(p)
	}
}

func (c *Core) refused(p *peer, ev Event) {
	r := c.request(p, ev.Request)
	if r == nil {
		return
	}
	p.late = false
	if ev.After > 0 {
		p.busy = c.now + min(ev.After, 15*time.Second)
	} else if r.chunk >= 0 {
		if p.have.Has(r.chunk) {
			p.have.clear(r.chunk)
			p.haveCount--
			if p.active {
				c.count1(p, r.chunk, -1)
			}
		}
	} else {
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
	if c.wanted.Has(i) {
		c.missing++
		c.done = false
	}
	for _, r := range c.readers {
		if i >= r.from && i < r.to {
			r.head, r.high = r.from, 0
		}
	}
	c.wet()
}
