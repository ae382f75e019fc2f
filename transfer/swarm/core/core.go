package core

import (
	"math/rand/v2"
	"slices"
	"time"
)

type peerState uint8

const (
	known peerState = iota
	dialling
	up
	banned
)

// peer is what a Core knows of one peer.
type peer struct {
	id     Peer
	state  peerState
	server bool
	key    uint64
	near   uint8
	zone   uint32

	// Dialling.
	retryAt time.Duration
	backoff time.Duration

	// What it has, and what it is to get or just got from here but has not announced.
	have, given Bits
	haveCount   int

	// Asking. active peers are asked and counted in avail.
	active  bool
	dry     bool // it has nothing we need that is not asked for already
	out     int  // requests without an answer
	pulls   int  // those of them that are PULLs without a chunk yet
	rtt     time.Duration
	reply   time.Duration // usual time from asking to the first byte
	rate    float64       // bytes per second while it sends, smoothed
	busy    time.Duration // not to be asked before
	late    bool          // a request timed out and nothing came since
	givenUp int           // requests in a row of which nothing came
	spent   bool          // a server that had nothing to choose for us: WANT instead
	bad     int
	queued  int // its requests waiting here
	serving int
}

// request is a WANT or PULL without its whole answer.
type request struct {
	id    Request
	peer  *peer
	chunk int // -1 for a PULL not yet answered
	pull  bool
	asked time.Duration
	began time.Duration // when the first byte came; 0 before
	late  bool          // its time is over
	given bool          // a second peer was asked for the chunk
}

// upload is a peer's WANT or PULL here.
type upload struct {
	id             Request
	peer           *peer
	chunk          int // -1 for a PULL before the choice
	from           int
	class, classes int
	began          time.Duration
	stuck          bool // it takes too long to hold a slot
	stopped        bool
}

type reader struct {
	id       uint32
	from, to int // what it wants; from moves with it
	head     int // first wanted chunk that is missing
	high     int // end of its window
	since    time.Duration
}

// Core is one member's decisions for one blob. It is not safe for concurrent use.
type Core struct {
	cfg   Config
	rand  *rand.Rand
	count int
	now   time.Duration
	out   []Effect

	have, wanted, flying Bits // flying: asked for, not here
	agents               Bits // an active peer that is no server has it
	flights              []uint8
	avail                []uint16 // active peers that have it
	others               []uint16 // those of them that are no servers
	missing              int      // wanted and not here
	flyingCount          int
	haveCount            int
	done                 bool

	peers   map[Peer]*peer
	ups     []*peer
	active  []*peer
	servers []*peer // active servers, by id
	waiting []*peer // known, not connected
	dialled int
	findAt  time.Duration

	readers  []*reader
	requests []*request
	lastID   Request
	rate     float64       // arriving bytes per second, smoothed
	rateAt   time.Duration // start of the present sample
	rateSum  int64
	reply    time.Duration // over all peers
	carry    time.Duration // usual time from first to last byte of a chunk

	sent    []uint32
	queue   []*upload
	serving []*upload
	slots   int           // of serving, those not stuck
	send    time.Duration // usual time to send a chunk

	servingRoots, fetchingRoots int // of this node, with this one
}

// New returns a Core for a blob whose chunks this member has as have says.
func New(cfg Config, have Bits) *Core {
	cfg = cfg.withDefaults()
	n := len(cfg.Chunks)
	c := &Core{
		cfg: cfg, rand: rand.New(rand.NewPCG(cfg.Seed, 0x73686f616c)), count: n,
		have: NewBits(n), wanted: NewBits(n), flying: NewBits(n), agents: NewBits(n),
		flights: make([]uint8, n), avail: make([]uint16, n), others: make([]uint16, n),
		sent: make([]uint32, n), peers: map[Peer]*peer{}, servingRoots: 1, fetchingRoots: 1,
	}
	for i := range n {
		if have.Has(i) {
			c.have.set(i)
			c.haveCount++
		}
	}
	c.done = true
	return c
}

// Complete reports whether every chunk is here.
func (c *Core) Complete() bool { return c.haveCount == c.count }

// Missing counts the wanted chunks that are not here.
func (c *Core) Missing() int { return c.missing }

// Serving counts the requests of peers that are being answered or wait.
func (c *Core) Serving() int { return len(c.queue) + len(c.serving) }

// Has reports whether chunk i is here.
func (c *Core) Has(i int) bool { return c.have.Has(i) }

