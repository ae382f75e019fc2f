package consensus

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Machine is the deterministic state machine that the log drives. It keeps its
// state durable by itself, up to an index of its own.
type Machine interface {
	// Apply applies committed entries in log order and returns a result for each.
	// It is called from one goroutine. An error says that the machine cannot go on.
	Apply([]Entry) ([]any, error)
	// Applied returns the index of the last entry in the state.
	Applied() uint64
	// Flush makes durable what is applied when it is called.
	Flush() error
	// Freeze returns the state as it is now, for another server.
	Freeze() (Frozen, error)
	// Restore replaces the state by what Frozen.WriteTo wrote: whole or not at all. A
	// state at an index that the machine has reached changes nothing: both are of one
	// log, and readers were told of the later one.
	Restore(io.Reader) error
	// Stamp returns the command with the leader's time in it, StampOf the time that is
	// in it. Errors: the command is not one that may enter the log.
	Stamp(command []byte, at meta.Time) ([]byte, error)
	StampOf(command []byte) meta.Time
	// Tick returns a command that changes nothing.
	Tick() []byte
}

// Entry is a committed command, or, without one, an index that carries none.
type Entry struct {
	Index, Term uint64
	Command     []byte
}

// Frozen is a state that no longer changes. WriteTo writes Size bytes.
type Frozen interface {
	io.WriterTo
	io.Closer
	Size() (int64, error)
}

// errMachine is the result of entries that a broken machine did not apply.
var errMachine = errors.New("the state machine stopped")

// replica is the machine as Raft drives it.
type replica struct {
	machine Machine
	applied watermark // what the machine has applied, for those who wait
	results results
	m       *metrics
	fatal   func(error)
	stall   time.Duration // that Apply may take
	// configured is told that a change of the configuration is applied.
	configured func()
	// snapshots forgets an installed stream once it is restored.
	snapshots *snapshotStore

	broken bool // only in Raft's apply goroutine
}

var _ raft.BatchingFSM = (*replica)(nil)

// ApplyBatch implements raft.BatchingFSM.
func (r *replica) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	if r.broken {
		for i := range out {
			out[i] = errMachine
		}
		return out
	}
	// After a restart Raft replays from its last snapshot, the machine may be beyond:
	// what it has applied has no result, and nobody waits for one.
	have := r.machine.Applied()
	entries := make([]Entry, 0, len(logs))
	configuration := false
	for _, l := range logs {
		if l.Index <= have {
			continue
		}
		e := Entry{Index: l.Index, Term: l.Term, Command: l.Data}
		if l.Type == raft.LogConfiguration {
			e.Command, configuration = nil, true
		}
		entries = append(entries, e)
	}
	if len(entries) > 0 {
		start := time.Now()
		watch := time.AfterFunc(r.stall, func() {
			r.fatal(fmt.Errorf("entries %d to %d were not applied within %v, the disk of the state hangs: %w",
				entries[0].Index, entries[len(entries)-1].Index, r.stall, meta.ErrUnavailable))
		})
		values, err := r.machine.Apply(entries)
		watch.Stop()
		r.m.apply.Observe(time.Since(start).Seconds())
		if err == nil && len(values) != len(entries) {
			err = fmt.Errorf("%d results of %d entries", len(values), len(entries))
		}
		if err != nil {
			r.broken = true
			r.fatal(fmt.Errorf("apply entries %d to %d: %w", entries[0].Index, entries[len(entries)-1].Index, err))
			return r.ApplyBatch(logs)
		}
		copy(out[len(logs)-len(entries):], values)
		for i, e := range entries {
			r.results.put(e.Index, values[i])
		}
	}
	last := logs[len(logs)-1].Index
	r.applied.raise(last)
	r.m.applied.Set(float64(last))
	if configuration {
		r.configured()
	}
	return out
}

// Apply implements raft.FSM.
func (r *replica) Apply(l *raft.Log) any { return r.ApplyBatch([]*raft.Log{l})[0] }

// Snapshot implements raft.FSM: the machine's own state is the snapshot, once it
// is durable.
func (r *replica) Snapshot() (raft.FSMSnapshot, error) { return flushed{r}, nil }

// Restore implements raft.FSM.
func (r *replica) Restore(stream io.ReadCloser) error {
	if err := r.machine.Restore(stream); err != nil {
		return fmt.Errorf("restore the state from the leader's: %w", err)
	}
	if err := r.snapshots.restored(r.machine.Applied()); err != nil {
		return err
	}
	r.applied.raise(r.machine.Applied())
	r.m.snapshots.WithLabelValues("installed").Inc()
	r.configured()
	return nil
}

type flushed struct{ r *replica }

// Persist implements raft.FSMSnapshot.
func (f flushed) Persist(sink raft.SnapshotSink) error {
	index := f.r.machine.Applied()
	if err := f.r.machine.Flush(); err != nil {
		return fmt.Errorf("make the state durable: %w", err)
	}
	sink.(*snapshotSink).meta.MachineIndex = index
	f.r.m.snapshots.WithLabelValues("taken").Inc()
	return nil
}

// Release implements raft.FSMSnapshot.
func (f flushed) Release() {}

// results keeps the latest results by index, for commands that this server sent to
// the leader: it applies them itself, so the leader need not send them back.
type results struct {
	mu   sync.Mutex
	kept [keptResults]struct {
		index uint64
		value any
	}
}

func (r *results) put(index uint64, value any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slot := &r.kept[index%keptResults]
	slot.index, slot.value = index, value
}

func (r *results) get(index uint64) (any, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slot := &r.kept[index%keptResults]
	return slot.value, slot.index == index
}
