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
	// Limits, of level 5, change those that they name.
	Limits *meta.LimitsChange `cbor:"3,keyasint,omitempty"`
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
	if c.Limits != nil {
		if err := c.Limits.Of(meta.TenantLimits{}).Check(); err != nil {
			return err
		}
	}
	return checkTenant(c.Name)
}

// since implements newer.
func (c SetTenant) since() uint32 {
	if c.Limits != nil {
		return quotaLevel
	}
	return 0
}

func (c SetTenant) apply(t *tx) (any, error) {
	tenant, err := find[meta.Tenant](t, keyTenant(c.Name), "tenant", c.Name)
	if err != nil {
		return nil, err
	}
	old := *tenant
	change(&tenant.Tier, c.Tier)
	if c.Limits != nil {
		tenant.Limits = c.Limits.Of(tenant.Limits)
	}
	if *tenant == old {
		return old, nil
	}
	t.put(keyTenant(c.Name), tenant)
	t.emit(feed.Change{Kind: feed.KindTenant, Name: string(c.Name)})
	if tenant.Limits == old.Limits {
		return *tenant, nil
	}
	// New quotas have their thresholds elsewhere.
	if _, err := t.usage(c.Name); err != nil {
		return nil, err
	}
	egress, err := load[egressRecord](t, keyEgress(c.Name))
	if err == nil && egress != nil {
		t.putEgress(tenant, egress)
	}
	return *tenant, err
}
