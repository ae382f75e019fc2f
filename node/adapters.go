package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/shoal-registry/shoal/dht"
	"github.com/shoal-registry/shoal/dht/host"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/swarm"
	"github.com/shoal-registry/shoal/verify/digest"
)

// The capabilities do not know one another; what one asks of another is
// translated here, and nowhere else.

// discovery is a finder of the dht room.
type discovery interface {
	Join(context.Context, dht.Want) (dht.Introduction, error)
	Leave(context.Context, digest.CID) error
}

// finder makes a discovery a swarm.Finder.
type finder struct{ discovery }

func (f finder) Join(ctx context.Context, want swarm.Want) (swarm.Introduction, error) {
	in, err := f.discovery.Join(ctx, dht.Want(want))
	if err != nil {
		return swarm.Introduction{}, err
	}
	peers := make([]swarm.Peer, len(in.Peers))
	for i, p := range in.Peers {
		peers[i] = swarm.Peer(p)
	}
	return swarm.Introduction{
		Map: in.Map, Inline: in.Inline, Grant: in.Grant, GrantExpires: in.GrantExpires,
		Peers: peers, Again: in.Again, Away: in.Away,
	}, nil
}

// outlet finds the sockets of a host's connections.
func outlet(h *host.Host) func(network.Conn) swarm.Outlet {
	return func(c network.Conn) swarm.Outlet {
		if s := h.Socket(c); s != nil {
			return s
		}
		return nil
	}
}

// reported is what a registrar heard of peers, as the admin API tells it.
func reported(r *dht.Registrar) []client.ReportedPeer {
	var out []client.ReportedPeer
	for _, p := range r.Reported() {
		out = append(out, client.ReportedPeer{
			ID: p.ID, By: len(p.By), Last: p.Last, KeptAway: !p.Shunned.IsZero(), KeptUntil: p.Shunned,
		})
	}
	return out
}

// gateways is the forwarder's roster: the swarm host's, which follows the feed and is
// there, after a restart too, while no server answers.
type gateways struct{ host *host.Host }

func (r gateways) Servers(context.Context) ([]meta.Node, error) {
	return r.host.Nodes("", meta.RoleServer), nil
}

func (r gateways) Node(_ context.Context, id meta.NodeID) (meta.Node, error) {
	n, ok := r.host.Node(id)
	if !ok {
		return meta.Node{}, fmt.Errorf("node %s: %w", id, meta.ErrNotFound)
	}
	return n, nil
}

// self is a node as its swarm peers see it.
func self(n meta.Node) swarm.Peer {
	return swarm.Peer{
		ID: n.ID, Addrs: n.Swarm, Region: n.Region, Zone: n.Zone, Rack: n.Rack,
		Server: n.Role == meta.RoleServer,
	}
}

// blobOf finds the record of a root; that there is none is asked of a majority,
// because an agent may have heard of a blob before this server has.
func blobOf(ctx context.Context, metadata raftmeta.Asker, root digest.CID) (meta.Blob, error) {
	blob, _, err := raftmeta.Ask(ctx, metadata, meta.Local, state.BlobByRoot{Root: root})
	if errors.Is(err, meta.ErrNotFound) {
		blob, _, err = raftmeta.Ask(ctx, metadata, meta.Strong, state.BlobByRoot{Root: root})
	}
	return blob, err
}

// holders knows by metadata which servers, besides self, have a blob.
type holders struct {
	metadata raftmeta.Asker
	self     meta.NodeID
	serves   func(meta.NodeID) bool // of what is recorded
	behind   func(holder meta.NodeID) []meta.NodeID
}

func (h holders) Holders(ctx context.Context, root digest.CID) ([]meta.NodeID, error) {
	replicas, _, err := raftmeta.Ask(ctx, h.metadata, meta.Local, state.Replicas{Root: root})
	if err != nil {
		return nil, err
	}
	var servers []meta.NodeID
	for _, r := range replicas {
		if r.State != meta.ReplicaVerified || r.Server == "" {
			continue
		}
		for _, id := range h.behind(r.Server) {
			if id != h.self {
				servers = append(servers, id)
			}
		}
	}
	// Who is known not to answer, or to have lost its blobs, is left out while another is
	// left.
	well := slices.DeleteFunc(slices.Clone(servers), func(id meta.NodeID) bool { return !h.serves(id) })
	if len(well) > 0 {
		return well, nil
	}
	return servers, nil
}

