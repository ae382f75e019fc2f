// Package metatest is the metadata in a test: the real state machine that is its
// own log, without Raft. Start at New.
//
// A Store has no goroutines.
package metatest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Store is a raftmeta.Asker, Doer, Watcher and Upstream over one state machine.
type Store struct {
	*state.Machine
	t testing.TB

	mu    sync.Mutex
	index uint64
	fault error
	asked map[string]int
}

var (
	_ raftmeta.Upstream = (*Store)(nil)
	_ raftmeta.Doer     = (*Store)(nil)
	_ raftmeta.Watcher  = (*Store)(nil)
)

// New returns a Store of a cluster with the region eu and its server s1.
func New(t testing.TB) *Store { return NewAt(t, state.Level) }

// NewAt is New of a cluster that older builds began.
func NewAt(t testing.TB, level uint32) *Store {
	t.Helper()
	m, err := state.Open(t.TempDir(), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &Store{Machine: m, t: t, asked: make(map[string]int)}
	s.Must(state.Bootstrap{
		Cluster: meta.Cluster{ID: "test", Epoch: 1, Level: level},
		Node:    meta.Node{ID: "s1", Role: meta.RoleServer, Region: "eu", Gateway: "127.0.0.1:5000"},
		Region:  meta.Region{Name: "eu", Primary: true},
	})
	return s
}

// Must makes a change that the test depends on, and returns its token.
func (s *Store) Must(c state.Command) meta.Token {
	s.t.Helper()
	r, err := s.Do(s.t.Context(), state.Origin{Principal: "test"}, c)
	if err != nil {
		s.t.Fatalf("%s: %v", state.Name(c), err)
	}
	return r.Token
}

// Admit adds a node to the roster.
func (s *Store) Admit(n meta.Node) {
	s.t.Helper()
	s.mu.Lock()
	token := fmt.Sprint("token", s.index)
	s.mu.Unlock()
	s.Must(state.CreateJoinToken{Token: meta.JoinToken{
		ID: token, Role: n.Role, Region: n.Region, Uses: 1, Expires: meta.TimeOf(time.Now().Add(time.Hour)),
	}})
	s.Must(state.AdmitNode{TokenSecretHash: token, Node: n})
}

// Break makes the store answer with err; nil heals it. A Watch that is open ends.
func (s *Store) Break(err error) {
	s.mu.Lock()
	s.fault = err
	s.mu.Unlock()
	if _, err := s.apply(nil); err != nil { // Wakes the followers.
		s.t.Error(err)
	}
}

// Asked returns how many questions of a name there were.
func (s *Store) Asked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[name]
}

func (s *Store) broken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

// Do implements raftmeta.Doer.
func (s *Store) Do(_ context.Context, o state.Origin, c state.Command) (raftmeta.Receipt, error) {
	if err := s.broken(); err != nil {
		return raftmeta.Receipt{}, err
	}
	o.Time = meta.TimeOf(time.Now())
	command, err := state.Encode(o, c)
	if err != nil {
		return raftmeta.Receipt{}, err
	}
	r, err := s.apply(command)
	if err = errors.Join(err, r.Err); err != nil {
		return raftmeta.Receipt{}, err
	}
	return raftmeta.Receipt{Token: meta.Token{Epoch: 1, Index: r.Index}, Value: r.Value}, nil
}

func (s *Store) apply(command []byte) (state.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index++
	return s.Apply(s.index, 1, command)
}

// Answer implements raftmeta.Asker.
func (s *Store) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	s.mu.Lock()
	s.asked[q.Name()]++
	s.mu.Unlock()
	if err := s.broken(); err != nil {
		return meta.AsOf{}, err
	}
	if err := s.Wait(ctx, f.After.Index); err != nil {
		return meta.AsOf{}, err
	}
	v, err := s.View()
	if err != nil {
		return meta.AsOf{}, err
	}
	asOf := meta.AsOf{Epoch: 1, Index: v.Index(), Mode: f.Mode}
	return asOf, errors.Join(q.Run(v), v.Close())
}

// Watch implements raftmeta.Watcher.
func (s *Store) Watch(ctx context.Context, after uint64) iter.Seq2[feed.Change, error] {
	return s.Follow(ctx, after, feed.Filter{})
}

// Follow implements raftmeta.Upstream.
func (s *Store) Follow(ctx context.Context, after uint64, f feed.Filter) iter.Seq2[feed.Change, error] {
	return func(yield func(feed.Change, error) bool) {
		if err := s.broken(); err != nil {
			yield(feed.Change{}, err)
			return
		}
		for c, err := range feed.Follow(ctx, s.Machine, after) {
			if broken := s.broken(); err == nil && broken != nil {
				err = broken
			}
			if err != nil {
				yield(feed.Change{}, err)
				return
			}
			if f.Match(c) && !yield(c, nil) {
				return
			}
		}
	}
}
