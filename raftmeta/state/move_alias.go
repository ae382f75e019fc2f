package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

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

func (c MoveAlias) apply(t *tx) (any, error) {
	repo, err := findRepository(t, c.Repo)
	if err != nil {
		return nil, err
	}
	v, err := findVersion(t, c.Repo, c.Package, c.Version)
	if err != nil {
		return nil, err
	}
	a, moved, err := t.moveAlias(repo, c.Name, v)
	if err != nil {
		return nil, err
	}
	if moved {
		if err := t.touchPackage(c.Repo, c.Package); err != nil {
			return nil, err
		}
	}
	return *a, nil
}

// moveAlias points an alias at v, unless it is there already.
func (t *tx) moveAlias(repo *meta.Repository, name string, v *meta.Version) (a *meta.Alias, moved bool, err error) {
	k := keyAliases(repo.Ref, v.Package).last(name)
	old, err := load[meta.Alias](t, k)
	if err != nil {
		return nil, false, err
	}
	if err := checkReadable(v); err != nil {
		return nil, false, fmt.Errorf("move alias %s: %w", name, err)
	}
	if old != nil && old.Version == v.Name && old.Digest == v.Digest {
		return old, false, nil
	}
	if old == nil {
		// The tombstone of a deleted alias is the last record of its history.
		if old, err = lastMove(t, repo.Ref, v.Package, name); err != nil {
			return nil, false, err
		}
	}
	var moves uint64
	if old != nil {
		if repo.Immutable && (old.Version != v.Name || old.Digest != v.Digest) {
			return nil, false, fmt.Errorf("alias %s of %s/%s names %s and the repository is immutable; publish under a new alias: %w",
				name, repo.Ref, v.Package, old.Version, meta.ErrExists)
		}
		moves = old.Move
		if !old.Deleted {
			t.del(keyNamings(repo.Ref, v.Package, old.Version).last(name))
		}
	}
	a = &meta.Alias{
		Repo: repo.Ref, Package: v.Package, Name: name, Version: v.Name, Digest: v.Digest,
		Move: moves + 1, MovedBy: t.origin.Principal, MovedAt: t.now, Revision: t.index,
	}
	t.put(k, a)
	t.put(keyHistory(repo.Ref, v.Package, name).u64(a.Move), a)
	t.mark(keyNamings(repo.Ref, v.Package, v.Name).last(name))
	t.emit(feed.Change{Kind: feed.KindAlias, Repo: repo.Ref, Package: v.Package, Name: name})
	return a, true, t.did(meta.Act{Kind: meta.ActMovedAlias, Repo: repo.Ref, Package: v.Package, Name: name, Detail: v.Name})
}

// lastMove returns the newest record of an alias's history, nil when it has none.
func lastMove(r reader, repo meta.RepoRef, pkg, name string) (*meta.Alias, error) {
	s := within(keyHistory(repo, pkg, name))
	s.reverse = true
	for p, err := range r.scan(s) {
		if err != nil {
			return nil, err
		}
		return decode[meta.Alias](p.key, p.value)
	}
	return nil, nil
}
