package nemesis

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Step is one fault of a schedule.
type Step struct {
	Number int
	Kind   string
	// Victim is a number that the fault takes modulo what there is to choose from.
	Victim int
	// Hold is how long the fault lasts before it heals.
	Hold time.Duration
	// Overlap lets the next fault begin while this one lasts; both heal together.
	Overlap bool
	Seed    uint64 // of what else the fault chooses
}

// String is a line of the log.
func (s Step) String() string {
	line := fmt.Sprintf("#%d %s, victim %d, %v", s.Number, s.Kind, s.Victim, s.Hold.Round(100*time.Millisecond))
	if s.Overlap {
		line += ", and the next with it"
	}
	return line
}

// Steps is the endless schedule that seed names, of the kinds in only, or of all when it
// is empty. The same arguments give the same steps.
//
// Each kind comes as often as its weight says; scale stretches how long faults last, as
// for a cluster with slower timings.
//
// Errors: a kind that there is not.
func Steps(seed uint64, only []string, scale float64) (iter.Seq[Step], error) {
	var deck []kind
	for _, k := range kinds {
		if len(only) == 0 || slices.Contains(only, k.name) {
			deck = append(deck, k)
		}
	}
	for _, name := range only {
		if !slices.ContainsFunc(kinds, func(k kind) bool { return k.name == name }) {
			return nil, fmt.Errorf("no fault %q; there are %s", name, strings.Join(Kinds(), ", "))
		}
	}
	total := 0
	for _, k := range deck {
		total += k.weight
	}
	return func(yield func(Step) bool) {
		rng := rand.New(rand.NewPCG(seed, 1))
		overlapped := false
		for n := 1; ; n++ {
			roll := rng.IntN(total)
			at := 0
			for roll >= deck[at].weight {
				roll -= deck[at].weight
				at++
			}
			k := deck[at]
			s := Step{Number: n, Kind: k.name, Victim: rng.IntN(60), Seed: rng.Uint64(),
				Hold: time.Duration(scale * float64(k.shortest+time.Duration(rng.Int64N(int64(k.longest-k.shortest)+1))))}
			// Two at once, never three.
			s.Overlap = k.pairs && !overlapped && rng.IntN(4) == 0
			overlapped = s.Overlap
			if !yield(s) {
				return
			}
		}
	}, nil
}

// Kinds returns the names of all faults.
func Kinds() []string {
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return names
}

// Describe is a table of all faults, for people.
func Describe() string {
	var text strings.Builder
	for _, k := range kinds {
		fmt.Fprintf(&text, "  %-18s %s\n", k.name, k.what)
	}
	return text.String()
}
