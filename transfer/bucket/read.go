package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/wait"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	runFirst  = 4 << 20  // bytes that the first request of a reader asks for
	runMost   = 16 << 20 // and the most, each being twice the last
	readTries = 3
	readPause = 200 * time.Millisecond // before a second try, twice as long before each further one
)

// blob is an open blob: what the cache has of it, and the object behind that.
type blob struct {
	b    *Bucket
	root digest.CID
	m    *chunk.Map
	h    store.Blob // nil where the cache cannot hold any of it
	o    *object    // nil when the bucket was not asked, or does not have it
}

// openObject opens what is in the bucket only: it learns the map, and gives the blob its
// place in the cache.
func (b *Bucket) openObject(ctx context.Context, o *object) (store.Blob, error) {
	m, content, err := b.mapOf(ctx, o)
	if err != nil {
		return nil, err
	}
	h, err := b.cache.Create(ctx, m)
	if err != nil {
		if !errors.Is(err, meta.ErrNoSpace) {
			return nil, err
		}
		h = nil
	}
	if h != nil && content != nil && m.Len() == 1 {
		if err := h.WriteChunk(ctx, 0, content); err != nil {
			b.log.Debug("a chunk is not cached", "root", o.root.String(), "error", err)
		}
	}
	return &blob{b: b, h: h, o: o, m: m, root: o.root}, nil
}

// mapOf returns the map of an object, with the content of one that has no map of its
// own. A lost or damaged map is made again from the content.
//
// Errors: meta.ErrNotFound; meta.ErrCorrupt when it cannot be made.
func (b *Bucket) mapOf(ctx context.Context, o *object) (m *chunk.Map, content []byte, err error) {
	key := b.keyOf(o.root, o.name)
	if o.hasMap {
		encoded, err := b.remote.read(ctx, key+mapSuffix, chunk.MaxEncodedBytes)
		if err == nil && digest.Sum(encoded) == o.root {
			m, err = chunk.Decode(encoded)
			return m, nil, err
		}
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return nil, nil, err
		}
		b.log.Warn("the map of an object is lost or damaged, it is made again", "root", o.root.String(), "object", o.name)
		return b.deriveMap(ctx, o)
	}
	content, err = b.remote.read(ctx, key, chunk.MinBytes)
	if errors.Is(err, meta.ErrNotFound) {
		b.lose(o)
	}
	if err != nil {
		return nil, nil, err
	}
	if m = chunk.Of(content); m.Root() != o.root {
		b.condemn(ctx, o, 0)
		return nil, nil, fmt.Errorf("object %s: %w", o.name, meta.ErrCorrupt)
	}
	return m, content, nil
}

// deriveMap reads an object through and writes its map again.
func (b *Bucket) deriveMap(ctx context.Context, o *object) (*chunk.Map, []byte, error) {
	key := b.keyOf(o.root, o.name)
	body, err := b.remote.get(ctx, key, 0, o.bytes)
	if err != nil {
		return nil, nil, err
	}
	defer body.Close()
	var build chunk.Builder
	defer build.Discard()
	n, err := io.Copy(&build, io.LimitReader(body, o.bytes))
	b.metrics.received.Add(float64(n))
	if err != nil {
		return nil, nil, b.remote.failed(ctx, "read an object", err)
	}
	m, err := build.Map()
	if err != nil {
		return nil, nil, err
	}
	encoded := m.Encode()
	if digest.Sum(encoded) != o.root {
		return nil, nil, fmt.Errorf("neither the map of object %s nor its content is that of the root: %w", o.name, meta.ErrCorrupt)
	}
	return m, nil, b.remote.put(ctx, key+mapSuffix, encoded, false)
}

// Root implements store.Blob.
func (bl *blob) Root() digest.CID { return bl.root }

// Map implements store.Blob.
func (bl *blob) Map() *chunk.Map { return bl.m }

// Have implements store.Blob: what the cache has, and all that can be read from the
// object.
func (bl *blob) Have() chunk.Bitmap {
	if bl.o == nil {
		return bl.h.Have()
	}
	have := chunk.NewBitmap(bl.m.Len())
	if bl.h != nil {
		have = bl.h.Have()
	}
	bl.o.mu.Lock()
	defer bl.o.mu.Unlock()
	if bl.o.gone {
		return have
	}
	for i := range bl.m.Chunks {
		if _, bad := bl.o.bad[i]; !bad {
			have.Set(i)
		}
	}
	return have
}

