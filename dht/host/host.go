// Package host builds a node's libp2p hosts: the swarm host, on which chunks,
// registrar and DHT travel, and on servers the raft host.
//
// A Host speaks TCP + TLS 1.3 + yamux, on the swarm plane also QUIC where TCP
// fails; there is no relay, NAT traversal, ping service or discovery. It knows
// the roster and nothing else: its gate admits only enrolled nodes, its address
// book holds only the roster's addresses and takes no peer's word, and a node
// taken from the roster loses its connections at once. Every limit is written
// out in limits.go, since libp2p's defaults (8 connections an address, 256 in
// all) are for the open internet. Start reading at Config, New and Host.SetRoster.
//
// Invariants: no stream of an unenrolled peer reaches a handler; what a peer
// says about addresses is never dialled; the only goroutines are libp2p's own,
// which end in Close.
//
// Sources: libp2p specs (connections, tls, yamux, quic) and go-libp2p v0.51.
// The picture and the reasons are in dht/DESIGN.md.
package host

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Plane is which of a node's two hosts it is.
type Plane string

// Planes. Swarm admits every node of the roster and uses meta.Node.Swarm; Raft
// admits servers only and uses meta.Node.Raft.
const (
	Swarm Plane = "swarm"
	Raft  Plane = "raft"
)

const (
	dialTimeout    = 10 * time.Second
	connectTimeout = 5 * time.Second
	// quicAfter is how long TCP may be silent before QUIC is tried as well.
	quicAfter = time.Second
	// redialAfter is the least time between two real attempts to dial a peer.
	redialAfter = time.Second
	// portAttempts bounds the search for a port free in both TCP and UDP.
	portAttempts = 32
)

// Config is what a Host is made from. Key, Plane and Listen are required.
type Config struct {
	// Key is the node's key; its peer id is the node id.
	Key   ed25519.PrivateKey
	Plane Plane
	// Listen holds host:port addresses; the host is an IP address or empty for
	// all of them, port 0 lets the system choose one (for QUIC the same).
	Listen []string
	// Advertise is the host, IP address or DNS name, that others reach this node
	// by; empty takes the addresses listened on.
	Advertise string
	// QUIC also listens on UDP, and dials it when TCP is refused or silent for
	// 1 s. Only on the swarm plane.
	QUIC bool
	// Role chooses the default limits; empty is a server's.
	Role meta.Role
	// Limits bounds the host; zero fields take the role's default.
	Limits Limits
	// Log is silent when nil; Metrics unregistered when nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Host is a libp2p host that knows only the roster. It is a dht.Roster, too. It
// is safe for concurrent use.
type Host struct {
	host.Host
	cfg     Config
	roster  *roster
	log     *slog.Logger
	sockets *sockets

	mu     sync.Mutex
	dialed map[peer.ID]time.Time // last time a peer's dial backoff was forgiven
}

// New returns a host that listens. Nobody is admitted before SetRoster or Update.
//
// Errors: meta.ErrInvalid for addresses that do not parse; of the system when an
// address cannot be listened on.
func New(cfg Config) (*Host, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Plane != Swarm && cfg.Plane != Raft {
		return nil, fmt.Errorf("make a host: plane %q: %w", cfg.Plane, meta.ErrInvalid)
	}
	cfg.QUIC = cfg.QUIC && cfg.Plane == Swarm
	cfg.Limits = cfg.Limits.withDefaults(cfg.Plane, cfg.Role)
	listen := make([]netip.AddrPort, 0, len(cfg.Listen))
	for _, s := range cfg.Listen {
		a, err := parseListen(s)
		if err != nil {
			return nil, err
		}
		listen = append(listen, a)
	}
	key, err := crypto.UnmarshalEd25519PrivateKey(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("make a host: %w: %w", err, meta.ErrInvalid)
	}
	h := &Host{cfg: cfg, roster: newRoster(cfg.Plane, cfg.QUIC), log: cfg.Log, sockets: &sockets{by: map[ends]*Socket{}}, dialed: map[peer.ID]time.Time{}}
	m := newMetrics(cfg.Plane)
	h.sockets.pending = newPending(cfg.Limits.HandshakesPerNetwork, func() { m.block("handshake") })
	options, err := h.options(key, m)
	if err != nil {
		return nil, err
	}
	if h.Host, err = libp2p.New(options...); err != nil {
		return nil, fmt.Errorf("make the %s host: %w", cfg.Plane, err)
	}
	h.Network().Notify(&network.NotifyBundle{ConnectedF: h.recheck})
	if err := m.register(cfg.Metrics, h.Network()); err != nil {
		return nil, errors.Join(fmt.Errorf("register the metrics of the %s host: %w", cfg.Plane, err), h.Close())
	}
	for _, a := range listen {
		if err := h.listen(a); err != nil {
			return nil, errors.Join(fmt.Errorf("listen on %s for the %s plane: %w", a, cfg.Plane, err), h.Close())
		}
	}
	return h, nil
}

func (h *Host) options(key crypto.PrivKey, m *metrics) ([]libp2p.Option, error) {
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make a host: %w", err)
	}
	book, err := newBook(self, h.roster)
	if err != nil {
		return nil, fmt.Errorf("make the address book: %w", err)
	}
	resources, err := h.cfg.Limits.resourceManager(m)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the resource manager: %w", err), book.Close())
	}
	connections, err := connmgr.NewConnManager(h.cfg.Limits.LowWater, h.cfg.Limits.HighWater,
		connmgr.WithGracePeriod(h.cfg.Limits.Grace))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the connection manager: %w", err), resources.Close(), book.Close())
	}
	options := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.Peerstore(book),
		libp2p.NoListenAddrs, // Listen comes after, one by one: all must succeed
		// Without SO_REUSEPORT a second process on our port fails instead of sharing it.
		libp2p.Transport(newTCP(h.sockets)),
		libp2p.Security(libp2ptls.ID, newTLS),
		libp2p.Muxer(yamux.ID, muxer()),
		libp2p.ConnectionGater(&gate{h.roster, m}),
		libp2p.ResourceManager(resources),
		libp2p.ConnectionManager(connections),
		libp2p.SwarmOpts(swarm.WithDialRanker(rankDials)),
		libp2p.WithDialTimeout(dialTimeout),
		libp2p.AddrsFactory(h.advertise),
		libp2p.DisableRelay(),
		libp2p.Ping(false),
		libp2p.DisableMetrics(), // its collectors are global; ours carry the plane
		libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.ForceReachabilityPrivate(),
		libp2p.UserAgent("shoal"),
		libp2p.ProtocolVersion("shoal/1"),
		// A block of dead peers must not convince the host that UDP or IPv6 is broken.
		libp2p.UDPBlackHoleSuccessCounter(nil),
		libp2p.IPv6BlackHoleSuccessCounter(nil),
	}
	if h.cfg.QUIC {
		options = append(options, libp2p.Transport(libp2pquic.NewTransport))
	}
	return options, nil
}

