package limit

import (
	"math"
	"time"
)

const (
	// backgroundTarget is how much longer than at best a round trip may take before
	// what is in the background gives way. RFC 6817 allows 100 ms, but many links have
	// no queue as long as that, and then nothing would ever give way.
	backgroundTarget = 20 * time.Millisecond
	// backgroundGain is by how much of itself the rate grows a second when nothing
	// waits at all.
	backgroundGain = 0.25
	// sampleLife is how long a round trip says something of the present, baseSpan how
	// long the best one of a peer is remembered: the path may change.
	sampleLife = 1500 * time.Millisecond
	baseSpan   = 10 * time.Minute
	baseSlots  = 10
)

// Background finds the rate at which traffic that is to give way to all other goes: by
// how much longer round trips take than they did at best, after LEDBAT (RFC 6817). A
// queue at this host's own link shows in the round trips to all peers, one further away
// in those of some: so the least of the delays counts.
//
// It is pure: time comes in as the duration since any fixed moment. It is for one
// goroutine at a time.
type Background struct {
	peers    map[string]*roundTrips
	rate     float64
	starting bool          // doubling until there is a delay
	at       time.Duration // of the last Step
}

// roundTrips is what is known of the way to one peer.
type roundTrips struct {
	last, before time.Duration // the two latest
	at           time.Duration // when the latest came
	best         [baseSlots]time.Duration
	slot         int
	slotAt       time.Duration
}

// NewBackground returns a controller that begins at MinRate.
func NewBackground() *Background {
	b := &Background{peers: map[string]*roundTrips{}}
	b.Restart(0)
	return b
}

// Restart begins again at MinRate, as after a pause in which nothing was to be sent.
// What is known of the peers stays.
func (b *Background) Restart(now time.Duration) {
	b.rate, b.starting, b.at = MinRate, true, now
}

// Sample notes a round trip to a peer.
func (b *Background) Sample(now time.Duration, peer string, rtt time.Duration) {
	p := b.peers[peer]
	if p == nil {
		p = &roundTrips{last: rtt}
		p.forget(now)
		b.peers[peer] = p
	}
	if now-p.slotAt > baseSpan { // nothing of it is of this span
		p.forget(now)
	}
	for now-p.slotAt >= baseSpan/baseSlots {
		p.slot = (p.slot + 1) % baseSlots
		p.best[p.slot] = math.MaxInt64
		p.slotAt += baseSpan / baseSlots
	}
	p.before, p.last, p.at = p.last, rtt, now
	p.best[p.slot] = min(p.best[p.slot], rtt)
}

// forget drops all best times; a new slot begins.
func (p *roundTrips) forget(now time.Duration) {
	for i := range p.best {
		p.best[i] = math.MaxInt64
	}
	p.slotAt = now
}

// Forget drops a peer.
func (b *Background) Forget(peer string) { delete(b.peers, peer) }

// delay returns the least delay over the peers heard from lately; false when there is
// none.
func (b *Background) delay(now time.Duration) (least time.Duration, known bool) {
	for _, p := range b.peers {
		if now-p.at > sampleLife {
			continue
		}
		best := p.best[0]
		for _, t := range p.best[1:] {
			best = min(best, t)
		}
		// One late answer is chance, two are a queue.
		if d := min(p.last, p.before) - best; !known || d < least {
			least, known = d, true
		}
	}
	return least, known
}

// Step returns the rate, in bytes per second, until the next Step, which is to come
// within about sampleLife. used is what passed since the last one: a rate that is not
// used does not grow. Peers of which no answer comes at all count as congested.
func (b *Background) Step(now time.Duration, used int64) int64 {
	seconds := min(now-b.at, sampleLife).Seconds()
	b.at = now
	if seconds <= 0 {
		return int64(b.rate)
	}
	off := -1.0
	if d, known := b.delay(now); known {
		off = float64(backgroundTarget-d) / float64(backgroundTarget)
	}
	full := float64(used) >= 0.7*b.rate*seconds
	switch {
	case off < 0:
		// At twice the target it halves each half second.
		b.rate *= math.Pow(0.5, 2*seconds*min(1, -off))
		b.starting = false
	case b.starting && off > 0.5:
		if full {
			b.rate *= math.Pow(2, 2*seconds)
		}
	default:
		b.starting = false
		if full {
			b.rate *= 1 + backgroundGain*off*seconds
		}
	}
	b.rate = min(max(b.rate, MinRate), maxRate)
	return int64(b.rate)
}
