package state

import (
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RotateCredential replaces a token by a new one that may exactly the same, and lets
// the old one go on for Overlap, at most until its own end. Result: meta.Credential,
// the new one without its hash.
//
// Errors: meta.ErrNotFound, meta.ErrDenied for one that is revoked or has ended, or
// was not made as a token; those of CreateCredential.
type RotateCredential struct {
	ID      string        `cbor:"1,keyasint,omitempty"`
	NewID   string        `cbor:"2,keyasint,omitempty"`
	NewHash []byte        `cbor:"3,keyasint,omitempty"`
	Life    time.Duration `cbor:"4,keyasint,omitempty"`
	Overlap time.Duration `cbor:"5,keyasint,omitempty"`
}

// Type implements Command.
func (RotateCredential) Type() uint16 { return typeRotateCredential }

// Check implements Command.
func (c RotateCredential) Check() error {
	if c.ID == "" || len(c.ID) > 64 || c.NewID == "" || len(c.NewID) > 64 || len(c.NewHash) != 32 {
		return fmt.Errorf("rotate token: it needs both ids and the sha256 of the new text: %w", meta.ErrInvalid)
	}
	if c.Overlap < 0 || c.Overlap > meta.TokenLife {
		return fmt.Errorf("rotate token %s: an overlap of %v, use 0s to %v: %w", c.ID, c.Overlap, meta.TokenLife, meta.ErrInvalid)
	}
	return checkLife(meta.CredentialToken, c.Life)
}

func (c RotateCredential) apply(t *tx) (any, error) {
	old, err := findCredential(t, c.ID)
	if err != nil {
		return nil, err
	}
	if old.Kind != meta.CredentialToken {
		return nil, fmt.Errorf("token %s is of a %s, which is not rotated: log in again: %w", c.ID, old.Kind, meta.ErrDenied)
	}
	if err := credentialHolds(t, old); err != nil {
		return nil, err
	}
	if err := old.Live(t.now.Std()); err != nil {
		return nil, err
	}
	made := meta.Credential{
		ID: c.NewID, Hash: c.NewHash, Principal: old.Principal, Kind: old.Kind,
		Limits: old.Limits, Note: old.Note, Parent: old.ID,
	}
	if err := t.mayHold(&made); err != nil {
		return nil, err
	}
	result, err := t.issue(made, c.Life)
	if err != nil {
		return nil, err
	}
	if end := t.now + meta.Time(c.Overlap); end < old.Expires {
		t.endCredential(old, end)
		// What agents keep of it says the old end.
		t.bumpAccess()
	}
	return result, nil
}
