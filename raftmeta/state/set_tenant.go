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
	Limits *LimitsChange `cbor:"3,keyasint,omitempty"`
}

// LimitsChange changes limits of a tenant; nil leaves as it is, zero takes the limit
// away. The fields are those of meta.TenantLimits.
type LimitsChange struct {
	PublishBytes     *int64       `cbor:"1,keyasint,omitempty" json:"publish_bytes,omitempty"`
	PublishRequests  *int64       `cbor:"2,keyasint,omitempty" json:"publish_requests,omitempty"`
	DownloadBytes    *int64       `cbor:"3,keyasint,omitempty" json:"download_bytes,omitempty"`
	DownloadRequests *int64       `cbor:"4,keyasint,omitempty" json:"download_requests,omitempty"`
	Uploads          *int64       `cbor:"5,keyasint,omitempty" json:"uploads,omitempty"`
	PrincipalUploads *int64       `cbor:"6,keyasint,omitempty" json:"principal_uploads,omitempty"`
	StorageBytes     *int64       `cbor:"7,keyasint,omitempty" json:"storage_bytes,omitempty"`
	StorageWarn      *int64       `cbor:"8,keyasint,omitempty" json:"storage_warn,omitempty"`
	EgressBytes      *int64       `cbor:"9,keyasint,omitempty" json:"egress_bytes,omitempty"`
	EgressWarn       *int64       `cbor:"10,keyasint,omitempty" json:"egress_warn,omitempty"`
	EgressPeriod     *meta.Period `cbor:"11,keyasint,omitempty" json:"egress_period,omitempty"`
}

// Of returns l with what changes.
func (c LimitsChange) Of(l meta.TenantLimits) meta.TenantLimits {
	change(&l.PublishBytes, c.PublishBytes)
	change(&l.PublishRequests, c.PublishRequests)
	change(&l.DownloadBytes, c.DownloadBytes)
	change(&l.DownloadRequests, c.DownloadRequests)
	change(&l.Uploads, c.Uploads)
	change(&l.PrincipalUploads, c.PrincipalUploads)
	change(&l.StorageBytes, c.StorageBytes)
	change(&l.StorageWarn, c.StorageWarn)
	change(&l.EgressBytes, c.EgressBytes)
	change(&l.EgressWarn, c.EgressWarn)
	change(&l.EgressPeriod, c.EgressPeriod)
	return l
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
