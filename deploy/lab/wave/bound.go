package wave

import "math"

// Bound is what the links of a wave allow at best.
type Bound struct {
	Bytes     int64 // F: what each receiver wants
	Receivers int   // N: agents, and the servers of other regions that relay to theirs
	SeedUp    int64 // us: the origin's uplink, bits a second
	Down      int64 // d: the slowest receiver's downlink
	PeerUp    int64 // sum of ui: uplinks of all receivers together
}

// Terms returns the three lower bounds in seconds: the seed sends everything once, a
// receiver takes everything once, all uplinks together carry everything N times. A
// rate of 0 is no limit. Source: Kumar and Ross, Peer-Assisted File Distribution, 2006.
func (b Bound) Terms() (seed, down, all float64) {
	bits := float64(b.Bytes) * 8
	over := func(bits float64, rate int64) float64 {
		if rate <= 0 {
			return 0
		}
		return bits / float64(rate)
	}
	seed, down = over(bits, b.SeedUp), over(bits, b.Down)
	if b.SeedUp > 0 {
		all = over(bits*float64(b.Receivers), b.SeedUp+b.PeerUp)
	}
	return seed, down, all
}

// Seconds returns the largest term: no wave finishes sooner. 0 when nothing is limited.
func (b Bound) Seconds() float64 {
	seed, down, all := b.Terms()
	return math.Max(seed, math.Max(down, all))
}
