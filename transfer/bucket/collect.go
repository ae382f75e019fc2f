package bucket

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Collect removes the objects of root whose writers had seen less than the index
// before, which is that of the order; what was written later is not what the order is
// about. It returns how many bytes went. The cache forgets the blob unless it is in use.
//
// Errors: meta.ErrConflict when still says no; of still; meta.ErrUnavailable.
func (b *Bucket) Collect(ctx context.Context, root digest.CID, before uint64, still func() (bool, error)) (freed int64, err error) {
	f, err := b.objects(ctx, root)
	if err != nil {
		return 0, fmt.Errorf("collect blob %s: %w", root, err)
	}
	yes, err := still()
	if err != nil {
		return 0, fmt.Errorf("collect blob %s: %w", root, err)
	}
	if !yes {
		return 0, fmt.Errorf("collect blob %s: it is wanted again: %w", root, meta.ErrConflict)
	}
	left := false
	for _, o := range f.all {
		if o.seen >= before {
			left = true
			continue
		}
		n, err := b.drop(ctx, o)
		if freed += n; err != nil {
			return freed, fmt.Errorf("collect blob %s: %w", root, err)
		}
	}
	if !left {
		_, err := b.cache.Collect(ctx, root, func() (bool, error) { return true, nil })
		if err != nil && !errors.Is(err, meta.ErrConflict) {
			b.log.Warn("a blob that was collected stays in the cache for now", "root", root.String(), "error", err)
		}
	}
	return freed, nil
}

// TidyOptions say what Tidy takes for an orphan.
type TidyOptions struct {
	// Grace is how old something has to be, by the clock of the service.
	Grace time.Duration
	// Mine says whether a root is this server's to look after; nil is all.
	Mine func(root digest.CID) bool
}

// Tidied is what Tidy found and did.
type Tidied struct {
	Blobs   uint64 `json:"blobs"`
	Bytes   int64  `json:"bytes"`   // of what stays
	Removed uint64 `json:"removed"` // objects and unfinished uploads
}

// Tidy removes what no record can mean any more: older objects of a root of which a
// whole, undamaged one of a higher index is there, maps without their object, and
// uploads in parts that nobody goes on with. Roots that nobody knows are the
// collection's, which asks the metadata.
func (b *Bucket) Tidy(ctx context.Context, o TidyOptions) (t Tidied, err error) {
	now := time.Now().Add(time.Duration(b.remote.skew.Load()))
	old := func(at time.Time) bool { return now.Sub(at) > o.Grace }
	mine := func(root digest.CID) bool { return o.Mine == nil || o.Mine(root) }
	for after := (digest.CID{}); ; {
		page, err := b.roots(ctx, after, 300, func(found) bool { return true })
		if err != nil {
			return t, fmt.Errorf("tidy the bucket: %w", err)
		}
		if len(page) == 0 {
			break
		}
		for _, f := range page {
			after = f.root
			if f.newest != nil {
				t.Blobs++
			}
			for _, obj := range f.all {
				t.Bytes += obj.bytes
				replaced := f.newest != nil && !f.newest.damaged && obj.seen <= f.newest.seen && obj != f.newest
				if !mine(f.root) || !old(obj.modified) || obj.whole() && !replaced || obj.hasData && f.newest == obj {
					continue
				}
				if obj.hasData && !replaced {
					continue // its map can be made again
				}
				if _, err := b.drop(ctx, obj); err != nil {
					return t, fmt.Errorf("tidy the bucket: %w", err)
				}
				t.Bytes -= obj.bytes
				t.Removed++
				b.metrics.removed.Inc()
			}
		}
	}
	var left []multi
	err = b.remote.unfinished(ctx, b.cfg.Location.key(blobsDir)+"/", func(m multi) bool {
		if old(m.began) {
			left = append(left, m)
		}
		return len(left) < 1000
	})
	if err != nil {
		return t, fmt.Errorf("tidy the bucket: %w", err)
	}
	for _, m := range left {
		if err := b.remote.abort(ctx, m); err != nil {
			return t, fmt.Errorf("tidy the bucket: %w", err)
		}
		t.Removed++
		b.metrics.removed.Inc()
	}
	b.stored.Store(t.Bytes)
	return t, nil
}

