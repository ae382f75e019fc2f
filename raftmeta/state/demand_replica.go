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
