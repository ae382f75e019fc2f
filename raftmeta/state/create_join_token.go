package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// CreateJoinToken records a token by the hash of its secret, and forgets expired
// ones.
//
// Errors: meta.ErrExists for a different token of the id.
type CreateJoinToken struct {
	Token meta.JoinToken `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (CreateJoinToken) Type() uint16 { return typeCreateJoinToken }

// Check implements Command.
func (c CreateJoinToken) Check() error {
	t := c.Token
	if t.ID == "" || len(t.ID) > maxNodeBytes {
		return fmt.Errorf("join token: id of %d bytes: %w", len(t.ID), meta.ErrInvalid)
	}
	if t.Role != meta.RoleServer && t.Role != meta.RoleAgent {
		return fmt.Errorf("join token: role %q: use server or agent: %w", t.Role, meta.ErrInvalid)
	}
	if t.Uses == 0 || t.Expires == 0 {
		return fmt.Errorf("join token: it needs uses and an expiry: %w", meta.ErrInvalid)
	}
	if len(t.Read) > maxPatterns {
		return fmt.Errorf("join token: %d patterns, at most %d: %w", len(t.Read), maxPatterns, meta.ErrInvalid)
	}
	for _, p := range t.Read {
		if err := meta.CheckPattern(p); err != nil {
			return err
		}
	}
	return meta.CheckRegion(t.Region)
}
