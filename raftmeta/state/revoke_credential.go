package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RevokeCredential ends a credential for good; one that was revoked before stays as it
// is. From this entry on nothing that it brings enters the log. Result: meta.Credential,
// without its hash.
//
// Errors: meta.ErrNotFound.
type RevokeCredential struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (RevokeCredential) Type() uint16 { return typeRevokeCredential }

// Check implements Command.
func (c RevokeCredential) Check() error {
	if c.ID == "" || len(c.ID) > maxPrincipalBytes {
		return fmt.Errorf("revoke token: an id of %d bytes: %w", len(c.ID), meta.ErrInvalid)
	}
	return nil
}

func (c RevokeCredential) apply(t *tx) (any, error) {
	found, err := findCredential(t, c.ID)
	if err != nil {
		return nil, err
	}
	t.revokeCredential(found)
	told := *found
	told.Hash = nil
	return told, nil
}
