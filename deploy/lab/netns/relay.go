package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// relay holds the packets that a host sends to other groups for a fixed time.
//
// The kernel routes them to a TUN device, from which this process reads them; when
// their time has come it sends them through a raw socket whose mark leads past that
// route to eth0, with its token bucket and its counters:
//
//	socket -- route of 10/8 --> wan0 -- relay: wait --> raw socket, mark 1 -- table 100 --> eth0
//
// It costs a read and a write for each packet of 1,500 bytes, so that it is off where
// bandwidth is measured. What cannot leave within maxLate of its time is dropped, as
// by a router with so much of a queue.
type relay struct {
	tun   *os.File
	raw   int // socket; closed after ended
	ended sync.WaitGroup
}

const (
	relayDevice = "wan0"
	relayMTU    = 1500
	relayQueue  = 16384 // packets; 200 Mbit/s for a second
	maxLate     = 50 * time.Millisecond
)

type heldPacket struct {
	due  time.Time
	data []byte
}

// holdPackets starts a relay in the namespace of the calling thread, for the host with
// this address.
func holdPackets(addr netip.Addr, delay time.Duration) (*relay, error) {
	tun, err := openTUN(relayDevice)
	if err != nil {
		return nil, err
	}
	group := addr.As4()[1]
	err = batch("ip",
		fmt.Sprintf("link set %s mtu %d txqueuelen 1000 up", relayDevice, relayMTU),
		fmt.Sprintf("route add 10.%d.0.0/16 dev eth0 src %s congctl cubic", group, addr),
		fmt.Sprintf("route replace 10.0.0.0/8 dev %s src %s congctl cubic", relayDevice, addr),
		"route add 10.0.0.0/8 dev eth0 table 100",
		"rule add fwmark 1 lookup 100")
	// What comes back comes by eth0, and no check of routes shall mind that.
	for _, device := range []string{"all", "eth0"} {
		err = errors.Join(err, os.WriteFile("/proc/sys/net/ipv4/conf/"+device+"/rp_filter", []byte("0"), 0))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("relay: %w", err), tun.Close())
	}
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err == nil {
		if err = unix.SetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_MARK, 1); err != nil {
			unix.Close(raw)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("relay: raw socket: %w", err), tun.Close())
	}
	r := &relay{tun: tun, raw: raw}
	queue := make(chan heldPacket, relayQueue)
	r.ended.Add(2)
	go func() {
		defer r.ended.Done()
		defer close(queue)
		r.take(queue, delay)
	}()
	go func() {
		defer r.ended.Done()
		r.pass(queue)
	}()
	return r, nil
}

// openTUN makes a device of this namespace that gives out and takes bare IP packets.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun, which an RTT needs: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	// Only now, as the poller refuses a TUN descriptor without a device.
	return os.NewFile(uintptr(fd), name), nil
}

// take reads packets until the device is closed.
func (r *relay) take(queue chan<- heldPacket, delay time.Duration) {
	buffer := make([]byte, relayMTU+64)
	for {
		n, err := r.tun.Read(buffer)
		if err != nil {
			return
		}
		packet := heldPacket{time.Now().Add(delay), append([]byte(nil), buffer[:n]...)}
		select {
		case queue <- packet:
		default: // full: lost, like on any line
		}
	}
}

// pass sends each packet when its time has come.
func (r *relay) pass(queue <-chan heldPacket) {
	for packet := range queue {
		wait := time.Until(packet.due)
		if wait > 0 {
			time.Sleep(wait)
		}
		if wait < -maxLate || len(packet.data) < 20 || packet.data[0]>>4 != 4 {
			continue
		}
		to := unix.SockaddrInet4{Addr: [4]byte(packet.data[16:20])}
		_ = unix.Sendto(r.raw, packet.data, 0, &to) // a refused packet is a lost packet
	}
}

// close ends both goroutines; packets on their way are sent first.
func (r *relay) close() {
	_ = r.tun.Close()
	r.ended.Wait()
	_ = unix.Close(r.raw)
}
