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
	if len(t.Tenants) > 0 && t.Role != meta.RoleAgent {
		return fmt.Errorf("join token: a server holds the records of all tenants, only agents can be narrowed to some: %w", meta.ErrInvalid)
	}
	if err := checkTenants(t.Tenants); err != nil {
		return err
	}
	return meta.CheckRegion(t.Region)
}

// since implements newer.
func (c CreateJoinToken) since() uint32 {
	if len(c.Token.Tenants) > 0 {
		return rightsLevel
	}
	return 0
}

// expiredAtOnce bounds how many expired tokens one command forgets.
const expiredAtOnce = 100

func (c CreateJoinToken) apply(t *tx) (any, error) {
	old, err := load[meta.JoinToken](t, keyToken(c.Token.ID))
	if err != nil {
		return nil, err
	}
	if old != nil {
		return nil, fmt.Errorf("join token %s is there already: %w", c.Token.ID, meta.ErrExists)
	}
	seen := 0
	for p, err := range t.scan(within(key{spaceTokens})) {
		if err != nil {
			return nil, err
		}
		token, err := decode[meta.JoinToken](p.key, p.value)
		if err != nil {
			return nil, err
		}
		if token.Expires < t.now {
			t.del(p.key)
		}
		if seen++; seen == expiredAtOnce {
			break
		}
	}
	t.put(keyToken(c.Token.ID), c.Token)
	return nil, nil
}
