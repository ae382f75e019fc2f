package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

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

func (c DeleteAlias) apply(t *tx) (any, error) {
	repo, err := findRepository(t, c.Repo)
	if err != nil {
		return nil, err
	}
	a, err := find[meta.Alias](t, keyAliases(c.Repo, c.Package).last(c.Name), "alias", versionName(c.Repo, c.Package, c.Name))
	if err != nil {
		return nil, err
	}
	if repo.Immutable {
		return nil, fmt.Errorf("delete alias %s of %s/%s: the repository is immutable: %w", c.Name, c.Repo, c.Package, meta.ErrDenied)
	}
	if err := t.deleteAlias(a); err != nil {
		return nil, err
	}
	return nil, t.touchPackage(c.Repo, c.Package)
}

// deleteAlias removes an alias and leaves its tombstone in the history.
func (t *tx) deleteAlias(a *meta.Alias) error {
	t.del(keyAliases(a.Repo, a.Package).last(a.Name))
	t.del(keyNamings(a.Repo, a.Package, a.Version).last(a.Name))
	grave := *a
	grave.Move++
	grave.Deleted, grave.MovedBy, grave.MovedAt, grave.Revision = true, t.origin.Principal, t.now, t.index
	t.put(keyHistory(a.Repo, a.Package, a.Name).u64(grave.Move), grave)
	t.emit(feed.Change{Kind: feed.KindAlias, Repo: a.Repo, Package: a.Package, Name: a.Name, Deleted: true})
	return t.did(meta.Act{Kind: meta.ActDeletedAlias, Repo: a.Repo, Package: a.Package, Name: a.Name, Detail: a.Version})
}
