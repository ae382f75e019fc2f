package quota

import "slices"

// floorPart is the part of a rate that is split evenly whatever is wanted, so that one
// who begins has something to begin with.
const floorPart = 0.05

// Divide splits a rate between those who want some of it. Nobody gets less than an even
// part of floorPart; of the rest nobody gets more than he wants while another wants more
// than he has, and what nobody wants is split evenly. The sum of the shares is the rate.
// Wants below zero are none.
func Divide(rate float64, wants []float64) []float64 {
	n := len(wants)
	if n == 0 {
		return nil
	}
	floor := rate * floorPart / float64(n)
	shares, order := make([]float64, n), make([]int, n)
	left := rate - floor*float64(n)
	for i := range order {
		order[i], shares[i] = i, floor
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case wants[a] < wants[b]:
			return -1
		case wants[a] > wants[b]:
			return 1
		}
		return 0
	})
	// From the least want up: an even part of what is left, or the want.
	for rank, i := range order {
		more := min(max(0, wants[i]-floor), left/float64(n-rank))
		shares[i] += more
		left -= more
	}
	for i := range shares {
		shares[i] += left / float64(n)
	}
	return shares
}

// fairPart is what one of so many nodes takes that hears nobody.
func fairPart(rate float64, nodes int) float64 { return rate / float64(max(1, nodes)) }
