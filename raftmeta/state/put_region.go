package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// PutRegion creates a region or changes whether it is primary. Demands are
// settled accordingly (SettleDemands). Result: meta.Region.
type PutRegion struct {
	Region meta.Region `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (PutRegion) Type() uint16 { return typePutRegion }

// Check implements Command.
func (c PutRegion) Check() error { return meta.CheckRegion(c.Region.Name) }

func (c PutRegion) apply(t *tx) (any, error) {
	r, err := t.region(c.Region.Name)
	if err != nil {
		return nil, err
	}
	changed := r == nil || r.Region.Primary != c.Region.Primary
	if r == nil {
		r = &regionRecord{Region: meta.Region{Name: c.Region.Name, Created: t.now}}
	}
	r.Region.Primary = c.Region.Primary
	t.putRegion(r)
	if changed {
		if err := t.unsettle(meta.RepoRef{}, true); err != nil {
			return nil, err
		}
	}
	return r.Region, nil
}
