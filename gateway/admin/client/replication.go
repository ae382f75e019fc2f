package client

import (
	"context"
	"iter"
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ReplicationStatus is how far the copies are that regions owe.
type ReplicationStatus struct {
	// Counted is false in a cluster that is being upgraded, until all demands are
	// counted; what is shown is then not all.
	Counted bool               `json:"counted"`
	Classes []ClassReplication `json:"classes"`
	// Settlement is the change of servers, regions or classes that is being settled:
	// until it is through, regions may owe more than is shown. Nil without one.
	Settlement *Settling `json:"settlement,omitempty"`
	// Settlements counts those that wait, with the one under way.
	Settlements uint64 `json:"settlements,omitempty"`
}

// ClassReplication is how far a region is with a class. Bytes are as stored.
type ClassReplication struct {
	Region        meta.RegionName `json:"region"`
	Class         meta.Class      `json:"class"`
	DemandedBlobs uint64          `json:"demanded_blobs"`
	DemandedBytes int64           `json:"demanded_bytes"`
	VerifiedBlobs uint64          `json:"verified_blobs"`
	VerifiedBytes int64           `json:"verified_bytes"`
	// Waiting are not verified yet, Missing those of them with no copy in the region.
	WaitingBlobs uint64 `json:"waiting_blobs"`
	WaitingBytes int64  `json:"waiting_bytes"`
	MissingBlobs uint64 `json:"missing_blobs"`
	MissingBytes int64  `json:"missing_bytes"`
	// LagSeconds is the age of the oldest that waits, 0 when none does.
	LagSeconds float64 `json:"lag_seconds"`
	// Progress is the verified part of the demanded bytes, 0 to 1.
	Progress float64 `json:"progress"`
	// Tenants counts those for whom something waits.
	Tenants uint64 `json:"tenants"`
}

// Settling is a settlement with what part of it is done.
type Settling struct {
	// Repository is the one that it is of, "" for all.
	Repository string `json:"repository,omitempty"`
	// Phase is copies, or links: the back-fill; Part is what share of it is done, 0 to 1.
	Phase string  `json:"phase"`
	Part  float64 `json:"part"`
	// Backfills says that what versions use is demanded anew, not only counted.
	Backfills bool   `json:"backfills"`
	Read      uint64 `json:"read"` // records
	Owed      uint64 `json:"owed"` // demands found owing
}

// Backlog is what a region owes of a class to a tenant.
type Backlog struct {
	Region       meta.RegionName `json:"region"`
	Class        meta.Class      `json:"class"`
	Tenant       string          `json:"tenant"`
	Tier         meta.Tier       `json:"tier,omitempty"`
	Blobs        uint64          `json:"blobs"`
	Bytes        int64           `json:"bytes"`
	MissingBlobs uint64          `json:"missing_blobs"` // with no copy in the region
	MissingBytes int64           `json:"missing_bytes"`
	Oldest       time.Time       `json:"oldest"`
	LagSeconds   float64         `json:"lag_seconds"`
}

// TenantChange is the body of PATCH /api/v1/tenants/T; nil stays.
type TenantChange struct {
	Tier   *meta.Tier         `json:"tier,omitempty"`
	Limits *meta.LimitsChange `json:"limits,omitempty"`
}

// ReplicationStatus returns how far the copies are that regions owe.
func (c *Client) ReplicationStatus(ctx context.Context) (r ReplicationStatus, err error) {
	return r, c.call(ctx, http.MethodGet, "replication", nil, nil, &r)
}

// Backlogs lists what a region owes, by class, the most urgent first, and tenant.
// Errors: meta.ErrConflict while not all demands are counted.
func (c *Client) Backlogs(ctx context.Context, region meta.RegionName) iter.Seq2[Backlog, error] {
	return all[Backlog](ctx, c, join("regions", string(region), "backlogs"), nil)
}

// NewTenant creates a tenant; one that exists is returned as it is.
func (c *Client) NewTenant(ctx context.Context, n NewTenant) (t meta.Tenant, err error) {
	return t, c.call(ctx, http.MethodPost, "tenants", nil, n, &t)
}

// SetTenant changes a tenant.
func (c *Client) SetTenant(ctx context.Context, name meta.TenantName, change TenantChange) (t meta.Tenant, err error) {
	return t, c.call(ctx, http.MethodPatch, join("tenants", string(name)), nil, change, &t)
}
