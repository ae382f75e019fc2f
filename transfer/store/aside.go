package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Damaged bytes are set aside for inspection: a chunk as a file of its own, a blob of
// which nothing can be checked whole. Only stores without a cap do it, and never from
// the reserve of the disk; what does not fit takes the place of the oldest.
const (
	asideDir      = "damaged"
	asideMost     = 256 << 20 // bytes
	asideFileMost = 1024
	asideKeep     = 7 * 24 * time.Hour
)

// aside knows the files of the directory.
type aside struct {
	mu     sync.Mutex
	loaded bool
	files  []asideFile // oldest first
	bytes  int64
}

type asideFile struct {
	name  string
	bytes int64
	at    time.Time
}

// Aside returns how many damaged pieces are kept for inspection, and what they take.
func (d *Disk) Aside() (pieces int, bytes int64) {
	d.aside.mu.Lock()
	defer d.aside.mu.Unlock()
	d.loadAside()
	return len(d.aside.files), d.aside.bytes
}

// loadAside lists the directory, once. Caller holds aside.mu.
func (d *Disk) loadAside() {
	a := &d.aside
	if a.loaded {
		return
	}
	a.loaded = true
	entries, err := os.ReadDir(d.path(asideDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("cannot list what was set aside", "error", err)
	}
	for _, e := range entries {
		if stat, err := e.Info(); err == nil && !e.IsDir() {
			a.files = append(a.files, asideFile{e.Name(), stat.Size(), stat.ModTime()})
			a.bytes += stat.Size()
		}
	}
	slices.SortFunc(a.files, func(x, y asideFile) int { return cmp.Or(x.at.Compare(y.at), cmp.Compare(x.name, y.name)) })
}

// makeAside makes room for a piece and returns its path, "" when it is not to be kept.
// Caller holds aside.mu.
func (d *Disk) makeAside(root digest.CID, what string, bytes int64) string {
	if d.cfg.CacheBytes > 0 || bytes > asideMost {
		return ""
	}
	d.loadAside()
	a := &d.aside
	for len(a.files) > 0 && (len(a.files) >= asideFileMost || a.bytes+bytes > asideMost) {
		if !d.dropAside(0) {
			return ""
		}
	}
	if err := os.Mkdir(d.path(asideDir), 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return ""
	}
	return d.path(asideDir, fmt.Sprintf("%s-%s-%d", root.Hex(), what, time.Now().UnixNano()))
}

// dropAside removes the i-th piece. Caller holds aside.mu.
func (d *Disk) dropAside(i int) bool {
	a := &d.aside
	f := a.files[i]
	if err := unlink(d.path(asideDir, f.name)); err != nil {
		d.log.Warn("cannot remove what was set aside", "file", f.name, "error", err)
		return false
	}
	a.files = slices.Delete(a.files, i, i+1)
	a.bytes -= f.bytes
	return true
}

// keepAside keeps the damaged bytes of chunk i. That it cannot is no matter.
func (d *Disk) keepAside(root digest.CID, i int, b []byte) {
	// Without the lock: it may find the directory gone, and make all anew.
	if d.room(context.Background(), int64(len(b))) != nil {
		return
	}
	d.aside.mu.Lock()
	defer d.aside.mu.Unlock()
	path := d.makeAside(root, fmt.Sprint(i), int64(len(b)))
	if path == "" {
		return
	}
	if err := os.WriteFile(path, b, 0o640); err != nil {
		d.log.Debug("a damaged chunk is not kept", "root", root.String(), "chunk", i, "error", err)
		_ = os.Remove(path)
		return
	}
	d.aside.files = append(d.aside.files, asideFile{filepath.Base(path), int64(len(b)), time.Now()})
	d.aside.bytes += int64(len(b))
}

// moveAside takes a file of which nothing can be checked out of the way.
//
// Errors: when it is still there; it is then to be removed.
func (d *Disk) moveAside(root digest.CID, file string) error {
	stat, err := os.Stat(file)
	if err != nil {
		return err
	}
	d.aside.mu.Lock()
	defer d.aside.mu.Unlock()
	path := d.makeAside(root, "file", stat.Size())
	if path == "" {
		return fmt.Errorf("%s is not kept: %w", filepath.Base(file), meta.ErrNoSpace)
	}
	if err := os.Rename(file, path); err != nil {
		return err
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // it expires by this
	d.aside.files = append(d.aside.files, asideFile{filepath.Base(path), stat.Size(), now})
	d.aside.bytes += stat.Size()
	return nil
}

// removeAside forgets what was set aside of a root: its bytes are to be nowhere.
func (d *Disk) removeAside(root digest.CID) {
	d.aside.mu.Lock()
	defer d.aside.mu.Unlock()
	d.loadAside()
	prefix := root.Hex() + "-"
	for i := 0; i < len(d.aside.files); {
		if !strings.HasPrefix(d.aside.files[i].name, prefix) || !d.dropAside(i) {
			i++
		}
	}
}

// expireAside removes what was set aside long ago.
func (d *Disk) expireAside(now time.Time) {
	d.aside.mu.Lock()
	defer d.aside.mu.Unlock()
	d.loadAside()
	for len(d.aside.files) > 0 && now.Sub(d.aside.files[0].at) > asideKeep && d.dropAside(0) {
	}
}