// Complete implements store.Blob.
func (bl *blob) Complete() bool {
	if bl.h != nil && bl.h.Complete() {
		return true
	}
	return bl.o != nil && (bl.o.sound() || bl.Have().Full())
}

// Window implements store.Blob: of what the bucket has nothing passes by.
func (bl *blob) Window() int64 {
	if bl.h == nil || bl.o != nil && bl.o.sound() {
		return 0
	}
	return bl.h.Window()
}

// Yield implements store.Blob.
func (bl *blob) Yield(yes bool) {
	if bl.h != nil {
		bl.h.Yield(yes)
	}
}

// Close implements store.Blob.
func (bl *blob) Close() error {
	if bl.h != nil {
		return bl.h.Close()
	}
	return nil
}

// WriteChunk implements store.Blob.
func (bl *blob) WriteChunk(ctx context.Context, i int, p []byte) error {
	if bl.h != nil {
		return bl.h.WriteChunk(ctx, i, p)
	}
	if i < 0 || i >= bl.m.Len() || len(p) != int(bl.m.Chunks[i].Stored) || digest.Sum(p) != bl.m.Chunks[i].ID {
		return fmt.Errorf("write chunk %d of %s: %w", i, bl.root, meta.ErrCorrupt)
	}
	return nil // it is in the bucket, and the cache takes none of it
}

// ReadChunk implements store.Blob.
func (bl *blob) ReadChunk(ctx context.Context, i int, dst []byte) ([]byte, error) {
	if i < 0 || i >= bl.m.Len() {
		return nil, fmt.Errorf("chunk %d of %s, which has %d: %w", i, bl.root, bl.m.Len(), meta.ErrInvalid)
	}
	damaged := false
	if bl.h != nil {
		p, err := bl.h.ReadChunk(ctx, i, dst)
		if err == nil || !errors.Is(err, meta.ErrNotFound) && !errors.Is(err, meta.ErrCorrupt) {
			return p, err
		}
		damaged = errors.Is(err, meta.ErrCorrupt)
	}
	o := bl.o
	if o == nil || o.isGone() {
		var err error
		if o, err = bl.b.find(ctx, bl.root); err != nil {
			if damaged && errors.Is(err, meta.ErrNotFound) {
				err = meta.ErrCorrupt
			}
			return nil, fmt.Errorf("chunk %d of %s: %w", i, bl.root, err)
		}
	}
	p, err := bl.b.readChunk(ctx, o, bl.m, i, bl.h != nil)
	if err != nil {
		return nil, fmt.Errorf("chunk %d of %s: %w", i, bl.root, err)
	}
	return p, nil
}

// pending is a chunk that is being read from an object.
type pending struct {
	done chan struct{}
	b    []byte
	err  error
}

