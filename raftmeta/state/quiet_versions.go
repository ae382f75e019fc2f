package state

import (
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// An open version whose format has no commit of its own closes once no file came for its
// Quiet. The index of those, in the order in which they fall due, follows the records:
// whoever changes an open version says so to t.awaitQuiet. The leader closes what is due
// (CloseVersion with that Quiet, which judges by the leader's time once more).

// MaxQuiet bounds meta.Version.Quiet.
const MaxQuiet = 30 * 24 * time.Hour

// quietVersion is what an entry of the index names.
type quietVersion struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
}

// keyQuiet is where an open version waits, nil for one that does not.
func keyQuiet(v *meta.Version) key {
	if v == nil || v.State != meta.StateOpen || v.Quiet <= 0 {
		return nil
	}
	due := meta.TimeOf(max(v.Extended, v.PublishTime).Std().Add(v.Quiet))
	return key{spaceQuiet}.u64(clock(due)).part(string(v.Repo.Tenant)).part(v.Repo.Name).part(v.Package).last(v.Name)
}

// awaitQuiet moves a version in the index: was is its key before the change, nil for none,
// and v what it has become, nil when it is gone.
func (t *tx) awaitQuiet(was key, v *meta.Version) {
	if was != nil {
		t.del(was)
	}
	if k := keyQuiet(v); k != nil {
		t.set(k, codec.Encode(quietVersion{Repo: v.Repo, Package: v.Package, Version: v.Name}))
	}
}

func checkQuiet(v *meta.Version) error {
	if v.Quiet < 0 || v.Quiet > MaxQuiet {
		return fmt.Errorf("a version that closes after %s without a new file: use 0s to %s: %w", v.Quiet, MaxQuiet, meta.ErrInvalid)
	}
	return nil
}

// QuietVersions answers which open versions have had no new file for their Quiet at Now,
// at most Limit (1 to 10,000) of them, the longest due first. Their Quiet is set.
type QuietVersions struct {
	Now   meta.Time `cbor:"1,keyasint,omitempty"`
	Limit int       `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q QuietVersions) Answer(v *View) (due []meta.Version, _ error) {
	if q.Limit < 1 || q.Limit > maxPage {
		return nil, fmt.Errorf("limit %d, use 1 to %d: %w", q.Limit, maxPage, meta.ErrInvalid)
	}
	for p, err := range v.scan(span{lower: key{spaceQuiet}, upper: key{spaceQuiet}.u64(clock(q.Now) + 1)}) {
		if err != nil {
			return nil, err
		}
		at, err := decode[quietVersion](p.key, p.value)
		if err != nil {
			return nil, err
		}
		version, err := findVersion(v, at.Repo, at.Package, at.Version)
		if err != nil {
			return nil, &StorageError{Cause: fmt.Errorf("what waits to be closed: %w", err)}
		}
		withoutReferences(version)
		if due = append(due, *version); len(due) == q.Limit {
			break
		}
	}
	return due, nil
}
