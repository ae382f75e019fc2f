package host

import (
	"cmp"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Limits bounds what a host may hold; a zero field takes the default of its
// plane and role.
type Limits struct {
	// Conns is the largest number of connections, inbound and outbound together,
	// each of which costs about 100 KiB; default 16,384 on a swarm server, 4,096 on
	// an agent, 512 on a raft host. More are refused.
	Conns int
	// ConnsPerPeer is the largest number of connections with one node; default 8
	// (both sides may dial at once, over TCP and QUIC).
	ConnsPerPeer int
	// HighWater is the number of connections above which idle ones are closed,
	// down to LowWater, after a grace of Grace; default 3/4 and 1/2 of Conns, an
	// agent's 512 and 384; 1 min.
	HighWater, LowWater int
	Grace               time.Duration
	// StreamsPerPeer is the largest number of streams with one node, StreamsPerProtocol
	// of those in one protocol; default 512 and 256.
	StreamsPerPeer, StreamsPerProtocol int
	// WindowBytes bounds the sum of receive windows promised to peers, not memory in
	// use: a window is filled only while its reader is slow. Default 16 GiB on a
	// swarm server, 4 GiB else; WindowBytesPerPeer 512 MiB.
	WindowBytes, WindowBytesPerPeer int64
	// Handshakes is the largest number of connections that are not yet known to be
	// of the roster; default 1,024.
	Handshakes int
	// HandshakesPerNetwork is the largest part of them that one network may have over
	// TCP, an IPv4 /24 or an IPv6 /56; default a quarter. Loopback has no such bound.
	HandshakesPerNetwork int
	// ConnsPerAddress is the largest number of connections with one public address
	// (IPv4 address or IPv6 /64; a /48 has eight times as many); default 512.
	// Loopback and private networks are bounded by Conns alone.
	ConnsPerAddress int
	// AddressPerSec and AddressBurst bound the rate of new connections with one
	// address outside of loopback; default 10 and 256. An unenrolled host that
	// dials as fast as that costs this node 0.4 % of a core.
	AddressPerSec float64
	AddressBurst  int
}

func (l Limits) withDefaults(plane Plane, role meta.Role) Limits {
	conns, high, low, window := 16384, 0, 0, int64(16<<30)
	switch {
	case plane == Raft:
		conns, window = 512, 4<<30
	case role == meta.RoleAgent:
		conns, high, low, window = 4096, 512, 384, 4<<30
	}
	l.Conns = cmp.Or(l.Conns, conns)
	l.ConnsPerPeer = cmp.Or(l.ConnsPerPeer, 8)
	l.HighWater = min(cmp.Or(l.HighWater, high, l.Conns*3/4), l.Conns)
	l.LowWater = min(cmp.Or(l.LowWater, low, l.Conns/2), l.HighWater)
	l.Grace = cmp.Or(l.Grace, time.Minute)
	l.StreamsPerPeer = cmp.Or(l.StreamsPerPeer, 512)
	l.StreamsPerProtocol = cmp.Or(l.StreamsPerProtocol, 256)
	l.WindowBytes = cmp.Or(l.WindowBytes, window)
	l.WindowBytesPerPeer = cmp.Or(l.WindowBytesPerPeer, 512<<20)
	l.Handshakes = cmp.Or(l.Handshakes, 1024)
	l.HandshakesPerNetwork = cmp.Or(l.HandshakesPerNetwork, max(1, l.Handshakes/4))
	l.ConnsPerAddress = cmp.Or(l.ConnsPerAddress, 512)
	l.AddressPerSec = cmp.Or(l.AddressPerSec, 10)
	l.AddressBurst = cmp.Or(l.AddressBurst, 256)
	return l
}

// streamsPerConn is the number of streams that the system limit counts on for
// each connection: control, data, registrar, DHT.
const streamsPerConn = 16

// concrete writes out every scope of the resource manager (libp2p
// resource-manager README: a resource is charged to its stream or connection,
// peer, protocol or service, and system; before the peer is known to transient
// instead). Nothing is left at a default that scales with the machine.
func (l Limits) concrete() rcmgr.ConcreteLimitConfig {
	limit := func(conns, streams int, bytes int64) rcmgr.ResourceLimits {
		return rcmgr.ResourceLimits{
			Conns: rcmgr.LimitVal(conns), ConnsInbound: rcmgr.LimitVal(conns), ConnsOutbound: rcmgr.LimitVal(conns),
			FD:      rcmgr.LimitVal(conns),
			Streams: rcmgr.LimitVal(streams), StreamsInbound: rcmgr.LimitVal(streams), StreamsOutbound: rcmgr.LimitVal(streams),
			Memory: rcmgr.LimitVal64(bytes),
		}
	}
	none := rcmgr.ResourceLimits{
		Conns: rcmgr.BlockAllLimit, ConnsInbound: rcmgr.BlockAllLimit, ConnsOutbound: rcmgr.BlockAllLimit,
		FD:      rcmgr.BlockAllLimit,
		Streams: rcmgr.BlockAllLimit, StreamsInbound: rcmgr.BlockAllLimit, StreamsOutbound: rcmgr.BlockAllLimit,
		Memory: rcmgr.BlockAllLimit64,
	}
	streams := l.Conns * streamsPerConn
	// Streams have no connections; the number there is never consulted.
	perStream := func(streams int, bytes int64) rcmgr.ResourceLimits { return limit(1, streams, bytes) }
	return rcmgr.PartialLimitConfig{
		System:    limit(l.Conns, streams, l.WindowBytes),
		Transient: limit(l.Handshakes, 4*l.Handshakes, 1<<30),
		// No address is above the limits.
		AllowlistedSystem: none, AllowlistedTransient: none,
		PeerDefault: limit(l.ConnsPerPeer, l.StreamsPerPeer, l.WindowBytesPerPeer),
		Conn:        limit(1, l.StreamsPerPeer, l.WindowBytesPerPeer),
		Stream:      perStream(1, 64<<20),
		// identify and kad-dht are libp2p services; the rest are plain protocols.
		ServiceDefault:      perStream(streams, l.WindowBytes),
		ServicePeerDefault:  perStream(l.StreamsPerProtocol, l.WindowBytesPerPeer),
		ProtocolDefault:     perStream(streams, l.WindowBytes),
		ProtocolPeerDefault: perStream(l.StreamsPerProtocol, l.WindowBytesPerPeer),
	}.Build(rcmgr.ConcreteLimitConfig{})
}

// Networks whose addresses say nothing about who is behind them: loopback, the
// private ranges (RFC 1918, 4193, 6598) and link-local.
var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	loopback6 = netip.MustParsePrefix("::1/128")
	private4  = []netip.Prefix{
		loopback4,
		netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("100.64.0.0/10"),
		netip.MustParsePrefix("169.254.0.0/16"),
	}
	private6 = []netip.Prefix{
		loopback6,
		netip.MustParsePrefix("fc00::/7"),
		netip.MustParsePrefix("fe80::/10"),
	}
)

