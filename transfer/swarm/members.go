package swarm

import (
	"context"
	"hash/fnv"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-registry/shoal/transfer/swarm/core"
	"github.com/shoal-registry/shoal/transfer/wire"
)

// The owner's half about peers: who is known, connected, joined, and what they say.

// member returns the record of a peer, a new one when it is unknown; nil when it is
// this node, kept away, or one too many.
func (m *membership) member(id peer.ID) *member {
	if p := m.members[id]; p != nil {
		return p
	}
	if len(m.members) >= maxMembers {
		m.prune()
	}
	if id == m.s.self || len(m.members) >= maxMembers || m.s.banned(id) {
		return nil
	}
	p := &member{id: id, told: -1}
	if n := len(m.free); n > 0 {
		p.handle, m.free = m.free[n-1], m.free[:n-1]
		m.handles[p.handle] = p
	} else {
		p.handle = core.Peer(len(m.handles))
		m.handles = append(m.handles, p)
	}
	m.members[id] = p
	return p
}

// prune forgets a quarter of the peers, of those that are not connected.
func (m *membership) prune() {
	sending := map[core.Peer]bool{}
	for key := range m.uploads {
		sending[key.peer] = true
	}
	for id, p := range m.members {
		if len(m.members) <= maxMembers*3/4 {
			return
		}
		if p.link != nil || p.dialing || p.banned || sending[p.handle] {
			continue
		}
		m.step(core.Event{Kind: core.PeerForgotten, Peer: p.handle})
		if p.dialing { // the core had other plans
			continue
		}
		delete(m.members, id)
		m.handles[p.handle] = nil
		m.free = append(m.free, p.handle)
	}
}

// joined returns the member at the other end of l, nil when it has not joined.
func (m *membership) joined(l *link) *member {
	if p := m.members[l.id]; p != nil && p.link == l && p.channel != 0 {
		return p
	}
	return nil
}

// learn takes a peer that somebody told of.
func (m *membership) learn(info Peer, vouched bool) {
	id, err := peer.Decode(string(info.ID))
	if err != nil || !m.s.eligible(info) && !(vouched && info.Server) {
		return
	}
	p := m.member(id)
	if p == nil {
		return
	}
	if p.channel == 0 && (vouched || !p.vouched) {
		p.info = info
	}
	p.vouched = p.vouched || vouched
	if vouched && p.channel != 0 && p.told < 0 {
		m.disclose(p)
	}
	m.tell(p)
}

// tell makes a peer known to the core.
func (m *membership) tell(p *member) {
	if p.info.ID != "" && !p.up {
		m.step(core.Event{Kind: core.PeerKnown, Peer: p.handle, Server: p.info.Server && !m.passing, Key: peerKey(p.id), Near: m.s.near(p.info), Zone: zoneHandle(p.info), Missed: m.s.isMissed(p.id)})
	}
}

// peerKey and zoneHandle are core.Event's Key and Zone.
func peerKey(id peer.ID) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // never fails
	return h.Sum64()
}

func zoneHandle(p Peer) uint32 {
	if p.Zone == "" {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(string(p.Region) + "/" + p.Zone)) // never fails
	return max(h.Sum32(), 1)
}

// meet takes what the Finder answered.
func (m *membership) meet(intro Introduction) {
	m.introduced = true
	if len(intro.Grant) > 0 && intro.GrantExpires.After(m.grantExpires) {
		m.grant, m.grantExpires = intro.Grant, intro.GrantExpires
		// Members learn of it while they still honour the one before.
		now := time.Now()
		if m.grantSent.Sub(now) < 2*m.grantExpires.Sub(now)/3 {
			m.grantSent = m.grantExpires
			for _, p := range m.members {
				if p.channel != 0 {
					m.send(p, wire.Message{Join: &wire.Join{Root: m.root, Channel: m.channel, Answer: true, Grant: m.grant, HasMap: m.core != nil}})
				}
			}
		}
	}
	for _, id := range intro.Away {
		m.s.Ban(id, banFor)
	}
	own := false
	for _, info := range intro.Peers {
		own = own || info.Server && info.Region == m.s.cfg.Self.Region
		m.learn(info, true)
	}
	if own && !m.s.cfg.Self.Server {
		m.returnHome()
	}
	if m.core == nil {
		m.dialForMap()
	}
	m.step(core.Event{Kind: core.Tick})
}

