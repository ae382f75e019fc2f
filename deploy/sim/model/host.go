package model

import (
	"slices"
	"time"

	"github.com/shoal-registry/shoal/transfer/swarm/core"
)

// What a host's shell does around its cores: the counterpart of transfer/swarm.

// handle returns the handle of a peer at host id, a new one for an unknown peer.
func (s *simulation) handleOf(id, peer int32) int32 {
	h := &s.hosts[id]
	for k, p := range h.ids {
		if p == peer {
			return int32(k)
		}
	}
	h.ids = append(h.ids, peer)
	h.links = append(h.links, link{back: -1})
	return int32(len(h.ids) - 1)
}

// member reports whether the peer of a handle has joined blob b.
func (s *simulation) member(h *host, handle int32, b int) bool {
	return !h.gone && h.links[handle].joined>>b&1 != 0
}

// near ranks a peer as core.Event.Near does.
func near(a, b *host) uint8 {
	switch {
	case a.region != b.region:
		return 3
	case a.zone != b.zone:
		return 2
	default:
		return 1
	}
}

// way is 0 for a path inside a region, 1 for one between two.
func way(a, b *host) int {
	if a.region == b.region {
		return 0
	}
	return 1
}

// message sends e to a host's peer at its handle, where it arrives as from this host.
func (s *simulation) message(h *host, handle int32, e event) {
	peer := &s.hosts[h.ids[handle]]
	h.debt += int64(s.MessageBytes)
	peer.credit += int64(s.MessageBytes)
	e.host, e.a = h.ids[handle], h.links[handle].back
	s.after(s.half[way(h, peer)], e)
}

func (s *simulation) start(id int32) {
	h := &s.hosts[id]
	if h.started < 0 {
		h.started = s.now
	}
	for b := range h.blobs {
		if !h.blobs[b].done {
			s.introduce(id, b)
		}
	}
}

// step gives a core an event, after the HAVEs that lie here.
func (s *simulation) step(id int32, b int, ev core.Event) {
	h := &s.hosts[id]
	if h.gone {
		return
	}
	if len(h.inbox) > 0 {
		s.read(id)
	}
	s.apply(id, b, ev)
}

// apply gives a core an event and carries out what it decides.
func (s *simulation) apply(id int32, b int, ev core.Event) {
	h := &s.hosts[id]
	p := &h.blobs[b]
	s.steps++
	s.trace = (s.trace ^ uint64(s.now) ^ uint64(ev.Kind)<<56 ^ uint64(ev.Chunk)<<40 ^ uint64(id)<<20 ^ uint64(ev.Peer)) * 1099511628211
	effects := p.core.Step(time.Duration(s.now), ev)
	for i := range effects {
		s.carry(id, b, &effects[i])
	}
	if len(effects) > 0 || ev.Kind != core.PeerHas {
		s.schedule(id, b)
	}
	if len(h.blobs) > 1 && ev.Kind != core.Shared {
		s.share(id)
	}
}

// schedule sees to it that the core gets its tick.
func (s *simulation) schedule(id int32, b int) {
	p := &s.hosts[id].blobs[b]
	if at, ok := p.core.Next(); ok && (p.tick == 0 || int64(at) < p.tick) {
		p.tick = max(int64(at), s.now)
		s.push(p.tick, event{kind: evTick, host: id, root: uint8(b)})
	}
}

func (s *simulation) tick(id int32, b int) {
	p := &s.hosts[id].blobs[b]
	if p.tick > s.now || p.tick == 0 { // another one is on its way
		return
	}
	p.tick = 0
	if at, ok := p.core.Next(); ok && int64(at) > s.now {
		s.schedule(id, b)
		return
	}
	s.step(id, b, core.Event{Kind: core.Tick})
}

// share tells the cores of a host how many of them serve and fetch.
func (s *simulation) share(id int32) {
	h := &s.hosts[id]
	serving, fetching, changed := 0, 0, false
	for b := range h.blobs {
		p := &h.blobs[b]
		sv, ft := p.core.Serving() > 0, p.core.Missing() > 0
		changed = changed || sv != p.serving || ft != p.fetching
		p.serving, p.fetching = sv, ft
		if sv {
			serving++
		}
		if ft {
			fetching++
		}
	}
	if changed {
		for b := range h.blobs {
			s.apply(id, b, core.Event{Kind: core.Shared, Serving: serving, Fetching: fetching})
		}
	}
}

