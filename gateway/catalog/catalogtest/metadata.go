// Package catalogtest runs one node's worth of real parts in a test: the state
// machine on disk, a content store, the catalog, the gate and the gateway with
// the protocols under test, over real HTTP. Only raft is left out: Metadata
// applies commands itself. Start at New.
//
// The gateway runs until the test ends; its goroutines end with it.
package catalogtest

import (
	"context"
	"crypto/rand"
	"errors"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Metadata is a state machine that is its own log. It implements raftmeta.Asker
// raftmeta.Doer and raftmeta.Watcher. Fault, when set, is asked before each question and command.
type Metadata struct {
	// Key is the server's: what is sealed to it opens with this.
	Key *trust.Key

	machine *state.Machine

	mu    sync.Mutex // orders commands
	index uint64

	faultMu sync.Mutex
	fault   Fault
	asked   map[meta.Mode]int
}

// Fault is an error to answer with instead; mode is that of the question, "" for
// a command.
type Fault func(mode meta.Mode) error

var (
	_ raftmeta.Asker   = (*Metadata)(nil)
	_ raftmeta.Doer    = (*Metadata)(nil)
	_ raftmeta.Watcher = (*Metadata)(nil)
)

// NewMetadata opens metadata in a directory of the test and bootstraps a cluster
// of one server.
func NewMetadata(t testing.TB, server meta.NodeID, region meta.RegionName, adminToken []byte) *Metadata {
	t.Helper()
	machine, err := state.Open(t.TempDir(), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := machine.Close(); err != nil {
			t.Error(err)
		}
	})
	key, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	m := &Metadata{Key: key, machine: machine, asked: map[meta.Mode]int{}}
	_, err = m.Do(t.Context(), state.Origin{}, state.Bootstrap{
		Cluster: meta.Cluster{ID: "test", Epoch: 1, Level: state.Level, AdminToken: adminToken},
		Node: meta.Node{
			ID: server, Role: meta.RoleServer, Region: region, Gateway: "127.0.0.1:5000", Seal: key.Recipient(),
			Swarm: []string{"/ip4/127.0.0.1/tcp/7070"}, Raft: []string{"/ip4/127.0.0.1/tcp/7071"},
		},
		Region: meta.Region{Name: region, Primary: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Break makes the metadata answer with fault's errors; nil heals it.
func (m *Metadata) Break(fault Fault) {
	m.faultMu.Lock()
	defer m.faultMu.Unlock()
	m.fault = fault
}

// Asked returns how many questions of a mode there were.
func (m *Metadata) Asked(mode meta.Mode) int {
	m.faultMu.Lock()
	defer m.faultMu.Unlock()
	return m.asked[mode]
}

func (m *Metadata) broken(mode meta.Mode) error {
	m.faultMu.Lock()
	defer m.faultMu.Unlock()
	m.asked[mode]++
	if m.fault == nil {
		return nil
	}
	return m.fault(mode)
}

// Do implements raftmeta.Doer.
func (m *Metadata) Do(_ context.Context, o state.Origin, c state.Command) (raftmeta.Receipt, error) {
	if err := m.broken(""); err != nil {
		return raftmeta.Receipt{}, err
	}
	if o.RequestID == "" {
		o.RequestID = rand.Text()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o.Time = meta.TimeOf(time.Now())
	b, err := state.Encode(o, c)
	if err != nil {
		return raftmeta.Receipt{}, err
	}
	m.index++
	result, err := m.machine.Apply(m.index, 1, b)
	if err = errors.Join(err, result.Err); err != nil {
		return raftmeta.Receipt{}, err
	}
	return raftmeta.Receipt{Token: meta.Token{Epoch: 1, Index: result.Index}, Value: result.Value}, nil
}

// Answer implements raftmeta.Asker.
func (m *Metadata) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	if err := m.broken(f.Mode); err != nil {
		return meta.AsOf{Mode: f.Mode, Age: meta.UnknownAge}, err
	}
	if err := m.machine.Wait(ctx, f.After.Index); err != nil {
		return meta.AsOf{}, err
	}
	v, err := m.machine.View()
	if err != nil {
		return meta.AsOf{}, err
	}
	asOf := meta.AsOf{Epoch: 1, Index: v.Index(), Mode: f.Mode}
	return asOf, errors.Join(q.Run(v), v.Close())
}

// Watch implements raftmeta.Watcher.
func (m *Metadata) Watch(ctx context.Context, after uint64) iter.Seq2[feed.Change, error] {
	return feed.Follow(ctx, m.machine, after)
}
