package netns

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// zoneShift is how far the zone lies left of a host's number in the third byte of its
// address.
const zoneShift = 3

// origins counts the bytes that a namespace receives from hosts of other groups, and
// of other zones of its own.
//
// A packet socket with a classic BPF filter lets only those packets through, so it
// costs nothing where there are none, which is what a lab mostly wants to prove. The
// filter reads group and zone from the source address 10.<group>.<zone, host>.<host>.
type origins struct {
	at    Place
	file  *os.File
	ended sync.WaitGroup
	err   error // written before ended, read after

	mu        sync.Mutex
	foreign   int64 // bytes taken from the socket
	otherZone int64
}

// countOrigins starts to count in the namespace of the calling thread, for a host of
// the given place.
func countOrigins(at Place) (*origins, error) {
	const ipv4 = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8 // in network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	// With SOCK_DGRAM the filter sees the packet from its IP header on.
	const (
		packetType   = 0xfffff000 + 4 // SKF_AD_OFF + SKF_AD_PKTTYPE
		sourceOffset = 12
		wholePacket  = 0xffffffff // a shorter answer would cut the length that is counted, too
	)
	const accept, refuse = 9, 10 // instructions of the filter
	jump := func(at, to int) uint8 { return uint8(to - at - 1) }
	ownGroup := jump(5, 6)
	if at.Zone == 0 {
		ownGroup = jump(5, refuse) // whose zone does not matter is not bothered
	}
	filter := []unix.SockFilter{
		0:      {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: packetType},
		1:      {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OUTGOING, Jt: jump(1, refuse)},
		2:      {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: sourceOffset},
		3:      {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 10, Jf: jump(3, refuse)}, // loopback and others do not count
		4:      {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: sourceOffset + 1},
		5:      {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(at.Group), Jt: ownGroup, Jf: jump(5, accept)},
		6:      {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: sourceOffset + 2},
		7:      {Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: zoneShift},
		8:      {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(at.Zone), Jt: jump(8, refuse)},
		accept: {Code: unix.BPF_RET | unix.BPF_K, K: wholePacket},
		refuse: {Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// The filter comes before the binding, so that no other packet slips in between.
	if err := errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipv4}),
	); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	o := &origins{at: at, file: os.NewFile(uintptr(fd), "packet socket")}
	o.ended.Add(1)
	go func() {
		defer o.ended.Done()
		o.run()
	}()
	return o, nil
}

// run adds up lengths until the socket is closed.
func (o *origins) run() {
	raw, err := o.file.SyscallConn()
	if err != nil {
		o.err = err
		return
	}
	o.err = raw.Read(func(fd uintptr) bool { return !errors.Is(o.drain(fd), unix.EAGAIN) })
}

// drain counts what waits in the socket; its error is unix.EAGAIN when that is all.
func (o *origins) drain(fd uintptr) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var header [16]byte // up to the source address
	for {
		// MSG_TRUNC returns the packet's own length, however little of it was kept.
		n, _, err := unix.Recvfrom(int(fd), header[:], unix.MSG_TRUNC)
		switch {
		case err == nil && int(header[13]) != o.at.Group:
			o.foreign += int64(n)
		case err == nil:
			o.otherZone += int64(n)
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
}

// bytes returns the counts of all that has come; an error when packets were lost on
// the way to them.
func (o *origins) bytes() (foreign, otherZone int64, err error) {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var stats *unix.TpacketStats
	var statsErr, drained error
	if err := raw.Control(func(fd uintptr) {
		drained = o.drain(fd)
		stats, statsErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil {
		return 0, 0, err
	}
	if !errors.Is(drained, unix.EAGAIN) {
		return 0, 0, fmt.Errorf("packet socket: %w", drained)
	}
	if statsErr != nil {
		return 0, 0, fmt.Errorf("packet socket: %w", statsErr)
	}
	if stats.Drops > 0 {
		return 0, 0, fmt.Errorf("packet socket lost %d packets: the count is too low", stats.Drops)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.foreign, o.otherZone, nil
}

func (o *origins) close() {
	_ = o.file.Close()
	o.ended.Wait()
}
