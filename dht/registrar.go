package dht

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Times of the registrar's protocol.
const (
	// Lease is how long a member counts after its last word.
	Lease = 15 * time.Second

	againFetching = 4 * time.Second // and up to an eighth more: two may be lost before the lease ends
	againComplete = 6 * time.Second // one may
	sweepEvery    = 5 * time.Second
	mapTime       = time.Second
	nudgeEvery    = time.Second
	grantTime     = 3 * time.Second // a majority may have to be asked
	writeTime     = 5 * time.Second
	streamIdle    = time.Minute
	shards        = 16
)

// RegistrarConfig is what a Registrar needs; all but Limits, Log and Metrics.
type RegistrarConfig struct {
	// Host is the swarm host.
	Host    host.Host
	Cluster string
	// Self is this server; its region's nodes are answered.
	Self    meta.Node
	Roster  Roster
	Maps    Maps
	Granter Granter
	// Held says whether this server has a root whole; Holders, whom the metadata
	// knows to have it. Both count copies; nil counts none.
	Held    func(ctx context.Context, root digest.CID) bool
	Holders Holders
	// Shunned is told of a peer to keep away for so long, because two nodes say that
	// it sent wrong chunks. It must not block. nil tells nobody.
	Shunned func(peer meta.NodeID, d time.Duration)
	// Lost says that this server's blob store cannot be used: who asks turns to others.
	// nil never does.
	Lost   func() bool
	Limits RegistrarLimits
	// Log is silent when nil; Metrics unregistered when nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// RegistrarLimits bounds a registrar; zero fields take their defaults.
type RegistrarLimits struct {
	// Roots, Members and MembersPerRoot bound the table (about 200 bytes a member);
	// default 65,536, 262,144 and 16,384. Whoever comes beyond is answered and not
	// recorded. Each of 16 parts of the table, by root, has a 16th of the first two.
	Roots, Members, MembersPerRoot int
	// Requests is how many are worked on at once; default 256. More are told to
	// come again in RetryAfter, default 250 ms.
	Requests   int
	RetryAfter time.Duration
	// Streams is how many one node may hold open; default 16.
	Streams int
}

func (l RegistrarLimits) withDefaults() RegistrarLimits {
	l.Roots = cmp.Or(l.Roots, 65536)
	l.Members = cmp.Or(l.Members, 262144)
	l.MembersPerRoot = cmp.Or(l.MembersPerRoot, 16384)
	l.Requests = cmp.Or(l.Requests, 256)
	l.RetryAfter = cmp.Or(l.RetryAfter, 250*time.Millisecond)
	l.Streams = cmp.Or(l.Streams, 16)
	return l
}

// Registrar introduces the nodes of a server's region to one another. It holds
// soft state only: after a restart the members are back within one Lease.
type Registrar struct {
	cfg     RegistrarConfig
	log     *slog.Logger
	metrics *registrarMetrics
	working chan struct{} // one token a request
	shards  [shards]shard
	judging sync.Mutex
	reports *reports
	judged  chan meta.NodeID // to be told to the region's other servers
	caller  *caller

	mu      sync.Mutex
	running bool
	streams map[network.Stream]struct{}
	perPeer map[peer.ID]int
	serving sync.WaitGroup
}

type shard struct {
	mu    sync.Mutex
	table *table
}

// NewRegistrar returns a registrar that answers once Run is called.
func NewRegistrar(cfg RegistrarConfig) (*Registrar, error) {
	if cfg.Host == nil || cfg.Roster == nil || cfg.Maps == nil || cfg.Granter == nil || cfg.Cluster == "" || cfg.Self.ID == "" {
		return nil, fmt.Errorf("make a registrar: host, cluster, self, roster, maps and granter are needed: %w", meta.ErrInvalid)
	}
	cfg.Limits = cfg.Limits.withDefaults()
	r := &Registrar{
		cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		working: make(chan struct{}, cfg.Limits.Requests),
		streams: map[network.Stream]struct{}{}, perPeer: map[peer.ID]int{},
		reports: newReports(), judged: make(chan meta.NodeID, maxJudged), caller: newCaller(cfg.Host, cfg.Cluster),
	}
	for i := range r.shards {
		r.shards[i].table = newTable(tableLimits{
			roots:          max(1, cfg.Limits.Roots/shards),
			members:        max(1, cfg.Limits.Members/shards),
			membersPerRoot: cfg.Limits.MembersPerRoot,
		}, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	}
	var err error
	if r.metrics, err = newRegistrarMetrics(cfg.Metrics, r.size, r.shunnedNow); err != nil {
		return nil, fmt.Errorf("register the metrics of the registrar: %w", err)
	}
	return r, nil
}

func (r *Registrar) shard(root digest.CID) *shard { return &r.shards[root[0]%shards] }

// size returns the roots and members in the table, and how many of these are complete.
func (r *Registrar) size() (roots, members, complete int) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		roots += len(s.table.roots)
		members += s.table.members
		complete += s.table.whole
		s.mu.Unlock()
	}
	return roots, members, complete
}

