package digest

import (
	"encoding/hex"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"github.com/zeebo/blake3"
)

// CID is the BLAKE3-256 of stored bytes; as text it is a CIDv1 with the raw
// codec (multiformats CID spec). It names a chunk or, as a root, a chunk map.
// The zero CID names nothing.
type CID [32]byte

// Sum names b.
func Sum(b []byte) CID { return blake3.Sum256(b) }

// IsZero reports whether c names nothing.
func (c CID) IsZero() bool { return c == CID{} }

// String returns the CIDv1 text, `b` + base32.
func (c CID) String() string {
	mh, err := multihash.Encode(c[:], multihash.BLAKE3)
	if err != nil {
		panic(fmt.Sprintf("digest: 32 bytes make no multihash: %v", err))
	}
	return cid.NewCidV1(cid.Raw, mh).String()
}

// Hex returns 64 lower-case hex digits, the form of file names on disk.
func (c CID) Hex() string { return hex.EncodeToString(c[:]) }

// ParseCID reads what String printed. Other codecs, hashes and versions are refused.
func ParseCID(s string) (CID, error) {
	parsed, err := cid.Decode(s)
	if err != nil {
		return CID{}, fmt.Errorf("cid %q: %w", s, err)
	}
	mh, err := multihash.Decode(parsed.Hash())
	if err != nil {
		return CID{}, fmt.Errorf("cid %q: %w", s, err)
	}
	if parsed.Version() != 1 || parsed.Type() != cid.Raw || mh.Code != multihash.BLAKE3 || len(mh.Digest) != 32 {
		return CID{}, fmt.Errorf("cid %q is not a CIDv1 of raw BLAKE3-256", s)
	}
	return CID(mh.Digest), nil
}

// ParseHex reads what Hex printed.
func ParseHex(s string) (CID, error) {
	var c CID
	if len(s) != 2*len(c) {
		return CID{}, fmt.Errorf("hex cid %q has %d digits, not %d", s, len(s), 2*len(c))
	}
	if _, err := hex.Decode(c[:], []byte(s)); err != nil {
		return CID{}, fmt.Errorf("hex cid %q: %w", s, err)
	}
	return c, nil
}

// MarshalBinary returns the 32 bytes; the zero CID is empty.
func (c CID) MarshalBinary() ([]byte, error) {
	if c.IsZero() {
		return []byte{}, nil
	}
	return c[:], nil
}

// UnmarshalBinary reads what MarshalBinary wrote.
func (c *CID) UnmarshalBinary(b []byte) error {
	switch len(b) {
	case 0:
		*c = CID{}
	case len(c):
		copy(c[:], b)
	default:
		return fmt.Errorf("cid of %d bytes, not %d", len(b), len(c))
	}
	return nil
}

// MarshalText returns String, or nothing for the zero CID.
func (c CID) MarshalText() ([]byte, error) {
	if c.IsZero() {
		return []byte{}, nil
	}
	return []byte(c.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (c *CID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*c = CID{}
		return nil
	}
	parsed, err := ParseCID(string(b))
	if err != nil {
		return err
	}
	*c = parsed
	return nil
}
