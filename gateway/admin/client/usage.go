package client

import (
	"context"
	"iter"
	"net/http"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Usage is what a tenant uses, and of what.
type Usage struct {
	Tenant meta.TenantName   `json:"tenant"`
	Limits meta.TenantLimits `json:"limits,omitzero"`
	// StorageBytes (plain) and Blobs are held by the tenant's repositories, each blob
	// once a repository; what a deleted version used is not among them. Counted is false
	// while a tenant of before cluster level 5 is being counted.
	StorageBytes int64  `json:"storage_bytes"`
	Blobs        uint64 `json:"blobs"`
	Counted      bool   `json:"counted"`
	// ReservedBytes are reserved by uploads under way.
	ReservedBytes int64          `json:"reserved_bytes"`
	Storage       meta.Threshold `json:"storage"`
	// DriftBytes is by how much the last recount, at Checked, corrected StorageBytes.
	DriftBytes int64     `json:"drift_bytes"`
	Checked    meta.Time `json:"checked,omitempty"`
	// EgressBytes is what clients downloaded in the period of the egress quota, Egress
	// how that compares with it. They are some seconds behind.
	EgressBytes    int64          `json:"egress_bytes"`
	Egress         meta.Threshold `json:"egress"`
	TodayBytes     int64          `json:"today_bytes"`
	TodayRequests  int64          `json:"today_requests"`
	MonthBytes     int64          `json:"month_bytes"`
	MonthRequests  int64          `json:"month_requests"`
	LastMonthBytes int64          `json:"last_month_bytes"`
	// Rates are of the last seconds, over all nodes; nil when the leader was not reached.
	Rates *Rates `json:"rates,omitempty"`
}

// Rates are per second; of what is limited they are what clients would use.
type Rates struct {
	PublishBytes     float64 `json:"publish_bytes"`
	PublishRequests  float64 `json:"publish_requests"`
	DownloadBytes    float64 `json:"download_bytes"`
	DownloadRequests float64 `json:"download_requests"`
	// Uploads are under way.
	Uploads float64 `json:"uploads"`
}

// RepositoryUsage is what a repository holds.
type RepositoryUsage struct {
	Repository string `json:"repository"`
	Blobs      uint64 `json:"blobs"`
	Bytes      int64  `json:"bytes"`
}

// Recount says how far a recount is.
type Recount struct {
	More       bool   `json:"more"`
	Blobs      uint64 `json:"blobs"`
	Bytes      int64  `json:"bytes"`
	DriftBytes int64  `json:"drift_bytes"`
}

// Usage returns what a tenant uses.
func (c *Client) Usage(ctx context.Context, tenant meta.TenantName) (u Usage, err error) {
	return u, c.call(ctx, http.MethodGet, join("tenants", string(tenant), "usage"), nil, nil, &u)
}

// Usages lists what tenants use, in byte order of their names.
func (c *Client) Usages(ctx context.Context) iter.Seq2[Usage, error] {
	return all[Usage](ctx, c, "usage", nil)
}

// RepositoryUsages lists what the repositories of a tenant hold, those that hold
// something.
func (c *Client) RepositoryUsages(ctx context.Context, tenant meta.TenantName) iter.Seq2[RepositoryUsage, error] {
	return all[RepositoryUsage](ctx, c, join("tenants", string(tenant), "usage", "repositories"), nil)
}

// RecountUsage counts a tenant's storage on from where the last call ended; call it until
// More is false.
func (c *Client) RecountUsage(ctx context.Context, tenant meta.TenantName) (r Recount, err error) {
	return r, c.call(ctx, http.MethodPost, join("tenants", string(tenant), "usage", "recount"), nil, nil, &r)
}
