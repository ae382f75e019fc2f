package place

import (
	"cmp"
	"iter"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Lane is what a region owes of one class to one tenant.
type Lane struct {
	Class  meta.Class
	Tenant string
	// Weight is the tenant's part among those of the class; below 1 is 1.
	Weight int
	// Oldest is when the demand that waits longest was made.
	Oldest meta.Time
}

// Weights of the classes: while all of them wait, critical gets 16 parts of 21, standard
// 4 and cold 1, so none starves; each part that a class leaves goes to the others.
var classWeights = map[meta.Class]float64{meta.ClassCritical: 16, meta.ClassStandard: 4, meta.ClassCold: 1}

// blobCost is what a copy costs beyond its bytes, in bytes: small blobs are not free.
const blobCost = 256 << 10

// Cost is what a copy of d costs, in bytes.
func Cost(d meta.Replica) float64 { return float64(d.StoredBytes + blobCost) }

// Fair decides whose copy comes next: start-time fair queueing (Goyal, Vin and Cheng,
// SIGCOMM 1996) of the classes by their weights, and within a class of the tenants by
// theirs. A tenant that asks for little is served at once, however much others have
// waiting; what it did not use it does not get later.
//
// Order plans, Serve says what has begun. The zero Fair is ready. It is not safe for
// concurrent use, reads no clock and starts no goroutines.
type Fair struct {
	classes flows
	tenants map[meta.Class]*flows
}

// flows are those that share something. now is the virtual time: the start tag of what
// was served last. A flow that waits has the start tag max(now, finish).
type flows struct {
	now    float64
	finish map[string]float64 // of the last one served, of flows that were served lately
}

func (f *flows) start(name string) float64 { return max(f.now, f.finish[name]) }

func (f *flows) serve(name string, work float64) {
	if f.finish == nil {
		f.finish = map[string]float64{}
	}
	f.now = f.start(name)
	f.finish[name] = f.now + work
}

// forget drops flows that nothing remembers: whose tag is not ahead of the time.
func (f *flows) forget() {
	for name, finish := range f.finish {
		if finish <= f.now {
			delete(f.finish, name)
		}
	}
}

// ofClass returns the tenants of a class.
func (f *Fair) ofClass(c meta.Class) *flows {
	if f.tenants == nil {
		f.tenants = map[meta.Class]*flows{}
	}
	if f.tenants[c] == nil {
		f.tenants[c] = &flows{}
	}
	return f.tenants[c]
}

func weightOf(c meta.Class) float64 {
	if w, ok := classWeights[c]; ok {
		return w
	}
	return 1
}

// Serve charges a copy that has begun to its lane.
func (f *Fair) Serve(c Copy) {
	f.classes.serve(string(c.Lane.Class), Cost(c.Demand)/weightOf(c.Lane.Class))
	tenants := f.ofClass(c.Lane.Class)
	tenants.serve(c.Lane.Tenant, Cost(c.Demand)/float64(max(c.Lane.Weight, 1)))
	tenants.forget()
}

// Order returns the next copies in the order in which to begin them, at most limit.
// due yields the copies of a lane that may begin, oldest first; it is read no further
// than needed, and lanes whose turn does not come are not read at all.
func (f *Fair) Order(lanes []Lane, limit int, due func(Lane) iter.Seq[Copy]) (out []Copy) {
	type waiting struct {
		Lane
		start  float64 // tag among the tenants of its class
		pull   func() (Copy, bool)
		stop   func()
		opened bool
	}
	type class struct {
		name  meta.Class
		start float64
		now   float64 // of its tenants
		lanes []*waiting
	}
	byName := map[meta.Class]*class{}
	var classes []*class
	for _, lane := range lanes {
		c := byName[lane.Class]
		tenants := f.ofClass(lane.Class)
		if c == nil {
			c = &class{name: lane.Class, start: f.classes.start(string(lane.Class)), now: tenants.now}
			byName[lane.Class] = c
			classes = append(classes, c)
		}
		c.lanes = append(c.lanes, &waiting{Lane: lane, start: tenants.start(lane.Tenant)})
	}
	defer func() {
		for _, c := range classes {
			for _, w := range c.lanes {
				if w.opened {
					w.stop()
				}
			}
		}
	}()
	first := func(a, b *class) bool {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(classOrder(a.name), classOrder(b.name))) < 0
	}
	sooner := func(a, b *waiting) bool {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.Oldest, b.Oldest), cmp.Compare(a.Tenant, b.Tenant)) < 0
	}
	now := f.classes.now
	for len(out) < limit {
		var c *class
		for _, other := range classes {
			other.start = max(other.start, now)
			if len(other.lanes) > 0 && (c == nil || first(other, c)) {
				c = other
			}
		}
		if c == nil {
			break
		}
		at := 0
		for i, other := range c.lanes {
			other.start = max(other.start, c.now)
			if sooner(other, c.lanes[at]) {
				at = i
			}
		}
		w := c.lanes[at]
		if !w.opened {
			w.pull, w.stop = iter.Pull(due(w.Lane))
			w.opened = true
		}
		next, ok := w.pull()
		if !ok {
			w.stop()
			c.lanes[at] = c.lanes[len(c.lanes)-1]
			c.lanes = c.lanes[:len(c.lanes)-1]
			continue
		}
		next.Lane = w.Lane
		out = append(out, next)
		now, c.now = c.start, w.start
		c.start += Cost(next.Demand) / weightOf(c.name)
		w.start += Cost(next.Demand) / float64(max(w.Weight, 1))
	}
	return out
}

// MoreUrgent says whether class a comes before b.
func MoreUrgent(a, b meta.Class) bool { return classOrder(a) < classOrder(b) }

// classOrder is 0 for the most urgent class.
func classOrder(c meta.Class) int {
	switch c {
	case meta.ClassCritical:
		return 0
	case meta.ClassStandard:
		return 1
	case meta.ClassCold:
		return 2
	}
	return 3
}