// returnHome ends what an agent has with servers of other regions: its own has one again.
func (m *membership) returnHome() {
	for id, p := range m.members {
		if p.info.Region == m.s.cfg.Self.Region || p.info.ID == "" || p.dialing || p.banned {
			continue
		}
		m.drop(p)
		m.step(core.Event{Kind: core.PeerForgotten, Peer: p.handle})
		if p.dialing || m.uploading(p.handle) {
			continue
		}
		delete(m.members, id)
		m.handles[p.handle] = nil
		m.free = append(m.free, p.handle)
	}
}

// uploading reports whether something is being sent to the peer of a handle.
func (m *membership) uploading(h core.Peer) bool {
	for key := range m.uploads {
		if key.peer == h {
			return true
		}
	}
	return false
}

// dial connects to p and joins.
func (m *membership) dial(p *member) {
	if p.dialing || p.link != nil {
		return
	}
	p.dialing = true
	addrs := p.info.Addrs
	if !m.s.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, linkTimeout)
		defer cancel()
		l, err := m.s.link(ctx, p.id, addrs)
		m.post(func() { m.linked(p, l, err) })
	}) {
		p.dialing = false
	}
}

// dialForMap connects to some peers before the core exists to choose them.
func (m *membership) dialForMap() {
	if !m.fetched {
		return
	}
	dialing := 0
	for _, p := range m.members {
		if p.dialing || p.link != nil {
			dialing++
		}
	}
	for _, p := range m.members {
		if dialing >= dialsAtOnce {
			return
		}
		if !p.dialing && p.link == nil && time.Now().After(p.retryAt) {
			dialing++
			m.dial(p)
		}
	}
}

func (m *membership) linked(p *member, l *link, err error) {
	p.dialing = false
	if p.link != nil { // it came to us meanwhile
		return
	}
	if err != nil || !l.use(m) {
		if err != nil {
			m.setTrouble(err.Error())
			m.s.log.Debug("peer is not reached", "peer", p.id.String(), "error", err)
		}
		m.down(p)
		return
	}
	p.link, p.joining = l, time.Now()
	m.sendJoin(p, false)
}

// down tells the core that p is not connected.
func (m *membership) down(p *member) {
	p.up = false
	p.retryAt = time.Now().Add(time.Second)
	m.step(core.Event{Kind: core.PeerDown, Peer: p.handle})
}

// gone forgets that p has joined.
func (m *membership) gone(p *member) {
	l := p.link
	if l == nil {
		return
	}
	if p.channel != 0 {
		m.joinedCount--
		m.pexDue = true
	}
	p.link, p.channel, p.grant, p.allowed, p.told, p.bits, p.early = nil, 0, nil, false, -1, nil, nil
	l.unuse(m)
	m.mu.Lock()
	for request, a := range m.asked {
		if a.link == l {
			delete(m.asked, request)
		}
	}
	m.mu.Unlock()
	if m.mapFrom == p {
		m.mapFrom, m.mapParts = nil, nil
	}
	m.down(p)
}

// drop leaves p.
func (m *membership) drop(p *member) {
	if p.channel != 0 {
		m.send(p, wire.Message{Leave: &wire.Leave{Channel: p.channel, Reason: "done", From: m.channel}})
	}
	m.gone(p)
}

func (m *membership) linkEnded(l *link) {
	if p := m.members[l.id]; p != nil && p.link == l {
		m.gone(p)
	}
}

func (m *membership) onRTT(l *link, rtt time.Duration) {
	if p := m.joined(l); p != nil {
		m.step(core.Event{Kind: core.RTTIs, Peer: p.handle, RTT: rtt})
	}
}

