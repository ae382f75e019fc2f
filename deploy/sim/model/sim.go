package model

import (
	"math/rand/v2"
	"time"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/swarm/core"
)

type eventKind uint8

const (
	evStart   eventKind = iota // host begins the wave
	evAsk                      // at a registrar: a introduces itself
	evRenew                    // host asks its registrar again for root
	evPEX                      // host tells members of one another
	evTick                     // the time a core has named
	evHave                     // at host from handle a: batch b
	evMail                     // host reads its HAVEs
	evJoin                     // at host: a wants to be a member
	evJoined                   // at host: handle a took us
	evRefused                  // at host: handle a has no place for us; b names others, or is -1
	evWant                     // at host from handle a: request b, chunk c
	evPull                     // at host from handle a: request b, note c
	evCancel                   // at host from handle a: request b
	evBusy                     // at host from handle a: request b, note c
	evKnown                    // at host: it is told of the peers in note c
	evDown                     // at host: handle a is gone
	evPump                     // host's uplink is free, or may have something to send
	evEnter                    // send a's segment b reaches its region's entry, c bytes
	evArrive                   // send a's segment b reaches host's downlink, c bytes
	evComing                   // send a's first bytes are read
	evLanded                   // send a's last byte is read
	evSent                     // send a has left host; b is 1 when whole
	evAbort                    // send a made no progress
	evLost                     // at host: nothing more comes of send a
	evFreeze                   // host stops
	evThaw                     // host goes on
	evSilent                   // the peers of host notice that it is silent
	evLeave                    // host goes
	evReturn                   // host is back
	evKill                     // host's process ends
)

// Times of the shell that the model repeats (transfer/swarm, dht).
const (
	pexEvery      = int64(5 * time.Second)
	progressTime  = int64(10 * time.Second) // a piece must move within
	silenceTime   = int64(20 * time.Second) // a link without a message ends
	againFetching = int64(4 * time.Second)
	againComplete = int64(6 * time.Second)
	hurryAfter    = int64(250 * time.Millisecond)
	lease         = int64(15 * time.Second)
	hedgeAfter    = int64(400 * time.Millisecond)
	pexPeers      = 16
	maxPeers      = 24
	maxHolders    = 12
	neighbours    = 4
	standAfter    = int64(2 * time.Second)
	standMost     = 2
	inlineBytes   = 16 << 10
	agentMembers  = 64
	serverMembers = 1024
	stepsAhead    = 2 // segments of a chunk on their way inside a region: TCP's window
	segments      = 4 // of a chunk at most
	minSegment    = 64 << 10
	mailMost      = 512
	introBytes    = 2 << 10 // an introduction without its map
)

// simulation is one run.
type simulation struct {
	clock
	*Scenario
	rand    *rand.Rand
	chunks  [][]uint32 // lengths, by blob
	total   int64
	mapped  []int // bytes of each blob's map
	whole   []core.Bits
	hosts   []host
	regions []region
	sends   []send
	free    []int32 // of sends
	notes   []note
	noted   []int32 // free ones
	batches []batch
	batched []int32 // free ones
	half    [2]int64
	bound   time.Duration
	waiting int // hosts that are still expected to finish

	trace                     uint64
	events, steps, deliveries int64
	zoneBytes, received       int64
	wrong, bans, hedges       int64
	haves                     int64
	breaches                  int64 // chunks sent or taken that were not right: must stay 0
}

type region struct {
	first, end int32 // its hosts; the servers come first
	servers    int32
	enters     float64 // ns a byte, 0 without limit
	leaves     float64
	enterAt    int64
	leaveAt    int64
	entered    int64
	fetching   []bool // by blob: its servers were asked
}

// host is a node: its links, its part in each blob, its ends of the network.
type host struct {
	ids      []int32 // of peers, by handle
	links    []link
	blobs    []part
	sends    []int32 // with something left to put on the uplink
	intros   []int32 // introductions, in order; they take turns with the sends
	inbox    []mail
	deferred []event // while frozen

	upNs, downNs float64 // a byte
	upFree       int64   // when what was put on it has left
	downFree     int64
	debt, credit int64 // bytes of messages not yet charged to uplink and downlink
	wake         int64 // when the next pump is due; 0: none
	upBytes      int64
	registrarAt  int64

	region       int16
	zone         uint32
	turn         int32
	server       bool
	bulkNext     bool // an introduction had the last turn
	liar         bool
	frozen, gone bool
	hurt         bool // does not count in the figures
	mailed       bool
	started      int64
	finished     int64
}

// link is what a host knows of one peer.
type link struct {
	back   int32 // this host's handle at the peer
	joined uint8 // by blob
	open   bool  // there is a connection
	banned bool
}

