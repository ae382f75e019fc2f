// Package chunk slices content and describes the slices.
//
// A blob is an ordered list of chunks. LengthAt says how long the chunk at an
// offset is, Builder cuts a stream accordingly while it passes, and Map is the
// resulting list. A Map has exactly one encoding (encode.go, transfer/DESIGN.md);
// the CID of that encoding is the blob's root, so whoever knows the root can check
// the map, and whoever has the map can check each chunk. Bitmap says which chunks
// of a map somebody has. Start reading at Map.
//
// The package is pure: no I/O, no clock, no goroutines.
package chunk

import (
	"fmt"
	"math/bits"
	"sort"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Sizes and bounds of chunks and maps.
const (
	// MinBytes is the length of the first chunks, MaxBytes the longest plain length.
	MinBytes = 256 << 10
	MaxBytes = 4 << 20
	// MaxOverhead is the most that sealing may add to a chunk.
	MaxOverhead = 4 << 10
	// MaxStoredBytes is the longest chunk as stored and sent.
	MaxStoredBytes = MaxBytes + MaxOverhead
	// MaxChunks bounds a map: just under 8 TiB by the schedule, an encoding of 64 MiB.
	// A blob of 5 TiB has 1,311,504 chunks, 40 MiB encoded; one of 5 GiB 2,064 and 65 KiB.
	MaxChunks = 1 << 21
	// MaxEncodedBytes bounds the encoding of a map: IDs, both length lists, header.
	MaxEncodedBytes = MaxChunks*(32+4+4) + 64

	stepChunks = 256 // chunks of each length before the next
	stepCount  = 4   // lengths before MaxBytes: MinBytes doubled 0 to 3 times
)

// Chunk is one slice of a blob.
type Chunk struct {
	// ID is the CID of the bytes as stored and sent.
	ID digest.CID
	// Plain and Stored are the lengths in bytes before and after sealing.
	Plain, Stored uint32
}

// Map is the ordered list of a blob's chunks. It is made by New, Decode or a
// Builder and not changed afterwards; it may then be shared between goroutines.
type Map struct {
	PlainBytes, StoredBytes int64
	// Seal is how the chunks are sealed; 0 is not at all.
	Seal   uint8
	Chunks []Chunk

	scheduled bool    // plain lengths are those of LengthAt
	overhead  int64   // Stored - Plain when it is the same for all chunks, else -1
	plain     []int64 // offsets, nil when scheduled
	stored    []int64 // offsets, nil when the overhead is uniform
}

// LengthAt returns the plain length of a full chunk that starts at plain offset
// bytes: 256 chunks each of 256 KiB, 512 KiB, 1 MiB and 2 MiB, then 4 MiB. Chunks
// start where the one before ended, so offset is a sum of such lengths.
func LengthAt(offset int64) int {
	if offset < 0 {
		return MinBytes
	}
	// Step k starts at stepChunks*MinBytes*(2^k - 1).
	k := bits.Len64(uint64(offset)/(stepChunks*MinBytes)+1) - 1
	return MinBytes << min(k, stepCount)
}

// offsetOf returns where chunk i starts by the schedule.
func offsetOf(i int) int64 {
	k := min(i/stepChunks, stepCount)
	return int64(stepChunks*MinBytes)*(1<<k-1) + int64(i-k*stepChunks)*(MinBytes<<k)
}

// indexAt returns the chunk that holds offset by the schedule.
func indexAt(offset int64) int {
	k := min(bits.Len64(uint64(offset)/(stepChunks*MinBytes)+1)-1, stepCount)
	return k*stepChunks + int((offset-offsetOf(k*stepChunks))/(MinBytes<<k))
}

// CountFor returns how many chunks the schedule cuts plainBytes into.
func CountFor(plainBytes int64) int {
	if plainBytes <= 0 {
		return 0
	}
	return indexAt(plainBytes-1) + 1
}

// New checks chunks and returns their Map, which keeps the slice.
//
// Errors: meta.ErrTooLarge above MaxChunks; meta.ErrInvalid for a length of 0, above
// MaxBytes, or a stored length that is shorter than the plain one, above
// MaxStoredBytes, or (unsealed) not equal to it.
func New(seal uint8, chunks []Chunk) (*Map, error) {
	if len(chunks) > MaxChunks {
		return nil, fmt.Errorf("chunk map of %d chunks, at most %d: %w", len(chunks), MaxChunks, meta.ErrTooLarge)
	}
	m := &Map{Seal: seal, Chunks: chunks, scheduled: true}
	if len(chunks) > 0 {
		m.overhead = int64(chunks[0].Stored) - int64(chunks[0].Plain)
	}
	for i, c := range chunks {
		over := int64(c.Stored) - int64(c.Plain)
		switch {
		case c.Plain == 0 || c.Plain > MaxBytes:
			return nil, fmt.Errorf("chunk %d has %d plain bytes: %w", i, c.Plain, meta.ErrInvalid)
		case over < 0 || over > MaxOverhead || seal == 0 && over != 0:
			return nil, fmt.Errorf("chunk %d has %d plain and %d stored bytes: %w", i, c.Plain, c.Stored, meta.ErrInvalid)
		}
		full := LengthAt(m.PlainBytes)
		last := i == len(chunks)-1
		m.scheduled = m.scheduled && m.PlainBytes == offsetOf(i) && (int(c.Plain) == full || last && int(c.Plain) < full)
		if over != m.overhead {
			m.overhead = -1
		}
		m.PlainBytes += int64(c.Plain)
		m.StoredBytes += int64(c.Stored)
	}
	if !m.scheduled {
		m.plain = offsets(chunks, func(c Chunk) uint32 { return c.Plain })
	}
	if m.overhead < 0 {
		m.stored = offsets(chunks, func(c Chunk) uint32 { return c.Stored })
	}
	return m, nil
}

func offsets(chunks []Chunk, length func(Chunk) uint32) []int64 {
	out := make([]int64, len(chunks))
	var at int64
	for i, c := range chunks {
		out[i] = at
		at += int64(length(c))
	}
	return out
}

// Len returns the number of chunks.
func (m *Map) Len() int { return len(m.Chunks) }

// PlainOffset returns where chunk i starts in the plain bytes; i may be Len,
// which gives PlainBytes.
func (m *Map) PlainOffset(i int) int64 {
	switch {
	case i == len(m.Chunks):
		return m.PlainBytes
	case m.plain != nil:
		return m.plain[i]
	default:
		return offsetOf(i)
	}
}

// StoredOffset returns where chunk i starts in the stored bytes; i may be Len,
// which gives StoredBytes.
func (m *Map) StoredOffset(i int) int64 {
	switch {
	case i == len(m.Chunks):
		return m.StoredBytes
	case m.stored != nil:
		return m.stored[i]
	default:
		return m.PlainOffset(i) + int64(i)*m.overhead
	}
}

// Find returns the chunk i that holds plainOffset and the offset within it.
// From PlainBytes on it returns Len and 0.
func (m *Map) Find(plainOffset int64) (i int, within int64) {
	switch {
	case plainOffset >= m.PlainBytes:
		return len(m.Chunks), 0
	case plainOffset < 0:
		return 0, 0
	case m.plain == nil:
		i = indexAt(plainOffset)
	default:
		i = sort.Search(len(m.plain), func(k int) bool { return m.plain[k] > plainOffset }) - 1
	}
	return i, plainOffset - m.PlainOffset(i)
}

// Derivable says that Of the content gives this map, so that a lost map can be made
// again: it is unsealed and cut by the schedule.
func (m *Map) Derivable() bool { return m.Seal == 0 && m.scheduled }

// Root returns the CID of the encoding, the name of the blob in the swarm.
func (m *Map) Root() digest.CID { return digest.Sum(m.Encode()) }