// Step tells what happened at now, which never goes back, and returns what to do
// about it, in order. The result is valid until the next Step.
func (c *Core) Step(now time.Duration, ev Event) []Effect {
	c.now = max(c.now, now)
	c.out = c.out[:0]
	p := c.peers[ev.Peer]
	switch ev.Kind {
	case Tick:
		c.expire()
	case PeerKnown:
		c.peerKnown(p, ev)
	case PeerForgotten:
		if p != nil && p.state == known {
			c.forget(p)
		}
	case PeerUp:
		c.peerUp(p, ev)
	case PeerDown:
		c.peerDown(p)
	case PeerHas:
		c.peerHas(p, ev)
	case RTTIs:
		if p != nil {
			p.rtt = ev.RTT
		}
	case Coming:
		c.coming(p, ev)
	case Arrived:
		c.arrived(p, ev)
	case Corrupt:
		c.corrupt(p, ev)
	case Failed:
		if r := c.request(p, ev.Request); r != nil {
			p.busy = c.now + c.cfg.TimeoutMin
			c.drop(r)
		}
	case Refused:
		c.refused(p, ev)
	case Lost:
		c.lost(ev.Chunk)
	case ReaderAt:
		c.readerAt(ev)
	case ReaderGone:
		c.readers = slices.DeleteFunc(c.readers, func(r *reader) bool { return r.id == ev.Reader })
		c.rewant()
	case Asked:
		c.asked(p, ev)
	case Pulled:
		c.pulled(p, ev)
	case Cancelled:
		c.cancelled(p, ev)
	case Sent:
		c.sentTo(p, ev)
	case Shared:
		c.servingRoots, c.fetchingRoots = max(ev.Serving, 1), max(ev.Fetching, 1)
	}
	c.connect()
	c.fill()
	c.serve()
	if c.missing == 0 && !c.done {
		c.done = true
		c.do(Effect{Kind: Done})
	}
	return c.out
}

func (c *Core) do(e Effect) { c.out = append(c.out, e) }

// Next returns when the Core wants a Tick, ok false when it waits for other events only.
func (c *Core) Next() (at time.Duration, ok bool) {
	at = -1
	note := func(t time.Duration) {
		if t = max(t, c.now+time.Millisecond); at < 0 || t < at {
			at = t
		}
	}
	for _, r := range c.requests {
		if r.began == 0 {
			note(c.giveUpAt(r))
		}
		if r.given {
			continue
		}
		if r.late {
			note(c.now + c.cfg.TimeoutMin)
		} else {
			note(c.deadline(r))
		}
	}
	for _, u := range c.serving {
		if !u.stuck {
			note(u.began + c.patience(c.send))
		}
	}
	if c.missing > 0 {
		for _, r := range c.readers {
			if c.blocked(r) {
				note(r.since + c.patienceOfReader())
			}
		}
		for _, p := range c.active {
			if p.busy > c.now {
				note(p.busy)
			}
		}
		if c.wantsPeers() {
			for _, p := range c.waiting {
				note(p.retryAt)
			}
			note(c.findAt)
		}
	}
	return at, at >= 0
}

// patience is how long what usually takes usual may take.
func (c *Core) patience(usual time.Duration) time.Duration {
	if usual == 0 {
		usual = time.Second / time.Duration(c.cfg.TimeoutTimes)
	}
	return max(c.cfg.TimeoutMin, time.Duration(c.cfg.TimeoutTimes)*usual)
}

func smooth(old, sample time.Duration) time.Duration {
	if old == 0 {
		return max(sample, 1)
	}
	return max((3*old+sample)/4, 1)
}

// Peers.

func (c *Core) peerKnown(p *peer, ev Event) {
	if p != nil {
		if p.state == known {
			p.server, p.key, p.near, p.zone = ev.Server, ev.Key, ev.Near, ev.Zone
		}
		return
	}
	if len(c.waiting) >= 4*c.cfg.Members {
		return // a Finder tells them again
	}
	p = &peer{id: ev.Peer, server: ev.Server, key: ev.Key, near: ev.Near, zone: ev.Zone}
	c.peers[p.id] = p
	c.waiting = append(c.waiting, p)
}

func (c *Core) forget(p *peer) {
	delete(c.peers, p.id)
	c.waiting = slices.DeleteFunc(c.waiting, func(q *peer) bool { return q == p })
}

func (c *Core) wantsPeers() bool {
	return c.missing > 0 && len(c.ups)+c.dialled < c.cfg.Degree
}

// connect dials known peers until there are enough: servers first, then the
// nearest, among equals by chance.
func (c *Core) connect() {
	for c.wantsPeers() {
		var best *peer
		ties := 0
		for _, p := range c.waiting {
			if p.state != known || p.retryAt > c.now {
				continue
			}
			switch {
			case best == nil || p.server && !best.server || p.server == best.server && p.near < best.near:
				best, ties = p, 1
			case p.server == best.server && p.near == best.near:
				if ties++; c.rand.IntN(ties) == 0 {
					best = p
				}
			}
		}
		if best == nil {
			if c.now >= c.findAt {
				c.findAt = c.now + time.Second
				c.do(Effect{Kind: Find})
			}
			return
		}
		best.state = dialling
		c.dialled++
		c.do(Effect{Kind: Dial, Peer: best.id})
	}
}

