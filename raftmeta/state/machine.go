package state

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/zeebo/blake3"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of what the machine keeps for a while. They decide the state, so they
// change only with a cluster level.
const (
	// keepRequests is how many results are kept for a repeated request id.
	keepRequests = 100_000
	// keepFeed is how many indexes back the feed goes, to a whole feedStep.
	keepFeed = 262_144
	feedStep = 4_096

	maxRequestIDBytes = 128
)

// batchEntries bounds one Pebble batch, and with it the work of taking back a
// refused command.
const batchEntries = 64

// Options of a Machine.
type Options struct {
	// Log takes Pebble's messages too. Nil is silent.
	Log *slog.Logger
	// CacheBytes is Pebble's block cache; 0 is 32 MiB.
	CacheBytes int64
	// Compare, when set, is given the state as it is at each CompareState, and closes it.
	// It must not wait; false leaves it to the machine. It is called by ApplyBatch.
	Compare func(*View) bool
	// DiskFull, when set, is called when the disk refuses a write, which is then tried
	// once more: it should make room, quickly.
	DiskFull func()
	// Damaged is told of files that are not what was written, found in the background.
	// What a call finds it returns. Nil is not told.
	Damaged func(error)
}

// Entry is a committed log entry. One without a command only moves the index.
type Entry struct {
	Index, Term uint64
	Command     []byte // of Encode
}

// Machine is the state: Apply changes it, View reads it. One goroutine applies
// and restores; all else is safe from any.
type Machine struct {
	dir     string
	options Options

	apply sync.Mutex // held by ApplyBatch, Restore, Close

	mu          sync.Mutex
	db          *database // nil when closed
	index, term uint64    // applied
	moved       chan struct{}
	revision    uint64        // the access revision
	revised     chan struct{} // closed when revision changes
}

// ErrClosed says that the machine was closed.
var ErrClosed = errors.New("metadata state is closed")

// Open opens the state in dir, which it makes when there is none. It removes what
// a crash left half done.
//
// Errors: *StorageError; meta.ErrInvalid for a state of another format.
func Open(dir string, o Options) (*Machine, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 32 << 20
	}
	m := &Machine{dir: dir, options: o, moved: make(chan struct{}), revised: make(chan struct{})}
	db, err := m.openLive()
	if err != nil {
		return nil, fmt.Errorf("open metadata in %s: %w", dir, err)
	}
	if err := m.install(db); err != nil {
		return nil, fmt.Errorf("open metadata in %s: %w", dir, errors.Join(err, db.release()))
	}
	return m, nil
}

// install makes db the state and frees the one before.
func (m *Machine) install(db *database) error {
	applied, err := stored{db}.get(keyApplied)
	if err != nil {
		return err
	}
	index, term, err := parseApplied(applied)
	if err != nil {
		return err
	}
	if err := knownLevel(db); err != nil {
		return err
	}
	revision, err := number(stored{db}, keyRevision)
	if err != nil {
		return err
	}
	m.mu.Lock()
	old := m.db
	m.db = db
	m.revise(revision)
	m.advance(index, term)
	m.mu.Unlock()
	if old != nil {
		return old.release()
	}
	return nil
}

// knownLevel refuses a state that a newer build may have written into.
//
// Errors: *UnknownLevelError, *StorageError.
func knownLevel(db *database) error {
	level, err := levelOf(stored{db})
	if err == nil && level > Level {
		err = &UnknownLevelError{Level: level}
	}
	return err
}

// revise records the access revision and wakes all that wait for it. It holds mu.
func (m *Machine) revise(revision uint64) {
	if revision != m.revision {
		m.revision = revision
		close(m.revised)
		m.revised = make(chan struct{})
	}
}

// AccessRevision returns the log index of the last applied command that took a right
// back, 0 when none did, and what is closed when there is another.
func (m *Machine) AccessRevision() (revision uint64, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.revision, m.revised
}

// advance records what is applied and wakes all that wait. It holds mu.
func (m *Machine) advance(index, term uint64) {
	m.index, m.term = index, term
	close(m.moved)
	m.moved = make(chan struct{})
}

