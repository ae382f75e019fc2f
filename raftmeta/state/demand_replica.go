package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// DemandReplica asks for a copy in a region beyond the class, as a read of a cold
// blob does. Result: meta.Replica, the demand.
//
// Errors: meta.ErrNotFound for the root or the region.
type DemandReplica struct {
	Root   digest.CID      `cbor:"1,keyasint,omitempty"`
	Region meta.RegionName `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (DemandReplica) Type() uint16 { return typeDemandReplica }

// Check implements Command.
func (c DemandReplica) Check() error {
	if c.Root.IsZero() {
		return fmt.Errorf("demand replica: no root: %w", meta.ErrInvalid)
	}
	return meta.CheckRegion(c.Region)
}

func (c DemandReplica) apply(t *tx) (any, error) {
	blob, err := blobByRoot(t, c.Root)
	if err != nil {
		return nil, err
	}
	region, err := t.region(c.Region)
	if err != nil {
		return nil, err
	}
	if region == nil {
		return nil, fmt.Errorf("demand replica: region %s: %w", c.Region, meta.ErrNotFound)
	}
	if region.Region.Leaving != 0 {
		return nil, fmt.Errorf("demand replica: region %s is being removed: %w", c.Region, meta.ErrConflict)
	}
	d, err := t.demand(blob, c.Region, meta.ClassCold)
	if err != nil {
		return nil, err
	}
	return *d, nil
}

// demand makes a region owe a copy of a blob, unless it does already; the
// strongest class that asked is kept.
func (t *tx) demand(b *meta.Blob, region meta.RegionName, class meta.Class) (*meta.Replica, error) {
	k := keyReplica(b.Root, region, "")
	d, err := load[meta.Replica](t, k)
	if err != nil {
		return nil, err
	}
	if d != nil {
		was := *d
		moved, err := t.shareLane(d, b)
		if err != nil {
			return nil, err
		}
		if stronger := strength(class) > strength(d.Class); stronger || moved {
			if stronger {
				d.Class = class
			}
			if err := t.moveDemand(&was, d); err != nil {
				return nil, err
			}
		}
		return d, nil
	}
	d = &meta.Replica{
		Root: b.Root, Region: region, StoredBytes: b.StoredBytes, Class: class,
		Context: b.Context, Digest: b.Digest, Demand: t.now,
	}
	if err := t.settle(d); err != nil {
		return nil, err
	}
	if d.State == meta.ReplicaPending {
		t.tell(region)
	}
	return d, t.remark(b.Root)
}

func strength(c meta.Class) int {
	switch c {
	case meta.ClassCritical:
		return 3
	case meta.ClassStandard:
		return 2
	case meta.ClassCold:
		return 1
	}
	return 0
}

// undemand takes back what is still owed of a root that no repository links any
// more, in any context.
func (t *tx) undemand(root digest.CID) error {
	if linked, err := linked(t, root); linked || err != nil {
		return err
	}
	for p, err := range t.scan(within(keyReplicas(root))) {
		if err != nil {
			return err
		}
		r, err := decode[meta.Replica](p.key, p.value)
		if err != nil {
			return err
		}
		if r.Server == "" && r.State == meta.ReplicaPending {
			if err := t.dropDemand(r); err != nil {
				return err
			}
		}
	}
	return t.forgetLost(root)
}

// linked says whether a repository links a blob of the root, in any context.
func linked(r reader, root digest.CID) (bool, error) {
	for p, err := range r.scan(within(keyRoots(root))) {
		if err != nil {
			return false, err
		}
		b, err := load[blobRecord](r, keyBlob(string(p.key[len(keyRoots(root)):]), digest.Digest(p.value)))
		if err != nil {
			return false, err
		}
		if b != nil && b.Links > 0 {
			return true, nil
		}
	}
	return false, nil
}

// regionsOf returns the regions that owe a copy of what the repository's versions
// use, without those that are being removed or are gone.
func (t *tx) regionsOf(repo *meta.Repository) ([]meta.RegionName, error) {
	wanted, err := t.regionsOfClass(repo)
	if err != nil {
		return nil, err
	}
	owing := make([]meta.RegionName, 0, len(wanted))
	for _, name := range wanted {
		r, err := t.region(name)
		if err != nil {
			return nil, err
		}
		if r != nil && r.Region.Leaving == 0 {
			owing = append(owing, name)
		}
	}
	return owing, nil
}

// regionsOfClass returns the regions that the repository wants copies in: those that
// it names itself, else by its class.
func (t *tx) regionsOfClass(repo *meta.Repository) ([]meta.RegionName, error) {
	if len(repo.Regions) > 0 {
		return repo.Regions, nil
	}
	owing := []meta.RegionName{repo.Home}
	switch repo.Class {
	case meta.ClassStandard:
		if repo.Second != "" {
			owing = append(owing, repo.Second)
		}
	case meta.ClassCritical:
		for r, err := range regions(t) {
			if err != nil {
				return nil, err
			}
			if r.Region.Primary && r.Region.Name != repo.Home {
				owing = append(owing, r.Region.Name)
			}
		}
	}
	return owing, nil
}
