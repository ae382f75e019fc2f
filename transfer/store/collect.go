package store

import (
	"context"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Collect removes a blob that the metadata has given up, complete or partial, and
// returns how many bytes its files took; of an absent one 0. still is asked, while
// nobody can open the blob or take it in, whether it is to be removed, and must not
// use the store.
//
// Errors: meta.ErrConflict when still says no, and while the blob is pinned, in use, or
// was taken in by an upload whose handle is open; of still.
func (d *Disk) Collect(_ context.Context, root digest.CID, still func() (bool, error)) (freed int64, err error) {
	e := d.hold(root)
	defer d.drop(e)
	if !e.seize() {
		return 0, fmt.Errorf("collect blob %s: it is in use: %w", root, meta.ErrConflict)
	}
	defer e.unlock()
	yes, err := still()
	if err != nil {
		return 0, fmt.Errorf("collect blob %s: %w", root, err)
	}
	if !yes {
		return 0, fmt.Errorf("collect blob %s: it is wanted again: %w", root, meta.ErrConflict)
	}
	fl := d.files(root)
	freed = footprint(fl)
	if err := e.removeFiles(fl); err != nil {
		return 0, fmt.Errorf("collect blob %s: %w", root, err)
	}
	return freed, nil
}

// seize takes the lock of a blob that nobody uses, except those who do without it, and
// that is not pinned; unlock gives it back. Who opens it meanwhile waits.
func (e *entry) seize() bool {
	// Who has the lock uses the blob, and may be waiting for this very removal.
	if !e.life.TryLock() {
		return false
	}
	e.d.mu.Lock()
	alone := e.refs-1 == e.yields
	e.d.mu.Unlock()
	if !alone || e.d.pins.has(e.root) {
		e.unlock()
		return false
	}
	return true
}
