package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RemoveRepository removes a repository without live versions. Its tombstones and
// alias histories stay: a repository of the same name continues them. One with many
// publications takes several of it: until then the result says More, and the repository
// is there. Result: nil, or RepositoryRemoved.
//
// Errors: meta.ErrNotFound; meta.ErrConflict while it has versions.
type RemoveRepository struct {
	Ref meta.RepoRef `cbor:"1,keyasint,omitempty"`
}

// RepositoryRemoved says how far a removal has come. With More the repository is there:
// remove it again.
type RepositoryRemoved struct {
	More bool `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (RemoveRepository) Type() uint16 { return typeRemoveRepository }

// Check implements Command.
func (c RemoveRepository) Check() error { return c.Ref.Check() }

func (c RemoveRepository) apply(t *tx) (any, error) {
	repo, err := findRepository(t, c.Ref)
	if err != nil {
		return nil, err
	}
	for _, err := range t.scan(within(inRepo(inPackages, c.Ref))) {
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("remove repository %s: it still has versions, delete them first: %w", c.Ref, meta.ErrConflict)
	}
	for _, err := range t.scan(within(inFetchedOf(c.Ref, fetchedRecords))) {
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("remove repository %s: it still has what it fetched, forget that first: %w", c.Ref, meta.ErrConflict)
	}
	if t.level >= packagesLevel {
		groups, err := groupsOf(t, c.Ref)
		if err != nil {
			return nil, err
		}
		if len(groups) > 0 {
			return nil, fmt.Errorf("remove repository %s: it is a member of %s/%s, take it out with `shoal repo set` first: %w", c.Ref, c.Ref.Tenant, groups[0], meta.ErrConflict)
		}
	}
	more, err := t.removeSets(c.Ref)
	if err != nil {
		return nil, err
	}
	if more {
		// Should the removal end here, builders make anew what is gone.
		t.emit(feed.Change{Kind: feed.KindRepository, Repo: c.Ref})
		return RepositoryRemoved{More: true}, nil
	}
	t.delAll(keySealed(c.Ref, ""))
	t.indexMembers(c.Ref, repo.Members, nil)
	t.delAll(append(below(string(c.Ref.Tenant), inNames), ofSources).part(c.Ref.Name))
	t.del(keyRepository(c.Ref))
	t.emit(feed.Change{Kind: feed.KindRepository, Repo: c.Ref, Deleted: true})
	return nil, nil
}
