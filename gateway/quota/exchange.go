package quota

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Report is what a node tells the one above it: an agent a server, a server the leader.
type Report struct {
	Node meta.NodeID `cbor:"1,keyasint,omitempty"`
	// Run is drawn when the node starts, Sequence rises with each report: one that comes
	// twice counts once.
	Run      string `cbor:"2,keyasint,omitempty"`
	Sequence uint64 `cbor:"3,keyasint,omitempty"`
	// Wants is how much the node could use per second, at most maxWants.
	Wants []Amount `cbor:"4,keyasint,omitempty"`
	// Egress is what the node's clients have downloaded since the last report that was
	// answered; agents only.
	Egress []state.EgressSum `cbor:"5,keyasint,omitempty"`
	// Totals asks for what all nodes together could use, or do use without a limit.
	Totals bool `cbor:"6,keyasint,omitempty"`
}

// Amount is so much of a limit of a tenant.
type Amount struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Kind   Kind            `cbor:"2,keyasint,omitempty"`
	Value  float64         `cbor:"3,keyasint,omitempty"`
}

// Answer has the share of each want.
type Answer struct {
	Shares []Amount `cbor:"1,keyasint,omitempty"`
	// Totals are of all tenants, when they were asked for.
	Totals []Amount `cbor:"2,keyasint,omitempty"`
}

const (
	// maxWants and maxSums bound a report.
	maxWants = 5 * 1024
	maxSums  = 1000
	// reportTime is how long a want counts that is not repeated.
	reportTime = 11 * time.Second
)

// Check refuses a report that nobody sends.
//
// Errors: meta.ErrInvalid.
func (r *Report) Check() error {
	if r.Node == "" || len(r.Run) > 64 || len(r.Wants) > maxWants || len(r.Egress) > maxSums {
		return meta.ErrInvalid
	}
	for _, w := range r.Wants {
		if w.Kind >= kinds || !(w.Value >= 0) || w.Value > 1e18 || meta.CheckTenant(w.Tenant) != nil {
			return meta.ErrInvalid
		}
	}
	for _, s := range r.Egress {
		if s.Bytes < 0 || s.Bytes > 1<<58 || s.Requests < 0 || s.Requests > 1<<58 || meta.CheckTenant(s.Tenant) != nil {
			return meta.ErrInvalid
		}
	}
	return nil
}

// limitOf names a limit of a tenant.
type limitOf struct {
	tenant meta.TenantName
	kind   Kind
}

// table is what some nodes want.
type table struct {
	mu    sync.Mutex
	wants map[limitOf]map[meta.NodeID]wanted
	last  map[meta.NodeID]seen
}

type wanted struct {
	value float64
	at    time.Time
}

type seen struct {
	run      string
	sequence uint64
	at       time.Time
}

// maxReporters bounds the nodes that a table knows.
const maxReporters = 16_384

func newTable() *table {
	return &table{wants: map[limitOf]map[meta.NodeID]wanted{}, last: map[meta.NodeID]seen{}}
}

// note takes over a report; fresh is false for one that was noted before.
func (t *table) note(r *Report, now time.Time) (fresh bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	last, known := t.last[r.Node]
	fresh = !known || last.run != r.Run || r.Sequence > last.sequence
	if !known && len(t.last) >= maxReporters {
		t.sweep(now)
		if len(t.last) >= maxReporters {
			return false
		}
	}
	if fresh {
		t.last[r.Node] = seen{r.Run, r.Sequence, now}
	}
	for _, w := range r.Wants {
		k := limitOf{w.Tenant, w.Kind}
		if t.wants[k] == nil {
			if len(t.wants) >= maxWants {
				t.sweep(now)
				if len(t.wants) >= maxWants {
					continue
				}
			}
			t.wants[k] = map[meta.NodeID]wanted{}
		}
		t.wants[k][r.Node] = wanted{w.Value, now}
	}
	return fresh
}

// sweep forgets what was not repeated. It holds mu.
func (t *table) sweep(now time.Time) {
	for k, nodes := range t.wants {
		maps.DeleteFunc(nodes, func(_ meta.NodeID, w wanted) bool { return now.Sub(w.at) > reportTime })
		if len(nodes) == 0 {
			delete(t.wants, k)
		}
	}
	maps.DeleteFunc(t.last, func(_ meta.NodeID, s seen) bool { return now.Sub(s.at) > time.Hour })
}

// sums returns what all want together, in the order of tenants and kinds.
func (t *table) sums(now time.Time) []Amount {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now)
	var out []Amount
	for k, nodes := range t.wants {
		a := Amount{Tenant: k.tenant, Kind: k.kind}
		for _, w := range nodes {
			a.Value += w.value
		}
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b Amount) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Kind, b.Kind))
	})
	return out
}

// shareOf divides rate between those who want some of k and returns node's part.
func (t *table) shareOf(k limitOf, node meta.NodeID, rate float64) float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	ids := slices.Sorted(maps.Keys(t.wants[k]))
	at := slices.Index(ids, node)
	if at < 0 {
		return 0
	}
	wants := make([]float64, len(ids))
	for i, id := range ids {
		wants[i] = t.wants[k][id].value
	}
	return Divide(rate, wants)[at]
}
