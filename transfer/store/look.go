package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io/fs"
	"os"

	godigest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Looked is what Look found of a blob.
type Looked struct {
	// Whole says that the file is there, of the length that its map says; the map is
	// that of the root.
	Whole bool
	// Partial says that some of it is there.
	Partial     bool
	StoredBytes int64
	// Mended says that a lost or damaged map or bitmap was made again.
	Mended bool
}

// Look compares the files of root with what they have to be, on the disk and not in
// memory. It reads no content but of a blob of one chunk. What is wrong is put right
// where that costs nobody else anything: the map is written again, a file of the wrong
// length becomes partial, one that is gone is no longer here.
func (d *Disk) Look(ctx context.Context, root digest.CID) (Looked, error) {
	e := d.hold(root)
	defer d.drop(e)
	e.life.Lock()
	defer e.unlock()
	mended, err := e.compare(ctx)
	if errors.Is(err, meta.ErrCorrupt) || errors.Is(err, meta.ErrNotFound) {
		err = nil
	}
	l := Looked{Mended: mended}
	switch state, m := e.snapshot(); state {
	case complete:
		l.Whole, l.StoredBytes = true, m.StoredBytes
	case partial:
		l.Partial, l.StoredBytes = true, m.StoredBytes
	}
	return l, err
}

// compare makes the entry what the disk says. Caller holds life.
func (e *entry) compare(ctx context.Context) (mended bool, err error) {
	fl := e.d.files(e.root)
	state, m := e.snapshot()
	if state == unloaded || state == absent {
		before := e.d.mended.Load()
		e.close()
		err := e.load(ctx)
		return e.d.mended.Load() != before, err
	}
	if state == partial && e.file == nil || e.passing() {
		return false, nil // it has no files
	}
	path := fl.whole
	if state == partial {
		if path = fl.part; !exists(path) {
			path = fl.whole // demoted in memory only
		}
	}
	now, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		e.vanish(m)
		return false, meta.ErrNotFound
	}
	if err != nil {
		return false, err
	}
	open, err := e.file.Stat()
	if err != nil {
		return false, err
	}
	if !os.SameFile(now, open) {
		// Somebody put another file in its place.
		e.close()
		return false, e.load(ctx)
	}
	if now.Size() != m.StoredBytes {
		if state == complete {
			if err := e.demote(-1); err != nil {
				return false, err
			}
		} else if err := fit(e.file, m.StoredBytes); err != nil {
			return false, diskError("allocate", err)
		}
		if _, err := e.verifyLocked(ctx); err != nil {
			return false, err
		}
		return false, e.finishLocked()
	}
	if bare(m) && state == complete {
		if _, err := e.verifyLocked(ctx); err != nil {
			return false, err
		}
		return false, nil
	}
	return e.mend(fl, state, m)
}

