// Package netns builds hosts out of network namespaces: each has one link of limited
// rate to a common switch, like a machine in a rack.
//
// Start reading at New and Network.Host. Namespaces are anonymous: they live as long
// as this process holds them or a process runs in them, so nothing has names that two
// runs could share and nothing is left behind, not even after kill -9. The switch is
// a bridge in a namespace of its own.
//
//	host ns: lo, eth0 10.<group>.x.y/32 -- tbf up --- port ns: bridge
//	                                    -- tbf down --
//
// Each link is a veth pair with a token bucket at both ends (sending shapes at the
// host, receiving at the port), burst 128 KiB and 50 ms of queue; routes use TCP
// cubic, since the machine's default may be bbr, which token buckets mislead. Byte
// counters are the interface's own; what came from other groups and zones is counted
// by a packet socket with a filter, see origins.go. Packets to other groups can be held
// for a while by a relay, see relay.go, which makes them as far away as regions are.
//
// Linux and root only. The only goroutines are those of the counters and relays, which
// end with Close.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Most groups, zones of a group and hosts of a zone that addresses have room for.
const (
	MaxGroups = 200
	MaxZones  = 31
	MaxHosts  = 2_000
)

// Network is a switch and the hosts at it.
type Network struct {
	bridge *os.File      // namespace of the switch
	rtt    time.Duration // between groups; 0 is as it comes

	mu    sync.Mutex
	hosts []*Host
	next  map[Place]int // hosts so far
}

// Host is a namespace with one link.
type Host struct {
	Name  string
	Place Place
	Addr  netip.Addr // of eth0

	ns     *os.File
	bridge *os.File // namespace of the switch
	device string   // its end of the link there
	count  *origins
	relay  *relay // nil without an RTT
}

// Place is where a host stands.
type Place struct {
	Group int // e.g. its region, 1 to MaxGroups
	// Zone is 1 to MaxZones, or 0: then bytes of other zones are not counted.
	Zone int
}

// Link is the speed of a host's link; 0 is not limited.
type Link struct {
	UpBitsPerSec   int64
	DownBitsPerSec int64
}

// New makes a switch without hosts. The caller closes it. rtt, when not 0, is the time
// that packets to hosts of another group and back spend on the way at least.
//
// Errors: not root, or a kernel without bridge, veth, tbf or packet sockets.
func New(rtt time.Duration) (*Network, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root")
	}
	for _, tool := range []string{"ip", "tc"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%w (Debian package iproute2)", err)
		}
	}
	bridge, err := newNamespace()
	if err != nil {
		return nil, fmt.Errorf("switch: %w", err)
	}
	n := &Network{bridge: bridge, rtt: rtt, next: make(map[Place]int)}
	if err := in(bridge, func() error {
		return batch("ip", "link set lo up", "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set br0 up")
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("switch: %w", err), n.Close())
	}
	return n, nil
}

// Host adds a host at a place with the given link. Its address is 10.<group>.<x>.<y>,
// where the upper five bits of x are the zone; every host reaches every other.
func (n *Network) Host(name string, at Place, link Link) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if at.Group < 1 || at.Group > MaxGroups || at.Zone < 0 || at.Zone > MaxZones || n.next[at] >= MaxHosts {
		return nil, fmt.Errorf("host %s: no room in group %d, zone %d", name, at.Group, at.Zone)
	}
	index := n.next[at] + 1
	n.next[at] = index
	ns, err := newNamespace()
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	h := &Host{Name: name, Place: at, ns: ns, bridge: n.bridge, device: fmt.Sprintf("p%d", len(n.hosts)+1),
		Addr: netip.AddrFrom4([4]byte{10, byte(at.Group), byte(at.Zone<<zoneShift | index>>8), byte(index)})}
	n.hosts = append(n.hosts, h)
	if err := h.link(link, n.rtt); err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	return h, nil
}

// link connects a new namespace with the switch.
func (h *Host) link(link Link, rtt time.Duration) error {
	if err := in(h.bridge, func() error {
		if err := batch("ip",
			// The peer is born in the host's namespace under its final name.
			fmt.Sprintf("link add %s type veth peer name eth0 netns /proc/%d/fd/%d", h.device, os.Getpid(), h.ns.Fd()),
			fmt.Sprintf("link set %s master br0 up", h.device)); err != nil {
			return err
		}
		return shape(h.device, link.DownBitsPerSec)
	}); err != nil {
		return err
	}
	return in(h.ns, func() error {
		err := batch("ip",
			"link set lo up",
			"link set eth0 up",
			fmt.Sprintf("addr add %s/32 dev eth0", h.Addr),
			fmt.Sprintf("route add 10.0.0.0/8 dev eth0 src %s congctl cubic", h.Addr))
		if err != nil {
			return err
		}
		if err := shape("eth0", link.UpBitsPerSec); err != nil {
			return err
		}
		if h.count, err = countOrigins(h.Place); err != nil || rtt == 0 {
			return err
		}
		h.relay, err = holdPackets(h.Addr, rtt/2)
		return err
	})
}

