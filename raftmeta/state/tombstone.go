package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// GetTombstone answers who deleted a version, and when; meta.ErrNotFound for one that is
// there, or never was.
type GetTombstone struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
}

// Tombstone is what stays of a deleted version.
type Tombstone struct {
	By string    `cbor:"1,keyasint,omitempty" json:"by"`
	At meta.Time `cbor:"2,keyasint,omitempty" json:"at"`
}

// Answer implements Question.
func (q GetTombstone) Answer(v *View) (Tombstone, error) {
	g, err := load[grave](v, keyGrave(q.Repo, q.Package, q.Version))
	if err == nil && g == nil {
		err = fmt.Errorf("tombstone of %s: %w", versionName(q.Repo, q.Package, q.Version), meta.ErrNotFound)
	}
	if err != nil {
		return Tombstone{}, err
	}
	return Tombstone{By: g.DeletedBy, At: g.DeletedAt}, nil
}
