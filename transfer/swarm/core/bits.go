package core

import "math/bits"

// Bits is a set of chunk numbers, 64 to a word, lowest bit first.
type Bits []uint64

// NewBits returns an empty set for n chunks.
func NewBits(n int) Bits { return make(Bits, (n+63)/64) }

// Has reports whether i is in the set; false outside of it.
func (b Bits) Has(i int) bool { return i >= 0 && i>>6 < len(b) && b[i>>6]>>(i&63)&1 != 0 }

func (b Bits) set(i int)   { b[i>>6] |= 1 << (i & 63) }
func (b Bits) clear(i int) { b[i>>6] &^= 1 << (i & 63) }

// Set adds i, which must be within the size the set was made for.
func (b Bits) Set(i int) { b.set(i) }

// Count returns the size of the set.
func (b Bits) Count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// fill puts [from, to) into the set.
func (b Bits) fill(from, to int) {
	for from < to {
		if from&63 == 0 && to-from >= 64 {
			b[from>>6] = ^uint64(0)
			from += 64
			continue
		}
		b.set(from)
		from++
	}
}

// zero empties the set.
func (b Bits) zero() {
	for i := range b {
		b[i] = 0
	}
}
