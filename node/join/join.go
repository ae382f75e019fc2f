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
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
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
	// Holds is the hash of the newest root under which the node has a certificate in use.
	Holds []byte `cbor:"5,keyasint,omitempty"`
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
	// Next to Former are of a root that is being replaced, or was: trust.Papers.
	Next      []byte   `cbor:"10,keyasint,omitempty"`
	NextChain [][]byte `cbor:"11,keyasint,omitempty"`
	Cross     []byte   `cbor:"12,keyasint,omitempty"`
	Former    []byte   `cbor:"13,keyasint,omitempty"`
}

// Papers returns what the node proves itself with from now on.
func (r Reply) Papers() trust.Papers {
	return trust.Papers{Root: r.Root, Chain: r.Chain, Next: r.Next, NextChain: r.NextChain, Cross: r.Cross, Former: r.Former}
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
// present addresses. A node whose certificate has expired, or counts no more as its
// root was dropped meanwhile, proves possession of its key again, as an admitted node
// does that joins.
func Renew(ctx context.Context, base string, credential *trust.Credential, req Request) (Reply, error) {
	again := func() (reply Reply, err error) {
		for _, root := range []*trust.Root{credential.Newest(), credential.Root()} {
			if reply, err = Enter(ctx, base, trust.JoinToken{RootHash: root.Hash()}, credential.Key(), req); err == nil {
				break
			}
		}
		return reply, err
	}
	if credential.Expired(time.Now()) {
		return again()
	}
	reply, err := post(ctx, base, RenewPath, trust.ClientTLS(credential), codec.Encode(req))
	// A certificate that is refused shows as a connection that breaks off, in more ways
	// than are worth telling apart. A server that is not there is not asked twice.
	u, unreachable := errors.AsType[*meta.UnavailableError](err)
	var dial *net.OpError
	if errors.Is(err, errNoReply) || unreachable && u.Reason == "no_server" && !(errors.As(err, &dial) && dial.Op == "dial") {
		if entered, err := again(); err == nil {
			return entered, nil
		}
	}
	if err != nil {
		return Reply{}, fmt.Errorf("renew the certificate through %s: %w", base, err)
	}
	return reply, nil
}

// errNoReply is an answer of a server that is none of joining: it refused the certificate.
var errNoReply = errors.New("the server answered with no join reply")

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
		return Reply{}, errors.Join(&meta.UnavailableError{Reason: "no_server", RetryAfter: 2 * time.Second}, fmt.Errorf("read the answer: %w", err))
	}
	var reply Reply
	if err := codec.Unmarshal(raw, &reply); err != nil {
		return Reply{}, fmt.Errorf("%s: %w: %w", res.Status, errNoReply, meta.ErrUnavailable)
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

	// Limit holds callers back that are not known to be nodes; nil holds nobody.
	Limit *Limit

	mu     sync.Mutex
	opened [2]*trust.Authority // of the root and the next: they seldom change
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
	done, err := s.Limit.enter(r, time.Now())
	var raw []byte
	if err == nil {
		defer done()
		raw, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	}
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
		level := slog.LevelWarn
		reply, status = Reply{Error: meta.ToWire(err)}, http.StatusForbidden
		if u, ok := errors.AsType[*meta.UnavailableError](err); ok && u.Reason == "busy" {
			// A flood must not fill the log as well; it is counted.
			level, status = slog.LevelDebug, http.StatusTooManyRequests
			w.Header().Set("Retry-After", strconv.Itoa(int(u.RetryAfter/time.Second)))
		} else if errors.Is(err, meta.ErrUnavailable) {
			status = http.StatusServiceUnavailable
		}
		s.Log.Log(ctx, level, "a node was not admitted", "error", err, "source", r.RemoteAddr)
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
	succession, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Local, state.GetTrust{})
	if err != nil {
		return req, cluster, err
	}
	// A node may know the root that takes over, or one that was replaced and is led on.
	roots := [][]byte{cluster.Root, succession.Next}
	if crossed(succession, time.Now()) {
		roots = append(roots, succession.Former)
	}
	for _, der := range roots {
		if len(der) == 0 {
			continue
		}
		if err = trust.CheckPossession(req.Node.ID, [32]byte(meta.RootHash(der)), message.Request, message.Proof); err == nil {
			return req, cluster, nil
		}
	}
	return req, cluster, err
}

// crossed says whether the former root's word for the present one still counts.
func crossed(t meta.Trust, now time.Time) bool {
	if len(t.Former) == 0 {
		return false
	}
	c, err := x509.ParseCertificate(t.FormerCross)
	return err == nil && now.Before(c.NotAfter)
}

func (s *Server) enter(ctx context.Context, message signed) (Reply, error) {
	req, cluster, err := s.proven(ctx, message)
	if err != nil {
		return Reply{}, err
	}
	known, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Strong, state.GetNode{ID: req.Node.ID})
	switch {
	case err == nil && known.Role == req.Node.Role:
		reply, err := s.reply(ctx, cluster, keep(req.Node, known), req.Hosts, req.Holds)
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
	if token.Role == meta.RoleAgent {
		if err := s.regionIsThere(ctx, token.Region); err != nil {
			return Reply{}, err
		}
	}
	node := req.Node
	node.Region, node.Read = token.Region, token.Read
	return s.reply(ctx, cluster, node, req.Hosts, nil, state.AdmitNode{TokenSecretHash: hash, Node: node})
}

