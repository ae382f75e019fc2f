package trust

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// NodeName is the server name (RFC 6066, 3) by which nodes ask for a node
// certificate, wherever they call; package clients ask for a host. It can be no host
// (RFC 6761, 6.4).
const NodeName = "node.shoal.invalid"

// ServerTLS returns the configuration of a gateway's listener: it serves the
// node's certificate and takes TLS 1.2 and 1.3. A client certificate is optional;
// one that is given must be a valid one of the cluster over TLS 1.3, or the
// handshake fails. PeerOf then tells who it is.
func ServerTLS(c *Credential) *tls.Config { return PublicTLS(c, nil) }

// PublicTLS is ServerTLS with a certificate from elsewhere for package clients:
// public returns it when it is for what the client asks, else nil. Nodes are always
// shown the node's own.
func PublicTLS(c *Credential, public func(*tls.ClientHelloInfo) *tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			h := c.current.Load()
			if hello.ServerName == NodeName {
				return &h.nodes.tls, nil
			}
			if public != nil {
				if certificate := public(hello); certificate != nil {
					return certificate, nil
				}
			}
			return &h.clients.tls, nil
		},
		// Request, not VerifyIfGiven: our own check below is the stricter, and it
		// also runs on resumed sessions. ClientCAs tells clients which one to send,
		// so that those with a foreign certificate send none.
		ClientAuth: tls.RequestClientCert,
		ClientCAs:  c.current.Load().pool,
		VerifyConnection: func(state tls.ConnectionState) error {
			_, _, err := c.current.Load().peerAt(&state, time.Now())
			return err
		},
	}
}

// ClientTLS returns the configuration of a node's calls to other nodes: TLS 1.3,
// and the other must prove to be a server of the cluster. Host names do not
// count, since nodes are called by whatever address the roster has.
func ClientTLS(c *Credential) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2", "http/1.1"},
		ServerName:         NodeName,
		InsecureSkipVerify: true, // VerifyConnection decides: by identity, not by name
		VerifyConnection: func(state tls.ConnectionState) error {
			return c.current.Load().verifyServer(&state, time.Now())
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &c.current.Load().nodes.tls, nil
		},
	}
}

// JoinTLS returns the configuration of a node that does not belong to the
// cluster yet: the other must be a server under the root with that hash. RootOf
// then returns that root, to be pinned.
func JoinTLS(rootHash [32]byte) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2", "http/1.1"},
		ServerName:         NodeName,
		InsecureSkipVerify: true, // VerifyConnection decides: by the hash in the token
		VerifyConnection: func(state tls.ConnectionState) error {
			root, err := rootWith(rootHash, &state)
			if err != nil {
				return err
			}
			return verifyServer(root, &state, time.Now())
		},
	}
}

// AnonymousTLS is ClientTLS without showing a certificate: one's own may have ended.
func (c *Credential) AnonymousTLS() *tls.Config {
	config := ClientTLS(c)
	config.GetClientCertificate = nil
	return config
}

// AnonymousTLS is JoinTLS of a root that is known.
func (r *Root) AnonymousTLS() *tls.Config { return JoinTLS(r.hash) }

// RootOf returns the root of a connection made with JoinTLS(rootHash).
//
// Errors: meta.ErrDenied when the other side showed none with that hash.
func RootOf(rootHash [32]byte, state *tls.ConnectionState) (*Root, error) {
	if state == nil {
		return nil, fmt.Errorf("the connection is not TLS: %w", meta.ErrDenied)
	}
	return rootWith(rootHash, state)
}

func rootWith(rootHash [32]byte, state *tls.ConnectionState) (*Root, error) {
	for _, c := range state.PeerCertificates {
		if sha256.Sum256(c.Raw) == rootHash {
			return ParseRoot(c.Raw)
		}
	}
	return nil, fmt.Errorf("the server is not of the cluster that the join token is for: %w", meta.ErrDenied)
}

func verifyServer(root *Root, state *tls.ConnectionState, now time.Time) error {
	identity, err := root.verify(state.PeerCertificates, now)
	if err != nil {
		return fmt.Errorf("verify the server: %w", err)
	}
	if identity.Role != meta.RoleServer {
		return fmt.Errorf("%s is not a server: %w", identity, meta.ErrDenied)
	}
	return nil
}

// PeerOf returns who the other side of a connection proved to be; ok is false
// for a client without a certificate, and for a connection without TLS (nil).
// The certificate's dates are checked again, since connections live long. Whether
// the node is still in the roster is the caller's question.
//
// Errors: meta.ErrDenied for a certificate that does not hold.
func PeerOf(root *Root, state *tls.ConnectionState) (identity Identity, ok bool, err error) {
	if state == nil {
		return Identity{}, false, nil
	}
	return peerAt(root, state, time.Now())
}

func peerAt(root *Root, state *tls.ConnectionState, now time.Time) (Identity, bool, error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, false, nil
	}
	if state.Version < tls.VersionTLS13 {
		return Identity{}, false, fmt.Errorf("nodes speak TLS 1.3: %w", meta.ErrDenied)
	}
	identity, err := root.verify(state.PeerCertificates, now)
	if err != nil {
		return Identity{}, false, fmt.Errorf("verify the client: %w", err)
	}
	return identity, true, nil
}
