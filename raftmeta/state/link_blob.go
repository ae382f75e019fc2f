package state

import (
	"cmp"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// LinkBlob records an uploaded blob and makes it readable in the repository, under
// its sha256 and, when it has one, its sha512. Server, when set, ingested it and
// holds a verified copy. A known blob keeps its record. Result: meta.Blob, the
// record that holds.
//
// Errors: meta.ErrNotFound for an unknown repository; meta.ErrInvalid for a server
// that is not in the roster; meta.ErrExists when the blob's sizes differ from the
// known one's; meta.ErrConflict when the bytes were collected after Seen; meta.ErrDenied
// over the tenant's storage quota.
type LinkBlob struct {
	Repo   meta.RepoRef  `cbor:"1,keyasint,omitempty"`
	Digest digest.Digest `cbor:"2,keyasint,omitempty"` // the client's name of the blob
	Blob   meta.Blob     `cbor:"3,keyasint,omitempty"`
	Server meta.NodeID   `cbor:"4,keyasint,omitempty"`
	// Seen is the index of the state that Server had seen when it held the bytes and
	// owed nobody their removal; 0 does not say. From level 4 on.
	Seen uint64 `cbor:"5,keyasint,omitempty"`
	// Reserved is how much of what Reserver has reserved these bytes are. From level 5 on.
	Reserved int64 `cbor:"6,keyasint,omitempty"`
	// Reserver is the server that reserved, when it is not Server itself, which may be a
	// bucket. From level 5 on.
	Reserver meta.NodeID `cbor:"7,keyasint,omitempty"`
}

// Type implements Command.
func (LinkBlob) Type() uint16 { return typeLinkBlob }

func (c LinkBlob) since() uint32 {
	switch {
	case c.Reserved != 0 || c.Reserver != "":
		return quotaLevel
	case c.Seen != 0:
		return GCLevel
	}
	return 0
}

// Check implements Command.
func (c LinkBlob) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	b := c.Blob
	if err := checkDigest(b.Digest); err != nil {
		return err
	}
	switch {
	case b.Digest.Algorithm() != "sha256":
		return fmt.Errorf("link blob %s: a blob's own name is its sha256: %w", b.Digest, meta.ErrInvalid)
	case c.Digest != b.Digest && c.Digest != b.SHA512:
		return fmt.Errorf("link blob %s: %s is none of its names: %w", b.Digest, c.Digest, meta.ErrInvalid)
	case b.Context != string(c.Repo.Tenant) && b.Context != meta.PublicContext:
		return fmt.Errorf("link blob %s: context %q is neither the tenant's nor public: %w", b.Digest, b.Context, meta.ErrInvalid)
	case b.PlainBytes < 0 || b.StoredBytes < 0:
		return fmt.Errorf("link blob %s: sizes %d and %d: %w", b.Digest, b.PlainBytes, b.StoredBytes, meta.ErrInvalid)
	case c.Reserved < 0:
		return fmt.Errorf("link blob %s: %d bytes were reserved: %w", b.Digest, c.Reserved, meta.ErrInvalid)
	case b.Root.IsZero():
		return fmt.Errorf("link blob %s: no root: %w", b.Digest, meta.ErrInvalid)
	}
	if b.SHA512 == "" {
		return nil
	}
	if b.SHA512.Algorithm() != "sha512" {
		return fmt.Errorf("link blob %s: %s is no sha512: %w", b.Digest, b.SHA512, meta.ErrInvalid)
	}
	return checkDigest(b.SHA512)
}

func checkDigest(d digest.Digest) error {
	if _, err := digest.Parse(string(d)); err != nil {
		return fmt.Errorf("%w: %w", err, meta.ErrInvalid)
	}
	return nil
}

func (c LinkBlob) apply(t *tx) (any, error) {
	repo, err := findRepository(t, c.Repo)
	if err != nil {
		return nil, err
	}
	blob, err := t.linkBlob(repo.Ref, c)
	if err != nil {
		return nil, err
	}
	return *blob, nil
}

// linkBlob links the blob and returns the record that holds.
func (t *tx) linkBlob(repo meta.RepoRef, c LinkBlob) (*meta.Blob, error) {
	if c.Server != "" {
		if err := t.vouch(c.Blob.Root, c.Server, c.Seen); err != nil {
			return nil, err
		}
	}
	if c.Reserved > 0 {
		if err := t.settleReserved(repo.Tenant, cmp.Or(c.Reserver, c.Server), c.Reserved); err != nil {
			return nil, err
		}
	}
	k := keyBlob(c.Blob.Context, c.Blob.Digest)
	record, err := load[blobRecord](t, k)
	if err != nil {
		return nil, err
	}
	switch {
	case record == nil || record.Links == 0:
		// A blob that nobody links may have lost its bytes, so the new upload's holds.
		if record != nil {
			t.del(keyRoots(record.Blob.Root).last(record.Blob.Context))
		}
		record = &blobRecord{Blob: c.Blob}
		t.set(keyRoots(c.Blob.Root).last(c.Blob.Context), []byte(c.Blob.Digest))
		t.put(k, record)
	case record.Blob.PlainBytes != c.Blob.PlainBytes:
		return nil, fmt.Errorf("link blob %s of %d bytes: it is known with %d: %w", c.Blob.Digest, c.Blob.PlainBytes, record.Blob.PlainBytes, meta.ErrExists)
	case record.Blob.SHA512 == "" && c.Blob.SHA512 != "":
		record.Blob.SHA512 = c.Blob.SHA512
		t.put(k, record)
	}
	if err := t.link(repo, record); err != nil {
		return nil, err
	}
	if c.Server != "" && record.Blob.Root == c.Blob.Root {
		if err := t.reportCopy(&record.Blob, c.Server, meta.ReplicaVerified, ""); err != nil {
			return nil, err
		}
	}
	return &record.Blob, nil
}

