package consensus

import (
	"errors"
	"sync"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// rooms are the disks of a test cluster.
type rooms struct {
	mu    sync.Mutex
	level map[meta.NodeID]Room
}

func (r *rooms) tune(cfg *Config) {
	self := cfg.Self
	cfg.Room = func() Room {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.level[self]
	}
}

func (r *rooms) set(s *server, level Room) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.level[s.id] = level
}

// A leader whose disk is low hands over; writes go on through every server.
func TestLeaderWithALowDiskHandsOver(t *testing.T) {
	disks := &rooms{level: map[meta.NodeID]Room{}}
	c := newCluster(t, 3, disks.tune)
	old := c.awaitLeader()
	disks.set(old, RoomLow)
	for {
		changed := old.node.leader.changed()
		if old.node.Leader() != old.id {
			break
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			t.Fatal("it leads on")
		}
	}
	c.set(old, "key", "value")
	disks.set(old, RoomPlenty)
	c.set(old, "key", "again")
}

// A follower whose disk is full takes nothing, loses nothing, and catches up by itself
// when there is room; the others go on.
func TestFollowerWithAFullDiskLags(t *testing.T) {
	disks := &rooms{level: map[meta.NodeID]Room{}}
	c := newCluster(t, 3, disks.tune)
	leader := c.awaitLeader()
	full := c.servers[0]
	if full == leader {
		full = c.servers[1]
	}
	c.set(leader, "key", "before")
	disks.set(full, RoomFull)
	var last Outcome
	for _, v := range []string{"1", "2", "3"} {
		last = c.set(leader, "key", v)
	}
	if got := full.node.raft.LastIndex(); got >= last.Index {
		t.Errorf("the full disk took entry %d", got)
	}
	if err := full.node.logs.DeleteRange(2, full.node.raft.LastIndex()); !errors.Is(err, meta.ErrNoSpace) {
		t.Errorf("the end of the log was deleted with nothing to replace it: %v", err)
	}
	disks.set(full, RoomPlenty)
	if err := full.node.replica.applied.wait(c.ctx, last.Index); err != nil {
		t.Fatal(err)
	}
	if got := full.machine.Get("key"); got != "3" {
		t.Errorf("key is %q", got)
	}
	select {
	case err := <-full.fatal:
		t.Errorf("it ended itself: %v", err)
	default:
	}
}
