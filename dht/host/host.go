// Package host builds the libp2p hosts of a node.
package host

import (
	"crypto/ed25519"
	"errors"
	"log/slog"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Plane is which of a node's two hosts it is.
type Plane string

const (
	Swarm Plane = "swarm" // meta.Node.Swarm addresses; every node of the roster
	Raft  Plane = "raft"  // meta.Node.Raft addresses; servers only
)

type Config struct {
	Key       ed25519.PrivateKey
	Plane     Plane
	Listen    []string // host:port or multiaddrs; port 0 is free choice; TCP, on Swarm with QUIC also UDP of the same number
	Advertise string   // host (name or IP) that others reach this node by; "" takes the listen address
	QUIC      bool     // Swarm only
	Limits    Limits   // zero fields take their defaults
	Log       *slog.Logger
	Metrics   prometheus.Registerer
}

type Limits struct {
	Conns int // default 4096
}

// Host is a libp2p host that knows only the roster; it is also the dht.Roster.
type Host struct{ host.Host }

func New(Config) (*Host, error) { return nil, errors.New("dht/host: not there yet") }

// Advertised returns the multiaddrs without peer id for meta.Node.Swarm or .Raft.
func (h *Host) Advertised() []string { return nil }

// SetRoster replaces whom the host knows; connections of removed nodes close.
func (h *Host) SetRoster(nodes []meta.Node) {}

// Update changes single nodes: put are added or replaced, removed are forgotten and cut off.
func (h *Host) Update(put []meta.Node, removed []meta.NodeID) {}

func (h *Host) Node(id meta.NodeID) (meta.Node, bool)                    { return meta.Node{}, false }
func (h *Host) Nodes(region meta.RegionName, role meta.Role) []meta.Node { return nil } // zero values list all
