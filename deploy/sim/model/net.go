package model

import (
	"github.com/shoal-registry/shoal/transfer/swarm/core"
)

// The network: an uplink takes the chunks that its host sends in turn, a segment
// each; a downlink takes segments in the order in which they come. A segment cuts
// through: its first byte is at the other end half a round trip after it began to leave.
// Inside a region at most two segments of a chunk are unconfirmed, as TCP's window has
// it; between regions the window is larger than a chunk. Introductions wait in a line of
// their own, which takes turns with the chunks.

// serve puts a chunk on its way.
func (s *simulation) serve(id, k int32, b int, e *core.Effect) {
	h := &s.hosts[id]
	size := int32(s.chunks[b][e.Chunk])
	s.put(id, send{
		from: id, to: h.ids[k], handle: k, back: h.links[k].back, request: e.Request, chunk: int32(e.Chunk),
		size: size, segment: max(minSegment, (size+segments-1)/segments), root: uint8(b), intro: -1,
		wan: way(h, &s.hosts[h.ids[k]]) == 1,
	})
}

// reply puts an introduction of size bytes on its way, not before at.
func (s *simulation) reply(id, to int32, b, size int, n int32, at int64) {
	s.put(id, send{from: id, to: to, size: int32(size), segment: int32(size), root: uint8(b), intro: n, hold: at})
}

func (s *simulation) put(id int32, x send) {
	x.left = x.size
	var i int32
	if n := len(s.free); n > 0 {
		i = s.free[n-1]
		s.free = s.free[:n-1]
		s.sends[i] = x
	} else {
		i = int32(len(s.sends))
		s.sends = append(s.sends, x)
	}
	h := &s.hosts[id]
	if x.intro >= 0 {
		h.intros = append(h.intros, i)
	} else {
		h.sends = append(h.sends, i)
	}
	s.kick(id, s.now)
}

// refer adds an event that speaks of send e.a, which stays until it has happened.
func (s *simulation) refer(at int64, e event) {
	s.sends[e.a].refs++
	e.root = s.sends[e.a].root
	s.push(at, e)
}

// kick lets host id see at time at what it can send.
func (s *simulation) kick(id int32, at int64) {
	h := &s.hosts[id]
	if at = max(at, h.upFree, s.now); h.wake != 0 && h.wake <= at {
		return
	}
	h.wake = at
	s.push(at, event{kind: evPump, host: id})
}

// pump puts the next segment of host id on its uplink, which is free.
func (s *simulation) pump(id int32) {
	h := &s.hosts[id]
	if h.gone {
		s.forgetSends(h)
		return
	}
	var next int64
	if len(h.intros) > 0 && (!h.bulkNext || len(h.sends) == 0) {
		h.bulkNext = true
		// As much of them as of a chunk in one turn.
		for left := int32(minSegment); len(h.intros) > 0 && left > 0; {
			i := h.intros[0]
			if hold := s.sends[i].hold; hold > s.now {
				next = hold
				break
			}
			left -= s.sends[i].size
			h.intros = h.intros[1:]
			s.transmit(id, i)
		}
		if h.upFree > s.now {
			s.kick(id, h.upFree)
			return
		}
	}
	h.bulkNext = false
	n := len(h.sends)
	for k := 0; k < n; k++ {
		at := int(h.turn) + k
		if at >= n {
			at -= n
		}
		i := h.sends[at]
		x := &s.sends[i]
		if x.stop || h.links[x.handle].joined>>x.root&1 == 0 {
			h.sends = append(h.sends[:at], h.sends[at+1:]...)
			if at < int(h.turn) {
				h.turn--
			}
			s.refer(s.now, event{kind: evSent, host: id, a: i})
			n, k = n-1, -1
			continue
		}
		free := x.hold
		if !x.wan && x.count >= stepsAhead {
			ack := x.acks[x.count-stepsAhead]
			if ack == 0 {
				continue // its confirmation wakes us
			}
			free = max(free, ack)
		}
		if free > s.now {
			if next == 0 || free < next {
				next = free
			}
			continue
		}
		s.transmit(id, i)
		if x = &s.sends[i]; x.left == 0 {
			h.sends = append(h.sends[:at], h.sends[at+1:]...)
			n--
		} else {
			at++
		}
		if h.turn = int32(at); at >= n {
			h.turn = 0
		}
		next = h.upFree
		if n+len(h.intros) == 0 {
			next = 0
		}
		break
	}
	if next > 0 {
		s.kick(id, next)
	}
}

// transmit puts the next segment of send i on the uplink of its host.
func (s *simulation) transmit(id, i int32) {
	h := &s.hosts[id]
	x := &s.sends[i]
	size := min(x.segment, x.left)
	bytes := float64(size)*(1+s.Overhead) + float64(h.debt)
	h.debt = 0
	x.left -= size
	k := int32(x.count)
	x.count++
	h.upFree = max(h.upFree, s.now) + int64(bytes*h.upNs)
	if x.intro < 0 {
		h.upBytes += int64(size)
	}
	to := &s.hosts[x.to]
	half := s.half[0]
	first, last := s.now, h.upFree
	if x.wan {
		half = s.half[1]
		if r := &s.regions[h.region]; r.leaves > 0 {
			first = max(r.leaveAt, first)
			r.leaveAt = first + int64(float64(size)*(1+s.Overhead)*r.leaves)
			last = max(last, r.leaveAt)
		}
	}
	if s.Loss > 0 && s.rand.Float64() < s.Loss {
		stall := max(int64(s.LossStall), 4*half)
		first, last, x.hold = first+stall, last+stall, s.now+stall
	}
	x.ends[k] = last + half
	kind := evArrive
	if x.wan {
		kind = evEnter
	}
	s.refer(first+half, event{kind: kind, host: x.to, a: i, b: k, c: size})
	if x.left == 0 && x.wan {
		s.refer(last, event{kind: evSent, host: id, a: i, b: 1})
	}
	if to.frozen && !x.watched && x.intro < 0 {
		x.watched = true
		s.refer(s.now+progressTime, event{kind: evAbort, host: id, a: i})
	}
}

