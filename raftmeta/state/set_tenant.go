package state

import (
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// SetTenant changes what may change of a tenant; nil leaves as it is. Result:
// meta.Tenant.
//
// Errors: meta.ErrNotFound.
type SetTenant struct {
	Name meta.TenantName `cbor:"1,keyasint,omitempty"`
	Tier *meta.Tier      `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (SetTenant) Type() uint16 { return typeSetTenant }

// Check implements Command.
func (c SetTenant) Check() error {
	if c.Tier != nil {
		if err := c.Tier.Check(); err != nil {
			return err
		}
	}
	return checkTenant(c.Name)
}

func (c SetTenant) apply(t *tx) (any, error) {
	tenant, err := find[meta.Tenant](t, keyTenant(c.Name), "tenant", c.Name)
	if err != nil {
		return nil, err
	}
	old := *tenant
	change(&tenant.Tier, c.Tier)
	if *tenant != old {
		t.put(keyTenant(c.Name), tenant)
		t.emit(feed.Change{Kind: feed.KindTenant, Name: string(c.Name)})
	}
	return *tenant, nil
}
