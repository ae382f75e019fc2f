package state

import (
	"context"
	"io"
	"log/slog"

	"github.com/shoal-registry/shoal/raftmeta/feed"
)

// Options of a Machine.
type Options struct {
	// Log, nil for none.
	Log *slog.Logger
	// CacheBytes is the block cache; 0 is 64 MiB.
	CacheBytes int64
}

// Entry is a committed log entry.
type Entry struct {
	Index, Term uint64
	Command     []byte // of Encode
}

// Result is what an entry did. A refusal is an Err of a meta kind, the same on
// every replica.
type Result struct {
	// Index is where the command took effect: for a repeated request id, the first time.
	Index uint64
	Type  uint16
	// Value is the command's result, nil when it has none.
	Value any
	Err   error
}

// Machine is the deterministic state machine.
type Machine struct{}

// Open opens the state in dir, making it when there is none.
func Open(dir string, o Options) (*Machine, error) { panic("not built yet") }

// Close closes the machine; open Views stay readable until closed.
func (m *Machine) Close() error { panic("not built yet") }

// Apply applies one entry.
func (m *Machine) Apply(index, term uint64, command []byte) (Result, error) { panic("not built yet") }

// ApplyBatch applies entries in one batch; one Result an entry. An error is fatal:
// the node must stop.
func (m *Machine) ApplyBatch(entries []Entry) ([]Result, error) { panic("not built yet") }

// Applied returns the last applied entry.
func (m *Machine) Applied() (index, term uint64) { panic("not built yet") }

// Wait blocks until index is applied.
func (m *Machine) Wait(ctx context.Context, index uint64) error { panic("not built yet") }

// Changes implements feed.Source.
func (m *Machine) Changes(after uint64, limit int) ([]feed.Change, uint64, error) {
	panic("not built yet")
}

// View returns a consistent snapshot; Close it.
func (m *Machine) View() (*View, error) { panic("not built yet") }

// Hash returns the hash of all state at the applied index.
func (m *Machine) Hash(ctx context.Context) (index uint64, sum [32]byte, err error) {
	panic("not built yet")
}

// Snapshot freezes the state by hard links; WriteTo streams it, Close frees it.
func (m *Machine) Snapshot() (*Checkpoint, error) { panic("not built yet") }

// Restore replaces the state by what Checkpoint.WriteTo wrote.
func (m *Machine) Restore(r io.Reader) error { panic("not built yet") }

// Checkpoint is the state frozen at an index.
type Checkpoint struct{ Index, Term uint64 }

// WriteTo streams the checkpoint as a tar.
func (c *Checkpoint) WriteTo(w io.Writer) (int64, error) { panic("not built yet") }

// Close frees the checkpoint.
func (c *Checkpoint) Close() error { panic("not built yet") }

// View is a consistent snapshot.
type View struct{}

// Index returns the applied index of the view.
func (v *View) Index() uint64 { panic("not built yet") }

// Close frees the view.
func (v *View) Close() error { panic("not built yet") }

type tx struct{}

const maxRequestIDBytes = 128
