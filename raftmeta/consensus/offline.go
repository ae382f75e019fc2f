package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Standing is how far a stopped server's log goes.
type Standing struct {
	// Term is the highest that the server has seen; First to Last are the entries of the
	// log, the last one of LastTerm. Snapshot is the index before which entries may be
	// gone; 0 for none.
	Term     uint64 `json:"term"`
	First    uint64 `json:"first_index"`
	Last     uint64 `json:"last_index"`
	LastTerm uint64 `json:"last_term"`
	Snapshot uint64 `json:"snapshot_index"`
	// Stamp is the leader's time in the last command of the log, 0 when it has none.
	Stamp meta.Time `json:"last_time"`
	// Voters and NonVoters are of the latest configuration, sorted.
	Voters    []meta.NodeID `json:"voters"`
	NonVoters []meta.NodeID `json:"non_voters"`
}

// Offline is the log of a server that does not run.
type Offline struct {
	logs      *guardedLog
	snapshots *snapshotStore
}

// OpenOffline opens the log in dir, Config.Dir of a server that does not run.
//
// Errors: meta.ErrNotFound when there is none; meta.ErrCorrupt; of the disk.
func OpenOffline(dir string, log *slog.Logger) (*Offline, error) {
	if _, err := os.Stat(walDir(dir)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s holds no raft log: %w", dir, meta.ErrNotFound)
	}
	snapshots, err := openSnapshots(filepath.Join(dir, "snapshots"), nil)
	if err != nil {
		return nil, fmt.Errorf("open raft snapshots: %w", err)
	}
	w, err := wal.Open(walDir(dir), wal.WithLogger(newRaftLogger(log, "wal")))
	if err != nil {
		if errors.Is(err, wal.ErrCorrupt) {
			err = fmt.Errorf("%w: %w", err, meta.ErrCorrupt)
		}
		return nil, fmt.Errorf("open the raft log: %w", err)
	}
	silent := func(error) {}
	return &Offline{
		logs:      &guardedLog{wal: w, limit: time.Minute, stalled: silent, corrupt: silent, m: newMetrics(nil)},
		snapshots: snapshots,
	}, nil
}

// Close frees the log.
func (o *Offline) Close() error { return o.logs.wal.Close() }

// Standing reads the log to its end. stampOf is Machine.StampOf.
//
// Errors: meta.ErrCorrupt for an entry that is not what was written; the Standing is
// then of what comes before it.
func (o *Offline) Standing(stampOf func(command []byte) meta.Time) (s Standing, err error) {
	if s.Term, err = o.logs.GetUint64([]byte(termKey)); err != nil {
		return s, fmt.Errorf("read the raft log: %w", err)
	}
	last, ok, err := o.snapshots.newest()
	if err != nil {
		return s, err
	}
	if ok {
		s.Snapshot, s.Last, s.LastTerm = last.Index, last.Index, last.Term
		s.configured(raft.DecodeConfiguration(last.Configuration))
	}
	first, err1 := o.logs.FirstIndex()
	end, err2 := o.logs.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		return s, fmt.Errorf("read the raft log: %w", err)
	}
	s.First = first
	for index := first; index > 0 && index <= end; index++ {
		var l raft.Log
		if err := o.logs.GetLog(index, &l); err != nil {
			return s, err
		}
		s.Last, s.LastTerm = max(s.Last, l.Index), max(s.LastTerm, l.Term)
		switch l.Type {
		case raft.LogCommand:
			s.Stamp = max(s.Stamp, stampOf(l.Data))
		case raft.LogConfiguration:
			if l.Index > s.Snapshot {
				s.configured(raft.DecodeConfiguration(l.Data))
			}
		}
	}
	return s, nil
}

func (s *Standing) configured(c raft.Configuration) {
	s.Voters, s.NonVoters = nil, nil
	for _, server := range c.Servers {
		if server.Suffrage == raft.Voter {
			s.Voters = append(s.Voters, meta.NodeID(server.ID))
		} else {
			s.NonVoters = append(s.NonVoters, meta.NodeID(server.ID))
		}
	}
	slices.Sort(s.Voters)
	slices.Sort(s.NonVoters)
}

// termKey is where hashicorp/raft keeps the current term.
const termKey = "CurrentTerm"

// Replay applies to m, which holds this server's state or a copy of it, what the log
// has beyond it, committed or not, and calls seen with each such command. A server that
// outlived its quorum cannot know better: an entry that was acknowledged must stay.
//
// Errors: meta.ErrCorrupt for an entry that is not what was written, or a log that does
// not reach back to the state; of m.
func (o *Offline) Replay(m Machine, seen func(Entry)) error {
	const atOnce = 64
	last, ok, err := o.snapshots.newest()
	if err != nil {
		return err
	}
	if ok && last.Installed && m.Applied() < last.Index {
		_, stream, err := o.snapshots.Open(last.id)
		if err != nil {
			return err
		}
		if err := errors.Join(m.Restore(stream), stream.Close()); err != nil {
			return fmt.Errorf("restore the installed state: %w", err)
		}
	}
	first, err1 := o.logs.FirstIndex()
	end, err2 := o.logs.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("read the raft log: %w", err)
	}
	if need := m.Applied() + 1; (ok && m.Applied() < last.MachineIndex) || (first > need && end >= need) {
		return fmt.Errorf("the state ends at %d and the log begins at %d, entries between them are gone: %w", m.Applied(), first, meta.ErrCorrupt)
	}
	var batch []Entry
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		_, err := m.Apply(batch)
		batch = batch[:0]
		return err
	}
	for index := max(first, m.Applied()+1); index <= end && end > 0; index++ {
		var l raft.Log
		if err := o.logs.GetLog(index, &l); err != nil {
			return errors.Join(err, flush())
		}
		if l.Type != raft.LogCommand {
			continue
		}
		e := Entry{Index: l.Index, Term: l.Term, Command: l.Data}
		seen(e)
		if batch = append(batch, e); len(batch) == atOnce {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// Refound makes in dir, which must not exist, the log of a server that is the only
// voter of a group whose state is durable at index: an empty log behind the description
// of a snapshot.
func Refound(dir string, self meta.NodeID, index, term uint64) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(walDir(dir), 0o700); err != nil {
		return err
	}
	w, err := wal.Open(walDir(dir), wal.WithLogger(newRaftLogger(slog.New(slog.DiscardHandler), "wal")))
	if err != nil {
		return fmt.Errorf("make the raft log: %w", err)
	}
	if err := errors.Join(w.SetUint64([]byte(termKey), term), w.Close()); err != nil {
		return fmt.Errorf("make the raft log: %w", err)
	}
	snapshots, err := openSnapshots(filepath.Join(dir, "snapshots"), nil)
	if err != nil {
		return err
	}
	only := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(self), Address: raft.ServerAddress(self)}}}
	sink, err := snapshots.Create(raft.SnapshotVersionMax, index, term, only, index, nil)
	if err != nil {
		return fmt.Errorf("describe the state: %w", err)
	}
	sink.(*snapshotSink).meta.MachineIndex = index
	if err := sink.Close(); err != nil {
		return fmt.Errorf("describe the state: %w", err)
	}
	return errors.Join(syncDir(walDir(dir)), syncDir(dir))
}
