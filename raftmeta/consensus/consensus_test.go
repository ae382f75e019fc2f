package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestOneServer(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.servers[0]
	if err := s.node.Ready(c.ctx); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		out := c.set(s, "a", fmt.Sprint(i))
		if out.Value != out.Index {
			t.Fatalf("result %v at index %d", out.Value, out.Index)
		}
		if got, err := s.get(c.ctx, "a"); err != nil || got != fmt.Sprint(i) {
			t.Fatalf("read %q, %v after writing %d", got, err, i)
		}
	}
	if err := s.node.Bootstrap(); !errors.Is(err, meta.ErrExists) {
		t.Errorf("a second bootstrap: %v", err)
	}
	if st := s.node.Status(); st.State != "Leader" || st.Leader != s.id || !slices.Equal(st.Voters, []meta.NodeID{s.id}) || st.Age < 0 {
		t.Errorf("status %+v", st)
	}
}

func TestWriteAnywhereReadAnywhere(t *testing.T) {
	c := newCluster(t, 3, nil)
	for round := range 10 {
		for i, writer := range c.servers {
			value := fmt.Sprintf("%d of %d", round, i)
			out := c.set(writer, "a", value)
			if got := writer.machine.Get("a"); got != value {
				t.Fatalf("the writer itself has %q after %q", got, value)
			}
			if _, ok := out.Value.(uint64); !ok {
				t.Fatalf("the result is %T, not the machine's type", out.Value)
			}
			for _, reader := range c.servers {
				if got, err := reader.get(c.ctx, "a"); err != nil || got != value {
					t.Fatalf("read %q, %v after %q was acknowledged", got, err, value)
				}
			}
		}
	}
	for _, s := range c.servers {
		if !slices.IsSorted(s.machine.times) {
			t.Errorf("leader times do not rise with the log: %v", s.machine.times)
		}
	}
}

func TestRefusedByTheLeader(t *testing.T) {
	c := newCluster(t, 3, nil)
	for _, s := range c.servers {
		_, err := s.node.Propose(c.ctx, encodeWrite(t, write{Key: "a", Refuse: true}))
		if !errors.Is(err, meta.ErrConflict) {
			t.Errorf("a refused command: %v", err)
		}
	}
}

func TestRepeatedCommandHasOneEffect(t *testing.T) {
	c := newCluster(t, 3, nil)
	command := encodeWrite(t, write{ID: "once", Key: "a", Value: "1"})
	var first any
	for i := range 4 {
		out, err := c.servers[i%3].node.Propose(c.ctx, command)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = out.Value
		} else if out.Value != first {
			t.Errorf("repetition %d answered %v, the first %v", i, out.Value, first)
		}
	}
	if n := c.servers[0].machine.effects(); n != 1 {
		t.Errorf("%d effects", n)
	}
}

func TestLeaderStopsGracefully(t *testing.T) {
	c := newCluster(t, 3, nil)
	l := c.awaitLeader()
	c.set(l, "a", "before")
	l.halt()
	next := c.awaitLeader(l)
	if got, err := next.get(c.ctx, "a"); err != nil || got != "before" {
		t.Fatalf("%q, %v", got, err)
	}
	c.set(next, "a", "after")
	l.start()
	c.await("the old leader catches up", func() bool { return l.machine.Get("a") == "after" })
}

