package host

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// maxAddrs bounds the addresses taken from one node's record.
const maxAddrs = 16

// roster is the enrolled nodes with what the host needs of each. Readers take
// the lock for a look-up; lists are built on demand and shared until a change.
type roster struct {
	plane Plane
	quic  bool

	mu    sync.RWMutex
	nodes map[peer.ID]entry
	ids   map[meta.NodeID]peer.ID
	lists map[group][]meta.Node
}

type entry struct {
	node  meta.Node
	addrs []ma.Multiaddr
}

type group struct {
	region meta.RegionName
	role   meta.Role
}

func newRoster(plane Plane, quic bool) *roster {
	return &roster{plane: plane, quic: quic, nodes: map[peer.ID]entry{}, ids: map[meta.NodeID]peer.ID{}, lists: map[group][]meta.Node{}}
}

func (r *roster) entryOf(n meta.Node) (peer.ID, entry, error) {
	p, err := trust.PeerID(n.ID)
	if err != nil {
		return "", entry{}, err
	}
	texts := n.Swarm
	if r.plane == Raft {
		texts = n.Raft
	}
	e := entry{node: n}
	for _, text := range texts[:min(len(texts), maxAddrs)] {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			continue // its other addresses may do; with none the dial says so
		}
		if _, err := a.ValueForProtocol(ma.P_TCP); err != nil {
			continue
		}
		e.addrs = append(e.addrs, a)
		if q, ok := quicOf(a); r.quic && ok {
			e.addrs = append(e.addrs, q)
		}
	}
	return p, e, nil
}

// quicOf returns the QUIC address beside a TCP one: same host, same number.
func quicOf(a ma.Multiaddr) (ma.Multiaddr, bool) {
	if len(a) != 2 {
		return nil, false
	}
	port, err := a.ValueForProtocol(ma.P_TCP)
	if err != nil {
		return nil, false
	}
	udp, err := ma.NewMultiaddr("/udp/" + port + "/quic-v1")
	if err != nil {
		return nil, false
	}
	return a[:1].Encapsulate(udp), true
}

// replace and update return the peers that may no longer be connected, and the
// ids that could not be used.
func (r *roster) replace(nodes []meta.Node) (gone []peer.ID, bad []meta.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	keep := make(map[meta.NodeID]bool, len(nodes))
	for _, n := range nodes {
		keep[n.ID] = true
	}
	for id, p := range maps.Clone(r.ids) {
		if !keep[id] {
			r.drop(id)
			gone = append(gone, p)
		}
	}
	more, bad := r.put(nodes)
	return append(gone, more...), bad
}

func (r *roster) update(put []meta.Node, removed []meta.NodeID) (gone []peer.ID, bad []meta.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range removed {
		if p, ok := r.ids[id]; ok {
			r.drop(id)
			gone = append(gone, p)
		}
	}
	more, bad := r.put(put)
	return append(gone, more...), bad
}

func (r *roster) drop(id meta.NodeID) {
	delete(r.nodes, r.ids[id])
	delete(r.ids, id)
	clear(r.lists)
}

func (r *roster) put(nodes []meta.Node) (gone []peer.ID, bad []meta.NodeID) {
	for _, n := range nodes {
		p, e, err := r.entryOf(n)
		if err != nil {
			bad = append(bad, n.ID)
			continue
		}
		_, known := r.ids[n.ID]
		r.nodes[p], r.ids[n.ID] = e, p
		if known && !r.admitsNode(n) {
			gone = append(gone, p)
		}
	}
	if len(nodes) > 0 {
		clear(r.lists)
	}
	return gone, bad
}

func (r *roster) admitsNode(n meta.Node) bool {
	return r.plane == Swarm || n.Role == meta.RoleServer
}

func (r *roster) admits(p peer.ID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	e, ok := r.nodes[p]
	return ok && r.admitsNode(e.node)
}

func (r *roster) addrs(p peer.ID) []ma.Multiaddr {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Clone(r.nodes[p].addrs)
}

func (r *roster) peers() peer.IDSlice {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Collect(maps.Keys(r.nodes))
}

func (r *roster) node(id meta.NodeID) (meta.Node, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	e, ok := r.nodes[r.ids[id]]
	return e.node, ok
}

func (r *roster) list(region meta.RegionName, role meta.Role) []meta.Node {
	g := group{region, role}
	r.mu.RLock()
	list, ok := r.lists[g]
	r.mu.RUnlock()
	if ok {
		return list
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.nodes {
		if (region == "" || e.node.Region == region) && (role == "" || e.node.Role == role) {
			list = append(list, e.node)
		}
	}
	slices.SortFunc(list, func(a, b meta.Node) int { return cmp.Compare(a.ID, b.ID) })
	// Regions that do not exist may be asked for; they must not grow the table.
	if len(list) > 0 {
		r.lists[g] = list
	}
	return list
}