// muxer is libp2p's yamux without a buffer for reading, which TLS has: it reads
// exactly its headers and frames, as secureConn relies upon. A frame is four full TLS
// records. The window stays at 16 MiB, enough for 100 ms at 1.3 Gbit/s.
func muxer() *yamux.Transport {
	config := *yamux.DefaultTransport.Config()
	config.MaxMessageSize = 64 << 10
	config.ReadBufSize = 0
	config.MaxStreamWindowSize = 16 << 20
	return (*yamux.Transport)(&config)
}

func parseListen(s string) (netip.AddrPort, error) {
	hostText, portText, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("listen address %q: write HOST:PORT: %w", s, meta.ErrInvalid)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("listen address %q: the port is a number to 65535: %w", s, meta.ErrInvalid)
	}
	ip := netip.IPv4Unspecified()
	switch {
	case hostText == "localhost":
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case hostText != "":
		if ip, err = netip.ParseAddr(hostText); err != nil {
			return netip.AddrPort{}, fmt.Errorf("listen address %q: the host is an IP address: %w", s, meta.ErrInvalid)
		}
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(port)), nil
}

func tcpAddr(a netip.AddrPort) ma.Multiaddr {
	return ma.StringCast(fmt.Sprintf("/%s/%s/tcp/%d", family(a.Addr()), a.Addr(), a.Port()))
}

func quicAddr(a netip.AddrPort) ma.Multiaddr {
	return ma.StringCast(fmt.Sprintf("/%s/%s/udp/%d/quic-v1", family(a.Addr()), a.Addr(), a.Port()))
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "ip4"
	}
	return "ip6"
}

// listen listens on a over TCP and, with QUIC, on the same port over UDP.
func (h *Host) listen(a netip.AddrPort) error {
	n := h.Network().(*swarm.Swarm)
	for attempt := 1; ; attempt++ {
		before := n.ListenAddresses()
		if err := n.Listen(tcpAddr(a)); err != nil {
			return err
		}
		if !h.cfg.QUIC {
			return nil
		}
		bound := a
		var tcp ma.Multiaddr
		for _, addr := range n.ListenAddresses() {
			if net, err := manet.ToNetAddr(addr); err == nil && !slices.ContainsFunc(before, addr.Equal) {
				bound, tcp = netip.MustParseAddrPort(net.String()), addr
			}
		}
		err := n.Listen(quicAddr(netip.AddrPortFrom(a.Addr(), bound.Port())))
		if err == nil {
			return nil
		}
		if a.Port() != 0 || attempt == portAttempts || tcp == nil {
			return err
		}
		n.ListenClose(tcp) // that number is taken in UDP: let the system choose another
	}
}

// advertise keeps of the addresses listened on what others are told: TCP only,
// so that nobody prefers QUIC; under the name that cfg.Advertise gives; without
// one, loopback only when there is nothing else, as it leads others to themselves.
func (h *Host) advertise(listened []ma.Multiaddr) []ma.Multiaddr {
	local := func(a ma.Multiaddr) bool { return manet.IsIPLoopback(a) || manet.IsIP6LinkLocal(a) }
	if far := slices.DeleteFunc(slices.Clone(listened), local); len(far) > 0 {
		listened = far
	}
	var out []ma.Multiaddr
	for _, a := range listened {
		port, err := a.ValueForProtocol(ma.P_TCP)
		if err != nil {
			continue
		}
		if h.cfg.Advertise != "" {
			if a, err = hostAddr(h.cfg.Advertise, port); err != nil {
				continue
			}
		}
		if !slices.ContainsFunc(out, a.Equal) {
			out = append(out, a)
		}
	}
	return out
}

