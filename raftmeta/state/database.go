package state

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// formatName names the keys and records; a build that changes them changes it.
const formatName = "shoal state 1"

// In its directory the machine keeps one live database, db-N, named by the file
// LIVE. A restore builds db-N+1 beside it and renames a new LIVE into place, so
// that a crash at any moment leaves one whole state or the other.
const (
	liveFile         = "LIVE"
	databasePrefix   = "db-"
	checkpointPrefix = "checkpoint-"
)

// database is an open Pebble that closes with its last user.
type database struct {
	*pebble.DB
	dir  string
	refs atomic.Int64
	// gone is set when another database took its place: closing removes it.
	gone atomic.Bool
}

func (d *database) acquire() { d.refs.Add(1) }

func (d *database) release() error {
	if d.refs.Add(-1) > 0 {
		return nil
	}
	if err := d.Close(); err != nil {
		return &StorageError{Cause: err}
	}
	if d.gone.Load() {
		if err := os.RemoveAll(d.dir); err != nil {
			return &StorageError{Cause: err}
		}
	}
	return nil
}

// openLive opens the live database, or makes the first, and removes all others.
func (m *Machine) openLive() (*database, error) {
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, &StorageError{Cause: err}
	}
	live, err := os.ReadFile(filepath.Join(m.dir, liveFile))
	if errors.Is(err, os.ErrNotExist) {
		return m.openFirst()
	}
	if err != nil {
		return nil, &StorageError{Cause: err}
	}
	name := strings.TrimSpace(string(live))
	if _, err := generation(name); err != nil {
		return nil, &StorageError{Cause: fmt.Errorf("%s names %q: %w", liveFile, name, err)}
	}
	others, err := m.others(name)
	if err != nil {
		return nil, &StorageError{Cause: err}
	}
	for _, path := range others {
		if err := os.RemoveAll(path); err != nil {
			return nil, &StorageError{Cause: err}
		}
	}
	return m.openDatabase(filepath.Join(m.dir, name), false)
}

// openFirst makes the first database. One that a crash left before it was live
// holds nothing, and is used.
func (m *Machine) openFirst() (*database, error) {
	const name = databasePrefix + "1"
	others, err := m.others(name)
	if err == nil && len(others) > 0 {
		err = fmt.Errorf("%s is missing and there are %d databases; write into it the name of the newest", liveFile, len(others))
	}
	if err != nil {
		return nil, &StorageError{Cause: err}
	}
	db, err := m.openDatabase(filepath.Join(m.dir, name), true)
	if err != nil {
		return nil, err
	}
	if err := m.setLive(name); err != nil {
		return nil, errors.Join(err, db.release())
	}
	return db, nil
}

func generation(name string) (uint64, error) {
	return strconv.ParseUint(strings.TrimPrefix(name, databasePrefix), 10, 64)
}

// others returns the paths of databases and checkpoints that are not live.
func (m *Machine) others(live string) ([]string, error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		name := e.Name()
		ours := strings.HasPrefix(name, databasePrefix) || strings.HasPrefix(name, checkpointPrefix)
		if ours && name != live {
			paths = append(paths, filepath.Join(m.dir, name))
		}
	}
	return paths, nil
}

func (m *Machine) openDatabase(dir string, create bool) (*database, error) {
	options := &pebble.Options{
		FormatMajorVersion: pebble.FormatTableFormatV6,
		CacheSize:          m.options.CacheBytes,
		MemTableSize:       8 << 20,
		ErrorIfNotExists:   !create,
		Logger:             pebbleLog{m.options.Log},
		EventListener:      m.listener(),
	}
	if m.options.DiskFull != nil {
		options.FS = vfs.OnDiskFull(vfs.Default, m.options.DiskFull)
	}
	for i := range options.Levels {
		options.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	pdb, err := pebble.Open(dir, options)
	if err != nil {
		return nil, &StorageError{Cause: err}
	}
	db := &database{DB: pdb, dir: dir}
	db.acquire()
	if create {
		if err := db.Set(keyFormat, []byte(formatName), pebble.Sync); err != nil {
			return nil, errors.Join(&StorageError{Cause: err}, db.release())
		}
	}
	format, err := stored{db}.get(keyFormat)
	if err == nil && string(format) != formatName {
		err = fmt.Errorf("the metadata has format %q, this build reads %q: %w", format, formatName, meta.ErrInvalid)
	}
	if err != nil {
		return nil, errors.Join(err, db.release())
	}
	return db, nil
}

// setLive makes the database of that name the live one, in one step that lasts.
func (m *Machine) setLive(name string) error {
	path := filepath.Join(m.dir, liveFile)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return &StorageError{Cause: err}
	}
	_, err = f.WriteString(name + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = syncDir(m.dir)
	}
	if err != nil {
		return &StorageError{Cause: err}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// pebbleLog turns Pebble's messages into records.
type pebbleLog struct{ log *slog.Logger }

func (l pebbleLog) Infof(format string, args ...any) {
	l.log.Debug("metadata storage", "message", fmt.Sprintf(format, args...))
}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.log.Error("metadata storage", "message", fmt.Sprintf(format, args...))
}

// Fatalf ends the process, as Pebble demands: it is called when going on would
// lose data.
func (l pebbleLog) Fatalf(format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	l.log.Error("metadata storage failed", "message", message)
	panic("metadata storage: " + message)
}
