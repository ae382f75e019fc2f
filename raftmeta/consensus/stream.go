package consensus

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
)

// streamLayer carries Raft's messages over libp2p streams. A server's Raft address
// is its peer id: where it is, the host's address book knows.
type streamLayer struct {
	host     host.Host
	protocol protocol.ID
	admits   func(peer.ID) bool
	refused  func(peer.ID)
	accepted chan net.Conn
	closed   chan struct{}

	mu      sync.Mutex
	conns   map[*raftConn]struct{} // open ones, both ways
	inbound map[peer.ID]int
	down    bool
}

var _ raft.StreamLayer = (*streamLayer)(nil)

func newStreamLayer(h host.Host, id protocol.ID, admits func(peer.ID) bool, refused func(peer.ID)) *streamLayer {
	l := &streamLayer{
		host: h, protocol: id, admits: admits, refused: refused,
		accepted: make(chan net.Conn, 64), closed: make(chan struct{}),
		conns: make(map[*raftConn]struct{}), inbound: make(map[peer.ID]int),
	}
	h.SetStreamHandler(id, l.handle)
	return l
}

// handle is the accept gate: Raft itself would take anybody's word.
func (l *streamLayer) handle(s network.Stream) {
	from := s.Conn().RemotePeer()
	if !l.admits(from) {
		_ = s.ResetWithError(network.StreamGated)
		l.refused(from)
		return
	}
	c := &raftConn{layer: l, stream: s, peer: from, inbound: true, idle: idleStream}
	if !l.track(c) {
		_ = s.ResetWithError(network.StreamResourceLimitExceeded)
		return
	}
	select {
	case l.accepted <- c:
	case <-l.closed:
		c.reset()
	}
}

