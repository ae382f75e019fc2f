package dht

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multihash"
	"github.com/zeebo/blake3"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
	"github.com/shoal-registry/shoal/verify/trust"
)

const (
	// bootstrapPeers is how many nodes of the roster a DHT begins with.
	bootstrapPeers = 8
	enoughPeers    = 2 // of them
	queryTime      = 5 * time.Second
	refreshEvery   = 10 * time.Minute
	startEvery     = time.Second
	// moreWithin is how long a look-up goes on after it has found somebody.
	moreWithin = 100 * time.Millisecond
	// acquainted is how long a look-up waits for a first peer.
	acquainted   = time.Second
	cleanupEvery = 5 * time.Minute
	// serversScope is the scope of the DHT of all servers; no region has that name.
	serversScope = "_servers"
)

// DHTConfig is what a DHT needs; Log may be left out.
type DHTConfig struct {
	// Host is the swarm host.
	Host    host.Host
	Cluster string
	// Region is whose nodes form it; "" makes it that of all servers.
	Region meta.RegionName
	Self   meta.NodeID
	Roster Roster
	// Refused is told of each stream of a node that is no member; nil is not.
	Refused func(meta.NodeID)
	Log     *slog.Logger
}

// DHT is a private Kademlia among the enrolled nodes of a region, or among all
// servers: who has what, when no server is there to ask. It speaks its own
// protocol id, knows no public node, stores provider records only, and those in
// bounded memory.
type DHT struct {
	cfg     DHTConfig
	log     *slog.Logger
	records *recordStore
	kad     atomic.Pointer[kaddht.IpfsDHT] // nil unless Run is at work
	tries   atomic.Uint32                  // to meet first peers

	mu   sync.Mutex
	lost map[peer.ID]time.Time // servers that do not answer, until when they are left out
}

// NewDHT returns a DHT that takes part once Run is called.
func NewDHT(cfg DHTConfig) (*DHT, error) {
	if cfg.Host == nil || cfg.Roster == nil || cfg.Cluster == "" || cfg.Self == "" {
		return nil, fmt.Errorf("make a DHT: host, cluster, self and roster are needed: %w", meta.ErrInvalid)
	}
	return &DHT{
		cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)),
		records: newRecordStore(defaultRecordLimits), lost: map[peer.ID]time.Time{},
	}, nil
}

// Prefix is what the protocol ids of a DHT begin with; kad-dht adds /kad/1.0.0.
// region "" is the DHT of all servers.
func Prefix(cluster string, region meta.RegionName) protocol.ID {
	return protocol.ID("/shoal/" + cluster + "/" + cmp.Or(string(region), serversScope))
}

// member reports whether a node belongs to this DHT. Its answers know no tenants: a node
// that may not have those of all gets none, keeps none, and cannot ask.
func (d *DHT) member(n meta.Node) bool {
	if d.cfg.Region == "" {
		return n.Role == meta.RoleServer
	}
	return n.Region == d.cfg.Region && !n.Narrowed()
}

func (d *DHT) memberPeer(p peer.ID) bool {
	n, ok := d.cfg.Roster.Node(meta.NodeID(p.String()))
	return ok && d.member(n)
}

// reachWithin bounds how long one node is tried to be reached: a dead one takes 5 s
// else, and an announcement waits for each of those that it begins with.
func (d *DHT) reachWithin() time.Duration {
	if d.cfg.Region == "" {
		return 3 * time.Second // around the world
	}
	return time.Second
}

// hasty is a host that soon gives up reaching somebody, and lets nobody ask but members.
type hasty struct {
	host.Host
	within  time.Duration
	members func(peer.ID) bool
	refused func(peer.ID)
}

// SetStreamHandler is that of the host, for streams of members.
func (h hasty) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	h.Host.SetStreamHandler(id, func(s network.Stream) {
		if p := s.Conn().RemotePeer(); !h.members(p) {
			h.refused(p)
			_ = s.Reset()
			return
		}
		handle(s)
	})
}

// Connect is that of the host, within the time.
func (h hasty) Connect(ctx context.Context, p peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, h.within)
	defer cancel()
	return h.Host.Connect(ctx, p)
}

// NewStream is that of the host, within the time.
func (h hasty) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, h.within)
	defer cancel()
	return h.Host.NewStream(ctx, p, ids...)
}

// leftOut is how long a lost server is asked nothing.
const leftOut = 30 * time.Second

