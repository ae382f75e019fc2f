package core

import (
	"math/bits"
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

// maxHandle bounds the handles that a shell may use: they index a table.
const maxHandle = 1 << 20

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
	missed  bool // it was not reached for another root either

	// What it has, and what it is getting from here.
	have, given Bits
	haveCount   int

	// Telling: what is before told in the log it knows.
	told int

	// Asking. active peers are asked and counted in avail.
	active   bool
	dry      bool       // it has nothing we need that is not asked for already
	asked    []*request // without an answer
	pulls    int        // those of them that are PULLs without a chunk yet
	rtt      time.Duration
	reply    pulse         // from asking to the first byte
	rate     float64       // bytes per second while it sends, smoothed
	load     int           // requests that waited there
	loadAt   time.Duration // when it said so
	busy     time.Duration // not to be asked before
	heard    time.Duration // when something came from it
	gap      pulse         // between such times
	late     bool          // a request timed out and nothing came since
	gone     bool          // it does not seem to live: see suspend
	goneTill time.Duration
	givenUp  int  // requests in a row of which nothing came
	spent    bool // a server that had nothing to choose for us: WANT instead
	bad      int
	seed     bool          // a server that is pulled from: to an agent any, to a server a complete one
	newsAt   time.Duration // when a server of our region last had something new
	idle     bool          // it owns chunks and does not bring them

	// Serving.
	queued  int  // its requests waiting here
	got     int  // chunks it got from here
	pulling bool // it has pulled
	serving int
}

// request is a WANT or PULL without its whole answer.
type request struct {
	id    Request
	peer  *peer
	index int // in Core.requests
	chunk int // -1 for a PULL not yet answered
	pull  bool
	asked time.Duration
	began time.Duration // when the first byte came; 0 before
	late  bool          // its time is over
	given bool          // a second peer was asked for the chunk
	soft  bool          // a server may send it when it has nothing better to do: others are asked, too
}

// upload is a peer's WANT or PULL here.
type upload struct {
	id             Request
	peer           *peer
	chunk          int // -1 for a PULL before the choice
	from           int
	class, classes int
	owners         []uint64
	began          time.Duration
	pulled         bool
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
	small bool // the blob
	now   time.Duration
	due   time.Duration // when the next thing is due, or before; never when there is none
	out   []Effect
	taken bool     // out was returned
	arena []uint32 // of Effect.Chunks

	have, wanted, flying Bits // flying: asked for, not here
	agents               Bits // an active peer that is no server has it
	flights              []uint8
	avail                []uint16 // active peers that have it
	others               []uint16 // those of them that are no servers
	missing              int      // wanted and not here
	flyingCount          int
	haveCount            int
	done                 bool

	peers     []*peer // by handle
	ups       []*peer
	active    []*peer
	servers   []*peer // active servers, by id
	waiting   []*peer // known, not connected
	dialled   int
	dials     int           // so far
	dialAt    time.Duration // beyond Eager peers: when the next may be dialled
	findAt    time.Duration
	serverAt  time.Duration // no server is there to be dialled before
	rtt       time.Duration // of the peers in the region, smoothed
	goneCount int
	farRTT    time.Duration // of those beyond

	owners    []uint64 // keys of the servers that share the region's fetch, ours first
	crossing  Bits     // chunks that may be asked of peers beyond; nil: all
	covered   bool     // a server of the region is complete
	crossed   pulse    // between chunks that came from beyond
	crossedAt time.Duration
	gave      [scopes]int64 // bytes

	log      []uint32 // chunks that came, in order
	tellAt   time.Duration
	inviteAt time.Duration

	readers  []*reader
	requests []*request
	spare    []*request // to be used again
	scratch  []*request
	lastID   Request
	rate     float64       // arriving bytes per second, smoothed
	rateAt   time.Duration // start of the present sample
	rateSum  int64
	cameAt   time.Duration // when the last chunk came
	reply    pulse         // over all peers
	carry    pulse         // from first to last byte of a chunk

	sent    []uint32
	held    [scopes]held
	queue   []*upload
	serving []*upload
	idle    []*upload // to be used again
	slots   int       // of serving, those not stuck
	turns   int
	// zoned counts the chunks of our choice sent to each zone of the region; from
	// zoneTurn on the one with the fewest has precedence.
	zoned    map[uint32]int
	zoneTurn int
	send     pulse // to send a chunk

	servingRoots, fetchingRoots int // of this node, with this one
}

// never is a time that does not come.
const never = time.Duration(1<<63 - 1)

