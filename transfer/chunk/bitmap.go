package chunk

import (
	"fmt"
	"math/bits"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bitmap says which chunks of a map somebody has. On disk and on the wire it is
// Len/8 bytes rounded up, chunk i in bit i%8 (from the least significant) of byte
// i/8, the spare bits 0. The zero Bitmap has no chunks. Copies share the bits, use
// Clone for one of its own; it is not safe for concurrent change.
type Bitmap struct {
	n    int
	bits []byte
}

// NewBitmap returns a Bitmap of n chunks, none set.
func NewBitmap(n int) Bitmap { return Bitmap{n: n, bits: make([]byte, (n+7)/8)} }

// FullBitmap returns a Bitmap of n chunks, all set.
func FullBitmap(n int) Bitmap {
	b := NewBitmap(n)
	for i := range b.bits {
		b.bits[i] = 0xff
	}
	if n%8 != 0 {
		b.bits[len(b.bits)-1] = 1<<(n%8) - 1
	}
	return b
}

// ParseBitmap reads the Bytes of a Bitmap of n chunks; it copies them.
//
// Errors: meta.ErrInvalid when the length is wrong or a spare bit is set.
func ParseBitmap(n int, b []byte) (Bitmap, error) {
	if n < 0 || len(b) != (n+7)/8 || n%8 != 0 && b[len(b)-1]>>(n%8) != 0 {
		return Bitmap{}, fmt.Errorf("%d bytes are no bitmap of %d chunks: %w", len(b), n, meta.ErrInvalid)
	}
	return Bitmap{n: n, bits: append([]byte(nil), b...)}, nil
}

// Len returns the number of chunks, set or not.
func (b Bitmap) Len() int { return b.n }

// Has reports whether chunk i is set; out of range it is not.
func (b Bitmap) Has(i int) bool { return i >= 0 && i < b.n && b.bits[i/8]>>(i%8)&1 != 0 }

// Set sets chunk i, which must be in range.
func (b Bitmap) Set(i int) { b.bits[i/8] |= 1 << (i % 8) }

// Clear clears chunk i, which must be in range.
func (b Bitmap) Clear(i int) { b.bits[i/8] &^= 1 << (i % 8) }

// Count returns how many chunks are set.
func (b Bitmap) Count() int {
	n := 0
	for _, v := range b.bits {
		n += bits.OnesCount8(v)
	}
	return n
}

// Full reports whether all chunks are set; of none it is true.
func (b Bitmap) Full() bool { return b.Count() == b.n }

// NextMissing returns the first chunk from i on that is not set, or Len.
func (b Bitmap) NextMissing(i int) int {
	for i = max(i, 0); i < b.n; i++ {
		if i%8 == 0 && b.bits[i/8] == 0xff {
			i += 7
			continue
		}
		if !b.Has(i) {
			return i
		}
	}
	return b.n
}

// Clone returns a copy with bits of its own.
func (b Bitmap) Clone() Bitmap { return Bitmap{n: b.n, bits: append([]byte(nil), b.bits...)} }

// Bytes returns the bits in the form of the type's comment; not a copy.
func (b Bitmap) Bytes() []byte { return b.bits }