// maps gives the registrar chunk maps. A server that lacks a blob begins to
// fetch it for its region, and goes on for a while after the answer, so that
// there is something to relay when the region's agents come.
type maps struct {
	metadata raftmeta.Asker
	store    store.Store
	fetch    func(meta.Blob) // begins a fetch in the background; repeated calls are one
}

// inlineBytes is the largest blob that rides in the registrar's reply.
const inlineBytes = 16 << 10

func (m maps) Map(ctx context.Context, root digest.CID) (encoded, inline []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	blob, err := m.store.Open(ctx, root)
	if errors.Is(err, meta.ErrNotFound) {
		record, err := blobOf(ctx, m.metadata, root)
		if err != nil {
			return nil, nil, err
		}
		m.fetch(record)
		return nil, nil, &meta.UnavailableError{Reason: "fetching", RetryAfter: 100 * time.Millisecond}
	} else if err != nil {
		return nil, nil, err
	}
	defer blob.Close()
	cm := blob.Map()
	if !blob.Complete() {
		record, err := blobOf(ctx, m.metadata, root)
		if err != nil {
			return nil, nil, err
		}
		m.fetch(record)
		return cm.Encode(), nil, nil
	}
	if cm.StoredBytes > inlineBytes {
		return cm.Encode(), nil, nil
	}
	for i := range cm.Chunks {
		part, err := blob.ReadChunk(ctx, i, nil)
		if err != nil {
			return nil, nil, err
		}
		inline = append(inline, part...)
	}
	return cm.Encode(), inline, nil
}

// demands is what the repair loop asks of the metadata.
type demands struct {
	store interface {
		raftmeta.Asker
		raftmeta.Watcher
	}
	incidents *incidents
	// settled is told of this region's demands that a report of self has settled; nil is
	// not told.
	settled func(ctx context.Context, region meta.RegionName, root digest.CID)
	self    meta.NodeID
}

func (d demands) Copies(ctx context.Context, root digest.CID) ([]meta.Replica, error) {
	r, _, err := raftmeta.Ask(ctx, d.store, meta.Local, state.Replicas{Root: root})
	return r, err
}

func (d demands) Watch(ctx context.Context, region meta.RegionName, changed func(), failed func(digest.CID)) error {
	_, asOf, err := raftmeta.Ask(ctx, d.store, meta.Local, state.GetCluster{})
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return err
	}
	if err := d.incidents.list(ctx, d.store); err != nil {
		return err
	}
	changed()
	for change, err := range d.store.Watch(ctx, asOf.Index) {
		if err != nil {
			return err
		}
		switch {
		case change.Kind == feed.KindHealth:
			d.incidents.note(change)
			changed()
		case change.Region == region && (change.Kind == feed.KindDemand || change.Kind == feed.KindReplica && change.Deleted):
			if change.Kind == feed.KindReplica && change.Node == d.self {
				failed(change.Root)
			}
			changed()
		case change.Region == region && change.Kind == feed.KindReplica && change.Node == d.self && d.settled != nil:
			d.settled(ctx, region, change.Root)
		}
	}
	return ctx.Err()
}

// reporter tells the metadata of this server's copies.
type reporter struct {
	metadata raftmeta.Asker
	doer     raftmeta.Doer
	self     meta.NodeID
}

// Report says for each copy what this server had seen when it began to look, or else
// now: the word on one that was collected since does not count.
func (r reporter) Report(ctx context.Context, replicas []meta.Replica) error {
	level, asOf, err := raftmeta.Ask(ctx, r.metadata, meta.Local, state.GetLevel{})
	if err != nil {
		return err
	}
	for i := range replicas {
		switch seen := &replicas[i].Seen; {
		case level < state.GCLevel:
			*seen = 0
		case *seen == 0:
			*seen = asOf.Index
		}
	}
	return r.report(ctx, replicas)
}

// report halves what is too large for a command: a report repeated changes nothing.
func (r reporter) report(ctx context.Context, replicas []meta.Replica) error {
	_, err := r.doer.Do(ctx, state.Origin{Principal: "node:" + string(r.self)}, state.ReportReplicas{Replicas: replicas})
	half := len(replicas) / 2
	if half == 0 || !errors.Is(err, meta.ErrTooLarge) {
		return err
	}
	if err := r.report(ctx, replicas[:half]); err != nil {
		return err
	}
	return r.report(ctx, replicas[half:])
}