func (c *Core) peerUp(p *peer, ev Event) {
	if p == nil {
		p = &peer{id: ev.Peer}
		c.peers[p.id] = p
	}
	switch p.state {
	case banned:
		c.do(Effect{Kind: Ban, Peer: p.id})
		return
	case up:
		return
	case dialling:
		c.dialled--
	}
	c.waiting = slices.DeleteFunc(c.waiting, func(q *peer) bool { return q == p })
	p.state, p.server, p.key, p.near, p.zone = up, ev.Server, ev.Key, ev.Near, ev.Zone
	p.rtt, p.backoff = ev.RTT, 0
	p.out, p.pulls, p.queued, p.serving, p.late, p.busy, p.dry, p.spent = 0, 0, 0, 0, false, 0, false, false
	p.have, p.given, p.haveCount = NewBits(c.count), NewBits(c.count), 0
	for i := range c.count {
		if ev.Have.Has(i) {
			p.have.set(i)
			p.haveCount++
		}
	}
	c.ups = append(c.ups, p)
	c.activate()
}

// activate keeps Degree peers active, servers before others.
func (c *Core) activate() {
	for _, p := range c.ups {
		if p.active {
			continue
		}
		if len(c.active) >= c.cfg.Degree {
			if !p.server {
				continue
			}
			i := slices.IndexFunc(c.active, func(q *peer) bool { return !q.server && q.out == 0 })
			if i < 0 {
				continue
			}
			c.deactivate(c.active[i])
		}
		p.active, p.dry = true, false
		c.active = append(c.active, p)
		if p.server {
			c.servers = append(c.servers, p)
			slices.SortFunc(c.servers, func(a, b *peer) int { return int(a.id) - int(b.id) })
		}
		for i := range c.count {
			if p.have.Has(i) {
				c.count1(p, i, 1)
			}
		}
	}
}

func (c *Core) deactivate(p *peer) {
	if !p.active {
		return
	}
	p.active = false
	same := func(q *peer) bool { return q == p }
	c.active = slices.DeleteFunc(c.active, same)
	c.servers = slices.DeleteFunc(c.servers, same)
	for i := range c.count {
		if p.have.Has(i) {
			c.count1(p, i, -1)
		}
	}
}

// count1 keeps the tables of who has chunk i.
func (c *Core) count1(p *peer, i, by int) {
	c.avail[i] = uint16(int(c.avail[i]) + by)
	if p.server {
		return
	}
	c.others[i] = uint16(int(c.others[i]) + by)
	if c.others[i] > 0 {
		c.agents.set(i)
	} else {
		c.agents.clear(i)
	}
}

func (c *Core) peerDown(p *peer) {
	if p == nil {
		return
	}
	switch p.state {
	case dialling:
		c.dialled--
	case up:
		c.deactivate(p)
		same := func(q *peer) bool { return q == p }
		c.ups = slices.DeleteFunc(c.ups, same)
		for _, r := range slices.Clone(c.requests) {
			if r.peer == p {
				c.drop(r)
			}
		}
		c.queue = slices.DeleteFunc(c.queue, func(u *upload) bool { return u.peer == p })
		for _, u := range c.serving {
			if u.peer == p && !u.stuck {
				u.stuck = true
				c.slots--
			}
		}
		c.serving = slices.DeleteFunc(c.serving, func(u *upload) bool { return u.peer == p })
		c.waiting = append(c.waiting, p)
		p.have, p.given = nil, nil
		c.activate()
	default:
		return
	}
	p.state = known
	// A server that is missed is worth asking more often than one of many agents.
	most := 15 * time.Second
	if p.server {
		most = 2 * time.Second
	}
	p.backoff = min(max(2*p.backoff, 250*time.Millisecond), most)
	p.retryAt = c.now + p.backoff
	if len(c.waiting) > 4*c.cfg.Members {
		c.forget(c.waiting[0])
	}
}

func (c *Core) ban(p *peer) {
	c.peerDown(p)
	c.waiting = slices.DeleteFunc(c.waiting, func(q *peer) bool { return q == p })
	p.state = banned
	c.do(Effect{Kind: Ban, Peer: p.id})
}

func (c *Core) peerHas(p *peer, ev Event) {
	if p == nil || p.state != up {
		return
	}
	add := func(i int) {
		if i < 0 || i >= c.count || p.have.Has(i) {
			return
		}
		p.have.set(i)
		p.haveCount++
		if p.active {
			c.count1(p, i, 1)
			if c.wanted.Has(i) && !c.have.Has(i) {
				p.dry, p.spent = false, false
			}
		}
	}
	for _, i := range ev.Chunks {
		add(i)
	}
	if ev.Have != nil {
		for i := range c.count {
			if ev.Have.Has(i) {
				add(i)
			}
		}
	}
}