// leaveOut has announcements and look-ups do without a server that does not answer:
// waiting for it takes the library 5 s, and it is among the closest of many keys.
func (d *DHT) leaveOut(id meta.NodeID) {
	p, err := trust.PeerID(id)
	if err != nil {
		return
	}
	now := time.Now()
	d.mu.Lock()
	for q, until := range d.lost {
		if now.After(until) {
			delete(d.lost, q)
		}
	}
	d.lost[p] = now.Add(leftOut) // bounded by the servers of the roster
	d.mu.Unlock()
	if kad := d.kad.Load(); kad != nil {
		kad.RoutingTable().RemovePeer(p)
	}
}

// takeIn ends leaveOut.
func (d *DHT) takeIn(id meta.NodeID) {
	if p, err := trust.PeerID(id); err == nil {
		d.mu.Lock()
		delete(d.lost, p)
		d.mu.Unlock()
	}
}

// asks reports whether a peer is asked, and kept in the routing table.
func (d *DHT) asks(p peer.ID) bool {
	d.mu.Lock()
	lost := d.lost[p].After(time.Now())
	d.mu.Unlock()
	return !lost && d.memberPeer(p)
}

// key is the CID under which root is announced: H(scope || root), so that two
// DHTs never share a key and a key does not tell the root.
func (d *DHT) key(root digest.CID) cid.Cid {
	h := blake3.New()
	h.WriteString(string(Prefix(d.cfg.Cluster, d.cfg.Region)))
	h.Write([]byte{0})
	h.Write(root[:])
	mh, err := multihash.Encode(h.Sum(nil), multihash.BLAKE3)
	if err != nil {
		panic(fmt.Sprintf("dht: 32 bytes make no multihash: %v", err))
	}
	return cid.NewCidV1(cid.Raw, mh)
}

// refuse counts a peer that asked and is no member.
func (d *DHT) refuse(p peer.ID) {
	if d.cfg.Refused != nil {
		d.cfg.Refused(meta.NodeID(p.String()))
	}
	d.log.Info("a node that is not of this DHT asked it", "node", p.String(), "dht", cmp.Or(string(d.cfg.Region), serversScope))
}