func parseApplied(b []byte) (index, term uint64, err error) {
	switch len(b) {
	case 0:
		return 0, 0, nil
	case 16:
		return binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), nil
	}
	return 0, 0, &StorageError{Cause: fmt.Errorf("the applied index has %d bytes", len(b))}
}

// Close closes the machine. Views that are open stay readable until they close.
func (m *Machine) Close() error {
	m.apply.Lock()
	defer m.apply.Unlock()
	m.mu.Lock()
	db := m.db
	m.db = nil
	m.advance(m.index, m.term)
	m.mu.Unlock()
	if db == nil {
		return nil
	}
	return db.release()
}

// Applied returns the last applied entry.
func (m *Machine) Applied() (index, term uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.index, m.term
}

// Flush makes durable what is applied when it is called.
//
// Errors: *StorageError, ErrClosed.
func (m *Machine) Flush() error {
	m.mu.Lock()
	db := m.db
	if db == nil {
		m.mu.Unlock()
		return ErrClosed
	}
	db.acquire()
	m.mu.Unlock()
	err := db.LogData(nil, pebble.Sync)
	if err != nil {
		err = &StorageError{Cause: err}
	}
	return errors.Join(err, db.release())
}

// Wait blocks until index is applied.
//
// Errors: of ctx; ErrClosed.
func (m *Machine) Wait(ctx context.Context, index uint64) error {
	for {
		m.mu.Lock()
		done, closed, moved := m.index >= index, m.db == nil, m.moved
		m.mu.Unlock()
		switch {
		case done:
			return nil
		case closed:
			return ErrClosed
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for index %d: %w", index, context.Cause(ctx))
		}
	}
}

// Apply is ApplyBatch of one entry.
func (m *Machine) Apply(index, term uint64, command []byte) (Result, error) {
	results, err := m.ApplyBatch([]Entry{{Index: index, Term: term, Command: command}})
	if err != nil {
		return Result{}, err
	}
	return results[0], nil
}

// ApplyBatch applies entries, whose indexes rise, and returns one Result an entry.
// Data, indexes, feed and applied index of an entry are in one Pebble batch,
// which is not synced: the log is what makes them durable. Entries at or below
// the applied index were applied before, and only return their index.
//
// An error is fatal: the node must stop, for its state would no longer be that of
// the others. Errors: *UnknownTypeError, *StorageError, meta.ErrInvalid for an
// entry that is no command, ErrClosed.
func (m *Machine) ApplyBatch(entries []Entry) ([]Result, error) {
	m.apply.Lock()
	defer m.apply.Unlock()
	results := make([]Result, 0, len(entries))
	for len(entries) > 0 {
		n := min(len(entries), batchEntries)
		for i, e := range entries[:n] {
			if compares(e.Command) {
				n = i + 1
				break
			}
		}
		some, err := m.applySome(entries[:n])
		if err == nil {
			err = m.look(some)
		}
		if err != nil {
			return nil, err
		}
		results = append(results, some...)
		entries = entries[n:]
	}
	return results, nil
}

func (m *Machine) applySome(entries []Entry) ([]Result, error) {
	m.mu.Lock()
	db, applied, term := m.db, m.index, m.term
	m.mu.Unlock()
	if db == nil {
		return nil, ErrClosed
	}
	b := &batch{db: db.DB, Batch: db.NewIndexedBatch()}
	defer func() { _ = b.Close() }() // After Commit it only frees memory.

	results := make([]Result, len(entries))
	for i, e := range entries {
		results[i].Index = e.Index
		if e.Index <= applied {
			continue
		}
		if len(e.Command) > 0 {
			var err error
			if results[i], err = b.apply(e); err != nil {
				return nil, fmt.Errorf("apply entry %d: %w", e.Index, err)
			}
		}
		if err := b.trimFeed(applied, e.Index); err != nil {
			return nil, err
		}
		applied, term = e.Index, e.Term
	}
	if err := b.settleTree(); err != nil {
		return nil, err
	}
	value := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, applied), term)
	if err := b.Set(keyApplied, value, nil); err != nil {
		return nil, &StorageError{Cause: err}
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return nil, &StorageError{Cause: err}
	}
	m.mu.Lock()
	if b.revision > 0 {
		m.revise(b.revision)
	}
	m.advance(applied, term)
	m.mu.Unlock()
	return results, nil
}

