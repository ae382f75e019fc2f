package swarm

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
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
	class := m.fetchedFor().Class
	if class == m.saidClass {
		return
	}
	m.saidClass = class
	for _, p := range m.members {
		if p.channel != 0 {
			m.send(p, wire.Message{Want: &wire.Want{Channel: p.channel, Purpose: uint8(class), Credit: m.givesCredit(p.link)}})
		}
	}
}

// hears notes what a peer says that it wants the root for, and whether it wants to
// give credit.
func (p *member) hears(purpose uint8, credit bool) {
	p.class.Store(uint32(min(purpose, uint8(limit.Prewarm))))
	p.credit = credit
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

// givesCredit reports whether chunks from l are to come as we grant it.
func (m *membership) givesCredit(l *link) bool {
	f, why := l.flow(limit.Down), m.fetchedFor()
	f.Tenant, f.Class = why.Tenant, why.Class
	return m.s.cfg.Budgets.Bounds(f)
}

// fetchedFor returns for whom and for what the root is fetched.
func (m *membership) fetchedFor() purpose {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.purpose
}

// letIn waits until some of the next most bytes of a chunk of m may be read, and
// returns how many. Without m nobody wants them any more.
//
// Errors: ctx's.
func (f *flow) letIn(ctx context.Context, m *membership, most int) (int, error) {
	budgets := f.link.s.cfg.Budgets
	if budgets == nil {
		return most, nil
	}
	f.paused.Store(true)
	defer f.paused.Store(false)
	fl := f.link.flow(limit.Down)
	fl.Class = limit.Bulk
	for {
		var changed <-chan struct{}
		if m != nil {
			why := m.fetchedFor()
			fl.Tenant, fl.Class, changed = why.Tenant, why.Class, why.changed
		}
		n, err := budgets.TakeUntil(ctx, changed, fl, onLink(most))
		if n > 0 || err != nil {
			return ofChunk(n, most), err
		}
	}
}

// creditsAhead is how many pieces are let in before the first is read: one that is
// read and one that is on its way, over long ways some more.
func (l *link) creditsAhead() int {
	if time.Duration(l.rtt.Load()) < farRTT {
		return maxAhead / 2
	}
	return maxAhead
}

const (
	maxAhead = 4
	farRTT   = 10 * time.Millisecond
)

// grant tells the sender that it may send n bytes.
func (f *flow) grant(n int) error {
	var b [wire.CreditBytes]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	_, err := f.st.Write(b[:])
	return err
}

// credit waits for a grant, of which most bytes are left to send.
//
// Errors: of the stream; meta.ErrInvalid for a grant of nothing or too much.
func (f *flow) credit(most int) (int, error) {
	var b [wire.CreditBytes]byte
	if _, err := io.ReadFull(f.st, b[:]); err != nil {
		return 0, err
	}
	f.moved.Add(wire.CreditBytes)
	n := binary.BigEndian.Uint32(b[:])
	if n == 0 || int64(n) > int64(most) {
		return 0, fmt.Errorf("%d bytes granted of %d: %w", n, most, meta.ErrInvalid)
	}
	return int(n), nil
}

// outgoing is the flow of a chunk that is sent; its class follows what the peer says.
type outgoing struct {
	limit.Flow
	said *atomic.Uint32
}

func (m *membership) outgoing(p *member) outgoing {
	o := outgoing{Flow: p.link.flow(limit.Up), said: &p.class}
	o.Tenant = p.tenant
	return o
}

func (o outgoing) class() limit.Class { return limit.Class(o.said.Load()) }

// streams are what a chunk to l takes a place of, in this order.
func (o outgoing) streams(l *link) []chan struct{} {
	if o.class() > limit.Urgent {
		return []chan struct{}{l.sendingLess, l.sending}
	}
	return []chan struct{}{l.sending}
}

// letOut waits until some of the next most bytes of a chunk may be written, and
// returns how many.
//
// Errors: ctx's; errStalled when the stream or its link has ended.
func (f *flow) letOut(ctx context.Context, o outgoing, most int) (int, error) {
	budgets := f.link.s.cfg.Budgets
	if budgets == nil {
		return most, nil
	}
	f.paused.Store(true)
	defer f.paused.Store(false)
	o.Flow.Class = o.class()
	n, err := budgets.TakeUntil(ctx, f.ended, o.Flow, onLink(most))
	if n == 0 && err == nil {
		err = errStalled
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
