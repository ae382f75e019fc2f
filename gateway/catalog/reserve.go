package catalog

import (
	"context"
	"errors"
	"io"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Storage reserves room for uploads within the storage quotas of tenants. It is a
// *quota.Storage.
type Storage interface {
	// Reserve makes sure that a session has room for bytes in all.
	//
	// Errors: *meta.QuotaError; meta.ErrUnavailable.
	Reserve(ctx context.Context, tenant meta.TenantName, session string, bytes int64) error
	// Held returns what a session has reserved; Settled ends one whose bytes are linked,
	// Release one that comes to nothing. Both leave an unknown session alone.
	Held(tenant meta.TenantName, session string) int64
	Settled(tenant meta.TenantName, session string)
	Release(tenant meta.TenantName, session string)
}

// noStorage is without quotas.
type noStorage struct{}

func (noStorage) Reserve(context.Context, meta.TenantName, string, int64) error { return nil }
func (noStorage) Held(meta.TenantName, string) int64                            { return 0 }
func (noStorage) Settled(meta.TenantName, string)                               {}
func (noStorage) Release(meta.TenantName, string)                               {}

// reserving reads for an upload and reserves room for what came, before it is stored.
type reserving struct {
	ctx context.Context
	up  *Upload
	r   io.Reader
	at  int64
}

func (r *reserving) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if n > 0 {
		r.at += int64(n)
		if full := r.up.reserve(r.ctx, r.at); full != nil {
			return 0, full
		}
	}
	return n, err
}

// reserve makes sure that there is room for an upload of so many bytes.
func (u *Upload) reserve(ctx context.Context, bytes int64) error {
	if u.document {
		return nil
	}
	return u.catalog.cfg.Storage.Reserve(ctx, u.repo.Tenant, u.session.ID(), bytes)
}

// overQuota reports whether err says that there is no room for an upload.
func overQuota(err error) bool {
	_, is := errors.AsType[*meta.QuotaError](err)
	return is
}
