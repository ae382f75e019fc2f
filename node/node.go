// Package node builds, orders, runs and stops one node.
//
// New opens a node's data directory, brings it into its cluster if it is not in
// one yet, and wires the rooms together: server.go for a server, agent.go for an
// agent, each one readable function from top to bottom. The capabilities do not
// know one another; adapters.go translates between them. Run works until its
// context ends and stops the parts in reverse order.
//
// DESIGN.md has the data directory, the planes and the order of start and stop.
// Every goroutine of a node belongs to Run.
package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/shoal-registry/shoal/dht/host"
	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/forward"
	"github.com/shoal-registry/shoal/gateway/login"
	"github.com/shoal-registry/shoal/gateway/ops"
	"github.com/shoal-registry/shoal/gateway/quota"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/node/health"
	"github.com/shoal-registry/shoal/node/join"
	"github.com/shoal-registry/shoal/node/lifecycle"
	"github.com/shoal-registry/shoal/node/limits"
	"github.com/shoal-registry/shoal/node/trail"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Node is one server or agent.
type Node struct {
	cfg   config.Config
	log   *slog.Logger
	lock  *DirLock
	key   *trust.Key
	id    *identity // as this start found or made it
	known bool      // the cluster knew this node before this start
	cred  *trust.Credential
	// confirmed is the hash of the next root that the cluster knows this node to hold;
	// statement the root's word on the epoch when it was renewed since the start.
	confirmed, statement atomic.Pointer[[]byte]
	metrics              *prometheus.Registry
	keeping              sync.Mutex // held while the identity on disk changes

	budgets   *limit.Budgets
	limits    *limits.Keeper
	quota     *quota.Quota
	swarmHost *host.Host
	gateway   *gateway.Gateway
	forward   atomic.Pointer[forward.Forwarder] // nil until the gateway is built
	parts     lifecycle.Group
	closers   []func() error // freed in reverse when New fails or Run ends
	checks    []ops.Check
	views     map[string]func() any // of the ops listener
	handlers  map[string]http.Handler
	ready     chan struct{}

	metadata raftmeta.Asker
	doer     raftmeta.Doer // nil on an agent

	// trail is this node's chain of denials, failed logins and pulls.
	trail *trail.Trail
	// audited is what is wrong with the audit log.
	audited *auditHealth
	// distanceTo is the round trip to a region, 0 when unknown; serves says that nothing
	// is recorded that keeps a server from serving.
	distanceTo func(meta.RegionName) time.Duration
	serves     func(meta.NodeID) bool
	fares      *health.Self       // nil on an agent
	strangers  prometheus.Counter // that asked a DHT
	// head says how recently this node knows that no right was taken back.
	head access.Head
	// logins gives credentials, on servers; used notes that one was used.
	logins *login.Desk
	used   func(credential string)
}

