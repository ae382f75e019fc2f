package store

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// blobState is what the disk has of a root.
type blobState uint8

const (
	unloaded blobState = iota // not looked yet
	absent
	partial
	complete
)

// entry is what all handles of one root share. It outlives the blob: a root that
// was removed and created again has the same content, so old handles just work.
//
// Locks, in this order: life serialises what changes state or files; mu guards
// file and state for readers; bits guards have.
type entry struct {
	d    *Disk
	root digest.CID
	// Guarded by d.mu: all holds, and those of handles that yield.
	refs, yields int
	rest         *list.Element

	life sync.Mutex

	mu    sync.RWMutex
	state blobState
	m     *chunk.Map // set once known, then constant
	file  *os.File   // nil of a bare partial blob

	bits     sync.Mutex
	have     chunk.Bitmap // of a partial blob
	missing  int
	haveFile *os.File
	window   *window // of a passing blob

	touched atomic.Int64 // Unix nanoseconds of the last use noted on disk
	damaged []int        // chunks found damaged, to be told once life is free
}

// unlock ends what life.Lock began and tells of the damage found meanwhile.
func (e *entry) unlock() {
	damaged := e.damaged
	e.damaged = nil
	e.life.Unlock()
	for _, i := range damaged {
		e.d.log.Warn("a chunk on disk is damaged", "root", e.root.String(), "chunk", i)
		e.d.metrics.countCorrupt()
		if e.d.cfg.OnCorrupt != nil {
			e.d.cfg.OnCorrupt(e.root, i)
		}
	}
}

// bare blobs have one unsealed chunk or none, so that the file says all that a map
// would. They have no map file, and while partial no file at all: a chunk is the
// unit of loss anyway. A small blob is then one file and one directory entry.
func bare(m *chunk.Map) bool { return m.Len() <= 1 && m.Seal == 0 }

func (e *entry) snapshot() (blobState, *chunk.Map) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.state, e.m
}

// worthKeeping says whether an idle entry saves the next opener anything.
func (e *entry) worthKeeping() bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return (e.state == complete || e.state == partial) && e.file != nil && e.window == nil
}

// close frees the files; the entry is as if never loaded.
func (e *entry) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.state = unloaded
	e.setFile(nil)
	e.bits.Lock()
	defer e.bits.Unlock()
	e.setHave(chunk.Bitmap{}, nil)
}

// setFile replaces the data file. Caller holds mu.
func (e *entry) setFile(f *os.File) {
	if e.file != nil && e.file != f {
		_ = e.file.Close() // read, or synced by who cares
	}
	e.file = f
}

// setHave replaces the bitmap and its file. Caller holds bits.
func (e *entry) setHave(have chunk.Bitmap, f *os.File) {
	if e.haveFile != nil && e.haveFile != f {
		_ = e.haveFile.Close()
	}
	e.have, e.haveFile, e.missing = have, f, have.Len()-have.Count()
	if e.window != nil && e.state != partial {
		e.d.giveWindow(e.window.budget)
		e.window = nil
	}
}

// become switches what readers see. have is of a partial blob.
func (e *entry) become(s blobState, m *chunk.Map, f *os.File, have chunk.Bitmap, haveFile *os.File) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bits.Lock()
	defer e.bits.Unlock()
	e.state = s
	if e.m == nil {
		e.m = m
	}
	e.setFile(f)
	e.setHave(have, haveFile)
}

// open makes the entry usable: it loads what is on disk and, with m, creates a
// partial blob where nothing is.
func (e *entry) open(ctx context.Context, m *chunk.Map) error {
	e.life.Lock()
	defer e.unlock()
	if err := e.loadOnce(ctx); err != nil {
		return err
	}
	if state, _ := e.snapshot(); state == absent {
		if m == nil {
			return meta.ErrNotFound
		}
		if err := e.create(ctx, m); err != nil {
			return err
		}
	}
	e.touch(time.Now())
	return nil
}

// peek loads what is on disk, which is no use that eviction goes by.
func (e *entry) peek(ctx context.Context) error {
	e.life.Lock()
	defer e.unlock()
	return e.loadOnce(ctx)
}

