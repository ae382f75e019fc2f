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

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
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
	// silentFor is how long no server may answer before the DHT is asked beside them,
	// by a node that has a grant to show.
	// Servers that were silent the last time are waited for silentAgain.
	silentFor   = 500 * time.Millisecond
	silentAgain = 100 * time.Millisecond
	// freshFor is how long an answer shows that a server is reachable, probeTime how
	// long one may take to show it again, and probeEvery how often that is tried.
	freshFor   = 5 * time.Second
	probeTime  = time.Second
	probeEvery = time.Second

	// lookTime bounds OnlyCopy, lookAgain is how long its answer holds.
	lookTime  = 300 * time.Millisecond
	lookAgain = time.Minute
	// maxReports bounds the reports on their way, reportAgain is how often one of a
	// peer and root is sent.
	maxReports  = 64
	reportAgain = time.Minute
	reportTime  = 2 * time.Second

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
	Held func(ctx context.Context, root digest.CID) bool
	// Distance is the round trip to a region, 0 when unknown, and Serves says whether a
	// server is recorded to have its blobs: both order the servers of other regions,
	// which are asked when the own has none. nil knows nothing.
	Distance func(meta.RegionName) time.Duration
	Serves   func(meta.NodeID) bool
	// Grants names the file in which grants are kept over restarts; "" keeps none.
	Grants  string
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
	grants   *grantFile
	probes   chan struct{} // a probe is wanted
	reports  chan request

	mu       sync.Mutex
	known    *knowledge
	copies   *simplelru.LRU[digest.CID, counted]
	reported map[reportKey]time.Time   // when it was last sent
	avoid    map[meta.NodeID]time.Time // servers that failed, until when
	// answered is when a server last answered, silent when last none of them did.
	answered, silent time.Time
	silentSince      time.Time // when silent began
}

type reportKey struct {
	peer meta.NodeID
	root digest.CID
}

// counted is an answer of OnlyCopy.
type counted struct {
	only bool
	at   time.Time
}

// NewFinder returns a Finder. It works at once; Run keeps its house.
//
// Errors: meta.ErrInvalid for what is missing; of cfg.Grants and cfg.Metrics.
func NewFinder(cfg FinderConfig) (*Finder, error) {
	if cfg.Host == nil || cfg.Roster == nil || cfg.Cluster == "" || cfg.Self.ID == "" {
		return nil, fmt.Errorf("make a finder: host, cluster, self and roster are needed: %w", meta.ErrInvalid)
	}
	m, err := newFinderMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("register the metrics of the finder: %w", err)
	}
	f := &Finder{
		cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)), metrics: m,
		caller:   newCaller(cfg.Host, cfg.Cluster),
		announce: newAnnouncer(cfg.Self.ID, cfg.DHT, cfg.Held),
		probes:   make(chan struct{}, 1),
		reports:  make(chan request, maxReports),
		known:    newKnowledge(knownRoots, knownMapBytes),
		reported: map[reportKey]time.Time{},
		avoid:    map[meta.NodeID]time.Time{},
	}
	f.copies, _ = simplelru.NewLRU[digest.CID, counted](knownRoots, nil) // fails for sizes <= 0 only
	if cfg.Grants != "" {
		var kept map[digest.CID]savedGrant
		if f.grants, kept, err = openGrants(cfg.Grants, time.Now()); err != nil {
			return nil, err
		}
		for root, g := range kept {
			f.known.put(root, known{grant: g.Grant, expires: g.Expires.Std(), members: int(g.Members)})
		}
	}
	return f, nil
}

// Run announces in the DHT what this node has, sends reports, finds out whether
// servers are reachable when that is asked, and closes idle streams, until ctx ends.
func (f *Finder) Run(ctx context.Context) error {
	defer f.caller.tidy(time.Now(), true)
	defer f.grants.close()
	lost := &network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) {
		n, ok := f.cfg.Roster.Node(meta.NodeID(c.RemotePeer().String()))
		if ok && n.Role == meta.RoleServer && n.Region == f.cfg.Self.Region {
			if f.cfg.DHT != nil {
				f.cfg.DHT.leaveOut(n.ID)
			}
			f.probe() // what it last said is no evidence any more
		}
	}}
	f.cfg.Host.Network().Notify(lost)
	defer f.cfg.Host.Network().StopNotify(lost)
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { f.probeAsWanted(ctx) })
	group.Go(func() { f.sendReports(ctx) })
	return f.announce.run(ctx, func(now time.Time) { f.caller.tidy(now, false) })
}

