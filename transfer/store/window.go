package store

import (
	"container/list"
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
)

// A blob that does not fit the cache, because it is larger than that or all else there
// is pinned or in use, still passes through it: a partial blob in a file without a
// name, of which a window of chunks is here at a time. What was read makes place first.
// It never becomes complete and is gone when the last opener lets go.

const (
	// windowChunks is how many of the largest chunks a window holds, if there is room;
	// windowLeast is the fewest that are of use.
	windowChunks, windowLeast = 16, 4
	// windowBytes is kept free of other content for windows, if the cache is six times
	// as large or more.
	windowBytes = windowChunks * chunk.MaxStoredBytes
)

// window says which chunks of a passing blob are here. Guarded by the entry's bits.
type window struct {
	budget, held int64
	read         *list.List            // of int: chunks that were read, the last one in front
	places       map[int]*list.Element // in read; nil of a chunk that was not
}

// contentCap is how much of the cache other content than windows may take.
func (d *Disk) contentCap() int64 {
	limit := d.cfg.CacheBytes
	if limit < windowBytes {
		return limit // too small to keep any of it free
	}
	return limit - min(windowBytes, limit/6)
}

// pass opens a blob that was refused for want of space as a passing one.
func (e *entry) pass(ctx context.Context, m *chunk.Map) error {
	e.life.Lock()
	defer e.unlock()
	if state, _ := e.snapshot(); state != absent {
		return nil
	}
	return e.openWindow(ctx, m)
}

// openWindow makes a blob that does not fit a passing one. Caller holds life; state is
// absent.
//
// Errors: meta.ErrNoSpace when not even a few chunks fit, or the file system cannot
// free parts of a file.
func (e *entry) openWindow(ctx context.Context, m *chunk.Map) error {
	d := e.d
	if d.cfg.CacheBytes <= 0 {
		return meta.ErrNoSpace
	}
	var largest int64
	for _, c := range m.Chunks {
		largest = max(largest, onDisk(int64(c.Stored)))
	}
	var budget int64
	err := error(meta.ErrNoSpace)
	for n := int64(windowChunks); n >= windowLeast && err != nil; n /= 2 {
		budget = min(n*largest, onDisk(m.StoredBytes))
		if err = d.capped(ctx, budget, true); err == nil {
			d.windows.Add(budget)
			if err = d.room(ctx, budget); err != nil {
				d.giveWindow(budget)
			}
		}
	}
	if err != nil {
		return err
	}
	f, err := d.nameless(m.StoredBytes)
	if err != nil {
		d.giveWindow(budget)
		return err
	}
	// Handles from before the blob was removed look at it meanwhile.
	e.mu.Lock()
	e.bits.Lock()
	e.window = &window{budget: budget, read: list.New(), places: map[int]*list.Element{}}
	e.bits.Unlock()
	e.mu.Unlock()
	e.become(partial, m, f, chunk.NewBitmap(m.Len()), nil)
	d.log.Debug("a blob passes through the cache", "root", e.root.String(), "stored_bytes", m.StoredBytes, "window_bytes", budget)
	return nil
}

func (d *Disk) giveWindow(budget int64) {
	d.windows.Add(-budget)
	d.give(budget)
}

// nameless returns an empty file of some length that ends with its last opener.
func (d *Disk) nameless(length int64) (*os.File, error) {
	f, err := os.CreateTemp(d.path(uploadsDir), "*"+tempSuffix)
	if err != nil {
		return nil, diskError("create a passing blob", err)
	}
	err = unlink(f.Name())
	if err == nil {
		err = f.Truncate(length)
	}
	if err == nil && length > 0 {
		if punch(f, 0, 1) != nil {
			err = fmt.Errorf("the file system cannot free parts of a file: %w", meta.ErrNoSpace)
		}
	}
	if err != nil {
		_ = f.Close() // the first error counts
		return nil, diskError("create a passing blob", err)
	}
	return f, nil
}

func punch(f *os.File, at, length int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, length)
}

// slide makes chunk i, just written, part of the window and drops what is too much:
// chunks that were read, then those furthest on.
func (e *entry) slide(i int) {
	if !e.passing() {
		return
	}
	e.mu.Lock() // nobody reads what is dropped
	defer e.mu.Unlock()
	e.bits.Lock()
	defer e.bits.Unlock()
	w := e.window
	if w == nil || e.state != partial || !e.have.Has(i) {
		return
	}
	if _, twice := w.places[i]; twice {
		return
	}
	length := func(i int) int64 { return onDisk(int64(e.m.Chunks[i].Stored)) }
	w.places[i] = nil
	w.held += length(i)
	for w.held > w.budget {
		drop := -1
		if first := w.read.Back(); first != nil {
			drop = w.read.Remove(first).(int)
		} else {
			for k := range w.places {
				drop = max(drop, k)
			}
		}
		delete(w.places, drop)
		w.held -= length(drop)
		if e.have.Has(drop) {
			e.have.Clear(drop)
			e.missing++
		}
		_ = punch(e.file, e.m.StoredOffset(drop), int64(e.m.Chunks[drop].Stored)) // it could before
	}
}

// passed notes that chunk i was read: of a passing blob it makes place first.
func (e *entry) passed(i int) {
	e.bits.Lock()
	defer e.bits.Unlock()
	if e.window == nil {
		return
	}
	if el, here := e.window.places[i]; here && el == nil {
		e.window.places[i] = e.window.read.PushFront(i)
	}
}
