package state

import (
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