// Run takes part in the DHT until ctx ends.
func (d *DHT) Run(ctx context.Context) error {
	if self, ok := d.cfg.Roster.Node(d.cfg.Self); ok && !d.member(self) {
		<-ctx.Done() // nobody would answer
		return nil
	}
	kad, err := kaddht.New(hasty{d.cfg.Host, d.reachWithin(), d.memberPeer, d.refuse},
		kaddht.ProtocolPrefix(Prefix(d.cfg.Cluster, d.cfg.Region)),
		kaddht.Mode(kaddht.ModeServer),
		kaddht.DisableValues(),
		kaddht.ProviderDatastore(d.records),
		kaddht.ProviderManagerOpts(records.ProvideValidity(announceValid), records.CleanupInterval(cleanupEvery),
			records.ProviderAddrTTL(announceValid)),
		kaddht.BootstrapPeersFunc(d.bootstrap),
		kaddht.RoutingTableFilter(func(_ any, p peer.ID) bool { return d.asks(p) }),
		kaddht.QueryFilter(func(_ any, info peer.AddrInfo) bool { return d.asks(info.ID) }),
		kaddht.RoutingTableRefreshPeriod(refreshEvery),
		kaddht.RoutingTableRefreshQueryTimeout(queryTime),
	)
	if err != nil {
		return fmt.Errorf("start the DHT of %s: %w", cmp.Or(string(d.cfg.Region), "all servers"), err)
	}
	d.kad.Store(kad)
	// The library looks for a first peer when it starts and then every 2 minutes, one
	// after the other, and a dead server costs 5 s; the roster may come later than the
	// start, and an outage end sooner.
	ticker := time.NewTicker(startEvery)
	defer ticker.Stop()
	for ctx.Err() == nil {
		if d.Size() == 0 {
			d.meet(ctx)
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	d.kad.Store(nil)
	if err := kad.Close(); err != nil {
		return fmt.Errorf("stop the DHT: %w", err)
	}
	return nil
}

// meet connects to the nodes to begin with, all at once, until enough of them are
// there; what identifies itself as one of the DHT then gets into the routing table.
func (d *DHT) meet(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	peers := d.bootstrap()
	d.tries.Add(1)
	met := make(chan error, len(peers))
	for _, p := range peers {
		group.Go(func() { met <- hasty{d.cfg.Host, d.reachWithin(), d.memberPeer, d.refuse}.Connect(ctx, p) })
	}
	found := 0
	for range peers {
		if err := <-met; err != nil {
			d.log.Debug("the DHT misses a first peer", "error", err)
		} else if found++; found == enoughPeers {
			cancel()
		}
	}
}

// bootstrap picks the nodes to begin with, and to begin again with when all
// others are lost: servers first, then others, by rendezvous with this node and
// try, so that a region's nodes do not all begin with the same ones.
func (d *DHT) bootstrap() []peer.AddrInfo {
	seed := digest.Sum(fmt.Append([]byte(d.cfg.Self), d.tries.Load()))
	nodes := rank(seed, slices.DeleteFunc(slices.Clone(d.cfg.Roster.Nodes(d.cfg.Region, "")), func(n meta.Node) bool {
		p, err := trust.PeerID(n.ID)
		return n.ID == d.cfg.Self || err != nil || !d.asks(p)
	}))
	slices.SortStableFunc(nodes, func(a, b meta.Node) int {
		return cmp.Compare(btoi(a.Role != meta.RoleServer), btoi(b.Role != meta.RoleServer))
	})
	// Half of a region's are servers at most: they may all be gone, which is what
	// its DHT is for.
	var out []peer.AddrInfo
	servers := 0
	for _, n := range nodes {
		if n.Role == meta.RoleServer && d.cfg.Region != "" {
			if servers++; servers > bootstrapPeers/2 {
				continue
			}
		}
		if p, err := trust.PeerID(n.ID); err == nil && len(out) < bootstrapPeers {
			out = append(out, peer.AddrInfo{ID: p})
		}
	}
	return out
}

var errNotRunning = &meta.UnavailableError{Reason: "starting", RetryAfter: time.Second}

// Provide announces that this node has some of root, for half an hour. It costs
// about 20 messages; ctx must have a deadline.
//
// Errors: meta.ErrUnavailable when nobody could be told.
func (d *DHT) Provide(ctx context.Context, root digest.CID) error {
	kad := d.kad.Load()
	if kad == nil {
		return fmt.Errorf("announce %s: %w", root, errNotRunning)
	}
	if err := kad.Provide(ctx, d.key(root), true); err != nil {
		return fmt.Errorf("announce %s: %w: %w", root, err, meta.ErrUnavailable)
	}
	return nil
}

// FindProviders returns at most limit enrolled nodes that announced root, itself
// aside: as soon as it has so many, or moreWithin after the first of them, since the
// rest of the look-up may wait for dead nodes. ctx must have a deadline, at which it
// returns those found by then.
//
// Errors: meta.ErrUnavailable when nobody could be asked.
func (d *DHT) FindProviders(ctx context.Context, root digest.CID, limit int) ([]meta.NodeID, error) {
	kad := d.kad.Load()
	if kad == nil {
		return nil, fmt.Errorf("look up %s: %w", root, errNotRunning)
	}
	d.await(ctx)
	ctx, cancel := context.WithCancel(ctx)
	// One more than wanted, since this node may be among them.
	found := kad.FindProvidersAsync(ctx, d.key(root), limit+1)
	var out []meta.NodeID
	for info := range found {
		id := meta.NodeID(info.ID.String())
		if id == d.cfg.Self || !d.memberPeer(info.ID) || slices.Contains(out, id) {
			continue
		}
		if out = append(out, id); len(out) == limit {
			break
		}
		if len(out) == 1 {
			enough := time.AfterFunc(moreWithin, cancel)
			defer enough.Stop()
		}
	}
	cancel()
	for range found { // the look-up ends with its context; let it
	}
	if len(out) == 0 && kad.RoutingTable().Size() == 0 {
		return nil, fmt.Errorf("look up %s: %w", root, &meta.UnavailableError{Reason: "no_server", RetryAfter: time.Second})
	}
	return out, nil
}

// await waits for a first peer, which a node that has just started may not have yet.
func (d *DHT) await(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, acquainted)
	defer cancel()
	ticker := time.NewTicker(acquainted / 50)
	defer ticker.Stop()
	for d.Size() == 0 {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Size returns how many nodes the routing table has.
func (d *DHT) Size() int {
	if kad := d.kad.Load(); kad != nil {
		return kad.RoutingTable().Size()
	}
	return 0
}