// Reachable reports whether some server of the region answered the last time that
// one was needed. It is true before the first time. When that was a while ago a
// server is asked again, so that the next answer is of now.
func (f *Finder) Reachable() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.answered) > freshFor {
		f.probe()
	}
	return !f.silent.After(f.answered)
}

// probe has probeAsWanted ask.
func (f *Finder) probe() {
	select {
	case f.probes <- struct{}{}:
	default:
	}
}

// probeAsWanted asks the servers whether they are there, at most each probeEvery,
// until ctx ends.
func (f *Finder) probeAsWanted(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.probes:
		}
		// To leave what one is no member of costs the server nothing.
		limited, cancel := context.WithTimeout(ctx, probeTime)
		_, err := f.ask(limited, request{Root: digest.Sum([]byte(f.cfg.Self.ID)), Leave: true})
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			f.noteSilence(time.Now().Add(-probeTime))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(probeEvery):
		}
	}
}

// Report tells a server that peer sent a wrong chunk of root. It does not block;
// when too many are on their way one is lost.
func (f *Finder) Report(peer meta.NodeID, root digest.CID, chunk int) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	key := reportKey{peer, root}
	if now.Sub(f.reported[key]) < reportAgain {
		return
	}
	for k, at := range f.reported {
		if now.Sub(at) >= reportAgain {
			delete(f.reported, k)
		}
	}
	if len(f.reported) >= knownRoots {
		return
	}
	select {
	case f.reports <- request{Root: root, Accused: peer, Chunk: uint64(max(0, chunk))}:
		f.reported[key] = now
	default:
	}
}

// sendReports sends reports to the server that knows this node as a member: the
// first of the rank that answers.
func (f *Finder) sendReports(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case req := <-f.reports:
			for _, server := range f.servers(req.Root) {
				limited, cancel := context.WithTimeout(ctx, reportTime)
				_, err := f.caller.do(limited, server.ID, req)
				cancel()
				if err == nil {
					break
				}
				f.log.Debug("a peer was not reported yet", "server", server.ID, "peer", req.Accused, "error", err)
			}
		}
	}
}

