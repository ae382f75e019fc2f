package node

import (
	"context"
	"errors"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/place"
)

// uncountedTenant is the tenant of the lanes that a region has as long as not all of its
// demands are counted: one a class, of all tenants. No tenant has that name.
const uncountedTenant = ""

// Lanes implements repair.Demands.
func (d demands) Lanes(ctx context.Context, region meta.RegionName) (lanes []place.Lane, _ error) {
	const atOnce = 1000
	for after := ""; ; {
		page, _, err := raftmeta.Ask(ctx, d.store, meta.Local, state.ListBacklogs{Region: region, Page: state.Page{After: after, Limit: atOnce}})
		if errors.Is(err, meta.ErrConflict) {
			lanes = nil
			for _, class := range []meta.Class{meta.ClassCritical, meta.ClassStandard, meta.ClassCold} {
				lanes = append(lanes, place.Lane{Class: class, Tenant: uncountedTenant})
			}
			return lanes, nil
		}
		if err != nil {
			return nil, err
		}
		for _, b := range page {
			lanes = append(lanes, place.Lane{Class: b.Class, Tenant: b.Tenant, Weight: b.Tier.Weight(), Oldest: b.Oldest})
		}
		if len(page) < atOnce {
			return lanes, nil
		}
		after = state.BacklogAfter(page[len(page)-1])
	}
}

// Pending implements repair.Demands.
func (d demands) Pending(ctx context.Context, region meta.RegionName, lane place.Lane, after *meta.Replica, limit int) ([]meta.Replica, error) {
	page := state.Page{Limit: limit}
	if after != nil {
		page.After = state.PendingAfter(*after)
	}
	if lane.Tenant != uncountedTenant {
		found, asOf, err := raftmeta.Ask(ctx, d.store, meta.Local, state.PendingInLane{Region: region, Class: lane.Class, Tenant: lane.Tenant, Page: page})
		return seen(found, asOf), err
	}
	for {
		all, asOf, err := raftmeta.Ask(ctx, d.store, meta.Local, state.PendingReplicas{Region: region, Page: page})
		if err != nil || len(all) == 0 {
			return nil, err
		}
		var found []meta.Replica
		for _, r := range all {
			if r.Class == lane.Class || lane.Class == meta.ClassCold && r.Class == "" {
				found = append(found, r)
			}
		}
		if len(found) > 0 {
			return seen(found, asOf), nil
		}
		page.After = state.PendingAfter(all[len(all)-1])
	}
}

// seen says of demands which state they were read from.
func seen(demands []meta.Replica, asOf meta.AsOf) []meta.Replica {
	for i := range demands {
		demands[i].Seen = asOf.Index
	}
	return demands
}