// sendJoin asks p to take us as a member, or tells it where we are. The bitmap
// goes only to a peer that a Finder vouched for or that has shown its grant.
func (m *membership) sendJoin(p *member, answer bool) {
	j := &wire.Join{Root: m.root, Channel: m.channel, Answer: answer, HasMap: m.core != nil}
	if time.Now().Before(m.grantExpires) {
		j.Grant = m.grant
		m.grantSent = m.grantExpires
	}
	if m.core != nil && (p.vouched || p.allowed) {
		j.Have, p.told = m.bitmap()
	}
	p.link.send(wire.Message{Join: j})
}

// bitmap returns the bits of the chunks here, empty for none, and their count.
func (m *membership) bitmap() ([]byte, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.have.Count()
	if n == 0 || m.passing {
		return nil, 0
	}
	return m.have.Clone().Bytes(), n
}

// disclose sends the bitmap to a member that has not got it, or not as it is now.
func (m *membership) disclose(p *member) {
	if m.core == nil {
		return
	}
	bits, n := m.bitmap()
	if p.told = n; n > 0 {
		m.send(p, wire.Message{Have: &wire.Have{Channel: p.channel, Bits: bits}})
	}
}

// onJoin takes a peer's Join; allowed is the judgement of its grant. One without a
// right comes this far only as an answer: it may be asked, and gets nothing.
func (m *membership) onJoin(l *link, j *wire.Join, allowed bool) {
	refuse := func() {
		l.send(wire.Message{Leave: &wire.Leave{Channel: j.Channel, Reason: "unknown", From: m.channel}})
	}
	info := l.info()
	p := m.member(l.id)
	if p == nil || !m.s.eligible(info) && !(p.vouched && p.info.Server) {
		refuse()
		return
	}
	if p.link != nil && p.link != l || p.channel != 0 && p.channel != j.Channel {
		m.gone(p) // it begins anew
	}
	began := p.channel == 0
	if began && !j.Answer {
		// A grant that is renewed is no wish: two that have it all would keep each other.
		m.touch()
	}
	if began {
		if p.link == nil && j.Answer {
			refuse() // it answers what we have given up
			return
		}
		if !j.Answer && m.joinedCount >= m.s.cfg.Limits.Members {
			l.send(wire.Message{Busy: &wire.Busy{Channel: j.Channel, After: time.Second, Peers: m.others(p, info, wire.MaxPeers/2)}})
			return
		}
		if !l.use(m) {
			return
		}
		server := info.Server
		if p.vouched {
			server = p.info.Server
		}
		p.info = Peer{ID: info.ID, Addrs: p.info.Addrs, Region: info.Region, Zone: info.Zone, Rack: info.Rack, Server: server}
		p.link, p.channel = l, j.Channel
		m.joinedCount++
		m.pexDue = true
	}
	p.hasMap = p.hasMap || j.HasMap
	if len(j.Grant) > 0 {
		p.grant, p.allowed, p.checked = j.Grant, allowed, time.Now()
		if p.tenant = ""; allowed && m.s.cfg.TenantOf != nil {
			p.tenant = m.s.cfg.TenantOf(j.Grant)
		}
	}
	if len(j.Have) > 0 {
		p.bits, p.early = j.Have, nil
	}
	if !j.Answer {
		m.sendJoin(p, true)
	} else if (p.vouched || p.allowed) && (p.told < 0 || !p.up && p.told != m.count()) {
		m.disclose(p)
	}
	m.bringUp(p)
	m.askMap()
	if began && p.info.Server && m.s.cfg.Self.Server {
		m.acquaint(p)
	}
}

func (m *membership) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.have.Count()
}

