package dht

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	// hedgeAfter is how long a server may be silent before the next is asked too.
	hedgeAfter = 400 * time.Millisecond
	// askTime bounds all that is asked of servers for one Join.
	askTime = 3 * time.Second
	// askServers bounds the servers asked for one Join.
	askServers = 4
	// avoidFor is how long a server that failed is asked last.
	avoidFor = 5 * time.Second
	// lookupTime bounds a look-up in the DHT.
	lookupTime = 3 * time.Second

	knownRoots    = 4096
	knownMapBytes = 64 << 20
)

// FinderConfig is what an agent's Finder needs; DHT, Held, Log and Metrics may be
// left out.
type FinderConfig struct {
	// Host is the swarm host.
	Host    host.Host
	Cluster string
	Self    meta.Node
	Roster  Roster
	// DHT is the region's; without it nothing is found while no server answers.
	DHT *DHT
	// Held says whether the node still has some of a root, which is then announced
	// in the DHT again; without it announcements end with the membership.
	Held    func(ctx context.Context, root digest.CID) bool
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Finder finds the members of swarms for an agent: by the registrars of its
// region's servers, and by the DHT when none answers.
type Finder struct {
	cfg      FinderConfig
	log      *slog.Logger
	metrics  *finderMetrics
	caller   *caller
	announce *announcer

	mu    sync.Mutex
	known *knowledge
	avoid map[meta.NodeID]time.Time // servers that failed, until when
	// answered is when a server last answered, silent when last none of them did.
	answered, silent time.Time
}

// NewFinder returns a Finder. It works at once; Run keeps its house.
func NewFinder(cfg FinderConfig) (*Finder, error) {
	if cfg.Host == nil || cfg.Roster == nil || cfg.Cluster == "" || cfg.Self.ID == "" {
		return nil, fmt.Errorf("make a finder: host, cluster, self and roster are needed: %w", meta.ErrInvalid)
	}
	m, err := newFinderMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("register the metrics of the finder: %w", err)
	}
	return &Finder{
		cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)), metrics: m,
		caller:   newCaller(cfg.Host, cfg.Cluster),
		announce: newAnnouncer(cfg.Self.ID, cfg.DHT, cfg.Held),
		known:    newKnowledge(knownRoots, knownMapBytes),
		avoid:    map[meta.NodeID]time.Time{},
	}, nil
}

// Run announces in the DHT what this node has and closes idle streams, until ctx
// ends.
func (f *Finder) Run(ctx context.Context) error {
	defer f.caller.tidy(time.Now(), true)
	return f.announce.run(ctx, func(now time.Time) { f.caller.tidy(now, false) })
}

// Reachable reports whether some server of the region answered the last time that
// one was needed. It is true before the first time.
func (f *Finder) Reachable() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.silent.After(f.answered)
}

// Join tells a server of the region that this node wants, or has, want.Root, and
// returns who else does. When no server answers in 3 s it asks the DHT, and
// returns the map and grant of an earlier answer.
//
// Errors: meta.ErrNotFound when every server that answers says so: final.
// *meta.UnavailableError when servers are busy, or nobody is found.
func (f *Finder) Join(ctx context.Context, want Want) (Introduction, error) {
	if want.Root.IsZero() {
		return Introduction{}, fmt.Errorf("join no swarm: %w", meta.ErrInvalid)
	}
	f.mu.Lock()
	before, _ := f.known.get(want.Root)
	f.mu.Unlock()
	rep, err := f.ask(ctx, request{
		Root: want.Root, Have: uint64(max(0, want.Have)), Complete: want.Complete,
		// Who has a chunk has the map it was checked with.
		HasMap: len(before.encoded) > 0 || want.Have > 0 || want.Complete,
	})
	switch {
	case err == nil:
		f.metrics.joins.WithLabelValues("registrar").Inc()
		in := f.learn(want.Root, rep)
		if want.Have > 0 || want.Complete {
			f.announce.add(want.Root, in.Members)
		}
		return in, nil
	case errors.Is(err, meta.ErrNotFound) || ctx.Err() != nil:
		return Introduction{}, err
	}
	if u, ok := errors.AsType[*meta.UnavailableError](err); ok && u.Reason == "busy" {
		return Introduction{}, err // there is a server: it shall not lose its load to the DHT
	}
	return f.lookup(ctx, want, before, err)
}

// Leave ends the membership. Announcements in the DHT stay while Held.
//
// Errors: of the call; the lease ends by itself.
func (f *Finder) Leave(ctx context.Context, root digest.CID) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	servers := f.servers(root)
	if len(servers) == 0 {
		return nil
	}
	if _, err := f.caller.do(ctx, servers[0].ID, request{Root: root, Leave: true}); err != nil {
		return fmt.Errorf("leave the swarm of %s: %w", root, err)
	}
	return nil
}