// A leader is cut off in the middle of writes by all: each that was acknowledged
// is there afterwards, each effect is there once.
func TestLeaderLostUnderWrites(t *testing.T) {
	c := newCluster(t, 3, nil)
	l := c.awaitLeader()
	ctx, cancel := context.WithCancel(c.ctx)
	var group sync.WaitGroup
	var mu sync.Mutex
	acked := map[string]string{}
	for w, s := range c.servers {
		if s == l {
			continue
		}
		group.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key, value := fmt.Sprintf("%d/%d", w, i), fmt.Sprint(i)
				if _, err := s.set(ctx, key, value); err == nil {
					mu.Lock()
					acked[key] = value
					mu.Unlock()
				}
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	c.await("writes", func() bool { return count() > 20 })
	c.cut(l, true)
	c.awaitLeader(l)
	had := count()
	c.await("writes under the next leader", func() bool { return count() > had+20 })
	c.cut(l, false)
	cancel()
	group.Wait()
	for _, s := range c.servers {
		if _, err := s.node.Read(c.ctx, meta.Strong); err != nil {
			t.Fatal(err)
		}
		for key, value := range acked {
			if got := s.machine.Get(key); got != value {
				t.Errorf("%s was acknowledged as %q and is %q", key, value, got)
			}
		}
	}
}

// A leader that answers nothing and keeps its connections, as a stopped process does,
// holds a command only until another leads.
func TestCommandLeavesASilentLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *Config) { cfg.Commit = 2 * time.Minute })
	l := c.awaitLeader()
	release := make(chan struct{})
	l.machine.holdStamps(release)
	defer close(release)
	done := make(chan error, 1)
	f := c.followers()[0]
	go func() {
		_, err := f.set(c.ctx, "a", "1")
		done <- err
	}()
	c.await("the command is with the leader", func() bool { return l.machine.held() > 0 })
	c.await("another leads", func() bool {
		_ = l.node.raft.LeadershipTransfer().Error() // it gives up after an election's time
		return l.node.Leader() != l.id
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, err := f.get(c.ctx, "a"); got != "1" || err != nil {
		t.Errorf("it is %q, %v", got, err)
	}
}

func TestNoQuorum(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(cfg *Config) { cfg.Commit = time.Second })
	l := c.awaitLeader()
	// Each waits for a second or two, an election may take longer.
	c.await("a write and a read", func() bool {
		if _, err := l.set(c.ctx, "a", "1"); err != nil {
			return false
		}
		got, err := l.get(c.ctx, "a")
		return err == nil && got == "1"
	})
	l = c.awaitLeader()
	f := c.followers()
	f[0].halt()
	f[1].halt()
	var unavailable *meta.UnavailableError
	_, err := l.set(c.ctx, "a", "2")
	if !errors.As(err, &unavailable) || unavailable.Reason != "no_quorum" || unavailable.RetryAfter == 0 {
		t.Errorf("a write without a quorum: %v", err)
	}
	// The leader has stepped down: nothing can be in its log.
	c.await("the leader steps down", func() bool { return l.node.Leader() == "" })
	var unknown *meta.UnknownOutcomeError
	if _, err = l.set(c.ctx, "a", "3"); !errors.As(err, &unavailable) || errors.As(err, &unknown) {
		t.Errorf("a write without a leader: %v", err)
	}
	for _, f := range []meta.Freshness{meta.Strong, {Mode: meta.ModeBounded, MaxAge: time.Nanosecond}, {Mode: meta.ModeLocal, After: meta.Token{Index: 1 << 40}}} {
		if _, err := l.node.Read(c.ctx, f); !errors.As(err, &unavailable) || unavailable.Reason != "no_quorum" {
			t.Errorf("%s read without a quorum: %v", f.Mode, err)
		}
	}
	asOf, err := l.node.Read(c.ctx, meta.Local)
	if err != nil || asOf.Mode != meta.ModeLocal || asOf.Age == meta.UnknownAge || asOf.Index == 0 {
		t.Errorf("a local read without a quorum: %+v, %v", asOf, err)
	}
	// And all is well again when one returns.
	f[0].start()
	c.await("writes again", func() bool { _, err := l.set(c.ctx, "a", "4"); return err == nil })
}

