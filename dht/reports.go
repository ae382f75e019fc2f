package dht

import (
	"cmp"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	// ShunFor is how long a peer that two nodes reported is introduced to nobody, and
	// how long a report counts.
	ShunFor = 10 * time.Minute
	// accusers is how many different nodes must report a peer: what one saw proves
	// nothing to others, so one liar alone harms nobody.
	accusers = 2

	maxAccused     = 1024 // peers that reports are kept of
	maxAccusations = 16   // of one reporter that count at one time
	maxAway        = 16   // shunned peers told in a reply
)

// ReportedPeer is a peer that was reported to have sent wrong chunks.
type ReportedPeer struct {
	ID meta.NodeID `json:"id"`
	// By are the nodes that reported it, at most 8 are kept.
	By []meta.NodeID `json:"by"`
	// Last is when the last report came; Shunned until when it is introduced to
	// nobody, zero when one node alone said so.
	Last    time.Time `json:"last"`
	Shunned time.Time `json:"shunned,omitzero"`
}

// verdict is what a report led to; it is the label of the metric.
type verdict string

const (
	noted    verdict = "noted"    // the first word of this reporter against the peer
	repeated verdict = "repeated" // nothing new
	shunning verdict = "shunned"  // from now on nobody is introduced to it
	ignored  verdict = "ignored"  // the reporter has no say, or said too much
)

// reports is what nodes said of peers. Like the table it is pure: it reads no
// clock and is not safe for concurrent use.
type reports struct {
	accused map[meta.NodeID]*accusation
	// said counts a reporter's accusations that still count.
	said map[meta.NodeID]int
	// away are those that are shunned now.
	away map[meta.NodeID]time.Time
}

type accusation struct {
	by   map[meta.NodeID]time.Time // at most maxAccusers
	last time.Time
}

// maxAccusers bounds who is remembered to have reported a peer.
const maxAccusers = 8

func newReports() *reports {
	return &reports{accused: map[meta.NodeID]*accusation{}, said: map[meta.NodeID]int{}, away: map[meta.NodeID]time.Time{}}
}

// take notes that reporter says that peer sent a wrong chunk.
func (r *reports) take(reporter, peer meta.NodeID, now time.Time) verdict {
	if reporter == peer || r.shunned(reporter, now) {
		return ignored
	}
	a := r.accused[peer]
	if a == nil {
		if len(r.accused) >= maxAccused {
			r.sweep(now)
		}
		if len(r.accused) >= maxAccused || r.said[reporter] >= maxAccusations {
			return ignored
		}
		a = &accusation{by: map[meta.NodeID]time.Time{}}
		r.accused[peer] = a
	}
	_, known := a.by[reporter]
	if !known {
		if len(a.by) >= maxAccusers || r.said[reporter] >= maxAccusations {
			return ignored
		}
		r.said[reporter]++
	}
	a.by[reporter], a.last = now, now
	counting := 0
	for by, at := range a.by {
		if now.Sub(at) < ShunFor && !r.shunned(by, now) {
			counting++
		}
	}
	switch {
	case counting >= accusers && !r.shunned(peer, now):
		r.shun(peer, now)
		return shunning
	case known || r.shunned(peer, now):
		return repeated
	}
	return noted
}

// shun keeps peer away from now on, and reports whether that is news.
func (r *reports) shun(peer meta.NodeID, now time.Time) bool {
	was := r.shunned(peer, now)
	if len(r.away) >= maxAccused && !was {
		return false
	}
	r.away[peer] = now.Add(ShunFor)
	return !was
}

func (r *reports) shunned(peer meta.NodeID, now time.Time) bool {
	return r.away[peer].After(now)
}

// recent returns those shunned now, the latest first, at most limit.
func (r *reports) recent(now time.Time, limit int) (out []meta.NodeID) {
	for id, until := range r.away {
		if until.After(now) {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b meta.NodeID) int { return cmp.Or(r.away[b].Compare(r.away[a]), cmp.Compare(a, b)) })
	return out[:min(len(out), limit)]
}

// sweep forgets what no longer counts.
func (r *reports) sweep(now time.Time) {
	for peer, a := range r.accused {
		for by, at := range a.by {
			if now.Sub(at) >= ShunFor {
				delete(a.by, by)
				if r.said[by]--; r.said[by] <= 0 {
					delete(r.said, by)
				}
			}
		}
		if len(a.by) == 0 {
			delete(r.accused, peer)
		}
	}
	for peer, until := range r.away {
		if !until.After(now) {
			delete(r.away, peer)
		}
	}
}

// list returns all that counts, the latest first, at most limit.
func (r *reports) list(now time.Time, limit int) []ReportedPeer {
	out := []ReportedPeer{}
	for id, a := range r.accused {
		p := ReportedPeer{ID: id, Last: a.last}
		for by, at := range a.by {
			if now.Sub(at) < ShunFor {
				p.By = append(p.By, by)
			}
		}
		slices.Sort(p.By)
		if r.shunned(id, now) {
			p.Shunned = r.away[id]
		}
		out = append(out, p)
	}
	for id, until := range r.away { // by the word of another server
		if r.accused[id] == nil && until.After(now) {
			out = append(out, ReportedPeer{ID: id, By: []meta.NodeID{}, Last: until.Add(-ShunFor), Shunned: until})
		}
	}
	slices.SortFunc(out, func(a, b ReportedPeer) int { return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.ID, b.ID)) })
	return out[:min(len(out), limit)]
}
