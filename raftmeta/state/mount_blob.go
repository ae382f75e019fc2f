package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// MountBlob links a blob of one repository into another without its bytes. Result:
// meta.Blob.
//
// Errors: meta.ErrNotFound when From has no such link; meta.ErrDenied when the
// blob is sealed for another tenant.
type MountBlob struct {
	From   meta.RepoRef  `cbor:"1,keyasint,omitempty"`
	To     meta.RepoRef  `cbor:"2,keyasint,omitempty"`
	Digest digest.Digest `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (MountBlob) Type() uint16 { return typeMountBlob }

// Check implements Command.
func (c MountBlob) Check() error {
	if err := c.From.Check(); err != nil {
		return err
	}
	if err := c.To.Check(); err != nil {
		return err
	}
	return checkDigest(c.Digest)
}

func (c MountBlob) apply(t *tx) (any, error) {
	if _, err := findRepository(t, c.To); err != nil {
		return nil, err
	}
	if _, err := findRepository(t, c.From); err != nil {
		return nil, err
	}
	l, err := findLink(t, c.From, c.Digest)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, fmt.Errorf("mount blob %s from %s: %w", c.Digest, c.From, meta.ErrNotFound)
	}
	if l.Context != meta.PublicContext && c.From.Tenant != c.To.Tenant {
		return nil, fmt.Errorf("mount blob %s from %s to %s: its bytes are another tenant's: %w", c.Digest, c.From, c.To, meta.ErrDenied)
	}
	if l.quarantined() != nil {
		return nil, fmt.Errorf("mount blob %s from %s: only versions in quarantine use it there, upload it: %w", c.Digest, c.From, meta.ErrNotFound)
	}
	record, err := blobOf(t, l)
	if err != nil {
		return nil, err
	}
	if err := t.link(c.To, record); err != nil {
		return nil, err
	}
	return record.Blob, nil
}