func TestBoundedReadsDoNotWaitAndTokensDo(t *testing.T) {
	c := newCluster(t, 3, nil)
	s := c.followers()[0]
	if err := s.node.Ready(c.ctx); err != nil {
		t.Fatal(err)
	}
	asOf, err := s.node.Read(c.ctx, meta.Freshness{Mode: meta.ModeBounded, MaxAge: time.Hour})
	if err != nil || asOf.Age > time.Hour || asOf.Mode != meta.ModeBounded {
		t.Errorf("%+v, %v", asOf, err)
	}
	out := c.set(c.awaitLeader(), "a", "1")
	if _, err := s.node.Read(c.ctx, meta.Freshness{Mode: meta.ModeLocal, After: meta.Token{Index: out.Index}}); err != nil {
		t.Fatal(err)
	}
	if got := s.machine.Get("a"); got != "1" {
		t.Errorf("a read with the token of the write sees %q", got)
	}
}

func TestVisibleEverywhereAfterAWait(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4, nil) // the fourth has no vote and is waited for too
	for _, s := range c.servers {
		c.await("all heard", func() bool { return len(s.node.Status().Peers) == 3 })
	}
	for i := range 30 {
		writer := c.servers[i%len(c.servers)]
		out := c.set(writer, "a", fmt.Sprint(i))
		if !writer.node.WaitVisible(c.ctx, out.Index) {
			continue // it is a bounded wait, and this machine may be busy
		}
		for _, s := range c.servers {
			if s.node.Applied() < out.Index {
				t.Fatalf("index %d is said to be visible, %s is at %d", out.Index, s.id, s.node.Applied())
			}
		}
	}
	// One that is cut off is soon waited for no more.
	f := c.followers()
	c.cut(f[0], true)
	out := c.set(c.awaitLeader(f[0]), "a", "last")
	c.await("the others alone count", func() bool { return c.awaitLeader(f[0]).node.WaitVisible(c.ctx, out.Index) })
}

func TestSnapshotReachesAFreshServer(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.Snapshots = Snapshots{Every: 20 * time.Millisecond, Entries: 16, Trailing: 8, SegmentBytes: 4 << 10}
	})
	for i := range 100 {
		c.set(c.awaitLeader(), fmt.Sprint(i), fmt.Sprint(i))
	}
	c.await("logs cut off", func() bool {
		for _, s := range c.servers {
			if first, err := s.node.logs.FirstIndex(); err != nil || first < 50 {
				return false
			}
		}
		return true
	})
	fresh := c.add(nil)
	fresh.start()
	c.await("the fresh server has it all", func() bool { return fresh.machine.Get("99") == "99" })
	if got := fresh.machine.Get("0"); got != "0" {
		t.Errorf("what was in the snapshot: %q", got)
	}
	if fresh.node.Status().Snapshot == 0 {
		t.Error("it came without a snapshot")
	}
	c.set(fresh, "new", "1")
	// And it comes back from its own disk, with its machine as of the last flush.
	fresh.halt()
	fresh.machine.powerLoss(t)
	fresh.start()
	c.await("the restarted server has it all", func() bool {
		return fresh.machine.Get("new") == "1" && fresh.machine.Get("0") == "0"
	})
}

func TestRestartReplays(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	for i := range 50 {
		c.set(c.servers[i%3], fmt.Sprint(i), fmt.Sprint(i))
	}
	for _, s := range c.servers {
		s.halt()
	}
	for i, s := range c.servers {
		if i != 0 { // one keeps its state, the others lose it: the log brings it back
			s.machine.powerLoss(t)
		}
		s.start()
	}
	for _, s := range c.servers {
		// All of them must elect first, for which a read does not wait long enough.
		if err := s.node.Ready(c.ctx); err != nil {
			t.Fatal(err)
		}
		if got, err := s.get(c.ctx, "49"); err != nil || got != "49" {
			t.Fatalf("%q, %v", got, err)
		}
		if n := s.machine.effects(); n != 50 {
			t.Errorf("%d effects of 50 commands", n)
		}
	}
}

