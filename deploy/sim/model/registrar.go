package model

import (
	"cmp"
	"slices"

	"github.com/shoal-registry/shoal/transfer/swarm/core"
)

// Introductions: the counterpart of dht's Registrar, Finder and ServerFinder.

// ranked returns the region's servers in the order in which they are asked for blob b.
func (s *simulation) ranked(r *region, b int) []int32 {
	out := make([]int32, r.servers)
	for i := range out {
		out[i] = r.first + int32(i)
	}
	slices.SortFunc(out, func(x, y int32) int {
		return cmp.Compare(mix(keyOf(x)^uint64(b)<<32), mix(keyOf(y)^uint64(b)<<32))
	})
	return out
}

// introduce asks to be introduced to the members of blob b.
func (s *simulation) introduce(id int32, b int) {
	h := &s.hosts[id]
	if h.gone {
		return
	}
	r := &s.regions[h.region]
	if h.server {
		s.introduceServer(id, b)
		return
	}
	p := &h.blobs[b]
	p.askedAt, p.renewAt = s.now, 0
	for _, server := range s.ranked(r, b) {
		bit := uint64(1) << (server - r.first)
		if p.avoid&bit != 0 {
			continue
		}
		switch q := &s.hosts[server]; {
		case q.gone:
			p.avoid |= bit
			s.again(id, b, s.now+2*s.half[0])
		case q.frozen:
			p.avoid |= bit
			s.again(id, b, s.now+hedgeAfter)
		default:
			h.debt += int64(s.MessageBytes)
			q.credit += int64(s.MessageBytes)
			s.after(s.half[0], event{kind: evAsk, host: server, a: id, root: uint8(b)})
		}
		return
	}
	// No server is left: the DHT knows some of those who have something.
	p.avoid = 0
	var peers []int32
	for range 4 * maxPeers {
		if len(peers) == maxPeers {
			break
		}
		q := r.first + r.servers + int32(s.rand.IntN(int(r.end-r.first-r.servers)))
		if x := &s.hosts[q]; q != id && !x.gone && x.started >= 0 && !slices.Contains(peers, q) {
			peers = append(peers, q)
		}
	}
	if p.silentAt == 0 {
		p.silentAt = s.now
	}
	again := standAfter
	if s.now >= p.silentAt+standAfter {
		again = againFetching
		if x := s.stand(id, b, peers); x >= 0 {
			peers = append(peers, x)
		}
	}
	s.after(againFetching/4, event{kind: evKnown, host: id, c: s.write(note{peers: peers}), root: uint8(b)})
	s.again(id, b, s.now+again)
}

// stand returns the server of another region that id fetches from when it is elected
// among the peers that it knows, else -1.
func (s *simulation) stand(id int32, b int, peers []int32) int32 {
	rank := func(x int32) uint64 { return mix(keyOf(x) ^ uint64(b)<<32) }
	better := 0
	for _, x := range peers {
		if rank(x) > rank(id) {
			better++
		}
	}
	if better >= standMost {
		return -1
	}
	best := int32(-1)
	for i := range s.regions {
		r := &s.regions[i]
		for x := r.first; x < r.first+r.servers; x++ {
			if q := &s.hosts[x]; q.region != s.hosts[id].region && !q.gone && (best < 0 || rank(x) > rank(best)) {
				best = x
			}
		}
	}
	return best
}

// answer is a registrar's reply to an introduction: it goes over the server's link
// like everything else.
func (s *simulation) answer(id, to int32, b int) {
	h, q := &s.hosts[id], &s.hosts[to]
	if h.gone {
		s.again(to, b, s.now+s.half[0])
		return
	}
	r := &s.regions[h.region]
	if !r.fetching[b] { // the first to ask makes the servers fetch
		r.fetching[b] = true
		for k := range r.servers {
			s.startServer(r.first+k, b)
		}
	}
	size := introBytes
	p := &q.blobs[b]
	if !p.known {
		size += s.mapped[b]
	}
	var peers []int32
	if int64(s.Blobs[b]) <= inlineBytes {
		size = 256 + s.mapped[b] + int(s.Blobs[b])
	} else {
		s.enlist(id, to, b)
		peers = s.pick(id, to, b, maxPeers, nil)
		for k := range r.servers {
			if x := r.first + k; !s.hosts[x].gone {
				peers = append(peers, x)
			}
		}
	}
	h.registrarAt = max(h.registrarAt, s.now) + int64(s.RegistrarTime)
	s.reply(id, to, b, size, s.write(note{peers: peers}), h.registrarAt)
}