// servers ranks the region's servers for a root, those that failed lately last.
func (f *Finder) servers(root digest.CID) []meta.Node {
	ranked := rank(root, f.cfg.Roster.Nodes(f.cfg.Self.Region, meta.RoleServer))
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, until := range f.avoid {
		if now.After(until) {
			delete(f.avoid, id)
		}
	}
	slices.SortStableFunc(ranked, func(a, b meta.Node) int {
		return cmp.Compare(btoi(!f.avoid[a.ID].IsZero()), btoi(!f.avoid[b.ID].IsZero()))
	})
	return ranked[:min(len(ranked), askServers)]
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

type answer struct {
	server meta.NodeID
	reply  reply
	err    error // of the call
}

// ask asks the servers in rank: the next one as soon as one fails, refuses or has
// been silent for hedgeAfter. The first introduction wins; a refusal counts once
// every server asked has answered or failed.
func (f *Finder) ask(ctx context.Context, req request) (reply, error) {
	servers := f.servers(req.Root)
	if len(servers) == 0 {
		f.noteSilence()
		return reply{}, &meta.UnavailableError{Reason: "no_server", RetryAfter: time.Second}
	}
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, askTime)
	answers := make(chan answer, len(servers))
	var calls sync.WaitGroup
	defer calls.Wait() // the calls end with their context
	defer cancel()
	next, open := 0, 0
	start := func() {
		if next < len(servers) {
			id := servers[next].ID
			next++
			open++
			calls.Go(func() {
				rep, err := f.caller.do(ctx, id, req)
				answers <- answer{id, rep, err}
			})
		}
	}
	start()
	hedge := time.NewTicker(hedgeAfter)
	defer hedge.Stop()
	var refused, failed error
	for open > 0 {
		select {
		case <-hedge.C:
			start()
		case a := <-answers:
			open--
			f.note(a)
			switch {
			case a.err != nil:
				failed = errors.Join(failed, a.err)
			case a.reply.Error == nil:
				return a.reply, nil
			case errors.Is(a.reply.Error, meta.ErrNotFound):
				refused = fmt.Errorf("server %s: %w", a.server, a.reply.Error)
			default:
				f.metrics.lookups.WithLabelValues("busy").Inc()
				busy := &meta.UnavailableError{Reason: "busy", RetryAfter: time.Duration(a.reply.RetryMillis) * time.Millisecond}
				if !errors.Is(refused, meta.ErrNotFound) {
					refused = errors.Join(busy, a.reply.Error)
				}
			}
			start()
		}
	}
	if refused != nil {
		return reply{}, refused
	}
	if err := parent.Err(); err != nil {
		return reply{}, fmt.Errorf("ask for %s: %w", req.Root, err)
	}
	f.noteSilence()
	return reply{}, errors.Join(&meta.UnavailableError{Reason: "no_server", RetryAfter: time.Second}, failed)
}

// note keeps what an answer tells about its server.
func (f *Finder) note(a answer) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.err == nil {
		f.answered = now
		delete(f.avoid, a.server)
		return
	}
	if errors.Is(a.err, context.Canceled) {
		return // the caller gave up, or another server was faster
	}
	f.avoid[a.server] = now.Add(avoidFor) // bounded by the servers of the region
	f.metrics.lookups.WithLabelValues("silent").Inc()
}

func (f *Finder) noteSilence() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.silent = time.Now()
}

// learn turns a registrar's reply into an introduction and keeps its map and grant.
func (f *Finder) learn(root digest.CID, rep reply) Introduction {
	if len(rep.Map) > 0 && digest.Sum(rep.Map) != root {
		f.log.Warn("a registrar sent a false chunk map", "root", root)
		rep.Map, rep.Inline = nil, nil
	}
	in := Introduction{
		Inline: rep.Inline, Grant: rep.Grant, GrantExpires: rep.GrantExpires.Std(),
		Again: rep.again(), Members: int(rep.Members),
	}
	told := make([]Peer, len(rep.Peers))
	for i, p := range rep.Peers {
		told[i] = Peer{ID: p.ID, Complete: p.Complete}
	}
	in.Peers = Referrals(f.cfg.Roster, f.cfg.Self, told)
	f.mu.Lock()
	defer f.mu.Unlock()
	k, _ := f.known.get(root)
	if len(rep.Map) > 0 {
		k.encoded = rep.Map
	}
	k.grant, k.expires, k.members = rep.Grant, in.GrantExpires, in.Members
	f.known.put(root, k)
	in.Map = k.encoded
	return in
}

// lookup asks the DHT, because of cause no server did answer.
func (f *Finder) lookup(ctx context.Context, want Want, before known, cause error) (Introduction, error) {
	if f.cfg.DHT == nil {
		f.metrics.joins.WithLabelValues("nobody").Inc()
		return Introduction{}, cause
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	ids, err := f.cfg.DHT.FindProviders(ctx, want.Root, MaxPeers)
	if err != nil && len(ids) == 0 {
		f.metrics.joins.WithLabelValues("nobody").Inc()
		return Introduction{}, errors.Join(cause, err)
	}
	told := make([]Peer, len(ids))
	for i, id := range ids {
		told[i].ID = id
	}
	peers := Referrals(f.cfg.Roster, f.cfg.Self, told)
	if want.Have > 0 || want.Complete {
		f.announce.add(want.Root, before.members)
	}
	if len(peers) == 0 {
		f.metrics.joins.WithLabelValues("nobody").Inc()
		return Introduction{}, fmt.Errorf("nobody is found who has %s: %w", want.Root, cause)
	}
	f.metrics.joins.WithLabelValues("dht").Inc()
	return Introduction{
		Map: before.encoded, Grant: before.grant, GrantExpires: before.expires,
		Peers: peers, Again: againFetching,
	}, nil
}
