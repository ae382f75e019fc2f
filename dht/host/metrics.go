package host

import (
	"errors"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what the gate and the limits refuse. It is the resource
// manager's reporter.
type metrics struct {
	labels  prometheus.Labels
	refused *prometheus.CounterVec
	limited *prometheus.CounterVec
}

var _ rcmgr.MetricsReporter = (*metrics)(nil)

func newMetrics(plane Plane) *metrics {
	labels := prometheus.Labels{"plane": string(plane)}
	return &metrics{
		labels: labels,
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_host_refused_total", ConstLabels: labels,
			Help: "Connections refused because the peer is not in the roster, by where it showed.",
		}, []string{"where"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_host_limited_total", ConstLabels: labels,
			Help: "Connections, streams and receive windows refused because a limit was reached.",
		}, []string{"resource"}),
	}
}

func (m *metrics) register(reg prometheus.Registerer, n network.Network) error {
	if reg == nil {
		return nil
	}
	return errors.Join(reg.Register(m.refused), reg.Register(m.limited),
		reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_host_connections", ConstLabels: m.labels, Help: "Open connections with other nodes.",
		}, func() float64 { return float64(len(n.Conns())) })),
		reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_host_peers", ConstLabels: m.labels, Help: "Nodes with at least one open connection.",
		}, func() float64 { return float64(len(n.Peers())) })))
}

func (m *metrics) block(resource string) { m.limited.WithLabelValues(resource).Inc() }

// AllowConn and the other Allow methods count nothing.
func (m *metrics) AllowConn(network.Direction, bool) {}

// BlockConn counts a connection over the limits of system, transient or subnet.
func (m *metrics) BlockConn(network.Direction, bool) { m.block("connection") }

// AllowStream counts nothing.
func (m *metrics) AllowStream(peer.ID, network.Direction) {}

// BlockStream counts a stream over the limit.
func (m *metrics) BlockStream(peer.ID, network.Direction) { m.block("stream") }

// AllowPeer counts nothing.
func (m *metrics) AllowPeer(peer.ID) {}

// BlockPeer counts a connection over the limit of its peer.
func (m *metrics) BlockPeer(peer.ID) { m.block("peer") }

// AllowProtocol counts nothing.
func (m *metrics) AllowProtocol(protocol.ID) {}

// BlockProtocol counts a stream over the limit of its protocol.
func (m *metrics) BlockProtocol(protocol.ID) { m.block("protocol") }

// BlockProtocolPeer counts a stream over the limit of its protocol and peer.
func (m *metrics) BlockProtocolPeer(protocol.ID, peer.ID) { m.block("protocol_peer") }

// AllowService counts nothing.
func (m *metrics) AllowService(string) {}

// BlockService counts a stream over the limit of its service.
func (m *metrics) BlockService(string) { m.block("service") }

// BlockServicePeer counts a stream over the limit of its service and peer.
func (m *metrics) BlockServicePeer(string, peer.ID) { m.block("service_peer") }

// AllowMemory counts nothing.
func (m *metrics) AllowMemory(int) {}

// BlockMemory counts a receive window that was not granted.
func (m *metrics) BlockMemory(int) { m.block("window") }
