package state

import (
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

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

func (c SetLabels) apply(t *tx) (any, error) {
	p, err := findPackage(t, c.Repo, c.Package)
	if err != nil {
		return nil, err
	}
	if c.Version == "" {
		p.Labels = c.Labels
		t.emit(feed.Change{Kind: feed.KindPackage, Repo: c.Repo, Package: c.Package})
	} else {
		v, err := findVersion(t, c.Repo, c.Package, c.Version)
		if err != nil {
			return nil, err
		}
		v.Labels, v.Revision = c.Labels, t.index
		t.put(keyVersion(c.Repo, c.Package, c.Version), v)
		t.emit(feed.Change{Kind: feed.KindVersion, Repo: c.Repo, Package: c.Package, Name: c.Version})
	}
	t.putPackage(p)
	return nil, nil
}
