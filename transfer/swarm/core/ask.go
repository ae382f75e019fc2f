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
		c.note(c.now)
	}
	for k := len(c.requests) - 1; k >= 0; k-- {
		if r := c.requests[k]; r.chunk >= 0 && !c.wanted.Has(r.chunk) && r.began == 0 {
			c.cancel(r)
			k = min(k, len(c.requests))
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
	least := max(c.cfg.WindowBytes, int64(2*c.rate*c.usual(c.reply).Seconds()))
	var sum int64
	high := head
	for high < r.to && (high-head < c.cfg.WindowChunks || sum < least) {
		sum += int64(c.cfg.Chunks[high])
		high++
	}
	r.high = max(high, 1)
	c.note(c.now + c.patienceOfReader())
}

// blocked reports whether the chunk that r needs next is not even asked for.
func (c *Core) blocked(r *reader) bool {
	return r.head < r.to && !c.have.Has(r.head) && !c.flying.Has(r.head)
}

func (c *Core) patienceOfReader() time.Duration {
	return max(c.cfg.Patience, 2*(c.usual(c.reply)+c.usual(c.carry)))
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

// usual is a recurring time with chunks like those near the readers.
func (c *Core) usual(p pulse) time.Duration { return of(p.mean, max(c.mean()/unit, 1)) }

// mean is the length of a chunk near the readers.
func (c *Core) mean() float64 {
	if c.count == 0 {
		return 0
	}
	i := 0
	if len(c.readers) > 0 {
		i = min(c.readers[0].head, c.count-1)
	}
	return float64(c.cfg.Chunks[i])
}

// room is how many chunks may be asked of all peers together.
func (c *Core) room() int {
	limit := max(c.cfg.Outstanding/c.fetchingRoots, min(c.cfg.Outstanding, c.cfg.FewPeers))
	if mean := c.mean(); mean > 0 {
		limit += int(2 * c.rate * c.longestRTT().Seconds() / mean)
	}
	for _, p := range c.servers {
		limit += p.pulls // they wait for what nobody has yet
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
	for room := c.room(); room > 0; {
		var best *peer
		least, ties := 0, 0
		for _, p := range c.active {
			if p.dry || p.late || p.gone || p.busy > c.now || p.haveCount == 0 || len(p.asked) >= c.depth(p) {
				continue
			}
			switch n := c.burden(p); {
			case best == nil || n < least:
				best, least, ties = p, n, 1
			case n == least:
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

// burden orders the peers that could be asked: agents before servers, then the one
// that has the least to do, as far as we know; a place further away counts as much as
// a few requests.
func (c *Core) burden(p *peer) int {
	n := len(p.asked)
	if p.load > 0 {
		load := p.load
		if c.rate > 0 {
			load -= int((c.now - p.loadAt).Seconds() * c.rate / c.mean())
		}
		n += max(load, 0)
	}
	if p.seed {
		n += 1 << 20
	}
	if c.cfg.Zone != 0 && p.near > 1 {
		n += c.cfg.FarCost
	}
	return n
}

// choose returns the chunk to ask of p, -1 when there is none.
func (c *Core) choose(p *peer) int {
	tail := c.inTail()
	if p.seed && (len(c.active)-len(c.servers) >= c.cfg.FewPeers || !p.spent && !c.allShared()) {
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
		m := p.have[w] &^ c.have[w] & c.wanted[w] & c.crosses(p, w)
		if !again {
			m &^= c.flying[w]
		}
		for m != 0 {
			i := w<<6 + bits.TrailingZeros64(m)
			m &= m - 1
			if i < from || i >= to || again && !c.twice(p, i) {
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

// twice reports whether chunk i may be asked of p although it is asked of another.
func (c *Core) twice(p *peer, i int) bool {
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
	if len(c.servers) == 0 {
		return
	}
	usable := func(p *peer) bool { return !p.late && !p.spent && p.busy <= c.now && (p.near <= 2 || !c.covered) }
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
		spare := c.depth(p) - len(p.asked)
		if spare <= 0 {
			continue
		}
		for range min(spare, c.missingOf(p, class, classes)-p.pulls) {
			from := 0
			if len(c.readers) > 0 {
				from = c.readers[c.rand.IntN(len(c.readers))].head
			}
			r := c.request(p, -1, false)
			r.pull = true
			p.pulls++
			e := Effect{Kind: Pull, Peer: p.id, Request: r.id, From: from, Class: class, Classes: classes}
			if p.near > 2 && len(c.owners) > 1 {
				e.Owners = c.owners
			}
			c.do(e)
		}
	}
}

// unblock asks a server for the very chunk that a reader has waited for too long, and
// when nothing comes at all for what nobody around has: whoever the server gave it to
// does not give it on.
func (c *Core) unblock() {
	for _, r := range c.readers {
		if !c.blocked(r) || c.now < r.since+c.usual(c.reply)/2 {
			continue
		}
		p := c.other(r.head, nil)
		if p == nil {
			continue
		}
		if p.server {
			wait := c.patienceOfReader()
			if c.agents.Has(r.head) {
				wait *= 4 // they are only busy
			}
			if c.now < r.since+wait {
				continue
			}
			r.since = c.now
		}
		c.askFor(p, r.head, false, p.server)
	}
	elsewhere := len(c.requests)
	for _, p := range c.servers {
		elsewhere -= len(p.asked)
	}
	if elsewhere > 0 || c.now < c.cameAt+c.patienceOfReader() {
		return
	}
	for _, p := range c.servers {
		for p.busy <= c.now && len(p.asked)-p.pulls < c.cfg.FewPeers {
			i := c.rarest(p, 0, c.count, true)
			if i < 0 {
				break
			}
			c.askFor(p, i, false, true)
		}
	}
}

// other returns the best peer to ask for chunk i besides not, nil when there is none.
func (c *Core) other(i int, not *peer) *peer {
	var best *peer
	least := 0
	for _, p := range c.active {
		if p == not || p.late || p.gone || p.busy > c.now || !p.have.Has(i) || len(p.asked) >= 2*c.depth(p) || c.crosses(p, i>>6)>>(i&63)&1 == 0 {
			continue
		}
		if slices.ContainsFunc(p.asked, func(r *request) bool { return r.chunk == i }) {
			continue
		}
		if n := c.burden(p); best == nil || n < least {
			best, least = p, n
		}
	}
	return best
}
