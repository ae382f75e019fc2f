package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// LinkBlob records an uploaded blob and makes it readable in the repository, under
// its sha256 and, when it has one, its sha512. Server, when set, ingested it and
// holds a verified copy. A known blob keeps its record. Result: meta.Blob, the
// record that holds.
//
// Errors: meta.ErrNotFound for an unknown repository; meta.ErrInvalid for a server
// that is not in the roster; meta.ErrExists when the blob's sizes differ from the
// known one's.
type LinkBlob struct {
	Repo   meta.RepoRef  `cbor:"1,keyasint,omitempty"`
	Digest digest.Digest `cbor:"2,keyasint,omitempty"` // the client's name of the blob
	Blob   meta.Blob     `cbor:"3,keyasint,omitempty"`
	Server meta.NodeID   `cbor:"4,keyasint,omitempty"`
}

// Type implements Command.
func (LinkBlob) Type() uint16 { return typeLinkBlob }

// Check implements Command.
func (c LinkBlob) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	b := c.Blob
	if err := checkDigest(b.Digest); err != nil {
		return err
	}
	switch {
	case b.Digest.Algorithm() != "sha256":
		return fmt.Errorf("link blob %s: a blob's own name is its sha256: %w", b.Digest, meta.ErrInvalid)
	case c.Digest != b.Digest && c.Digest != b.SHA512:
		return fmt.Errorf("link blob %s: %s is none of its names: %w", b.Digest, c.Digest, meta.ErrInvalid)
	case b.Context != string(c.Repo.Tenant) && b.Context != meta.PublicContext:
		return fmt.Errorf("link blob %s: context %q is neither the tenant's nor public: %w", b.Digest, b.Context, meta.ErrInvalid)
	case b.PlainBytes < 0 || b.StoredBytes < 0:
		return fmt.Errorf("link blob %s: sizes %d and %d: %w", b.Digest, b.PlainBytes, b.StoredBytes, meta.ErrInvalid)
	case b.Root.IsZero():
		return fmt.Errorf("link blob %s: no root: %w", b.Digest, meta.ErrInvalid)
	}
	if b.SHA512 == "" {
		return nil
	}
	if b.SHA512.Algorithm() != "sha512" {
		return fmt.Errorf("link blob %s: %s is no sha512: %w", b.Digest, b.SHA512, meta.ErrInvalid)
	}
	return checkDigest(b.SHA512)
}

func checkDigest(d digest.Digest) error {
	if _, err := digest.Parse(string(d)); err != nil {
		return fmt.Errorf("%w: %w", err, meta.ErrInvalid)
	}
	return nil
}