// Stored returns the bytes of all objects, as of the last Tidy of this process.
func (b *Bucket) Stored() int64 { return b.stored.Load() }

// listing answers Look for roots in ascending order with one listing for hundreds.
type listing struct {
	mu       sync.Mutex
	at       time.Time
	from, to digest.CID // it has all roots in [from, to]
	end      bool       // and all behind
	found    map[digest.CID]found
}

const (
	listingRoots = 300
	listingAge   = 30 * time.Second
)

// Look says whether root is whole in the bucket; it reads no content.
func (b *Bucket) Look(ctx context.Context, root digest.CID) (store.Looked, error) {
	l := &b.look
	l.mu.Lock()
	defer l.mu.Unlock()
	covered := time.Since(l.at) < listingAge && string(root[:]) >= string(l.from[:]) && (l.end || string(root[:]) <= string(l.to[:]))
	if !covered {
		f, err := b.objects(ctx, root)
		if err != nil {
			return store.Looked{}, err
		}
		page, err := b.roots(ctx, root, listingRoots, func(found) bool { return true })
		if err != nil {
			return store.Looked{}, err
		}
		l.at, l.from, l.to, l.end = time.Now(), root, root, len(page) < listingRoots
		l.found = map[digest.CID]found{root: f}
		for _, f := range page {
			l.found[f.root], l.to = f, f.root
		}
	}
	looked := l.found[root].looked()
	known, ok := b.known.Peek(root)
	if !looked.Whole || ok && !known.sound() {
		// It, or its damage, may be younger than the listing.
		f, err := b.objects(ctx, root)
		if err != nil {
			return store.Looked{}, err
		}
		looked = f.looked()
	}
	return looked, nil
}

func (f found) looked() store.Looked {
	if o := f.newest; o != nil {
		return store.Looked{Whole: !o.damaged, Partial: o.damaged, StoredBytes: o.bytes}
	}
	for _, o := range f.all {
		if o.hasData {
			return store.Looked{Partial: true, StoredBytes: o.bytes}
		}
	}
	return store.Looked{}
}

// Scrub reads root from the bucket, not from the cache, and compares it with the map and
// the map with the root. It is as store.Disk has it.
func (b *Bucket) Scrub(ctx context.Context, root digest.CID, o store.ScrubOptions) (s store.Scrubbed, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("verify blob %s: %w", root, err)
		}
	}()
	f, err := b.objects(ctx, root)
	if err != nil {
		return s, err
	}
	if f.newest == nil {
		for _, obj := range f.all {
			if obj.hasData { // without its map
				f.newest = obj
			}
		}
	}
	if f.newest == nil {
		return s, meta.ErrNotFound
	}
	obj, err := b.remember(ctx, f.newest)
	if err != nil {
		return s, err
	}
	if obj.bytes > chunk.MinBytes && !obj.hasMap {
		if _, _, err := b.deriveMap(ctx, obj); err != nil {
			return s, err
		}
		obj.hasMap = true
	}
	m, _, err := b.mapOf(ctx, obj)
	if err != nil {
		return s, err
	}
	h := digest.NewHasher(false)
	whole := o.From == 0 && m.Seal == 0
	for i := o.From; i < m.Len(); i++ {
		length := int64(m.Chunks[i].Stored)
		if o.Pace != nil {
			if err := o.Pace(ctx, length); err != nil {
				return s, err
			}
		}
		if !obj.has(i) {
			whole = false
			if o.Done != nil {
				o.Done(i + 1)
			}
			continue
		}
		err := b.stream(obj, m, i, i+1, func(_ int, p []byte, err error) {
			switch {
			case errors.Is(err, meta.ErrCorrupt):
				s.Damaged++
				whole = false
			case err != nil:
				whole = false
			case whole:
				_, _ = h.Write(p) // never fails
			}
		})
		switch {
		case errors.Is(err, meta.ErrCorrupt):
			s.Damaged++
			whole = false
		case err != nil:
			return s, err
		}
		s.Bytes += length
		if o.Done != nil {
			o.Done(i + 1)
		}
	}
	s.Whole = obj.sound() && obj.bytes == m.StoredBytes
	if whole {
		s.SHA256 = h.SHA256()
	}
	return s, nil
}
