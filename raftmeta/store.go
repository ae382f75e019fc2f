package raftmeta

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/raftmeta/consensus"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// StoreConfig is what a Store needs. Zero fields take the default named beside them.
type StoreConfig struct {
	Dir     string      // holds state/ and raft/; created
	Self    meta.NodeID // the peer id of Host
	Cluster string      // id, in the protocol ids
	Host    host.Host   // the raft host; its address book knows the servers
	// Profile is a name in consensus.Profiles; "site". Timing, when set, is used
	// instead.
	Profile   string
	Timing    consensus.Timing
	Snapshots consensus.Snapshots
	// Bootstrap, on the first server of a cluster, is its first command. It changes
	// nothing when the cluster exists.
	Bootstrap *state.Bootstrap
	// Servers are those that admitted this one, for the time before it has state.
	Servers []meta.Node
	// Rejoins says that this server was of the cluster before this start: without a log
	// it must not take part as the voter that it may be (consensus, rejoin.go).
	Rejoins bool
	// Learned, when set, is told of servers that the roster does not have yet and
	// that may connect: after a long absence even the leader can be one.
	Learned func([]meta.Node)
	// Room, when set, says how much room the disks of log and state have; DiskFull,
	// when set, makes some when the state's refuses a write.
	Room     func() consensus.Room
	DiskFull func()
	// Fatal is told what this process cannot go on with, see consensus.Config.
	Fatal func(error)
	// CompareEvery is how often the servers compare their states; 6 h.
	CompareEvery time.Duration
	CacheBytes   int64 // of the state's block cache; state.Options has the default

	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Store is the metadata on a server: its own copy of the state, changed through
// Raft. It is an Asker, a Doer and a Watcher, safe for concurrent use.
type Store struct {
	cfg     StoreConfig
	machine *state.Machine
	node    *consensus.Node
	view    replicated

	compared chan *state.View // states to be hashed
	hashed   struct {         // what this process hashed last; of the goroutine of compare
		index uint64
		sum   []byte
	}
}

var (
	_ Asker   = (*Store)(nil)
	_ Doer    = (*Store)(nil)
	_ Watcher = (*Store)(nil)
)

// OpenStore opens the state and the log. With Bootstrap it founds the cluster when
// this server has never been part of one.
//
// Errors: of the disk; meta.ErrCorrupt; meta.ErrInvalid for an unknown profile, or
// a server that has neither state, nor Servers, nor Bootstrap.
func OpenStore(cfg StoreConfig) (*Store, error) {
	if cfg.Profile == "" {
		cfg.Profile = "site"
	}
	timing, ok := consensus.Profiles[cfg.Profile]
	if !ok {
		return nil, fmt.Errorf("raft profile %q, use site or wan: %w", cfg.Profile, meta.ErrInvalid)
	}
	if cfg.Timing != (consensus.Timing{}) {
		timing = cfg.Timing
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := markedDamaged(cfg.Dir); err != nil {
		return nil, advised(cfg.Dir, err)
	}
	if cfg.CompareEvery == 0 {
		cfg.CompareEvery = compareEvery
	}
	s := &Store{cfg: cfg, compared: make(chan *state.View, 1)}
	machine, err := state.Open(filepath.Join(cfg.Dir, "state"), state.Options{Log: cfg.Log, CacheBytes: cfg.CacheBytes, Damaged: s.fatal, DiskFull: cfg.DiskFull, Compare: s.toCompare})
	if err != nil {
		return nil, advised(cfg.Dir, err)
	}
	s.machine, s.view.machine = machine, machine
	if s.node, err = consensus.New(consensus.Config{
		Dir: filepath.Join(cfg.Dir, "raft"), Self: cfg.Self, Cluster: cfg.Cluster, Host: cfg.Host,
		Machine: &s.view, Roster: &s.view, Seeds: cfg.Servers, Timing: timing, Snapshots: cfg.Snapshots, Fatal: s.fatal, Room: cfg.Room, Learned: cfg.Learned,
		Level: state.Level,
		Log:   cfg.Log, Metrics: cfg.Metrics,
	}); err != nil {
		return nil, errors.Join(advised(cfg.Dir, err), machine.Close())
	}
	if err := s.found(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// found makes this server the first voter, if that is what it is.
func (s *Store) found() error {
	has, err := s.node.HasState()
	switch {
	case err != nil || has:
		return err
	case s.cfg.Bootstrap != nil:
		return s.node.Bootstrap()
	case len(s.cfg.Servers) == 0:
		return fmt.Errorf("this server has no state and knows no other server, join it: %w", meta.ErrInvalid)
	}
	if s.cfg.Rejoins {
		s.node.JoinAnew()
	}
	return nil
}

// Run takes part in the cluster until ctx ends, then hands leadership over.
func (s *Store) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return advised(s.cfg.Dir, s.node.Run(ctx)) })
	group.Go(func() error { return s.compare(ctx) })
	if s.cfg.Bootstrap != nil {
		group.Go(func() error { return s.bootstrap(ctx) })
	}
	return group.Wait()
}

// bootstrap proposes the first command until it is in. Repeated, it changes nothing.
func (s *Store) bootstrap(ctx context.Context) error {
	if cluster, _, err := Ask(ctx, s, meta.Local, state.GetCluster{}); err == nil && cluster.ID != "" {
		return nil
	}
	for {
		_, err := s.DoHere(ctx, state.Origin{Principal: "node:" + string(s.cfg.Self)}, *s.cfg.Bootstrap)
		switch {
		case err == nil || ctx.Err() != nil:
			return nil
		case !errors.Is(err, meta.ErrUnavailable):
			return fmt.Errorf("found the cluster: %w", err)
		}
	}
}

// Close frees the state and the log. Run must have returned.
func (s *Store) Close() error {
	err := s.node.Close()
	s.forgetCompared() // with it open the state would stay so
	return errors.Join(err, s.machine.Close())
}

// Ready waits until this server serves: a leader is known, a read round succeeded
// and the cluster is founded. Errors: of ctx.
func (s *Store) Ready(ctx context.Context) error {
	for {
		if err := s.node.Ready(ctx); err != nil {
			return err
		}
		applied := s.view.Applied()
		if now, err := s.view.read(); err == nil && now.level > 0 {
			return nil
		}
		if err := s.machine.Wait(ctx, applied+1); err != nil {
			return err
		}
	}
}

// Answer implements Asker from the local state, once it is as fresh as f says.
//
// Errors: of Asker; meta.ErrConflict for a token from before a recovery.
func (s *Store) Answer(ctx context.Context, f meta.Freshness, q Request) (meta.AsOf, error) {
	if err := s.checkToken(f.After); err != nil {
		return meta.AsOf{}, err
	}
	asOf, err := s.node.Read(ctx, f)
	if err != nil {
		return meta.AsOf{}, fmt.Errorf("%s: %w", q.Name(), err)
	}
	v, err := s.machine.View()
	if err != nil {
		return meta.AsOf{}, fmt.Errorf("%s: %w", q.Name(), err)
	}
	now, err := s.view.read()
	if err == nil {
		asOf.Index, asOf.Epoch = v.Index(), now.epoch
		err = q.Run(v)
	}
	if state.Damaged(err) {
		s.fatal(fmt.Errorf("%s: %w", q.Name(), err))
	}
	return asOf, errors.Join(err, v.Close())
}

func (s *Store) checkToken(t meta.Token) error {
	if t.Index == 0 {
		return nil
	}
	now, err := s.view.read()
	switch {
	case err != nil:
		return err
	case t.Epoch < now.epoch:
		return fmt.Errorf("token %s is from before the cluster was recovered, read without it: %w", t, meta.ErrConflict)
	case t.Epoch > now.epoch:
		return fmt.Errorf("token %s: this server has not seen that epoch: %w", t,
			&meta.UnavailableError{Reason: "no_quorum", RetryAfter: 2e9})
	}
	return nil
}

// Do implements Doer. It answers when the change is applied on every server that
// was heard from in the last 5 s, at most 500 ms after it is applied here; what
// nobody looks for elsewhere does not wait for the others. o.RequestID and o.Node
// are filled in when empty; the leader stamps o.Time.
func (s *Store) Do(ctx context.Context, o state.Origin, c state.Command) (Receipt, error) {
	r, err := s.DoHere(ctx, o, c)
	if err == nil && visible(c) {
		s.node.WaitVisible(ctx, r.Token.Index)
	}
	return r, err
}

// visible reports whether clients of other servers look for what c does without
// the token of the write.
func visible(c state.Command) bool {
	switch c.(type) {
	case state.LinkBlob, state.MountBlob, state.StageReferences, state.ExpireUploads,
		state.ReportReplicas, state.DemandReplica, state.SealRootKey, state.Tick,
		state.CompareState, state.ReportState, state.SettleDemands, state.DemandBlobs, state.SettleCollected, state.CollectStrays,
		state.SetRegionHealth, state.ReportBlobs, state.ReportChecked, state.ReportAudit,
		state.AdmitHosts, state.ReportHosts, state.EndWave, state.ForgetWaves:
		return false
	}
	return true
}

// DoHere is Do that answers once the change is applied on this server.
func (s *Store) DoHere(ctx context.Context, o state.Origin, c state.Command) (Receipt, error) {
	if o.RequestID == "" {
		o.RequestID = rand.Text()
	}
	if o.Node == "" {
		o.Node = s.cfg.Self
	}
	command, err := state.Encode(o, c)
	if err != nil {
		return Receipt{}, err
	}
	out, err := s.node.Propose(ctx, command)
	if err != nil {
		return Receipt{}, fmt.Errorf("%s: %w", state.Name(c), err)
	}
	result, ok := out.Value.(state.Result)
	if !ok {
		return Receipt{}, &meta.UnknownOutcomeError{Cause: fmt.Errorf("%s at %d has a result of type %T", state.Name(c), out.Index, out.Value)}
	}
	now, err := s.view.read()
	if err != nil {
		return Receipt{}, err
	}
	return Receipt{Token: meta.Token{Epoch: now.epoch, Index: out.Index}, Value: result.Value}, result.Err
}

// Watch implements Watcher from the local state.
func (s *Store) Watch(ctx context.Context, after uint64) iter.Seq2[feed.Change, error] {
	return feed.Follow(ctx, s.machine, after)
}

// Leader returns who leads as far as this server knows, "" when nobody does.
func (s *Store) Leader() meta.NodeID { return s.node.Leader() }

// RTT returns the round-trip time to another server, 0 when unknown.
func (s *Store) RTT(id meta.NodeID) time.Duration { return s.node.RTT(id) }

// Views returns whom this server and those that answer it hear; see consensus.
func (s *Store) Views(ctx context.Context) []consensus.View { return s.node.Views(ctx) }

// Status is what `shoal status` says of the metadata as this server sees it.
type Status struct {
	consensus.Status
	Epoch uint64 `json:"epoch"`
	Level uint32 `json:"level"`
}

// Status returns a picture that is not one instant.
func (s *Store) Status() Status {
	now, err := s.view.read()
	if err != nil {
		now = &constants{}
	}
	return Status{Status: s.node.Status(), Epoch: now.epoch, Level: now.level}
}

// Hash returns the hash of this server's state and the index it is of; equal
// indexes have equal hashes on all servers.
func (s *Store) Hash(ctx context.Context) (index uint64, sum [32]byte, err error) {
	return s.machine.Hash(ctx)
}

// replicated is the state machine as consensus drives it, and the roster in it.
type replicated struct {
	machine *state.Machine

	known   atomic.Pointer[constants] // nil: to be read again
	changes atomic.Uint64             // how often it was, counted before known is cleared
	mu      sync.Mutex                // held while it is read
}

// forget says that the constants may have changed.
func (r *replicated) forget() {
	r.changes.Add(1)
	r.known.Store(nil)
}

var (
	_ consensus.Machine = (*replicated)(nil)
	_ consensus.Roster  = (*replicated)(nil)
)

// constants is what seldom changes and is asked for all the time.
type constants struct {
	epoch   uint64
	level   uint32
	servers []meta.Node
}

// read returns the constants at an index not before that of the last applied batch.
func (r *replicated) read() (*constants, error) {
	if c := r.known.Load(); c != nil {
		return c, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		if c := r.known.Load(); c != nil {
			return c, nil
		}
		before := r.changes.Load()
		c, err := r.load()
		if err != nil {
			return nil, err
		}
		r.known.Store(c)
		if r.changes.Load() == before {
			return c, nil
		}
		r.known.Store(nil)
	}
}

func (r *replicated) load() (*constants, error) {
	v, err := r.machine.View()
	if err != nil {
		return nil, err
	}
	c, err := constantsOf(v)
	return c, errors.Join(err, v.Close())
}

func constantsOf(v *state.View) (*constants, error) {
	c := &constants{}
	cluster, err := state.GetCluster{}.Answer(v)
	switch {
	case errors.Is(err, meta.ErrNotFound):
		return c, nil
	case err != nil:
		return nil, err
	}
	c.epoch, c.level = cluster.Epoch, cluster.Level
	for page := (state.Page{Limit: 10_000}); ; {
		nodes, err := state.ListNodes{Role: meta.RoleServer, Page: page}.Answer(v)
		if err != nil {
			return nil, err
		}
		if len(nodes) == 0 {
			return c, nil
		}
		c.servers = append(c.servers, nodes...)
		page.After = string(nodes[len(nodes)-1].ID)
	}
}

// Servers implements consensus.Roster.
func (r *replicated) Servers() []meta.Node {
	c, err := r.read()
	if err != nil {
		return nil // nobody is admitted, nothing changes; the disk will tell others
	}
	return c.servers
}

// changesConstants holds the types of command after which constants are read again.
var changesConstants = map[uint16]bool{
	state.Bootstrap{}.Type(): true, state.SetLevel{}.Type(): true,
	state.AdmitNode{}.Type(): true, state.UpdateNode{}.Type(): true, state.RemoveNode{}.Type(): true,
	state.DrainServer{}.Type(): true, state.LeaveRegion{}.Type(): true, state.RemoveRegion{}.Type(): true,
}

// Apply implements consensus.Machine.
func (r *replicated) Apply(entries []consensus.Entry) ([]any, error) {
	batch := make([]state.Entry, len(entries))
	for i, e := range entries {
		batch[i] = state.Entry(e)
	}
	results, err := r.machine.ApplyBatch(batch)
	if err != nil {
		return nil, err
	}
	values := make([]any, len(results))
	for i, result := range results {
		values[i] = result
		if changesConstants[result.Type] {
			r.forget()
		}
	}
	return values, nil
}

// Applied implements consensus.Machine.
func (r *replicated) Applied() uint64 {
	index, _ := r.machine.Applied()
	return index
}

// Flush implements consensus.Machine.
func (r *replicated) Flush() error { return r.machine.Flush() }

// Freeze implements consensus.Machine.
func (r *replicated) Freeze() (consensus.Frozen, error) {
	c, err := r.machine.Snapshot()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Restore implements consensus.Machine.
func (r *replicated) Restore(stream io.Reader) error {
	defer r.forget()
	return r.machine.Restore(stream)
}

// Stamp implements consensus.Machine: only what the cluster's level allows enters
// the log.
func (r *replicated) Stamp(command []byte, at meta.Time) ([]byte, error) {
	o, c, err := state.Decode(command)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, fmt.Errorf("a command that this build does not know cannot be proposed: %w", meta.ErrInvalid)
	}
	now, err := r.read()
	if err != nil {
		return nil, err
	}
	if err := state.CheckLevel(c, now.level); err != nil {
		return nil, err
	}
	o.Time = at
	return state.Encode(o, c)
}

// StampOf implements consensus.Machine.
func (r *replicated) StampOf(command []byte) meta.Time {
	o, _, err := state.Decode(command)
	if err != nil {
		return 0
	}
	return o.Time
}

// Tick implements consensus.Machine.
func (r *replicated) Tick() []byte {
	command, err := state.Encode(state.Origin{}, state.Tick{})
	if err != nil {
		panic(fmt.Sprintf("raftmeta: a tick cannot be encoded: %v", err))
	}
	return command
}
