package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Remains asks what a draining server still has that is needed there.
type Remains struct {
	Server meta.NodeID `cbor:"1,keyasint,omitempty"`
	// After is the root to go on behind, zero at the start; Limit is how many are
	// named, up to 1,000, 0 none.
	After digest.CID `cbor:"2,keyasint,omitzero"`
	Limit int        `cbor:"3,keyasint,omitempty"`
}

// RemainsAnswer is what one Remains found. The server may be removed when it is
// Draining, Settled, and nothing is left.
type RemainsAnswer struct {
	Draining *meta.Drain `cbor:"1,keyasint,omitempty"`
	// Settled says that all of it is counted.
	Settled bool `cbor:"2,keyasint,omitempty"`
	// Last and Short count the roots by why they are needed, of at most 50,000 behind
	// After; More says that there are others.
	Last  int  `cbor:"3,keyasint,omitempty"`
	Short int  `cbor:"4,keyasint,omitempty"`
	More  bool `cbor:"5,keyasint,omitempty"`
	// Named are the first of them.
	Named []Remain `cbor:"6,keyasint,omitempty"`
}

// Remain is one root that is needed, and why: RemainsLast or RemainsShort.
type Remain struct {
	Root digest.CID `cbor:"1,keyasint,omitempty"`
	Why  string     `cbor:"2,keyasint,omitempty"`
}

// Removable says whether nothing keeps the server.
func (a RemainsAnswer) Removable() bool {
	return a.Draining != nil && a.Settled && a.Last == 0 && a.Short == 0 && !a.More
}

// Answer implements Question.
func (q Remains) Answer(v *View) (a RemainsAnswer, _ error) {
	const most, mostNamed = 50_000, 1000
	if q.Limit < 0 || q.Limit > mostNamed {
		return a, fmt.Errorf("remains of %s: limit %d, use 0 to %d: %w", q.Server, q.Limit, mostNamed, meta.ErrInvalid)
	}
	n, err := findServer(v, q.Server)
	if err != nil {
		return a, err
	}
	a.Draining = n.Draining
	unsettled, err := v.get(keySettlement(meta.RepoRef{}))
	if err != nil {
		return a, err
	}
	a.Settled = unsettled == nil
	prefix := keyRemains(q.Server)
	s := within(prefix)
	if !q.After.IsZero() {
		s = onward(prefix, append(keyRemains(q.Server), q.After[:]...))
	}
	for p, err := range v.scan(s) {
		if err != nil {
			return a, err
		}
		if a.Last+a.Short == most {
			a.More = true
			break
		}
		why := string(p.value)
		if why == RemainsLast {
			a.Last++
		} else {
			a.Short++
		}
		if len(a.Named) < q.Limit {
			a.Named = append(a.Named, Remain{Root: digest.CID(p.key[len(prefix):]), Why: why})
		}
	}
	return a, nil
}

// GetHold answers the level above which the cluster is not raised, 0 without one.
type GetHold struct{}

// Answer implements Question.
func (GetHold) Answer(v *View) (uint32, error) {
	n, err := number(v, keyHold)
	return uint32(n), err
}
