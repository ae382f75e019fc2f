package host

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sys/unix"
)

const (
	tcpKeepAlive = 30 * time.Second
	// unsentBytes is what the kernel takes of a connection beyond what the network
	// may have of it: enough to keep a link busy until a sender has been woken, so
	// little that a message need not wait long behind bulk.
	unsentBytes = 64 << 10
	// wakeBytes bounds what a reader waits for. A kernel that is told of more than half
	// of the least buffer, 64 KiB, would fix its window to that.
	wakeBytes = 32 << 10
)

// tcpTransport is libp2p's TCP with sockets of our own making, see Socket.
type tcpTransport struct {
	*tcp.TcpTransport
	upgrader  transport.Upgrader
	resources network.ResourceManager
	sockets   *sockets
}

var (
	_ transport.Transport   = (*tcpTransport)(nil)
	_ transport.DialUpdater = (*tcpTransport)(nil)
)

// newTCP returns what makes the transport of a host that keeps its sockets in open.
func newTCP(open *sockets) any {
	return func(upgrader transport.Upgrader, resources network.ResourceManager, shared *tcpreuse.ConnMgr) (*tcpTransport, error) {
		inner, err := tcp.NewTCPTransport(upgrader, resources, shared, tcp.DisableReuseport())
		return &tcpTransport{inner, upgrader, resources, open}, err
	}
}

// sockets are the open ones of a host.
type sockets struct {
	pending *pending
	mu      sync.Mutex
	by      map[ends]*Socket
}

// ends are the binary multiaddrs of a connection.
type ends struct{ local, remote string }

func (t *sockets) put(s *Socket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.by[s.ends()] = s
}

func (t *sockets) remove(s *Socket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by[s.ends()] == s {
		delete(t.by, s.ends())
	}
}

func (t *sockets) get(c network.ConnMultiaddrs) *Socket {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.by[ends{string(c.LocalMultiaddr().Bytes()), string(c.RemoteMultiaddr().Bytes())}]
}

// Dial connects to p at addr.
func (t *tcpTransport) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.DialWithUpdates(ctx, addr, p, nil)
}

// DialWithUpdates is Dial that tells updates when the other side has answered.
func (t *tcpTransport) DialWithUpdates(ctx context.Context, addr ma.Multiaddr, p peer.ID, updates chan<- transport.DialUpdate) (_ transport.CapableConn, err error) {
	scope, err := t.resources.OpenConnection(network.DirOutbound, true, addr)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			scope.Done()
		}
	}()
	if err := scope.SetPeer(p); err != nil {
		return nil, err
	}
	where, address, err := manet.DialArgs(addr)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: connectTimeout}
	conn, err := dialer.DialContext(ctx, where, address)
	if err != nil {
		return nil, err
	}
	s, err := newSocket(conn, t.sockets)
	if err != nil {
		return nil, err
	}
	select {
	case updates <- transport.DialUpdate{Kind: transport.UpdateKindHandshakeProgressed, Addr: addr}:
	default: // nil, or full: better to skip it than to wait
	}
	direction := network.DirOutbound
	if simultaneous, client, _ := network.GetSimultaneousConnect(ctx); simultaneous && !client {
		direction = network.DirInbound
	}
	return t.upgrader.Upgrade(ctx, t, s, direction, p, scope)
}

// Listen listens on addr.
func (t *tcpTransport) Listen(addr ma.Multiaddr) (transport.Listener, error) {
	where, address, err := manet.DialArgs(addr)
	if err != nil {
		return nil, err
	}
	inner, err := net.Listen(where, address)
	if err != nil {
		return nil, err
	}
	l, err := manet.WrapNetListener(inner)
	if err != nil {
		return nil, errors.Join(err, inner.Close())
	}
	return t.upgrader.UpgradeGatedMaListener(t, t.upgrader.GateMaListener(listener{l, inner, t.sockets})), nil
}

