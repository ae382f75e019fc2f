package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// DeleteAlias removes an alias; its history says by whom and when.
//
// Errors: meta.ErrNotFound; meta.ErrDenied in an immutable repository.
type DeleteAlias struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Name    string       `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (DeleteAlias) Type() uint16 { return typeDeleteAlias }

// Check implements Command.
func (c DeleteAlias) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	if err := meta.CheckPackage(c.Package); err != nil {
		return err
	}
	return meta.CheckAlias(c.Name)
}