func (s *simulation) carry(id int32, b int, e *core.Effect) {
	h := &s.hosts[id]
	p := &h.blobs[b]
	k := int32(e.Peer)
	root := uint8(b)
	switch e.Kind {
	case core.Find:
		s.again(id, b, max(p.askedAt+hurryAfter, s.now))
	case core.Dial:
		s.dial(id, k, b)
	case core.Want:
		if e.Hedge {
			s.hedges++
		}
		p.asked = append(p.asked, asked{e.Request, k})
		s.message(h, k, event{kind: evWant, b: int32(e.Request), c: int32(e.Chunk), root: root})
	case core.Pull:
		p.asked = append(p.asked, asked{e.Request, k})
		n := s.write(note{from: e.From, class: e.Class, classes: e.Classes, owners: e.Owners})
		s.message(h, k, event{kind: evPull, b: int32(e.Request), c: n, root: root})
	case core.Cancel:
		s.answered(p, e.Request)
		s.message(h, k, event{kind: evCancel, b: int32(e.Request), root: root})
	case core.Tell:
		s.tell(id, k, b, e)
	case core.Serve:
		if !p.core.Has(e.Chunk) {
			s.breaches++
		}
		s.serve(id, k, b, e)
	case core.Stop:
		for _, i := range h.sends {
			if x := &s.sends[i]; x.handle == k && x.root == root && x.request == e.Request {
				x.stop = true
			}
		}
		s.kick(id, s.now)
	case core.Busy:
		n := note{after: e.After}
		for _, q := range e.Peers {
			n.peers = append(n.peers, h.ids[q])
		}
		s.message(h, k, event{kind: evBusy, b: int32(e.Request), c: s.write(n), root: root})
	case core.Ban:
		s.bans++
		s.ban(id, k)
	case core.Done:
		s.ended(id, b)
	}
}

// answered forgets a request; false when nobody waits for it any more.
func (s *simulation) answered(p *part, r core.Request) bool {
	i := slices.IndexFunc(p.asked, func(a asked) bool { return a.request == r })
	if i < 0 {
		return false
	}
	p.asked[i] = p.asked[len(p.asked)-1]
	p.asked = p.asked[:len(p.asked)-1]
	return true
}

// ended notes that a host has all of a blob.
func (s *simulation) ended(id int32, b int) {
	h := &s.hosts[id]
	p := &h.blobs[b]
	if h.server || p.done {
		return
	}
	p.done = true
	if slices.ContainsFunc(h.blobs, func(p part) bool { return !p.done }) {
		return
	}
	h.finished = s.now
	if !h.hurt {
		s.waiting--
	}
}

// HAVE.

// tell sends a HAVE.
func (s *simulation) tell(id, k int32, b int, e *core.Effect) {
	h := &s.hosts[id]
	var n int32
	if i := len(s.batched); i > 0 {
		n = s.batched[i-1]
		s.batched = s.batched[:i-1]
	} else {
		n = int32(len(s.batches))
		s.batches = append(s.batches, batch{})
	}
	t := &s.batches[n]
	t.chunks, t.root, t.load = append(t.chunks[:0], e.Chunks...), uint8(b), int32(e.Load)
	cost := int64(4 * len(e.Chunks))
	h.debt += cost
	s.hosts[h.ids[k]].credit += cost
	s.haves++
	s.message(h, k, event{kind: evHave, b: n, root: uint8(b)})
}

// receive puts a HAVE into a host's mail. Who has all reads it when something else
// wakes him.
func (s *simulation) receive(e *event) {
	h := &s.hosts[e.host]
	if !s.member(h, e.a, int(e.root)) {
		s.drop(e.b)
		return
	}
	h.inbox = append(h.inbox, mail{e.b, e.a})
	if idle := !h.server && h.finished >= 0; !h.mailed && (!idle || len(h.inbox) > mailMost) {
		h.mailed = true
		s.after(int64(s.Mail), event{kind: evMail, host: e.host})
	}
}

// drop takes a batch back.
func (s *simulation) drop(n int32) { s.batched = append(s.batched, n) }

