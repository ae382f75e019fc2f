package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// SetIssuerKeys records the keys that a server fetched from an issuer. Nothing happens
// when it has another URL by now, or pinned keys.
type SetIssuerKeys struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Name   string          `cbor:"2,keyasint,omitempty"`
	URL    string          `cbor:"3,keyasint,omitempty"`
	Keys   []byte          `cbor:"4,keyasint,omitempty"`
}

// Type implements Command.
func (SetIssuerKeys) Type() uint16 { return typeSetIssuerKeys }

// Check implements Command.
func (c SetIssuerKeys) Check() error {
	if len(c.Keys) == 0 || len(c.Keys) > meta.MaxKeysBytes {
		return fmt.Errorf("issuer %s: %d bytes of keys, write 1 to %d: %w", c.Name, len(c.Keys), meta.MaxKeysBytes, meta.ErrInvalid)
	}
	return meta.CheckTenant(c.Tenant)
}

func (c SetIssuerKeys) apply(t *tx) (any, error) {
	i, err := findIssuer(t, c.Tenant, c.Name)
	if err != nil || i.Pinned || i.URL != c.URL {
		return nil, err
	}
	i.Keys, i.KeysAt = c.Keys, t.now
	t.put(keyIssuer(c.Tenant, c.Name), i)
	return nil, nil
}
