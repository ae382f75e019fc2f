package consensus

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// A voter that lost its log leaves the configuration before it takes part again: it
// knows the term and gives no second vote in it, gets the state and the vote back,
// and what was committed by its word stays.
func TestVoterWithoutItsLogJoinsAnew(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.set(c.servers[0], "key", "kept")
	lost := c.servers[2]
	if lost.node.Leader() == lost.id {
		lost = c.servers[1]
	}
	lost.halt()
	for _, part := range []string{"wal", "snapshots"} {
		if err := os.RemoveAll(filepath.Join(lost.dir, part)); err != nil {
			t.Fatal(err)
		}
	}
	lost.machine = newRegisters()
	lost.tune = func(cfg *Config) { cfg.Seeds = c.roster.Servers() }
	lost.open()
	if has, err := lost.node.HasState(); has || err != nil {
		t.Fatalf("it has state: %v", err)
	}
	lost.node.JoinAnew()
	lost.run()
	c.awaitVoters(3)
	voted, err := lost.node.logs.GetUint64(keyVoteTerm)
	if err != nil || voted == 0 || lost.node.raft.CurrentTerm() < voted {
		t.Errorf("it voted in term %d of %d, %v", voted, lost.node.raft.CurrentTerm(), err)
	}
	c.set(lost, "other", "new")
	if got := lost.machine.Get("key"); got != "kept" {
		t.Errorf("key is %q", got)
	}
	// The entry that took it out is in the log of the others, before the one that
	// brought it back.
	var sizes []int
	for i := uint64(1); i <= c.servers[0].node.raft.LastIndex(); i++ {
		var l raft.Log
		if err := c.servers[0].node.logs.GetLog(i, &l); err == nil && l.Type == raft.LogConfiguration {
			sizes = append(sizes, len(raft.DecodeConfiguration(l.Data).Servers))
		}
	}
	out := false
	for i := 1; i < len(sizes); i++ {
		out = out || sizes[i] < sizes[i-1]
	}
	if !out {
		t.Errorf("it never left: configurations of %v servers", sizes)
	}
}

// A crash while the term is kept leaves a server that asks again, or one that has
// voted: not one that knows the term and may vote in it.
func TestTermIsKeptAfterTheVote(t *testing.T) {
	for after := range 3 {
		disk := &dyingStore{InmemStore: raft.NewInmemStore(), left: after}
		if err := keepTerm(disk, "leader", 7); err == nil {
			t.Fatalf("no error after %d writes", after)
		}
		has, err := raft.HasExistingState(disk, disk, raft.NewDiscardSnapshotStore())
		if has || err != nil {
			t.Errorf("after %d writes it has state: %v, %v", after, has, err)
		}
	}
	disk := &dyingStore{InmemStore: raft.NewInmemStore(), left: 3}
	if err := keepTerm(disk, "leader", 7); err != nil {
		t.Fatal(err)
	}
	term, err1 := disk.GetUint64(keyTerm)
	voted, err2 := disk.GetUint64(keyVoteTerm)
	vote, err3 := disk.Get(keyVote)
	if term != 7 || voted != 7 || !slices.Equal(vote, []byte("leader")) {
		t.Errorf("term %d, vote in %d for %q: %v", term, voted, vote, errors.Join(err1, err2, err3))
	}
}

// dyingStore takes so many more writes.
type dyingStore struct {
	*raft.InmemStore
	left int
}

func (d *dyingStore) write(do func() error) error {
	if d.left == 0 {
		return errors.New("the disk is gone")
	}
	d.left--
	return do()
}

func (d *dyingStore) Set(k, v []byte) error {
	return d.write(func() error { return d.InmemStore.Set(k, v) })
}

func (d *dyingStore) SetUint64(k []byte, v uint64) error {
	return d.write(func() error { return d.InmemStore.SetUint64(k, v) })
}
