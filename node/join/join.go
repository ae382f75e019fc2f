// Package join brings a node into the cluster and keeps its certificate fresh.
//
// The joining node holds a one-time token: a secret, and the hash of the
// cluster's root certificate. Enter dials a server over TLS whose chain must end
// in that root, proves that it holds its key, and gets back its place in the
// roster, its certificate and the servers to talk to. Server is the other half,
// mounted on a server's gateway; it writes to the metadata only through
// commands, so any server may admit.
//
// A lost answer costs nothing: a node that is admitted already proves possession
// of its key and gets a new certificate without another use of the token.
//
// Bodies are raftmeta/codec messages over POST. The package starts no goroutines.
package join

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Paths of the two calls on a server's gateway.
const (
	EnterPath    = "/shoal.join.v1/Enter"    // by token and proof of possession
	RenewPath    = "/shoal.join.v1/Renew"    // by the node's present certificate
	StandingPath = "/shoal.join.v1/Standing" // by proof of possession
)

const maxBodyBytes = 256 << 10

// Request is what a node says of itself.
type Request struct {
	// Secret is the token's; empty in a renewal.
	Secret string `cbor:"1,keyasint,omitempty"`
	// Node holds ID, Role, Zone, Rack, addresses and Seal; region and read
	// patterns come from the token. A region that is given must be the token's.
	Node meta.Node `cbor:"2,keyasint,omitempty"`
	// Hosts are the names and addresses that the gateway's certificate is for.
	Hosts []string `cbor:"3,keyasint,omitempty"`
	// Level is the newest cluster level that the build of a server knows; one that does
	// not say is of before they did.
	Level uint32 `cbor:"4,keyasint,omitempty"`
}

// signed carries a Request with the proof that its sender holds the node's key.
type signed struct {
	Request []byte `cbor:"1,keyasint,omitempty"`
	Proof   []byte `cbor:"2,keyasint,omitempty"`
}

// Reply is what an admitted node needs to begin.
type Reply struct {
	Cluster string          `cbor:"1,keyasint,omitempty"`
	Root    []byte          `cbor:"2,keyasint,omitempty"` // DER
	Chain   [][]byte        `cbor:"3,keyasint,omitempty"` // leaf first
	Node    meta.Node       `cbor:"4,keyasint,omitempty"`
	Servers []meta.Node     `cbor:"5,keyasint,omitempty"`
	Error   *meta.WireError `cbor:"6,keyasint,omitempty"`
	// Epoch is the cluster's, Statement the root's word on it; the first has none.
	Epoch     uint64 `cbor:"7,keyasint,omitempty"`
	Statement []byte `cbor:"8,keyasint,omitempty"`
	// Known says that the node was in the roster before it entered: a server may be a
	// voter, though it has no log.
	Known bool `cbor:"9,keyasint,omitempty"`
}

// Enter admits the node of key through the server at base (https://host:port).
//
// Errors: meta.ErrDenied for a token that is spent, expired or of another role;
// meta.ErrUnavailable for a server that cannot be reached or cannot commit.
func Enter(ctx context.Context, base string, token trust.JoinToken, key *trust.Key, req Request) (Reply, error) {
	req.Secret = token.Secret.Reveal()
	body := codec.Encode(req)
	message := signed{Request: body, Proof: key.ProvePossession(token.RootHash, body)}
	reply, err := post(ctx, base, EnterPath, trust.JoinTLS(token.RootHash), codec.Encode(message))
	if err != nil {
		return Reply{}, fmt.Errorf("join through %s: %w", base, err)
	}
	return reply, nil
}

// Renew asks the server at base for a new certificate and tells it the node's
// present addresses. A node whose certificate has expired proves possession of
// its key again, as an admitted node does that joins.
func Renew(ctx context.Context, base string, credential *trust.Credential, req Request) (Reply, error) {
	if credential.Expired(time.Now()) {
		return Enter(ctx, base, trust.JoinToken{RootHash: credential.Root().Hash()}, credential.Key(), req)
	}
	reply, err := post(ctx, base, RenewPath, trust.ClientTLS(credential), codec.Encode(req))
	if err != nil {
		return Reply{}, fmt.Errorf("renew the certificate through %s: %w", base, err)
	}
	return reply, nil
}

