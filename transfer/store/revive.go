package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// A store whose directory was removed under it goes on: what is open is read to its
// end, the directories are made again before anything is written, and what is no
// longer there is fetched again like anything else that is not here.

// Present looks whether the directories are there, makes those again that are not, and
// returns how often that was needed since the store was opened: who watches this
// number knows when files may have gone with them.
//
// Errors: when they cannot be made.
func (d *Disk) Present(ctx context.Context) (lost int64, err error) {
	if !d.there() {
		if err := d.rebuild(); err != nil {
			return d.lives.Load(), fmt.Errorf("make the store's directories again: %w", err)
		}
	}
	lost = d.lives.Load()
	if d.looked.Swap(lost) != lost {
		return lost, d.recheck(ctx)
	}
	return lost, nil
}

// there says whether all directories and the lock are as they were made.
func (d *Disk) there() bool {
	open, err := d.lockFile().Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(d.path(lockFile))
	if err != nil || !os.SameFile(open, now) || !exists(d.path(uploadsDir)) {
		return false
	}
	for i := range 256 {
		if !exists(d.path(blobsDir, fmt.Sprintf("%02x", i))) {
			return false
		}
	}
	return true
}

func (d *Disk) lockFile() *os.File {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lock
}

// rebuild makes what is missing of the directories, and the files that are not blobs.
func (d *Disk) rebuild() error {
	d.rebuilding.Lock()
	defer d.rebuilding.Unlock()
	if d.there() {
		return nil
	}
	d.log.Error("the directory of the blobs, or a part of it, was removed; it is made again, and what is missing fetched again", "directory", d.cfg.Dir)
	if err := d.makeDirs(); err != nil {
		return err
	}
	open, err := d.lockFile().Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(d.path(lockFile)); err != nil || !os.SameFile(open, now) {
		f, err := takeLock(d.path(lockFile))
		if err != nil {
			return err
		}
		d.mu.Lock()
		old := d.lock
		d.lock = f
		d.mu.Unlock()
		_ = old.Close() // of a file that is gone
	}
	if err := d.writeMark(d.mark); err != nil {
		return err
	}
	if err := d.pins.again(); err != nil {
		return err
	}
	// What files take is counted anew.
	d.counting.Lock()
	d.counted.Store(false)
	clear(d.shardsCounted)
	_, uploads, err := d.countUploads()
	if err != nil {
		d.log.Debug("what uploads take is not known", "error", err)
	}
	d.used.Store(uploads)
	d.counting.Unlock()
	d.aside.mu.Lock()
	d.aside.files, d.aside.bytes, d.aside.loaded = nil, 0, false
	d.aside.mu.Unlock()
	d.lives.Add(1)
	if err := d.countAll(context.Background()); err != nil {
		d.log.Debug("what files take is not known yet", "error", err)
	}
	return nil
}

// makeDirs makes the directories that are not there.
func (d *Disk) makeDirs() error {
	for _, dir := range []string{d.cfg.Dir, d.path(blobsDir), d.path(uploadsDir)} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
	}
	for i := range 256 {
		if err := os.Mkdir(d.path(blobsDir, fmt.Sprintf("%02x", i)), 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
			return diskError("make shards", err)
		}
	}
	if d.cfg.Fsync {
		for _, dir := range []string{d.cfg.Dir, d.path(blobsDir)} {
			if err := fsyncDir(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeLock makes this process the one that has the directory.
//
// Errors: meta.ErrUnavailable when another has.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another process has it open: %w", meta.ErrUnavailable), f.Close())
	}
	return f, nil
}

// recheck looks at every blob whose files are open.
func (d *Disk) recheck(ctx context.Context) error {
	d.mu.Lock()
	loaded := make([]*entry, 0, len(d.entries))
	for _, e := range d.entries {
		loaded = append(loaded, e)
	}
	d.mu.Unlock()
	for _, e := range loaded {
		if state, _ := e.snapshot(); state == unloaded || state == absent {
			continue
		}
		if _, err := d.Look(ctx, e.root); err != nil {
			return err
		}
	}
	return nil
}
