package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
	wal "github.com/hashicorp/raft-wal"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Node is one server's part in the group.
type Node struct {
	cfg       Config
	log       *slog.Logger
	m         *metrics
	logs      *guardedLog
	snapshots *snapshotStore
	replica   *replica
	raft      *raft.Raft // set before running closes
	layer     *streamLayer

	commands  *exchange[forward, forwarded]
	questions *exchange[question, answer]
	rounds    rounds
	peers     peers
	learned   learned
	strangers chan struct{}
	nudges    chan struct{}
	leader    broadcast
	leading   gate
	anew      bool // JoinAnew was called
	proposals *semaphore.Weighted

	stamp   sync.Mutex // held from the choice of a time until the command is in Raft's queue
	stamped meta.Time  // the last one
	// stampTerm is the term that stamped is good for. Leadership may be lost and won
	// again before lead hears of it, and the log of the new term may hold later times.
	stampTerm uint64
	futures   sync.WaitGroup

	running  chan struct{} // closes when Run has Raft
	stopping chan struct{} // closes when Run ends

	mu    sync.Mutex
	begin func(func(context.Context)) // starts a goroutine in Run's time; nil outside it
	group sync.WaitGroup              // of begin
}

// errStopping says that this server goes down; another may know.
var errStopping = fmt.Errorf("this server is stopping: %w", &meta.UnavailableError{Reason: "starting", RetryAfter: time.Second})

// New opens the log, and brings the machine to the last snapshot when it is behind.
//
// Errors: of the disk; meta.ErrCorrupt for a log or state that cannot be used.
func New(cfg Config) (*Node, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, log: cfg.Log, m: newMetrics(cfg.Metrics),
		peers:     peers{all: map[meta.NodeID]*peerState{}},
		strangers: make(chan struct{}, 1), nudges: make(chan struct{}, 1),
		proposals: semaphore.NewWeighted(maxProposalBytes),
		running:   make(chan struct{}), stopping: make(chan struct{}),
	}
	n.rounds.n = n
	n.rounds.inquiries.ask, n.rounds.inquiries.spawn = n.ask, n.spawn
	n.commands = &exchange[forward, forwarded]{
		host: cfg.Host, protocol: n.protocol("command"), admits: n.admits, refused: n.refused, answer: n.answerForward, log: cfg.Log,
	}
	n.questions = &exchange[question, answer]{
		host: cfg.Host, protocol: n.protocol("round"), admits: n.admits, refused: n.refused, answer: n.answerQuestion, log: cfg.Log,
	}
	if err := os.MkdirAll(walDir(cfg.Dir), 0o700); err != nil {
		return nil, fmt.Errorf("open raft: %w", err)
	}
	var err error
	if n.snapshots, err = openSnapshots(filepath.Join(cfg.Dir, "snapshots"), cfg.Machine.Freeze); err != nil {
		return nil, fmt.Errorf("open raft snapshots: %w", err)
	}
	w, err := wal.Open(walDir(cfg.Dir), wal.WithLogger(newRaftLogger(cfg.Log, "wal")), wal.WithSegmentSize(cfg.Snapshots.SegmentBytes))
	if err != nil {
		if errors.Is(err, wal.ErrCorrupt) {
			err = fmt.Errorf("%w: %w", err, meta.ErrCorrupt)
		}
		return nil, fmt.Errorf("open the raft log: %w", err)
	}
	entries := entryStore(w)
	if cfg.entries != nil {
		entries = cfg.entries(w)
	}
	n.logs = &guardedLog{wal: entries, limit: cfg.Stall, stalled: cfg.Fatal, corrupt: n.corrupt, covered: n.snapshots.covers, room: cfg.Room, m: n.m}
	n.replica = &replica{
		machine: cfg.Machine, m: n.m, fatal: cfg.Fatal, stall: applyStalls * cfg.Stall, snapshots: n.snapshots, configured: n.configurationChanged,
	}
	if err := n.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("open raft: %w", err), w.Close())
	}
	return n, nil
}

func (n *Node) protocol(name string) protocol.ID {
	return protocol.ID("/shoal/" + n.cfg.Cluster + "/" + name + "/1")
}