func (l *streamLayer) track(c *raftConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down || (c.inbound && l.inbound[c.peer] >= maxStreamsPerPeer) {
		return false
	}
	if c.inbound {
		l.inbound[c.peer]++
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *streamLayer) forget(c *raftConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.conns[c]; !ok {
		return
	}
	delete(l.conns, c)
	if c.inbound {
		if l.inbound[c.peer]--; l.inbound[c.peer] == 0 {
			delete(l.inbound, c.peer)
		}
	}
}

// sweep ends the streams of peers that are no longer admitted.
func (l *streamLayer) sweep() {
	l.mu.Lock()
	var gone []*raftConn
	for c := range l.conns {
		if !l.admits(c.peer) {
			gone = append(gone, c)
		}
	}
	l.mu.Unlock()
	for _, c := range gone {
		c.reset()
	}
}

// Accept implements net.Listener.
func (l *streamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener: it ends all streams.
func (l *streamLayer) Close() error {
	l.mu.Lock()
	if l.down {
		l.mu.Unlock()
		return nil
	}
	l.down = true
	close(l.closed)
	conns := make([]*raftConn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	l.host.RemoveStreamHandler(l.protocol)
	for _, c := range conns {
		c.reset()
	}
	return nil
}

// Addr implements net.Listener.
func (l *streamLayer) Addr() net.Addr { return peerAddr(l.host.ID()) }

// Dial implements raft.StreamLayer.
func (l *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, err := peer.Decode(string(address))
	if err != nil {
		return nil, fmt.Errorf("raft address %q is no peer id: %w", address, err)
	}
	if id == l.host.ID() {
		return l.dialSelf()
	}
	c := &raftConn{layer: l, peer: id, timeout: timeout, used: time.Now()}
	if c.stream, err = openStream(context.Background(), l.host, id, l.protocol, timeout); err != nil {
		return nil, err
	}
	if !l.track(c) {
		_ = c.stream.Reset()
		return nil, net.ErrClosed
	}
	return c, nil
}

// openStream opens a stream within timeout. Those above retry at their own pace, so
// libp2p's memory of failed dials, which grows to minutes, is wiped first: a server
// that returns must be reached at once.
func openStream(ctx context.Context, h host.Host, id peer.ID, p protocol.ID, timeout time.Duration) (network.Stream, error) {
	if n, ok := h.Network().(interface{ Backoff() *swarm.DialBackoff }); ok {
		n.Backoff().Clear(id)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s, err := h.NewStream(ctx, id, p)
	if err != nil {
		return nil, fmt.Errorf("open %s to %s: %w", p, id, err)
	}
	return s, nil
}

// peerAddr is a peer id as a net.Addr.
type peerAddr peer.ID

func (a peerAddr) Network() string { return "libp2p" }
func (a peerAddr) String() string  { return peer.ID(a).String() }

// raftConn is a stream as a net.Conn for raft.NetworkTransport. An accepted one is
// given up when nothing is heard for its idle time, also in the middle of a
// message: a snapshot whose sender hangs must not hold Raft's main loop (upstream
// issue 697). A dialled one rests in the transport's pool; when the other end has
// given it up meanwhile, the next request opens it anew rather than fail, because
// a lost vote costs an election.
type raftConn struct {
	layer   *streamLayer
	peer    peer.ID
	inbound bool
	idle    time.Duration // inbound
	timeout time.Duration // dialled

	mu      sync.Mutex
	stream  network.Stream
	used    time.Time
	between bool // the last request is answered
	limit   [2]time.Time
	closed  bool
}

func (c *raftConn) current() network.Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stream
}

// Read implements net.Conn.
func (c *raftConn) Read(b []byte) (int, error) {
	s := c.current()
	if c.inbound {
		_ = s.SetReadDeadline(time.Now().Add(c.idle))
	}
	n, err := s.Read(b)
	if !c.inbound {
		c.mu.Lock()
		c.between, c.used = true, time.Now()
		c.mu.Unlock()
	}
	return n, err
}

// Write implements net.Conn.
func (c *raftConn) Write(b []byte) (int, error) {
	if c.inbound {
		s := c.current()
		_ = s.SetWriteDeadline(time.Now().Add(transportTimeout))
		return s.Write(b)
	}
	s, err := c.forRequest()
	if err != nil {
		return 0, err
	}
	return s.Write(b)
}

// forRequest returns the stream to write to, a fresh one when a new request begins
// and the old one is stale. Requests do not overlap: pipelining is off.
func (c *raftConn) forRequest() (network.Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stale := c.between && (c.stream.Conn().IsClosed() || time.Since(c.used) > idleStream/2)
	c.between = false
	if !stale || c.closed {
		return c.stream, nil
	}
	_ = c.stream.Reset()
	s, err := openStream(context.Background(), c.layer.host, c.peer, c.layer.protocol, c.timeout)
	if err != nil {
		return nil, err
	}
	c.stream = s
	_ = s.SetReadDeadline(c.limit[0])
	_ = s.SetWriteDeadline(c.limit[1])
	return s, nil
}

// Close implements net.Conn.
func (c *raftConn) Close() error {
	c.layer.forget(c)
	c.mu.Lock()
	c.closed = true
	s := c.stream
	c.mu.Unlock()
	if err := s.Close(); err != nil {
		return s.Reset()
	}
	return nil
}

func (c *raftConn) reset() {
	c.layer.forget(c)
	_ = c.current().Reset()
}

// LocalAddr implements net.Conn.
func (c *raftConn) LocalAddr() net.Addr { return c.layer.Addr() }

// RemoteAddr implements net.Conn.
func (c *raftConn) RemoteAddr() net.Addr { return peerAddr(c.peer) }

// SetDeadline implements net.Conn.
func (c *raftConn) SetDeadline(t time.Time) error { return c.setDeadlines(t, true, true) }

// SetReadDeadline implements net.Conn.
func (c *raftConn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, true, false) }

// SetWriteDeadline implements net.Conn.
func (c *raftConn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, false, true) }

func (c *raftConn) setDeadlines(t time.Time, read, write bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if read {
		c.limit[0] = t
		if err := c.stream.SetReadDeadline(t); err != nil {
			return err
		}
	}
	if write {
		c.limit[1] = t
		return c.stream.SetWriteDeadline(t)
	}
	return nil
}