// Run answers until ctx ends; then it resets the open streams and waits for
// their goroutines.
func (r *Registrar) Run(ctx context.Context) error {
	id := RegistrarProtocol(r.cfg.Cluster)
	r.mu.Lock()
	r.running = true
	r.mu.Unlock()
	r.cfg.Host.SetStreamHandler(id, func(s network.Stream) { r.accept(ctx, s) })
	telling := make(chan struct{})
	go func() { defer close(telling); r.tell(ctx) }()
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case now := <-ticker.C:
			for i := range r.shards {
				s := &r.shards[i]
				s.mu.Lock()
				s.table.sweep(now)
				s.mu.Unlock()
			}
			r.judging.Lock()
			r.reports.sweep(now)
			r.judging.Unlock()
			r.caller.tidy(now, false)
		}
	}
	r.cfg.Host.RemoveStreamHandler(id)
	r.mu.Lock()
	r.running = false
	for s := range r.streams {
		s.Reset()
	}
	r.mu.Unlock()
	r.serving.Wait()
	<-telling
	r.caller.tidy(time.Now(), true)
	return nil
}

// accept takes libp2p's goroutine of an inbound stream for as long as it lives.
func (r *Registrar) accept(ctx context.Context, s network.Stream) {
	p := s.Conn().RemotePeer()
	r.mu.Lock()
	if !r.running || r.perPeer[p] >= r.cfg.Limits.Streams {
		r.mu.Unlock()
		r.metrics.requests.WithLabelValues("refused_stream").Inc()
		s.Reset()
		return
	}
	r.streams[s] = struct{}{}
	r.perPeer[p]++
	r.serving.Add(1)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.streams, s)
		if r.perPeer[p]--; r.perPeer[p] == 0 {
			delete(r.perPeer, p)
		}
		r.mu.Unlock()
		r.serving.Done()
	}()
	if err := r.serve(ctx, s, meta.NodeID(p.String())); err != nil {
		r.log.Debug("a registrar stream ended", "node", p, "error", err)
		s.Reset()
		return
	}
	s.Close()
}

// serve answers requests until the other side closes; nil then.
func (r *Registrar) serve(ctx context.Context, s network.Stream, asker meta.NodeID) error {
	in := bufio.NewReaderSize(s, maxRequestBytes+8)
	for {
		if err := s.SetReadDeadline(time.Now().Add(streamIdle)); err != nil {
			return err
		}
		if _, err := in.Peek(1); err != nil {
			return nil //nolint:nilerr // closed, reset or idle between requests is how a stream ends
		}
		req, err := readRequest(in)
		if err != nil {
			r.metrics.requests.WithLabelValues("malformed").Inc()
			return err
		}
		rep := r.answer(ctx, asker, req)
		if err := s.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
			return err
		}
		if err := codec.WriteMessage(s, rep); err != nil {
			return err
		}
	}
}