// New returns a Core for a blob whose chunks this member has as have says.
func New(cfg Config, have Bits) *Core {
	cfg = cfg.withDefaults()
	n := len(cfg.Chunks)
	c := &Core{
		cfg: cfg, rand: rand.New(rand.NewPCG(cfg.Seed, 0x73686f616c)), count: n, due: never,
		have: NewBits(n), wanted: NewBits(n), flying: NewBits(n), agents: NewBits(n),
		flights: make([]uint8, n), avail: make([]uint16, n), others: make([]uint16, n),
		sent: make([]uint32, n), servingRoots: 1, fetchingRoots: 1,
	}
	for i := range n {
		if have.Has(i) {
			c.have.set(i)
			c.haveCount++
		}
	}
	c.done = true
	c.zoned = map[uint32]int{}
	var total int64
	for _, l := range cfg.Chunks {
		total += int64(l)
	}
	c.small = total <= cfg.SmallBytes
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

// Have returns the set of chunks that are here, to be read until the next Step.
func (c *Core) Have() Bits { return c.have }

// Step tells what happened at now, which never goes back, and returns what to do
// about it, in order. The result is valid until the next Step.
func (c *Core) Step(now time.Duration, ev Event) []Effect {
	c.Note(now, ev)
	c.taken = true
	if c.now >= c.due {
		c.expire()
	}
	c.connect()
	c.fill()
	c.serve()
	c.invite()
	if c.missing == 0 && !c.done {
		c.done = true
		for len(c.requests) > 0 {
			c.cancel(c.requests[len(c.requests)-1])
		}
		c.do(Effect{Kind: Done})
	}
	return c.out
}

// Note tells what happened, as Step does, but leaves what to do about it to the next
// Step: of several events at once only the last needs one.
func (c *Core) Note(now time.Duration, ev Event) {
	c.now = max(c.now, now)
	if c.taken {
		c.out, c.arena, c.taken = c.out[:0], c.arena[:0], false
	}
	p := c.peer(ev.Peer)
	if p != nil && p.state == up && ev.Kind != RTTIs && (ev.Kind != Sent || ev.OK) && ev.Kind != Arrived {
		p.gap.add(c.now - p.heard)
		p.heard = c.now
		c.resume(p)
	}
	switch ev.Kind {
	case Tick:
		c.due = min(c.due, c.now)
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
		if r := p.request(ev.Request); r != nil {
			p.busy = c.now + c.cfg.TimeoutMin
			c.note(p.busy)
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
}

func (c *Core) do(e Effect) { c.out = append(c.out, e) }

// note says that something is due at t.
func (c *Core) note(t time.Duration) { c.due = min(c.due, t) }

// Next returns when the Core wants a Tick, ok false when it waits for other events only.
func (c *Core) Next() (at time.Duration, ok bool) {
	if c.due == never {
		return 0, false
	}
	return max(c.due, c.now+100*time.Microsecond), true
}

// expire looks for what is due, and when the next will be.
func (c *Core) expire() {
	c.due = never
	if c.tellAt > 0 {
		if c.now >= c.tellAt {
			c.tellAll()
		} else {
			c.note(c.tellAt)
		}
	}
	if c.inviteAt > c.now {
		c.note(c.inviteAt)
	}
	c.expireRequests()
	c.expireUploads()
	if c.goneCount > 0 {
		for _, p := range c.ups {
			if p.gone && c.now >= p.goneTill {
				c.resume(p) // try again
			} else if p.gone {
				c.note(p.goneTill)
			}
		}
	}
	if c.missing == 0 {
		return
	}
	c.expireOwners()
	c.note(max(c.cameAt+c.patienceOfReader(), c.now+c.cfg.Patience))
	for _, r := range c.readers {
		if c.blocked(r) {
			c.note(max(r.since+c.patienceOfReader(), c.now+c.cfg.GatherMin))
		}
	}
	for _, p := range c.active {
		if p.busy > c.now {
			c.note(p.busy)
		}
	}
	if c.wantsPeers() {
		for _, p := range c.waiting {
			c.note(max(p.retryAt, c.now+c.cfg.GatherMin))
		}
		c.note(max(c.findAt, c.now+c.cfg.GatherMin))
	}
}

// Peers.

// peer returns the peer of a handle, nil when there is none.
func (c *Core) peer(id Peer) *peer {
	if int(id) < len(c.peers) {
		return c.peers[id]
	}
	return nil
}

func (c *Core) enter(p *peer) {
	if grow := int(p.id) + 1 - len(c.peers); grow > 0 {
		c.peers = append(c.peers, make([]*peer, grow)...)
	}
	c.peers[p.id] = p
}

func (c *Core) peerKnown(p *peer, ev Event) {
	if p != nil {
		if p.state == known {
			p.server, p.key, p.near, p.zone = ev.Server, ev.Key, ev.Near, ev.Zone
		}
		return
	}
	if len(c.waiting) >= 4*c.cfg.Members || ev.Peer >= maxHandle {
		return // a Finder tells them again
	}
	p = &peer{id: ev.Peer, server: ev.Server, key: ev.Key, near: ev.Near, zone: ev.Zone, missed: ev.Missed, newsAt: c.now}
	c.enter(p)
	c.waiting = append(c.waiting, p)
	if p.server {
		c.serverAt = 0
	}
	if c.beside(p) {
		c.note(c.now)
		c.reown()
	}
}

func (c *Core) forget(p *peer) {
	c.peers[p.id] = nil
	c.waiting = slices.DeleteFunc(c.waiting, func(q *peer) bool { return q == p })
}

// wantsPeers reports whether more peers are to be dialled; servers are in any case.
func (c *Core) wantsPeers() bool {
	return c.missing > 0 && len(c.ups)+c.dialled < c.cfg.Degree
}

// paced reports whether the next peer has to wait: too many are being dialled, or
// there are enough for the moment.
func (c *Core) paced() bool {
	if c.dialled >= c.cfg.Dials {
		return true
	}
	starved := c.haveCount > 0 && c.flyingCount < 2
	if len(c.ups)+c.dialled < c.cfg.Eager || starved || c.now >= c.dialAt {
		return false
	}
	c.note(c.dialAt)
	return true
}

// connect dials known peers until there are enough: servers first, then the nearest
// and any in turn, among equals by chance: a swarm of near peers only would not mix.
func (c *Core) connect() {
	for c.missing > 0 {
		var best *peer
		ties := 0
		next := never
		room := c.wantsPeers() && !c.paced()
		if !room && c.now < c.serverAt {
			return
		}
		for _, p := range c.waiting {
			if p.state != known || !room && !p.server {
				continue
			}
			if p.retryAt > c.now {
				next = min(next, p.retryAt)
				continue
			}
			nearer := best != nil && p.near < best.near && c.dials%2 == 0
			switch {
			case best == nil || p.server && !best.server || p.server == best.server && nearer:
				best, ties = p, 1
			case p.server == best.server && (p.near == best.near || c.dials%2 != 0):
				if ties++; c.rand.IntN(ties) == 0 {
					best = p
				}
			}
		}
		if best == nil && !room {
			c.serverAt = next
			c.note(next)
			return
		}
		if best == nil {
			if c.now >= c.findAt {
				c.findAt = c.now + time.Second
				c.do(Effect{Kind: Find})
			}
			c.note(min(next, c.findAt))
			return
		}
		best.state = dialling
		c.dials++
		if c.dialled++; len(c.ups)+c.dialled > c.cfg.Eager {
			c.dialAt = c.now + c.cfg.DialEvery
		}
		c.do(Effect{Kind: Dial, Peer: best.id})
	}
}

func (c *Core) peerUp(p *peer, ev Event) {
	if p == nil {
		if ev.Peer >= maxHandle {
			return
		}
		p = &peer{id: ev.Peer}
		c.enter(p)
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
	*p = peer{
		id: p.id, state: up, server: ev.Server, key: ev.Key, near: ev.Near, zone: ev.Zone, rtt: ev.RTT,
		have: NewBits(c.count), given: NewBits(c.count), told: len(c.log), heard: c.now, givenUp: p.givenUp, bad: p.bad,
		seed: ev.Server && !c.cfg.Server, newsAt: c.now,
	}
	c.noteRTT(p)
	c.ups = append(c.ups, p)
	c.activate()
	c.add(p, ev.Have)
	if c.beside(p) {
		c.note(c.now)
		c.reown()
	}
}

// add notes the chunks of a set as p's.
func (c *Core) add(p *peer, set Bits) {
	for w := range min(len(set), len(p.have)) {
		for m := set[w] &^ p.have[w]; m != 0; m &= m - 1 {
			if i := w<<6 + bits.TrailingZeros64(m); i < c.count {
				c.add1(p, i)
			}
		}
	}
	c.promote(p)
}

func (c *Core) add1(p *peer, i int) {
	if i < 0 || i >= c.count || p.have.Has(i) {
		return
	}
	c.resume(p) // so that it counts once
	p.have.set(i)
	p.haveCount++
	if !p.given.Has(i) {
		c.hold(p, i, 1)
	}
	if c.beside(p) {
		c.news(p)
	}
	if p.active {
		c.count1(p, i, 1)
		if c.wanted.Has(i) && !c.have.Has(i) {
			p.dry, p.spent = false, false
		}
	}
}

// remove notes that p has chunk i no more.
func (c *Core) remove(p *peer, i int) {
	if !p.have.Has(i) {
		return
	}
	c.resume(p)
	p.have.clear(i)
	p.haveCount--
	if !p.given.Has(i) {
		c.hold(p, i, -1)
	}
	if p.active {
		c.count1(p, i, -1)
	}
}

// activate keeps as many peers active as may be asked, servers before others.
func (c *Core) activate() {
	for _, p := range c.ups {
		if p.active {
			continue
		}
		if len(c.active) >= c.cfg.Asked {
			if !p.server {
				continue
			}
			i := slices.IndexFunc(c.active, func(q *peer) bool { return !q.server && len(q.asked) == 0 })
			if i < 0 {
				continue
			}
			c.deactivate(c.active[i])
		}
		p.active, p.dry = true, false
		c.active = append(c.active, p)
		if p.seed {
			c.enlist(p)
		}
		c.countAll(p, 1)
	}
}

// enlist makes p one of those that are pulled from.
func (c *Core) enlist(p *peer) {
	c.servers = append(c.servers, p)
	slices.SortFunc(c.servers, func(a, b *peer) int { return int(a.id) - int(b.id) })
}

// suspend leaves a peer out that does not seem to live: what it has and was given does
// not count, it is not asked and gets nothing until it is heard again.
func (c *Core) suspend(p *peer) {
	if p.gone || p.state != up {
		return
	}
	if p.active {
		c.countAll(p, -1)
	}
	for scope := range c.held {
		c.holdAll(p, scope, -1)
	}
	p.gone, p.goneTill = true, c.now+c.cfg.GiveUp/2<<min(p.givenUp, 5)
	p.givenUp++
	c.goneCount++
	c.note(p.goneTill)
	for len(p.asked) > 0 {
		c.cancel(p.asked[len(p.asked)-1])
	}
	c.wet()
}

// resume ends a suspension.
func (c *Core) resume(p *peer) {
	if !p.gone {
		return
	}
	p.gone, p.late, p.dry = false, false, false
	c.goneCount--
	if p.active {
		c.countAll(p, 1)
	}
	for scope := range c.held {
		c.holdAll(p, scope, 1)
	}
}

func (c *Core) deactivate(p *peer) {
	if !p.active {
		return
	}
	c.resume(p)
	p.active = false
	same := func(q *peer) bool { return q == p }
	c.active = slices.DeleteFunc(c.active, same)
	c.servers = slices.DeleteFunc(c.servers, same)
	c.countAll(p, -1)
}

func (c *Core) countAll(p *peer, by int) {
	for w, m := range p.have {
		for ; m != 0; m &= m - 1 {
			c.count1(p, w<<6+bits.TrailingZeros64(m), by)
		}
	}
}

// count1 keeps the tables of who has chunk i.
func (c *Core) count1(p *peer, i, by int) {
	c.avail[i] = uint16(int(c.avail[i]) + by)
	if p.seed {
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
		c.resume(p)
		c.deactivate(p)
		same := func(q *peer) bool { return q == p }
		c.ups = slices.DeleteFunc(c.ups, same)
		for len(p.asked) > 0 {
			c.drop(p.asked[len(p.asked)-1])
		}
		c.queue = slices.DeleteFunc(c.queue, func(u *upload) bool {
			if u.peer == p {
				c.idle = append(c.idle, u)
			}
			return u.peer == p
		})
		c.serving = slices.DeleteFunc(c.serving, func(u *upload) bool {
			if u.peer != p {
				return false
			}
			if !u.stuck {
				c.slots--
			}
			c.idle = append(c.idle, u)
			return true
		})
		for scope := range c.held {
			c.holdAll(p, scope, -1)
		}
		c.waiting = append(c.waiting, p)
		p.have, p.given = nil, nil
		c.activate()
	default:
		return
	}
	p.state = known
	// A server that is missed is worth asking more often than one of many agents, and
	// another may have taken its place.
	most := 15 * time.Second
	if p.server {
		most = 2 * time.Second
		if c.missing > 0 {
			c.do(Effect{Kind: Find})
		}
	}
	p.backoff = min(max(2*p.backoff, 250*time.Millisecond), most)
	if c.beside(p) {
		c.reown()
	}
	p.retryAt = c.now + p.backoff
	c.note(p.retryAt)
	if p.server {
		c.serverAt = 0
	}
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
	p.load, p.loadAt = ev.Load, c.now
	for _, i := range ev.Chunks {
		c.add1(p, int(i))
	}
	c.add(p, ev.Have)
}