// listener makes sockets of what it accepts.
type listener struct {
	manet.Listener
	inner   net.Listener
	sockets *sockets
}

func (l listener) Accept() (manet.Conn, error) {
	for {
		conn, err := l.inner.Accept()
		if err != nil {
			return nil, err
		}
		leave, ok := l.sockets.pending.enter(conn.RemoteAddr())
		if !ok {
			conn.Close()
			continue
		}
		s, err := newSocket(conn, l.sockets)
		if err == nil {
			s.leave = leave
			return s, nil
		}
		leave()
	}
}

// Socket is a TCP connection of a host.
//
// It wakes its reader when what the muxer waits for is there, or 32 KiB of it, and not
// once a packet: on links of tens of Mbit/s nearly every packet comes alone, with a
// wake-up, a read and a scheduling round each. SO_RCVLOWAT does it in the kernel. The
// bytes are followed from the first one on, through libp2p's negotiation
// (multistream-select: a uvarint length and a line) into TLS, so the end of the
// record that is coming is always known; how much must follow it secureConn knows.
//
// And it tells how much of what was written has gone out: the kernel takes little
// more than the network has room for (TCP_NOTSENT_LOWAT), so who writes bulk by
// Reach leaves the way free for messages.
type Socket struct {
	*net.TCPConn
	local, remote ma.Multiaddr
	raw           syscall.RawConn
	sockets       *sockets
	leave         func() // its place among the pending, when it was accepted

	writing sync.Mutex
	corked  *[]byte // what is written meanwhile; nil when it goes out at once

	written atomic.Int64
	awaited atomic.Int64 // written that is signalled; 0 for none
	reached chan struct{}

	// The rest is the reader's; TLS has one at a time.
	records records
	want    int // bytes that come in the clear, at least; 0 when that is not known
	lowat   int // as set on the socket; 1 at first
	into    []byte
	n       int
	err     error
	read    func(fd uintptr) bool
}

// newSocket takes over conn and closes it when it cannot be used.
func newSocket(conn net.Conn, open *sockets) (*Socket, error) {
	s := &Socket{TCPConn: conn.(*net.TCPConn), sockets: open, reached: make(chan struct{}, 1), lowat: 1}
	s.read = s.try
	err := func() (err error) {
		if s.local, err = manet.FromNetAddr(conn.LocalAddr()); err != nil {
			return err
		}
		if s.remote, err = manet.FromNetAddr(conn.RemoteAddr()); err != nil {
			return err
		}
		if s.raw, err = s.SyscallConn(); err != nil {
			return err
		}
		// With a linger of 0 an end is a reset, and its port is free at once.
		if err := errors.Join(s.SetLinger(0), s.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: tcpKeepAlive, Interval: tcpKeepAlive})); err != nil {
			return err
		}
		var option error
		err = s.raw.Control(func(fd uintptr) {
			option = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentBytes)
		})
		return errors.Join(err, option)
	}()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	open.put(s)
	return s, nil
}

func (s *Socket) ends() ends { return ends{string(s.local.Bytes()), string(s.remote.Bytes())} }

// Close implements net.Conn.
func (s *Socket) Close() error {
	s.known()
	s.sockets.remove(s)
	return s.TCPConn.Close()
}

// known gives the place among the pending back: the other side has proved who it is.
func (s *Socket) known() {
	if s.leave != nil {
		s.leave()
	}
}

// LocalMultiaddr is this end.
func (s *Socket) LocalMultiaddr() ma.Multiaddr { return s.local }

// RemoteMultiaddr is the other end.
func (s *Socket) RemoteMultiaddr() ma.Multiaddr { return s.remote }

// corks holds buffers for what is written while corked.
var corks = sync.Pool{New: func() any {
	b := make([]byte, 0, 68<<10)
	return &b
}}

// cork gathers what is written until uncork.
func (s *Socket) cork() {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.corked = corks.Get().(*[]byte)
	*s.corked = (*s.corked)[:0]
}