// part is a host's part in one blob.
type part struct {
	core     *core.Core
	tick     int64     // when a tick is on its way; 0: none
	asked    []asked   // requests without their whole answer
	members  int32     // peers that have joined
	table    [][]int32 // a registrar's members by zone (0: all); servers only
	avoid    uint64    // servers of the region that did not answer
	leases   int64     // of this member at its registrar
	listed   int32     // that registrar, -1 none
	known    bool      // it has its map
	askedAt  int64     // when it last asked to be introduced
	renewAt  int64     // when it will again; 0: it waits for an answer
	silentAt int64     // since when no server of its region is left; 0: one is
	serving  bool
	fetching bool
	pexing   bool // an exchange is due
	pexAt    int64
	done     bool

	head                          int // of the reader
	readAt, firstByte, stall, end int64
}

type asked struct {
	request core.Request
	from    int32 // handle
}

type mail struct {
	batch int32
	from  int32 // handle
}

// batch is the chunks of one HAVE.
type batch struct {
	chunks []uint32 // none: all
	load   int32
	root   uint8
}

// note is what a message says that does not fit into an event.
type note struct {
	from, class, classes int
	after                time.Duration
	peers                []int32
	owners               []uint64
}

// send is a chunk, or an introduction, on its way.
type send struct {
	from, to int32
	handle   int32 // of the receiver at the sender
	back     int32 // of the sender at the receiver
	request  core.Request
	chunk    int32
	size     int32
	left     int32
	segment  int32
	count    int8 // segments put on the uplink
	root     uint8
	intro    int32 // note of an introduction, -1 for a chunk
	wan      bool
	stop     bool
	over     bool
	watched  bool
	refs     int32
	hold     int64 // nothing more before
	ends     [segments]int64
	acks     [segments]int64
}

// lengths cuts a blob.
func lengths(total int64, schedule []Step) []uint32 {
	var out []uint32
	step, used := 0, 0
	for at := int64(0); at < total; {
		l := int64(0)
		if len(schedule) == 0 {
			l = int64(chunk.LengthAt(at))
		} else {
			for step < len(schedule)-1 && used >= schedule[step].Count {
				step, used = step+1, 0
			}
			used++
			l = int64(schedule[step].Bytes)
		}
		l = min(l, total-at)
		out = append(out, uint32(l))
		at += l
	}
	return out
}

func newSimulation(sc *Scenario, seed uint64) *simulation {
	s := &simulation{Scenario: sc, rand: rand.New(rand.NewPCG(seed, 0x73696d)), bound: sc.Bound(), trace: 14695981039346656037}
	s.half = [2]int64{int64(sc.RTT)/2 + int64(sc.Lag), int64(sc.WanRTT)/2 + int64(sc.Lag)}
	for _, b := range sc.Blobs {
		l := lengths(int64(b), sc.Schedule)
		s.chunks = append(s.chunks, l)
		s.mapped = append(s.mapped, 40+32*len(l))
		all := core.NewBits(len(l))
		for i := range l {
			all.Set(i)
		}
		s.whole = append(s.whole, all)
		s.total += int64(b)
	}
	n := 0
	for _, r := range sc.Regions {
		n += r.Hosts + r.Servers
	}
	s.hosts = make([]host, 0, n)
	for i, r := range sc.Regions {
		reg := region{first: int32(len(s.hosts)), servers: int32(r.Servers), fetching: make([]bool, len(sc.Blobs))}
		if r.WanIn > 0 {
			reg.enters = 1e9 / float64(r.WanIn)
		}
		if r.WanOut > 0 {
			reg.leaves = 1e9 / float64(r.WanOut)
		}
		for k := range r.Servers + r.Hosts {
			h := host{region: int16(i), server: k < r.Servers, upNs: 1e9 / float64(sc.Up), downNs: 1e9 / float64(sc.Down), started: -1, finished: -1}
			if h.server {
				h.upNs, h.downNs = 1e9/float64(sc.ServerUp), 1e9/float64(sc.ServerDown)
			}
			// Servers and hosts are dealt to the zones, each in turn.
			at := k
			if !h.server {
				at = k - r.Servers
			}
			h.zone = uint32(i*1024 + at%r.Zones + 1)
			h.blobs = make([]part, len(sc.Blobs))
			s.hosts = append(s.hosts, h)
		}
		reg.end = int32(len(s.hosts))
		s.regions = append(s.regions, reg)
	}
	base, err := sc.config()
	if err != nil {
		panic(err) // Parse has checked it
	}
	for id := range s.hosts {
		h := &s.hosts[id]
		for b := range h.blobs {
			p := &h.blobs[b]
			p.listed, p.firstByte, p.end = -1, -1, -1
			if h.server {
				p.table = make([][]int32, sc.Regions[h.region].Zones+1)
			}
			p.core = s.newCore(base, int32(id), b, seed, id == 0)
		}
	}
	s.faults(seed)
	return s
}

