package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/wait"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	partsMaximum = 9000            // of one object; services take 10,000
	partsAtOnce  = 4               // of one object
	keepPatience = 2 * time.Minute // how long an upload goes on although nothing succeeds
	keepPause    = 250 * time.Millisecond
)

// upload is a session of the cache whose Commit ends when the content is in the bucket.
type upload struct {
	store.Upload
	b    *Bucket
	done *store.Ingested // the content is whole, and may not be in the bucket yet
	kept bool            // it is; the session is over
}

// Commit implements store.Upload. When the bucket cannot be written, the session stays:
// a later Commit goes on.
//
// Errors: as store.Upload has them; meta.ErrUnavailable, meta.ErrNoSpace of the bucket.
func (u *upload) Commit(ctx context.Context, want digest.Digest) (store.Ingested, error) {
	if u.kept {
		return store.Ingested{}, fmt.Errorf("commit upload %s: %w", u.ID(), meta.ErrNotFound)
	}
	if u.done == nil {
		in, err := u.Upload.Commit(ctx, want)
		if err != nil {
			return store.Ingested{}, err
		}
		u.done = &in
	} else if name := u.done.Digest; want != "" && want != name && want != u.done.SHA512 {
		return store.Ingested{}, fmt.Errorf("commit upload %s: %w", u.ID(), &digest.MismatchError{Want: want, Got: name})
	}
	if _, err := u.b.Keep(ctx, u.done.Root, 0); err != nil {
		u.b.late.Add(u.ID(), *u.done)
		return store.Ingested{}, fmt.Errorf("commit upload %s: %w", u.ID(), err)
	}
	u.b.late.Remove(u.ID())
	u.kept = true
	return *u.done, nil
}

// Cancel implements store.Upload.
func (u *upload) Cancel(ctx context.Context) error {
	if u.done == nil || u.kept {
		return u.Upload.Cancel(ctx)
	}
	u.b.late.Remove(u.ID())
	u.kept = true
	return nil
}

// lateUpload stands for a session that the cache has ended.
type lateUpload struct {
	b  *Bucket
	id string
	in store.Ingested
}

func (l lateUpload) ID() string    { return l.id }
func (l lateUpload) Offset() int64 { return l.in.PlainBytes }
func (l lateUpload) Close() error  { return nil }

func (l lateUpload) Append(_ context.Context, r io.Reader) (int64, error) {
	var one [1]byte
	if n, err := io.ReadFull(r, one[:]); n == 0 && errors.Is(err, io.EOF) {
		return 0, nil // as a client does that only ends the session
	}
	return 0, fmt.Errorf("append to upload %s: it was complete already: %w", l.id, meta.ErrConflict)
}

func (l lateUpload) Commit(context.Context, digest.Digest) (store.Ingested, error) { return l.in, nil }
func (l lateUpload) Cancel(context.Context) error                                  { return nil }

// Keep returns once the bucket has an object of root whose writer had seen at least the
// index since, and says what it had seen; if there is none it is uploaded, from the
// cache and from what objects there are.
//
// Errors: meta.ErrNotFound when chunks are missing; meta.ErrUnavailable, meta.ErrNoSpace.
func (b *Bucket) Keep(ctx context.Context, root digest.CID, since uint64) (seen uint64, err error) {
	unlock, err := b.keeping.lock(ctx, root)
	if err != nil {
		return 0, err
	}
	defer unlock()
	seen, err = b.keep(ctx, root, since)
	if err != nil {
		return 0, fmt.Errorf("keep %s in the bucket: %w", root, err)
	}
	return seen, nil
}

