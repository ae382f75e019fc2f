package node

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/shoal-registry/shoal/raftmeta/state"
)

// StateHash returns the hash of the metadata of a server that does not run, and the
// index that it is of: servers at one index have one hash.
//
// Errors: of the disk; when another process has the directory open.
func StateHash(ctx context.Context, dir string) (index uint64, sum [32]byte, err error) {
	lock, err := LockDir(dir)
	if err != nil {
		return 0, sum, err
	}
	m, err := state.Open(filepath.Join(dir, "state"), state.Options{})
	if err != nil {
		return 0, sum, errors.Join(err, lock.Release())
	}
	index, sum, err = m.Hash(ctx)
	return index, sum, errors.Join(err, m.Close(), lock.Release())
}
