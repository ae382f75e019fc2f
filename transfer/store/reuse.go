package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	// reuseAtOnce is how many chunks of all blobs are copied at the same time.
	reuseAtOnce = 2
	// reuseSources is how many blobs one blob takes chunks from.
	reuseSources = 8
	// reuseAnywhere is how many chunks a blob may have to be searched for a chunk at
	// any place; in larger ones only the same place is looked at. A map of so many
	// takes 4 MiB to search.
	reuseAnywhere = 1 << 16
)

// Reuse brings chunks of a partial blob from other blobs of the store. Run or Close
// ends it. A nil Reuse has nothing to bring. Its methods may be called concurrently.
type Reuse struct {
	chunks chunk.Bitmap
	bring  func(ctx context.Context, i int) error
	free   func()
	slots  chan struct{}

	mu   sync.Mutex
	left chunk.Bitmap // not yet begun
	next int          // where to look in it
	once sync.Once
}

func newReuse(chunks chunk.Bitmap, slots chan struct{}, bring func(context.Context, int) error, free func()) *Reuse {
	return &Reuse{chunks: chunks, left: chunks.Clone(), slots: slots, bring: bring, free: free}
}

// Has says whether chunk i is one of those that Run brings, in all likelihood.
func (r *Reuse) Has(i int) bool { return r != nil && r.chunks.Has(i) }

// Count returns how many chunks Run brings, in all likelihood.
func (r *Reuse) Count() int {
	if r == nil {
		return 0
	}
	return r.chunks.Count()
}

// Prefer makes chunk i, or the next after it, the one to be brought next; the others
// follow in order.
func (r *Reuse) Prefer(i int) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = max(i, 0)
}

// take returns the next chunk to bring, -1 after the last.
func (r *Reuse) take() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for range 2 {
		for i := r.next; i < r.left.Len(); i++ {
			if r.left.Has(i) {
				r.left.Clear(i)
				r.next = i + 1
				return i
			}
		}
		r.next = 0
	}
	return -1
}

// Run brings the chunks, each checked against the map, and calls done for every one:
// with nil as soon as it is in the blob, else with why it will not come. It returns
// when all are done. done may be called concurrently.
func (r *Reuse) Run(ctx context.Context, done func(i int, err error)) {
	if r == nil {
		return
	}
	defer r.Close()
	var workers sync.WaitGroup
	for range reuseAtOnce {
		workers.Go(func() {
			for i := r.take(); i >= 0; i = r.take() {
				done(i, r.one(ctx, i))
			}
		})
	}
	workers.Wait()
}