func TestStateBehindItsSnapshotIsRefused(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) {
		cfg.Snapshots = Snapshots{Every: 20 * time.Millisecond, Entries: 4, Trailing: 1}
	})
	s := c.servers[0]
	for i := range 20 {
		c.set(s, "a", fmt.Sprint(i))
	}
	c.await("a snapshot", func() bool { return s.node.Status().Snapshot > 0 })
	s.halt()
	s.machine = newRegisters()
	if err := s.tryOpen(); !errors.Is(err, meta.ErrCorrupt) {
		t.Fatalf("a server whose state is gone opens: %v", err)
	}
}

func TestMembershipFollowsTheRoster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	for range 4 {
		c.add(nil).start()
	}
	c.awaitVoters(5)
	gone := c.followers()[0]
	c.roster.drop(gone.id)
	c.await("the removed server is out", func() bool {
		return !slices.ContainsFunc(c.awaitLeader(gone).node.servers(), func(s raftServer) bool { return string(s.ID) == string(gone.id) })
	})
	gone.halt()
	c.awaitVoters(3)
	// The leader too can be removed: another leads first.
	l := c.awaitLeader()
	c.roster.drop(l.id)
	c.await("the removed leader is out", func() bool {
		next := c.leader()
		return next != nil && next != l &&
			!slices.ContainsFunc(next.node.servers(), func(s raftServer) bool { return string(s.ID) == string(l.id) })
	})
	c.set(c.awaitLeader(l), "a", "1")
}

// view is the roster as one server has it: the others may have heard of a removal first.
type view struct {
	Roster
	mu      sync.Mutex
	removed meta.NodeID
}

func (v *view) Servers() []meta.Node {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.DeleteFunc(v.Roster.Servers(), func(n meta.Node) bool { return n.ID == v.removed })
}

// leaderAndHeir returns the leader and whom Raft hands over to when all are equally far, as
// they are now: the first of the configuration.
func (c *cluster) leaderAndHeir() (l, heir *server) {
	c.t.Helper()
	l = c.awaitLeader()
	c.set(l, "a", "1")
	c.await("all have it", func() bool {
		return !slices.ContainsFunc(c.servers, func(s *server) bool { return s.machine.Get("a") != "1" })
	})
	configured := l.node.servers()
	first := configured[slices.IndexFunc(configured, func(s raftServer) bool { return s.ID != raftID(l.id) })]
	return l, c.servers[slices.IndexFunc(c.servers, func(s *server) bool { return raftID(s.id) == first.ID })]
}

// awaitHandOver has l give leadership away until another leads: an election may take
// longer than an attempt, or have come in between.
func (c *cluster) awaitHandOver(l *server) {
	c.t.Helper()
	c.await("another leads", func() bool {
		_ = l.node.giveAway()
		next := c.leader()
		return next != nil && next != l
	})
}

// A voter that refuses the leader, which is out of its roster, is whom Raft would hand over
// to; the leader tries the others. Nothing else would end this: the one that still hears it
// gives nobody a vote.
func TestALeaderHandsOverToWhoHearsIt(t *testing.T) {
	t.Parallel()
	views := map[meta.NodeID]*view{}
	c := newCluster(t, 3, func(cfg *Config) {
		views[cfg.Self] = &view{Roster: cfg.Roster}
		cfg.Roster = views[cfg.Self]
	})
	l, heir := c.leaderAndHeir()
	v := views[heir.id]
	v.mu.Lock()
	v.removed = l.id
	v.mu.Unlock()
	heir.node.layer.sweep()
	c.awaitHandOver(l)
}

// The same of one that keeps its connections and answers nothing, as a stopped process
// does: it holds up neither the others' turn nor commands for long.
func TestALeaderHandsOverPastASilentVoter(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	c := newCluster(t, 3, nil)
	l, heir := c.leaderAndHeir()
	heir.host.SetStreamHandler(heir.node.protocol("raft"), func(stream network.Stream) {
		<-release
		_ = stream.Reset()
	})
	_ = heir.host.Network().ClosePeer(l.host.ID())
	c.awaitHandOver(l)
}