// bringUp gives the core a joined peer, or its bitmap when it is there.
func (m *membership) bringUp(p *member) {
	if m.core == nil || p.channel == 0 {
		return
	}
	var have core.Bits
	if p.bits != nil {
		var ok bool
		if have, ok = toBits(len(m.blob.Map().Chunks), p.bits); !ok {
			m.s.log.Debug("peer has a bitmap of another length", "peer", p.id.String())
			m.drop(p)
			return
		}
		p.bits = nil
	}
	early := p.early
	p.early = nil
	if !p.up {
		p.up = true
		m.step(core.Event{
			Kind: core.PeerUp, Peer: p.handle, Server: p.info.Server && !m.passing, Key: peerKey(p.id), Near: m.s.near(p.info), Zone: zoneHandle(p.info),
			RTT: time.Duration(p.link.rtt.Load()), Have: have,
		})
	} else if have != nil {
		m.step(core.Event{Kind: core.PeerHas, Peer: p.handle, Have: have})
	}
	if len(early) > 0 {
		m.step(core.Event{Kind: core.PeerHas, Peer: p.handle, Chunks: early})
	}
}

func (m *membership) onHave(p *member, h *wire.Have) {
	if len(h.Bits) > 0 {
		p.bits, p.early = h.Bits, nil
		m.bringUp(p)
	}
	switch {
	case len(h.Chunks) == 0:
	case m.core == nil:
		p.early = append(p.early, h.Chunks...)
		if len(p.early) > 1<<21 {
			m.drop(p) // more than any map holds
		}
	default:
		m.step(core.Event{Kind: core.PeerHas, Peer: p.handle, Chunks: h.Chunks, Load: int(min(h.Load, maxLoad))})
	}
}

func (m *membership) onWant(p *member, w *wire.Want) {
	if !m.mayRead(p) {
		return
	}
	m.touch()
	p.hears(w.Purpose, w.Credit)
	for _, item := range w.Items {
		if m.core == nil {
			m.send(p, wire.Message{Busy: &wire.Busy{Channel: p.channel, Request: item.Request}})
			continue
		}
		m.step(core.Event{Kind: core.Asked, Peer: p.handle, Request: core.Request(item.Request), Chunk: int(item.Chunk)})
	}
}

func (m *membership) onPull(p *member, w *wire.Pull) {
	if !m.mayRead(p) {
		return
	}
	m.touch()
	p.hears(w.Purpose, w.Credit)
	if m.core == nil {
		m.send(p, wire.Message{Busy: &wire.Busy{Channel: p.channel, Request: w.Request}})
		return
	}
	m.step(core.Event{
		Kind: core.Pulled, Peer: p.handle, Request: core.Request(w.Request),
		From: int(w.From), Class: int(w.Class), Classes: int(w.Classes), Owners: w.Owners,
	})
}

func (m *membership) onCancel(p *member, c *wire.Cancel) {
	m.step(core.Event{Kind: core.Cancelled, Peer: p.handle, Request: core.Request(c.Request)})
}

func (m *membership) onBusy(l *link, b *wire.Busy) {
	p := m.members[l.id]
	if p == nil || p.link != l {
		return
	}
	m.s.metrics.busy.Inc()
	if b.Request == 0 { // it has no place for us
		m.gone(p)
	} else {
		m.mu.Lock()
		delete(m.asked, b.Request)
		m.mu.Unlock()
		m.step(core.Event{Kind: core.Refused, Peer: p.handle, Request: core.Request(b.Request), After: b.After})
	}
	m.onPex(p, b.Peers)
}

// onLeave ends the membership of a peer, or tells that it refuses ours; the core
// tries it again in a while.
func (m *membership) onLeave(l *link, leave *wire.Leave) {
	p := m.members[l.id]
	if p == nil || p.link != l || p.channel != 0 && leave.From != 0 && leave.From != p.channel {
		return
	}
	if p.channel == 0 {
		m.setTrouble("peer " + p.id.String() + " refuses: " + leave.Reason)
	}
	m.gone(p)
	if leave.After > 0 {
		p.retryAt = time.Now().Add(leave.After)
	}
}

// onPex takes peers that a member told of. What a vouched server tells is vouched for.
func (m *membership) onPex(from *member, peers []wire.Peer) {
	for _, w := range peers {
		m.learn(Peer{ID: w.ID, Region: w.Region, Zone: w.Zone, Rack: w.Rack, Server: w.Server}, from.vouched && from.info.Server)
	}
}

func wirePeer(p Peer) wire.Peer {
	return wire.Peer{ID: p.ID, Region: p.Region, Zone: p.Zone, Rack: p.Rack, Server: p.Server}
}