// recover makes log, snapshot and machine agree after whatever ended the last run.
func (n *Node) recover() error {
	last, ok, err := n.snapshots.newest()
	if err != nil {
		return err
	}
	if !ok {
		n.replica.applied.raise(n.cfg.Machine.Applied())
		return nil
	}
	if last.Installed && n.cfg.Machine.Applied() < last.Index {
		_, stream, err := n.snapshots.Open(last.id)
		if err != nil {
			return err
		}
		err = n.cfg.Machine.Restore(stream)
		if err = errors.Join(err, stream.Close()); err != nil {
			return fmt.Errorf("restore the installed state: %w", err)
		}
	}
	if last.Installed {
		if err := n.snapshots.restored(n.cfg.Machine.Applied()); err != nil {
			return err
		}
	}
	if n.cfg.Machine.Applied() < last.MachineIndex {
		return fmt.Errorf("the state ends at %d and the log begins after %d: %w",
			n.cfg.Machine.Applied(), last.Index, meta.ErrCorrupt)
	}
	n.replica.applied.raise(max(last.Index, n.cfg.Machine.Applied()))
	// A log that ends before the installed snapshot cannot be appended to.
	end, err := n.logs.LastIndex()
	if err != nil {
		return err
	}
	if end > 0 && end < last.Index {
		return n.logs.DeleteRange(1, end)
	}
	return nil
}

// HasState reports whether this server has been part of a cluster.
func (n *Node) HasState() (bool, error) {
	return raft.HasExistingState(n.logs, n.logs, n.snapshots)
}

// Bootstrap makes this server the only voter of a new cluster. It comes between New
// and Run. Errors: meta.ErrExists when it has state.
func (n *Node) Bootstrap() error {
	id := string(n.cfg.Self)
	err := raft.BootstrapCluster(n.raftConfig(), n.logs, n.logs, n.snapshots, nil, raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(id), Address: raft.ServerAddress(id)}},
	})
	if errors.Is(err, raft.ErrCantBootstrap) {
		return fmt.Errorf("bootstrap: this server has been part of a cluster: %w", meta.ErrExists)
	}
	return err
}

func (n *Node) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	t := n.cfg.Timing
	c.LocalID = raft.ServerID(n.cfg.Self)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout, c.CommitTimeout = t.Heartbeat, t.Election, t.Lease, t.Commit
	c.MaxAppendEntries = maxAppendEntries
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false
	c.TrailingLogs = n.cfg.Snapshots.Trailing
	c.SnapshotInterval, c.SnapshotThreshold = n.cfg.Snapshots.Every, n.cfg.Snapshots.Entries
	c.NoSnapshotRestoreOnStart = true // recover did
	c.NoLegacyTelemetry = true
	c.Logger = newRaftLogger(n.log, "raft")
	return c
}

// Run takes part until ctx ends, then hands leadership over and stops. It returns
// nil then.
//
// Errors: meta.ErrCorrupt when the log cannot be read.
func (n *Node) Run(ctx context.Context) error {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	// Who waits for running asks at once; others are answered when it is closed.
	n.commands.open()
	n.questions.open()
	if n.anew {
		if err := n.rejoin(ctx); err != nil {
			n.commands.stop()
			n.questions.stop()
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	n.layer = newStreamLayer(n.cfg.Host, n.protocol("raft"), n.admitsRaft, n.refused)
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: n.layer, MaxPool: idleLines, MaxRPCsInFlight: 1, Timeout: transportTimeout,
		Logger: newRaftLogger(n.log, "raft-transport"), MsgpackUseNewTimeFormat: true,
	})
	if err := n.startRaft(transport); err != nil {
		return errors.Join(err, transport.Close())
	}
	changes := make(chan raft.Observation, 16)
	observer := raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	n.raft.RegisterObserver(observer)
	n.standAlone(transport)
	n.mu.Lock()
	n.begin = func(f func(context.Context)) { n.group.Go(func() { f(inner) }) }
	n.mu.Unlock()
	close(n.running)
	n.commands.start(inner)
	n.questions.start(inner)

	group, loops := errgroup.WithContext(inner)
	group.Go(func() error { return n.watchLeader(loops, changes) })
	group.Go(func() error { return n.lead(loops) })
	group.Go(func() error { return n.freshen(loops) })
	group.Go(func() error { return n.learn(loops) })
	group.Go(func() error { return n.keepRoom(loops) })
	<-ctx.Done()

	n.handOver()
	n.mu.Lock()
	n.begin = nil
	n.mu.Unlock()
	n.stamp.Lock()
	close(n.stopping)
	n.stamp.Unlock()
	cancel()
	err := group.Wait()
	n.settle()
	n.raft.DeregisterObserver(observer)
	err = errors.Join(err, n.raft.Shutdown().Error())
	transport.CloseStreams()
	err = errors.Join(err, n.layer.Close())
	n.commands.stop()
	n.questions.stop()
	n.group.Wait()
	return err
}

// startRaft starts hashicorp/raft, which panics on a log that it cannot read.
func (n *Node) startRaft(transport *raft.NetworkTransport) (err error) {
	cache, err := raft.NewLogCache(logCacheEntries, n.logs)
	if err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil {
			cause, ok := p.(error)
			if !ok {
				panic(p)
			}
			err = fmt.Errorf("start raft: %w", cause)
		}
	}()
	if n.raft, err = raft.NewRaft(n.raftConfig(), n.replica, cache, n.logs, n.snapshots, impatient{transport, n.cfg.Timing.Election / 2}); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	return nil
}

