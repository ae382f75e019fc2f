package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// heldLog is a disk that hangs while it is held.
type heldLog struct {
	entryStore
	mu      sync.Mutex
	gone    chan struct{} // not nil while held
	waiting int           // stores that hang
}

func (h *heldLog) hold() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone = make(chan struct{})
}

func (h *heldLog) letGo() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone != nil {
		close(h.gone)
		h.gone = nil
	}
}

func (h *heldLog) wait() {
	h.mu.Lock()
	gone := h.gone
	if gone != nil {
		h.waiting++
	}
	h.mu.Unlock()
	if gone == nil {
		return
	}
	<-gone
	h.mu.Lock()
	h.waiting--
	h.mu.Unlock()
}

// hangs reports whether a store waits for the disk.
func (h *heldLog) hangs() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting > 0
}

func (h *heldLog) StoreLogs(logs []*raft.Log) error {
	h.wait()
	return h.entryStore.StoreLogs(logs)
}

// hold gives each server of a cluster a disk that can hang.
func holdable(limit time.Duration) (func(*Config), func(s *server) *heldLog) {
	var mu sync.Mutex
	all := map[meta.NodeID]*heldLog{}
	tune := func(cfg *Config) {
		cfg.Stall = limit
		self := cfg.Self
		cfg.entries = func(e entryStore) entryStore {
			mu.Lock()
			defer mu.Unlock()
			all[self] = &heldLog{entryStore: e}
			return all[self]
		}
	}
	return tune, func(s *server) *heldLog {
		mu.Lock()
		defer mu.Unlock()
		return all[s.id]
	}
}

func TestHungDiskCallsFatal(t *testing.T) {
	t.Parallel()
	tune, disk := holdable(100 * time.Millisecond)
	c := newCluster(t, 1, func(cfg *Config) { tune(cfg); cfg.Commit = 500 * time.Millisecond })
	s := c.servers[0]
	disk(s).hold()
	defer disk(s).letGo()
	var unknown *meta.UnknownOutcomeError
	if _, err := s.set(c.ctx, "a", "1"); !errors.As(err, &unknown) {
		t.Errorf("a write to a hung disk: %v", err)
	}
	select {
	case err := <-s.fatal:
		if !errors.Is(err, meta.ErrUnavailable) {
			t.Error(err)
		}
	case <-c.ctx.Done():
		t.Fatal("nobody was told")
	}
}

// A flipped bit in an entry is found when the entry is read, at the latest on
// start, and never applied.
func TestFlippedBitInTheLog(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.servers[0]
	for i := range 10 {
		c.set(s, "key", fmt.Sprintf("needle-%d", i))
	}
	s.halt()
	files, err := filepath.Glob(filepath.Join(walDir(s.dir), "*.wal"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	// Only the last batch is checked by raft-wal itself.
	at := bytes.Index(b, []byte("needle-3"))
	if at < 0 {
		t.Fatal("no such entry")
	}
	b[at] ^= 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	s.machine.powerLoss(t)
	s.open()
	if err := s.node.Run(t.Context()); !errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("a node runs on a corrupt log: %v", err)
	}
	if err := s.node.Close(); err != nil {
		t.Error(err)
	}
	if got := s.machine.Get("key"); got != "" {
		t.Errorf("%q was applied", got)
	}
}

func TestCorruptEntryOfARunningNodeCallsFatal(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.servers[0]
	out := c.set(s, "a", "1")
	s.node.logs.wal = rotten{s.node.logs.wal}
	var l raft.Log
	if err := s.node.logs.GetLog(out.Index, &l); !errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("a corrupt entry reads with %v", err)
	}
	select {
	case err := <-s.fatal:
		if !errors.Is(err, meta.ErrCorrupt) {
			t.Error(err)
		}
	case <-c.ctx.Done():
		t.Fatal("nobody was told")
	}
}

// What a snapshot covers is needed by nobody but followers, who can have the snapshot.
func TestCorruptEntryBehindASnapshotIsNotThere(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.servers[0]
	old := c.set(s, "a", "1")
	if err := s.node.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	young := c.set(s, "a", "2")
	s.node.logs.wal = rotten{s.node.logs.wal}
	var l raft.Log
	if err := s.node.logs.GetLog(old.Index, &l); !errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("a corrupt entry behind a snapshot reads with %v", err)
	}
	select {
	case err := <-s.fatal:
		t.Fatalf("it ends the process: %v", err)
	default:
	}
	if err := s.node.logs.GetLog(young.Index, &l); !errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("a corrupt entry that no snapshot has reads with %v", err)
	}
	<-s.fatal
}

// rotten returns entries with one bit wrong.
type rotten struct{ entryStore }

func (r rotten) GetLog(index uint64, l *raft.Log) error {
	err := r.entryStore.GetLog(index, l)
	if err == nil {
		l.Term ^= 1
	}
	return err
}
