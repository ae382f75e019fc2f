package consensus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// op is one operation on one register; a read has the value in its output.
type op struct {
	write      bool
	key, value string
}

// registerModel says that each register is linearizable.
var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range history {
			key := o.Input.(op).key
			byKey[key] = append(byKey[key], o)
		}
		out := make([][]porcupine.Operation, 0, len(byKey))
		for _, part := range byKey {
			out = append(out, part)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in := input.(op)
		if in.write {
			return true, in.value
		}
		return output.(string) == state.(string), state
	},
}

// history records what clients did and saw.
type history struct {
	mu    sync.Mutex
	begun time.Time
	ops   []porcupine.Operation
	read  func(ctx context.Context, s *server, key string) (string, error)
}

func newHistory(read func(context.Context, *server, string) (string, error)) *history {
	return &history{begun: time.Now(), read: read}
}

func (h *history) now() int64 { return int64(time.Since(h.begun)) }

func (h *history) add(client int, in op, out string, call, end int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: end})
}

func (h *history) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ops)
}

// set writes through s. One that is not applied is not in the history; one that may
// be has no end.
func (h *history) set(ctx context.Context, client int, s *server, key, value string) {
	call := h.now()
	_, err := s.set(ctx, key, value)
	var unknown *meta.UnknownOutcomeError
	switch in := (op{write: true, key: key, value: value}); {
	case err == nil:
		h.add(client, in, "", call, h.now())
	case errors.As(err, &unknown):
		h.add(client, in, "", call, math.MaxInt64)
	}
}

func (h *history) get(ctx context.Context, client int, s *server, key string) (string, error) {
	call := h.now()
	value, err := h.read(ctx, s, key)
	if err == nil {
		h.add(client, op{key: key}, value, call, h.now())
	}
	return value, err
}

func (h *history) check() porcupine.CheckResult {
	h.mu.Lock()
	defer h.mu.Unlock()
	return porcupine.CheckOperationsTimeout(registerModel, h.ops, 30*time.Second)
}

func strongRead(ctx context.Context, s *server, key string) (string, error) { return s.get(ctx, key) }

// trustingRead is the mutant: who believes to lead answers from its own state.
func trustingRead(ctx context.Context, s *server, key string) (string, error) {
	if s.node.Leader() == s.id {
		return s.machine.Get(key), nil
	}
	return s.get(ctx, key)
}

// Clients of all servers write and read while links are cut, leaders are cut off
// and disks hang: no read is stale.
func TestReadsAreLinearizable(t *testing.T) {
	tune, disk := holdable(time.Hour)
	c := newCluster(t, 3, func(cfg *Config) { tune(cfg); cfg.Commit = time.Second })
	h := newHistory(strongRead)
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	var clients sync.WaitGroup
	for client := range 6 {
		s := c.servers[client%3]
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(client)))
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprint("k", rng.IntN(4))
				if rng.IntN(2) == 0 {
					h.set(ctx, client, s, key, fmt.Sprintf("%d.%d", client, i))
				} else {
					_, _ = h.get(ctx, client, s, key)
				}
			}
		})
	}
	busy := func() {
		had := h.count()
		c.await("operations", func() bool { return h.count() > had+60 })
	}
	rng := rand.New(rand.NewPCG(2, 2))
	for fault := range 6 {
		busy()
		l := c.awaitLeader()
		switch fault % 3 {
		case 0: // the leader is alone
			c.cut(l, true)
			c.awaitLeader(l)
			busy()
			c.cut(l, false)
		case 1: // the leader hangs and is alone, and wakes up late
			disk(l).hold()
			c.cut(l, true)
			c.awaitLeader(l)
			busy()
			disk(l).letGo()
			c.cut(l, false)
		case 2: // two cannot hear each other
			a := rng.IntN(3)
			c.cutLink(c.servers[a], c.servers[(a+1)%3], true)
			busy()
			c.cutLink(c.servers[a], c.servers[(a+1)%3], false)
		}
	}
	busy()
	cancel()
	clients.Wait()
	if result := h.check(); result != porcupine.Ok {
		t.Fatalf("%d operations: %s", h.count(), result)
	}
	t.Logf("%d operations", h.count())
}

// staleLeader cuts off a leader that hangs, writes through the next, and reads at
// the old one, which still believes to lead.
func staleLeader(t *testing.T, h *history) (string, error) {
	tune, disk := holdable(time.Hour)
	c := newCluster(t, 3, tune)
	l := c.awaitLeader()
	h.set(c.ctx, 0, l, "a", "old")
	read := func(client int, s *server, want string) { // an election may come in between
		c.await("a read of "+want, func() bool {
			got, err := h.get(c.ctx, client, s, "a")
			return err == nil && got == want
		})
	}
	for _, s := range c.servers {
		read(0, s, "old")
	}
	for leads := false; !leads; { // until it hangs as the leader, not after losing that
		l = c.awaitLeader()
		disk(l).hold()
		defer disk(l).letGo()
		go func() { _, _ = l.set(c.ctx, "other", "hangs") }()
		c.await("the leader hangs", disk(l).hangs)
		if leads = l.node.Leader() == l.id; !leads {
			disk(l).letGo()
		}
	}
	c.cut(l, true)
	next := c.awaitLeader(l)
	h.set(c.ctx, 1, next, "a", "new")
	read(1, next, "new")
	if l.node.Leader() != l.id {
		t.Fatal("the old leader knows that it does not lead: this test shows nothing")
	}
	return h.get(c.ctx, 2, l, "a")
}

func TestAStaleLeaderAnswersNoStrongRead(t *testing.T) {
	t.Parallel()
	h := newHistory(strongRead)
	value, err := staleLeader(t, h)
	var unavailable *meta.UnavailableError
	if !errors.As(err, &unavailable) || unavailable.Reason != "no_quorum" {
		t.Errorf("it answered %q, %v", value, err)
	}
	if result := h.check(); result != porcupine.Ok {
		t.Error(result)
	}
}

// The mutant: the checker must see it.
func TestCheckerCatchesReadsThatTrustTheLeader(t *testing.T) {
	t.Parallel()
	h := newHistory(trustingRead)
	if value, err := staleLeader(t, h); err != nil || value != "old" {
		t.Fatalf("the mutant read %q, %v", value, err)
	}
	if result := h.check(); result != porcupine.Illegal {
		t.Errorf("a stale read is %s to the checker", result)
	}
}
