package chunk

import (
	"fmt"
	"sync"

	"github.com/zeebo/blake3"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// hashers are reused because one is 10 KB and most blobs are smaller.
var hashers = sync.Pool{New: func() any { return blake3.New() }}

// Of returns the map of content, cut by the schedule and unsealed.
//
// It panics above MaxChunks, which is more than any slice has.
func Of(content []byte) *Map {
	var b Builder
	if _, err := b.Write(content); err != nil {
		panic(err)
	}
	m, err := b.Map()
	if err != nil {
		panic(err)
	}
	return m
}

// Builder cuts a stream into unsealed chunks by the schedule while the bytes pass.
// The zero Builder is at offset 0. It is not safe for concurrent use.
type Builder struct {
	chunks []Chunk
	start  int64 // of the unfinished chunk
	within int   // bytes of the unfinished chunk so far
	hash   *blake3.Hasher
}

// Resume returns a Builder behind the given finished chunks, which it copies. The
// bytes of an unfinished chunk have to be written again.
//
// Errors: meta.ErrInvalid when a chunk does not have the schedule's length.
func Resume(chunks []Chunk) (*Builder, error) {
	b := &Builder{}
	for i, c := range chunks {
		if full := LengthAt(b.start); int(c.Plain) != full || c.Stored != c.Plain {
			return nil, fmt.Errorf("resume: chunk %d has %d bytes, not %d: %w", i, c.Plain, full, meta.ErrInvalid)
		}
		b.start += int64(c.Plain)
	}
	b.chunks = append([]Chunk(nil), chunks...)
	return b, nil
}

// Size returns the bytes written so far.
func (b *Builder) Size() int64 { return b.start + int64(b.within) }

// Finished returns the chunks that are full, and the offset where the unfinished one
// starts. The slice is the Builder's own.
func (b *Builder) Finished() ([]Chunk, int64) { return b.chunks, b.start }

// Tail returns the id of the bytes of the unfinished chunk so far, zero without any.
func (b *Builder) Tail() (id digest.CID) {
	if b.within > 0 {
		id = b.sum()
	}
	return id
}

// Write adds p to the stream; it keeps nothing of p.
//
// Errors: meta.ErrTooLarge when the stream would have more than MaxChunks.
func (b *Builder) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		full := LengthAt(b.start)
		n := min(len(p), full-b.within)
		if b.within == 0 {
			if len(b.chunks) == MaxChunks {
				return written, fmt.Errorf("content above %d chunks: %w", MaxChunks, meta.ErrTooLarge)
			}
			if n == full { // whole chunk in hand: no hasher state to keep
				b.push(digest.Sum(p[:n]), n)
				p, written = p[n:], written+n
				continue
			}
			if b.hash == nil {
				b.hash = hashers.Get().(*blake3.Hasher)
			}
			b.hash.Reset()
		}
		_, _ = b.hash.Write(p[:n]) // never fails
		b.within += n
		p, written = p[n:], written+n
		if b.within == full {
			b.push(b.sum(), full)
		}
	}
	return written, nil
}

func (b *Builder) sum() digest.CID {
	var id digest.CID
	b.hash.Sum(id[:0])
	return id
}

func (b *Builder) push(id digest.CID, length int) {
	b.chunks = append(b.chunks, Chunk{ID: id, Plain: uint32(length), Stored: uint32(length)})
	b.start += int64(length)
	b.within = 0
}

// Map ends the stream and returns its map. The Builder may not be used afterwards.
func (b *Builder) Map() (*Map, error) {
	if b.within > 0 {
		b.push(b.sum(), b.within)
	}
	b.Discard()
	return New(0, b.chunks)
}

// Discard frees what an unfinished Builder holds; it may not be used afterwards.
func (b *Builder) Discard() {
	if b.hash != nil {
		hashers.Put(b.hash)
		b.hash = nil
	}
}
