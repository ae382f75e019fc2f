package quota

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestDivide(t *testing.T) {
	for _, c := range []struct {
		name  string
		rate  float64
		wants []float64
		want  []float64
	}{
		{"nobody", 100, nil, nil},
		{"one has it all", 100, []float64{3}, []float64{100}},
		{"less than there is is split evenly beyond the wants", 100, []float64{10, 30}, []float64{40, 60}},
		{"who wants little gets it, the others share", 100, []float64{5, 500, 500}, []float64{5, 47.5, 47.5}},
		{"who wants nothing has a floor", 100, []float64{0, 500}, []float64{2.5, 97.5}},
		{"below zero is none", 100, []float64{-7, 500}, []float64{2.5, 97.5}},
	} {
		got := Divide(c.rate, c.wants)
		if !slices.EqualFunc(got, c.want, func(a, b float64) bool { return math.Abs(a-b) < 1e-9 }) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// The shares are the rate, nobody is without, nobody gets more than he wants while
// another is short and has less, and the order of the nodes does not matter.
func TestDivideProperties(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		rate := rapid.Float64Range(1, 1e12).Draw(r, "rate")
		wants := rapid.SliceOfN(rapid.Float64Range(0, 1e12), 1, 40).Draw(r, "wants")
		shares := Divide(rate, wants)
		sum := 0.0
		for i, s := range shares {
			sum += s
			if s < rate*floorPart/float64(len(wants))*(1-1e-9) {
				r.Fatalf("%d has %g, less than the floor", i, s)
			}
			for j, other := range shares {
				short := other < wants[j]*(1-1e-9)
				if short && s > other*(1+1e-9) && s > wants[i]*(1+1e-9) && s > rate*floorPart/float64(len(wants))*(1+1e-9) {
					r.Fatalf("%d wants %g and has %g while %d wants %g and has %g", i, wants[i], s, j, wants[j], other)
				}
			}
		}
		if math.Abs(sum-rate) > rate*1e-9 {
			r.Fatalf("the shares of %g are %g together", rate, sum)
		}
		turned := slices.Clone(wants)
		slices.Reverse(turned)
		back := Divide(rate, turned)
		slices.Reverse(back)
		for i := range back {
			if math.Abs(back[i]-shares[i]) > rate*1e-9 {
				r.Fatalf("another order of nodes gives %v, not %v", back, shares)
			}
		}
	})
}

// However a cluster falls apart, the nodes that hear nobody stay within the rate.
func TestFairPart(t *testing.T) {
	for nodes := range 50 {
		if sum := fairPart(1000, nodes) * float64(max(1, nodes)); sum > 1000.0001 {
			t.Errorf("%d nodes take %g", nodes, sum)
		}
	}
}
