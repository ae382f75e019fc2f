package core

import (
	"math/bits"
	"slices"
	"time"
)

// The region rule. A server that fetches asks servers beyond its region only for chunks
// that it owns: among the servers of the region that have joined, the one with the
// highest rank for a chunk owns it and the others take it from there. With nobody
// complete around, complete servers beyond are pulled from, and servers beyond that are
// fetching, too, are peers like others: each chunk comes from the origin to one region and
// from there to the next. Once a server of the region is complete, nothing is asked for beyond.

// maxOwners bounds the servers of a region that share its fetch; the key of the one
// that pulls comes first in Effect.Owners.
const maxOwners = 16

// rank is the rendezvous weight of a server, by its key, for a chunk.
func rank(key uint64, chunk int) uint64 {
	x := key + uint64(chunk)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// owns reports whether the first of the owners has chunk i to fetch.
func owns(owners []uint64, i int) bool {
	if len(owners) < 2 {
		return true
	}
	mine := rank(owners[0], i)
	for _, key := range owners[1:] {
		if r := rank(key, i); r > mine || r == mine && key > owners[0] {
			return false
		}
	}
	return true
}

// beside reports whether p is a server of our own region, and we are one.
func (c *Core) beside(p *peer) bool { return c.cfg.Server && p.server && p.near <= 2 }

// eachBeside calls f for the servers of our region that have joined, and for those that
// are known and were not tried in vain, for this root or another: they may be about to.
func (c *Core) eachBeside(f func(*peer)) {
	for _, p := range c.ups {
		if c.beside(p) {
			f(p)
		}
	}
	for _, p := range c.waiting {
		if c.beside(p) && p.backoff == 0 && !p.missed {
			f(p)
		}
	}
}

// reown finds out which chunks this server has to fetch from beyond.
func (c *Core) reown() {
	if !c.cfg.Server {
		return
	}
	var owners []uint64
	whole := false
	c.eachBeside(func(p *peer) {
		whole = whole || p.seed
		if !p.seed && !p.idle && len(owners) < maxOwners-1 {
			owners = append(owners, p.key)
		}
	})
	slices.Sort(owners)
	owners = append([]uint64{c.cfg.Key}, owners...)
	if c.crossing != nil && whole == c.covered && slices.Equal(owners, c.owners) {
		return
	}
	c.owners, c.covered = owners, whole
	if c.crossing == nil {
		c.crossing = NewBits(c.count)
	}
	c.crossing.zero()
	for i := range c.count {
		if !whole && owns(owners, i) {
			c.crossing.set(i)
		}
	}
	c.wet()
}

// crosses returns those of the chunks of word w that may be asked of p.
func (c *Core) crosses(p *peer, w int) uint64 {
	if p.near <= 2 || c.crossing == nil {
		return ^uint64(0)
	}
	return c.crossing[w]
}

// promote makes a server that turns out to be complete a seed.
func (c *Core) promote(p *peer) {
	if p.seed || !p.server || p.haveCount < c.count {
		return
	}
	if p.active {
		c.countAll(p, -1)
	}
	p.seed = true
	if p.active {
		c.countAll(p, 1)
		c.enlist(p)
	}
	c.reown()
}

// news notes that p, a server of our region, gets on.
func (c *Core) news(p *peer) {
	p.newsAt = c.now
	if p.idle {
		p.idle = false
		c.reown()
	}
}

// expireOwners looks for servers of the region that own chunks and do not bring them.
func (c *Core) expireOwners() {
	if !c.cfg.Server {
		return
	}
	// Where chunks take long to come for us, they take long for others.
	limit := c.crossed.limit(2*c.cfg.TimeoutTimes, 1, c.cfg.OwnerSilence)
	if c.crossed.mean == 0 {
		limit = c.cfg.OwnerSilence
	}
	changed := false
	c.eachBeside(func(p *peer) {
		switch {
		case p.seed || p.idle:
		case c.now < p.newsAt+limit:
			c.note(p.newsAt + limit)
		default:
			p.idle, changed = true, true
		}
	})
	if changed {
		c.reown()
	}
}

// noteCrossing learns how often chunks come from beyond.
func (c *Core) noteCrossing(p *peer) {
	if p == nil || p.near <= 2 {
		return
	}
	if c.crossedAt > 0 {
		c.crossed.add(c.now - c.crossedAt)
	}
	c.crossedAt = c.now
}

// turn orders the scopes: the one that got less so far goes first, as long as both want
// something.
func (c *Core) turn(scope int) int {
	if c.gave[scope] > c.gave[1-scope] {
		return 1
	}
	return 0
}

// took counts a chunk that goes to a scope. Who wanted nothing has no claim to what
// the other got meanwhile.
func (c *Core) took(scope int, bytes uint32) {
	waits := false
	for _, u := range c.queue {
		waits = waits || u.peer.scope() != scope
	}
	c.gave[scope] += int64(bytes)
	if !waits {
		c.gave[1-scope] = max(c.gave[1-scope], c.gave[scope])
	}
}

// missingOf counts the chunks of a class that we need, no other peer has, and p may be
// asked for, up to DepthMax.
func (c *Core) missingOf(p *peer, class, classes int) int {
	n := 0
	for w := range c.wanted {
		m := c.wanted[w] &^ c.have[w] &^ c.flying[w] &^ c.agents[w] & c.crosses(p, w)
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

// far is the round trip to peers beyond, for how much may be on its way.
func (c *Core) noteRTT(p *peer) {
	old := &c.rtt
	if p.near > 2 {
		old = &c.farRTT
	}
	if *old == 0 {
		*old = p.rtt
	} else {
		*old = (7**old + p.rtt) / 8
	}
}

func (c *Core) longestRTT() time.Duration { return max(c.rtt, c.farRTT) }

// tellServers tells other servers at once what is here, complete ones, too: they give
// what nobody has, and must know what came another way.
func (c *Core) tellServers() {
	for _, p := range c.ups {
		if p.server {
			c.tell(p)
		}
	}
}
