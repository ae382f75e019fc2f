// Package swarm fetches the chunks of a blob from peers while it serves those it
// has to others.
//
// A Swarm holds one membership per root (membership.go): the blob, the decision
// core (package core), the peers. One goroutine owns a membership; messages, answers
// and readers are its inputs, what the core decides are its outputs. It serves
// whoever shows a valid grant, whether the blob is complete here or still arriving,
// and fetches while somebody holds a Session. Per peer there is one link (link.go):
// one control stream for all roots and a few data streams on which chunks travel
// (data.go). Start reading at Swarm.Fetch and membership.run.
//
// Every goroutine starts in Run and has ended when it returns.
//
// Invariants: a chunk is announced or relayed only after the store has verified and
// written it; a peer without a valid grant gets no byte, no bitmap, no map and no
// peer; nothing a peer sends is buffered beyond a stated bound; the owner of a
// membership never waits for I/O.
//
// The wire format is in package wire and, with the figures behind the rules, in
// transfer/DESIGN.md.
package swarm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/sync/semaphore"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/wire"
	"github.com/shoal-registry/shoal/verify/digest"
)

// banFor is how long a peer that sent wrong chunks is kept away; maxBans bounds
// the list.
const (
	banFor  = 10 * time.Minute
	maxBans = 1024
	// missedFor is how long a peer that was not reached is expected not to be; maxMissed
	// bounds how many such are remembered.
	missedFor = 30 * time.Second
	maxMissed = 1024
)

// Swarm fetches and serves blobs by their roots. It is safe for concurrent use.
type Swarm struct {
	cfg     Config
	log     *slog.Logger
	self    peer.ID
	metrics *metrics
	meter   meter
	control protocol.ID
	chunks  protocol.ID

	seq      atomic.Uint64 // of Hello
	channels atomic.Uint32
	// How many roots are served, and fetched, this moment: they share the slots.
	servingRoots, fetchingRoots atomic.Int32
	fetching                    *semaphore.Weighted // one a root that is fetched
	inBytes                     *memory             // chunks being received
	outBytes                    *memory             // chunks being sent
	flows                       flows
	yield                       *yielding     // nil when nothing is to
	started                     chan struct{} // closed by Run

	mu        sync.Mutex
	start     func(func(context.Context)) // runs it in Run's group; nil before and after
	stopped   bool
	byRoot    map[digest.CID]*membership
	byChannel map[uint32]*membership
	crowded   atomic.Bool // more than half as many roots as may be served
	links     map[peer.ID]*link
	bans      map[peer.ID]time.Time
	missed    map[peer.ID]time.Time // when an attempt to reach it failed, none since did not
}

// New returns a Swarm that works once Run is called.
//
// Errors: meta.ErrInvalid when a required field is missing; of Metrics.
func New(cfg Config) (*Swarm, error) {
	if cfg.Host == nil || cfg.Store == nil || cfg.Finder == nil || cfg.Authorizer == nil || cfg.Cluster == "" {
		return nil, fmt.Errorf("swarm needs a host, a cluster, a store, a finder and an authorizer: %w", meta.ErrInvalid)
	}
	cfg.Limits = cfg.Limits.withDefaults(cfg.Self.Server)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Swarm{
		cfg: cfg, log: cfg.Log, self: cfg.Host.ID(),
		control:   protocol.ID(wire.ControlProtocol(cfg.Cluster)),
		chunks:    protocol.ID(wire.ChunkProtocol(cfg.Cluster)),
		fetching:  semaphore.NewWeighted(int64(cfg.Limits.Sessions)),
		inBytes:   newMemory(max(cfg.Limits.BufferBytes, wire.MaxChunkBytes)),
		outBytes:  newMemory(max(cfg.Limits.BufferBytes, wire.MaxChunkBytes)),
		flows:     flows{all: map[*flow]struct{}{}},
		started:   make(chan struct{}),
		byRoot:    map[digest.CID]*membership{},
		byChannel: map[uint32]*membership{},
		links:     map[peer.ID]*link{},
		bans:      map[peer.ID]time.Time{},
		missed:    map[peer.ID]time.Time{},
	}
	if cfg.Yield && cfg.Budgets != nil {
		s.yield = newYielding()
	}
	// Later than any Hello of an earlier process of this node.
	s.seq.Store(uint64(time.Now().UnixNano()))
	var err error
	if s.metrics, err = newMetrics(s, cfg.Metrics); err != nil {
		return nil, fmt.Errorf("register swarm metrics: %w", err)
	}
	return s, nil
}

