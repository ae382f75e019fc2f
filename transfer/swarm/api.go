package swarm

import (
	"context"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Want says what a node looks for and how much of it it has.
type Want struct {
	Root digest.CID
	// Have counts the verified chunks here; Complete says that none is missing.
	Have     int
	Complete bool
}

// Peer is a member of a swarm as a Finder knows it.
type Peer struct {
	ID meta.NodeID
	// Addrs are multiaddrs without the peer id.
	Addrs      []string
	Region     meta.RegionName
	Zone, Rack string
	// Server says that the peer is a regional server, Complete that it had every
	// chunk when the Finder last heard of it. Both are hints.
	Server, Complete bool
}

// Introduction is what a Finder answers: what the blob is and who has some of it.
type Introduction struct {
	// Map is the encoded chunk map, empty when the Finder does not hold it; then
	// the swarm asks a peer for it. It is checked against the root either way.
	Map []byte
	// Inline is the whole stored content of a blob of at most 16 KiB.
	Inline []byte
	// Grant proves to peers, until GrantExpires, that this node may have the blob.
	Grant        []byte
	GrantExpires time.Time
	Peers        []Peer
	// Again is how long to wait before the next Join keeps the membership alive; 0 is 5 s.
	Again time.Duration
	// Away are peers that sent wrong chunks to others: they are kept away like those
	// that this node has caught itself.
	Away []meta.NodeID
}

// Finder introduces a node to the members of a swarm: a regional server's
// registrar, else the DHT.
type Finder interface {
	// Join tells that this node wants, or has, want.Root and returns who else is
	// there. It is called again each Introduction.Again while the node is a member.
	//
	// Errors: meta.ErrNotFound and meta.ErrDenied are final, any other is retried.
	Join(ctx context.Context, want Want) (Introduction, error)
	// Leave ends the membership.
	Leave(ctx context.Context, root digest.CID) error
}

// Authorizer checks the grants that peers show.
type Authorizer interface {
	// Check returns nil when grant lets peer have the blob at now, else meta.ErrDenied.
	Check(grant []byte, peer meta.NodeID, root digest.CID, now time.Time) error
}

// Outlet tells how much of what was written to a connection's streams has gone out.
type Outlet interface {
	// Written counts the bytes that the system has taken, of all streams and with
	// what encryption and muxer add.
	Written() int64
	// Reach returns a channel that gets a signal once Written is at least total, or
	// a stray one earlier. One goroutine at a time waits for it.
	Reach(total int64) <-chan struct{}
}

// Config is what a Swarm needs. Host, Cluster, Self, Store, Finder and Authorizer
// are required.
type Config struct {
	// Host is the swarm host; its address book and gate belong to dht/host.
	Host host.Host
	// Outlet returns the outlet of one of Host's connections, nil when it has none;
	// then, and when Outlet is nil, chunks are written as fast as the streams take them.
	Outlet func(network.Conn) Outlet
	// Cluster is the cluster id, part of the protocol ids.
	Cluster string
	// Self describes this node to its peers; ID and Complete are ignored.
	Self       Peer
	Store      store.Store
	Finder     Finder
	Authorizer Authorizer
	// Report is told of each wrong chunk and who sent it; it must not block. nil
	// tells nobody.
	Report func(peer meta.NodeID, root digest.CID, chunk int)
	// Log is silent when nil, Metrics unregistered when nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer
	// Limits bounds what the swarm may use; zero fields take their defaults.
	Limits Limits
	// Budgets bounds the bytes of chunks per second; none when nil.
	Budgets *limit.Budgets
	// Yield makes what is pre-warmed give way to all other traffic of the host, as round
	// trips to peers tell; it needs Budgets.
	Yield bool
	// TenantOf returns whose blob a checked grant is for; when nil all are nobody's.
	TenantOf func(grant []byte) string
}

// Limits bounds the swarm; a zero field takes its default.
type Limits struct {
	// Sessions is the largest number of roots fetched at once; default 256. A Fetch
	// of one more waits.
	Sessions int
	// Serving is the largest number of roots that are served without being fetched;
	// default 4096. Peers that join one more are told to come again.
	Serving int
	// Members is the largest number of peers of one root; default 64 on an agent,
	// 1024 on a server. One more is refused with referrals.
	Members int
	// UploadSlots is how many chunks are sent at once; default 10. A slot is taken until
	// the receiver has confirmed the chunk, so a few are always about to be free.
	UploadSlots int
	// Degree is how many peers of one root this node asks; default 24.
	Degree int
	// BufferBytes bounds the chunks in memory while they are received, and again
	// while they are sent; default 32 MiB on an agent, 64 MiB on a server.
	BufferBytes int64
	// IdleAfter is when a root that nobody here wants and no peer asked for is let
	// go; default 30 s. Linger is the same for one that was fetched whole; default 2 min.
	IdleAfter, Linger time.Duration
}

func (l Limits) withDefaults(server bool) Limits {
	def(&l.Sessions, 256)
	def(&l.Serving, 4096)
	if server {
		def(&l.Members, 1024)
		def(&l.BufferBytes, 64<<20)
	}
	def(&l.Members, 64)
	def(&l.UploadSlots, 10)
	def(&l.Degree, 24)
	def(&l.BufferBytes, 32<<20)
	def(&l.IdleAfter, 30*time.Second)
	def(&l.Linger, 2*time.Minute)
	return l
}

func def[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}