// visible reports whether p may be told of q: members of its own region, and servers
// of each other.
func (m *membership) visible(q, p *member) bool {
	return q != p && q.channel != 0 && (q.info.Region == p.info.Region || q.info.Server && p.info.Server)
}

// acquaint tells a server that has joined of the other servers, and them of it, without
// waiting for the next exchange: they are to bring each other what came over the
// distance once.
func (m *membership) acquaint(p *member) {
	var others []wire.Peer
	for _, q := range m.members {
		if !q.info.Server || !m.visible(q, p) {
			continue
		}
		if len(others) < wire.MaxPeers {
			others = append(others, wirePeer(q.info))
		}
		if m.entitled(q) {
			m.send(q, wire.Message{Pex: &wire.Pex{Channel: q.channel, Peers: []wire.Peer{wirePeer(p.info)}}})
		}
	}
	if len(others) > 0 && m.entitled(p) {
		m.send(p, wire.Message{Pex: &wire.Pex{Channel: p.channel, Peers: others}})
	}
}

// others returns members to tell p, of region, about.
func (m *membership) others(p *member, info Peer, limit int) []wire.Peer {
	p.info.Region = info.Region
	var out []wire.Peer
	for _, q := range m.members { // in any order
		if m.visible(q, p) {
			if out = append(out, wirePeer(q.info)); len(out) == limit {
				break
			}
		}
	}
	return out
}

// exchange tells the members who have a right of one another.
func (m *membership) exchange() {
	m.pexDue, m.pexAt = false, time.Now()
	for _, p := range m.members {
		if p.channel == 0 || !m.entitled(p) {
			continue
		}
		if peers := m.others(p, p.info, pexPeers); len(peers) > 0 {
			m.send(p, wire.Message{Pex: &wire.Pex{Channel: p.channel, Peers: peers}})
		}
	}
}

// Maps.

// askMap asks a member for the map when nobody else gave it.
func (m *membership) askMap() {
	if m.core != nil || !m.fetched || m.mapFrom != nil || m.shown() {
		return
	}
	for _, p := range m.members {
		if p.channel != 0 && p.hasMap {
			m.mapFrom, m.mapParts, m.mapTotal, m.mapSince = p, nil, 0, time.Now()
			m.send(p, wire.Message{MapAsk: &wire.MapAsk{Channel: p.channel}})
			return
		}
	}
}

func (m *membership) onMapAsk(p *member, a *wire.MapAsk) {
	if !m.mayRead(p) || m.core == nil {
		return
	}
	m.touch()
	if m.encoded == nil {
		m.encoded = m.blob.Map().Encode()
	}
	total := uint64(len(m.encoded))
	if a.Offset >= total || p.link.maps.Load() >= mapsAtOnce {
		return
	}
	end := min(total, a.Offset+wire.MapPartBytes)
	p.link.maps.Add(int64(end - a.Offset))
	m.send(p, wire.Message{Map: &wire.MapPart{Channel: p.channel, Offset: a.Offset, Total: total, Data: m.encoded[a.Offset:end]}})
}

func (m *membership) onMap(p *member, part *wire.MapPart) {
	if p != m.mapFrom || m.core != nil {
		return
	}
	if part.Offset != uint64(len(m.mapParts)) || part.Offset > 0 && part.Total != m.mapTotal {
		m.drop(p)
		return
	}
	m.mapTotal, m.mapSince = part.Total, time.Now()
	m.mapParts = append(m.mapParts, part.Data...)
	if next := uint64(len(m.mapParts)); next < m.mapTotal {
		m.send(p, wire.Message{MapAsk: &wire.MapAsk{Channel: p.channel, Offset: next}})
		return
	}
	encoded := m.mapParts
	m.mapParts = nil
	m.s.spawn(func(ctx context.Context) {
		if err := m.prepare(ctx, encoded, nil); err != nil {
			m.report("take the chunk map of "+m.root.String()+" from "+p.id.String(), err)
			m.post(func() { m.drop(p) })
		}
	})
}