// Run serves and fetches until ctx ends; it returns nil. It is called once. What
// is being fetched then fails with meta.ErrUnavailable.
func (s *Swarm) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	s.mu.Lock()
	s.start = func(f func(context.Context)) {
		group.Add(1)
		go func() {
			defer group.Done()
			f(ctx)
		}()
	}
	s.start(s.flows.watch)
	if s.yield != nil {
		s.start(func(ctx context.Context) { s.yield.run(ctx, s) })
	}
	s.mu.Unlock()
	close(s.started)
	// A stream's handler runs in a goroutine of libp2p; it only hands over to ours.
	s.cfg.Host.SetStreamHandler(s.control, func(st network.Stream) { s.accept(st, s.acceptControl) })
	s.cfg.Host.SetStreamHandler(s.chunks, func(st network.Stream) { s.accept(st, s.acceptChunks) })

	<-ctx.Done()
	s.cfg.Host.RemoveStreamHandler(s.control)
	s.cfg.Host.RemoveStreamHandler(s.chunks)
	s.mu.Lock()
	s.start, s.stopped = nil, true
	links := make([]*link, 0, len(s.links))
	for _, l := range s.links {
		links = append(links, l)
	}
	s.mu.Unlock()
	for _, l := range links {
		l.close(errStopped)
	}
	group.Wait()
	return nil
}

var errStopped = &meta.UnavailableError{Reason: "stopping", RetryAfter: time.Second}

// spawn runs f in Run's group with Run's context; false when Run does not run.
func (s *Swarm) spawn(f func(context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.start == nil {
		return false
	}
	s.start(f)
	return true
}

func (s *Swarm) accept(st network.Stream, serve func(context.Context, network.Stream)) {
	if s.banned(st.Conn().RemotePeer()) || !s.spawn(func(ctx context.Context) { serve(ctx, st) }) {
		_ = st.Reset()
	}
}

// FetchOptions say for whom and for what a blob is fetched: by them budgets are chosen.
type FetchOptions struct {
	Tenant string // whose it is; "" is unknown
	Class  limit.Class
}

// Fetch joins the one fetch of root, or starts it, and returns a hold on it. The
// fetch goes on while a hold is open; the holder must Close it. A hold wants every
// chunk in order from 0; Prefer changes that. Fetch does not wait for the
// map: Session.Blob does. When the most roots are being fetched it waits for one to
// end. Chunks that the store has lost since are fetched again.
//
// Errors: ctx's; meta.ErrUnavailable when the swarm has stopped; of the store.
func (s *Swarm) Fetch(ctx context.Context, root digest.CID, o FetchOptions) (*Session, error) {
	select {
	case <-s.started:
	case <-ctx.Done():
		return nil, fmt.Errorf("fetch %s: %w", root, ctx.Err())
	}
	for {
		session, err := s.hold(ctx, root, o)
		if err != nil {
			return nil, fmt.Errorf("fetch %s: %w", root, err)
		}
		if session.m.reconcile(ctx) {
			return session, nil
		}
		_ = session.Close() // never fails
		s.retire(session.m)
	}
}

// hold returns a hold on the fetch of root, which it starts when there is none.
func (s *Swarm) hold(ctx context.Context, root digest.CID, o FetchOptions) (*Session, error) {
	if session := s.join(root, o); session != nil {
		return session, nil
	}
	if err := s.fetching.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("wait for other fetches: %w", err)
	}
	blob, err := s.cfg.Store.Open(ctx, root)
	switch {
	case errors.Is(err, meta.ErrNotFound), errors.Is(err, meta.ErrCorrupt):
		blob = nil
	case err != nil:
		s.fetching.Release(1)
		return nil, err
	}
	return s.attach(root, blob, o)
}

// retire ends a membership whose blob was removed from the store; the next Fetch
// begins anew.
func (s *Swarm) retire(m *membership) {
	s.mu.Lock()
	if s.byRoot[m.root] == m {
		delete(s.byRoot, m.root)
	}
	s.mu.Unlock()
	m.post(func() { m.fail(fmt.Errorf("fetch %s: its blob was removed: %w", m.root, meta.ErrNotFound)) })
}

// join returns a hold on a fetch that runs, nil when there is none.
func (s *Swarm) join(root digest.CID, o FetchOptions) *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.byRoot[root]
	if m == nil {
		return nil
	}
	return m.attach(o, false)
}

// attach returns a hold on the fetch of root, which it starts when there is none.
// It takes over blob, which may be nil, and a place in s.fetching.
func (s *Swarm) attach(root digest.CID, blob store.Blob, o FetchOptions) (*Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.start == nil {
		s.fetching.Release(1)
		closeBlob(blob)
		return nil, errStopped
	}
	m := s.byRoot[root]
	if m == nil {
		m = s.newMembership(root, blob, true)
	} else {
		closeBlob(blob)
	}
	return m.attach(o, true), nil
}

// newMembership registers and starts a membership. s.mu is held, s runs.
func (s *Swarm) newMembership(root digest.CID, blob store.Blob, fetch bool) *membership {
	channel := s.channels.Add(1)
	for channel == 0 || s.byChannel[channel] != nil {
		channel = s.channels.Add(1)
	}
	m := newMembership(s, root, channel, blob, fetch)
	s.byRoot[root] = m
	s.byChannel[channel] = m
	s.counted()
	s.start(m.run)
	return m
}

