package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RecordFetched keeps what a server got of an upstream for a proxy repository: bytes,
// that they are what they were, or that nothing was there. New bytes take the place of
// old ones, which are released, and are demanded where the repository's class wants
// them. When it was so comes from the origin. Result: meta.Fetched.
//
// Errors: meta.ErrNotFound for the repository; meta.ErrConflict when it is no proxy, or
// when the bytes were collected after Blob.Seen; meta.ErrInvalid for bytes that are not
// in the repository; meta.ErrDenied over the tenant's storage quota.
type RecordFetched struct {
	Fetched meta.Fetched `cbor:"1,keyasint,omitempty"`
	// Blob is what came, linked in the same entry; nil when it is there.
	Blob *LinkBlob `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (RecordFetched) Type() uint16 { return typeRecordFetched }

// Check implements Command.
func (c RecordFetched) Check() error {
	if err := c.Fetched.Check(); err != nil {
		return err
	}
	if c.Blob == nil {
		return nil
	}
	if c.Blob.Repo != c.Fetched.Repo || c.Blob.Blob.Digest != c.Fetched.Digest {
		return fmt.Errorf("fetched %.200q of %s: the blob %s of %s is another: %w", c.Fetched.Path, c.Fetched.Repo, c.Blob.Blob.Digest, c.Blob.Repo, meta.ErrInvalid)
	}
	return c.Blob.Check()
}

func (c RecordFetched) apply(t *tx) (any, error) {
	f := c.Fetched
	repo, err := findRepository(t, f.Repo)
	if err != nil {
		return nil, err
	}
	if repo.Kind != meta.KindProxy {
		return nil, fmt.Errorf("repository %s is %s and fetches nothing: %w", f.Repo, repo.Kind, meta.ErrConflict)
	}
	k := keyFetched(f.Repo, f.Path, f.Accept)
	old, err := load[meta.Fetched](t, k)
	if err != nil {
		return nil, err
	}
	if c.Blob != nil {
		if _, err := t.linkBlob(f.Repo, *c.Blob); err != nil {
			return nil, err
		}
	}
	f.Stored, f.Checked, f.Revision = t.now, t.now, t.index
	changed := old == nil || old.Digest != f.Digest || old.Status != f.Status
	if !changed {
		f.Stored, f.Revision = old.Stored, old.Revision
	} else if !f.Absent() {
		// Before the old bytes are released: they may be the same in another place.
		if err := t.claimFetched(repo, &f); err != nil {
			return nil, err
		}
	}
	switch {
	case old != nil && old.Absent():
		err = t.forgetAbsence(old)
	case old != nil && changed:
		err = t.release(old.Repo, old.Digest)
	}
	if err != nil {
		return nil, err
	}
	t.put(k, f)
	if f.Absent() {
		if err := t.rememberAbsence(&f); err != nil {
			return nil, err
		}
	}
	if err := t.dropAbsences(f.Repo); err != nil {
		return nil, err
	}
	if changed {
		t.emit(feed.Change{Kind: feed.KindFetched, Repo: f.Repo, Name: FetchedKey(f.Path, f.Accept)})
	}
	return f, nil
}

// claimFetched claims the bytes of a record and demands them as a version's.
func (t *tx) claimFetched(repo *meta.Repository, f *meta.Fetched) error {
	l, err := findLink(t, f.Repo, f.Digest)
	if err != nil {
		return err
	}
	if l == nil {
		return fmt.Errorf("fetched %.200q of %s: %s is not in the repository: %w", f.Path, f.Repo, f.Digest, meta.ErrInvalid)
	}
	if err := t.claim(f.Repo, l); err != nil {
		return err
	}
	record, err := blobOf(t, l)
	if err != nil {
		return err
	}
	regions, err := t.owedNow(repo)
	if err != nil {
		return err
	}
	for _, region := range regions {
		if _, err := t.demand(&record.Blob, region, repo.Class); err != nil {
			return err
		}
	}
	return nil
}
