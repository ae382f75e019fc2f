package core_test

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/transfer/swarm/core"
)

// simulation runs many Cores over modelled links in virtual time. A link is a
// queue of segments: an uploader takes its sends in turn, a receiver takes what
// arrives in order, and a send has at most a window of segments on the way, as TCP has.
type simulation struct {
	now    time.Duration
	events eventHeap
	serial uint64
	hosts  []*simHost
	opt    simOptions
	rand   *rand.Rand

	arrivals                     [][]int // host, chunk of any root: how often received whole
	trace                        uint64  // hash of all that happened
	haves, asks, cancels, hedged int
}

type simOptions struct {
	hosts    int // without the seed
	chunks   []uint32
	roots    int     // blobs of those chunks, fetched at once; 0: one
	up, down float64 // bytes/s of every host
	seedUp   float64 // of the seed; 0: as up
	rtt      time.Duration
	lag      time.Duration // that messages wait behind bulk
	seed     uint64
	degree   int // peers that a host is told of
	mutate   func(*core.Config)
	corrupt  int // this host sends wrong bytes
	frozen   int // this host stops sending and receiving
	freezeAt time.Duration
	relay    bool // host 1 is a relaying server, the only one that knows the seed
	stagger  time.Duration
}

const segmentBytes = 16 << 10
const sendWindow = 16

type simHost struct {
	id       int
	roots    []*simRoot
	up, down float64
	sends    []*simSend
	turn     int
	upBusy   bool
	downAt   time.Duration // when the downlink is free
	upBytes  int64
	finished time.Duration
	bad      bool
	frozen   bool
	linked   map[int]bool
	bytes    int64
	steps    int
	wrong    int // chunks that were not what they should be
	hedges   int
}

// simRoot is a host's part in one blob.
type simRoot struct {
	*core.Core
	index             int
	tick              time.Duration
	serving, fetching bool
}

type simSend struct {
	from, to  *simHost
	root      int
	request   core.Request
	chunk     int
	left, air int
	landed    int
	total     int
	stop      bool
	begun     bool
	done      bool
}

type simEvent struct {
	at     time.Duration
	serial uint64
	do     func()
}

type eventHeap []simEvent

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].serial < h[j].serial
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(simEvent)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = simEvent{}
	*h = old[:len(old)-1]
	return e
}

func (s *simulation) after(d time.Duration, do func()) {
	s.serial++
	heap.Push(&s.events, simEvent{s.now + d, s.serial, do})
}

func newSimulation(opt simOptions) *simulation {
	s := &simulation{opt: opt, rand: rand.New(rand.NewPCG(opt.seed, 1))}
	if opt.degree == 0 {
		s.opt.degree = 24
	}
	s.opt.roots = max(opt.roots, 1)
	n := len(opt.chunks)
	for i := range opt.hosts + 1 {
		cfg := core.Config{Chunks: opt.chunks, Server: i == 0 || opt.relay && i == 1, Seed: opt.seed<<16 + uint64(i)}
		if cfg.Server {
			cfg.Members = 1024
		}
		if opt.mutate != nil {
			opt.mutate(&cfg)
		}
		have := core.NewBits(n)
		if i == 0 {
			for c := range n {
				have.Set(c)
			}
		}
		h := &simHost{id: i, up: opt.up, down: opt.down, linked: map[int]bool{}, bad: i > 0 && i == opt.corrupt}
		for r := range s.opt.roots {
			cfg.Seed += uint64(r) << 32
			h.roots = append(h.roots, &simRoot{Core: core.New(cfg, have), index: r})
		}
		if i == 0 && opt.seedUp > 0 {
			h.up = opt.seedUp
		}
		s.hosts = append(s.hosts, h)
		s.arrivals = append(s.arrivals, make([]int, n*s.opt.roots))
	}
	for _, h := range s.hosts[1:] {
		start := time.Duration(0)
		if opt.stagger > 0 {
			start = time.Duration(s.rand.Int64N(int64(opt.stagger)))
		}
		s.after(start, func() { s.join(h) })
	}
	if opt.frozen > 0 {
		s.after(opt.freezeAt, func() { s.hosts[opt.frozen].frozen = true })
	}
	return s
}

func (s *simulation) server(id int) bool { return id == 0 || s.opt.relay && id == 1 }

func (s *simulation) join(h *simHost) {
	s.all(h, core.Event{Kind: core.ReaderAt, Reader: 1})
	tell := func(id int) {
		s.all(h, core.Event{Kind: core.PeerKnown, Peer: core.Peer(id), Server: s.server(id), Near: 2})
	}
	if !s.opt.relay || h.id == 1 {
		tell(0)
	}
	if s.opt.relay && h.id == 1 {
		return
	}
	if s.opt.relay {
		tell(1)
	}
	for _, k := range s.rand.Perm(s.opt.hosts) {
		if id := k + 1; id != h.id && id != 1 || !s.opt.relay && id != h.id {
			tell(id)
			if len(h.linked) > s.opt.degree {
				break
			}
		}
	}
}

