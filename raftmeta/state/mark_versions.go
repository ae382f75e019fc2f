package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// MarkVersions sets or takes away marks of versions of a package, of all of them or of
// none. Result: Marked.
//
// Errors: meta.ErrNotFound.
type MarkVersions struct {
	Repo     meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package  string       `cbor:"2,keyasint,omitempty"`
	Versions []string     `cbor:"3,keyasint,omitempty"` // 1 to MaxMarked
	Marking  meta.Marking `cbor:"4,keyasint,omitempty"`
}

// MaxMarked bounds MarkVersions.Versions.
const MaxMarked = 128

// Marked says how many versions a MarkVersions changed.
type Marked struct {
	Changed int `cbor:"1,keyasint,omitempty" json:"changed"`
}

// Type implements Command.
func (MarkVersions) Type() uint16 { return typeMarkVersions }

// Check implements Command.
func (c MarkVersions) Check() error {
	if len(c.Versions) == 0 || len(c.Versions) > MaxMarked {
		return fmt.Errorf("mark %d versions of %s/%s, use 1 to %d: %w", len(c.Versions), c.Repo, c.Package, MaxMarked, meta.ErrInvalid)
	}
	seen := make(map[string]bool, len(c.Versions))
	for _, version := range c.Versions {
		if err := checkVersion(c.Repo, c.Package, version); err != nil {
			return err
		}
		if seen[version] {
			return fmt.Errorf("mark %s twice: %w", versionName(c.Repo, c.Package, version), meta.ErrInvalid)
		}
		seen[version] = true
	}
	return c.Marking.Check()
}

func (c MarkVersions) apply(t *tx) (any, error) {
	pkg, err := findPackage(t, c.Repo, c.Package)
	if err != nil {
		return nil, err
	}
	var out Marked
	for _, name := range c.Versions {
		v, err := findVersion(t, c.Repo, c.Package, name)
		if err != nil {
			return nil, err
		}
		changed := t.mark1(&v.Marks.Yanked, c.Marking.Yanked, c.Marking.Reason)
		changed = t.mark1(&v.Marks.Unlisted, c.Marking.Unlisted, c.Marking.Reason) || changed
		changed = t.mark1(&v.Marks.Deprecated, c.Marking.Deprecated, c.Marking.Reason) || changed
		if !changed {
			continue
		}
		out.Changed++
		v.Revision = t.index
		t.put(keyVersion(c.Repo, c.Package, name), v)
		t.emit(feed.Change{Kind: feed.KindVersion, Repo: c.Repo, Package: c.Package, Name: name})
		if err := t.did(meta.Act{Kind: meta.ActMarked, Repo: c.Repo, Package: c.Package, Name: name}); err != nil {
			return nil, err
		}
	}
	if out.Changed > 0 {
		t.putPackage(pkg)
	}
	return out, nil
}

// mark1 sets or takes away one mark. One that is set with the same reason stays as it is.
func (t *tx) mark1(m **meta.Mark, set *bool, reason string) (changed bool) {
	switch {
	case set == nil || !*set && *m == nil || *set && *m != nil && (*m).Reason == reason:
		return false
	case *set:
		*m = &meta.Mark{Reason: reason, By: t.origin.Principal, At: t.now}
	default:
		*m = nil
	}
	return true
}
