package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// RevokeTenant voids all credentials that were issued to principals of a tenant until
// now, robots and jobs; those of users, who belong to no tenant, stay. Result:
// meta.Revocation.
//
// Errors: meta.ErrNotFound.
type RevokeTenant struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Reason string          `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (RevokeTenant) Type() uint16 { return typeRevokeTenant }

// Check implements Command.
func (c RevokeTenant) Check() error {
	if err := meta.CheckTenant(c.Tenant); err != nil {
		return err
	}
	return checkReason("revoke tenant "+string(c.Tenant), c.Reason)
}

func (c RevokeTenant) apply(t *tx) (any, error) {
	if _, err := find[meta.Tenant](t, keyTenant(c.Tenant), "tenant", c.Tenant); err != nil {
		return nil, err
	}
	return t.revokeTenant(c.Tenant, c.Reason), nil
}