func (s *simulation) all(h *simHost, ev core.Event) {
	for _, r := range h.roots {
		s.step(h, r, ev)
	}
}

// have returns the set of chunks of a root as a member sees it.
func (s *simulation) have(r *simRoot) core.Bits {
	b := core.NewBits(len(s.opt.chunks))
	for i := range s.opt.chunks {
		if r.Has(i) {
			b.Set(i)
		}
	}
	return b
}

// share tells the cores of a host how many of them serve and fetch.
func (s *simulation) share(h *simHost) {
	serving, fetching, changed := 0, 0, false
	for _, r := range h.roots {
		sv, ft := r.Serving() > 0, r.Missing() > 0
		changed = changed || sv != r.serving || ft != r.fetching
		r.serving, r.fetching = sv, ft
		if sv {
			serving++
		}
		if ft {
			fetching++
		}
	}
	if changed {
		s.all(h, core.Event{Kind: core.Shared, Serving: serving, Fetching: fetching})
	}
}

func (s *simulation) step(h *simHost, r *simRoot, ev core.Event) {
	if h.frozen {
		return
	}
	h.steps++
	s.trace = (s.trace ^ uint64(s.now) ^ uint64(ev.Kind)<<56 ^ uint64(ev.Chunk)<<40 ^ uint64(h.id)<<24) * 1099511628211
	effects := slices.Clone(r.Step(s.now, ev))
	half := s.opt.rtt/2 + s.opt.lag
	for _, e := range effects {
		peer := s.hosts[e.Peer]
		send := func(ev core.Event) {
			ev.Peer = core.Peer(h.id)
			s.after(half, func() {
				if h.linked[peer.id] {
					s.step(peer, peer.roots[r.index], ev)
				}
			})
		}
		switch e.Kind {
		case core.Dial:
			s.after(2*s.opt.rtt, func() { s.link(h, peer) })
		case core.Want:
			s.asks++
			if e.Hedge {
				h.hedges++
				s.hedged++
			}
			send(core.Event{Kind: core.Asked, Request: e.Request, Chunk: e.Chunk})
		case core.Pull:
			s.asks++
			send(core.Event{Kind: core.Pulled, Request: e.Request, From: e.From, Class: e.Class, Classes: e.Classes})
		case core.Cancel:
			s.cancels++
			send(core.Event{Kind: core.Cancelled, Request: e.Request})
		case core.Busy:
			send(core.Event{Kind: core.Refused, Request: e.Request, After: e.After})
		case core.Tell:
			s.haves++
			ev := core.Event{Kind: core.PeerHas, Chunks: slices.Clone(e.Chunks), Load: e.Load}
			if len(e.Chunks) == 0 {
				ev.Have = s.have(r)
			}
			send(ev)
		case core.Serve:
			size := int(s.opt.chunks[e.Chunk])
			h.sends = append(h.sends, &simSend{from: h, to: peer, root: r.index, request: e.Request, chunk: e.Chunk, left: size, total: size})
			s.pump(h)
		case core.Stop:
			for _, x := range h.sends {
				if x.to == peer && x.root == r.index && x.request == e.Request {
					x.stop = true
				}
			}
			s.pump(h)
		case core.Ban:
			s.unlink(h, peer)
		case core.Done:
			h.finished = s.now
		}
	}
	if at, ok := r.Next(); ok && (r.tick <= s.now || at < r.tick) {
		r.tick = at
		s.after(at-s.now, func() {
			if r.tick == s.now {
				s.step(h, r, core.Event{Kind: core.Tick})
			}
		})
	}
	if len(h.roots) > 1 && ev.Kind != core.Shared {
		s.share(h)
	}
}

func (s *simulation) link(a, b *simHost) {
	if a.linked[b.id] {
		return
	}
	a.linked[b.id], b.linked[a.id] = true, true
	for _, x := range [][2]*simHost{{a, b}, {b, a}} {
		for i, r := range x[0].roots {
			s.step(x[0], r, core.Event{
				Kind: core.PeerUp, Peer: core.Peer(x[1].id), Server: s.server(x[1].id), Near: 2, RTT: s.opt.rtt, Have: s.have(x[1].roots[i]),
			})
		}
	}
}

func (s *simulation) unlink(a, b *simHost) {
	if !a.linked[b.id] {
		return
	}
	delete(a.linked, b.id)
	delete(b.linked, a.id)
	s.all(a, core.Event{Kind: core.PeerDown, Peer: core.Peer(b.id)})
	s.all(b, core.Event{Kind: core.PeerDown, Peer: core.Peer(a.id)})
}

