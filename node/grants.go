package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/dht"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
	"github.com/shoal-registry/shoal/verify/trust"
)

// granter signs the grants of a server: an enrolled node may have the blobs of the
// tenants that its record names, all when it names none, and what everybody may read;
// its users' rights are checked at its own gateway. It knows a root only by a blob record.
type granter struct {
	metadata raftmeta.Asker
	roster   dht.Roster
	head     access.Head
	key      *trust.Key
	cluster  string
	refused  prometheus.Counter // nodes that asked for another tenant's blobs
	log      *slog.Logger
}

// Grant implements dht.Granter. One who may not have a blob learns as much as of one that
// there is not.
func (g granter) Grant(ctx context.Context, peer meta.NodeID, root digest.CID) ([]byte, time.Time, error) {
	node, ok := g.roster.Node(peer)
	if !ok {
		return nil, time.Time{}, fmt.Errorf("grant to %s, which is not in the roster: %w", peer, meta.ErrDenied)
	}
	grant := trust.Grant{Peer: peer, Root: root, Revision: g.head.Revision()} // first, so that it is not too new
	if node.Narrowed() {
		holding, err := g.holding(ctx, node, root)
		if err != nil {
			return nil, time.Time{}, err
		}
		grant.Context, grant.Public = holding.Blob.Context, holding.Public
	} else {
		blob, err := blobOf(ctx, g.metadata, root)
		if err != nil {
			return nil, time.Time{}, err
		}
		grant.Context = blob.Context
	}
	expires := time.Now().Add(trust.GrantLife)
	grant.Expires = meta.TimeOf(expires)
	signed, err := g.key.SignGrant(g.cluster, grant)
	return signed, expires, err
}

// holding finds what a narrowed node may have of a root; that it is nothing is asked of
// a majority, as by blobOf, whether the blob is there or not.
func (g granter) holding(ctx context.Context, node meta.Node, root digest.CID) (state.Holding, error) {
	q := state.MayHold{Root: root, Node: node}
	h, _, err := raftmeta.Ask(ctx, g.metadata, meta.Local, q)
	if !errors.Is(err, meta.ErrNotFound) {
		return h, err
	}
	h, _, err = raftmeta.Ask(ctx, g.metadata, meta.Strong, q)
	if errors.Is(err, meta.ErrNotFound) {
		if _, _, there := raftmeta.Ask(ctx, g.metadata, meta.Local, state.BlobByRoot{Root: root}); there == nil {
			g.refused.Inc()
			g.log.Info("a node asked for a blob of tenants of which it may have nothing", "node", node.ID, "root", root)
		}
	}
	return h, err
}

// checker is what a node's swarm checks grants with. grace is as in trust.Checker.
func (n *Node) checker(grace func() time.Duration) trust.Checker {
	floor := &revisionFloor{head: n.head, after: grantsFollow}
	return trust.Checker{
		Cluster: n.id.Cluster, IsServer: n.isServer, Grace: grace, Revised: floor.revision,
		MayHold: func(peer meta.NodeID, tenant meta.TenantName) bool {
			known, ok := n.swarmHost.Node(peer)
			return ok && known.MayHold(tenant)
		},
	}
}

// grantsFollow is how long after rights were taken back grants from before still count:
// members renew theirs each 4 to 6 s, and nobody is cut off by what was somebody else's.
const grantsFollow = 10 * time.Second

// revisionFloor is the access revision that a node has known for a while.
type revisionFloor struct {
	head  access.Head
	after time.Duration

	mu    sync.Mutex
	known []knownRevision // in order of time; the first is the floor
}

type knownRevision struct {
	revision uint64
	since    time.Time
}

// maxKnownRevisions bounds those that are younger than the floor: of more, the later
// ones count from when they are seen after an older one has become the floor.
const maxKnownRevisions = 64

func (f *revisionFloor) revision() uint64 {
	now, revision := time.Now(), f.head.Revision()
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.known) > 1 && now.Sub(f.known[1].since) >= f.after {
		f.known = slices.Delete(f.known, 0, 1)
	}
	// Of the first one, when it came is not known: it may be old.
	if last := len(f.known) - 1; last < 0 || f.known[last].revision != revision && last+1 < maxKnownRevisions {
		f.known = append(f.known, knownRevision{revision, now})
	}
	return f.known[0].revision
}
