package state

import (
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// tx is one command being applied. It reads the state with all commands before
// it and its own writes. When the command is refused, the machine takes its
// writes back out of the batch.
type tx struct {
	stored
	batch  *pebble.Batch // indexed
	index  uint64
	origin Origin
	// now is the leader's clock, the only time that a command may use.
	now meta.Time
	// level is the cluster's before the command, 0 when it was not read.
	level uint32
	// audited says that the command leaves an entry in the audit log, touched what it
	// will show besides the command.
	audited bool
	touched touched

	err      error // the first failed write: of memory, so as good as never
	changes  uint32
	revised  bool   // the command took a right back
	acts     uint32 // that were recorded (acts.go)
	demanded []meta.RegionName
	regions  map[meta.RegionName]*regionRecord
	// totals and lanes are counts of demands that this command has changed, by key.
	totals map[string]*demandTotal
	lanes  map[string]*laneCount
	// usages and repoUsages are what this command has changed of what is held.
	usages     map[meta.TenantName]*usageRecord
	repoUsages map[meta.RepoRef]*heldCount
}

func newTx(batch *pebble.Batch, index uint64, o Origin) *tx {
	return &tx{stored: stored{batch}, batch: batch, index: index, origin: o, now: o.Time}
}

func (t *tx) set(k key, v []byte) {
	t.touch(k, v)
	if err := t.batch.Set(k, v, nil); err != nil && t.err == nil {
		t.err = &StorageError{Cause: err}
	}
}

func (t *tx) del(k key) {
	t.touch(k, nil)
	if err := t.batch.Delete(k, nil); err != nil && t.err == nil {
		t.err = &StorageError{Cause: err}
	}
}

// delAll deletes all keys that begin with prefix.
func (t *tx) delAll(prefix key) {
	if err := t.batch.DeleteRange(prefix, prefix.after(), nil); err != nil && t.err == nil {
		t.err = &StorageError{Cause: err}
	}
}

// put stores the record v under k.
func (t *tx) put(k key, v any) { t.set(k, codec.Encode(v)) }

// mark stores an index entry, of which the key is all.
func (t *tx) mark(k key) { t.set(k, nil) }

// emit tells the followers of a change.
func (t *tx) emit(c feed.Change) {
	c.Index, c.Seq = t.index, t.changes
	t.changes++
	t.put(keyFeed(c.Index).u32(c.Seq), c)
	if c.Package != "" && (c.Kind == feed.KindVersion || c.Kind == feed.KindRespond) {
		if err := t.versionChanged(c.Repo); err != nil && t.err == nil {
			t.err = err
		}
	}
}

// region returns a region as it is in this command, nil when there is none.
func (t *tx) region(name meta.RegionName) (*regionRecord, error) {
	if r, ok := t.regions[name]; ok {
		return r, nil
	}
	r, err := load[regionRecord](t, keyRegion(name))
	if err == nil {
		if t.regions == nil {
			t.regions = make(map[meta.RegionName]*regionRecord)
		}
		t.regions[name] = r
	}
	return r, err
}

func (t *tx) putRegion(r *regionRecord) {
	t.put(keyRegion(r.Region.Name), r)
	delete(t.regions, r.Region.Name)
	t.emit(feed.Change{Kind: feed.KindRegion, Region: r.Region.Name})
}

// delRegion removes a region that has no servers.
func (t *tx) delRegion(name meta.RegionName) {
	t.del(keyRegion(name))
	delete(t.regions, name)
	t.emit(feed.Change{Kind: feed.KindRegion, Region: name, Deleted: true})
}

// needRegion refuses a region that nobody has made.
func (t *tx) needRegion(name meta.RegionName) error {
	r, err := t.region(name)
	if err == nil && r == nil {
		err = fmt.Errorf("region %s is unknown, `shoal region list` names those there are: %w", name, meta.ErrInvalid)
	}
	return err
}

// needLastingRegion refuses also a region that is being removed.
func (t *tx) needLastingRegion(name meta.RegionName) error {
	if err := t.needRegion(name); err != nil {
		return err
	}
	if r, err := t.region(name); err != nil || r.Region.Leaving == 0 {
		return err
	}
	return fmt.Errorf("region %s is being removed, choose another: %w", name, meta.ErrConflict)
}

// levelOf reads the cluster level; 0 before Bootstrap. What commands of older levels
// do differently from a newer level on asks for it.
func levelOf(r reader) (uint32, error) {
	n, err := number(r, keyLevel)
	return uint32(n), err
}

// number reads a number; 0 when there is none.
func number(r reader, k key) (uint64, error) {
	b, err := r.get(k)
	switch {
	case err != nil || b == nil:
		return 0, err
	case len(b) < 8:
		return 0, &StorageError{Cause: fmt.Errorf("key %x holds %d bytes, a number has 8", k, len(b))}
	}
	return binary.BigEndian.Uint64(b), nil
}

func (t *tx) setNumber(k key, n uint64) { t.set(k, binary.BigEndian.AppendUint64(nil, n)) }
