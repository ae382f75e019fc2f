package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// RemoveRepository removes a repository without live versions. Its tombstones and
// alias histories stay: a repository of the same name continues them.
//
// Errors: meta.ErrNotFound; meta.ErrConflict while it has versions.
type RemoveRepository struct {
	Ref meta.RepoRef `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (RemoveRepository) Type() uint16 { return typeRemoveRepository }

// Check implements Command.
func (c RemoveRepository) Check() error { return c.Ref.Check() }
