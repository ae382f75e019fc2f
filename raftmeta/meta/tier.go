package meta

import "fmt"

// Tier is how much of what tenants share one of them may take while others wait.
type Tier string

// Tiers; "" is standard.
const (
	TierBasic    Tier = "basic"
	TierStandard Tier = "standard"
	TierPremium  Tier = "premium"
)

// Weight is a tenant's part among those that wait: a premium tenant gets four times
// what a standard one does, a basic one a quarter.
func (t Tier) Weight() int {
	switch t {
	case TierBasic:
		return 1
	case TierPremium:
		return 16
	}
	return 4
}

// Check refuses a tier that is none; "" is standard.
//
// Errors: ErrInvalid.
func (t Tier) Check() error {
	switch t {
	case "", TierBasic, TierStandard, TierPremium:
		return nil
	}
	return fmt.Errorf("tier %q: use basic, standard or premium: %w", t, ErrInvalid)
}

// DemandCount is what a region's demand counts as in the backlog of its region.
type DemandCount uint8

// Counts of a demand. A demand from before cluster level 4 counts as nothing until it
// is settled.
const (
	CountNone     DemandCount = 0
	CountVerified DemandCount = 1
	CountShort    DemandCount = 2 // owed, and some server of the region has a verified copy
	CountMissing  DemandCount = 3 // owed, and none has
)

// BacklogError says that a region owes a tenant more copies than its bound allows:
// what the tenant publishes comes faster than it can be replicated. It is
// ErrOverQuota, for this tenant only.
type BacklogError struct {
	Tenant TenantName
	Region RegionName
	Blobs  uint64
	Bytes  int64
}

func (e *BacklogError) Error() string {
	return fmt.Sprintf("%d blobs of %d bytes of tenant %s still wait for their first copy in region %s, which is over the bound; try again when they are replicated",
		e.Blobs, e.Bytes, e.Tenant, e.Region)
}

// Unwrap returns ErrOverQuota.
func (e *BacklogError) Unwrap() error { return ErrOverQuota }
