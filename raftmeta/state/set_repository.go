package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// SetRepository changes what may change of a repository; nil leaves as it is. A
// new class or region holds for versions published from then on. Result:
// meta.Repository.
//
// Errors: meta.ErrNotFound, meta.ErrInvalid.
type SetRepository struct {
	Ref         meta.RepoRef     `cbor:"1,keyasint,omitempty"`
	Class       *meta.Class      `cbor:"2,keyasint,omitempty"`
	Home        *meta.RegionName `cbor:"3,keyasint,omitempty"`
	Second      *meta.RegionName `cbor:"4,keyasint,omitempty"`
	Visibility  *meta.Visibility `cbor:"5,keyasint,omitempty"`
	Immutable   *bool            `cbor:"6,keyasint,omitempty"`
	Environment *string          `cbor:"7,keyasint,omitempty"`
}

// Type implements Command.
func (SetRepository) Type() uint16 { return typeSetRepository }

// Check implements Command.
func (c SetRepository) Check() error { return c.Ref.Check() }