// Close frees the log. Run must have returned.
func (n *Node) Close() error { return n.logs.wal.Close() }

// spawn runs f in Run's time, false when that is over.
func (n *Node) spawn(f func(ctx context.Context)) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.begin == nil {
		return false
	}
	n.begin(f)
	return true
}

// started waits for Run.
func (n *Node) started(ctx context.Context) error {
	select {
	case <-n.running:
		return nil
	default:
	}
	select {
	case <-n.running:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("this server has not started: %w", &meta.UnavailableError{Reason: "starting", RetryAfter: time.Second})
	}
}

// watchLeader tells those who wait when the leader changes.
func (n *Node) watchLeader(ctx context.Context, changes <-chan raft.Observation) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
			n.m.leaderChanges.Inc()
			n.log.Debug("the leader changed", "leader", n.Leader())
			n.leader.fire()
		}
	}
}

// lead does a leader's duties while this server leads.
func (n *Node) lead(ctx context.Context) error {
	finish := func() {}
	defer func() { finish() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case leads := <-n.raft.LeaderCh():
			finish()
			finish = func() {}
			if !leads {
				n.log.Info("leadership lost")
				continue
			}
			n.log.Info("leadership won", "term", n.raft.CurrentTerm())
			finish = n.beginTerm(ctx)
		}
	}
}

// beginTerm starts term and returns what ends it.
func (n *Node) beginTerm(ctx context.Context) (finish func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.term(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// term is what a leader does in its term.
func (n *Node) term(ctx context.Context) {
	// A leader's log holds all that was ever stamped and may still be committed.
	n.stamp.Lock()
	n.stampTerm = n.raft.CurrentTerm()
	n.stamped = max(n.stamped, n.lastStamp())
	n.stamp.Unlock()
	// The Tick is the first command that this leader commits: once it is applied the
	// state holds all of earlier terms, and rounds can end on it.
	for n.tick(ctx) != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	n.leading.open()
	n.m.leading.Set(1)
	defer func() {
		n.leading.shut()
		n.m.leading.Set(0)
	}()
	pilots := autopilot.New(n.raft, pilot{n}, autopilot.WithPromoter(pilot{n}), autopilot.WithLogger(newRaftLogger(n.log, "autopilot")),
		autopilot.WithUpdateInterval(n.cfg.Timing.Members), autopilot.WithReconcileInterval(2*n.cfg.Timing.Members))
	pilots.Start(ctx)
	defer func() { <-pilots.Stop() }()
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-n.nudges:
				_ = n.tick(ctx) // the round that wanted it nudges again
			}
		}
	})
	every := time.NewTicker(n.cfg.Timing.Members)
	defer every.Stop()
	for {
		n.reconcile()
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// lastStamp returns the time of the last command in the log, 0 when it has none near
// its end.
func (n *Node) lastStamp() meta.Time {
	const far = 1024 // configurations and no-ops in a row
	last := n.raft.LastIndex()
	for back := range min(last, far) {
		var l raft.Log
		if err := n.logs.GetLog(last-back, &l); err != nil {
			return 0 // a snapshot was just installed
		}
		if l.Type == raft.LogCommand {
			return n.cfg.Machine.StampOf(l.Data)
		}
	}
	return 0
}

// tick commits a command that changes nothing.
func (n *Node) tick(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Commit)
	defer cancel()
	_, err := n.commitStamped(ctx, n.cfg.Machine.Tick())
	return err
}

// nudge asks for a Tick when this server leads; one is enough for all who ask.
func (n *Node) nudge() {
	if n.raft.State() != raft.Leader {
		return
	}
	select {
	case n.nudges <- struct{}{}:
	default:
	}
}

// handOver gives leadership away, and reports whether this server leads no more, or
// nobody else could.
func (n *Node) handOver() bool {
	if n.raft.State() != raft.Leader || len(n.voters()) < 2 {
		return true
	}
	done := make(chan error, 1)
	go func() { done <- n.giveAway() }()
	select {
	case err := <-done:
		if err != nil {
			n.log.Warn("leadership not handed over, the others will elect", "error", err)
		}
		return err == nil
	case <-time.After(2 * n.cfg.Timing.Election):
		n.log.Warn("leadership not handed over in time, the others will elect")
		return false
	}
}

// settle waits until Raft has answered what it was given, for it forgets what is
// still in its queue when it stops. Without a quorum it answers when the leader steps
// down; with a hung disk never, and then this does not wait either.
func (n *Node) settle() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.futures.Wait()
	}()
	select {
	case <-done:
	case <-time.After(n.cfg.Timing.Lease + 2*time.Second):
	}
}

// configurationChanged ends the streams of servers that are out.
func (n *Node) configurationChanged() {
	n.spawn(func(context.Context) {
		n.layer.sweep()
		n.commands.sweep()
		n.questions.sweep()
	})
}

