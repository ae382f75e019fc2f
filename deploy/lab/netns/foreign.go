package netns

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// foreign counts the bytes that a namespace receives from hosts of other groups.
//
// A packet socket with a classic BPF filter lets only those packets through, so it
// costs nothing where there are none, which is what a lab mostly wants to prove. The
// filter reads the group from the second byte of the source address 10.<group>.x.y.
type foreign struct {
	file  *os.File
	ended sync.WaitGroup
	err   error // written before ended, read after

	mu    sync.Mutex
	total int64 // bytes taken from the socket
}

// countForeign starts to count in the namespace of the calling thread.
func countForeign(group int) (*foreign, error) {
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
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: packetType},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OUTGOING, Jt: 5},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: sourceOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 10, Jf: 3}, // loopback and others do not count
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: sourceOffset + 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(group), Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: wholePacket},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
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
	f := &foreign{file: os.NewFile(uintptr(fd), "packet socket")}
	f.ended.Add(1)
	go func() {
		defer f.ended.Done()
		f.run()
	}()
	return f, nil
}

// run adds up lengths until the socket is closed.
func (f *foreign) run() {
	raw, err := f.file.SyscallConn()
	if err != nil {
		f.err = err
		return
	}
	f.err = raw.Read(func(fd uintptr) bool { return !errors.Is(f.drain(fd), unix.EAGAIN) })
}

// drain counts what waits in the socket; its error is unix.EAGAIN when that is all.
func (f *foreign) drain(fd uintptr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var buffer [1]byte // what is in the packets does not matter
	for {
		// MSG_TRUNC returns the packet's own length, however little of it was kept.
		n, _, err := unix.Recvfrom(int(fd), buffer[:], unix.MSG_TRUNC)
		switch {
		case err == nil:
			f.total += int64(n)
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
}

// bytes returns the count of all that has come; an error when packets were lost on
// the way to it.
func (f *foreign) bytes() (int64, error) {
	raw, err := f.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stats *unix.TpacketStats
	var statsErr, drained error
	if err := raw.Control(func(fd uintptr) {
		drained = f.drain(fd)
		stats, statsErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil {
		return 0, err
	}
	if !errors.Is(drained, unix.EAGAIN) {
		return 0, fmt.Errorf("packet socket: %w", drained)
	}
	if statsErr != nil {
		return 0, fmt.Errorf("packet socket: %w", statsErr)
	}
	if stats.Drops > 0 {
		return 0, fmt.Errorf("packet socket lost %d packets: the count is too low", stats.Drops)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total, nil
}

func (f *foreign) close() {
	_ = f.file.Close()
	f.ended.Wait()
}
