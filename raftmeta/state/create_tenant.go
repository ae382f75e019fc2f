package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// CreateTenant adds a tenant; an existing one is left as it is. Result:
// meta.Tenant.
type CreateTenant struct {
	Name meta.TenantName `cbor:"1,keyasint,omitempty"`
	Tier meta.Tier       `cbor:"2,keyasint,omitempty"` // of level 4
}

// Type implements Command.
func (CreateTenant) Type() uint16 { return typeCreateTenant }

// Check implements Command.
func (c CreateTenant) Check() error {
	if err := c.Tier.Check(); err != nil {
		return err
	}
	return checkTenant(c.Name)
}

// since implements newer.
func (c CreateTenant) since() uint32 {
	if c.Tier != "" {
		return backlogLevel
	}
	return 0
}

// checkTenant keeps tenants off the name of the public context, whose blobs are
// stored where a tenant's are.
func checkTenant(name meta.TenantName) error {
	if name == meta.PublicContext {
		return fmt.Errorf("tenant %q: the name is taken by the context of public bytes: %w", name, meta.ErrInvalid)
	}
	return meta.CheckTenant(name)
}

func (c CreateTenant) apply(t *tx) (any, error) {
	tenant, err := t.createTenant(c.Name, c.Tier)
	if err != nil {
		return nil, err
	}
	return *tenant, nil
}

func (t *tx) createTenant(name meta.TenantName, tier meta.Tier) (*meta.Tenant, error) {
	old, err := load[meta.Tenant](t, keyTenant(name))
	if err != nil || old != nil {
		return old, err
	}
	tenant := &meta.Tenant{Name: name, Created: t.now, CreatedBy: t.origin.Principal, Tier: tier}
	t.put(keyTenant(name), tenant)
	t.emit(feed.Change{Kind: feed.KindTenant, Name: string(name)})
	if on, err := t.countsUsage(); err != nil || !on {
		return tenant, err
	}
	u, err := t.usage(name)
	if err == nil {
		u.Counted = true // It holds nothing yet.
	}
	return tenant, err
}