// Leader returns who leads as far as this server knows, "" when nobody does.
func (n *Node) Leader() meta.NodeID {
	select {
	case <-n.running:
	default:
		return ""
	}
	_, id := n.raft.LeaderWithID()
	return meta.NodeID(id)
}

// Applied returns the index up to which this server's state is applied.
func (n *Node) Applied() uint64 { return n.replica.applied.get() }

// Ready waits until this server has state and can serve: a leader is known and a
// round has succeeded. Errors: of ctx.
func (n *Node) Ready(ctx context.Context) error {
	if err := n.started(ctx); err != nil {
		return err
	}
	for {
		changed := n.leader.changed()
		if n.Leader() != "" {
			if _, err := n.rounds.join(ctx); err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(roundAgain):
		}
	}
}

func (n *Node) servers() []raft.Server {
	select {
	case <-n.running:
	default:
		return nil
	}
	return n.raft.GetConfiguration().Configuration().Servers
}

// voters returns the ids of the voters of the latest configuration in the log,
// sorted.
func (n *Node) voters() []string {
	var out []string
	for _, s := range n.servers() {
		if s.Suffrage == raft.Voter {
			out = append(out, string(s.ID))
		}
	}
	slices.Sort(out)
	return out
}

func (n *Node) lastAndVoters() (uint64, []string) { return n.raft.LastIndex(), n.voters() }

func (n *Node) lastTerm() uint64 {
	term, err := strconv.ParseUint(n.raft.Stats()["last_log_term"], 10, 64)
	if err != nil {
		return 0
	}
	return term
}

// contact is the time since the leader was heard, negative when it never was.
func (n *Node) contact() time.Duration {
	if n.raft.State() == raft.Leader {
		return 0
	}
	if last := n.raft.LastContact(); !last.IsZero() {
		return time.Since(last)
	}
	return -1
}

// Status is what `shoal status` says of the group as this server sees it.
type Status struct {
	Self      meta.NodeID   `json:"self"`
	State     string        `json:"state"` // Follower, Candidate, Leader, Shutdown; Starting
	Term      uint64        `json:"term"`
	Leader    meta.NodeID   `json:"leader"`
	Last      uint64        `json:"last_index"`
	Committed uint64        `json:"commit_index"`
	Applied   uint64        `json:"applied_index"`
	Snapshot  uint64        `json:"snapshot_index"`
	Voters    []meta.NodeID `json:"voters"`
	NonVoters []meta.NodeID `json:"non_voters"`
	// Age is how old the local state may be, -1 when unknown.
	Age   time.Duration `json:"age"`
	Peers []Peer        `json:"peers"`
}

// Status returns a picture that is not one instant.
func (n *Node) Status() Status {
	s := Status{Self: n.cfg.Self, State: "Starting", Applied: n.Applied(), Age: -1, Voters: []meta.NodeID{}, NonVoters: []meta.NodeID{}}
	if age := n.rounds.freshest().age(); age != meta.UnknownAge {
		s.Age = age
	}
	select {
	case <-n.running:
	default:
		return s
	}
	s.State, s.Term, s.Leader = n.raft.State().String(), n.raft.CurrentTerm(), n.Leader()
	s.Last, s.Committed = n.raft.LastIndex(), n.raft.CommitIndex()
	if last, ok, err := n.snapshots.newest(); ok && err == nil {
		s.Snapshot = last.Index
	}
	for _, server := range n.servers() {
		if server.Suffrage == raft.Voter {
			s.Voters = append(s.Voters, meta.NodeID(server.ID))
		} else {
			s.NonVoters = append(s.NonVoters, meta.NodeID(server.ID))
		}
	}
	slices.Sort(s.Voters)
	slices.Sort(s.NonVoters)
	s.Peers = n.peers.list()
	slices.SortFunc(s.Peers, func(a, b Peer) int { return compare(a.ID, b.ID) })
	return s
}

func compare(a, b meta.NodeID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// corrupt is told of an entry that cannot be read. Before Raft runs it is an error
// of Run, afterwards Raft would panic.
func (n *Node) corrupt(err error) {
	select {
	case <-n.running:
		n.cfg.Fatal(err)
	default:
	}
}

// gate is open while this server leads and knows the state of earlier terms.
type gate struct {
	mu sync.Mutex
	ch chan struct{} // closed while open
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ch == nil {
		g.ch = make(chan struct{})
	}
	close(g.ch)
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ch = nil
}

// opened returns a channel that is closed when the gate is open.
func (g *gate) opened() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ch == nil {
		g.ch = make(chan struct{})
	}
	return g.ch
}

// broadcast is an event that many may wait for.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// changed returns a channel that closes at the next fire.
func (b *broadcast) changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) fire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