// Cut takes the host's link from the switch: nothing gets through, and neither side is
// told. Mend puts it back.
func (h *Host) Cut() error { return h.port("nomaster") }

// Mend undoes Cut.
func (h *Host) Mend() error { return h.port("master br0") }

func (h *Host) port(change string) error {
	if err := in(h.bridge, func() error { return batch("ip", fmt.Sprintf("link set %s %s", h.device, change)) }); err != nil {
		return fmt.Errorf("link of %s: %w", h.Name, err)
	}
	return nil
}

// shape puts a token bucket on the sending side of an interface of this namespace.
func shape(device string, bitsPerSec int64) error {
	if bitsPerSec <= 0 {
		return nil
	}
	return batch("tc", fmt.Sprintf("qdisc add dev %s root tbf rate %dbit burst %d latency 50ms", device, bitsPerSec, 128<<10))
}

// Close lets go of the namespaces. They vanish when no process runs in them.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, h := range n.hosts {
		if h.count != nil {
			h.count.close()
		}
		if h.relay != nil {
			h.relay.close()
		}
		errs = append(errs, h.ns.Close())
	}
	n.hosts = nil
	return errors.Join(append(errs, n.bridge.Close())...)
}

// Enter runs f in the host's namespace, on a thread of its own. What f starts with
// os/exec is born there, and sockets that f itself opens belong there for ever;
// goroutines that f starts do not.
func (h *Host) Enter(f func() error) error { return in(h.ns, f) }

// DialContext connects from the host. address is a literal IP and port; the socket is
// the host's, though the connection may be used from anywhere.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial from %s: %w", h.Name, err)
	}
	var conn net.Conn
	err := h.Enter(func() (err error) {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on a free TCP port of the host's address.
func (h *Host) Listen() (net.Listener, error) {
	var listener net.Listener
	err := h.Enter(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(h.Addr.String(), "0"))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", h.Name, err)
	}
	return listener, nil
}

// Traffic is what passed a host's link, in bytes with Ethernet and IP headers.
type Traffic struct {
	Sent     int64
	Received int64
	// Foreign and OtherZone are the parts of Received, from the IP header on, that came
	// from hosts of other groups, and of the own group but of another zone or of none.
	Foreign   int64
	OtherZone int64
}

// Sub returns what passed since earlier.
func (t Traffic) Sub(earlier Traffic) Traffic {
	return Traffic{t.Sent - earlier.Sent, t.Received - earlier.Received, t.Foreign - earlier.Foreign, t.OtherZone - earlier.OtherZone}
}

// Traffic reads the counters of the host's link.
func (h *Host) Traffic() (Traffic, error) {
	var text []byte
	err := h.Enter(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return Traffic{}, fmt.Errorf("traffic of %s: %w", h.Name, err)
	}
	t, err := parseDev(string(text), "eth0")
	if err != nil {
		return t, fmt.Errorf("traffic of %s: %w", h.Name, err)
	}
	t.Foreign, t.OtherZone, err = h.count.bytes()
	return t, err
}

// parseDev reads an interface's line of /proc/net/dev: bytes received are the first
// column, bytes sent the ninth.
func parseDev(text, device string) (Traffic, error) {
	for line := range strings.Lines(text) {
		name, columns, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) != device {
			continue
		}
		fields := strings.Fields(columns)
		if len(fields) < 9 {
			return Traffic{}, fmt.Errorf("net/dev: %s has %d columns", device, len(fields))
		}
		received, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return Traffic{}, fmt.Errorf("net/dev: %w", err)
		}
		sent, err := strconv.ParseInt(fields[8], 10, 64)
		if err != nil {
			return Traffic{}, fmt.Errorf("net/dev: %w", err)
		}
		return Traffic{Sent: sent, Received: received}, nil
	}
	return Traffic{}, fmt.Errorf("net/dev has no %s", device)
}

// newNamespace makes a network namespace that lives as long as the file is open.
func newNamespace() (*os.File, error) {
	var file *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return file, err
}

// in runs f on a thread inside the namespace.
func in(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return f()
	})
}

// onThread runs f with the calling goroutine locked to its thread, and puts the
// thread's network namespace back after it. A thread that cannot go back is not
// reused: it stays locked and dies with its goroutine.
func onThread(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("setns back: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// batch runs lines of ip or tc in the namespace of this thread, in one process.
func batch(tool string, lines ...string) error {
	cmd := exec.Command(tool, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w: %s", tool, lines, err, strings.TrimSpace(string(output)))
	}
	return nil
}
