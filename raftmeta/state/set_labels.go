package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// SetLabels replaces the labels of a version, or with an empty Version those of
// the package.
//
// Errors: meta.ErrNotFound.
type SetLabels struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
	Labels  meta.Labels  `cbor:"4,keyasint,omitempty"`
}

// Type implements Command.
func (SetLabels) Type() uint16 { return typeSetLabels }

// Check implements Command.
func (c SetLabels) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	if err := meta.CheckPackage(c.Package); err != nil {
		return err
	}
	if c.Version != "" {
		if err := meta.CheckVersion(c.Version); err != nil {
			return err
		}
	}
	return c.Labels.Check()
}
