package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RemoveRegion removes a region that is being given up, with its servers, in one
// entry. Nothing may remain at them, unless Force says that what only they have may
// be lost. The proposer has seen, after Since, that no repository names the region;
// none can since.
//
// Errors: meta.ErrNotFound; meta.ErrConflict when it is not being given up since
// Since, has agents, or is still needed.
type RemoveRegion struct {
	Name  meta.RegionName `cbor:"1,keyasint,omitempty"`
	Since meta.Time       `cbor:"2,keyasint,omitempty"` // meta.Region.Leaving
	Force bool            `cbor:"3,keyasint,omitempty"`
}

// RemovedRegion names the servers that went with a region.
type RemovedRegion struct {
	Servers []meta.NodeID `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (RemoveRegion) Type() uint16 { return typeRemoveRegion }

// Check implements Command.
func (c RemoveRegion) Check() error { return meta.CheckRegion(c.Name) }

func (c RemoveRegion) apply(t *tx) (any, error) {
	r, err := find[regionRecord](t, keyRegion(c.Name), "region", c.Name)
	if err != nil {
		return nil, err
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("remove region %s: %w", c.Name, fmt.Errorf(format+": %w", append(args, meta.ErrConflict)...))
	}
	if r.Region.Leaving == 0 || r.Region.Leaving != c.Since {
		return nil, refuse("it is not being given up, or since another time; ask again")
	}
	prefix := keyMembers(c.Name)
	for p, err := range t.scan(within(prefix)) {
		if err != nil {
			return nil, err
		}
		if id := meta.NodeID(p.key[len(prefix):]); !slices.Contains(r.Servers, id) {
			return nil, refuse("node %s and maybe others are agents of it; remove them first", id)
		}
	}
	servers := slices.Clone(r.Servers)
	for _, id := range servers {
		n, err := findServer(t, id)
		if err != nil {
			return nil, err
		}
		if !c.Force {
			// Settlements that its own servers' going asks for are not there yet: it is one entry.
			if err := t.needEmpty(n); err != nil {
				return nil, fmt.Errorf("remove region %s: server %s: %w", c.Name, id, err)
			}
		}
	}
	for _, id := range servers {
		n, err := findServer(t, id)
		if err != nil {
			return nil, err
		}
		if err := t.removeServer(n); err != nil {
			return nil, fmt.Errorf("remove region %s: %w", c.Name, err)
		}
		t.dropNode(n)
		if err := t.leftTrust(n.ID); err != nil {
			return nil, err
		}
	}
	t.delRegion(c.Name)
	if err := t.forgetHealth(c.Name); err != nil {
		return nil, err
	}
	return RemovedRegion{Servers: servers}, t.unsettle(meta.RepoRef{}, false)
}