func post(ctx context.Context, base, path string, tlsConfig *tls.Config, body []byte) (Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	target, err := url.JoinPath(base, path)
	if err != nil {
		return Reply{}, fmt.Errorf("%q: %w", base, meta.ErrInvalid)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return Reply{}, err
	}
	r.Header.Set("Content-Type", "application/cbor")
	transport := &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true, DisableKeepAlives: true, ResponseHeaderTimeout: 20 * time.Second}
	defer transport.CloseIdleConnections()
	res, err := transport.RoundTrip(r)
	if errors.Is(err, meta.ErrDenied) {
		return Reply{}, err // the server is not of the cluster: asking again does not help
	} else if err != nil {
		return Reply{}, errors.Join(&meta.UnavailableError{Reason: "no_server", RetryAfter: 2 * time.Second}, err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxBodyBytes))
	if err != nil {
		return Reply{}, fmt.Errorf("read the answer: %w", err)
	}
	var reply Reply
	if err := codec.Unmarshal(raw, &reply); err != nil {
		return Reply{}, fmt.Errorf("server answered %s with no join reply: %w", res.Status, meta.ErrUnavailable)
	}
	return reply, reply.Error.Err()
}

// Metadata is what the server's half asks of the metadata.
type Metadata interface {
	raftmeta.Asker
	raftmeta.Doer
}

// Server admits and renews nodes.
type Server struct {
	Metadata Metadata
	// Key opens the cluster's CA key, which is sealed to every server.
	Key *trust.Key
	// PeerOf tells which node's certificate a request came with.
	PeerOf func(*http.Request) (trust.Identity, bool)
	Log    *slog.Logger

	mu        sync.Mutex
	authority *trust.Authority // opened once; the root never changes within an epoch
}

// Enter serves EnterPath.
func (s *Server) Enter(w http.ResponseWriter, r *http.Request) {
	var message signed
	s.serve(w, r, &message, func(ctx context.Context) (Reply, error) { return s.enter(ctx, message) })
}

// Renew serves RenewPath.
func (s *Server) Renew(w http.ResponseWriter, r *http.Request) {
	var req Request
	s.serve(w, r, &req, func(ctx context.Context) (Reply, error) {
		id, ok := s.PeerOf(r)
		if !ok || id.ID != req.Node.ID {
			return Reply{}, fmt.Errorf("renew: the certificate is not the node's: %w", meta.ErrDenied)
		}
		return s.Reissue(ctx, req)
	})
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, body any, answer func(context.Context) (Reply, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
	defer cancel()
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if err == nil {
		if err = codec.Unmarshal(raw, body); err != nil {
			err = errors.Join(err, meta.ErrInvalid)
		}
	}
	var reply Reply
	if err == nil {
		reply, err = answer(ctx)
	}
	status := http.StatusOK
	if err != nil {
		s.Log.Warn("a node was not admitted", "error", err, "source", r.RemoteAddr)
		reply, status = Reply{Error: meta.ToWire(err)}, http.StatusForbidden
		if errors.Is(err, meta.ErrUnavailable) {
			status = http.StatusServiceUnavailable
		}
	}
	w.Header().Set("Content-Type", "application/cbor")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(codec.Encode(reply)) //nolint:errcheck // the client has gone; it will ask again
}

// proven returns the request of a message whose sender has proved that it holds the
// node's key, and the cluster.
func (s *Server) proven(ctx context.Context, message signed) (req Request, cluster meta.Cluster, err error) {
	if err := codec.Unmarshal(message.Request, &req); err != nil {
		return req, cluster, errors.Join(err, meta.ErrInvalid)
	}
	if cluster, _, err = raftmeta.Ask(ctx, s.Metadata, meta.Strong, state.GetCluster{}); err != nil {
		return req, cluster, err
	}
	root, err := trust.ParseRoot(cluster.Root)
	if err != nil {
		return req, cluster, err
	}
	return req, cluster, trust.CheckPossession(req.Node.ID, root.Hash(), message.Request, message.Proof)
}

func (s *Server) enter(ctx context.Context, message signed) (Reply, error) {
	req, cluster, err := s.proven(ctx, message)
	if err != nil {
		return Reply{}, err
	}
	known, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Strong, state.GetNode{ID: req.Node.ID})
	switch {
	case err == nil && known.Role == req.Node.Role:
		reply, err := s.reply(ctx, cluster, keep(req.Node, known), req.Hosts)
		reply.Known = true
		return reply, err
	case err == nil:
		return Reply{}, fmt.Errorf("node %s is a %s: use another --data for a %s: %w", known.ID, known.Role, req.Node.Role, meta.ErrDenied)
	case !errors.Is(err, meta.ErrNotFound):
		return Reply{}, err
	}
	hash := trust.JoinToken{Secret: trust.Secret(req.Secret)}.SecretHash()
	token, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Strong, state.GetJoinToken{ID: hash})
	if errors.Is(err, meta.ErrNotFound) {
		return Reply{}, fmt.Errorf("the join token is unknown, spent or expired, make one with `shoal token join`: %w", meta.ErrDenied)
	} else if err != nil {
		return Reply{}, err
	}
	if req.Node.Region != "" && req.Node.Region != token.Region {
		return Reply{}, fmt.Errorf("the join token is for region %s, the node says %s: %w", token.Region, req.Node.Region, meta.ErrDenied)
	}
	if token.Role == meta.RoleServer && max(req.Level, raftmeta.SilentLevel) < cluster.Level {
		return Reply{}, fmt.Errorf("its build knows cluster level %d, the cluster is at %d; update it: %w", max(req.Level, raftmeta.SilentLevel), cluster.Level, meta.ErrDenied)
	}
	node := req.Node
	node.Region, node.Read = token.Region, token.Read
	return s.reply(ctx, cluster, node, req.Hosts, state.AdmitNode{TokenSecretHash: hash, Node: node})
}