func (e *entry) loadOnce(ctx context.Context) error {
	if state, _ := e.snapshot(); state != unloaded {
		return nil
	}
	return e.load(ctx)
}

// touch notes the use of a cached blob in the file's modification time, which
// eviction goes by; coarsely, as it costs a write.
func (e *entry) touch(now time.Time) {
	if e.d.cfg.CacheBytes <= 0 || now.UnixNano()-e.touched.Load() < int64(touchEvery) {
		return
	}
	e.stamp(now)
}

func (e *entry) stamp(now time.Time) {
	e.touched.Store(now.UnixNano())
	f := e.d.files(e.root)
	path := f.whole
	if state, _ := e.snapshot(); state == partial {
		path = f.part
	}
	// A blob whose use is not noted is evicted earlier, no more.
	_ = os.Chtimes(path, now, now)
}

// load looks at the disk. Caller holds life; state becomes absent, partial or complete.
//
// Errors: meta.ErrCorrupt when nothing usable was there; it is then removed.
func (e *entry) load(ctx context.Context) error {
	fl := e.d.files(e.root)
	f, err := os.Open(fl.whole)
	if err == nil {
		return e.loadWhole(ctx, fl, f)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err = os.OpenFile(fl.part, os.O_RDWR, 0)
	if err == nil {
		return e.loadPart(ctx, fl, f)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	e.become(absent, nil, nil, chunk.Bitmap{}, nil)
	return nil
}

func (e *entry) loadWhole(ctx context.Context, fl files, f *os.File) error {
	stat, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	m, err := readMap(fl.chunkMap, e.root)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, meta.ErrCorrupt) {
		m, err = e.derive(ctx, fl, f, stat.Size())
	}
	if err != nil {
		return errors.Join(e.ruin(fl, err), f.Close())
	}
	e.become(complete, m, f, chunk.Bitmap{}, nil)
	if stat.Size() == m.StoredBytes && (e.d.cfg.Fsync || bare(m) || !stat.ModTime().Before(e.d.crashed)) {
		return nil
	}
	// The machine crashed, or somebody cut the file: find out what is left of it.
	if stat.Size() != m.StoredBytes {
		if err := e.demote(-1); err != nil {
			e.close()
			return err
		}
	}
	if _, err := e.verifyLocked(ctx); err != nil {
		e.close()
		return err
	}
	e.stamp(time.Now())
	return e.finishLocked()
}

// derive makes the map of a whole file again. That is the common case of a bare blob,
// and what saves the others from a lost or damaged map file.
//
// Errors: meta.ErrCorrupt when the content is not that of the root, or its map was
// not derivable.
func (e *entry) derive(ctx context.Context, fl files, f *os.File, size int64) (*chunk.Map, error) {
	if size <= chunk.MinBytes {
		content := make([]byte, size)
		if _, err := f.ReadAt(content, 0); err != nil {
			return nil, err
		}
		m := chunk.Of(content)
		if m.Root() != e.root {
			return nil, meta.ErrCorrupt
		}
		if m.Len() > 0 {
			e.d.hot.put(e.root, 0, content)
		}
		return m, nil
	}
	var b chunk.Builder
	defer b.Discard()
	buf := chunkBuffers.get()
	defer chunkBuffers.put(buf)
	for b.Size() < size {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		part := buf.b[:min(int64(len(buf.b)), size-b.Size())]
		if _, err := f.ReadAt(part, b.Size()); err != nil {
			return nil, err
		}
		if _, err := b.Write(part); err != nil {
			return nil, err
		}
	}
	m, err := b.Map()
	if err != nil {
		return nil, err
	}
	encoded := m.Encode()
	if digest.Sum(encoded) != e.root {
		return nil, meta.ErrCorrupt
	}
	e.d.log.Warn("made a lost or damaged chunk map again", "root", e.root.String())
	e.d.countMended("map")
	return m, writeAtomic(fl.chunkMap, encoded, false)
}

func (e *entry) loadPart(ctx context.Context, fl files, f *os.File) error {
	stat, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	m, err := readMap(fl.chunkMap, e.root)
	if err != nil {
		return errors.Join(e.ruin(fl, err), f.Close())
	}
	if stat.Size() != m.StoredBytes {
		if err := fit(f, m.StoredBytes); err != nil {
			return errors.Join(diskError("allocate", err), f.Close())
		}
	}
	haveFile, err := os.OpenFile(fl.have, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return errors.Join(diskError("open bitmap", err), f.Close())
	}
	doubt := stat.ModTime().Before(e.d.restarted) || stat.Size() != m.StoredBytes
	b, err := io.ReadAll(io.LimitReader(haveFile, int64(m.Len()/8+2)))
	have, parseErr := chunk.ParseBitmap(m.Len(), b)
	// Who is full gets its name as soon as it is: a bitmap that says so may be damaged.
	doubt = doubt || parseErr == nil && have.Count() == m.Len()
	if err != nil || parseErr != nil {
		// What is here is still worth finding: the bitmap was torn, not the chunks.
		have, doubt = chunk.FullBitmap(m.Len()), true
		e.d.countMended("bitmap")
		if err := rewrite(haveFile, have); err != nil {
			return errors.Join(diskError("write bitmap", err), haveFile.Close(), f.Close())
		}
	}
	e.become(partial, m, f, have, haveFile)
	if doubt {
		if _, err := e.verifyLocked(ctx); err != nil {
			e.close()
			return err
		}
		e.stamp(time.Now())
	}
	if err := e.finishLocked(); err != nil {
		e.close()
		return err
	}
	return nil
}

// rewrite makes have the content of the bitmap's file.
func rewrite(f *os.File, have chunk.Bitmap) error {
	if err := f.Truncate(int64(len(have.Bytes()))); err != nil {
		return err
	}
	_, err := f.WriteAt(have.Bytes(), 0)
	return err
}

// readMap reads and checks the map of root.
//
// Errors: fs.ErrNotExist; meta.ErrCorrupt when it is not the map of root.
func readMap(path string, root digest.CID) (*chunk.Map, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if digest.Sum(b) != root {
		return nil, fmt.Errorf("chunk map of %d bytes is not that of the root: %w", len(b), meta.ErrCorrupt)
	}
	return chunk.Decode(b)
}

// ruin removes a blob of which nothing can be checked.
func (e *entry) ruin(fl files, cause error) error {
	if !errors.Is(cause, fs.ErrNotExist) && !errors.Is(cause, meta.ErrCorrupt) && !errors.Is(cause, io.EOF) {
		return cause // the disk refuses, which says nothing about the content
	}
	e.d.log.Warn("removed a blob of which nothing can be checked", "root", e.root.String(), "error", cause)
	if err := e.discard(fl, true); err != nil {
		return err
	}
	e.become(absent, nil, nil, chunk.Bitmap{}, nil)
	e.damaged = append(e.damaged, 0)
	return fmt.Errorf("%w: %w", meta.ErrCorrupt, cause)
}

// create starts a partial blob. Caller holds life; state is absent.
func (e *entry) create(ctx context.Context, m *chunk.Map) error {
	if bare(m) {
		// It takes space when it is written. A cache makes room now.
		if err := e.d.reserve(ctx, onDisk(m.StoredBytes)); err != nil {
			return err
		}
		e.d.give(onDisk(m.StoredBytes))
		e.become(partial, m, nil, chunk.NewBitmap(m.Len()), nil)
		if m.Len() > 0 {
			return nil
		}
		return e.writeBare(nil)
	}
	fl := e.d.files(e.root)
	encoded := m.Encode()
	cost := onDisk(m.StoredBytes) + onDisk(int64(len(encoded))) + onDisk(int64(m.Len()+7)/8)
	settle := e.d.account(fl)
	if err := e.d.reserve(ctx, cost); err != nil {
		return err
	}
	defer func() { settle(cost) }()
	f, haveFile, err := e.createFiles(fl, m, encoded)
	if err != nil {
		_ = e.unlinkFiles(fl) // nothing half left; what stays the scan removes
		return err
	}
	e.become(partial, m, f, chunk.NewBitmap(m.Len()), haveFile)
	e.d.index.add(e.root, m)
	return nil
}

// createFiles writes the map and the empty bitmap before the data file, which is
// what makes the blob exist.
func (e *entry) createFiles(fl files, m *chunk.Map, encoded []byte) (f, haveFile *os.File, err error) {
	if err := writeAtomic(fl.chunkMap, encoded, e.d.cfg.Fsync && !m.Derivable()); err != nil {
		return nil, nil, err
	}
	haveFile, err = os.OpenFile(fl.have, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return nil, nil, diskError("create bitmap", err)
	}
	if err = rewrite(haveFile, chunk.NewBitmap(m.Len())); err == nil {
		f, err = os.OpenFile(fl.part+tempSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640)
	}
	if err != nil {
		return nil, nil, diskError("create blob", errors.Join(err, haveFile.Close()))
	}
	if err = preallocate(f, m.StoredBytes); err == nil {
		err = os.Rename(fl.part+tempSuffix, fl.part)
	}
	if err != nil {
		return nil, nil, diskError("allocate blob", errors.Join(err, f.Close(), haveFile.Close()))
	}
	return f, haveFile, nil
}

// writeBare makes a bare blob complete in one go. Caller holds life.
func (e *entry) writeBare(content []byte) error {
	fl := e.d.files(e.root)
	settle := e.d.account(fl)
	cost := onDisk(int64(len(content)))
	if err := e.d.reserve(context.Background(), cost); err != nil {
		return err
	}
	defer func() { settle(cost) }()
	if err := writeAtomic(fl.whole, content, e.d.cfg.Fsync); err != nil {
		return err
	}
	err := e.d.syncDir(fl.dir)
	var f *os.File
	if err == nil {
		f, err = os.Open(fl.whole)
	}
	if err != nil {
		return errors.Join(err, unlink(fl.whole))
	}
	_, m := e.snapshot()
	e.become(complete, m, f, chunk.Bitmap{}, nil)
	return nil
}

// syncDir makes the names in dir durable, if the store is.
func (d *Disk) syncDir(dir string) error {
	if !d.cfg.Fsync {
		return nil
	}
	if d.cfg.observe != nil {
		d.cfg.observe("directory")
	}
	start := time.Now()
	err := d.syncs.sync(dir)
	d.metrics.countSync(start)
	return diskError("sync directory", err)
}

// syncFile makes the bytes of f durable, if the store is.
func (d *Disk) syncFile(f *os.File) error {
	if !d.cfg.Fsync {
		return nil
	}
	if d.cfg.observe != nil {
		d.cfg.observe("file")
	}
	start := time.Now()
	err := fdatasync(f)
	d.metrics.countSync(start)
	return diskError("sync file", err)
}

// passing says that the blob does not fit the cache.
func (e *entry) passing() bool {
	e.bits.Lock()
	defer e.bits.Unlock()
	return e.window != nil
}

func (e *entry) isFull() bool {
	e.bits.Lock()
	defer e.bits.Unlock()
	return e.missing == 0
}

// finish makes a partial blob without missing chunks complete.
func (e *entry) finish() error {
	e.life.Lock()
	defer e.life.Unlock()
	return e.finishLocked()
}

// finishLocked does nothing to any other blob.
func (e *entry) finishLocked() error {
	state, m := e.snapshot()
	if state != partial || !e.isFull() || e.passing() {
		return nil
	}
	fl := e.d.files(e.root)
	settle := e.d.account(fl)
	defer func() { settle(0) }()
	if err := e.d.syncFile(e.file); err != nil {
		return err
	}
	if err := os.Rename(fl.part, fl.whole); err != nil {
		// A blob demoted in memory only still has its name.
		if _, whole := os.Stat(fl.whole); whole != nil {
			return diskError("finish blob", err)
		}
	}
	if err := e.d.syncDir(fl.dir); err != nil {
		return err
	}
	e.mu.Lock()
	e.state = complete
	e.bits.Lock()
	e.setHave(chunk.Bitmap{}, nil)
	e.bits.Unlock()
	e.mu.Unlock()
	// A bitmap without a partial file means nothing; the scan removes it if this fails.
	_ = unlink(fl.have)
	if bare(m) {
		_ = unlink(fl.chunkMap)
	}
	return nil
}

// demote makes a complete blob partial, without chunk i; with -1 nothing is taken
// away yet. Caller holds life. Map and bitmap are written before the rename, so that
// each moment in between is a blob that can be opened.
func (e *entry) demote(i int) error {
	_, m := e.snapshot()
	fl := e.d.files(e.root)
	settle := e.d.account(fl)
	defer func() { settle(0) }()
	e.d.sound.Remove(e.root)
	have := chunk.FullBitmap(m.Len())
	if i >= 0 {
		have.Clear(i)
	}
	f, haveFile, err := e.demoteFiles(fl, m, have)
	if err != nil {
		if i < 0 {
			return err
		}
		// Without space for a bitmap, forget the chunk in memory only: after a
		// restart it is found damaged again.
		e.d.log.Warn("cannot note a damaged chunk on disk", "root", e.root.String(), "chunk", i, "error", err)
		f, err := os.OpenFile(fl.whole, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		e.become(partial, m, f, have, nil)
		return nil
	}
	e.become(partial, m, f, have, haveFile)
	return e.d.syncDir(fl.dir)
}

func (e *entry) demoteFiles(fl files, m *chunk.Map, have chunk.Bitmap) (f, haveFile *os.File, err error) {
	if err := writeAtomic(fl.chunkMap, m.Encode(), e.d.cfg.Fsync); err != nil {
		return nil, nil, err
	}
	if err := writeAtomic(fl.have, have.Bytes(), e.d.cfg.Fsync); err != nil {
		return nil, nil, err
	}
	if haveFile, err = os.OpenFile(fl.have, os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	if f, err = os.OpenFile(fl.whole, os.O_RDWR, 0); err == nil {
		if err = fit(f, m.StoredBytes); err == nil {
			err = os.Rename(fl.whole, fl.part)
		}
	}
	if err != nil {
		err = errors.Join(err, haveFile.Close())
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		return nil, nil, diskError("quarantine", err)
	}
	return f, haveFile, nil
}

// quarantine takes chunk i away, whose bytes on disk are wrong. Caller holds life.
func (e *entry) quarantine(i int) (changed bool) {
	state, m := e.snapshot()
	if state == complete || state == partial && e.has(i) {
		e.keepDamaged(i, m)
	}
	switch state {
	case complete:
		if err := e.demote(i); err != nil {
			e.d.log.Warn("a quarantine is not durable", "root", e.root.String(), "error", err)
		}
		changed = true
	case partial:
		changed = e.mark(i, false) == nil
	}
	if changed {
		e.damaged = append(e.damaged, i)
	}
	return changed
}

// keepDamaged sets the bytes of chunk i aside, as far as they can be read.
func (e *entry) keepDamaged(i int, m *chunk.Map) {
	if e.file == nil || e.d.cfg.CacheBytes > 0 {
		return
	}
	buf := chunkBuffers.get()
	defer chunkBuffers.put(buf)
	b := buf.b[:m.Chunks[i].Stored]
	if n, _ := e.file.ReadAt(b, m.StoredOffset(i)); n > 0 {
		e.d.keepAside(e.root, i, b[:n])
	}
}

var errUnchanged = errors.New("unchanged")

// mark sets or clears the bit of chunk i, in memory and on disk.
func (e *entry) mark(i int, here bool) error {
	e.bits.Lock()
	defer e.bits.Unlock()
	if i >= e.have.Len() || e.have.Has(i) == here {
		return errUnchanged
	}
	if here {
		e.have.Set(i)
		e.missing--
	} else {
		e.have.Clear(i)
		e.missing++
	}
	if e.haveFile == nil {
		return nil
	}
	if _, err := e.haveFile.WriteAt(e.have.Bytes()[i/8:i/8+1], int64(i/8)); err != nil && here {
		e.have.Clear(i)
		e.missing++
		return diskError("write bitmap", err)
	}
	return nil
}

// verifyLocked is scrub by who holds life.
func (e *entry) verifyLocked(ctx context.Context) (bad int, err error) {
	_, m := e.snapshot()
	buf := chunkBuffers.get()
	defer chunkBuffers.put(buf)
	for i := range m.Chunks {
		if err := ctx.Err(); err != nil {
			return bad, err
		}
		_, err := e.readDisk(i, buf.b[:m.Chunks[i].Stored])
		if errors.Is(err, meta.ErrCorrupt) && e.quarantine(i) {
			bad++
		}
	}
	return bad, nil
}

// readDisk fills b, of the chunk's length, with chunk i and checks it.
//
// Errors: meta.ErrNotFound, meta.ErrCorrupt.
func (e *entry) readDisk(i int, b []byte) ([]byte, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.state != complete && (e.state != partial || !e.has(i)) {
		return nil, meta.ErrNotFound
	}
	if e.file == nil {
		return nil, meta.ErrNotFound
	}
	_, err := e.file.ReadAt(b, e.m.StoredOffset(i))
	if err == nil && digest.Sum(b) == e.m.Chunks[i].ID {
		return b, nil
	}
	// Memory may flip bits too: look twice before the disk is blamed.
	if _, again := e.file.ReadAt(b, e.m.StoredOffset(i)); again == nil && digest.Sum(b) == e.m.Chunks[i].ID {
		return b, nil
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: %w", meta.ErrCorrupt, err)
	}
	return nil, meta.ErrCorrupt
}

// readChecked is readDisk by who holds no lock; a damaged chunk is then no longer here.
func (e *entry) readChecked(i int, b []byte) ([]byte, error) {
	got, err := e.readDisk(i, b)
	if errors.Is(err, meta.ErrCorrupt) {
		return e.condemn(i, b)
	}
	return got, err
}

// condemn takes away chunk i, which was found damaged without the lock, unless it is
// sound by now: who had the lock meanwhile may have put a sound file there, a push for
// example, whose acknowledgement counts on it.
func (e *entry) condemn(i int, b []byte) ([]byte, error) {
	e.life.Lock()
	defer e.unlock()
	got, err := e.readDisk(i, b)
	if errors.Is(err, meta.ErrCorrupt) {
		e.quarantine(i)
	}
	return got, err
}

func (e *entry) has(i int) bool {
	e.bits.Lock()
	defer e.bits.Unlock()
	return e.have.Has(i)
}

// remove deletes the blob.
func (e *entry) remove() error {
	e.life.Lock()
	defer e.life.Unlock()
	return e.removeFiles(e.d.files(e.root))
}

// removeFiles deletes what is there of the blob, and what was set aside of it. Caller
// holds life.
func (e *entry) removeFiles(fl files) error {
	e.d.removeAside(e.root)
	return e.discard(fl, false)
}

// discard deletes the files of a blob, or keeps its content aside, and accounts for it.
// Caller holds life.
func (e *entry) discard(fl files, keep bool) error {
	settle := e.d.account(fl)
	defer func() { settle(0) }()
	if keep {
		_ = e.d.moveAside(e.root, fl.whole) // else it is removed below
	}
	m, err := readMap(fl.chunkMap, e.root)
	if err := e.unlinkFiles(fl); err != nil {
		return err
	}
	if err == nil {
		e.d.index.drop(e.root, m)
	}
	e.d.sound.Remove(e.root)
	e.become(absent, nil, nil, chunk.Bitmap{}, nil)
	return nil
}

// unlinkFiles deletes the data first: without it the rest means nothing.
func (e *entry) unlinkFiles(fl files) error {
	return errors.Join(unlink(fl.whole), unlink(fl.part), unlink(fl.part+tempSuffix), unlink(fl.have), unlink(fl.chunkMap))
}

// adopt makes the finished upload in f, at path, the blob of m; existed says that an
// equal one was there. f is then the entry's, unless existed.
//
// A file of the right length may have been damaged since it was checked. What was just
// received is not, so it takes the place of one that was not checked by this process, or
// that is not what it was.
func (e *entry) adopt(m *chunk.Map, encoded []byte, f *os.File, path string) (existed bool, err error) {
	e.life.Lock()
	defer e.unlock()
	fl := e.d.files(e.root)
	if e.d.sound.Contains(e.root) && e.stillSound(m) {
		return true, nil
	}
	settle := e.d.account(fl)
	more := onDisk(m.StoredBytes) - m.StoredBytes // the upload itself is counted
	if !bare(m) {
		more += onDisk(int64(len(encoded)))
	}
	if err := e.d.capped(context.Background(), more, false); err != nil {
		return false, err
	}
	defer func() { settle(more) }()
	if err := e.d.syncFile(f); err != nil {
		return false, err
	}
	if !bare(m) {
		// Not synced: what a crash takes of it, derive brings back.
		if err := writeAtomic(fl.chunkMap, encoded, false); err != nil {
			return false, err
		}
	}
	_, before := os.Stat(fl.whole)
	if err := os.Rename(path, fl.whole); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("the upload's file was removed: %w: %w", meta.ErrNotFound, err)
		}
		return false, diskError("name blob", err)
	}
	if err := e.d.syncDir(fl.dir); err != nil {
		if before == nil {
			return false, err // the content is here either way
		}
		// It may not survive a crash, so it must not be found by a later commit.
		return false, errors.Join(err, os.Rename(fl.whole, path))
	}
	_, _ = unlink(fl.part), unlink(fl.have) // the scan removes them otherwise
	e.become(complete, m, f, chunk.Bitmap{}, nil)
	e.d.index.add(e.root, m)
	e.d.sound.Add(e.root, struct{}{})
	return false, nil
}

// stillSound says whether a blob that this process has received or verified is what it
// was, by reading it: that costs less than putting the same bytes on the disk again,
// and a push must put right what was damaged since. Caller holds life.
func (e *entry) stillSound(m *chunk.Map) bool {
	if _, err := e.compare(context.Background()); err != nil {
		return false
	}
	if state, _ := e.snapshot(); state != complete {
		return false
	}
	if !bare(m) { // else compare has read it
		if bad, err := e.verifyLocked(context.Background()); bad > 0 || err != nil {
			return false
		}
	}
	state, _ := e.snapshot()
	return state == complete
}

// handle is one opener's Blob.
type handle struct {
	e      *entry
	closed atomic.Bool
	yields bool // guarded by d.mu
	// sources are what Create found for Reuse.
	sources atomic.Pointer[sources]
}

func (h *handle) Root() digest.CID { return h.e.root }

func (h *handle) Map() *chunk.Map {
	_, m := h.e.snapshot()
	return m
}

func (h *handle) Complete() bool {
	state, _ := h.e.snapshot()
	return state == complete
}

func (h *handle) Have() chunk.Bitmap { return h.e.bitmap() }

// bitmap returns a copy of the bits of what is here of a loaded blob.
func (e *entry) bitmap() chunk.Bitmap {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.state == complete {
		return chunk.FullBitmap(e.m.Len())
	}
	e.bits.Lock()
	defer e.bits.Unlock()
	if e.state != partial {
		return chunk.NewBitmap(e.m.Len())
	}
	return e.have.Clone()
}

func (h *handle) ReadChunk(ctx context.Context, i int, dst []byte) ([]byte, error) {
	e := h.e
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e.touch(time.Now())
	e.mu.RLock()
	m := e.m
	here := e.state == complete || e.state == partial && e.has(i)
	e.mu.RUnlock()
	if i < 0 || i >= m.Len() {
		return nil, fmt.Errorf("chunk %d of %s, which has %d: %w", i, e.root, m.Len(), meta.ErrInvalid)
	}
	if !here {
		return nil, fmt.Errorf("chunk %d of %s: %w", i, e.root, meta.ErrNotFound)
	}
	length := int(m.Chunks[i].Stored)
	defer e.passed(i)
	e.d.traffic.Add(int64(length))
	data, keep := e.d.hot.get(e.root, i, length, dst)
	if data != nil {
		return data, nil
	}
	if cap(dst) < length {
		dst = make([]byte, length)
	}
	if e.readFresh(i, dst[:length]) {
		return dst[:length], nil
	}
	b, err := e.readChecked(i, dst[:length])
	if err != nil {
		return nil, fmt.Errorf("chunk %d of %s: %w", i, e.root, err)
	}
	if keep {
		e.d.hot.put(e.root, i, b)
	}
	return b, nil
}

func (h *handle) WriteChunk(ctx context.Context, i int, b []byte) error {
	if err := h.write(ctx, i, b); err != nil {
		return fmt.Errorf("write chunk %d of %s: %w", i, h.e.root, err)
	}
	return nil
}

func (h *handle) write(ctx context.Context, i int, b []byte) error {
	e := h.e
	if err := ctx.Err(); err != nil {
		return err
	}
	state, m := e.snapshot()
	if i < 0 || i >= m.Len() {
		return fmt.Errorf("the blob has %d chunks: %w", m.Len(), meta.ErrInvalid)
	}
	if state == complete {
		return nil
	}
	c := m.Chunks[i]
	e.d.traffic.Add(int64(len(b)))
	if !e.has(i) {
		if len(b) != int(c.Stored) || digest.Sum(b) != c.ID {
			return fmt.Errorf("%d bytes are not those of the map: %w", len(b), meta.ErrCorrupt)
		}
		if done, err := e.writeDisk(i, b, m); done || err != nil {
			return err
		}
		e.d.hot.put(e.root, i, b)
		if !e.d.cfg.Fsync {
			e.d.fresh.add(e.root, i)
		}
	}
	if e.isFull() {
		return e.finish()
	}
	return nil
}

// writeDisk writes and marks checked bytes; done says that the blob is complete or gone.
func (e *entry) writeDisk(i int, b []byte, m *chunk.Map) (done bool, err error) {
	done, err = e.write(i, func(f *os.File) error {
		_, err := f.WriteAt(b, m.StoredOffset(i))
		return diskError("write blob", err)
	})
	if !errors.Is(err, errBare) {
		if err == nil && !done {
			e.slide(i)
		}
		return done, err
	}
	e.life.Lock()
	defer e.life.Unlock()
	if state, _ := e.snapshot(); state == complete {
		return true, nil
	} else if state != partial {
		return true, meta.ErrNotFound
	}
	if err := e.writeBare(b); err != nil {
		return true, err
	}
	e.d.hot.put(e.root, i, b)
	return true, nil
}

var errBare = errors.New("a bare partial blob has no file")

// write has put write chunk i, checked, to the file of a partial blob and marks it;
// done says that the blob is complete, or with meta.ErrNotFound that it is gone.
//
// Errors: errBare, of put.
func (e *entry) write(i int, put func(*os.File) error) (done bool, err error) {
	// File and bitmap must not be swapped meanwhile: a mark in the bitmap of a blob
	// that was removed and created again would vouch for bytes that are not in it.
	e.mu.RLock()
	defer e.mu.RUnlock()
	switch {
	case e.state == complete:
		return true, nil
	case e.state != partial:
		return true, meta.ErrNotFound
	case e.file == nil:
		return false, errBare
	}
	if err = put(e.file); err != nil {
		return false, err
	}
	if err = e.mark(i, true); errors.Is(err, errUnchanged) {
		err = nil
	}
	return false, err
}

func (h *handle) Window() int64 {
	h.e.bits.Lock()
	defer h.e.bits.Unlock()
	if h.e.window == nil {
		return 0
	}
	return h.e.window.budget
}

func (h *handle) Yield(yes bool) {
	if h.yield(yes) && h.e.passing() {
		// What it takes is of use to the next one.
		h.e.life.Lock()
		h.e.become(absent, nil, nil, chunk.Bitmap{}, nil)
		h.e.life.Unlock()
	}
}

// yield reports whether all who have the blob open yield.
func (h *handle) yield(yes bool) bool {
	d := h.e.d
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case yes == h.yields || h.closed.Load():
	case yes:
		h.e.yields++
	default:
		h.e.yields--
	}
	h.yields = yes
	return h.e.refs == h.e.yields
}

func (h *handle) Close() error {
	h.yield(false)
	if !h.closed.Swap(true) {
		h.sources.Swap(nil).close()
		h.e.d.drop(h.e)
	}
	return nil
}