func hostAddr(name, port string) (ma.Multiaddr, error) {
	if ip, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		ip = ip.Unmap().WithZone("")
		return ma.NewMultiaddr(fmt.Sprintf("/%s/%s/tcp/%s", family(ip), ip, port))
	}
	return ma.NewMultiaddr(fmt.Sprintf("/dns/%s/tcp/%s", name, port))
}

// Advertised returns the multiaddrs, without peer id, that the roster should
// have for this node: meta.Node.Swarm or Raft.
func (h *Host) Advertised() []string {
	listened, err := h.Network().InterfaceListenAddresses()
	if err != nil {
		h.log.Warn("no interface addresses", "error", err)
		listened = h.Network().ListenAddresses()
	}
	var out []string
	for _, a := range h.advertise(listened) {
		out = append(out, a.String())
	}
	return out
}

// Socket returns the socket of a connection; nil when it has none, as with QUIC.
func (h *Host) Socket(c network.Conn) *Socket { return h.sockets.get(c) }

// NodeID returns this host's node id.
func (h *Host) NodeID() meta.NodeID { return meta.NodeID(h.ID().String()) }

// SetRoster replaces whom the host knows. Connections of nodes that are no longer
// enrolled, or no longer admitted on this plane, close before it returns. A node
// whose record is unusable (no peer id) is left out and logged.
func (h *Host) SetRoster(nodes []meta.Node) {
	gone, bad := h.roster.replace(nodes)
	h.afterChange(gone, bad)
}

// Update changes single nodes: put are added or replaced, removed forgotten.
// It does what SetRoster does at the cost of the change only.
func (h *Host) Update(put []meta.Node, removed []meta.NodeID) {
	gone, bad := h.roster.update(put, removed)
	h.afterChange(gone, bad)
}

func (h *Host) afterChange(gone []peer.ID, bad []meta.NodeID) {
	for _, id := range bad {
		h.log.Warn("a node of the roster has no usable id", "node", id)
	}
	for _, p := range gone {
		if p == h.ID() {
			continue
		}
		h.mu.Lock()
		delete(h.dialed, p)
		h.mu.Unlock()
		h.cut(p)
	}
}

func (h *Host) cut(p peer.ID) {
	if len(h.Network().ConnsToPeer(p)) == 0 {
		return
	}
	if err := h.Network().ClosePeer(p); err != nil {
		h.log.Debug("close the connections of a removed node", "node", p, "error", err)
	}
	h.log.Info("cut off a removed node", "node", p, "plane", h.cfg.Plane)
}

// recheck closes a connection whose peer left the roster between the gate and
// the moment the connection was known, which ClosePeer could not see.
func (h *Host) recheck(_ network.Network, c network.Conn) {
	if !h.roster.admits(c.RemotePeer()) {
		c.Close() // waits for nothing but the socket
	}
}

// Node returns an enrolled node by its id.
func (h *Host) Node(id meta.NodeID) (meta.Node, bool) { return h.roster.node(id) }

// Nodes lists the enrolled nodes of a region and role, sorted by id; "" is any.
// The caller must not change the slice.
func (h *Host) Nodes(region meta.RegionName, role meta.Role) []meta.Node {
	return h.roster.list(region, role)
}

// IsServer reports whether the id is an enrolled server, as trust.Checker asks.
func (h *Host) IsServer(id meta.NodeID) bool {
	n, ok := h.roster.node(id)
	return ok && n.Role == meta.RoleServer
}

// NewStream opens a stream, dialling first when there is no connection. Without
// a deadline it has 10 s.
func (h *Host) NewStream(ctx context.Context, p peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	h.forgive(p)
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, dialTimeout)
		defer cancel()
	}
	return h.Host.NewStream(ctx, p, protocols...)
}

// Connect makes sure that there is a connection. Addresses other than the
// roster's are ignored.
func (h *Host) Connect(ctx context.Context, info peer.AddrInfo) error {
	h.forgive(info.ID)
	return h.Host.Connect(ctx, info)
}

// forgive drops libp2p's dial backoff of a peer, which grows to 5 minutes and
// would keep a restarted server out that long, but not more than once a
// redialAfter: that is the pace of attempts to a peer that is down.
func (h *Host) forgive(p peer.ID) {
	if h.Network().Connectedness(p) == network.Connected || !h.roster.admits(p) {
		return
	}
	now := time.Now()
	h.mu.Lock()
	due := now.Sub(h.dialed[p]) >= redialAfter
	if due {
		h.dialed[p] = now // bounded by the roster
	}
	h.mu.Unlock()
	if due {
		h.Network().(*swarm.Swarm).Backoff().Clear(p)
	}
}
