package digest

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"encoding/binary"
	"fmt"
	"hash"

	godigest "github.com/opencontainers/go-digest"
)

// Hasher computes a blob's names in one pass: always sha256, sha512 when it was
// asked for. Its state can be saved and restored, so that an upload session
// continues after a restart without reading again what it already has.
//
// It is not safe for concurrent use.
type Hasher struct {
	sha256 hash.Hash
	sha512 hash.Hash // nil unless WithSHA512
	bytes  int64
}

// NewHasher returns a Hasher of nothing yet. withSHA512 adds the second name.
func NewHasher(withSHA512 bool) *Hasher {
	h := &Hasher{sha256: sha256.New()}
	if withSHA512 {
		h.sha512 = sha512.New()
	}
	return h
}

// Write never fails.
func (h *Hasher) Write(p []byte) (int, error) {
	h.sha256.Write(p)
	if h.sha512 != nil {
		h.sha512.Write(p)
	}
	h.bytes += int64(len(p))
	return len(p), nil
}

// Size returns the bytes hashed so far.
func (h *Hasher) Size() int64 { return h.bytes }

// SHA256 returns the canonical digest of the bytes written so far.
func (h *Hasher) SHA256() Digest { return godigest.NewDigest(godigest.SHA256, h.sha256) }

// SHA512 returns the second name, or "" when it was not asked for.
func (h *Hasher) SHA512() Digest {
	if h.sha512 == nil {
		return ""
	}
	return godigest.NewDigest(godigest.SHA512, h.sha512)
}

// Check compares what was written with want.
//
// Errors: *MismatchError; ErrUnsupported when want is a sha512 that was not computed.
func (h *Hasher) Check(want Digest) error {
	got := h.SHA256()
	if want.Algorithm() == godigest.SHA512 {
		if got = h.SHA512(); got == "" {
			return fmt.Errorf("%s was not computed: %w", want.Algorithm(), ErrUnsupported)
		}
	}
	if got != want {
		return &MismatchError{Want: want, Got: got}
	}
	return nil
}

// MarshalBinary saves the state: u64 byte count, u32 length and bytes of the
// sha256 state, then the sha512 state (empty when absent). The states are the
// standard library's own, which it keeps stable between releases.
func (h *Hasher) MarshalBinary() ([]byte, error) {
	s256, err := h.sha256.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("save sha256 state: %w", err)
	}
	var s512 []byte
	if h.sha512 != nil {
		if s512, err = h.sha512.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
			return nil, fmt.Errorf("save sha512 state: %w", err)
		}
	}
	out := binary.BigEndian.AppendUint64(nil, uint64(h.bytes))
	out = binary.BigEndian.AppendUint32(out, uint32(len(s256)))
	out = append(out, s256...)
	return append(out, s512...), nil
}

// UnmarshalBinary restores what MarshalBinary saved.
func (h *Hasher) UnmarshalBinary(b []byte) error {
	if len(b) < 12 {
		return fmt.Errorf("hash state of %d bytes is too short", len(b))
	}
	n := binary.BigEndian.Uint64(b)
	size := binary.BigEndian.Uint32(b[8:])
	if b = b[12:]; uint64(size) > uint64(len(b)) {
		return fmt.Errorf("hash state is cut off")
	}
	restored := NewHasher(len(b) > int(size))
	if err := restored.sha256.(encoding.BinaryUnmarshaler).UnmarshalBinary(b[:size]); err != nil {
		return fmt.Errorf("restore sha256 state: %w", err)
	}
	if restored.sha512 != nil {
		if err := restored.sha512.(encoding.BinaryUnmarshaler).UnmarshalBinary(b[size:]); err != nil {
			return fmt.Errorf("restore sha512 state: %w", err)
		}
	}
	restored.bytes = int64(n)
	*h = *restored
	return nil
}
