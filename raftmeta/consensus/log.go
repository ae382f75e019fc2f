package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// guardedLog is raft-wal with two guards: a CRC-32C in front of each entry's data,
// checked whenever the entry is read, and a watchdog on every write. raft-wal
// itself checks its commit frames only on recovery of the last segment. (Its own
// Codec hook is not used: v0.4.2 writes the built-in codec's id into segments, so
// a log with another codec does not open again.)
type guardedLog struct {
	wal   entryStore
	limit time.Duration
	// stalled is told of a write beyond limit, corrupt of an entry that is not what
	// was written.
	stalled, corrupt func(error)
	// covered is the index up to which a snapshot has everything; nil is 0. It is only
	// asked when an entry is damaged.
	covered func() uint64
	room    func() Room // nil: not asked
	m       *metrics
}

// entryStore is raft-wal, or a test's.
type entryStore interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

var (
	_ raft.LogStore          = (*guardedLog)(nil)
	_ raft.MonotonicLogStore = (*guardedLog)(nil)
	_ raft.StableStore       = (*guardedLog)(nil)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const crcBytes = 4

// entrySum covers all that Raft's safety rests on; AppendedAt is only information.
func entrySum(l *raft.Log, data []byte) uint32 {
	var head [25]byte
	binary.LittleEndian.PutUint64(head[0:], l.Index)
	binary.LittleEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	binary.LittleEndian.PutUint64(head[17:], uint64(len(data)))
	sum := crc32.Update(0, castagnoli, head[:])
	sum = crc32.Update(sum, castagnoli, data)
	return crc32.Update(sum, castagnoli, l.Extensions)
}

// full refuses a write that the disk might refuse in its middle. Raft takes the
// refusal for a follower that lags, or a leader that steps down.
//
// Errors: meta.ErrNoSpace.
func (g *guardedLog) full() error {
	if g.room == nil || g.room() != RoomFull {
		return nil
	}
	return fmt.Errorf("the disk of the raft log is full: %w", meta.ErrNoSpace)
}

// watch calls fatal when the write that it guards takes longer than the limit. The
// hung write still holds Raft's main loop, which goes on to send heartbeats: only
// the end of the process lets another server lead.
func (g *guardedLog) watch(act string) (stop func() bool) {
	return time.AfterFunc(g.limit, func() {
		g.m.stalls.Inc()
		g.stalled(fmt.Errorf("the raft log did not %s within %v, its disk hangs: %w", act, g.limit, meta.ErrUnavailable))
	}).Stop
}

// GetLog implements raft.LogStore. A damaged entry that the last snapshot covers is as
// if it were no longer there: this server has long applied it, and a follower that asks
// for it gets a snapshot instead. Ending for it would cost a vote, just when a follower
// that has lost everything needs the others.
//
// Errors: raft.ErrLogNotFound; meta.ErrCorrupt, after corrupt was told.
func (g *guardedLog) GetLog(index uint64, l *raft.Log) error {
	err := g.read(index, l)
	if err == nil || errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, wal.ErrClosed) {
		return err
	}
	g.m.corrupt.Inc()
	if g.covered != nil && index <= g.covered() {
		return raft.ErrLogNotFound
	}
	err = fmt.Errorf("raft log entry %d: %w: %w", index, err, meta.ErrCorrupt)
	g.corrupt(err)
	return err
}

// read reads an entry, checks it and takes its checksum off.
func (g *guardedLog) read(index uint64, l *raft.Log) (err error) {
	defer func() { // raft-wal's decoder indexes by what it reads
		if p := recover(); p != nil {
			err = fmt.Errorf("cannot be decoded: %v", p)
		}
	}()
	if err := g.wal.GetLog(index, l); err != nil {
		return err
	}
	if l.Index != index || len(l.Data) < crcBytes {
		return errors.New("is another one")
	}
	sum, data := binary.LittleEndian.Uint32(l.Data), l.Data[crcBytes:]
	if sum != entrySum(l, data) {
		return errors.New("fails its checksum")
	}
	if l.Data = data; len(data) == 0 {
		l.Data = nil
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (g *guardedLog) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore: durable when it returns.
//
// Errors: meta.ErrNoSpace, with nothing written. Any other calls Fatal: what of the
// entries is on the disk is not known until the log is opened again.
func (g *guardedLog) StoreLogs(logs []*raft.Log) error {
	size := 0
	for _, l := range logs {
		size += crcBytes + len(l.Data)
	}
	buf := make([]byte, 0, size)
	sealed := make([]raft.Log, len(logs))
	ptrs := make([]*raft.Log, len(logs))
	for i, l := range logs {
		from := len(buf)
		buf = binary.LittleEndian.AppendUint32(buf, entrySum(l, l.Data))
		buf = append(buf, l.Data...)
		sealed[i] = *l
		sealed[i].Data = buf[from:len(buf):len(buf)]
		ptrs[i] = &sealed[i]
	}
	defer g.watch("store entries")()
	if err := g.full(); err != nil {
		return err
	}
	start := time.Now()
	err := g.wal.StoreLogs(ptrs)
	g.m.logWrite.Observe(time.Since(start).Seconds())
	if err != nil && !errors.Is(err, wal.ErrClosed) {
		g.stalled(fmt.Errorf("the raft log did not store entries: %w", err))
	}
	return err
}

// DeleteRange implements raft.LogStore.
//
// Errors: meta.ErrNoSpace when its end was to be replaced and there is no room for
// what replaces it: Raft would go on believing in the end that it had.
func (g *guardedLog) DeleteRange(first, last uint64) error {
	defer g.watch("delete entries")()
	if end, err := g.wal.LastIndex(); err == nil && last >= end {
		if begin, err := g.wal.FirstIndex(); err == nil && first > begin {
			if err := g.full(); err != nil {
				return err
			}
		}
	}
	return g.wal.DeleteRange(first, last)
}

// FirstIndex and LastIndex implement raft.LogStore, IsMonotonic
// raft.MonotonicLogStore, the others raft.StableStore.
func (g *guardedLog) FirstIndex() (uint64, error) { return g.wal.FirstIndex() }

// LastIndex implements raft.LogStore.
func (g *guardedLog) LastIndex() (uint64, error) { return g.wal.LastIndex() }

// IsMonotonic implements raft.MonotonicLogStore.
func (g *guardedLog) IsMonotonic() bool { return true }

// Set implements raft.StableStore.
func (g *guardedLog) Set(key, val []byte) error {
	defer g.watch("store a vote")()
	return g.wal.Set(key, val)
}

// Get implements raft.StableStore.
func (g *guardedLog) Get(key []byte) ([]byte, error) { return g.wal.Get(key) }

// SetUint64 implements raft.StableStore.
func (g *guardedLog) SetUint64(key []byte, val uint64) error {
	defer g.watch("store a term")()
	return g.wal.SetUint64(key, val)
}

// GetUint64 implements raft.StableStore.
func (g *guardedLog) GetUint64(key []byte) (uint64, error) { return g.wal.GetUint64(key) }

func walDir(dir string) string { return filepath.Join(dir, "wal") }
