package host

import (
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// gate admits the roster. The handshake has proved the peer's key when
// InterceptSecured is asked, and no stream is accepted before it answers. A
// refused dialler may see its own Connect succeed, since TLS 1.3 lets the client
// finish first; it gets no stream.
type gate struct {
	roster  *roster
	metrics *metrics
}

func (g *gate) admit(p peer.ID, where string) bool {
	if g.roster.admits(p) {
		return true
	}
	g.metrics.refused.WithLabelValues(where).Inc()
	return false
}

// InterceptPeerDial refuses to dial whom the roster does not have.
func (g *gate) InterceptPeerDial(p peer.ID) bool { return g.admit(p, "dial") }

// InterceptAddrDial allows what the address book has: the roster's addresses.
func (g *gate) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }

// InterceptAccept allows any address: who it is shows in the handshake. The
// resource manager's limits by address, and pending by network, bound the handshakes.
func (g *gate) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured refuses whom the roster does not have.
func (g *gate) InterceptSecured(direction network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	where := "inbound"
	if direction == network.DirOutbound {
		where = "outbound"
	}
	return g.admit(p, where)
}

// InterceptUpgraded asks once more, as the roster may have changed meanwhile.
func (g *gate) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	return g.admit(c.RemotePeer(), "upgraded"), 0
}

// rankDials tries the TCP addresses first, at once on the loopback and private
// networks' own order, and QUIC after quicAfter of silence. When every TCP dial
// was refused libp2p starts the next in rank without waiting.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	// A second address of a host is tried when the first is slow (RFC 8305).
	const next = 250 * time.Millisecond
	ranked := make([]network.AddrDelay, 0, len(addrs))
	var tcp, others int
	for _, private := range []bool{true, false} {
		for _, a := range addrs {
			if _, err := a.ValueForProtocol(ma.P_TCP); err == nil && manet.IsPrivateAddr(a) == private {
				ranked = append(ranked, network.AddrDelay{Addr: a, Delay: time.Duration(tcp) * next})
				tcp++
			}
		}
	}
	for _, a := range addrs {
		if _, err := a.ValueForProtocol(ma.P_TCP); err == nil {
			continue
		}
		delay := time.Duration(others) * next
		if tcp > 0 {
			delay += max(quicAfter, time.Duration(tcp)*next)
		}
		ranked = append(ranked, network.AddrDelay{Addr: a, Delay: delay})
		others++
	}
	return ranked
}
