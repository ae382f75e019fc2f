package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// LeaveRegion begins or ends giving up a region: all its servers drain, it is owed
// nothing, and takes neither nodes nor repositories. So what names it only becomes
// less, and whoever sees that nothing does any more may remove it (RemoveRegion).
// Repeated it changes nothing. Result: meta.Region.
//
// Errors: meta.ErrNotFound; meta.ErrConflict when no other server would be left.
type LeaveRegion struct {
	Name  meta.RegionName `cbor:"1,keyasint,omitempty"`
	Leave bool            `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (LeaveRegion) Type() uint16 { return typeLeaveRegion }

// Check implements Command.
func (c LeaveRegion) Check() error { return meta.CheckRegion(c.Name) }

func (c LeaveRegion) apply(t *tx) (any, error) {
	r, err := find[regionRecord](t, keyRegion(c.Name), "region", c.Name)
	if err != nil {
		return nil, err
	}
	if c.Leave == (r.Region.Leaving != 0) {
		return r.Region, nil
	}
	r.Region.Leaving = 0
	if c.Leave {
		if err := t.needOthers(r.Servers...); err != nil {
			return nil, fmt.Errorf("remove region %s: %w", c.Name, err)
		}
		r.Region.Leaving = t.now
	}
	for _, id := range slices.Clone(r.Servers) {
		n, err := findServer(t, id)
		if err != nil {
			return nil, err
		}
		switch {
		case c.Leave && n.Draining == nil:
			err = t.startDraining(r, n, t.origin.Principal)
		case !c.Leave && n.Draining != nil:
			if err = t.stopDraining(r, n); err == nil {
				n.Draining = nil
				t.putNode(n)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	t.putRegion(r)
	// A region that stays after all is owed again what its classes want.
	return r.Region, t.unsettle(meta.RepoRef{}, !c.Leave)
}
