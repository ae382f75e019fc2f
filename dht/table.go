package dht

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// tableLimits bounds a table. A member costs about 200 bytes.
type tableLimits struct {
	roots, members, membersPerRoot int
}

// table holds the members of swarms under leases. It is the registrar's core:
// it reads no clock, does no I/O and draws randomness only from its source. It
// is not safe for concurrent use.
type table struct {
	limits  tableLimits
	random  *rand.Rand
	roots   map[digest.CID]*group
	members int
	whole   int // members that are complete
}

// group is the members of one root: by id, and in slices from which a random few
// are drawn in constant time.
type group struct {
	byID   map[meta.NodeID]*member
	all    []*member
	byZone map[string][]*member
	whole  int    // members that are complete
	have   uint64 // chunks of all members
	nudged time.Time
	// standing are the guests that fetch for their region (stand).
	standing []meta.NodeID
}

type member struct {
	id            meta.NodeID
	zone          string
	have          uint64 // verified chunks
	complete      bool
	expires       time.Time
	inAll, inZone int // positions in group.all and group.byZone
}

// progress is how much of a root a member has.
type progress struct {
	have     uint64
	complete bool
}

func newTable(limits tableLimits, random *rand.Rand) *table {
	return &table{limits: limits, random: random, roots: map[digest.CID]*group{}}
}

// join adds a member or renews its lease, and reports whether it is recorded: a
// full table takes no new ones, and answers them all the same.
func (t *table) join(root digest.CID, id meta.NodeID, zone string, has progress, expires time.Time) bool {
	g := t.roots[root]
	if g != nil {
		if m := g.byID[id]; m != nil {
			if m.zone == zone {
				g.whole += btoi(has.complete) - btoi(m.complete)
				t.whole += btoi(has.complete) - btoi(m.complete)
				g.have += has.have - m.have
				m.have, m.complete, m.expires = has.have, has.complete, expires
				return true
			}
			t.remove(root, g, m)
			g = t.roots[root]
		}
	}
	if t.members >= t.limits.members || g == nil && len(t.roots) >= t.limits.roots ||
		g != nil && len(g.all) >= t.limits.membersPerRoot {
		return false
	}
	if g == nil {
		g = &group{byID: map[meta.NodeID]*member{}, byZone: map[string][]*member{}}
		t.roots[root] = g
	}
	g.whole += btoi(has.complete)
	t.whole += btoi(has.complete)
	g.have += has.have
	m := &member{id: id, zone: zone, have: has.have, complete: has.complete, expires: expires, inAll: len(g.all), inZone: len(g.byZone[zone])}
	g.byID[id] = m
	g.all = append(g.all, m)
	g.byZone[zone] = append(g.byZone[zone], m)
	t.members++
	return true
}

// nudge reports whether it last did so for root nudgeEvery ago or earlier.
func (t *table) nudge(root digest.CID, now time.Time) bool {
	g := t.roots[root]
	if g == nil || now.Sub(g.nudged) < nudgeEvery {
		return false
	}
	g.nudged = now
	return true
}

// stand reports whether a member is one of the standMost that fetch for their region:
// the first to come, and others in the place of those that are gone, or have it all.
func (t *table) stand(root digest.CID, id meta.NodeID, now time.Time) bool {
	g := t.roots[root]
	if g == nil || g.byID[id] == nil {
		return true // not recorded, because the table is full: it must not starve
	}
	g.standing = slices.DeleteFunc(g.standing, func(other meta.NodeID) bool {
		m := g.byID[other]
		return m == nil || !m.expires.After(now) || m.complete
	})
	if slices.Contains(g.standing, id) {
		return true
	}
	if len(g.standing) >= standMost || g.whole > 0 {
		return false
	}
	g.standing = append(g.standing, id)
	return true
}

// leave ends a membership.
func (t *table) leave(root digest.CID, id meta.NodeID) {
	if g := t.roots[root]; g != nil {
		if m := g.byID[id]; m != nil {
			t.remove(root, g, m)
		}
	}
}

func (t *table) remove(root digest.CID, g *group, m *member) {
	delete(g.byID, m.id)
	g.whole -= btoi(m.complete)
	t.whole -= btoi(m.complete)
	g.have -= m.have
	last := g.all[len(g.all)-1]
	g.all[m.inAll], last.inAll = last, m.inAll
	g.all[len(g.all)-1] = nil
	g.all = g.all[:len(g.all)-1]
	zone := g.byZone[m.zone]
	last = zone[len(zone)-1]
	zone[m.inZone], last.inZone = last, m.inZone
	zone[len(zone)-1] = nil
	if g.byZone[m.zone] = zone[:len(zone)-1]; len(zone) == 1 {
		delete(g.byZone, m.zone)
	}
	t.members--
	if len(g.all) == 0 {
		delete(t.roots, root)
	}
}

// count returns the members of root, some of which may have expired since the
// last sweep.
func (t *table) count(root digest.CID) int {
	if g := t.roots[root]; g != nil {
		return len(g.all)
	}
	return 0
}

// copies returns how many members of root, besides those of but, are complete; some
// may have expired since the last sweep.
func (t *table) copies(root digest.CID, but ...meta.NodeID) int {
	g := t.roots[root]
	if g == nil {
		return 0
	}
	n := g.whole
	for _, id := range but {
		if m := g.byID[id]; m != nil && m.complete {
			n--
		}
	}
	return n
}

// find returns a member's state.
func (t *table) find(root digest.CID, id meta.NodeID, now time.Time) (complete, ok bool) {
	if g := t.roots[root]; g != nil {
		if m := g.byID[id]; m != nil && m.expires.After(now) {
			return m.complete, true
		}
	}
	return false, false
}

// picked is a member that pick chose.
type picked struct {
	id       meta.NodeID
	complete bool
}

// pick returns at most n live members of root other than those that skip names,
// without repeats: half of them from zone as far as it has so many, the rest at
// random from all. Members whose lease has ended by now are removed on the way.
func (t *table) pick(root digest.CID, zone string, n int, now time.Time, skip func(meta.NodeID) bool) []picked {
	g := t.roots[root]
	if g == nil || n <= 0 {
		return nil
	}
	out := make([]picked, 0, min(n, len(g.all)))
	var expired []*member
	// draw moves random members to the front of from, as the first steps of a
	// Fisher-Yates shuffle, until out holds want.
	draw := func(from []*member, want int, position func(*member) *int) {
		for i := 0; i < len(from) && len(out) < want; i++ {
			j := i + t.random.IntN(len(from)-i)
			from[i], from[j] = from[j], from[i]
			*position(from[i]), *position(from[j]) = i, j
			switch m := from[i]; {
			case !m.expires.After(now):
				expired = append(expired, m)
			case skip(m.id) || taken(out, m.id):
			default:
				out = append(out, picked{m.id, m.complete})
			}
		}
	}
	draw(g.byZone[zone], (n+1)/2, func(m *member) *int { return &m.inZone })
	draw(g.all, n, func(m *member) *int { return &m.inAll })
	for _, m := range expired {
		if g.byID[m.id] == m { // it may have been drawn twice
			t.remove(root, g, m)
		}
	}
	return out
}

func taken(out []picked, id meta.NodeID) bool {
	for _, p := range out {
		if p.id == id {
			return true
		}
	}
	return false
}

// sweep removes every member whose lease has ended by now and returns how many.
func (t *table) sweep(now time.Time) int {
	before := t.members
	for root, g := range t.roots {
		for i := len(g.all) - 1; i >= 0; i-- {
			if m := g.all[i]; !m.expires.After(now) {
				t.remove(root, g, m)
			}
		}
	}
	return before - t.members
}
