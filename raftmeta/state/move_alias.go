package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// MoveAlias points an alias at a version and adds a record to its history; an
// alias that is there already stays as it is. Result: meta.Alias.
//
// Errors: meta.ErrNotFound for the version; meta.ErrExists in an immutable
// repository when the alias named another.
type MoveAlias struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Name    string       `cbor:"3,keyasint,omitempty"`
	Version string       `cbor:"4,keyasint,omitempty"`
}

// Type implements Command.
func (MoveAlias) Type() uint16 { return typeMoveAlias }

// Check implements Command.
func (c MoveAlias) Check() error {
	if err := checkVersion(c.Repo, c.Package, c.Version); err != nil {
		return err
	}
	return meta.CheckAlias(c.Name)
}

// checkVersion checks the full name of a version.
func checkVersion(repo meta.RepoRef, pkg, version string) error {
	if err := repo.Check(); err != nil {
		return err
	}
	if err := meta.CheckPackage(pkg); err != nil {
		return err
	}
	return meta.CheckVersion(version)
}
