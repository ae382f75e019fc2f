package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// RemoveIssuer takes an issuer away. What its jobs hold is void from then on.
//
// Errors: meta.ErrNotFound.
type RemoveIssuer struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Name   string          `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (RemoveIssuer) Type() uint16 { return typeRemoveIssuer }

// Check implements Command.
func (c RemoveIssuer) Check() error { return meta.CheckTenant(c.Tenant) }

func (c RemoveIssuer) apply(t *tx) (any, error) {
	old, err := findIssuer(t, c.Tenant, c.Name)
	if err != nil {
		return nil, err
	}
	t.del(keyIssuer(c.Tenant, c.Name))
	t.del(keyIssuerOfURL(old))
	t.bumpAccess()
	return nil, nil
}