func (r *Reuse) one(ctx context.Context, i int) error {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
		return r.bring(ctx, i)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close lets go of the blobs that the chunks come from.
func (r *Reuse) Close() {
	if r != nil {
		r.once.Do(r.free)
	}
}

// origin is where a chunk is: in which of the sources, and which chunk there.
type origin struct{ source, chunk int32 }

// sources are blobs that have chunks of another one, held so that they stay.
type sources struct {
	d       *Disk
	entries []*entry
	origins []origin // by chunk of the other blob; source -1 is none
	found   int
}

// sourcesOf looks for the chunks of m among the other blobs; nil when there are none.
func (d *Disk) sourcesOf(ctx context.Context, root digest.CID, m *chunk.Map) *sources {
	if bare(m) {
		return nil
	}
	s := &sources{d: d}
	tried := 0
	for _, h := range d.index.find(m) {
		roots, err := d.rooted(h)
		if err != nil || tried >= 2*reuseSources || len(s.entries) >= reuseSources || s.found == m.Len() {
			break // without them the chunks are fetched
		}
		for _, other := range roots {
			if other != root {
				tried++
				s.search(ctx, other, m)
			}
		}
	}
	if s.found == 0 {
		return nil
	}
	return s
}

// search takes what root has of m.
func (s *sources) search(ctx context.Context, root digest.CID, m *chunk.Map) {
	e := s.d.hold(root)
	if e.peek(ctx) != nil || s.match(e, m) == 0 {
		s.d.drop(e)
		return
	}
	s.entries = append(s.entries, e)
}

// match notes which chunks of m are in e, and returns how many that adds.
func (s *sources) match(e *entry, m *chunk.Map) (added int) {
	state, other := e.snapshot()
	if state != complete && state != partial {
		return 0
	}
	have := e.bitmap()
	if s.origins == nil {
		s.origins = make([]origin, m.Len())
		for i := range s.origins {
			s.origins[i].source = -1
		}
	}
	note := func(i, j int) {
		s.origins[i] = origin{int32(len(s.entries)), int32(j)}
		added++
	}
	for i := range min(m.Len(), other.Len()) {
		if s.origins[i].source < 0 && have.Has(i) && m.Chunks[i] == other.Chunks[i] {
			note(i, i)
		}
	}
	if other.Len() <= reuseAnywhere && s.found+added < m.Len() {
		places := make(map[digest.CID]int, other.Len())
		for j, c := range other.Chunks {
			if have.Has(j) {
				places[c.ID] = j
			}
		}
		for i, c := range m.Chunks {
			if s.origins[i].source >= 0 {
				continue
			}
			if j, ok := places[c.ID]; ok && other.Chunks[j].Stored == c.Stored {
				note(i, j)
			}
		}
	}
	s.found += added
	return added
}

func (s *sources) close() {
	if s == nil {
		return
	}
	for _, e := range s.entries {
		s.d.drop(e)
	}
}

// Reuse implements Store.
func (d *Disk) Reuse(ctx context.Context, b Blob) *Reuse {
	root, m := b.Root(), b.Map()
	var s *sources
	if h, ok := b.(*handle); ok {
		s = h.sources.Swap(nil) // Create has looked
	}
	if b.Window() > 0 {
		// Copies that are ahead of the reader would only push one another out.
		s.close()
		return nil
	}
	if s == nil && !b.Complete() {
		s = d.sourcesOf(ctx, root, m)
	}
	if s == nil {
		return nil
	}
	have, chunks := b.Have(), chunk.NewBitmap(m.Len())
	for i, o := range s.origins {
		if o.source >= 0 && !have.Has(i) {
			chunks.Set(i)
		}
	}
	if chunks.Count() == 0 {
		s.close()
		return nil
	}
	e := d.hold(root)
	return newReuse(chunks, d.copying, func(ctx context.Context, i int) error {
		if err := e.bring(ctx, i, s.entries[s.origins[i].source], int(s.origins[i].chunk)); err != nil {
			return fmt.Errorf("reuse chunk %d of %s: %w", i, root, err)
		}
		return nil
	}, func() {
		d.drop(e)
		s.close()
	})
}

// bring copies chunk j of other, checked, to chunk i of a partial blob.
func (e *entry) bring(ctx context.Context, i int, other *entry, j int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	state, m := e.snapshot()
	switch {
	case state == complete || state == partial && e.has(i):
		return nil
	case state != partial:
		return meta.ErrNotFound
	}
	length := int(m.Chunks[i].Stored)
	buf := chunkBuffers.get()
	defer chunkBuffers.put(buf)
	b, err := other.readChecked(j, buf.b[:length])
	if err != nil {
		return err
	}
	if done, err := e.write(i, func(f *os.File) error {
		if e.d.clone(f, m.StoredOffset(i), other, j) {
			e.d.countReused("shared", length)
			return nil
		}
		if _, err := f.WriteAt(b, m.StoredOffset(i)); err != nil {
			return diskError("write blob", err)
		}
		e.d.countReused("copied", length)
		return nil
	}); done || err != nil {
		return err
	}
	e.slide(i)
	if e.isFull() {
		return e.finish()
	}
	return nil
}

// clone makes f share chunk j of other on disk, which no byte is moved for; false when
// the file system cannot. Like all else it is checked again when it is read.
func (d *Disk) clone(f *os.File, at int64, other *entry, j int) bool {
	if d.cannotClone.Load() {
		return false
	}
	other.mu.RLock()
	defer other.mu.RUnlock()
	if other.file == nil {
		return false
	}
	err := unix.IoctlFileCloneRange(int(f.Fd()), &unix.FileCloneRange{
		Src_fd: int64(other.file.Fd()), Src_offset: uint64(other.m.StoredOffset(j)),
		Src_length: uint64(other.m.Chunks[j].Stored), Dest_offset: uint64(at),
	})
	// EINVAL is the last chunk of a blob, whose end is within a block.
	if err != nil && !errors.Is(err, unix.EINVAL) {
		d.cannotClone.Store(true)
	}
	return err == nil
}
