package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Suffixes of the files beside a blob, see transfer/DESIGN.md. A complete blob is
// the bare hex root.
const (
	mapSuffix   = ".map"
	partSuffix  = ".part"
	haveSuffix  = ".have"
	stateSuffix = ".state"
	tempSuffix  = ".tmp"
)

// files are the paths of one blob.
type files struct{ dir, whole, part, have, chunkMap string }

func (d *Disk) files(root digest.CID) files {
	name := root.Hex()
	dir := d.path(blobsDir, name[:2])
	whole := filepath.Join(dir, name)
	return files{dir: dir, whole: whole, part: whole + partSuffix, have: whole + haveSuffix, chunkMap: whole + mapSuffix}
}

// shard lists the blobs of one directory, ascending.
func (d *Disk) shard(n int) ([]Info, error) {
	dir := d.path(blobsDir, fmt.Sprintf("%02x", n))
	names, err := os.ReadDir(dir) // sorted, so a whole file comes before its .part
	if err != nil {
		return nil, err
	}
	var out []Info
	for _, n := range names {
		name, partial := strings.CutSuffix(n.Name(), partSuffix)
		root, err := digest.ParseHex(name)
		if err != nil || len(out) > 0 && out[len(out)-1].Root == root {
			continue
		}
		stat, err := n.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, Info{Root: root, StoredBytes: stat.Size(), Complete: !partial, LastUse: stat.ModTime()})
	}
	return slices.Clip(out), nil
}

// diskError says what failed and gives a full disk its kind.
func diskError(act string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%s: %w: %w", act, meta.ErrNoSpace, err)
	}
	return fmt.Errorf("%s: %w", act, err)
}

// writeAtomic makes b the content of path: all or nothing.
func writeAtomic(path string, b []byte, durable bool) error {
	f, err := os.OpenFile(path+tempSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return diskError("write "+filepath.Base(path), err)
	}
	_, err = f.Write(b)
	if err == nil && durable {
		err = fdatasync(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(path+tempSuffix, path)
	}
	if err != nil {
		_ = os.Remove(path + tempSuffix)
		return diskError("write "+filepath.Base(path), err)
	}
	return nil
}

// unlink removes path if it is there.
func unlink(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// fdatasync puts f's bytes and its length on the disk.
func fdatasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func fsyncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// preallocate gives f its length and, where the file system can, its blocks, so that
// a full disk shows here and the file is contiguous.
func preallocate(f *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return f.Truncate(size)
		default:
			return err
		}
	}
}

// fit makes a file as long as it has to be.
func fit(f *os.File, size int64) error {
	stat, err := f.Stat()
	if err == nil && stat.Size() > size {
		return f.Truncate(size)
	}
	return errors.Join(err, preallocate(f, size))
}

// startWriteback asks the kernel to write a range now, so that the fsync at the end
// of a large upload finds little left to do. It is only a hint.
func startWriteback(f *os.File, from, to int64) {
	_ = unix.SyncFileRange(int(f.Fd()), from, to-from, unix.SYNC_FILE_RANGE_WRITE)
}

// dirSyncs coalesces concurrent fsyncs of one directory: while one runs, all that
// arrive wait for the next, which one of them does for all.
type dirSyncs struct {
	mu   sync.Mutex
	dirs map[string]*dirSync
}

type dirSync struct {
	users   int
	running sync.Mutex
	next    *syncBatch
}

type syncBatch struct {
	done chan struct{}
	err  error
}

// sync returns after an fsync of dir that began after the call.
func (s *dirSyncs) sync(dir string) error {
	s.mu.Lock()
	if s.dirs == nil {
		s.dirs = map[string]*dirSync{}
	}
	ds := s.dirs[dir]
	if ds == nil {
		ds = &dirSync{}
		s.dirs[dir] = ds
	}
	ds.users++
	batch := ds.next
	leads := batch == nil
	if leads {
		batch = &syncBatch{done: make(chan struct{})}
		ds.next = batch
	}
	s.mu.Unlock()

	if leads {
		ds.running.Lock()
		s.mu.Lock()
		ds.next = nil // who comes now may have changed the directory after our fsync
		s.mu.Unlock()
		batch.err = fsyncDir(dir)
		ds.running.Unlock()
		close(batch.done)
	} else {
		<-batch.done
	}

	s.mu.Lock()
	if ds.users--; ds.users == 0 {
		delete(s.dirs, dir)
	}
	s.mu.Unlock()
	return batch.err
}
