package dht

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	// Of the MaxPeers of a server's introduction so many may be servers; the rest
	// are members of its own region.
	maxHolders = 12
	// neighbours bounds the servers of its own region that it is told of without
	// their being known holders: they may be fetching the same blob.
	neighbours = 4

	holdersTime = 3 * time.Second
)

// ServerFinderConfig is what a ServerFinder needs; DHT, RTT, Held, Log and Metrics
// may be left out.
type ServerFinderConfig struct {
	// Registrar is this server's own.
	Registrar *Registrar
	Self      meta.Node
	Roster    Roster
	Granter   Granter
	Holders   Holders
	// DHT is that of all servers, Region that of the own region: its agents are asked for
	// what no server has any more.
	DHT, Region *DHT
	// RTT is the round-trip time to a region, 0 when unknown.
	RTT func(meta.RegionName) time.Duration
	// Held says whether the server still has some of a root (FinderConfig.Held).
	Held    func(ctx context.Context, root digest.CID) bool
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// ServerFinder finds for a server: who holds a blob it learns from the metadata,
// who of its region is a member from its own registrar.
type ServerFinder struct {
	cfg      ServerFinderConfig
	log      *slog.Logger
	metrics  *finderMetrics
	announce *announcer
}

// NewServerFinder returns a ServerFinder. It works at once; Run announces.
func NewServerFinder(cfg ServerFinderConfig) (*ServerFinder, error) {
	if cfg.Registrar == nil || cfg.Roster == nil || cfg.Granter == nil || cfg.Holders == nil || cfg.Self.ID == "" {
		return nil, fmt.Errorf("make a server's finder: registrar, self, roster, granter and holders are needed: %w", meta.ErrInvalid)
	}
	m, err := newFinderMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("register the metrics of the finder: %w", err)
	}
	return &ServerFinder{
		cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)), metrics: m,
		announce: newAnnouncer(cfg.Self.ID, cfg.DHT, cfg.Held),
	}, nil
}

// Run announces in the DHT of the servers what this one joined for, until ctx ends.
func (f *ServerFinder) Run(ctx context.Context) error {
	return f.announce.run(ctx, func(time.Time) {})
}

// Join makes this server a member of the root's swarm in its region and returns
// the servers that hold it, nearest region first, its neighbours, and members of
// its region. The map is left to the peers. The DHT of the servers is asked when
// the metadata is silent or knows nobody.
//
// Errors: meta.ErrNotFound, meta.ErrDenied are final; meta.ErrUnavailable.
func (f *ServerFinder) Join(ctx context.Context, want Want) (Introduction, error) {
	if want.Root.IsZero() {
		return Introduction{}, fmt.Errorf("join no swarm: %w", meta.ErrInvalid)
	}
	self := f.cfg.Self
	grant, expires, err := f.cfg.Registrar.grant(ctx, self.ID, want.Root)
	if err != nil {
		return Introduction{}, fmt.Errorf("join the swarm of %s: %w", want.Root, err)
	}
	in := Introduction{Grant: grant, GrantExpires: expires, Again: againFetching, Away: f.cfg.Registrar.shunnedPeers(maxAway)}
	if want.Complete {
		in.Again = againComplete
	}
	servers, source := f.holders(ctx, want)
	f.metrics.joins.WithLabelValues(source).Inc()
	in.Peers = f.near(want.Root, servers)
	if source == "nobody" && !want.Complete {
		in.Peers = append(in.Peers, f.cached(ctx, want.Root)...)
	}
	members, count := f.cfg.Registrar.local(want.Root, progress{uint64(max(0, want.Have)), want.Complete}, MaxPeers-len(in.Peers))
	in.Members = count
	for _, m := range members {
		if !slices.ContainsFunc(in.Peers, func(p Peer) bool { return p.ID == m.ID }) {
			in.Peers = append(in.Peers, m)
		}
	}
	if want.Complete {
		f.announce.add(want.Root, 0)
	}
	return in, nil
}