func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, nil)
	stranger := c.add(nil)
	c.roster.drop(stranger.id)
	stranger.host.Peerstore().AddAddrs(c.servers[0].host.ID(), c.servers[0].host.Addrs(), peerstore.PermanentAddrTTL)
	for _, name := range []string{"raft", "command", "round"} {
		s, err := stranger.host.NewStream(c.ctx, c.servers[0].host.ID(), protocol.ID("/shoal/test/"+name+"/1"))
		if err != nil {
			continue
		}
		_, _ = s.Write([]byte{0})
		if n, err := s.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Errorf("%s: a stranger was answered", name)
		}
	}
	// A server of the roster that is not in the configuration may ask, not take part.
	c.roster.put(meta.Node{ID: stranger.id, Role: meta.RoleServer, Region: "r1"})
	if c.servers[0].node.admits(stranger.host.ID()) == false {
		t.Error("a server of the roster is refused")
	}
}

// A server that was away while the others changed knows neither the roster nor the
// configuration that the leader is in. It asks those it knows.
func TestReturnAfterALongAbsence(t *testing.T) {
	c := newCluster(t, 3, nil)
	away := c.followers()[0]
	old := &roster{nodes: c.roster.Servers()}
	away.halt()
	newcomer := c.add(nil)
	newcomer.start()
	c.await("the newcomer is in", func() bool { return len(newcomer.node.servers()) == 4 })
	c.set(c.awaitLeader(), "a", "1")
	// Let the newcomer lead: it takes the vote of the one that is away.
	// The rule wants another to vote, and takes its vote back when it is seen first.
	c.await("the newcomer leads", func() bool {
		l := c.leader()
		if l != nil && l != newcomer && l.node.raft.AddVoter(raftID(newcomer.id), raftAddress(newcomer.id), 0, 0).Error() == nil {
			_ = l.node.raft.LeadershipTransferToServer(raftID(newcomer.id), raftAddress(newcomer.id)).Error()
		}
		return l == newcomer
	})
	away.roster = old
	heard := make(chan []meta.Node, 16)
	away.tune = func(cfg *Config) { cfg.Learned = func(n []meta.Node) { heard <- n } }
	away.start()
	c.await("the returned server catches up", func() bool { return away.machine.Get("a") == "1" })
	select {
	case nodes := <-heard:
		if len(nodes) != 1 || nodes[0].ID != newcomer.id {
			t.Errorf("learned %v", nodes)
		}
	default:
		t.Log("it caught up without: another led meanwhile")
	}
}

func TestBrokenMachineStopsTheNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, func(cfg *Config) { cfg.Commit = 500 * time.Millisecond })
	s := c.servers[0]
	s.machine.mu.Lock()
	s.machine.fail = errors.New("no disk")
	s.machine.mu.Unlock()
	var unknown *meta.UnknownOutcomeError
	if _, err := s.node.Propose(c.ctx, encodeWrite(t, write{Key: "a"})); !errors.As(err, &unknown) {
		t.Errorf("a write to a broken machine: %v", err)
	}
	select {
	case err := <-s.fatal:
		t.Log(err)
	case <-c.ctx.Done():
		t.Fatal("nobody was told")
	}
}

func TestCallersPatience(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	l := c.awaitLeader()
	for _, f := range c.followers() {
		f.halt()
	}
	c.await("the leader steps down", func() bool { return l.node.Leader() == "" })
	var unavailable *meta.UnavailableError
	short, cancel := context.WithTimeout(c.ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := l.set(short, "a", "1"); !errors.As(err, &unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("out of time: %v", err)
	}
	if _, err := l.node.Read(short, meta.Strong); !errors.As(err, &unavailable) {
		t.Errorf("out of time: %v", err)
	}
	gone, cancel := context.WithCancel(c.ctx)
	cancel()
	if _, err := l.set(gone, "a", "1"); !errors.Is(err, context.Canceled) || errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("given up: %v", err)
	}
}
