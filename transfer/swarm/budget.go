package swarm

import (
	"context"
	"sync/atomic"

	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/wire"
)

// What a chunk waits for before a piece of it is read or written: the budgets of
// bandwidth, and in which class. The class of a fetch is the most urgent of its
// sessions'; peers learn it with each request, and of a change at once.

// A limit is of bytes on the link. headers is what Ethernet, IP, TCP, TLS and muxer
// add to a byte of a chunk: 1/headers (measured 4 to 5 % at an MTU of 1500).
const headers = 25

// purpose is whom and what a root is fetched for.
type purpose struct {
	FetchOptions
	changed chan struct{} // closed when it becomes another
}

// reclassify finds the purpose of the sessions there are; without any the last one
// stays. m.mu is held.
func (m *membership) reclassify() {
	var next *FetchOptions
	for _, session := range m.sessions {
		o := session.options
		if next == nil || o.Class < next.Class || o.Class == next.Class && o.Tenant > next.Tenant {
			next = &o
		}
	}
	if next == nil || *next == m.purpose.FetchOptions {
		return
	}
	m.purpose.FetchOptions = *next
	close(m.purpose.changed)
	m.purpose.changed = make(chan struct{})
}

// tellClass tells the members what the root is fetched for when that has changed.
func (m *membership) tellClass() {
	m.mu.Lock()
	class := m.purpose.Class
	m.mu.Unlock()
	if class == m.saidClass {
		return
	}
	m.saidClass = class
	for _, p := range m.members {
		if p.up {
			m.send(p, wire.Message{Want: &wire.Want{Channel: p.channel, Purpose: uint8(class)}})
		}
	}
}

// hears notes what a peer says that it wants the root for.
func (p *member) hears(purpose uint8) {
	p.class.Store(uint32(min(purpose, uint8(limit.Prewarm))))
}

// flow returns which bytes go between us and the peer, without tenant and class.
func (l *link) flow(d limit.Direction) limit.Flow {
	self := l.s.cfg.Self
	l.mu.Lock()
	region, zone := l.hello.Region, l.hello.Zone
	l.mu.Unlock()
	f := limit.Flow{Direction: d, Beyond: region != self.Region}
	if !f.Beyond && self.Zone != "" && zone != self.Zone {
		f.Zone = zone
	}
	return f
}

// letIn waits until some of the next most bytes of a chunk may be read from l, and
// returns how many.
func (m *membership) letIn(ctx context.Context, l *link, most int) (int, error) {
	budgets := m.s.cfg.Budgets
	if budgets == nil {
		return most, nil
	}
	f := l.flow(limit.Down)
	for {
		m.mu.Lock()
		why := m.purpose
		m.mu.Unlock()
		f.Tenant, f.Class = why.Tenant, why.Class
		n, err := budgets.TakeUntil(ctx, why.changed, f, onLink(most))
		if n > 0 || err != nil {
			return ofChunk(n, most), err
		}
	}
}

// outgoing is the flow of a chunk that is sent; its class follows what the peer says.
type outgoing struct {
	limit.Flow
	class *atomic.Uint32
}

func (m *membership) outgoing(p *member) outgoing {
	o := outgoing{Flow: p.link.flow(limit.Up), class: &p.class}
	o.Tenant = p.tenant
	return o
}

// letOut waits until some of the next most bytes of a chunk may be written to l, and
// returns how many.
//
// Errors: ctx's; why the link has ended.
func (l *link) letOut(ctx context.Context, o outgoing, most int) (int, error) {
	budgets := l.s.cfg.Budgets
	if budgets == nil {
		return most, nil
	}
	o.Class = limit.Class(o.class.Load())
	n, err := budgets.TakeUntil(ctx, l.closed, o.Flow, onLink(most))
	if n == 0 && err == nil {
		err = l.failure()
	}
	return ofChunk(n, most), err
}

// onLink is how many bytes on the link n bytes of a chunk are.
func onLink(n int) int { return n + n/headers }

// ofChunk is how many of most bytes of a chunk fit n bytes on the link, at least one
// if any do.
func ofChunk(n, most int) int {
	if n >= onLink(most) {
		return most
	}
	return min(most, max(min(n, 1), n*headers/(headers+1)))
}