// OnlyCopy reports whether this node's copy of root is, as far as can be known in
// 300 ms, the only whole one of the region: by a server, or, when none answers, by
// the DHT. An answer is remembered for a minute. It blocks; nobody waits for it
// under a lock.
func (f *Finder) OnlyCopy(root digest.CID) bool {
	now := time.Now()
	f.mu.Lock()
	if c, ok := f.copies.Get(root); ok && now.Sub(c.at) < lookAgain {
		f.mu.Unlock()
		return c.only
	}
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	only := false
	rep, err := f.ask(ctx, request{Root: root, Look: true})
	switch {
	case err == nil:
		only = rep.Copies == 0
	case errors.Is(err, meta.ErrNotFound): // nobody is to have it any more
	case f.cfg.DHT != nil:
		limited, cancel := context.WithTimeout(context.Background(), lookTime)
		others, err := f.cfg.DHT.FindProviders(limited, root, 1)
		cancel()
		only = err == nil && len(others) == 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.copies.Add(root, counted{only, now})
	return only
}

// Join tells a server of the region that this node wants, or has, want.Root, and
// returns who else does. When no server answers in 3 s it asks the DHT, and
// returns the map and grant of an earlier answer, if need be without a peer.
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
	rep, found, err := f.askOrLookUp(ctx, want, before, request{
		Root: want.Root, Have: uint64(max(0, want.Have)), Complete: want.Complete,
		// Who has a chunk has the map it was checked with.
		HasMap: len(before.encoded) > 0 || want.Have > 0 || want.Complete,
	})
	announced := func(members int) {
		if want.Have > 0 || want.Complete {
			f.announce.add(want.Root, members)
		}
	}
	if err != nil {
		busy, unavailable := errors.AsType[*meta.UnavailableError](err)
		unavailable = unavailable && busy.Reason != "busy" && ctx.Err() == nil
		if !errors.Is(err, meta.ErrNotFound) {
			announced(before.members) // whoever looks next shall find this node
		}
		if !unavailable {
			return Introduction{}, err
		}
		// Peers that come to this node, or that it knows from before, want to see the grant.
		in := Introduction{
			Map: before.encoded, Grant: before.grant, GrantExpires: before.expires, Again: againFetching,
		}
		if !f.stand(ctx, want, &in) && len(before.grant) == 0 {
			return Introduction{}, err
		}
		return in, nil
	}
	in, members := found, before.members
	if found == nil {
		f.metrics.joins.WithLabelValues("registrar").Inc()
		learned := f.learn(want.Root, rep)
		in, members = &learned, learned.Members
	} else {
		f.stand(ctx, want, in)
	}
	announced(members)
	return *in, nil
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

// askOrLookUp asks the servers, and the DHT when none answers: beside them from
// silentFor on, if this node has a grant to show to those whom it finds, else after
// them. A reply of a server, an introduction by the DHT or an error comes back.
func (f *Finder) askOrLookUp(ctx context.Context, want Want, before known, req request) (reply, *Introduction, error) {
	parent := ctx
	ctx, cancel := context.WithCancel(ctx)
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	type asked struct {
		reply
		err error
	}
	type looked struct {
		Introduction
		err error
	}
	servers, peers := make(chan asked, 1), make(chan looked, 1)
	calls.Go(func() {
		ctx := ctx
		if f.alone() {
			// Who has been without a server for long does not wait for them again with each
			// blob: the probe finds out when they are back.
			limited, cancel := context.WithTimeout(ctx, aloneTime)
			defer cancel()
			ctx = limited
			f.probe()
		}
		rep, err := f.ask(ctx, req)
		if err != nil && ctx.Err() != nil && parent.Err() == nil {
			err = errors.Join(&meta.UnavailableError{Reason: "no_server", RetryAfter: time.Second}, err)
		}
		servers <- asked{rep, err}
	})
	var silence <-chan time.Time
	if f.cfg.DHT != nil && len(before.grant) > 0 {
		timer := time.NewTimer(f.patience())
		defer timer.Stop()
		silence = timer.C
	}
	var failed error // of the servers, when they are through
	looking := false
	look := func() {
		if looking {
			return
		}
		looking = true
		calls.Go(func() {
			in, err := f.lookup(ctx, want, before)
			peers <- looked{in, err}
		})
	}
	for {
		select {
		case a := <-servers:
			busy, _ := errors.AsType[*meta.UnavailableError](a.err)
			switch {
			case a.err == nil, errors.Is(a.err, meta.ErrNotFound), parent.Err() != nil:
				return a.reply, nil, a.err
			case busy != nil && busy.Reason == "busy":
				return reply{}, nil, a.err // there is a server: it shall not lose its load to the DHT
			}
			failed = a.err
			look()
		case <-silence:
			look()
		case l := <-peers:
			switch {
			case l.err == nil && failed == nil:
				f.noteSilence(time.Now())
				f.probe() // it may have answered later
				fallthrough
			case l.err == nil:
				f.metrics.joins.WithLabelValues("dht").Inc()
				return reply{}, &l.Introduction, nil
			case failed != nil:
				f.metrics.joins.WithLabelValues("nobody").Inc()
				return reply{}, nil, errors.Join(failed, l.err)
			}
			looking = false // the servers may still answer; when they fail it is tried again
		}
	}
}

// patience is how long servers may be silent before the DHT is asked beside them.
func (f *Finder) patience() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.silent.After(f.answered) {
		return silentAgain
	}
	return silentFor
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
		f.noteSilence(time.Now())
		return reply{}, &meta.UnavailableError{Reason: "no_server", RetryAfter: time.Second}
	}
	parent, began := ctx, time.Now()
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
			case a.reply.Lost:
				failed = errors.Join(failed, fmt.Errorf("server %s: %w", a.server, a.reply.Error))
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
	f.noteSilence(began)
	return reply{}, errors.Join(&meta.UnavailableError{Reason: "no_server", RetryAfter: time.Second}, failed)
}

// note keeps what an answer tells about its server.
func (f *Finder) note(a answer) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.err == nil && !a.reply.Lost {
		f.answered = now
		delete(f.avoid, a.server)
		if f.cfg.DHT != nil {
			f.cfg.DHT.takeIn(a.server)
		}
		return
	}
	if errors.Is(a.err, context.Canceled) {
		return // the caller gave up, or another server was faster
	}
	f.avoid[a.server] = now.Add(avoidFor) // bounded by the servers of the region
	if f.cfg.DHT != nil {
		f.cfg.DHT.leaveOut(a.server)
	}
	f.metrics.lookups.WithLabelValues("silent").Inc()
}

