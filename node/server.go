package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-registry/shoal/dht"
	"github.com/shoal-registry/shoal/dht/host"
	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/forward"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/uploadid"
	"github.com/shoal-registry/shoal/node/fence"
	"github.com/shoal-registry/shoal/node/join"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/consensus"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/remote"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer"
	"github.com/shoal-registry/shoal/transfer/repair"
	"github.com/shoal-registry/shoal/transfer/scrub"
	"github.com/shoal-registry/shoal/transfer/swarm"
	"github.com/shoal-registry/shoal/verify/digest"
	"github.com/shoal-registry/shoal/verify/trust"
)

func (n *Node) buildServer(ctx context.Context) error {
	n.known = n.id != nil // from an earlier start
	// Listening comes first: the node has to say in the roster where it is reached.
	if err := n.listenSwarm(); err != nil {
		return err
	}
	raftHost, err := host.New(host.Config{
		Key: n.key.Private(), Plane: host.Raft, Role: n.cfg.Role,
		Listen: []string{n.cfg.Raft}, Advertise: n.advertise(n.cfg.Raft),
		Log: n.log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.closes(raftHost.Close)
	record := func() meta.Node { return n.record(raftHost.Advertised()) }
	switch {
	case n.id != nil:
	case n.cfg.Bootstrap:
		if err := n.begin(record()); err != nil {
			return fmt.Errorf("begin a cluster: %w", err)
		}
	default:
		if err := n.enter(ctx, record()); err != nil {
			return err
		}
	}
	if err := n.trusted(); err != nil {
		return err
	}
	me := n.id.Node
	log := n.log.With("region", me.Region)

	// Metadata, unless the cluster has gone on without this server.
	fences, err := n.fence(ctx)
	if err != nil {
		return err
	}
	room, err := openRoom(n.cfg.Data, n.metrics, log)
	if err != nil {
		return err
	}
	n.parts.Add("room", room.run)
	records, err := raftmeta.OpenStore(raftmeta.StoreConfig{
		Dir: n.cfg.Data, Self: me.ID, Cluster: n.id.plane(), Host: raftHost,
		Profile: n.cfg.RaftProfile, Bootstrap: n.id.Begin, Servers: n.id.Servers, Rejoins: n.known,
		Learned: func(servers []meta.Node) {
			raftHost.Update(servers, nil)
			n.swarmHost.Update(servers, nil)
		},
		Room: room.Room, DiskFull: room.release, Snapshots: consensus.Snapshots{SegmentBytes: room.segment()},
		Log: log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.closes(records.Close)
	n.metadata, n.doer, n.head = records, records, records
	n.parts.Add("metadata", records.Run)
	n.parts.Add("fence", fences.Run)
	known, err := knownNodes(ctx, records, n.id.Servers)
	if err != nil {
		return err
	}
	roster := raftmeta.NewRoster(known)
	admit(roster, n.swarmHost, raftHost)
	n.serves, n.distanceTo = roster.Serves, n.distance(records)
	n.parts.Add("roster", func(ctx context.Context) error { return followRoster(ctx, roster, records, log) })
	n.parts.Add("identity", func(ctx context.Context) error { return n.keepServers(ctx, roster) })

	// Bytes.
	var (
		replicas *repair.Loop // made below; nothing is read before Run
		audit    *scrub.Scrubber
	)
	kept, err := n.openBlobs(ctx, records, room, func(root digest.CID) {
		replicas.Damaged(root)
		audit.Damaged(root)
	}, log)
	if err != nil {
		return err
	}

	if err := n.watchHealth(records, kept); err != nil {
		return err
	}

	// Who has what.
	distance := n.distanceTo
	background := newFetches()
	cold := newPrefetch(records, records, me, log)
	n.parts.Add("prefetch", cold.run)
	grants := granter{
		metadata: records, roster: n.swarmHost, head: n.head, key: n.key, cluster: n.id.Cluster, log: log,
		refused: promauto.With(n.metrics).NewCounter(prometheus.CounterOpts{
			Name: "shoal_grants_refused_total", Help: "Grants that nodes asked of this server for blobs of tenants of which they may have nothing.",
		}),
	}
	var swarms *swarm.Swarm // made below; nobody is reported before Run
	registrar, err := dht.NewRegistrar(dht.RegistrarConfig{
		Host: n.swarmHost, Cluster: n.id.Cluster, Self: me, Roster: n.swarmHost,
		Maps: maps{metadata: records, store: kept, fetch: func(b meta.Blob) {
			background.begin(b)
			cold.read(b)
		}}, Granter: grants,
		Held: held(kept), Holders: holders{metadata: records, serves: n.serves, behind: n.behind}, Lost: n.fares.Failing,
		Shunned: func(peer meta.NodeID, d time.Duration) { swarms.Ban(peer, d) },
		Log:     log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.parts.Add("registrar", registrar.Run)
	// A server is in the DHT of its region for the agents' sake, and in that of all
	// servers for its own.
	regional, err := n.kademlia(me.Region)
	if err != nil {
		return err
	}
	servers, err := n.kademlia("")
	if err != nil {
		return err
	}
	discovery, err := dht.NewServerFinder(dht.ServerFinderConfig{
		Registrar: registrar, Self: me, Roster: n.swarmHost, Granter: grants,
		Holders: holders{metadata: records, self: me.ID, serves: n.serves, behind: n.behind}, DHT: servers, Region: regional,
		RTT: distance, Held: held(kept), Log: log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.parts.Add("finder", discovery.Run)
	swarms, err = swarm.New(swarm.Config{
		Host: n.swarmHost, Outlet: outlet(n.swarmHost), Cluster: n.id.Cluster, Self: self(me), Store: kept, Finder: finder{discovery},
		Budgets: n.budgets, Yield: n.cfg.Yield, TenantOf: trust.ContextOf,
		Authorizer: n.checker(nil),
		Report:     discovery.Report,
		Log:        log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.parts.Add("swarm", swarms.Run)
	bytes, err := transfer.New(transfer.Config{
		Store: kept, Fetcher: transfer.Swarm(swarms), Missed: func(root digest.CID) { audit.Missed(root) }, Log: log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.parts.Add("background fetches", func(ctx context.Context) error { return background.run(ctx, bytes.Ensure) })
	owed := newReplicationMetrics(records)
	n.metrics.MustRegister(owed)
	outages := &incidents{}
	replicas, err = repair.New(repair.Config{
		Self: kept.holder, Region: me.Region, Mine: kept.mine,
		Demands: demands{records, outages, owed.settled, kept.holder}, Reporter: reporter{records, records, me.ID}, Content: ensures(kept.ensure(bytes)),
		Servers: func() []meta.NodeID { return n.holders(me.Region) }, Incident: outages.latest,
		Log: log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.parts.Add("repair", replicas.Run)

	// Clients.
	policy := access.Policy{AllowAnonymous: n.cfg.Dev}
	if err := n.makeDesk(records); err != nil {
		return err
	}
	gate, err := n.gate(policy)
	if err != nil {
		return err
	}
	minter, err := uploadid.NewMinter(me.ID, n.key.Private().Seed())
	if err != nil {
		return err
	}
	seen := newNames(records)
	n.views["swarm"] = n.view(swarms, seen, nil, registrar)
	if err := n.openQuota(records); err != nil {
		return err
	}
	names, err := catalog.New(catalog.Config{
		Storage:  n.quota.Storage(),
		Metadata: records, Commands: records, Content: readContent{catalog.FromTransfer(bytes), cold.read}, May: access.OfRepository,
		Backlog: catalog.Backlog{MaxBlobs: n.cfg.BacklogBlobs, MaxBytes: int64(n.cfg.BacklogBytes), Out: outages.out},
		IDs:     minter, UploadTTL: n.uploadTTL(), Node: me.ID, Holder: kept.holder, Keep: kept.keep(), Region: me.Region, AutoCreate: n.cfg.Dev, Second: n.second(distance), Asked: seen.note,
		Metrics: n.metrics, Log: log,
	})
	if err != nil {
		return err
	}
	admission := &join.Server{Metadata: records, Key: n.key, PeerOf: n.peerOf, Limit: join.NewLimit(n.joinsHeld()), Log: log}
	remotePattern, remoteHandler := remote.Handler(records, records)
	headsPattern, headsHandler := remote.HeadsHandler(records, n.key, n.id.Cluster)
	waves, progress, err := n.desk(records)
	if err != nil {
		return err
	}
	n.parts.Add("waves", waves.Run)
	wavesPattern, wavesHandler := remote.WavesHandler(waves)
	proxies, err := n.openProxies(names, records)
	if err != nil {
		return err
	}
	pages, err := n.pages(room.blobs(n.cfg.Data, pageReserve(n.cfg.Data, n.blobsDir(), int64(n.cfg.Reserve))))
	if err != nil {
		return err
	}
	sets, err := n.publications(records, names, me.ID)
	if err != nil {
		return err
	}
	speaks := protocols(names, pages, proxies, sets)
	chains, err := n.buildAudit(records, log)
	if err != nil {
		return err
	}
	api, err := n.api(records, admin.Config{
		Reported: func() []client.ReportedPeer { return reported(registrar) },
		Doer:     records, Rates: n.quota.Rates, Quorum: quorum{records}, Nearest: n.second(distance), Packages: packages(speaks), Waves: progress,
		Logins: n.logins, Promoter: names,
		Backups: backups{records: records, blobs: kept, admission: admission}, Succession: admission,
	})
	if err != nil {
		return err
	}
	if err := n.openGateway(gate, append(speaks, api, n.npmLogin(gate)), []gateway.Mount{
		chains,
		{Name: "join_enter", Pattern: join.EnterPath, Methods: []string{http.MethodPost}, Action: access.Public, Serve: gateway.HTTP(http.HandlerFunc(admission.Enter))},
		{Name: "join_standing", Pattern: join.StandingPath, Methods: []string{http.MethodPost}, Action: access.Public, Serve: gateway.HTTP(http.HandlerFunc(admission.Standing))},
		{Name: "epoch", Pattern: fence.Path, Methods: []string{http.MethodPost}, Action: access.Public, Serve: gateway.HTTP(fences)},
		n.usedMount(),
		n.proxiesMount(proxies),
		{Name: "join_renew", Pattern: join.RenewPath, Methods: []string{http.MethodPost}, Action: access.NodeOnly, Serve: gateway.HTTP(http.HandlerFunc(admission.Renew))},
		n.quotaMount(records),
		{Name: "metadata", Pattern: remotePattern + "{rest...}", Methods: []string{http.MethodPost}, Action: access.NodeOnly, Long: true, Serve: func(c *protocol.Call) error {
			who, ok := roster.Get(c.Who.Node)
			if !ok { // it came this moment, or goes
				var err error
				if who, _, err = raftmeta.Ask(c.R.Context(), records, meta.Local, state.GetNode{ID: c.Who.Node}); err != nil {
					return err
				}
			}
			remoteHandler(who).ServeHTTP(c.W, c.R)
			return nil
		}},
		{Name: "heads", Pattern: headsPattern + "{rest...}", Methods: []string{http.MethodPost}, Action: access.NodeOnly, Long: true, Serve: gateway.HTTP(headsHandler)},
		{Name: "waves", Pattern: wavesPattern + "{rest...}", Methods: []string{http.MethodPost}, Action: access.NodeOnly, Long: true, Serve: func(c *protocol.Call) error {
			wavesHandler(c.Who).ServeHTTP(c.W, c.R)
			return nil
		}},
	}, nil, kept.writable(room.Writable)); err != nil {
		return err
	}
	evict(roster, n.gateway)
	n.parts.Add("certificate", func(ctx context.Context) error {
		return n.cred.Run(ctx, n.reissue(admission, record), n.keepPapers, n.renewalFailed)
	})
	n.parts.Add("succession", succession{node: n, every: time.Second, spread: func() time.Duration { return 0 }}.run)
	if err := n.buildCollection(records, kept, me, log); err != nil {
		return err
	}
	n.parts.Add("seals", sealer{
		sealed: sealed{metadata: records, self: me.ID, key: n.key}, doer: records, serves: n.serves, every: 10 * time.Second, log: log,
	}.run)
	n.parts.Add("relief", relief{
		metadata: records, doer: records, self: me.ID, holder: kept.holder, offered: registrar.Copies, ensure: kept.ensure(bytes), log: log,
	}.run)
	if audit, err = n.newScrub(records, kept, replicas, func() { n.fares.Lost(errBlobsRemoved) }); err != nil {
		return err
	}
	n.parts.Add("settlement", settler{
		metadata: records, doer: records, self: me.ID, limit: settleLimit, log: log,
		leads: func() bool { return records.Leader() == me.ID },
	}.run)
	n.parts.Add("quiet", quieter{
		metadata: records, doer: records, self: me.ID, log: log, leads: func() bool { return records.Leader() == me.ID },
	}.run)
	n.parts.Add("autopilot", (&autopilot{
		metadata: records, doer: records, self: me.ID, log: log, deadAfter: n.cfg.DeadAfter,
		leads:  func() bool { return records.Leader() == me.ID },
		survey: records.Survey, voters: func() []meta.NodeID { return records.Status().Voters },
	}).run)
	respond := &responder{
		metadata: records, doer: records, self: me.ID, every: respondEvery, log: log,
		leads: func() bool { return records.Leader() == me.ID },
		open:  func(ctx context.Context, b meta.Blob) (io.ReadCloser, error) { return bytes.Open(ctx, b) },
	}
	respond.measure(n.metrics)
	n.parts.Add("respond", respond.run)
	n.parts.Add("recheck", respond.check)
	n.parts.Add("standing", n.watchStanding(5*time.Second))
	n.parts.Add("readiness", func(ctx context.Context) error {
		// A server that restarts has caught up when it answers a strong read.
		if err := n.awaitMetadata(ctx, meta.Strong); err != nil {
			return err
		}
		if n.id.Begin != nil {
			// The cluster's first command is committed: the identity need not keep it.
			if err := n.keep(func(id *identity) { id.Begin = nil }); err != nil {
				return err
			}
		}
		if err := n.tellAddresses(ctx, record()); err != nil {
			return err
		}
		close(n.ready)
		<-ctx.Done()
		return nil
	})
	return n.openOps()
}

// begin makes the identity of a new cluster's first server: the trust root, the
// admin token, and the command that will be the log's first.
func (n *Node) begin(record meta.Node) error {
	cluster, now := newClusterID(), time.Now()
	authority, err := trust.NewAuthority(cluster, now)
	if err != nil {
		return err
	}
	der, err := authority.KeyDER()
	if err != nil {
		return err
	}
	recipient, err := trust.ParseRecipient(record.Seal)
	if err != nil {
		return err
	}
	sealed, err := trust.Seal(der, recipient)
	if err != nil {
		return err
	}
	chain, err := authority.Issue(record, join.HostsOf(record.Gateway, n.cfg.Gateway), now)
	if err != nil {
		return err
	}
	// The token is written before the identity: a crash between leaves a token of
	// no cluster, which the next start replaces.
	token := trust.NewAdminToken()
	if err := WriteFileAtomic(filepath.Join(n.cfg.Data, AdminTokenFile), []byte(token.Reveal()), 0o600); err != nil {
		return err
	}
	root := authority.Root().DER()
	n.id = &identity{
		Cluster: cluster, Root: root, Chain: chain, Node: record, Servers: []meta.Node{record},
		Begin: &state.Bootstrap{
			Cluster: meta.Cluster{
				ID: cluster, Root: root, RootKey: map[meta.NodeID][]byte{record.ID: sealed},
				Level: state.Level, AdminToken: trust.HashToken(token),
			},
			Node:   record,
			Region: meta.Region{Name: record.Region, Primary: true},
		},
	}
	return n.id.save(n.cfg.Data)
}

// drains reports whether a server is being emptied.
func (n *Node) drains(id meta.NodeID) bool {
	known, ok := n.swarmHost.Node(id)
	return ok && known.Draining != nil
}

// holders lists who keeps the copies of a region: servers, and buckets of servers, that
// do not drain.
func (n *Node) holders(region meta.RegionName) []meta.NodeID {
	var ids []meta.NodeID
	for _, s := range n.swarmHost.Nodes(region, meta.RoleServer) {
		if s.Draining == nil {
			ids = append(ids, s.Holder())
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// regionServers lists the servers of a region, in the order of their ids.
func (n *Node) regionServers(region meta.RegionName) []meta.NodeID {
	var ids []meta.NodeID
	for _, s := range n.swarmHost.Nodes(region, meta.RoleServer) {
		ids = append(ids, s.ID)
	}
	slices.Sort(ids)
	return ids
}

func (n *Node) isServer(id meta.NodeID) bool {
	known, ok := n.swarmHost.Node(id)
	return ok && known.Role == meta.RoleServer
}

// quorum is what the admin API asks of the Raft group.
type quorum struct{ store *raftmeta.Store }

func (q quorum) Leader() meta.NodeID   { return q.store.Leader() }
func (q quorum) Voters() []meta.NodeID { return q.store.Status().Voters }
func (q quorum) Survey(ctx context.Context) []raftmeta.Surveyed {
	return q.store.Survey(ctx)
}

// distance returns the round-trip time to a region's nearest server, 0 when unknown.
func (n *Node) distance(records *raftmeta.Store) func(meta.RegionName) time.Duration {
	return func(region meta.RegionName) (nearest time.Duration) {
		for _, s := range n.regionServers(region) {
			rtt := records.RTT(s)
			if s == n.ID() {
				rtt = time.Nanosecond
			}
			if rtt > 0 && (nearest == 0 || rtt < nearest) {
				nearest = rtt
			}
		}
		return nearest
	}
}

// second chooses the second region of a standard repository: the nearest that is
// not its home, as seen from here; those at an unknown distance come last.
func (n *Node) second(distance func(meta.RegionName) time.Duration) func(context.Context, meta.RegionName) meta.RegionName {
	return func(_ context.Context, home meta.RegionName) meta.RegionName {
		var best meta.RegionName
		least := time.Duration(math.MaxInt64)
		for _, s := range n.swarmHost.Nodes("", meta.RoleServer) {
			away := cmp.Or(distance(s.Region), math.MaxInt64)
			nearer := away < least || away == least && s.Region < best
			if s.Draining == nil && s.Region != home && (best == "" || nearer) {
				best, least = s.Region, away
			}
		}
		return best
	}
}

// tellAddresses puts right what the roster says of where this server is, trying
// again while there is no leader to tell.
func (n *Node) tellAddresses(ctx context.Context, record meta.Node) error {
	for {
		known, _, err := raftmeta.Ask(ctx, n.metadata, meta.Local, state.GetNode{ID: record.ID})
		if err == nil && !sameAddresses(known, record) {
			_, err = n.doer.Do(ctx, state.Origin{Principal: "node:" + string(record.ID)}, state.UpdateNode{Node: record})
		}
		if !errors.Is(err, meta.ErrUnavailable) {
			return err
		}
		n.log.Warn("the cluster was not told of this server's addresses yet, trying again", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func sameAddresses(a, b meta.Node) bool {
	return a.Gateway == b.Gateway && a.Zone == b.Zone && a.Rack == b.Rack &&
		slices.Equal(a.Swarm, b.Swarm) && slices.Equal(a.Raft, b.Raft)
}

// fetches runs fetches that go on after the call that caused them.
type fetches struct{ wanted chan meta.Blob }

// maxFetches bounds the blobs fetched for the region at one time, and those waiting.
const maxFetches = 128

func newFetches() *fetches { return &fetches{wanted: make(chan meta.Blob, maxFetches)} }

// begin asks for b. When too many wait it is forgotten: who wants it asks again.
func (f *fetches) begin(b meta.Blob) {
	select {
	case f.wanted <- b:
	default:
	}
}

func (f *fetches) run(ctx context.Context, ensure func(context.Context, meta.Blob) error) error {
	var group sync.WaitGroup
	defer group.Wait()
	running := map[digest.CID]bool{}
	ended := make(chan digest.CID)
	for {
		wanted := f.wanted
		if len(running) >= maxFetches {
			wanted = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case root := <-ended:
			delete(running, root)
		case b := <-wanted:
			if running[b.Root] {
				continue
			}
			running[b.Root] = true
			group.Go(func() {
				// Who waits for the blob itself is told of an error; here it only ends.
				_ = ensure(ctx, b)
				select {
				case ended <- b.Root:
				case <-ctx.Done():
				}
			})
		}
	}
}

// forwarder sends requests on to other nodes' gateways.
func (n *Node) forwarder() (*forward.Forwarder, error) {
	f, err := forward.New(forward.Config{
		Self: n.ID(), Region: n.id.Node.Region, Roster: gateways{n.swarmHost},
		TLS: trust.ClientTLS(n.cred), Identify: n.identify, Distance: n.distanceTo, Log: n.log,
		Serves: func(id meta.NodeID) bool { return n.serves(id) && !n.drains(id) },
	})
	if err == nil {
		n.closes(func() error {
			f.Close()
			return nil
		})
	}
	return f, err
}