// answer admits, works and counts one request.
func (r *Registrar) answer(ctx context.Context, asker meta.NodeID, req request) reply {
	select {
	case r.working <- struct{}{}:
		defer func() { <-r.working }()
	default:
		r.metrics.requests.WithLabelValues("busy").Inc()
		return refusal(&meta.UnavailableError{Reason: "busy", RetryAfter: r.cfg.Limits.RetryAfter})
	}
	rep, err := r.introduce(ctx, asker, req)
	switch {
	case err == nil:
		r.metrics.requests.WithLabelValues("answered").Inc()
		return rep
	case errors.Is(err, meta.ErrNotFound), errors.Is(err, meta.ErrDenied):
		// Whether it is there is none of the asker's business.
		r.metrics.requests.WithLabelValues("not_found").Inc()
		r.log.Debug("refused a request", "node", asker, "root", req.Root, "error", err)
		return refusal(fmt.Errorf("blob %s: %w", req.Root, meta.ErrNotFound))
	case errors.Is(err, errLost):
		r.metrics.requests.WithLabelValues("lost").Inc()
		rep := refusal(&meta.UnavailableError{Reason: "blobs_lost", RetryAfter: time.Second})
		rep.Lost = true
		return rep
	case errors.Is(err, errKeptAway):
		r.metrics.requests.WithLabelValues("kept_away").Inc()
		return refusal(&meta.UnavailableError{Reason: "kept_away", RetryAfter: time.Minute})
	default:
		r.metrics.requests.WithLabelValues("failed").Inc()
		r.log.Warn("a request failed", "node", asker, "root", req.Root, "error", err)
		return refusal(&meta.UnavailableError{Reason: "no_quorum", RetryAfter: time.Second})
	}
}

func refusal(err error) reply {
	rep := reply{Error: meta.ToWire(err)}
	if u, ok := errors.AsType[*meta.UnavailableError](err); ok {
		rep.RetryMillis = uint32(u.RetryAfter / time.Millisecond)
	}
	return rep
}

func (r *Registrar) introduce(ctx context.Context, asker meta.NodeID, req request) (reply, error) {
	node, ok := r.cfg.Roster.Node(asker)
	// An agent whose region has no server left is a guest of this one, and may ask for a
	// grant; it reports nobody.
	guest := ok && req.Guest && node.Role == meta.RoleAgent && node.Region != r.cfg.Self.Region
	if !ok || node.Region != r.cfg.Self.Region && (!guest && (!req.Look || req.Leave) || req.Accused != "") {
		return reply{}, fmt.Errorf("node %s is not of region %s: %w", asker, r.cfg.Self.Region, meta.ErrDenied)
	}
	swarm := req.Root // under which its members are kept
	if guest {
		swarm = guestSwarm(req.Root, node.Region)
	}
	if r.cfg.Lost != nil && r.cfg.Lost() && req.Accused == "" {
		return reply{}, errLost // also to one who leaves, which is how agents ask whether it is there
	}
	if req.Leave {
		r.leave(swarm, asker)
		return reply{}, nil
	}
	if req.Accused != "" {
		r.accuse(node, req)
		return reply{}, nil
	}
	if r.away(asker) {
		r.leave(swarm, asker)
		return reply{}, fmt.Errorf("node %s sent wrong chunks: %w", asker, errKeptAway)
	}
	grant, expires, err := r.grant(ctx, asker, req.Root)
	if err != nil {
		r.leave(swarm, asker)
		return reply{}, err
	}
	if req.Look {
		return reply{
			Grant: grant, GrantExpires: meta.TimeOf(expires), Copies: uint32(r.copies(ctx, req.Root, asker)),
		}, nil
	}
	rep := reply{Grant: grant, GrantExpires: meta.TimeOf(expires)}
	held := req.HasMap
	if !req.HasMap {
		rep.Map, rep.Inline, held = r.content(ctx, req.Root)
	}
	if rep.Inline != nil {
		return rep, nil // all there is to have: no swarm
	}
	now := time.Now()
	r.judging.Lock()
	rep.Away = r.reports.recent(now, maxAway)
	r.judging.Unlock()
	again := againFetching
	if req.Complete {
		again = againComplete
	}
	idle, crosses := false, true
	s := r.shard(swarm)
	s.mu.Lock()
	recorded := s.table.join(swarm, asker, node.Zone, progress{req.Have, req.Complete}, now.Add(Lease))
	chosen := s.table.pick(swarm, node.Zone, MaxPeers, now, func(id meta.NodeID) bool {
		return id == asker || id == r.cfg.Self.ID || !r.inRegion(id, node.Region) || r.away(id)
	})
	members := s.table.count(swarm)
	if guest {
		// Two of a region take it from here, the others from those.
		crosses = !req.Complete && s.table.stand(swarm, asker, now)
	}
	if complete, ok := s.table.find(swarm, r.cfg.Self.ID, now); ok {
		held = complete // this server is itself a member, and knows better
	} else if req.HasMap && !req.Complete {
		idle = s.table.nudge(swarm, now)
	}
	again += time.Duration(s.table.random.Int64N(int64(again / 8))) // a wave must not stay in step
	s.mu.Unlock()
	if !recorded {
		r.metrics.full.Inc()
	}
	if idle {
		// The member was introduced by another server, which has gone, perhaps: to be asked
		// for the map makes this one fetch what it lacks.
		_, _, held = r.content(ctx, req.Root)
	}
	rep.Members, rep.AgainMillis = uint32(members), uint32(again/time.Millisecond)
	rep.Peers = make([]referral, 0, len(chosen)+1)
	for _, c := range chosen {
		rep.Peers = append(rep.Peers, referral{c.id, c.complete})
	}
	if asker != r.cfg.Self.ID && crosses {
		rep.Peers = append(rep.Peers, referral{r.cfg.Self.ID, held})
	}
	return rep, nil
}