// moves is what happens to a send.
func (s *simulation) moves(e *event) {
	i := e.a
	x := &s.sends[i]
	x.refs--
	h := &s.hosts[e.host]
	b := int(e.root)
	switch e.kind {
	case evEnter:
		r := &s.regions[h.region]
		first := s.now
		if r.enters > 0 {
			first = max(r.enterAt, s.now)
			r.enterAt = first + int64(float64(e.c)*(1+s.Overhead)*r.enters)
			x.ends[e.b] = max(x.ends[e.b], r.enterAt)
		}
		r.entered += int64(e.c)
		s.refer(first, event{kind: evArrive, host: e.host, a: i, b: e.b, c: e.c})
	case evArrive:
		s.arrive(e, h, x)
	case evComing:
		p := &h.blobs[b]
		if !h.gone && s.waits(p, x) {
			s.step(e.host, b, core.Event{Kind: core.Coming, Peer: core.Peer(x.back), Request: x.request, Chunk: int(x.chunk)})
		}
	case evLanded:
		s.landed(e.host, b, i)
	case evSent:
		if !x.over {
			x.over = true
			if s.member(h, x.handle, b) {
				s.step(e.host, b, core.Event{Kind: core.Sent, Peer: core.Peer(x.handle), Request: x.request, Chunk: int(x.chunk), OK: e.b == 1})
			}
		}
	case evAbort:
		if !x.over && x.acks[max(x.count-1, 0)] == 0 && s.hosts[x.to].frozen {
			x.stop = true
			if x.left == 0 {
				s.refer(s.now, event{kind: evSent, host: e.host, a: i})
			}
			s.kick(x.from, s.now)
		}
	case evLost:
		if p := &h.blobs[b]; s.hosts[x.from].frozen && s.waits(p, x) {
			s.answered(p, x.request)
			s.step(e.host, b, core.Event{Kind: core.Failed, Peer: core.Peer(x.back), Request: x.request})
		}
	}
	s.settle(i)
}

// settle frees a send of which nothing more happens.
func (s *simulation) settle(i int32) {
	if x := &s.sends[i]; x.over && x.refs == 0 {
		x.size, x.from, x.refs = 0, -1, -1
		s.free = append(s.free, i)
	}
}

// waits reports whether the answer x is still wanted.
func (s *simulation) waits(p *part, x *send) bool {
	for _, a := range p.asked {
		if a.request == x.request && a.from == x.back {
			return true
		}
	}
	return false
}

// arrive takes a segment at the receiver's downlink.
func (s *simulation) arrive(e *event, h *host, x *send) {
	if h.gone {
		return // the sender learns it from the link
	}
	begin := max(h.downFree, s.now)
	h.downFree = begin + int64((float64(e.c)*(1+s.Overhead)+float64(h.credit))*h.downNs)
	h.credit = 0
	land := max(h.downFree, x.ends[e.b])
	if x.intro >= 0 {
		s.refer(land, event{kind: evLanded, host: e.host, a: e.a})
		return
	}
	if e.b == 0 {
		s.refer(begin, event{kind: evComing, host: e.host, a: e.a})
	}
	if !x.wan {
		x.acks[e.b] = land + s.half[0]
		if x.left > 0 {
			s.kick(x.from, x.acks[e.b])
		}
	}
	if x.left == 0 && int8(e.b) == x.count-1 {
		s.refer(land, event{kind: evLanded, host: e.host, a: e.a})
		if !x.wan {
			s.refer(land+s.half[0], event{kind: evSent, host: x.from, a: e.a, b: 1})
		}
	}
}

// landed is a whole answer: an introduction, or a chunk that the store verifies.
func (s *simulation) landed(id int32, b int, i int32) {
	x := &s.sends[i]
	h := &s.hosts[id]
	if x.intro >= 0 {
		x.over = true
		s.introduced(id, b, s.note(x.intro))
		return
	}
	if h.gone {
		return
	}
	from := &s.hosts[x.from]
	s.received += int64(x.size)
	if from.zone == h.zone {
		s.zoneBytes += int64(x.size)
	}
	p := &h.blobs[b]
	if !s.waits(p, x) {
		return // another peer was faster
	}
	s.answered(p, x.request)
	request, c, back := x.request, int(x.chunk), x.back
	if from.liar {
		s.wrong++
		had := p.core.Has(c)
		s.step(id, b, core.Event{Kind: core.Corrupt, Peer: core.Peer(back), Request: request, Chunk: c})
		if !had && p.core.Has(c) {
			s.breaches++
		}
		return
	}
	s.deliveries++
	s.step(id, b, core.Event{Kind: core.Arrived, Peer: core.Peer(back), Request: request, Chunk: c})
	s.advance(id, b)
}
