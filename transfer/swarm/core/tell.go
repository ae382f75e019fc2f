package core

import "time"

// What is here is told to whom it helps. The log holds the chunks in the order they
// came, and each peer has a place in it: it knows what is before.

// came notes chunk i as one to tell of. fresh says that nobody around had it.
func (c *Core) came(i int, fresh bool) {
	if len(c.log) >= 2*c.count+1024 {
		c.trim()
	}
	c.log = append(c.log, uint32(i))
	if c.Complete() { // a server keeps count of who is whole
		for _, p := range c.servers {
			p.told = len(c.log)
			c.do(Effect{Kind: Tell, Peer: p.id, Load: c.Serving()})
		}
	}
	if c.cfg.Server {
		c.tellServers()
	} else if fresh {
		c.offer(c.cfg.Offers, i)
	}
	if c.tellAt == 0 {
		gather := c.cfg.GatherMax
		if c.rate > 0 {
			gather = min(gather, time.Duration(float64(c.cfg.Gather)*float64(c.cfg.Chunks[i])/c.rate*1e9))
		}
		c.tellAt = c.now + max(gather, c.cfg.GatherMin)
		c.note(c.tellAt)
	}
}

// trim forgets the part of the log that all peers know.
func (c *Core) trim() {
	least := len(c.log)
	for _, p := range c.ups {
		least = min(least, p.told)
	}
	c.log = append(c.log[:0], c.log[least:]...)
	for _, p := range c.ups {
		p.told -= least
	}
}

// tell tells p what it does not know yet; false when there is nothing.
func (c *Core) tell(p *peer) bool {
	if p.told >= len(c.log) {
		return false
	}
	gives := c.cfg.Server && p.server && p.haveCount == c.count // what we lack, as far as it knows
	if p.haveCount == c.count && !gives {
		p.told = len(c.log)
		return false
	}
	if c.Complete() {
		p.told = len(c.log)
		c.do(Effect{Kind: Tell, Peer: p.id, Load: c.Serving()})
		return true
	}
	from := len(c.arena)
	for _, i := range c.log[p.told:] {
		if (gives || !p.have.Has(int(i))) && c.have.Has(int(i)) {
			c.arena = append(c.arena, i)
		}
	}
	p.told = len(c.log)
	if len(c.arena) == from {
		return false
	}
	c.do(Effect{Kind: Tell, Peer: p.id, Chunks: c.arena[from:len(c.arena):len(c.arena)], Load: c.Serving()})
	return true
}

// tellAll tells everybody what has been gathered.
func (c *Core) tellAll() {
	c.tellAt = 0
	for _, p := range c.ups {
		c.tell(p)
	}
}

// offer tells up to n peers, by chance, that lack chunk i; of any new one with i < 0.
func (c *Core) offer(n, i int) {
	if len(c.ups) == 0 {
		return
	}
	start := c.rand.IntN(len(c.ups))
	for k := range c.ups {
		if n <= 0 {
			return
		}
		p := c.ups[(start+k)%len(c.ups)]
		if p.told >= len(c.log) || i >= 0 && p.have.Has(i) {
			continue
		}
		if c.tell(p) {
			n--
		}
	}
}

// invite looks for demand while the uplink has room: it tells as many peers as there
// is room for, and waits a round trip for them.
func (c *Core) invite() {
	if c.cfg.Server || len(c.log) == 0 || c.now < c.inviteAt {
		return
	}
	n := c.cfg.Backlog - c.Serving()
	if n <= 0 {
		return
	}
	before := len(c.out)
	c.offer(n, -1)
	if len(c.out) > before {
		c.inviteAt = c.now + max(c.cfg.GatherMin/2, 2*c.rtt)
		c.note(c.inviteAt)
	}
}
