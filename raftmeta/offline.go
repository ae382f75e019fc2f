package raftmeta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/consensus"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Standing is what the metadata of a stopped server is, for an operator who has to
// choose between several.
type Standing struct {
	consensus.Standing
	Cluster meta.Cluster `json:"cluster"`
	Servers []meta.Node  `json:"servers"` // of the roster
	// Applied is how far the state is. Entries behind it, up to Last, are in the log and
	// not known to be committed.
	Applied uint64 `json:"applied_index"`
	// Damage says what of the log cannot be read; the Standing is then of what comes
	// before it.
	Damage string `json:"damage,omitempty"`
}

// Newer reports whether this log goes further than the other: by the term of its last
// entry, then its index (Raft, 5.4.1).
func (s Standing) Newer(than Standing) bool {
	if s.LastTerm != than.LastTerm {
		return s.LastTerm > than.LastTerm
	}
	return s.Last > than.Last
}

// Inspect reads the metadata in dir, StoreConfig.Dir of a server that does not run.
//
// Errors: meta.ErrNotFound when there is none; of the disk.
func Inspect(dir string, log *slog.Logger) (s Standing, err error) {
	offline, err := consensus.OpenOffline(filepath.Join(dir, "raft"), log)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, offline.Close()) }()
	machine, err := state.Open(filepath.Join(dir, "state"), state.Options{Log: log})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, machine.Close()) }()
	view := replicated{machine: machine}
	if s.Standing, err = offline.Standing(view.StampOf); errors.Is(err, meta.ErrCorrupt) {
		s.Damage = err.Error()
	} else if err != nil {
		return s, err
	}
	s.Applied = view.Applied()
	s.Last = max(s.Last, s.Applied)
	v, err := machine.View()
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	s.Cluster, err = state.GetCluster{}.Answer(v)
	if errors.Is(err, meta.ErrNotFound) {
		return s, nil // it never got as far as the first command
	} else if err != nil {
		return s, err
	}
	now, err := constantsOf(v)
	if err == nil {
		s.Servers = now.servers
	}
	return s, err
}

// Refounding makes the metadata of a server that begins a new epoch, beside whatever
// there is: nothing else is changed, and it counts only where its owner puts it.
type Refounding struct {
	dir     string
	machine *state.Machine
	term    uint64
	log     *slog.Logger
}

// OpenRefounding begins in dir, which is new or what an earlier attempt left. Close it.
func OpenRefounding(dir string, log *slog.Logger) (*Refounding, error) {
	machine, err := state.Open(filepath.Join(dir, "state"), state.Options{Log: log})
	if err != nil {
		return nil, err
	}
	return &Refounding{dir: dir, machine: machine, log: log}, nil
}

// Close frees the state.
func (r *Refounding) Close() error { return r.machine.Close() }

// Load takes the state from a snapshot stream.
//
// Errors: of state.Machine.Restore.
func (r *Refounding) Load(stream io.Reader) error {
	if err := r.machine.Restore(stream); err != nil {
		return err
	}
	_, r.term = r.machine.Applied()
	return nil
}

// LoadFrom takes the state in dir, StoreConfig.Dir of a server that does not run, and
// what its log has beyond it. seen is called with each such entry.
//
// Errors: meta.ErrCorrupt; of the disk.
func (r *Refounding) LoadFrom(dir string, seen func(index uint64, at meta.Time, c state.Command)) (err error) {
	old, err := state.Open(filepath.Join(dir, "state"), state.Options{Log: r.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	frozen, err := old.Snapshot()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, frozen.Close()) }()
	reader, writer := io.Pipe()
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, err := frozen.WriteTo(writer)
		writer.CloseWithError(err)
	}()
	err = r.machine.Restore(reader)
	reader.CloseWithError(io.ErrClosedPipe)
	<-written
	if err != nil {
		return err
	}
	offline, err := consensus.OpenOffline(filepath.Join(dir, "raft"), r.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, offline.Close()) }()
	view := &replicated{machine: r.machine}
	if err := offline.Replay(view, func(e consensus.Entry) {
		if o, c, err := state.Decode(e.Command); err == nil && c != nil {
			seen(e.Index, o.Time, c)
		}
	}); err != nil {
		return err
	}
	standing, err := offline.Standing(view.StampOf)
	if err != nil {
		return err
	}
	_, term := r.machine.Applied()
	r.term = max(term, standing.Term, standing.LastTerm)
	return nil
}

