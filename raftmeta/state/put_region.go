package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// PutRegion creates a region or changes whether it is primary. Versions published
// from then on are demanded accordingly. Result: meta.Region.
type PutRegion struct {
	Region meta.Region `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (PutRegion) Type() uint16 { return typePutRegion }

// Check implements Command.
func (c PutRegion) Check() error { return meta.CheckRegion(c.Region.Name) }