func (b *Bucket) keep(ctx context.Context, root digest.CID, since uint64) (uint64, error) {
	if o, ok := b.known.Get(root); ok && o.seen >= since && o.sound() && o.isSure() {
		return o.seen, nil // no order can have taken it since: that would ask for a younger one
	}
	var f found
	err := b.patiently(ctx, func() (err error) {
		f, err = b.objects(ctx, root)
		return err
	})
	if err != nil {
		return 0, err
	}
	if f.newest != nil {
		o, err := b.remember(ctx, f.newest)
		if err != nil {
			return 0, err
		}
		if o.sound() && o.seen >= since {
			o.confirm()
			return o.seen, nil
		}
	}
	bl, err := b.Open(ctx, root)
	if err != nil {
		return 0, err
	}
	defer bl.Close()
	if !bl.Complete() {
		return 0, fmt.Errorf("chunks of it are missing: %w", meta.ErrNotFound)
	}
	o, err := b.write(ctx, bl, since)
	if err != nil {
		return 0, err
	}
	o.confirm()
	b.known.Add(root, o)
	return o.seen, nil
}

// sureFor is how long an object that was written or found is not looked for again.
const sureFor = 10 * time.Second

func (o *object) isSure() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return time.Since(o.sure) < sureFor
}

// write uploads a whole blob: its map, then its bytes.
func (b *Bucket) write(ctx context.Context, bl store.Blob, since uint64) (*object, error) {
	root, m := bl.Root(), bl.Map()
	seen, err := b.cfg.Seen(ctx)
	if err != nil {
		return nil, err
	}
	if seen < since {
		return nil, fmt.Errorf("this server's metadata is behind: %w", &meta.UnavailableError{Reason: "behind", RetryAfter: time.Second})
	}
	var parts *multi
	name := nameFor(seen)
	if m.StoredBytes > b.cfg.PartBytes {
		if parts, err = b.unfinishedOf(ctx, root, since); err != nil {
			return nil, err
		}
		if parts != nil {
			name = parts.key[strings.LastIndexByte(parts.key, '/')+1:]
			seen, _ = parseName(name)
		}
	}
	key := b.keyOf(root, name)
	hasMap := m.Len() > 1 || m.Seal != 0
	if hasMap {
		if err := b.patiently(ctx, func() error { return b.remote.put(ctx, key+mapSuffix, m.Encode(), false) }); err != nil {
			return nil, err
		}
	}
	if m.StoredBytes <= b.cfg.PartBytes {
		err = b.writeWhole(ctx, bl, key)
	} else {
		err = b.writeParts(ctx, bl, key, parts)
	}
	if err != nil {
		return nil, err
	}
	return &object{root: root, name: name, seen: seen, bytes: m.StoredBytes, hasData: true, hasMap: hasMap, modified: time.Now(), loaded: true}, nil
}

// patiently does again what fails for want of the service, until it has failed for
// keepPatience.
func (b *Bucket) patiently(ctx context.Context, do func() error) error {
	began, pause := time.Now(), keepPause
	for {
		err := do()
		if err == nil || !retryable(err) || time.Since(began) > keepPatience || ctx.Err() != nil {
			return err
		}
		if !wait.For(ctx, pause) {
			return err
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// chunkBuffers holds buffers of one chunk.
var chunkBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, chunk.MaxStoredBytes)
	return &b
}}

// content reads stored bytes [from, to) of a blob, each chunk checked.
func content(ctx context.Context, bl store.Blob, from, to int64, buf []byte) ([]byte, error) {
	m := bl.Map()
	buf = buf[:0]
	scratch := chunkBuffers.Get().(*[]byte)
	defer chunkBuffers.Put(scratch)
	i := firstAt(m, from)
	for at := from; at < to; i++ {
		p, err := bl.ReadChunk(ctx, i, *scratch)
		if err != nil {
			return nil, err
		}
		begin := m.StoredOffset(i)
		p = p[at-begin : min(int64(len(p)), to-begin)]
		buf = append(buf, p...)
		at += int64(len(p))
	}
	return buf, nil
}

// firstAt returns the chunk that holds the stored offset at.
func firstAt(m *chunk.Map, at int64) int {
	return sort.Search(m.Len(), func(i int) bool { return m.StoredOffset(i+1) > at })
}