// read gives the cores the HAVEs that lie here.
func (s *simulation) read(id int32) {
	h := &s.hosts[id]
	for i := 0; i < len(h.inbox); i++ {
		m := h.inbox[i]
		t := &s.batches[m.batch]
		if h.links[m.from].joined>>t.root&1 != 0 {
			ev := core.Event{Kind: core.PeerHas, Peer: core.Peer(m.from), Chunks: t.chunks, Load: int(t.load)}
			if len(t.chunks) == 0 {
				ev.Have = s.whole[t.root]
			}
			s.apply(id, int(t.root), ev)
		}
		s.drop(m.batch)
	}
	h.inbox = h.inbox[:0]
}

// Links.

func (s *simulation) dial(id, k int32, b int) {
	h := &s.hosts[id]
	l := &h.links[k]
	peer := &s.hosts[h.ids[k]]
	w := way(h, peer)
	if peer.frozen {
		s.after(progressTime, event{kind: evDown, host: id, a: k})
		return
	}
	d := s.half[w]
	if !l.open {
		d += 4 * s.half[w] // TCP and TLS
	}
	s.after(d, event{kind: evJoin, host: h.ids[k], a: id, root: uint8(b)})
}

// join takes a peer that wants to be a member, if there is room.
func (s *simulation) join(id, from int32, b int) {
	h, peer := &s.hosts[id], &s.hosts[from]
	back := s.handleOf(from, id)
	d := s.half[way(h, peer)]
	k := int32(-1)
	if !h.gone {
		k = s.handleOf(id, from)
	}
	// A host that has not begun, or is gone, has nothing to say.
	if k < 0 || h.links[k].banned || !h.server && h.started < 0 {
		s.after(d, event{kind: evDown, host: from, a: back})
		return
	}
	p := &h.blobs[b]
	l := &h.links[k]
	l.back = back
	if l.joined>>b&1 == 0 {
		most := int32(agentMembers)
		if h.server {
			most = serverMembers
		}
		if p.members >= most {
			n := s.write(note{peers: s.others(id, from, b, pexPeers)})
			s.after(d, event{kind: evRefused, host: from, a: back, b: n, root: uint8(b)})
			return
		}
		s.admit(id, k, b)
	}
	s.after(d, event{kind: evJoined, host: from, a: back, b: k, root: uint8(b)})
}

// admit makes the peer of a handle a member.
func (s *simulation) admit(id, k int32, b int) {
	h := &s.hosts[id]
	p := &h.blobs[b]
	l := &h.links[k]
	l.joined |= 1 << b
	l.open = true
	p.members++
	s.exchangeSoon(id, b)
	peer := &s.hosts[h.ids[k]]
	if h.server && peer.server {
		s.acquaint(id, k, b)
	}
	s.step(id, b, core.Event{
		Kind: core.PeerUp, Peer: core.Peer(k), Server: peer.server, Key: keyOf(h.ids[k]), Near: near(h, peer), Zone: peer.zone,
		RTT: time.Duration(2 * s.half[way(h, peer)]), Have: s.haveOf(peer, b),
	})
}

// acquaint tells a server that has joined of the other servers at once, and them of it.
func (s *simulation) acquaint(id, k int32, b int) {
	h := &s.hosts[id]
	var others []int32
	for q := range h.links {
		if peer := h.ids[q]; int32(q) != k && s.hosts[peer].server && h.links[q].joined>>b&1 != 0 {
			others = append(others, peer)
			s.message(h, int32(q), event{kind: evKnown, c: s.write(note{peers: []int32{h.ids[k]}}), root: uint8(b)})
		}
	}
	if len(others) > 0 {
		s.message(h, k, event{kind: evKnown, c: s.write(note{peers: others}), root: uint8(b)})
	}
}

// haveOf is what a host has of blob b.
func (s *simulation) haveOf(h *host, b int) core.Bits {
	p := &h.blobs[b]
	have := core.NewBits(len(s.chunks[b]))
	for i := range s.chunks[b] {
		if p.core.Has(i) {
			have.Set(i)
		}
	}
	return have
}

func (s *simulation) joined(id, k int32, b int) {
	h := &s.hosts[id]
	if h.gone {
		return
	}
	l := &h.links[k]
	peer := &s.hosts[h.ids[k]]
	back := s.handleOf(h.ids[k], id)
	if peer.links[back].joined>>b&1 == 0 || l.banned { // it has gone meanwhile
		s.apply(id, b, core.Event{Kind: core.PeerDown, Peer: core.Peer(k)})
		return
	}
	if l.back = back; l.joined>>b&1 == 0 {
		s.admit(id, k, b)
	}
}