// uncork writes what has gathered.
func (s *Socket) uncork() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	gathered := s.corked
	s.corked = nil
	_, err := s.write(*gathered)
	if cap(*gathered) <= 128<<10 {
		corks.Put(gathered)
	}
	return err
}

// Write implements net.Conn.
func (s *Socket) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.corked != nil {
		*s.corked = append(*s.corked, p...)
		return len(p), nil
	}
	return s.write(p)
}

func (s *Socket) write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := s.TCPConn.Write(p)
	total := s.written.Add(int64(n))
	if at := s.awaited.Load(); at > 0 && total >= at && s.awaited.CompareAndSwap(at, 0) {
		s.signal()
	}
	return n, err
}

func (s *Socket) signal() {
	select {
	case s.reached <- struct{}{}:
	default:
	}
}

// Written is how many bytes the system has taken so far, as they are on the wire.
func (s *Socket) Written() int64 { return s.written.Load() }

// Reach returns a channel that gets a signal when Written is at least total, or a
// stray one earlier. There is one channel: one goroutine at a time may wait for it.
func (s *Socket) Reach(total int64) <-chan struct{} {
	s.awaited.Store(total)
	if s.written.Load() >= total && s.awaited.CompareAndSwap(total, 0) {
		s.signal()
	}
	return s.reached
}

// Read implements net.Conn.
func (s *Socket) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.into, s.n, s.err = p, 0, nil
	err := s.raw.Read(s.read)
	s.into = nil
	switch {
	case err != nil:
		return 0, err
	case s.err != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: os.NewSyscallError("read", s.err)}
	case s.n == 0:
		return 0, io.EOF
	}
	s.records.pass(p[:s.n])
	return s.n, nil
}

// try reads what is there; false when there is nothing, after which the poller
// waits for as much as is worth waking up for.
func (s *Socket) try(fd uintptr) bool {
	for {
		n, err := unix.Read(int(fd), s.into)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			// Setting it also signals that so much is there already.
			if want := s.records.missing(s.want); want != s.lowat {
				if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, want) == nil {
					s.lowat = want
				}
			}
			return false
		}
		s.n, s.err = max(n, 0), err
		return true
	}
}

// records follows a stream of multistream-select lines and then TLS records.
type records struct {
	tls  bool
	left int     // bytes to come of the line or record
	size int     // of the record; 0 between two
	head [5]byte // of the next one
	have int     // bytes in head
}

// recordHandshake is the type of the first record of TLS. A line of so many bytes
// is none that libp2p sends.
const recordHandshake = 22

// pass takes note of bytes that were read.
func (r *records) pass(b []byte) {
	for len(b) > 0 {
		if r.left > 0 {
			n := min(r.left, len(b))
			r.left -= n
			b = b[n:]
			if r.left == 0 {
				r.size = 0
			}
			continue
		}
		r.tls = r.tls || r.have == 0 && b[0] == recordHandshake
		r.head[r.have] = b[0]
		r.have++
		b = b[1:]
		switch {
		case r.tls && r.have == len(r.head):
			r.left, r.have = int(binary.BigEndian.Uint16(r.head[3:])), 0
			r.size = r.left
		case !r.tls:
			if length, n := binary.Uvarint(r.head[:r.have]); n > 0 {
				r.left, r.have = int(min(length, 1<<16)), 0
			} else if r.have == len(r.head) {
				r.have = 0 // no line is so long: nothing of what follows is known
			}
		}
	}
}

// missing is how many bytes are worth waking up for: the rest of the record, without
// which nothing can be done, and what comes for certain after it. want is how many
// bytes in the clear do that come at least, of this record or later.
func (r *records) missing(want int) int {
	if !r.tls {
		return 1
	}
	after := max(want-r.size, 0)
	if r.left == 0 {
		after = max(want, 1)
	}
	return min(r.left+after, wakeBytes)
}