func (b *Bucket) writeWhole(ctx context.Context, bl store.Blob, key string) error {
	length := bl.Map().StoredBytes
	budget := min(length, partsMost)
	if err := b.parts.Acquire(ctx, budget); err != nil {
		return err
	}
	defer b.parts.Release(budget)
	p, err := content(ctx, bl, 0, length, make([]byte, 0, length))
	if err != nil {
		return err
	}
	return b.patiently(ctx, func() error { return b.remote.put(ctx, key, p, false) })
}

// partBytes is how long the parts of an object are; all but the last are equal, as some
// services want it.
func (b *Bucket) partBytes(length int64) int64 {
	least := (length + partsMaximum - 1) / partsMaximum
	return max(b.cfg.PartBytes, (least+1<<20-1)&^(1<<20-1))
}

// unfinishedOf returns an upload in parts of root that an earlier try began, and that an
// object of this index may be made of.
func (b *Bucket) unfinishedOf(ctx context.Context, root digest.CID, since uint64) (*multi, error) {
	var best *multi
	prefix := b.keyOf(root, "") + "/"
	err := b.patiently(ctx, func() error {
		best = nil
		return b.remote.unfinished(ctx, prefix, func(m multi) bool {
			if seen, ok := parseName(strings.TrimPrefix(m.key, prefix)); ok && seen >= since && (best == nil || m.key > best.key) {
				best = &m
			}
			return true
		})
	})
	return best, err
}

// writeParts uploads a blob in parts. Parts that are there already, with the right
// bytes, stay; whatever breaks leaves its parts for the next try, or for Tidy.
func (b *Bucket) writeParts(ctx context.Context, bl store.Blob, key string, m *multi) error {
	length := bl.Map().StoredBytes
	size := b.partBytes(length)
	count := int((length + size - 1) / size)
	there := map[int]minio.ObjectPart{}
	err := b.patiently(ctx, func() (err error) {
		if m != nil {
			there, err = b.remote.partsOf(ctx, *m)
			if !errors.Is(err, meta.ErrNotFound) {
				return err
			}
			m, there = nil, nil
		}
		began, err := b.remote.beginParts(ctx, key)
		m = &began
		if err != nil {
			m = nil
		}
		return err
	})
	if err != nil {
		return err
	}
	done := make([]minio.CompletePart, count)
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(partsAtOnce)
	for n := range count {
		group.Go(func() error {
			etag, err := b.writePart(within, bl, *m, n, size, there[n+1])
			done[n] = minio.CompletePart{PartNumber: n + 1, ETag: etag}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return b.patiently(ctx, func() error {
		err := b.remote.complete(ctx, *m, done)
		if errors.Is(err, meta.ErrNotFound) {
			// The answer of an earlier try was lost, or another server was faster.
			if info, there := b.remote.stat(ctx, key); there == nil && info.bytes == length {
				return nil
			}
			return fmt.Errorf("the upload in parts was given up by somebody: %w", &meta.UnavailableError{Reason: "bucket", RetryAfter: bucketRetry})
		}
		return err
	})
}

func (b *Bucket) writePart(ctx context.Context, bl store.Blob, m multi, n int, size int64, there minio.ObjectPart) (etag string, err error) {
	from := int64(n) * size
	to := min(from+size, bl.Map().StoredBytes)
	budget := min(size, partsMost)
	if err := b.parts.Acquire(ctx, budget); err != nil {
		return "", err
	}
	defer b.parts.Release(budget)
	p, err := content(ctx, bl, from, to, make([]byte, 0, to-from))
	if err != nil {
		return "", err
	}
	if there.Size == int64(len(p)) {
		if _, sum := sums(p); sum == strings.Trim(there.ETag, `"`) {
			b.metrics.resumed.Inc()
			return there.ETag, nil
		}
	}
	err = b.patiently(ctx, func() error {
		etag, err = b.remote.part(ctx, m, n+1, p)
		return err
	})
	return etag, err
}