// introduced takes a registrar's reply.
func (s *simulation) introduced(id int32, b int, n note) {
	h := &s.hosts[id]
	if h.gone {
		return
	}
	p := &h.blobs[b]
	first := !p.known
	p.known = true
	if int64(s.Blobs[b]) <= inlineBytes {
		p.firstByte, p.end, p.head = s.now, s.now, len(s.chunks[b])
		s.deliveries += int64(len(s.chunks[b]))
		s.ended(id, b)
		return
	}
	if first {
		s.step(id, b, core.Event{Kind: core.ReaderAt, Reader: 1})
		s.advance(id, b)
	}
	s.learn(id, b, n.peers)
	s.renew(id, b)
}

// renew keeps the lease.
func (s *simulation) renew(id int32, b int) {
	again := againFetching
	if s.hosts[id].blobs[b].core.Complete() {
		again = againComplete
	}
	s.again(id, b, s.now+again+s.rand.Int64N(again/8))
}

// again lets a member ask at time at, unless it will before or waits for an answer.
func (s *simulation) again(id int32, b int, at int64) {
	p := &s.hosts[id].blobs[b]
	if p.renewAt != 0 && p.renewAt <= at && p.renewAt >= s.now {
		return
	}
	p.renewAt = at
	s.push(at, event{kind: evRenew, host: id, root: uint8(b)})
}

// enlist gives a member its lease, or renews it.
func (s *simulation) enlist(server, id int32, b int) {
	q := &s.hosts[id]
	p := &q.blobs[b]
	table := s.hosts[server].blobs[b].table
	expired := p.leases < s.now
	p.leases = s.now + lease
	if p.listed == server && !expired {
		return
	}
	p.listed = server
	z := q.zone - uint32(q.region)*1024
	for _, list := range []*[]int32{&table[0], &table[z]} {
		if !expired || !slices.Contains(*list, id) {
			*list = append(*list, id)
		}
	}
}

// pick chooses members to tell id of: half of its zone, the rest from all.
func (s *simulation) pick(server, id int32, b, most int, out []int32) []int32 {
	q := &s.hosts[id]
	table := s.hosts[server].blobs[b].table
	draw := func(from *[]int32, want int) {
		for i := 0; i < len(*from) && len(out) < want; {
			list := *from
			j := i + s.rand.IntN(len(list)-i)
			list[i], list[j] = list[j], list[i]
			x := list[i]
			if y := &s.hosts[x].blobs[b]; y.listed != server || y.leases < s.now {
				list[i] = list[len(list)-1]
				*from = list[:len(list)-1]
				continue
			}
			if i++; x != id && !slices.Contains(out, x) {
				out = append(out, x)
			}
		}
	}
	draw(&table[q.zone-uint32(q.region)*1024], len(out)+(most-len(out)+1)/2)
	draw(&table[0], most)
	return out
}

func (s *simulation) startServer(id int32, b int) {
	h := &s.hosts[id]
	p := &h.blobs[b]
	if h.gone || p.known {
		return
	}
	p.known = true
	h.started = s.now
	if !p.core.Complete() {
		s.step(id, b, core.Event{Kind: core.ReaderAt, Reader: 1})
	}
	s.introduce(id, b)
}

// introduceServer is what a server finds by itself: who holds the blob, its
// neighbours, members of its region.
func (s *simulation) introduceServer(id int32, b int) {
	h := &s.hosts[id]
	p := &h.blobs[b]
	p.askedAt, p.renewAt = s.now, 0
	r := &s.regions[h.region]
	var peers []int32
	if !p.core.Complete() {
		origin := &s.regions[0]
		for k := range min(origin.servers, maxHolders) {
			if x := origin.first + k; x != id && s.hosts[x].blobs[b].core.Complete() && !s.hosts[x].gone {
				peers = append(peers, x)
			}
		}
		for k := range min(r.servers, neighbours+1) {
			if x := r.first + k; x != id && !s.hosts[x].gone && !slices.Contains(peers, x) {
				peers = append(peers, x)
			}
		}
	}
	peers = s.pick(id, id, b, maxPeers, peers)
	s.learn(id, b, peers)
	s.renew(id, b)
}
