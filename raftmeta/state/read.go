package state

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// StorageError says that the state on disk could not be read or written, or is
// not what was written. Such a node must not go on applying.
type StorageError struct{ Cause error }

func (e *StorageError) Error() string { return fmt.Sprintf("metadata storage: %v", e.Cause) }

// Unwrap returns the cause.
func (e *StorageError) Unwrap() error { return e.Cause }

// pair is a record as it is stored.
type pair struct {
	key, value []byte
}

// span is a range of keys to read, from lower up to and without upper.
type span struct {
	lower, upper key
	reverse      bool
}

// within spans the keys that begin with prefix.
func within(prefix key) span { return span{lower: prefix, upper: prefix.after()} }

// behind narrows s to the keys behind prefix+name; "" leaves it as it is.
func (s span) behind(prefix key, name string) span {
	if name == "" {
		return s
	}
	next := append(slices.Clone(prefix).last(name), 0)
	if bytes.Compare(next, s.lower) > 0 {
		s.lower = next
	}
	return s
}

func (s span) empty() bool { return s.upper != nil && bytes.Compare(s.lower, s.upper) >= 0 }

// reader is what commands and questions read: a tx, a View.
type reader interface {
	// get returns the record of k, nil when there is none. The slice is the caller's.
	get(k key) ([]byte, error)
	// scan yields the records of s in order. Slices hold until the next one.
	scan(s span) iter.Seq2[pair, error]
}

// stored reads records as they lie in Pebble.
type stored struct{ pebble.Reader }

func (s stored) get(k key) ([]byte, error) {
	value, closer, err := s.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, &StorageError{Cause: err}
	}
	out := bytes.Clone(value)
	if out == nil {
		out = []byte{}
	}
	if err := closer.Close(); err != nil {
		return nil, &StorageError{Cause: err}
	}
	return out, nil
}

func (s stored) scan(sp span) iter.Seq2[pair, error] {
	return func(yield func(pair, error) bool) {
		if sp.empty() {
			return
		}
		it, err := s.NewIter(&pebble.IterOptions{LowerBound: sp.lower, UpperBound: sp.upper})
		if err != nil {
			yield(pair{}, &StorageError{Cause: err})
			return
		}
		first, next := it.First, it.Next
		if sp.reverse {
			first, next = it.Last, it.Prev
		}
		for ok := first(); ok; ok = next() {
			value, err := it.ValueAndErr()
			if err != nil {
				break // Close returns it too.
			}
			if !yield(pair{it.Key(), value}, nil) {
				_ = it.Close() // The reader has what it wanted.
				return
			}
		}
		if err := it.Close(); err != nil {
			yield(pair{}, &StorageError{Cause: err})
		}
	}
}

// load reads the record of k; nil when there is none.
func load[T any](r reader, k key) (*T, error) {
	b, err := r.get(k)
	if err != nil || b == nil {
		return nil, err
	}
	return decode[T](k, b)
}

func decode[T any](k, b []byte) (*T, error) {
	v := new(T)
	if err := codec.Unmarshal(b, v); err != nil {
		return nil, &StorageError{Cause: fmt.Errorf("key %x: %w", k, err)}
	}
	return v, nil
}

// find is load of what must be there: what says its kind, name its name.
//
// Errors: meta.ErrNotFound.
func find[T any](r reader, k key, what string, name any) (*T, error) {
	v, err := load[T](r, k)
	if err == nil && v == nil {
		err = fmt.Errorf("%s %v: %w", what, name, meta.ErrNotFound)
	}
	return v, err
}

func findRepository(r reader, ref meta.RepoRef) (*meta.Repository, error) {
	return find[meta.Repository](r, keyRepository(ref), "repository", ref)
}

// versionName is how messages name a version.
func versionName(repo meta.RepoRef, pkg, version string) string {
	return fmt.Sprintf("%s/%s %s", repo, pkg, version)
}

func findVersion(r reader, repo meta.RepoRef, pkg, version string) (*meta.Version, error) {
	return find[meta.Version](r, keyVersion(repo, pkg, version), "version", versionName(repo, pkg, version))
}

