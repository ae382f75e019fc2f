package host

import (
	"context"
	"net"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// tlsTransport is libp2p's TLS that lets the Socket beneath know what is wanted.
type tlsTransport struct{ *libp2ptls.Transport }

func newTLS(id protocol.ID, key crypto.PrivKey, muxers []upgrader.StreamMuxer) (*tlsTransport, error) {
	inner, err := libp2ptls.New(id, key, muxers)
	return &tlsTransport{inner}, err
}

// SecureInbound runs the handshake as a server.
func (t *tlsTransport) SecureInbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	c, err := t.Transport.SecureInbound(ctx, insecure, p)
	return eager(c, insecure, err)
}

// SecureOutbound runs it as a client.
func (t *tlsTransport) SecureOutbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	c, err := t.Transport.SecureOutbound(ctx, insecure, p)
	return eager(c, insecure, err)
}

func eager(c sec.SecureConn, insecure net.Conn, err error) (sec.SecureConn, error) {
	if s, ok := insecure.(*Socket); ok && err == nil {
		s.known()
		return &secureConn{c, s}, nil
	}
	return c, err
}

// secureConn is a TLS connection of which the reader, a muxer, reads nothing but
// whole headers and whole frames: so all of what Read is called for is on its way, and
// worth one wake-up.
type secureConn struct {
	sec.SecureConn
	socket *Socket
}

// Read implements net.Conn.
func (c *secureConn) Read(p []byte) (int, error) {
	c.socket.want = len(p)
	n, err := c.SecureConn.Read(p)
	c.socket.want = 0
	return n, err
}

// Write implements net.Conn: all records of p go out with one call of the system.
func (c *secureConn) Write(p []byte) (int, error) {
	c.socket.cork()
	n, err := c.SecureConn.Write(p)
	if failed := c.socket.uncork(); err == nil && failed != nil {
		return 0, failed
	}
	return n, err
}
