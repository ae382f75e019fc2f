package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// View is the state at one index. It is safe for concurrent use until Close.
type View struct {
	stored
	db          *database
	index, term uint64
}

// Index returns the log index of the last command that the view has seen.
func (v *View) Index() uint64 { return v.index }

// Close frees the view.
func (v *View) Close() error {
	err := v.Reader.Close()
	if err != nil {
		err = &StorageError{Cause: err}
	}
	return errors.Join(err, v.db.release())
}

// changes implements Machine.Changes.
func (v *View) changes(after uint64, limit int) ([]feed.Change, uint64, error) {
	floor, err := number(v, keyFloor)
	if err != nil {
		return nil, 0, err
	}
	if after < floor {
		return nil, 0, feed.ErrCompacted
	}
	if after >= v.index {
		return nil, after, nil
	}
	var out []feed.Change
	for p, err := range v.scan(span{lower: keyFeed(after + 1), upper: keyFeed(v.index).after()}) {
		if err != nil {
			return nil, 0, err
		}
		index := binary.BigEndian.Uint64(p.key[1:])
		if len(out) >= limit && index != out[len(out)-1].Index {
			return out, out[len(out)-1].Index, nil
		}
		c, err := decode[feed.Change](p.key, p.value)
		if err != nil {
			return nil, 0, err
		}
		out = append(out, *c)
	}
	return out, v.index, nil
}

// blobByRoot finds a blob of a root, of the first context that has one.
//
// Errors: meta.ErrNotFound.
func blobByRoot(r reader, root digest.CID) (*meta.Blob, error) {
	prefix := keyRoots(root)
	for p, err := range r.scan(within(prefix)) {
		if err != nil {
			return nil, err
		}
		k := keyBlob(string(p.key[len(prefix):]), digest.Digest(p.value))
		record, err := find[blobRecord](r, k, "blob", digest.Digest(p.value))
		if err != nil {
			return nil, err
		}
		return &record.Blob, nil
	}
	return nil, fmt.Errorf("blob with root %s: %w", root, meta.ErrNotFound)
}

// Bounds of a page. One also ends past pageBytes of records, so a short page is
// not the last: an empty one is.
const (
	defaultPage = 1_000
	maxPage     = 10_000
	pageBytes   = 16 << 20
)

// limit returns how many entries the page may have.
func (p Page) limit() (int, error) {
	switch {
	case p.Limit < 0 || p.Limit > maxPage:
		return 0, fmt.Errorf("page of %d, use 1 to %d: %w", p.Limit, maxPage, meta.ErrInvalid)
	case p.Limit == 0:
		return defaultPage, nil
	}
	return p.Limit, nil
}

// number reads After where it counts.
func (p Page) number() (uint64, error) {
	if p.After == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(p.After, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("page after %q is no number: %w", p.After, meta.ErrInvalid)
	}
	return n, nil
}

// list decodes the records of s, those that keep keeps (nil keeps all), to the
// end of the page. keep may change the record.
func list[T any](v *View, s span, page Page, keep func(*T) bool) ([]T, error) {
	limit, err := page.limit()
	if err != nil {
		return nil, err
	}
	var out []T
	bytes := 0
	for p, err := range v.scan(s) {
		if err != nil {
			return nil, err
		}
		record, err := decode[T](p.key, p.value)
		if err != nil {
			return nil, err
		}
		if keep != nil && !keep(record) {
			continue
		}
		out = append(out, *record)
		if bytes += len(p.value); len(out) == limit || bytes > pageBytes {
			break
		}
	}
	return out, nil
}

// one answers a single record.
func one[T any](v *View, k key, what string, name any) (T, error) {
	return value(find[T](v, k, what, name))
}

func value[T any](v *T, err error) (T, error) {
	if err != nil {
		var none T
		return none, err
	}
	return *v, nil
}

// withoutReferences shortens a version for a listing.
func withoutReferences(v *meta.Version) bool {
	v.References = nil
	return true
}