func (s *simulation) refused(id, k int32, b int, n int32) {
	peers := s.note(n).peers
	if s.hosts[id].gone {
		return
	}
	s.step(id, b, core.Event{Kind: core.PeerDown, Peer: core.Peer(k)})
	s.learn(id, b, peers)
}

// unjoin ends a link at this end.
func (s *simulation) unjoin(id, k int32) {
	h := &s.hosts[id]
	l := &h.links[k]
	was := l.joined
	l.joined, l.open = 0, false
	for b := range h.blobs {
		p := &h.blobs[b]
		if was>>b&1 != 0 {
			p.members--
			s.exchangeSoon(id, b)
		}
		p.asked = slices.DeleteFunc(p.asked, func(a asked) bool { return a.from == k })
		s.step(id, b, core.Event{Kind: core.PeerDown, Peer: core.Peer(k)})
	}
	s.kick(id, s.now) // sends to it end
}

// ban ends the link to a peer that sent wrong chunks, for all blobs.
func (s *simulation) ban(id, k int32) {
	h := &s.hosts[id]
	l := &h.links[k]
	l.banned = true
	s.after(0, event{kind: evDown, host: id, a: k})
	if l.back >= 0 {
		s.after(s.half[way(h, &s.hosts[h.ids[k]])], event{kind: evDown, host: h.ids[k], a: l.back})
	}
}

// learn takes peers that somebody told of.
func (s *simulation) learn(id int32, b int, peers []int32) {
	h := &s.hosts[id]
	if h.gone {
		return
	}
	for _, peer := range peers {
		q := &s.hosts[peer]
		if peer == id || q.region != h.region && !q.server {
			continue
		}
		k := s.handleOf(id, peer)
		if l := &h.links[k]; l.joined>>b&1 == 0 && !l.banned {
			s.step(id, b, core.Event{
				Kind: core.PeerKnown, Peer: core.Peer(k), Server: q.server, Key: keyOf(peer), Near: near(h, q), Zone: q.zone,
			})
		}
	}
}

// others returns some members of host id that are of the region of to.
func (s *simulation) others(id, to int32, b, most int) []int32 {
	h, q := &s.hosts[id], &s.hosts[to]
	if len(h.ids) == 0 {
		return nil
	}
	var out []int32
	at := s.rand.IntN(len(h.ids))
	for range h.ids {
		peer := h.ids[at]
		if h.links[at].joined>>b&1 != 0 && peer != to && s.hosts[peer].region == q.region {
			if out = append(out, peer); len(out) == most {
				break
			}
		}
		if at++; at == len(h.ids) {
			at = 0
		}
	}
	return out
}

func (s *simulation) exchangeSoon(id int32, b int) {
	p := &s.hosts[id].blobs[b]
	if !p.pexing && !s.NoPEX {
		p.pexing = true
		s.push(max(p.pexAt+pexEvery, s.now+pexEvery/10), event{kind: evPEX, host: id, root: uint8(b)})
	}
}

// exchange tells the members of one another.
func (s *simulation) exchange(id int32, b int) {
	h := &s.hosts[id]
	p := &h.blobs[b]
	p.pexing, p.pexAt = false, s.now
	if h.gone {
		return
	}
	for k := range h.links {
		if h.links[k].joined>>b&1 == 0 {
			continue
		}
		if peers := s.others(id, h.ids[k], b, pexPeers); len(peers) > 0 {
			s.message(h, int32(k), event{kind: evKnown, c: s.write(note{peers: peers}), root: uint8(b)})
		}
	}
}

// Readers.

// advance moves the reader of a blob over what has come: clients read in order, as
// fast as ReadRate lets them.
func (s *simulation) advance(id int32, b int) {
	p := &s.hosts[id].blobs[b]
	n := len(s.chunks[b])
	for p.head < n && p.core.Has(p.head) {
		if p.head == 0 {
			p.firstByte, p.readAt = s.now, s.now
		} else if s.now > p.readAt {
			p.stall, p.readAt = max(p.stall, s.now-p.readAt), s.now
		}
		if s.ReadRate > 0 {
			p.readAt += int64(float64(s.chunks[b][p.head]) / float64(s.ReadRate) * 1e9)
		}
		p.head++
	}
	if p.head == n && p.end < 0 {
		p.end = p.readAt
	}
}