// errLost is the answer of a server that has lost its blobs.
var errLost = errors.New("the blob store of this server cannot be used")

// guestSwarm is under what the members of another region are kept, for as long as that
// has no server: they are introduced to one another as they would be there.
func guestSwarm(root digest.CID, region meta.RegionName) digest.CID {
	return digest.Sum(append([]byte("guests of "+string(region)+" "), root[:]...))
}

func (r *Registrar) inRegion(id meta.NodeID, region meta.RegionName) bool {
	n, ok := r.cfg.Roster.Node(id)
	return ok && n.Region == region
}

func (r *Registrar) grant(ctx context.Context, asker meta.NodeID, root digest.CID) ([]byte, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, grantTime)
	defer cancel()
	return r.cfg.Granter.Grant(ctx, asker, root)
}

// content returns what of a blob fits into a reply; held says that this server
// has its map.
func (r *Registrar) content(ctx context.Context, root digest.CID) (encoded, inline []byte, held bool) {
	ctx, cancel := context.WithTimeout(ctx, mapTime)
	defer cancel()
	encoded, inline, err := r.cfg.Maps.Map(ctx, root)
	if err != nil {
		r.log.Debug("no map to introduce with", "root", root, "error", err)
		return nil, nil, false
	}
	if len(encoded) > MaxMapBytes {
		encoded = nil
	}
	if encoded == nil || len(inline) == 0 || len(inline) > MaxInlineBytes {
		inline = nil // content without its map could not be verified
	}
	return encoded, inline, true
}

func (r *Registrar) leave(root digest.CID, id meta.NodeID) {
	s := r.shard(root)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table.leave(root, id)
}

// Copies returns how many members of root besides this server have all of it.
func (r *Registrar) Copies(root digest.CID) int {
	s := r.shard(root)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.copies(root, r.cfg.Self.ID)
}

// local joins this server itself to a swarm and returns members of its region.
func (r *Registrar) local(root digest.CID, has progress, n int) (peers []Peer, members int) {
	self, now := r.cfg.Self, time.Now()
	s := r.shard(root)
	s.mu.Lock()
	s.table.join(root, self.ID, self.Zone, has, now.Add(Lease))
	chosen := s.table.pick(root, self.Zone, n, now, func(id meta.NodeID) bool {
		return id == self.ID || !r.inRegion(id, self.Region) || r.away(id)
	})
	members = s.table.count(root)
	s.mu.Unlock()
	for _, c := range chosen {
		if node, ok := r.cfg.Roster.Node(c.id); ok {
			peers = append(peers, peerOf(node, c.complete))
		}
	}
	return peers, members
}
