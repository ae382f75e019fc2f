package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Backlog bounds what a region may owe a tenant that it has no copy of at all: beyond
// it the tenant's uploads and publishes are refused until copies were made, and nobody
// else's. A region that is out does not count: to slow producers down would help
// nobody, it would only stop them.
type Backlog struct {
	MaxBlobs uint64 // 0 is without bound
	MaxBytes int64  // as stored; 0 is without bound
	// Out says that a region is out; nil knows of none.
	Out func(meta.RegionName) bool
}

// backlogTrust is how long an answer is used again, and how many tenants' are kept.
const (
	backlogTrust   = time.Second
	backlogTenants = 4096
)

// behind is what was last found of a tenant, nil when it keeps up.
type behind struct {
	err   *meta.BacklogError
	until time.Time
}

func newBacklogs() *lru.Cache[meta.TenantName, behind] {
	c, _ := lru.New[meta.TenantName, behind](backlogTenants) // fails for sizes <= 0 only
	return c
}

// keepsUp refuses a tenant whose publishes are not replicated as fast as they come.
//
// Errors: *meta.BacklogError.
func (c *Catalog) keepsUp(ctx context.Context, tenant meta.TenantName) error {
	if c.cfg.Backlog.MaxBlobs == 0 && c.cfg.Backlog.MaxBytes == 0 {
		return nil
	}
	last, known := c.backlogs.Get(tenant)
	if !known || time.Now().After(last.until) {
		all, _, err := raftmeta.Ask(ctx, c.cfg.Metadata, meta.Local, state.TenantBacklogs{Tenant: tenant})
		if err != nil {
			return nil // What is wrong the write itself will say.
		}
		last = behind{until: time.Now().Add(backlogTrust)}
		for _, b := range all {
			over := c.cfg.Backlog.MaxBlobs > 0 && b.MissingBlobs > c.cfg.Backlog.MaxBlobs ||
				c.cfg.Backlog.MaxBytes > 0 && b.MissingBytes > c.cfg.Backlog.MaxBytes
			if over && (c.cfg.Backlog.Out == nil || !c.cfg.Backlog.Out(b.Region)) {
				last.err = &meta.BacklogError{Tenant: tenant, Region: b.Region, Blobs: b.MissingBlobs, Bytes: b.MissingBytes}
				break
			}
		}
		c.backlogs.Add(tenant, last)
	}
	if last.err == nil {
		return nil
	}
	c.metrics.heldBack.Inc()
	return fmt.Errorf("replication does not keep up: %w", last.err)
}

// isHeldBack says that err is of a tenant's backlog.
func isHeldBack(err error) bool {
	_, is := errors.AsType[*meta.BacklogError](err)
	return is
}
