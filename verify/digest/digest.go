// Package digest names content: what a client calls it (Digest) and what the
// swarm calls it (CID).
//
// A Digest is OCI's `algorithm:hex` over the plain bytes (image-spec,
// descriptor.md); sha256 is the canonical name of a blob, sha512 a second name
// that a client may use. A CID is the BLAKE3-256 of bytes as they are stored
// and sent: it names a chunk, or, as a root, a blob's chunk map. Start reading
// at Parse, Hasher and Sum.
//
// The package is a leaf: every room may import it, it imports no room. It
// starts no goroutines.
package digest

import (
	"errors"
	"fmt"

	godigest "github.com/opencontainers/go-digest"
)

// Digest is `sha256:<64 hex>` or `sha512:<128 hex>`, in lower case.
type Digest = godigest.Digest

// ErrUnsupported says that a digest's algorithm is neither sha256 nor sha512.
var ErrUnsupported = errors.New("digest algorithm is not supported, use sha256 or sha512")

// MismatchError says that bytes do not have the digest that was asked for.
type MismatchError struct{ Want, Got Digest }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("content is %s, not %s as declared", e.Got, e.Want)
}

// Parse checks s and returns it as a Digest.
//
// Errors: ErrUnsupported for an unknown algorithm, godigest.ErrDigestInvalidFormat
// or ErrDigestInvalidLength for a malformed one.
func Parse(s string) (Digest, error) {
	d := Digest(s)
	err := d.Validate()
	switch {
	case errors.Is(err, godigest.ErrDigestUnsupported):
		return "", fmt.Errorf("%q: %w", s, ErrUnsupported)
	case err != nil:
		return "", fmt.Errorf("%q: %w", s, err)
	}
	if a := d.Algorithm(); a != godigest.SHA256 && a != godigest.SHA512 {
		return "", fmt.Errorf("%q: %w", s, ErrUnsupported)
	}
	return d, nil
}

// FromBytes returns the sha256 digest of b.
func FromBytes(b []byte) Digest { return godigest.SHA256.FromBytes(b) }
