package state

import (
	"errors"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Damaged reports whether err says that the machine's files are not what was written.
func Damaged(err error) bool {
	storage, ok := errors.AsType[*StorageError](err)
	return ok && (pebble.IsCorruptionError(storage.Cause) || errors.Is(storage.Cause, os.ErrNotExist) ||
		errors.Is(storage.Cause, io.ErrUnexpectedEOF) || errors.Is(storage.Cause, meta.ErrCorrupt))
}

// listener tells of damage that Pebble finds by itself, while it compacts.
func (m *Machine) listener() *pebble.EventListener {
	return &pebble.EventListener{
		// Its own answer is to end the process; the call that found it returns the error.
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			m.options.Log.Error("metadata storage is damaged", "file", info.Path, "error", info.Details)
		},
		BackgroundError: func(err error) {
			if pebble.IsCorruptionError(err) && m.options.Damaged != nil {
				m.options.Damaged(&StorageError{Cause: err})
			}
		},
	}
}
