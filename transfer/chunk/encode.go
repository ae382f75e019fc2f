package chunk

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// The encoding, version 1 (transfer/DESIGN.md, Chunk map):
//
//	u8       version, 1
//	u8       seal
//	u8       flags: bit 0 plain lengths are listed, bit 1 stored lengths are listed
//	uvarint  plain bytes
//	uvarint  count of chunks
//	uvarint  overhead, unless bit 1: stored = plain + overhead for every chunk
//	uvarint  plain length, count times, if bit 0; else by LengthAt, the last shorter
//	uvarint  stored length, count times, if bit 1
//	32 bytes BLAKE3-256, count times
//
// A flag is set only when it has to be and uvarints are minimal, so one map has one
// encoding; Decode refuses any other.
const (
	encodingVersion  = 1
	flagPlainListed  = 1 << 0
	flagStoredListed = 1 << 1
)

// Encode returns the canonical encoding: 32 bytes a chunk and a header of about ten.
func (m *Map) Encode() []byte {
	b := m.appendHeader(make([]byte, 0, 48+len(m.Chunks)*len(digest.CID{})))
	for i := range m.Chunks {
		b = append(b, m.Chunks[i].ID[:]...)
	}
	return b
}

// appendHeader appends all but the IDs.
func (m *Map) appendHeader(b []byte) []byte {
	var flags byte
	if !m.scheduled {
		flags |= flagPlainListed
	}
	if m.overhead < 0 {
		flags |= flagStoredListed
	}
	b = append(b, encodingVersion, m.Seal, flags)
	b = binary.AppendUvarint(b, uint64(m.PlainBytes))
	b = binary.AppendUvarint(b, uint64(len(m.Chunks)))
	if flags&flagStoredListed == 0 {
		b = binary.AppendUvarint(b, uint64(m.overhead))
	}
	if flags&flagPlainListed != 0 {
		for _, c := range m.Chunks {
			b = binary.AppendUvarint(b, uint64(c.Plain))
		}
	}
	if flags&flagStoredListed != 0 {
		for _, c := range m.Chunks {
			b = binary.AppendUvarint(b, uint64(c.Stored))
		}
	}
	return b
}

// Decode reads what Encode wrote. What it allocates is bounded by len(b).
//
// Errors: meta.ErrInvalid for anything that is not the canonical encoding of a valid
// map, meta.ErrTooLarge above MaxChunks.
func Decode(b []byte) (*Map, error) {
	m, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("decode chunk map of %d bytes: %w", len(b), err)
	}
	return m, nil
}

func decode(b []byte) (*Map, error) {
	if len(b) < 3 {
		return nil, fmt.Errorf("cut off: %w", meta.ErrInvalid)
	}
	if b[0] != encodingVersion {
		return nil, fmt.Errorf("version %d is unknown: %w", b[0], meta.ErrInvalid)
	}
	seal, flags, rest := b[1], b[2], b[3:]
	cut := false
	next := func() uint64 {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			cut = true
			return 0
		}
		rest = rest[n:]
		return v
	}
	plainBytes, count := next(), next()
	if cut || count*uint64(len(digest.CID{})) > uint64(len(rest)) || count > uint64(len(rest)) {
		return nil, fmt.Errorf("cut off: %w", meta.ErrInvalid)
	}
	if count > MaxChunks {
		return nil, fmt.Errorf("%d chunks, at most %d: %w", count, MaxChunks, meta.ErrTooLarge)
	}
	var overhead uint64
	if flags&flagStoredListed == 0 {
		if overhead = next(); overhead > MaxOverhead {
			return nil, fmt.Errorf("overhead of %d bytes: %w", overhead, meta.ErrInvalid)
		}
	}
	chunks := make([]Chunk, count)
	left := plainBytes
	for i := range chunks {
		length := min(left, uint64(LengthAt(offsetOf(i))))
		if flags&flagPlainListed != 0 {
			length = next()
		}
		if length > MaxBytes || length > left {
			return nil, fmt.Errorf("chunk %d has %d of %d plain bytes left: %w", i, length, left, meta.ErrInvalid)
		}
		left -= length
		chunks[i].Plain, chunks[i].Stored = uint32(length), uint32(length+overhead)
	}
	if left != 0 {
		return nil, fmt.Errorf("%d plain bytes are in no chunk: %w", left, meta.ErrInvalid)
	}
	if flags&flagStoredListed != 0 {
		for i := range chunks {
			length := next()
			if length > MaxStoredBytes {
				return nil, fmt.Errorf("chunk %d has %d stored bytes: %w", i, length, meta.ErrInvalid)
			}
			chunks[i].Stored = uint32(length)
		}
	}
	if cut || len(rest) != len(chunks)*len(digest.CID{}) {
		return nil, fmt.Errorf("wrong length: %w", meta.ErrInvalid)
	}
	ids := rest
	for i := range chunks {
		chunks[i].ID = digest.CID(ids[:len(digest.CID{})])
		ids = ids[len(digest.CID{}):]
	}
	m, err := New(seal, chunks)
	if err != nil {
		return nil, err
	}
	// The IDs are copied verbatim, so only the header can differ from the canonical form.
	if header := b[:len(b)-len(rest)]; !bytes.Equal(m.appendHeader(make([]byte, 0, len(header))), header) {
		return nil, fmt.Errorf("not in canonical form: %w", meta.ErrInvalid)
	}
	return m, nil
}