// View returns the state as it is now; close it.
func (r *Refounding) View() (*state.View, error) { return r.machine.View() }

// Hash is state.Machine.Hash.
func (r *Refounding) Hash(ctx context.Context) (uint64, [32]byte, error) { return r.machine.Hash(ctx) }

// Begin applies c and what has to come before it: the cluster's level rises to this
// build's, as only servers that run it can join, unless it is held; uploads that no version claims go,
// because their bytes may be lost while a client would believe them there; with calm,
// waves end, as nobody expects a rollout to begin by itself after a disaster. Then it
// makes the state durable, and the log in which self is the only voter.
//
// Errors: of the commands; of the disk.
func (r *Refounding) Begin(ctx context.Context, self meta.NodeID, at time.Time, calm bool, c state.BeginEpoch) error {
	r.term++
	index, _ := r.machine.Applied()
	do := func(c state.Command) (any, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		command, err := state.Encode(state.Origin{Principal: "node:" + string(self), Node: self, Time: meta.TimeOf(at)}, c)
		if err != nil {
			return nil, err
		}
		index++
		result, err := r.machine.Apply(index, r.term, command)
		return result.Value, errors.Join(err, result.Err)
	}
	v, err := r.machine.View()
	if err != nil {
		return err
	}
	cluster, err := state.GetCluster{}.Answer(v)
	level := state.Level
	if err == nil {
		var held uint32
		if held, err = (state.GetHold{}).Answer(v); held != 0 {
			level = min(level, held)
		}
	}
	if err == nil {
		at, err = afterLog(v, at)
	}
	var waves []meta.Wave
	if err == nil && calm {
		waves, err = state.ListWaves{Open: true}.Answer(v)
	}
	if err := errors.Join(err, v.Close()); err != nil {
		return err
	}
	if cluster.Level < level {
		if _, err := do(state.SetLevel{Level: level}); err != nil {
			return err
		}
	}
	for {
		const atOnce = 1000
		value, err := do(state.ExpireUploads{Before: meta.TimeOf(at.Add(24 * time.Hour)), Limit: atOnce})
		if err != nil {
			return fmt.Errorf("forget unclaimed uploads: %w", err)
		}
		if result, ok := value.(state.ExpireResult); !ok || result.Links+result.Drafts < atOnce {
			break
		}
	}
	for _, w := range waves {
		if _, err := do(state.CancelWave{ID: w.ID, Reason: "the cluster was restored from a backup"}); err != nil {
			return err
		}
	}
	if _, err := do(c); err != nil {
		return err
	}
	if err := r.machine.Flush(); err != nil {
		return err
	}
	return consensus.Refound(filepath.Join(r.dir, "raft"), self, index, r.term)
}

// afterLog returns at, or the time of the audit log's last entry where this machine's
// clock is behind it: time must not fall along the log, and a token that was made just
// before the end must not look younger than what voids it.
func afterLog(v *state.View, at time.Time) (time.Time, error) {
	last, err := state.ListEntries{Last: true, Limit: 1}.Answer(v)
	if err != nil || len(last.Lines) == 0 {
		return at, err
	}
	e, err := audit.ParseLine(last.Lines[0])
	if err == nil && e.Time.After(at) {
		at = e.Time
	}
	return at, err
}

// Backup freezes the state for a backup: a checkpoint and a view of the same index.
// Close both.
func (s *Store) Backup() (*state.Checkpoint, *state.View, error) { return s.machine.SnapshotView() }