// batch is a Pebble batch that can take back what a refused command wrote.
type batch struct {
	*pebble.Batch
	db       *pebble.DB
	revision uint64 // the access revision, when the batch changes it
	// audit is the end of the audit log, once it was read.
	audit *auditTip
}

// apply applies one command. The error is fatal; a refusal is in the Result.
func (b *batch) apply(e Entry) (Result, error) {
	origin, command, err := Decode(e.Command)
	if err != nil {
		return Result{}, err
	}
	r := Result{Index: e.Index}
	if command == nil {
		return r, nil
	}
	if c, ok := command.(SetLevel); ok && c.Level > Level {
		return r, &UnknownLevelError{Level: c.Level} // To refuse what others do is to diverge.
	}
	r.Type = command.Type()
	if origin.RequestID != "" {
		before, err := b.answered(origin.RequestID, r.Type)
		if err != nil {
			return r, err
		}
		if before != nil {
			return *before, nil
		}
	}
	if _, ok := command.(auditReader); ok {
		if err := b.settleTree(); err != nil {
			return r, err
		}
	}
	mark := b.Count()
	t := newTx(b.Batch, e.Index, origin)
	t.audited = leavesEntry(&origin, r.Type)
	value, err := t.run(command)
	if err = errors.Join(err, t.err); fatal(err) {
		return r, err
	}
	if err != nil {
		// Flattened, so that it reads the same from here, from another server and
		// from the record of the request.
		r.Err = meta.ToWire(err)
		if err := b.takeBack(mark); err != nil {
			return r, err
		}
	} else {
		r.Value = value
		if t.revised {
			b.revision = e.Index
		}
	}
	if err := b.writeEntry(t, command, err); err != nil {
		return r, err
	}
	if origin.RequestID != "" {
		return r, b.remember(origin.RequestID, r)
	}
	return r, nil
}

func (t *tx) run(c Command) (any, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	level, err := levelOf(t)
	if err != nil {
		return nil, err
	}
	if t.level = level; level < AuditLevel {
		t.audited = false
	}
	if err := CheckLevel(c, level); err != nil {
		return nil, err
	}
	if level >= rightsLevel {
		if err := t.actorHolds(); err != nil {
			return nil, err
		}
		if err := t.mayAct(); err != nil {
			return nil, err
		}
	}
	value, err := c.apply(t)
	if err == nil {
		err = t.remember(c, value)
	}
	if err == nil {
		t.putCounts()
		err = t.putUsages()
	}
	return value, err
}

// fatal reports whether err is of the node, not of the command.
func fatal(err error) bool {
	_, storage := errors.AsType[*StorageError](err)
	return storage
}

// takeBack drops all but the first operations of the batch.
func (b *batch) takeBack(keep uint32) error {
	if b.Count() == keep {
		return nil
	}
	kept := b.db.NewIndexedBatch()
	ops := b.Reader()
	for range keep {
		kind, k, v, _, err := ops.Next()
		if err == nil {
			switch kind {
			case pebble.InternalKeyKindSet:
				err = kept.Set(k, v, nil)
			case pebble.InternalKeyKindDelete:
				err = kept.Delete(k, nil)
			case pebble.InternalKeyKindRangeDelete:
				err = kept.DeleteRange(k, v, nil)
			default:
				err = fmt.Errorf("operation of kind %v in a batch", kind)
			}
		}
		if err != nil {
			return &StorageError{Cause: errors.Join(err, kept.Close())}
		}
	}
	if err := b.Batch.Close(); err != nil {
		return &StorageError{Cause: err}
	}
	b.Batch = kept
	return nil
}

// window counts the requests whose results are kept: First up to, without, Next.
type window struct {
	First uint64 `cbor:"1,keyasint,omitempty"`
	Next  uint64 `cbor:"2,keyasint,omitempty"`
}