// Reissue is Renew for this server itself, which needs no certificate to ask for
// one: after a long stop its own has expired, and so has every other server's.
func (s *Server) Reissue(ctx context.Context, req Request) (Reply, error) {
	cluster, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Strong, state.GetCluster{})
	if err != nil {
		return Reply{}, err
	}
	known, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Strong, state.GetNode{ID: req.Node.ID})
	if errors.Is(err, meta.ErrNotFound) {
		return Reply{}, fmt.Errorf("node %s was removed from the cluster: %w", req.Node.ID, meta.ErrDenied)
	} else if err != nil {
		return Reply{}, err
	}
	return s.reply(ctx, cluster, keep(req.Node, known), req.Hosts)
}

// keep takes a node's own word on its addresses and the roster's on the rest.
func keep(said, known meta.Node) meta.Node {
	node := known
	node.Zone, node.Rack = said.Zone, said.Rack
	node.Swarm, node.Raft, node.Gateway = said.Swarm, said.Raft, said.Gateway
	node.Seal = cmp.Or(said.Seal, known.Seal)
	return node
}

// reply commits what changed, seals the CA key to a server that lacks it, and
// issues the certificate.
func (s *Server) reply(ctx context.Context, cluster meta.Cluster, node meta.Node, hosts []string, first ...state.Command) (Reply, error) {
	authority, err := s.open(cluster)
	if err != nil {
		return Reply{}, err
	}
	commands := first
	if len(commands) == 0 {
		commands = []state.Command{state.UpdateNode{Node: node}}
	}
	if _, sealed := cluster.RootKey[node.ID]; node.Role == meta.RoleServer && !sealed {
		recipient, err := trust.ParseRecipient(node.Seal)
		if err != nil {
			return Reply{}, fmt.Errorf("seal the root key: %w", errors.Join(err, meta.ErrInvalid))
		}
		der, err := authority.KeyDER()
		if err != nil {
			return Reply{}, err
		}
		box, err := trust.Seal(der, recipient)
		if err != nil {
			return Reply{}, err
		}
		commands = append(commands, state.SealRootKey{Node: node.ID, Sealed: box})
	}
	for _, c := range commands {
		if _, err := s.Metadata.Do(ctx, state.Origin{Principal: "node:" + string(node.ID)}, c); err != nil {
			return Reply{}, err
		}
	}
	node, _, err = raftmeta.Ask(ctx, s.Metadata, meta.Local, state.GetNode{ID: node.ID})
	if err != nil {
		return Reply{}, err
	}
	chain, err := authority.Issue(node, hosts, time.Now())
	if err != nil {
		return Reply{}, err
	}
	servers, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Local, state.ListNodes{Role: meta.RoleServer, Page: state.Page{Limit: 1000}})
	if err != nil {
		return Reply{}, err
	}
	said := Reply{Cluster: cluster.ID, Root: cluster.Root, Chain: chain, Node: node, Servers: servers, Epoch: cluster.Epoch}
	if cluster.Recovery != nil {
		said.Statement = cluster.Recovery.Statement
	}
	return said, nil
}

// Authority opens the cluster's CA with this server's key.
func (s *Server) Authority(ctx context.Context) (*trust.Authority, error) {
	cluster, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Local, state.GetCluster{})
	if err != nil {
		return nil, err
	}
	return s.open(cluster)
}

func (s *Server) open(cluster meta.Cluster) (*trust.Authority, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.authority != nil && bytes.Equal(s.authority.Root().DER(), cluster.Root) {
		return s.authority, nil
	}
	sealed, ok := cluster.RootKey[s.Key.ID()]
	if !ok {
		return nil, fmt.Errorf("the root key is not sealed to this server yet: %w", meta.ErrUnavailable)
	}
	der, err := s.Key.Open(sealed)
	if err != nil {
		return nil, fmt.Errorf("open the root key: %w", err)
	}
	authority, err := trust.LoadAuthority(cluster.Root, der)
	if err != nil {
		return nil, err
	}
	s.authority = authority
	return authority, nil
}

// HostsOf lists the names a gateway's certificate must be for.
func HostsOf(advertised, listen string) []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	for _, h := range []string{advertised, listen} {
		if host, _, err := net.SplitHostPort(h); err == nil {
			h = host
		}
		if ip := net.ParseIP(h); h != "" && (ip == nil || !ip.IsUnspecified()) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}
