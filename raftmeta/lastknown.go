package raftmeta

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// lastKnown keeps a Mirror's roster and answers over restarts, in a small Pebble.
// It is a cache: what cannot be read is thrown away, and nobody waits for the disk.
// A goroutine of its own, which ends with close, syncs what was written soon after.
type lastKnown struct {
	mu sync.RWMutex
	db *pebble.DB // nil once closed

	written chan struct{} // holds one while something is not synced; closed by close
	synced  sync.WaitGroup
}

// syncEvery is how often what was written is synced at most: the log keeps small
// records in the process's memory until then, where even a killed process loses them.
const syncEvery = 100 * time.Millisecond

// Keys: n + node id -> meta.Node; a + question -> savedAnswer; f -> knownFormat.
const (
	knownFormat = "shoal mirror 1"
	knownNode   = 'n'
	knownAnswer = 'a'
)

var knownFormatKey = []byte{'f'}

// savedAnswer is an answer on disk.
type savedAnswer struct {
	Value   []byte       `cbor:"1,keyasint,omitempty"`
	AsOf    meta.AsOf    `cbor:"2,keyasint,omitempty"`
	Came    meta.Time    `cbor:"3,keyasint,omitempty"`
	Repo    meta.RepoRef `cbor:"4,keyasint,omitempty"`
	Package string       `cbor:"5,keyasint,omitempty"`
	Name    string       `cbor:"6,keyasint,omitempty"`
}

func openLastKnown(dir string) (*lastKnown, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	k, err := tryLastKnown(dir)
	if err == nil {
		return k, nil
	}
	if removeErr := os.RemoveAll(dir); removeErr != nil {
		return nil, errors.Join(err, removeErr)
	}
	return tryLastKnown(dir)
}

func tryLastKnown(dir string) (*lastKnown, error) {
	db, err := pebble.Open(dir, &pebble.Options{
		FormatMajorVersion: pebble.FormatTableFormatV6,
		CacheSize:          1 << 20,
		MemTableSize:       1 << 20,
		Logger:             silentLog{},
	})
	if err != nil {
		return nil, err
	}
	format, closer, err := db.Get(knownFormatKey)
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		err = db.Set(knownFormatKey, []byte(knownFormat), pebble.NoSync)
	case err == nil && string(format) != knownFormat:
		err = errors.Join(fmt.Errorf("format %q", format), closer.Close())
	case err == nil:
		err = closer.Close()
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	k := &lastKnown{db: db, written: make(chan struct{}, 1)}
	k.synced.Go(k.sync)
	return k, nil
}

// sync makes what was written durable until the channel is closed.
func (k *lastKnown) sync() {
	for range k.written {
		// An error shows at the next write, too, which reports it.
		_ = k.db.LogData(nil, pebble.Sync)
		time.Sleep(syncEvery)
	}
}

// close closes the files; what comes later is not kept.
func (k *lastKnown) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.db == nil {
		return nil
	}
	close(k.written)
	k.synced.Wait()
	err := k.db.Close()
	k.db = nil
	return err
}

// load hands out all answers and returns the nodes.
func (k *lastKnown) load(each func(key string, a *answer)) (nodes []meta.Node, err error) {
	it, err := k.db.NewIter(nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		switch it.Key()[0] {
		case knownNode:
			var n meta.Node
			if codec.Unmarshal(it.Value(), &n) == nil {
				nodes = append(nodes, n)
			}
		case knownAnswer:
			var s savedAnswer
			if codec.Unmarshal(it.Value(), &s) != nil {
				continue
			}
			each(string(it.Key()[1:]), &answer{
				value: s.Value, asOf: s.AsOf, came: s.Came.Std(), saved: s.Came.Std(),
				about: subject{scope: scope{Repo: s.Repo, Package: s.Package}, name: s.Name},
			})
		}
	}
	return nodes, nil
}

func (k *lastKnown) put(key string, a *answer) error {
	return k.set(knownAnswer, key, codec.Encode(savedAnswer{
		Value: a.value, AsOf: a.asOf, Came: meta.TimeOf(a.came),
		Repo: a.about.Repo, Package: a.about.Package, Name: a.about.name,
	}))
}

func (k *lastKnown) drop(key string) error { return k.set(knownAnswer, key, nil) }

func (k *lastKnown) node(c RosterChange) error {
	if c.Removed {
		return k.set(knownNode, string(c.Node.ID), nil)
	}
	return k.set(knownNode, string(c.Node.ID), codec.Encode(c.Node))
}

// set stores a record, or with nil drops it.
func (k *lastKnown) set(space byte, name string, value []byte) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.db == nil {
		return nil
	}
	key := append([]byte{space}, name...)
	var err error
	if value == nil {
		err = k.db.Delete(key, pebble.NoSync)
	} else {
		err = k.db.Set(key, value, pebble.NoSync)
	}
	select {
	case k.written <- struct{}{}:
	default:
	}
	return err
}

// silentLog drops Pebble's messages, but for the last.
type silentLog struct{}

func (silentLog) Infof(string, ...any)  {}
func (silentLog) Errorf(string, ...any) {}

// Fatalf ends the process, as Pebble demands.
func (silentLog) Fatalf(format string, args ...any) {
	panic("metadata mirror: " + fmt.Sprintf(format, args...))
}