// mend writes map and bitmap of a loaded blob again when they are lost or damaged.
func (e *entry) mend(fl files, state blobState, m *chunk.Map) (mended bool, err error) {
	if _, err := readMap(fl.chunkMap, e.root); errors.Is(err, fs.ErrNotExist) || errors.Is(err, meta.ErrCorrupt) {
		encoded := m.Encode()
		if digest.Sum(encoded) != e.root {
			return false, meta.ErrCorrupt // memory is wrong, too
		}
		if err := writeAtomic(fl.chunkMap, encoded, e.d.cfg.Fsync && !m.Derivable()); err != nil {
			return false, err
		}
		e.d.countMended("map")
		e.d.log.Warn("wrote a lost or damaged chunk map again", "root", e.root.String())
		mended = true
	} else if err != nil {
		return false, err
	}
	if state != partial {
		return mended, nil
	}
	e.bits.Lock()
	defer e.bits.Unlock()
	if e.haveFile == nil {
		return mended, nil
	}
	b, err := os.ReadFile(fl.have)
	if err == nil && string(b) == string(e.have.Bytes()) {
		return mended, nil
	}
	if err := writeAtomic(fl.have, e.have.Bytes(), e.d.cfg.Fsync); err != nil {
		return mended, err
	}
	f, err := os.OpenFile(fl.have, os.O_RDWR, 0)
	if err != nil {
		return mended, diskError("open bitmap", err)
	}
	_ = e.haveFile.Close() // of a file that is gone
	e.haveFile = f
	e.d.countMended("bitmap")
	return true, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// vanish notes that the files of a loaded blob are gone. Caller holds life.
func (e *entry) vanish(m *chunk.Map) {
	e.d.log.Warn("the files of a blob are gone", "root", e.root.String())
	e.d.index.drop(e.root, m)
	e.become(absent, nil, nil, chunk.Bitmap{}, nil)
}

// ScrubOptions says how a blob is read.
type ScrubOptions struct {
	// From is the chunk to begin with.
	From int
	// Pace is called before each chunk with its bytes and waits as long as it likes; an
	// error ends the read. Nil does not wait.
	Pace func(ctx context.Context, bytes int64) error
	// Done is called after each chunk with the number of the next; nil is not.
	Done func(next int)
}

// Scrubbed is what reading a blob found.
type Scrubbed struct {
	// Bytes were read from the disk, Damaged chunks were not what the map says; they
	// are no longer here.
	Bytes   int64
	Damaged int
	// Whole says that the blob was whole at the end.
	Whole bool
	// SHA256 is that of the content, of an unsealed blob that was read from its first
	// to its last chunk without damage; else "".
	SHA256 digest.Digest
}

// Scrub reads what is here of root from the disk, not from memory, and compares it
// with the map and the map with the root.
//
// Errors: meta.ErrNotFound, meta.ErrCorrupt when nothing of it can be checked (it has
// then been removed), Pace's, ctx's.
func (d *Disk) Scrub(ctx context.Context, root digest.CID, o ScrubOptions) (s Scrubbed, err error) {
	e := d.hold(root)
	defer d.drop(e)
	// It takes long, and does without a blob that is to go.
	d.yield(e, 1)
	defer d.yield(e, -1)
	if err = e.peek(ctx); err == nil {
		if state, _ := e.snapshot(); state == absent {
			err = meta.ErrNotFound
		} else {
			s, err = e.scrub(ctx, o)
		}
	}
	if err != nil {
		return s, scrubError(root, err)
	}
	state, _ := e.snapshot()
	s.Whole = state == complete
	if s.Whole && s.Damaged == 0 && o.From == 0 {
		d.sound.Add(root, struct{}{})
	}
	return s, nil
}

// yield counts holds of those that do without the blob, more or fewer.
func (d *Disk) yield(e *entry, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.yields += n
}

// scrub hashes every chunk that is here, beside readers and writers.
func (e *entry) scrub(ctx context.Context, o ScrubOptions) (s Scrubbed, err error) {
	_, m := e.snapshot()
	var sum hash.Hash
	if o.From == 0 && m.Seal == 0 {
		sum = sha256.New()
	}
	buf := chunkBuffers.get()
	defer chunkBuffers.put(buf)
	for i := o.From; i < m.Len(); i++ {
		if err := ctx.Err(); err != nil {
			return s, err
		}
		length := int64(m.Chunks[i].Stored)
		if o.Pace != nil {
			if err := o.Pace(ctx, length); err != nil {
				return s, err
			}
		}
		e.uncache(i)
		b, err := e.readChecked(i, buf.b[:length])
		switch {
		case errors.Is(err, meta.ErrCorrupt):
			s.Damaged++
			sum = nil
		case err != nil:
			sum = nil // not here
		default:
			e.uncache(i)
			if sum != nil {
				sum.Write(b)
			}
		}
		if err == nil || errors.Is(err, meta.ErrCorrupt) {
			s.Bytes += length
		}
		if o.Done != nil {
			o.Done(i + 1)
		}
	}
	if sum != nil {
		s.SHA256 = godigest.NewDigest(godigest.SHA256, sum)
	}
	return s, nil
}

// uncache asks the kernel to forget chunk i, so that it is read from the disk, and
// does not take the place of what clients read.
func (e *entry) uncache(i int) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.file != nil && e.m != nil {
		_ = unix.Fadvise(int(e.file.Fd()), e.m.StoredOffset(i), int64(e.m.Chunks[i].Stored), unix.FADV_DONTNEED) // a hint
	}
}

// Traffic returns how many bytes have been read and written since the start, but for
// those that a scrub read.
func (d *Disk) Traffic() int64 { return d.traffic.Load() }

// Stored returns the bytes that files take.
func (d *Disk) Stored() int64 { return d.used.Load() }