// Report tells this server's registrar that peer sent a wrong chunk of root. It does
// not block.
func (f *ServerFinder) Report(peer meta.NodeID, root digest.CID, chunk int) {
	f.cfg.Registrar.accuse(f.cfg.Self, request{Root: root, Accused: peer, Chunk: uint64(max(0, chunk))})
}

// Leave ends the membership.
func (f *ServerFinder) Leave(_ context.Context, root digest.CID) error {
	f.cfg.Registrar.leave(root, f.cfg.Self.ID)
	return nil
}

func (f *ServerFinder) holders(ctx context.Context, want Want) (servers []meta.NodeID, source string) {
	limited, cancel := context.WithTimeout(ctx, holdersTime)
	servers, err := f.cfg.Holders.Holders(limited, want.Root)
	cancel()
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		f.log.Debug("the metadata does not say who holds a blob", "root", want.Root, "error", err)
	}
	if len(servers) > 0 {
		return servers, "metadata"
	}
	if f.cfg.DHT == nil || want.Complete {
		return nil, "nobody"
	}
	limited, cancel = context.WithTimeout(ctx, lookupTime)
	defer cancel()
	servers, err = f.cfg.DHT.FindProviders(limited, want.Root, maxHolders)
	if err != nil {
		f.log.Debug("the DHT of the servers does not answer", "root", want.Root, "error", err)
	}
	if len(servers) == 0 {
		return nil, "nobody"
	}
	return servers, "dht"
}

// cached returns agents of the region that announced to have some of root: a copy in a
// cache is as good as any other, since each chunk is checked.
func (f *ServerFinder) cached(ctx context.Context, root digest.CID) (peers []Peer) {
	if f.cfg.Region == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	ids, err := f.cfg.Region.FindProviders(ctx, root, maxHolders)
	if err != nil {
		f.log.Debug("the DHT of the region does not answer", "root", root, "error", err)
	}
	for _, id := range ids {
		if n, ok := f.cfg.Roster.Node(id); ok && n.Role == meta.RoleAgent && n.Region == f.cfg.Self.Region {
			peers = append(peers, peerOf(n, false))
		}
	}
	return peers
}

// near sorts the holders: of the own region, of regions with a known round-trip
// time by that, of the rest; within a region by rendezvous, so that servers
// spread over the holders. Neighbours that are no holders come last.
func (f *ServerFinder) near(root digest.CID, holders []meta.NodeID) []Peer {
	self := f.cfg.Self
	distance := func(r meta.RegionName) time.Duration {
		if r == self.Region {
			return 0
		}
		if f.cfg.RTT != nil {
			if rtt := f.cfg.RTT(r); rtt > 0 {
				return rtt
			}
		}
		return time.Hour
	}
	var nodes []meta.Node
	for _, id := range holders {
		n, ok := f.cfg.Roster.Node(id)
		if ok && n.ID != self.ID && n.Role == meta.RoleServer && !slices.ContainsFunc(nodes, func(m meta.Node) bool { return m.ID == id }) {
			nodes = append(nodes, n)
		}
	}
	// Ranked as seen from here: another server begins with another holder.
	nodes = rank(digest.Sum(append(root[:], self.ID...)), nodes)
	slices.SortStableFunc(nodes, func(a, b meta.Node) int { return cmp.Compare(distance(a.Region), distance(b.Region)) })
	nodes = nodes[:min(len(nodes), maxHolders)]
	peers := make([]Peer, 0, MaxPeers)
	for _, n := range nodes {
		peers = append(peers, peerOf(n, true))
	}
	var beside int
	for _, n := range rank(root, f.cfg.Roster.Nodes(self.Region, meta.RoleServer)) {
		if beside == neighbours {
			break
		}
		if n.ID != self.ID && !slices.ContainsFunc(peers, func(p Peer) bool { return p.ID == n.ID }) {
			peers = append(peers, peerOf(n, false))
			beside++
		}
	}
	return peers
}
