// Package dht finds who holds what. It is advisory only: what a peer then serves
// is verified against the root, and whether it may is decided by grants.
//
// Three sources, in this order. The Registrar on a region's servers knows the
// live members of each swarm and answers, in one call, with the chunk map, a
// grant and up to 24 of them. Peer exchange travels on the swarm's own streams;
// Referrals says which of the told peers count. The DHT, kad-dht among the nodes
// of a region and another among all servers, is asked when no server answers.
// An agent uses a Finder, a server a ServerFinder; both have the shape of the
// swarm's own Finder. Start reading at Introduction, then table.go (the pure
// core of the registrar), registrar.go and finder.go.
//
// Invariants: only enrolled nodes of the region are answered; a peer's place and
// addresses come from the roster, never from a message; what is absent and what
// is forbidden look the same; every table, cache, queue and message has a bound,
// every call a deadline; the table reads no clock.
//
// Goroutines: Registrar, Finder, ServerFinder and DHT start theirs in Run and end
// them before it returns. The wire format is in wire.go and in DESIGN.md; sources
// are the Kademlia paper (Maymounkov, Mazières 2002) and libp2p's kad-dht spec.
package dht

import (
	"context"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// MaxPeers is the largest number of members in an Introduction, the servers that
// introduce aside.
const MaxPeers = 24

// Want says what a node looks for and how much of it it has.
type Want struct {
	Root digest.CID
	// Have counts the verified chunks here; Complete says that none is missing.
	Have     int
	Complete bool
}

// Peer is a member of a swarm. Its place and addresses are the roster's.
type Peer struct {
	ID meta.NodeID
	// Addrs are multiaddrs without the peer id.
	Addrs      []string
	Region     meta.RegionName
	Zone, Rack string
	// Server says that the peer is a server, Complete that it had every chunk when
	// last heard of. Complete is a hint.
	Server, Complete bool
}

// Introduction says what a blob is and who has some of it.
type Introduction struct {
	// Map is the encoded chunk map, which hashes to the root. It is empty when the
	// registrar does not have it yet or it is over MaxMapBytes: then a peer is asked.
	Map []byte
	// Inline is all of a blob of at most MaxInlineBytes, as stored; not verified here.
	Inline []byte
	// Grant lets this node have the blob until GrantExpires. While no server is
	// reachable it may be one that has expired.
	Grant        []byte
	GrantExpires time.Time
	// Peers are members in no order, of a server's Finder the holders first, nearest
	// region first.
	Peers []Peer
	// Again is how long to wait before the next Join keeps the membership alive.
	Again time.Duration
	// Members counts the live members that the registrar knows; 0 is unknown.
	Members int
	// Away are peers of which two nodes say that they sent wrong chunks.
	Away []meta.NodeID
}

// Roster is who is enrolled; *host.Host is one.
type Roster interface {
	Node(id meta.NodeID) (meta.Node, bool)
	// Nodes lists by region and role, sorted by id; "" is any. Its result is shared.
	Nodes(region meta.RegionName, role meta.Role) []meta.Node
}

// Maps is what a registrar asks for the bytes it can give away itself.
type Maps interface {
	// Map returns the encoded chunk map of root, and all stored bytes of a blob of
	// at most MaxInlineBytes. It has 1 s. A server that lacks the blob may begin to
	// fetch it for its region and return any error: the reply then has no map.
	Map(ctx context.Context, root digest.CID) (encoded, inline []byte, err error)
}

// Granter decides whether a node may have a blob, and signs.
type Granter interface {
	// Grant returns the grant and when it ends, at most trust.GrantLife from now.
	//
	// Errors: meta.ErrNotFound and meta.ErrDenied are taken as final, so a server
	// whose state may lag behind the asker's asks a majority before it says so.
	Grant(ctx context.Context, peer meta.NodeID, root digest.CID) (grant []byte, expires time.Time, err error)
}

// Holders knows, from the metadata, which servers of any region hold a blob
// whole and verified.
type Holders interface {
	Holders(ctx context.Context, root digest.CID) ([]meta.NodeID, error)
}

// Referrals returns those of the peers that self may dial: enrolled, not itself,
// of its own region or, when self is a server, any server. Places and addresses
// are the roster's; of what the teller says only Complete is kept. It is what
// peer exchange passes each message through.
func Referrals(roster Roster, self meta.Node, peers []Peer) []Peer {
	kept := make([]Peer, 0, len(peers))
	for _, p := range peers {
		n, ok := roster.Node(p.ID)
		if !ok || n.ID == self.ID {
			continue
		}
		if n.Region == self.Region || n.Role == meta.RoleServer && self.Role == meta.RoleServer {
			kept = append(kept, peerOf(n, p.Complete))
		}
	}
	return kept
}

func peerOf(n meta.Node, complete bool) Peer {
	return Peer{
		ID: n.ID, Addrs: n.Swarm, Region: n.Region, Zone: n.Zone, Rack: n.Rack,
		Server: n.Role == meta.RoleServer, Complete: complete,
	}
}