// link makes a blob readable in a repository under all its names. A link that is
// there and unclaimed begins its time anew.
func (t *tx) link(repo meta.RepoRef, record *blobRecord) error {
	d := record.Blob.Digest
	if d512 := record.Blob.SHA512; d512 != "" {
		t.set(keyLink(repo, d512), []byte(d))
		t.mark(keyMentions(repo.Tenant, d512).last(repo.Name))
	}
	old, err := load[linkRecord](t, keyLink(repo, d))
	if err != nil {
		return err
	}
	if old != nil {
		return t.renew(repo, old)
	}
	if record.Links++; record.Links == 1 {
		if err := t.rescue(record.Blob.Root); err != nil {
			return err
		}
		if err := t.countLinked(record); err != nil {
			return err
		}
	}
	t.put(keyBlob(record.Blob.Context, d), record)
	t.put(keyLink(repo, d), linkRecord{
		Link:    meta.Link{Digest: d, Blob: d, Uploaded: t.now},
		Context: record.Blob.Context,
		Since:   t.now,
	})
	t.mark(upload{Since: t.now, Repo: repo, Link: d}.key())
	t.mark(keyMentions(repo.Tenant, d).last(repo.Name))
	if err := t.hold(repo, d, record.Blob.PlainBytes, 1); err != nil {
		return err
	}
	if record.Links > 1 {
		return nil
	}
	return t.remark(record.Blob.Root)
}

// renew begins the time of an unclaimed link anew, as that of an upload.
func (t *tx) renew(repo meta.RepoRef, l *linkRecord) error {
	if l.Link.Claims > 0 {
		return nil
	}
	if err := t.unawait(repo, l); err != nil {
		return err
	}
	if err := t.await(repo, l, ""); err != nil {
		return err
	}
	t.put(keyLink(repo, l.Link.Blob), l)
	return nil
}

// claim adds one use of a link by a version.
func (t *tx) claim(repo meta.RepoRef, l *linkRecord) error {
	if l.Link.Claims == 0 {
		if err := t.unawait(repo, l); err != nil {
			return err
		}
	}
	l.Link.Claims++
	t.put(keyLink(repo, l.Link.Blob), l)
	return nil
}

// release takes one use of a link back; without uses it waits to expire.
func (t *tx) release(repo meta.RepoRef, d digest.Digest) error {
	l, err := findLink(t, repo, d)
	if err != nil {
		return err
	}
	if l == nil || l.Link.Claims == 0 {
		return &StorageError{Cause: fmt.Errorf("link of %s in %s is used by a version and has no claims", d, repo)}
	}
	if l.Link.Claims--; l.Link.Claims == 0 {
		if err := t.await(repo, l, cmp.Or(t.origin.Principal, "unknown")); err != nil {
			return err
		}
	}
	t.put(keyLink(repo, l.Link.Blob), l)
	return nil
}

// unlink removes an unclaimed link that was last used at since and deleted by by. A
// blob that nobody links any more keeps its record, which says where bytes lie, until
// it is collected, but is demanded nowhere.
func (t *tx) unlink(repo meta.RepoRef, l *linkRecord, since meta.Time, by string) error {
	record, err := blobOf(t, l)
	if err != nil {
		return err
	}
	d := record.Blob.Digest
	t.del(keyLink(repo, d))
	if record.Blob.SHA512 != "" {
		t.del(keyLink(repo, record.Blob.SHA512))
		t.del(keyMentions(repo.Tenant, record.Blob.SHA512).last(repo.Name))
	}
	if err := t.unawait(repo, l); err != nil {
		return err
	}
	if err := t.hold(repo, d, record.Blob.PlainBytes, -1); err != nil {
		return err
	}
	t.del(keyMentions(repo.Tenant, d).last(repo.Name))
	record.Links--
	if err := t.countLinked(record); err != nil {
		return err
	}
	t.put(keyBlob(record.Blob.Context, d), record)
	t.emit(feed.Change{Kind: feed.KindBlob, Repo: repo, Digest: d, Deleted: true})
	if record.Links > 0 {
		return nil
	}
	if err := t.undemand(record.Blob.Root); err != nil {
		return err
	}
	if err := t.remark(record.Blob.Root); err != nil {
		return err
	}
	return t.discard(record.Blob.Root, garbageRecord{
		Since: since, StoredBytes: record.Blob.StoredBytes, Context: record.Blob.Context, Digest: d, Repo: repo, By: by,
	})
}