// newCore makes the core of a host for a blob, with all of it or nothing.
func (s *simulation) newCore(cfg core.Config, id int32, b int, seed uint64, whole bool) *core.Core {
	h := &s.hosts[id]
	cfg.Chunks, cfg.Server = s.chunks[b], h.server
	cfg.Seed = mix(seed + uint64(id)<<8 + uint64(b))
	cfg.Key, cfg.Zone = keyOf(id), h.zone
	if cfg.Members == 0 && h.server {
		cfg.Members = serverMembers
	}
	if whole {
		return core.New(cfg, s.whole[b])
	}
	return core.New(cfg, nil)
}

// keyOf is the stable key of a host.
func keyOf(id int32) uint64 { return mix(uint64(id) + 0x9e3779b97f4a7c15) }

// mix is the finisher of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// faults deals the scenario's faults to hosts and schedules the starts.
func (s *simulation) faults(seed uint64) {
	var agents []int32
	for id := range s.hosts {
		if !s.hosts[id].server {
			agents = append(agents, int32(id))
		}
	}
	// Faults come to different hosts, and to the same ones for one seed.
	r := rand.New(rand.NewPCG(seed, 0x6661756c74))
	order := r.Perm(len(agents))
	take := func(n int) []int32 {
		n = min(n, len(order))
		out := make([]int32, n)
		for i := range out {
			out[i] = agents[order[i]]
		}
		order = order[n:]
		return out
	}
	share := func(x float64) int { return int(x*float64(len(agents)) + 0.5) }
	at := func(x float64) int64 { return int64(x * float64(s.bound)) }
	start := make(map[int32]int64)
	if f := s.Slow; f != nil {
		for _, id := range take(share(f.Share)) {
			h := &s.hosts[id]
			h.upNs, h.downNs, h.hurt = h.upNs/f.Factor, h.downNs/f.Factor, true
		}
	}
	if f := s.Corrupt; f != nil {
		for _, id := range take(f.Hosts) {
			s.hosts[id].liar, s.hosts[id].hurt = true, true
		}
	}
	if f := s.Freeze; f != nil {
		for _, id := range take(share(f.Share)) {
			s.hosts[id].hurt = true
			s.push(at(f.At), event{kind: evFreeze, host: id})
			if f.For > 0 {
				s.push(at(f.At)+int64(f.For), event{kind: evThaw, host: id})
			}
		}
	}
	if f := s.Churn; f != nil {
		for _, id := range take(share(f.Share)) {
			s.hosts[id].hurt = true
			leave := at(f.From + (f.To-f.From)*r.Float64())
			s.push(leave, event{kind: evLeave, host: id})
			s.push(leave+int64(f.Away), event{kind: evReturn, host: id})
		}
	}
	if f := s.Late; f != nil {
		for _, id := range take(share(f.Share)) {
			start[id] = at(f.At)
		}
	}
	if f := s.Kill; f != nil {
		s.push(at(f.At), event{kind: evKill, host: s.regions[f.Region].first + int32(f.Server)})
	}
	for _, id := range agents {
		when := start[id]
		if s.Spread > 0 {
			when += r.Int64N(int64(s.Spread))
		}
		s.push(when, event{kind: evStart, host: id})
		if !s.hosts[id].hurt {
			s.waiting++
		}
	}
}

// run works until every host that is expected to has finished, or limit.
func (s *simulation) run(limit time.Duration) {
	for s.waiting > 0 {
		e, ok := s.pop()
		if !ok || e.at > int64(limit) {
			return
		}
		s.events++
		s.handle(&e)
	}
}