// pump puts the next segment of h on its uplink.
func (s *simulation) pump(h *simHost) {
	if h.upBusy || h.frozen {
		return
	}
	for k := 0; k < len(h.sends); {
		x := h.sends[(h.turn+k)%len(h.sends)]
		if x.stop || x.left == 0 || !h.linked[x.to.id] {
			i := slices.Index(h.sends, x)
			h.sends = slices.Delete(h.sends, i, i+1)
			if i < h.turn {
				h.turn--
			}
			if !x.done && (x.left > 0 || !h.linked[x.to.id]) {
				x.done = true
				s.step(h, h.roots[x.root], core.Event{Kind: core.Sent, Peer: core.Peer(x.to.id), Request: x.request, OK: x.left == 0})
			}
			k = 0
			if h.upBusy {
				return
			}
			continue
		}
		if x.air >= sendWindow {
			k++
			continue
		}
		h.turn = (h.turn + k + 1) % len(h.sends)
		size := min(segmentBytes, x.left)
		x.left -= size
		x.air++
		h.upBusy = true
		h.upBytes += int64(size)
		s.after(time.Duration(float64(size)/h.up*1e9), func() {
			h.upBusy = false
			s.after(s.opt.rtt/2, func() { s.receive(x, size) })
			s.pump(h)
		})
		return
	}
}

func (s *simulation) receive(x *simSend, size int) {
	if x.to.frozen {
		return
	}
	to := x.to
	to.downAt = max(to.downAt, s.now) + time.Duration(float64(size)/to.down*1e9)
	s.after(to.downAt-s.now, func() {
		if !x.begun {
			x.begun = true
			s.step(to, to.roots[x.root], core.Event{Kind: core.Coming, Peer: core.Peer(x.from.id), Request: x.request, Chunk: x.chunk})
		}
		x.landed += size
		to.bytes += int64(size)
		if x.landed == x.total {
			kind := core.Arrived
			if x.from.bad {
				kind = core.Corrupt
				to.wrong++
			} else {
				s.arrivals[to.id][x.root*len(s.opt.chunks)+x.chunk]++
			}
			s.step(to, to.roots[x.root], core.Event{Kind: kind, Peer: core.Peer(x.from.id), Request: x.request, Chunk: x.chunk})
		}
		s.after(s.opt.rtt/2, func() {
			x.air--
			if x.landed == x.total && x.air == 0 && !x.done {
				x.done = true
				s.step(x.from, x.from.roots[x.root], core.Event{Kind: core.Sent, Peer: core.Peer(x.to.id), Request: x.request, OK: true})
			}
			s.pump(x.from)
		})
	})
}

type simResult struct {
	bound, first, median, last   time.Duration
	copies                       float64 // sent by the seed
	waste                        float64 // share of received bytes that were not needed
	trace                        uint64
	unfinished                   int
	steps                        int
	haves, asks, cancels, hedged float64 // messages a chunk and host
}

func (r simResult) String() string {
	return fmt.Sprintf("bound %v, p50 %.3f, last %.3f x bound, seed %.3f copies, waste %.1f %%, %d unfinished, %d steps, have %.1f ask %.2f cancel %.2f hedge %.3f",
		r.bound.Round(time.Millisecond), ratio(r.median, r.bound), ratio(r.last, r.bound), r.copies, 100*r.waste, r.unfinished, r.steps, r.haves, r.asks, r.cancels, r.hedged)
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

func (s *simulation) run(limit time.Duration) simResult {
	for s.events.Len() > 0 {
		e := heap.Pop(&s.events).(simEvent)
		if e.at > limit {
			break
		}
		s.now = e.at
		e.do()
	}
	var total int64
	for _, c := range s.opt.chunks {
		total += int64(c)
	}
	total *= int64(s.opt.roots)
	up := s.hosts[0].up
	f, n := float64(total), float64(s.opt.hosts)
	bound := max(f/up, f/s.opt.down, n*f/(up+n*s.opt.up))
	r := simResult{bound: time.Duration(bound * 1e9), trace: s.trace, copies: float64(s.hosts[0].upBytes) / f}
	per := float64(s.opt.hosts * len(s.opt.chunks) * s.opt.roots)
	r.haves, r.asks, r.cancels, r.hedged = float64(s.haves)/per, float64(s.asks)/per, float64(s.cancels)/per, float64(s.hedged)/per
	var ends []time.Duration
	var received int64
	for _, h := range s.hosts[1:] {
		r.steps += h.steps
		if h.frozen || h.bad {
			continue
		}
		received += h.bytes
		if slices.ContainsFunc(h.roots, func(r *simRoot) bool { return !r.Complete() }) {
			r.unfinished++
			continue
		}
		ends = append(ends, h.finished)
	}
	slices.Sort(ends)
	if len(ends) > 0 {
		r.first, r.median, r.last = ends[0], ends[len(ends)/2], ends[len(ends)-1]
		r.waste = float64(received)/(f*float64(len(ends)+r.unfinished)) - 1
	}
	return r
}

func lengths(total int64) []uint32 {
	var out []uint32
	for off := int64(0); off < total; {
		l := int64(256 << 10)
		switch n := len(out); {
		case n >= 1024:
			l = 4 << 20
		case n >= 768:
			l = 2 << 20
		case n >= 512:
			l = 1 << 20
		case n >= 256:
			l = 512 << 10
		}
		l = min(l, total-off)
		out = append(out, uint32(l))
		off += l
	}
	return out
}

const mbit = 1e6 / 8