// regionIsThere refuses a host whose region was removed since its token was made: it
// would have no server.
func (s *Server) regionIsThere(ctx context.Context, name meta.RegionName) error {
	regions, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Local, state.ListRegions{})
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(regions, func(r meta.Region) bool { return r.Name == name && r.Leaving == 0 }) {
		return fmt.Errorf("the join token is for region %s, which is not there any more; make one for another with `shoal token join`: %w", name, meta.ErrDenied)
	}
	return nil
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
	return s.reply(ctx, cluster, keep(req.Node, known), req.Hosts, req.Holds)
}

// keep takes a node's own word on its addresses and the roster's on the rest.
func keep(said, known meta.Node) meta.Node {
	node := known
	node.Zone, node.Rack = said.Zone, said.Rack
	node.Swarm, node.Raft, node.Gateway = said.Swarm, said.Raft, said.Gateway
	node.Seal = cmp.Or(said.Seal, known.Seal)
	return node
}

// reply commits what changed, seals the CA key to a server that lacks it, and issues
// the certificates: one of each root. holds is the newest root under which the node
// says that it has one in use.
func (s *Server) reply(ctx context.Context, cluster meta.Cluster, node meta.Node, hosts []string, holds []byte, first ...state.Command) (Reply, error) {
	authority, err := s.open(0, cluster.Root, cluster.RootKey)
	if err != nil {
		return Reply{}, err
	}
	succession, _, err := raftmeta.Ask(ctx, s.Metadata, meta.Local, state.GetTrust{})
	if err != nil {
		return Reply{}, err
	}
	commands := first
	if len(commands) == 0 {
		commands = []state.Command{state.UpdateNode{Node: node}}
	}
	sealTo := func(a *trust.Authority) ([]byte, error) {
		recipient, err := trust.ParseRecipient(node.Seal)
		if err != nil {
			return nil, fmt.Errorf("seal the root key: %w", errors.Join(err, meta.ErrInvalid))
		}
		der, err := a.KeyDER()
		if err != nil {
			return nil, err
		}
		return trust.Seal(der, recipient)
	}
	if _, sealed := cluster.RootKey[node.ID]; node.Role == meta.RoleServer && !sealed {
		box, err := sealTo(authority)
		if err != nil {
			return Reply{}, err
		}
		commands = append(commands, state.SealRootKey{Node: node.ID, Sealed: box})
	}
	var next *trust.Authority
	if len(succession.Next) > 0 {
		if next, err = s.open(1, succession.Next, succession.Keys); err != nil {
			return Reply{}, err
		}
		hash := next.Root().Hash()
		if _, sealed := succession.Keys[node.ID]; node.Role == meta.RoleServer && !sealed {
			box, err := sealTo(next)
			if err != nil {
				return Reply{}, err
			}
			commands = append(commands, state.SealNextKey{Node: node.ID, Sealed: box, Root: hash[:]})
		}
		if bytes.Equal(holds, hash[:]) {
			commands = append(commands, state.ConfirmRoot{Node: node.ID, Root: hash[:]})
		}
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
	said := Reply{Cluster: cluster.ID, Root: cluster.Root, Node: node, Epoch: cluster.Epoch}
	now := time.Now()
	if said.Chain, err = authority.Issue(node, hosts, now); err != nil {
		return Reply{}, err
	}
	switch {
	case next != nil:
		said.Next, said.Cross = succession.Next, succession.Cross
		if said.NextChain, err = next.Issue(node, hosts, now); err != nil {
			return Reply{}, err
		}
	case crossed(succession, now):
		said.Former, said.Cross = succession.Former, succession.FormerCross
	}
	if said.Servers, _, err = raftmeta.Ask(ctx, s.Metadata, meta.Local, state.ListNodes{Role: meta.RoleServer, Page: state.Page{Limit: 1000}}); err != nil {
		return Reply{}, err
	}
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
	return s.open(0, cluster.Root, cluster.RootKey)
}

// open opens a root's key with this server's: slot 0 is of the cluster's root, 1 of the
// next.
func (s *Server) open(slot int, root []byte, keys map[meta.NodeID][]byte) (*trust.Authority, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, known := range s.opened {
		if known != nil && bytes.Equal(known.Root().DER(), root) {
			return known, nil
		}
	}
	sealed, ok := keys[s.Key.ID()]
	if !ok {
		return nil, fmt.Errorf("the root key is not sealed to this server yet: %w", meta.ErrUnavailable)
	}
	der, err := s.Key.Open(sealed)
	if err != nil {
		return nil, fmt.Errorf("open the root key: %w", err)
	}
	authority, err := trust.LoadAuthority(root, der)
	if err != nil {
		return nil, err
	}
	s.opened[slot] = authority
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