// New opens the node of cfg.Data. A node that belongs to no cluster begins one
// (cfg.Bootstrap) or joins one (cfg.Join, cfg.Token), which needs the network;
// otherwise New needs nobody. The node listens when New returns and serves once
// Run is called.
func New(ctx context.Context, cfg config.Config, log *slog.Logger) (_ *Node, err error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: log, metrics: prometheus.NewRegistry(), views: map[string]func() any{}, handlers: map[string]http.Handler{}, ready: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	n.parts.Log = log
	n.strangers = promauto.With(n.metrics).NewCounter(prometheus.CounterOpts{
		Name: "shoal_dht_refused_total", Help: "Streams of nodes to a DHT that they are no members of: of other regions, or narrowed to some tenants.",
	})
	n.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if n.lock, err = LockDir(cfg.Data); err != nil {
		return nil, err
	}
	n.closes(n.lock.Release)
	if err := settleRecovery(cfg.Data); err != nil {
		return nil, err
	}
	if n.key, err = trust.LoadOrCreateKey(filepath.Join(cfg.Data, "node.key")); err != nil {
		return nil, err
	}
	if n.id, err = loadIdentity(cfg.Data); err != nil {
		return nil, err
	}
	if err := checkRemoved(cfg.Data); err != nil {
		return nil, err
	}
	switch {
	case n.id != nil && n.id.Node.ID != n.key.ID():
		return nil, fmt.Errorf("%s: the key is of node %s, the identity of %s: %w", cfg.Data, n.key.ID(), n.id.Node.ID, meta.ErrCorrupt)
	case n.id != nil && n.id.Node.Role != cfg.Role:
		return nil, fmt.Errorf("%s is the data directory of a %s: %w", cfg.Data, n.id.Node.Role, meta.ErrInvalid)
	case n.id != nil && cfg.Role == meta.RoleServer && n.id.Node.Region != cfg.Region:
		return nil, fmt.Errorf("%s is the data directory of a server of region %s, not %s: a server never moves, add another and remove this one: %w",
			cfg.Data, n.id.Node.Region, cfg.Region, meta.ErrInvalid)
	case n.id == nil && !cfg.Bootstrap && (cfg.Join == "" || cfg.Token == ""):
		return nil, fmt.Errorf("this %s belongs to no cluster yet: give --join URL --token TOKEN, from `shoal token join` on a server%s",
			cfg.Role, map[bool]string{true: ", or --bootstrap to begin a cluster"}[cfg.Role == meta.RoleServer])
	}
	if err := n.openLimits(); err != nil {
		return nil, err
	}
	if cfg.Role == meta.RoleServer {
		err = n.buildServer(ctx)
	} else {
		err = n.buildAgent(ctx)
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (n *Node) closes(f func() error) { n.closers = append(n.closers, f) }

func (n *Node) close() error {
	var err error
	for i := len(n.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, n.closers[i]())
	}
	n.closers = nil
	return err
}

// Run works until ctx ends or a part fails, then stops the parts in reverse and
// frees everything. It may be called once.
func (n *Node) Run(ctx context.Context) error {
	err := n.parts.Run(ctx)
	return errors.Join(err, n.close())
}

// Ready is closed when the node first serves: its metadata answers.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// ID returns the node's id.
func (n *Node) ID() meta.NodeID { return n.key.ID() }

// Role returns what the node is.
func (n *Node) Role() meta.Role { return n.cfg.Role }

// Region returns the node's region.
func (n *Node) Region() meta.RegionName { return n.id.Node.Region }

// Gateway returns the address that the gateway listens on.
func (n *Node) Gateway() string { return n.gateway.Addr().String() }

// JoinToken records a token and returns its text; servers only. The token's ID
// is filled in.
func (n *Node) JoinToken(ctx context.Context, t meta.JoinToken) (string, error) {
	if n.doer == nil {
		return "", fmt.Errorf("join tokens are made by servers: %w", meta.ErrInvalid)
	}
	token := trust.NewJoinToken(n.cred.Newest())
	t.ID = token.SecretHash()
	if _, err := n.doer.Do(ctx, state.Origin{Principal: "node:" + string(n.ID())}, state.CreateJoinToken{Token: t}); err != nil {
		return "", err
	}
	return token.Text(), nil
}

// listenSwarm opens the swarm host, which has to listen before the node can say
// in the roster where it is reached.
func (n *Node) listenSwarm() (err error) {
	n.swarmHost, err = host.New(host.Config{
		Key: n.key.Private(), Plane: host.Swarm, QUIC: true, Role: n.cfg.Role,
		Listen: []string{n.cfg.Swarm}, Advertise: n.advertise(n.cfg.Swarm),
		Log: n.log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.closes(n.swarmHost.Close)
	return nil
}

func (n *Node) advertise(listen string) string {
	toward := strings.TrimPrefix(n.cfg.Join, "https://")
	if toward == "" && n.id != nil {
		for _, s := range n.id.Servers {
			if s.ID != n.key.ID() {
				toward = s.Gateway
				break
			}
		}
	}
	return n.cfg.AdvertiseHost(listen, toward)
}

// record is what the node says of itself in the roster.
func (n *Node) record(raft []string) meta.Node {
	_, port, _ := net.SplitHostPort(n.cfg.Gateway)
	return meta.Node{
		ID: n.key.ID(), Role: n.cfg.Role, Region: n.cfg.Region, Zone: n.cfg.Zone, Rack: n.cfg.Rack,
		Swarm: n.swarmHost.Advertised(), Raft: raft,
		Gateway: net.JoinHostPort(n.advertise(n.cfg.Gateway), port),
		Seal:    n.key.Recipient(),
	}
}

// enter joins the cluster through cfg.Join, trying again while its server is not
// there yet.
func (n *Node) enter(ctx context.Context, record meta.Node) error {
	token, err := trust.ParseJoinToken(n.cfg.Token.Reveal())
	if err != nil {
		return err
	}
	request := join.Request{Node: record, Hosts: join.HostsOf(record.Gateway, n.cfg.Gateway), Level: state.Level}
	pause := 100 * time.Millisecond
	for {
		reply, err := join.Enter(ctx, n.cfg.Join, token, n.key, request)
		if err == nil {
			n.known = reply.Known
			n.id, err = n.adopt(reply)
			return err
		}
		if !errors.Is(err, meta.ErrUnavailable) {
			return err
		}
		n.log.Warn("cannot join yet, trying again", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
			pause = min(2*pause, 5*time.Second)
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// adopt keeps what a join reply says, for this and later starts.
func (n *Node) adopt(reply join.Reply) (*identity, error) {
	next := &identity{
		Cluster: reply.Cluster, Node: reply.Node, Servers: reply.Servers,
		Epoch: reply.Epoch, Statement: reply.Statement,
	}
	next.hold(reply.Papers())
	return next, next.save(n.cfg.Data)
}

// keep changes the identity on disk, for later starts; n.id stays as it is.
func (n *Node) keep(change func(*identity)) error {
	n.keeping.Lock()
	defer n.keeping.Unlock()
	id, err := loadIdentity(n.cfg.Data)
	if err != nil {
		return err
	}
	change(id)
	return id.save(n.cfg.Data)
}

// trusted opens the credential from the identity.
func (n *Node) trusted() (err error) {
	n.cred, err = trust.OpenCredential(n.key, n.id.papers())
	return err
}

// identify returns which node the other side of a TLS connection proved to be.
func (n *Node) identify(cs *tls.ConnectionState) (meta.NodeID, error) {
	id, ok, err := n.cred.PeerOf(cs)
	if err != nil || !ok {
		return "", err
	}
	return id.ID, nil
}

// peerOf is identify for a request.
func (n *Node) peerOf(r *http.Request) (trust.Identity, bool) {
	if r.TLS == nil {
		return trust.Identity{}, false
	}
	id, ok, err := n.cred.PeerOf(r.TLS)
	return id, ok && err == nil
}

// renew asks the servers in turn for new certificates, and tells them where this
// node is.
func (n *Node) renew(record func() meta.Node) func(context.Context) (trust.Papers, error) {
	return func(ctx context.Context) (trust.Papers, error) {
		request := n.renewal(record())
		var failed error
		for _, s := range n.swarmHost.Nodes("", meta.RoleServer) {
			reply, err := join.Renew(ctx, "https://"+s.Gateway, n.cred, request)
			if err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			return reply.Papers(), n.keepReply(reply, request.Holds)
		}
		return trust.Papers{}, errors.Join(&meta.UnavailableError{Reason: "no_server", RetryAfter: 10 * time.Second}, failed)
	}
}

// reissue is renew on a server, which has the authority itself.
func (n *Node) reissue(server *join.Server, record func() meta.Node) func(context.Context) (trust.Papers, error) {
	return func(ctx context.Context) (trust.Papers, error) {
		request := n.renewal(record())
		reply, err := server.Reissue(ctx, request)
		if err != nil {
			return trust.Papers{}, err
		}
		return reply.Papers(), n.keepReply(reply, request.Holds)
	}
}

func (n *Node) renewal(said meta.Node) join.Request {
	newest := n.cred.Newest().Hash()
	return join.Request{Node: said, Hosts: join.HostsOf(said.Gateway, n.cfg.Gateway), Holds: newest[:]}
}

// keepReply keeps what a renewal says of the cluster; the papers are kept once they are
// found good (keepPapers).
func (n *Node) keepReply(reply join.Reply, holds []byte) error {
	if len(reply.Next) > 0 && bytes.Equal(holds, meta.RootHash(reply.Next)) {
		n.confirmed.Store(&holds)
	}
	again := reply.Epoch == n.id.Epoch && len(reply.Statement) > 0 // Another root may have signed it.
	if again {
		n.statement.Store(&reply.Statement)
	}
	return n.keep(func(id *identity) {
		id.Node, id.Servers = reply.Node, reply.Servers
		if again {
			id.Statement = reply.Statement
		}
	})
}

// epoch is the cluster's that this node belongs to, and the root's word on it.
func (n *Node) epoch() (uint64, []byte) {
	if renewed := n.statement.Load(); renewed != nil {
		return n.id.Epoch, *renewed
	}
	return n.id.Epoch, n.id.Statement
}

func (n *Node) keepPapers(papers trust.Papers) error {
	return n.keep(func(id *identity) { id.hold(papers) })
}

func (n *Node) renewalFailed(err error) {
	n.log.Warn("the node's certificate was not renewed yet", "error", err)
}