// readChunk returns chunk i of an object, checked. With cached it reads ahead, into the
// cache.
//
// Errors: meta.ErrNotFound, meta.ErrCorrupt, meta.ErrUnavailable.
func (b *Bucket) readChunk(ctx context.Context, o *object, m *chunk.Map, i int, cached bool) ([]byte, error) {
	pause := readPause
	for try := 1; ; try++ {
		if !o.has(i) {
			return nil, fmt.Errorf("the bucket does not have it: %w", meta.ErrNotFound)
		}
		p := b.ask(o, m, i, cached)
		select {
		case <-p.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if p.err == nil || try == readTries || !retryable(p.err) {
			return p.b, p.err
		}
		if !wait.For(ctx, pause) {
			return nil, ctx.Err()
		}
		pause *= 2
	}
}

// ask joins whoever reads chunk i of an object, or begins to, with those behind it.
func (b *Bucket) ask(o *object, m *chunk.Map, i int, cached bool) *pending {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p := o.under[i]; p != nil {
		return p
	}
	if o.under == nil {
		o.under = map[int]*pending{}
	}
	if i != o.next || o.run == 0 {
		o.run = runFirst
	}
	var have chunk.Bitmap
	if cached {
		if h, err := b.cache.Open(b.ctx, o.root); err == nil {
			have = h.Have()
			_ = h.Close() // only looked at
		} else {
			cached = false
		}
	}
	run := []*pending{}
	for to, sum := i, int64(0); to < m.Len(); to++ {
		sum += int64(m.Chunks[to].Stored)
		_, bad := o.bad[to]
		if to > i && (!cached || sum > o.run || bad || o.under[to] != nil || have.Has(to)) {
			break
		}
		p := &pending{done: make(chan struct{})}
		o.under[to] = p
		run = append(run, p)
	}
	o.next = i + len(run)
	o.run = min(2*o.run, runMost)
	b.group.Go(func() { b.run(o, m, i, run, cached) })
	return run[0]
}

// run reads chunks from one on with one request, and answers each as it comes.
func (b *Bucket) run(o *object, m *chunk.Map, from int, run []*pending, cached bool) {
	at := from
	answer := func(p []byte, err error) {
		w := run[at-from]
		w.b, w.err = p, err
		o.mu.Lock()
		delete(o.under, at)
		o.mu.Unlock()
		close(w.done)
		at++
	}
	to := from + len(run)
	err := b.stream(o, m, from, to, func(i int, p []byte, err error) {
		if err == nil && cached {
			// Not the reader's affair: it has the bytes.
			if bad := b.toCache(o.root, i, p); bad != nil {
				b.log.Debug("a chunk is not cached", "root", o.root.String(), "chunk", i, "error", bad)
			}
		}
		answer(p, err)
	})
	for at < to {
		answer(nil, err)
	}
}

func (b *Bucket) toCache(root digest.CID, i int, p []byte) error {
	h, err := b.cache.Open(b.ctx, root)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.WriteChunk(b.ctx, i, p)
}

// stream reads chunks [from, to) of an object; each is told checked, or as damaged.
//
// Errors: of those that were not told.
func (b *Bucket) stream(o *object, m *chunk.Map, from, to int, each func(i int, p []byte, err error)) error {
	offset := m.StoredOffset(from)
	length := m.StoredOffset(to) - offset
	budget := min(length, aheadMost)
	if err := b.ahead.Acquire(b.ctx, budget); err != nil {
		return err
	}
	defer b.ahead.Release(budget)
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	watch := time.AfterFunc(stallAfter, cancel)
	defer watch.Stop()
	body, err := b.remote.get(ctx, b.keyOf(o.root, o.name), offset, length)
	if err != nil {
		if errors.Is(err, meta.ErrNotFound) {
			b.lose(o)
		}
		return b.stalled(ctx, err)
	}
	defer body.Close()
	for i := from; i < to; i++ {
		watch.Reset(stallAfter)
		p := make([]byte, m.Chunks[i].Stored)
		n, err := io.ReadFull(body, p)
		b.metrics.received.Add(float64(n))
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
				err = b.short(ctx, o, m, i, err)
			}
			return b.stalled(ctx, b.remote.failed(ctx, "read an object", err))
		}
		if digest.Sum(p) == m.Chunks[i].ID {
			each(i, p, nil)
			continue
		}
		p, err = b.again(ctx, o, m, i)
		each(i, p, err)
	}
	return nil
}

// short says what it means that an object ended early: the request broke, or the object
// is shorter than its map.
func (b *Bucket) short(ctx context.Context, o *object, m *chunk.Map, i int, cause error) error {
	info, err := b.remote.stat(ctx, b.keyOf(o.root, o.name))
	if err != nil || info.bytes >= m.StoredOffset(i+1) {
		return cause
	}
	b.condemn(ctx, o, i)
	return fmt.Errorf("the object has %d bytes of %d: %w", info.bytes, m.StoredBytes, meta.ErrCorrupt)
}

// stalled makes an error of a request that was given up one that can be tried again.
func (b *Bucket) stalled(ctx context.Context, err error) error {
	if errors.Is(err, meta.ErrCorrupt) || ctx.Err() == nil || b.ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("the bucket sent nothing for %v: %w", stallAfter, &meta.UnavailableError{Reason: "bucket", RetryAfter: bucketRetry})
}

// again reads a chunk that was wrong once more: what came on a bad way is no damage.
func (b *Bucket) again(ctx context.Context, o *object, m *chunk.Map, i int) ([]byte, error) {
	length := int64(m.Chunks[i].Stored)
	body, err := b.remote.get(ctx, b.keyOf(o.root, o.name), m.StoredOffset(i), length)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	p := make([]byte, length)
	if _, err := io.ReadFull(body, p); err != nil {
		return nil, b.remote.failed(ctx, "read an object", err)
	}
	if digest.Sum(p) == m.Chunks[i].ID {
		return p, nil
	}
	b.condemn(ctx, o, i)
	return nil, fmt.Errorf("object %s: %w", o.name, meta.ErrCorrupt)
}
