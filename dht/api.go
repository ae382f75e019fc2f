// Package dht finds who holds what; advisory only.
package dht

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

var errSoon = errors.New("dht: not there yet")

// Want, Peer and Introduction mirror transfer/swarm's; swarm.Peer(p) converts.
type Want struct {
	Root     digest.CID
	Have     int
	Complete bool
}

type Peer struct {
	ID               meta.NodeID
	Addrs            []string
	Region           meta.RegionName
	Zone, Rack       string
	Server, Complete bool
}

type Introduction struct {
	Map, Inline, Grant []byte
	GrantExpires       time.Time
	Peers              []Peer
	Again              time.Duration
	// Members counts the live members the registrar knows, 0 is unknown.
	Members int
}

// Roster is who is enrolled; dht/host.Host is one.
type Roster interface {
	Node(meta.NodeID) (meta.Node, bool)
	Nodes(region meta.RegionName, role meta.Role) []meta.Node
}

// Maps answers the encoded chunk map of a root, and all stored bytes when at most 16 KiB. When the server lacks the
// blob, Map may start fetching it for its region; it gets at most 1 s and may return ErrUnavailable, then the reply has no map.
type Maps interface {
	Map(ctx context.Context, root digest.CID) (encoded, inline []byte, err error)
}

// Granter decides whether peer may read root's context and signs. ErrNotFound, ErrDenied are final.
type Granter interface {
	Grant(ctx context.Context, peer meta.NodeID, root digest.CID) (grant []byte, expires time.Time, err error)
}

// Holders knows by metadata which servers hold root verified (any region).
type Holders interface {
	Holders(ctx context.Context, root digest.CID) ([]meta.NodeID, error)
}

// Registrar is the server's half.
type Registrar struct{}

type RegistrarConfig struct {
	Host    host.Host
	Cluster string
	Self    meta.Node
	Roster  Roster
	Maps    Maps
	Granter Granter
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

func NewRegistrar(RegistrarConfig) (*Registrar, error) { return nil, errSoon }
func (r *Registrar) Run(ctx context.Context) error     { return errSoon }

// Finder is the agent's half.
type Finder struct{}

type FinderConfig struct {
	Host    host.Host
	Cluster string
	Self    meta.Node
	Roster  Roster
	DHT     *DHT                                            // nil: no fallback
	Held    func(ctx context.Context, root digest.CID) bool // still in the store: provided again; nil: only while a member
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

func NewFinder(FinderConfig) (*Finder, error)   { return nil, errSoon }
func (f *Finder) Run(ctx context.Context) error { return errSoon }
func (f *Finder) Join(ctx context.Context, want Want) (Introduction, error) {
	return Introduction{}, errSoon
}
func (f *Finder) Leave(ctx context.Context, root digest.CID) error { return errSoon }

// Reachable reports whether a server of the region answered lately (for trust.Checker.Grace).
func (f *Finder) Reachable() bool { return false }

// ServerFinder is the Finder of a server.
type ServerFinder struct{}

type ServerFinderConfig struct {
	Registrar *Registrar
	Self      meta.Node
	Roster    Roster
	Granter   Granter
	Holders   Holders
	DHT       *DHT                                // of the servers; nil: none
	RTT       func(meta.RegionName) time.Duration // to a region, 0 unknown; nil: none known
	Held      func(ctx context.Context, root digest.CID) bool
	Log       *slog.Logger
	Metrics   prometheus.Registerer
}

func NewServerFinder(ServerFinderConfig) (*ServerFinder, error) { return nil, errSoon }
func (f *ServerFinder) Run(ctx context.Context) error           { return errSoon }
func (f *ServerFinder) Join(ctx context.Context, want Want) (Introduction, error) {
	return Introduction{}, errSoon
}
func (f *ServerFinder) Leave(ctx context.Context, root digest.CID) error { return errSoon }

// DHT is one private kad-dht: of a region (its nodes) or of the servers.
type DHT struct{}

type DHTConfig struct {
	Host    host.Host
	Cluster string
	// Region whose nodes form it; "" is the DHT of all servers.
	Region meta.RegionName
	Self   meta.NodeID
	Roster Roster
	Log    *slog.Logger
}

func NewDHT(DHTConfig) (*DHT, error)         { return nil, errSoon }
func (d *DHT) Run(ctx context.Context) error { return errSoon }
func (d *DHT) Close() error                  { return errSoon }

// Referrals returns those peers that self may dial: enrolled, of its region (or servers, when self is one), with the
// roster's addresses and places in place of the teller's.
func Referrals(roster Roster, self meta.Node, peers []Peer) []Peer { return nil }