// counted notes how full the table of roots is. s.mu is held.
func (s *Swarm) counted() { s.crowded.Store(len(s.byRoot) > s.cfg.Limits.Serving/2) }

// crowdedIdle is how long a root stays that nobody wants when many are kept.
const crowdedIdle = time.Second

// idles returns for how long a root stays that nobody wants and that is to stay for d
// when there is room.
func (s *Swarm) idles(d time.Duration) time.Duration {
	if s.crowded.Load() {
		return min(d, crowdedIdle)
	}
	return d
}

// passive returns the membership to serve root to a peer whose grant is valid, nil
// when the blob is not here. It starts one when there is none.
func (s *Swarm) passive(ctx context.Context, root digest.CID) (*membership, error) {
	s.mu.Lock()
	m, full := s.byRoot[root], len(s.byRoot) >= s.cfg.Limits.Serving
	s.mu.Unlock()
	if m != nil {
		return m, nil
	}
	if full {
		return nil, &meta.UnavailableError{Reason: "busy", RetryAfter: time.Second}
	}
	blob, err := s.cfg.Store.Open(ctx, root)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.byRoot[root]; m != nil || s.start == nil {
		closeBlob(blob)
		return m, nil
	}
	return s.newMembership(root, blob, false), nil
}

// channel returns the membership that peers address by number.
func (s *Swarm) channel(number uint32) *membership {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byChannel[number]
}

func closeBlob(b store.Blob) {
	if b != nil {
		_ = b.Close() // it was only read
	}
}

// Ban keeps a peer away for all roots for so long, as ban does, on the word of
// somebody who knows. It does not block.
func (s *Swarm) Ban(id meta.NodeID, d time.Duration) {
	p, err := peer.Decode(string(id))
	if err != nil || p == s.self || s.banned(p) {
		return
	}
	s.spawn(func(context.Context) { s.ban(p, d, "nodes report that it sent wrong chunks") })
}

// ban keeps a peer away for all roots for a while.
func (s *Swarm) ban(id peer.ID, d time.Duration, why string) {
	s.log.Warn("a peer is kept away", "peer", id.String(), "for", d, "reason", why)
	s.metrics.bans.Inc()
	s.mu.Lock()
	now := time.Now()
	for p, until := range s.bans {
		if now.After(until) || len(s.bans) >= maxBans {
			delete(s.bans, p)
		}
	}
	s.bans[id] = now.Add(d)
	l := s.links[id]
	s.mu.Unlock()
	if l != nil {
		l.close(errBanned)
	}
}

var errBanned = errors.New("peer sent wrong chunks")

func (s *Swarm) banned(id peer.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.bans[id]
	return ok && time.Now().Before(until)
}

// miss remembers that id was not reached. An attempt may take seconds, where nothing
// answers, and each root makes its own: they need not all wait for a server that is away.
func (s *Swarm) miss(id peer.ID) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, at := range s.missed {
		if now.Sub(at) > missedFor || len(s.missed) >= maxMissed {
			delete(s.missed, p)
		}
	}
	s.missed[id] = now
}

// reached forgets what miss remembers.
func (s *Swarm) reached(id peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.missed, id)
}

// isMissed reports whether id was lately not reached, and not since.
func (s *Swarm) isMissed(id peer.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.missed[id]
	return ok && time.Since(at) <= missedFor
}

// Map returns the encoded chunk map of root: from the store, the finder or a peer.
//
// Errors: ctx's; of the fetch.
func (s *Swarm) Map(ctx context.Context, root digest.CID) ([]byte, error) {
	session, err := s.Fetch(ctx, root, FetchOptions{Class: limit.ClassOf(ctx)})
	if err != nil {
		return nil, err
	}
	defer func() { _ = session.Close() }()
	session.Prefer(0, 0)
	m, err := session.Map(ctx)
	if err != nil {
		return nil, err
	}
	return m.Encode(), nil
}

// near ranks a peer by place, as core.Event.Near.
func (s *Swarm) near(p Peer) uint8 {
	self := s.cfg.Self
	switch {
	case p.Region != self.Region:
		return 3
	case self.Zone == "" || p.Zone != self.Zone:
		return 2
	case self.Rack == "" || p.Rack != self.Rack:
		return 1
	default:
		return 0
	}
}

// eligible reports whether this node may exchange with p: an agent keeps to its region.
func (s *Swarm) eligible(p Peer) bool {
	return s.cfg.Self.Server || p.Region == s.cfg.Self.Region
}

func (s *Swarm) hello() *wire.Hello {
	self := s.cfg.Self
	return &wire.Hello{
		Version: wire.Version, Seq: s.seq.Add(1),
		Region: self.Region, Zone: self.Zone, Rack: self.Rack, Server: self.Server,
	}
}
