package consensus

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// drain marks a server of the roster as draining.
func (r *roster) drain(id meta.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes = slices.Clone(r.nodes)
	for i := range r.nodes {
		if r.nodes[i].ID == id {
			r.nodes[i].Draining = &meta.Drain{Since: 1, By: "admin"}
		}
	}
}

// fewest returns the smallest number of voters that any configuration of the log had,
// from the first with as many as wanted on.
func (s *server) fewest(t *testing.T, wanted int) int {
	t.Helper()
	first, err := s.node.logs.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := s.node.logs.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	fewest := -1
	for i := first; i <= last; i++ {
		var l raft.Log
		if err := s.node.logs.GetLog(i, &l); err != nil {
			t.Fatal(err)
		}
		if l.Type != raft.LogConfiguration {
			continue
		}
		voters := 0
		for _, s := range raft.DecodeConfiguration(l.Data).Servers {
			if s.Suffrage == raft.Voter {
				voters++
			}
		}
		switch {
		case fewest < 0 && voters >= wanted:
			fewest = voters
		case fewest >= 0:
			fewest = min(fewest, voters)
		}
	}
	return fewest
}

// TestADrainingServerGivesUp: the leader that drains hands over and loses its vote to
// the server that had none.
func TestADrainingServerGivesUp(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, nil)
	gone := c.awaitLeader()
	c.roster.drain(gone.id)
	c.await("another leads and votes", func() bool {
		l := c.leader()
		return l != nil && l != gone && !slices.Contains(l.node.voters(), string(gone.id)) && len(l.node.voters()) == 3
	})
	if n := c.awaitLeader().fewest(t, 3); n != 3 {
		t.Errorf("there were %d voters for a while", n)
	}
	// It still serves.
	c.set(gone, "a", "1")
	if v, err := gone.get(c.ctx, "a"); err != nil || v != "1" {
		t.Errorf("a is %q, %v", v, err)
	}
}

// TestALostVoterIsReplaced: who is away for long loses its vote when another has it,
// never before, and does not get it back.
func TestALostVoterIsReplaced(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, func(cfg *Config) { cfg.Timing.Lost = 500 * time.Millisecond })
	var gone *server
	for _, s := range c.followers() {
		if slices.Contains(c.awaitLeader().node.voters(), string(s.id)) {
			gone = s
		}
	}
	gone.halt()
	c.await("another votes", func() bool {
		l := c.leader()
		return l != nil && !slices.Contains(l.node.voters(), string(gone.id)) && len(l.node.voters()) == 3
	})
	if n := c.awaitLeader().fewest(t, 3); n != 3 {
		t.Errorf("there were %d voters for a while", n)
	}
	var answered []bool
	for _, s := range c.awaitLeader().node.Survey(c.ctx) {
		answered = append(answered, s.Answered || s.ID == gone.id)
		if s.ID == gone.id && s.Answered {
			t.Error("a server that is down answered")
		}
	}
	if len(answered) != 4 || slices.Contains(answered, false) {
		t.Errorf("answered: %v", answered)
	}
}

// TestALoneVoterLeadsAtOnce: nobody waits an hour for a heartbeat that cannot come.
func TestALoneVoterLeadsAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *Config) {
		cfg.Timing.Heartbeat, cfg.Timing.Election = time.Hour, time.Hour
		cfg.Level = 7
	})
	c.set(c.servers[0], "a", "1")
	c.servers[0].halt()
	c.servers[0].start()
	ctx, cancel := context.WithTimeout(c.ctx, time.Minute)
	defer cancel()
	if err := c.servers[0].node.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	c.set(c.servers[0], "a", "2")
	if s := c.servers[0].node.Survey(c.ctx); len(s) != 1 || !s[0].Answered || s[0].Level != 7 || s[0].Applied == 0 {
		t.Errorf("the survey is %+v", s)
	}
}

// TestLevelsAreTold: a server learns what the others' builds know.
func TestLevelsAreTold(t *testing.T) {
	t.Parallel()
	level := uint32(2)
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.Level = level
		level++
	})
	var levels []uint32
	for _, s := range c.awaitLeader().node.Survey(c.ctx) {
		levels = append(levels, s.Level)
	}
	slices.Sort(levels)
	if !slices.Equal(levels, []uint32{2, 3, 4}) {
		t.Errorf("levels are %v", levels)
	}
}