func (l Limits) resourceManager(m *metrics) (network.ResourceManager, error) {
	prefixLimits := func(prefixes []netip.Prefix) []rcmgr.NetworkPrefixLimit {
		var out []rcmgr.NetworkPrefixLimit
		for _, p := range prefixes {
			out = append(out, rcmgr.NetworkPrefixLimit{Network: p, ConnCount: l.Conns})
		}
		return out
	}
	perAddress := rate.Limit{RPS: l.AddressPerSec, Burst: l.AddressBurst}
	perSite := rate.Limit{RPS: 8 * l.AddressPerSec, Burst: 8 * l.AddressBurst}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(l.concrete()),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithMetrics(m),
		rcmgr.WithNetworkPrefixLimit(prefixLimits(private4), prefixLimits(private6)),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: l.ConnsPerAddress}},
			[]rcmgr.ConnLimitPerSubnet{
				{PrefixLength: 64, ConnCount: l.ConnsPerAddress},
				{PrefixLength: 48, ConnCount: 8 * l.ConnsPerAddress},
			}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			// No rate on loopback: all nodes of a test or of `shoal dev` share it.
			NetworkPrefixLimits: []rate.PrefixLimit{{Prefix: loopback4}, {Prefix: loopback6}},
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: perAddress}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 64, Limit: perAddress}, {PrefixLength: 48, Limit: perSite}},
				GracePeriod:      time.Minute,
			},
		}))
}