func (s *simulation) handle(e *event) {
	h := &s.hosts[e.host]
	if h.frozen && e.kind < evThaw && e.kind != evAbort {
		h.deferred = append(h.deferred, *e)
		return
	}
	b := int(e.root)
	switch e.kind {
	case evStart:
		s.start(e.host)
	case evAsk:
		s.answer(e.host, e.a, b)
	case evRenew:
		if h.blobs[b].renewAt == s.now {
			s.introduce(e.host, b)
		}
	case evPEX:
		s.exchange(e.host, b)
	case evTick:
		s.tick(e.host, b)
	case evHave:
		s.receive(e)
	case evMail:
		h.mailed = false
		if !h.gone {
			s.read(e.host)
		}
	case evJoin:
		s.join(e.host, e.a, b)
	case evJoined:
		s.joined(e.host, e.a, b)
	case evRefused:
		s.refused(e.host, e.a, b, e.b)
	case evWant:
		if s.member(h, e.a, b) {
			s.step(e.host, b, core.Event{Kind: core.Asked, Peer: core.Peer(e.a), Request: core.Request(e.b), Chunk: int(e.c)})
		}
	case evPull:
		n := s.note(e.c)
		if s.member(h, e.a, b) {
			s.step(e.host, b, core.Event{
				Kind: core.Pulled, Peer: core.Peer(e.a), Request: core.Request(e.b), From: n.from, Class: n.class, Classes: n.classes, Owners: n.owners,
			})
		}
	case evCancel:
		if s.member(h, e.a, b) {
			s.step(e.host, b, core.Event{Kind: core.Cancelled, Peer: core.Peer(e.a), Request: core.Request(e.b)})
		}
	case evBusy:
		n := s.note(e.c)
		if s.member(h, e.a, b) && s.answered(&h.blobs[b], core.Request(e.b)) {
			s.step(e.host, b, core.Event{Kind: core.Refused, Peer: core.Peer(e.a), Request: core.Request(e.b), After: n.after})
			s.learn(e.host, b, n.peers)
		}
	case evKnown:
		s.learn(e.host, b, s.note(e.c).peers)
	case evDown:
		s.unjoin(e.host, e.a)
	case evPump:
		if h.wake == s.now {
			h.wake = 0
			s.pump(e.host)
		}
	case evEnter, evArrive, evComing, evLanded, evSent, evAbort, evLost:
		s.moves(e)
	case evFreeze:
		s.freeze(e.host)
	case evThaw:
		s.thaw(e.host)
	case evSilent:
		if h.frozen || h.gone {
			s.abandon(e.host, 0)
		}
	case evLeave:
		s.leave(e.host)
	case evReturn:
		s.comeBack(e.host)
	case evKill:
		h.gone = true
		s.abandon(e.host, s.half[0])
	}
}

// note takes a note back.
func (s *simulation) note(i int32) note {
	n := s.notes[i]
	s.notes[i] = note{}
	s.noted = append(s.noted, i)
	return n
}

func (s *simulation) write(n note) int32 {
	if k := len(s.noted); k > 0 {
		i := s.noted[k-1]
		s.noted = s.noted[:k-1]
		s.notes[i] = n
		return i
	}
	s.notes = append(s.notes, n)
	return int32(len(s.notes) - 1)
}

// Faults.

func (s *simulation) freeze(id int32) {
	s.hosts[id].frozen = true
	for i := range s.sends {
		if x := &s.sends[i]; x.from == id && x.left > 0 && !x.over && x.intro < 0 {
			s.refer(s.now+progressTime, event{kind: evLost, host: x.to, a: int32(i)})
		}
	}
	s.after(silenceTime, event{kind: evSilent, host: id})
}

func (s *simulation) thaw(id int32) {
	h := &s.hosts[id]
	if !h.frozen {
		return
	}
	h.frozen = false
	for _, e := range h.deferred {
		s.push(s.now, e)
	}
	h.deferred = nil
	h.wake = 0
	s.kick(id, s.now)
}

// abandon ends the links of a host at both ends; the peers notice after d.
func (s *simulation) abandon(id int32, d int64) {
	h := &s.hosts[id]
	for k := range h.links {
		l := &h.links[k]
		if !l.open {
			continue
		}
		l.open = false
		peer := h.ids[k]
		s.after(d, event{kind: evDown, host: peer, a: l.back})
		s.after(0, event{kind: evDown, host: id, a: int32(k)})
	}
}

// forgetSends ends what a host that has gone was sending.
func (s *simulation) forgetSends(h *host) {
	for _, list := range []*[]int32{&h.sends, &h.intros} {
		for _, i := range *list {
			s.sends[i].over = true
			s.settle(i)
		}
		*list = (*list)[:0]
	}
}

func (s *simulation) leave(id int32) {
	h := &s.hosts[id]
	h.gone = true
	if s.Churn.Silent {
		s.after(silenceTime, event{kind: evSilent, host: id})
	} else {
		s.abandon(id, s.half[0])
	}
}

// comeBack starts a host again with the chunks that it had.
func (s *simulation) comeBack(id int32) {
	h := &s.hosts[id]
	s.abandon(id, s.half[0])
	base, _ := s.config()
	for b := range h.blobs {
		p := &h.blobs[b]
		have := core.NewBits(len(s.chunks[b]))
		for i := range s.chunks[b] {
			if p.core.Has(i) {
				have.Set(i)
			}
		}
		base.Chunks, base.Seed, base.Key, base.Zone = s.chunks[b], s.rand.Uint64(), keyOf(id), h.zone
		p.core = core.New(base, have)
		p.asked, p.tick, p.known, p.listed = nil, 0, false, -1
		p.askedAt, p.renewAt = 0, 0
		p.serving, p.fetching, p.pexing, p.members, p.avoid = false, false, false, 0, 0
	}
	for k := range h.links {
		h.links[k].joined = 0
	}
	for _, m := range h.inbox {
		s.drop(m.batch)
	}
	s.forgetSends(h)
	h.gone, h.inbox, h.turn, h.wake = false, nil, 0, 0
	s.start(id)
}
