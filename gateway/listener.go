package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// recordTypeHandshake is the first byte of every TLS connection (RFC 8446, 5.1);
// no HTTP request begins with it.
const recordTypeHandshake = 0x16

// splitter accepts connections of one port and hands them to the TLS or the
// plain server by their first byte.
type splitter struct {
	listener net.Listener
	tls      *feeder
	plain    *feeder
	slots    chan struct{} // one a connection
	wait     time.Duration // for the first byte
	refused  func()
	log      *slog.Logger
}

// run accepts until the listener is closed. It returns when every connection
// has been handed over or closed.
func (s *splitter) run(ctx context.Context) error {
	defer s.tls.Close()
	defer s.plain.Close()
	// Sniffing ends when accepting ends, whatever the client does.
	ctx, cancel := context.WithCancel(ctx)
	var sniffing sync.WaitGroup
	defer sniffing.Wait()
	defer cancel()
	for pause := time.Duration(0); ; {
		raw, err := s.listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of file descriptors, or the client was gone: others may still come.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("accept failed, trying again", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		pause = 0
		select {
		case s.slots <- struct{}{}:
		default:
			s.refused()
			raw.Close()
			continue
		}
		conn := &sniffedConn{Conn: raw, release: sync.OnceFunc(func() { <-s.slots })}
		sniffing.Go(func() { s.sniff(ctx, conn) })
	}
}

func (s *splitter) sniff(ctx context.Context, conn *sniffedConn) {
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	conn.SetReadDeadline(time.Now().Add(s.wait))
	_, err := io.ReadFull(conn.Conn, conn.first[:])
	if !stop() || err != nil {
		conn.Close()
		return
	}
	conn.SetReadDeadline(time.Time{})
	conn.unread = true
	to := s.plain
	if conn.first[0] == recordTypeHandshake {
		to = s.tls
	}
	select {
	case to.conns <- conn:
	case <-to.closed:
		conn.Close()
	case <-ctx.Done():
		conn.Close()
	}
}

// sniffedConn gives back its first byte.
type sniffedConn struct {
	net.Conn
	first   [1]byte
	unread  bool
	release func()
}

func (c *sniffedConn) Read(p []byte) (int, error) {
	if c.unread && len(p) > 0 {
		c.unread = false
		p[0] = c.first[0]
		return 1, nil
	}
	return c.Conn.Read(p)
}

// ReadFrom lets the kernel copy from files on plain connections.
func (c *sniffedConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// CloseWrite ends the sending half, which net/http does before it drops a
// connection, so that the client still reads the answer.
func (c *sniffedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (c *sniffedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// feeder is the net.Listener of one of the two servers.
type feeder struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newFeeder(addr net.Addr) *feeder {
	f := &feeder{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
	f.close = sync.OnceFunc(func() { close(f.closed) })
	return f
}

func (f *feeder) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

func (f *feeder) Close() error   { f.close(); return nil }
func (f *feeder) Addr() net.Addr { return f.addr }