// noteSilence notes that none of the servers has answered what was asked at since.
func (f *Finder) noteSilence(since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.silent = time.Now()
	if !f.silentSince.After(f.answered) {
		f.silentSince = since
		if !since.After(f.answered) {
			f.silentSince = f.silent // another call had an answer meanwhile
		}
	}
}

// learn turns a registrar's reply into an introduction and keeps its map and grant.
func (f *Finder) learn(root digest.CID, rep reply) Introduction {
	if len(rep.Map) > 0 && digest.Sum(rep.Map) != root {
		f.log.Warn("a registrar sent a false chunk map", "root", root)
		rep.Map, rep.Inline = nil, nil
	}
	in := Introduction{
		Inline: rep.Inline, Grant: rep.Grant, GrantExpires: rep.GrantExpires.Std(),
		Again: rep.again(), Members: int(rep.Members), Away: rep.Away,
	}
	told := make([]Peer, len(rep.Peers))
	for i, p := range rep.Peers {
		told[i] = Peer{ID: p.ID, Complete: p.Complete}
	}
	in.Peers = Referrals(f.cfg.Roster, f.cfg.Self, told)
	f.mu.Lock()
	k, _ := f.known.get(root)
	if len(rep.Map) > 0 {
		k.encoded = rep.Map
	}
	k.grant, k.expires, k.members = rep.Grant, in.GrantExpires, in.Members
	f.known.put(root, k)
	f.mu.Unlock()
	in.Map = k.encoded
	f.save(root, k)
	return in
}

// save writes a grant down if the one on disk is much older.
func (f *Finder) save(root digest.CID, k known) {
	if !f.grants.due(root, k.expires) {
		return
	}
	if err := f.grants.save(k.saved(root), f.allGrants); err != nil {
		f.log.Warn("a grant was not kept: after a restart without a server its blob cannot be fetched", "root", root, "error", err)
	}
}

// Prepare gets a grant for root without becoming a member, for a node that is likely
// to want it soon: if the servers are lost until then, its peers still serve it. It
// asks nobody while a grant is known.
//
// Errors: as Join.
func (f *Finder) Prepare(ctx context.Context, root digest.CID) error {
	f.mu.Lock()
	k, _ := f.known.get(root)
	f.mu.Unlock()
	if time.Now().Before(k.expires) {
		return nil
	}
	rep, err := f.ask(ctx, request{Root: root, Look: true})
	if err != nil {
		return fmt.Errorf("prepare for %s: %w", root, err)
	}
	f.mu.Lock()
	k, _ = f.known.get(root)
	k.grant, k.expires = rep.Grant, rep.GrantExpires.Std()
	f.known.put(root, k)
	f.mu.Unlock()
	f.save(root, k)
	return nil
}

func (f *Finder) allGrants() map[digest.CID]savedGrant {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[digest.CID]savedGrant{}
	for _, root := range f.known.lru.Keys() {
		if k, ok := f.known.lru.Peek(root); ok && time.Since(k.expires) < keepGrants {
			all[root] = k.saved(root)
		}
	}
	return all
}

// lookup asks the DHT.
//
// Errors: meta.ErrUnavailable when nobody is found.
func (f *Finder) lookup(ctx context.Context, want Want, before known) (Introduction, error) {
	if f.cfg.DHT == nil {
		return Introduction{}, fmt.Errorf("no DHT to look for %s in: %w", want.Root, meta.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	ids, err := f.cfg.DHT.FindProviders(ctx, want.Root, MaxPeers)
	if err != nil && len(ids) == 0 {
		return Introduction{}, err
	}
	told := make([]Peer, len(ids))
	for i, id := range ids {
		told[i].ID = id
	}
	peers := Referrals(f.cfg.Roster, f.cfg.Self, told)
	if len(peers) == 0 {
		return Introduction{}, fmt.Errorf("nobody is found who has %s: %w", want.Root, meta.ErrUnavailable)
	}
	return Introduction{
		Map: before.encoded, Grant: before.grant, GrantExpires: before.expires,
		Peers: peers, Again: againFetching,
	}, nil
}