// answered returns what the request id answered before, nil when it is new.
func (b *batch) answered(id string, typ uint16) (*Result, error) {
	record, err := stored{b}.get(keyRequest(id))
	if err != nil || record == nil {
		return nil, err
	}
	r, err := DecodeResult(record)
	if err != nil {
		return nil, &StorageError{Cause: fmt.Errorf("result of request %s: %w", id, err)}
	}
	if r.Type != typ {
		r.Value = nil
		r.Err = meta.ToWire(fmt.Errorf("request id %s was another command's: %w", id, meta.ErrConflict))
	}
	return &r, nil
}

// remember keeps the result of a request and forgets the oldest.
func (b *batch) remember(id string, r Result) error {
	w, err := load[window](stored{b}, keyRequests)
	if err != nil {
		return err
	}
	if w == nil {
		w = &window{}
	}
	err = errors.Join(b.Set(keyRequest(id), r.Encode(), nil), b.Set(keyWindow(w.Next), []byte(id), nil))
	w.Next++
	if w.Next-w.First > keepRequests {
		oldest, getErr := stored{b}.get(keyWindow(w.First))
		err = errors.Join(err, getErr, b.Delete(keyRequest(string(oldest)), nil), b.Delete(keyWindow(w.First), nil))
		w.First++
	}
	if err = errors.Join(err, b.Set(keyRequests, codec.Encode(w), nil)); err != nil {
		return &StorageError{Cause: err}
	}
	return nil
}

// trimFeed forgets old changes each time the index passes a whole feedStep.
func (b *batch) trimFeed(before, index uint64) error {
	floor := index / feedStep * feedStep
	if before >= floor || floor <= keepFeed {
		return nil
	}
	floor -= keepFeed
	err := errors.Join(
		b.DeleteRange(keyFeed(0), keyFeed(floor+1), nil),
		b.Set(keyFloor, binary.BigEndian.AppendUint64(nil, floor), nil))
	if err != nil {
		return &StorageError{Cause: err}
	}
	return nil
}

// Changes implements feed.Source.
//
// Errors: feed.ErrCompacted, *StorageError, ErrClosed.
func (m *Machine) Changes(after uint64, limit int) ([]feed.Change, uint64, error) {
	v, err := m.View()
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = v.Close() }() // It only frees.
	return v.changes(after, limit)
}

// Hash returns the hash of all state and the index it is of. Replicas at one
// index have one hash.
//
// Errors: *StorageError, ErrClosed; of ctx.
func (m *Machine) Hash(ctx context.Context) (index uint64, sum [32]byte, err error) {
	v, err := m.View()
	if err != nil {
		return 0, sum, err
	}
	defer func() { _ = v.Close() }() // It only frees.
	sum, err = v.Hash(ctx)
	return v.Index(), sum, err
}

// Hash is Machine.Hash of this view.
//
// Errors: *StorageError; of ctx.
func (v *View) Hash(ctx context.Context) (sum [32]byte, err error) { return v.HashSlowly(ctx, nil) }

// HashSlowly is Hash that tells read, when that is set, how many bytes were read since
// it was told last; read may wait.
func (v *View) HashSlowly(ctx context.Context, read func(bytes int)) (sum [32]byte, err error) {
	h := blake3.New()
	var size [binary.MaxVarintLen64]byte
	for p, err := range v.scan(span{}) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return sum, fmt.Errorf("hash the state: %w", err)
		}
		if read != nil {
			read(len(p.key) + len(p.value))
		}
		if string(p.key) == string(keyApplied) {
			continue
		}
		if p.key[0] == spaceRequests {
			// A result has the words of a refusal, which another build may choose better.
			p.value = nil
		}
		for _, b := range [][]byte{p.key, p.value} {
			_, _ = h.Write(size[:binary.PutUvarint(size[:], uint64(len(b)))]) // It never fails.
			_, _ = h.Write(b)
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}

// View returns the state as it is now; Close it soon, for it keeps old records
// from being compacted away.
//
// Errors: *StorageError, ErrClosed.
func (m *Machine) View() (*View, error) {
	m.mu.Lock()
	db := m.db
	if db == nil {
		m.mu.Unlock()
		return nil, ErrClosed
	}
	db.acquire()
	m.mu.Unlock()
	snapshot := db.NewSnapshot()
	v := &View{stored: stored{snapshot}, db: db}
	applied, err := v.get(keyApplied)
	if err == nil {
		v.index, v.term, err = parseApplied(applied)
	}
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}