// linkRecord is a blob in a repository, stored under its sha256.
type linkRecord struct {
	Link    meta.Link `cbor:"1,keyasint,omitempty"`
	Context string    `cbor:"2,keyasint,omitempty"`
	// Since is when it was last without claims, its place among the uploads.
	Since meta.Time `cbor:"3,keyasint,omitempty"`
	// Released says that it is without claims because By deleted the last version that
	// used it; then it waits among the released links, counted with Bytes.
	Released bool   `cbor:"4,keyasint,omitempty"`
	By       string `cbor:"5,keyasint,omitempty"`
	Bytes    int64  `cbor:"6,keyasint,omitempty"`
	// Quarantined is how many of the claims are of versions in quarantine, Why the
	// reason of the last of them.
	Quarantined uint64           `cbor:"7,keyasint,omitempty"`
	Why         *meta.Quarantine `cbor:"8,keyasint,omitempty"`
}

// blobRecord is a blob with the number of repositories that link it.
type blobRecord struct {
	Blob  meta.Blob `cbor:"1,keyasint,omitempty"`
	Links uint64    `cbor:"2,keyasint,omitempty"`
	// Counted says that the context's count has it.
	Counted bool `cbor:"3,keyasint,omitempty"`
}

// findLink finds the link of d, either name of a blob, in repo; nil when there is
// none.
func findLink(r reader, repo meta.RepoRef, d digest.Digest) (*linkRecord, error) {
	if d.Algorithm() == "sha512" {
		canonical, err := r.get(keyLink(repo, d))
		if err != nil || canonical == nil {
			return nil, err
		}
		d = digest.Digest(canonical)
	}
	return load[linkRecord](r, keyLink(repo, d))
}

// blobOf returns the blob of a link.
func blobOf(r reader, l *linkRecord) (*blobRecord, error) {
	k := keyBlob(l.Context, l.Link.Blob)
	b, err := load[blobRecord](r, k)
	if err == nil && b == nil {
		err = &StorageError{Cause: fmt.Errorf("link of %s without its blob", l.Link.Blob)}
	}
	return b, err
}

// regionRecord is a region with its servers, sorted: dozens at most.
type regionRecord struct {
	Region  meta.Region   `cbor:"1,keyasint,omitempty"`
	Servers []meta.NodeID `cbor:"2,keyasint,omitempty"`
	// Draining are those of Servers that do not count any more, sorted.
	Draining []meta.NodeID `cbor:"3,keyasint,omitempty"`
	// Sharing are those of Servers whose copies are in a bucket, sorted.
	Sharing []sharing `cbor:"4,keyasint,omitempty"`
}

// holders returns who keeps the region's copies: servers, and buckets of servers.
func (r *regionRecord) holders() []meta.NodeID {
	if len(r.Sharing) == 0 {
		return r.staying()
	}
	var ids []meta.NodeID
	for _, id := range r.staying() {
		ids = insert(ids, r.holderOf(id))
	}
	return ids
}

// staying returns the servers that do not drain.
func (r *regionRecord) staying() []meta.NodeID {
	if len(r.Draining) == 0 {
		return r.Servers
	}
	return slices.DeleteFunc(slices.Clone(r.Servers), func(id meta.NodeID) bool { return slices.Contains(r.Draining, id) })
}

// regions yields all regions by name.
func regions(r reader) iter.Seq2[*regionRecord, error] {
	return func(yield func(*regionRecord, error) bool) {
		for p, err := range r.scan(within(key{spaceRegions})) {
			var record *regionRecord
			if err == nil {
				record, err = decode[regionRecord](p.key, p.value)
			}
			if !yield(record, err) || err != nil {
				return
			}
		}
	}
}

// draftRecord heads a reference list that was written ahead.
type draftRecord struct {
	Parts      uint32    `cbor:"1,keyasint,omitempty"`
	References uint32    `cbor:"2,keyasint,omitempty"`
	Since      meta.Time `cbor:"3,keyasint,omitempty"`
	// Taken says that a version has it.
	Taken bool `cbor:"4,keyasint,omitempty"`
}

// references yields what a version closes over, in document order.
func references(r reader, v *meta.Version) iter.Seq2[meta.Reference, error] {
	return func(yield func(meta.Reference, error) bool) {
		for _, ref := range v.References {
			if !yield(ref, nil) {
				return
			}
		}
		if v.Draft == "" {
			return
		}
		prefix := keyDraft(v.Repo, v.Draft)
		for p, err := range r.scan(within(prefix)) {
			if err != nil {
				yield(meta.Reference{}, err)
				return
			}
			if len(p.key) == len(prefix) {
				continue // The head.
			}
			part, err := decode[[]meta.Reference](p.key, p.value)
			if err != nil {
				yield(meta.Reference{}, err)
				return
			}
			for _, ref := range *part {
				if !yield(ref, nil) {
					return
				}
			}
		}
	}
}
