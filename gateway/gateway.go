// Package gateway is the HTTP side of a node: one port that takes TLS and plain
// HTTP, one table of routes, one gate that every request passes.
//
// Start at New, which checks the table and opens the port, and handler.go, the
// way of a request: measured, named and traced; matched (protocol.Router);
// authenticated and authorised (access.Gate); forwarded when its place is
// elsewhere (forward.Forwarder); served by a protocol, by a mounted service or
// by the token endpoint (token.go). DESIGN.md has the picture and the reasons.
//
// Run owns all goroutines: the accept loop, the sniffing of first bytes and the
// two servers of net/http, and ends them before it returns.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Forwarder sends requests to where they can be served. It is a
// *forward.Forwarder.
type Forwarder interface {
	// Server sends r to some server, Node to that one. An error comes before
	// anything is written, unless it is a *forward.CutError.
	Server(w http.ResponseWriter, r *http.Request) error
	Node(w http.ResponseWriter, r *http.Request, id meta.NodeID) error
}

// Mount is a service that is no protocol: joining, the metadata's remote plane.
type Mount struct {
	// Name labels metrics and logs.
	Name string
	// Pattern is a protocol pattern; a service with several endpoints ends in {rest...}.
	Pattern string
	// Methods that the handler takes.
	Methods []string
	Action  access.Action
	// Long requests end when the node begins to shut down: watches, that would
	// hold the drain up to its deadline.
	Long bool
	// Serve answers; see HTTP for a plain handler.
	Serve func(*protocol.Call) error
}

// Limits bound what clients can hold. A zero field takes the standard.
type Limits struct {
	// Connections at a time (16,384); further ones are closed at once.
	Connections int
	// Stall ends an exchange that moves no byte for so long (60 s). Length is not limited.
	Stall time.Duration
	// Header is the time for a request's header (10 s), Idle between requests (2 min).
	Header, Idle time.Duration
	// HeaderBytes of a request (64 KiB).
	HeaderBytes int
	// Drain is how long requests may go on once the node stops (30 s).
	Drain time.Duration
}

func (l Limits) withStandards() Limits {
	set := func(d *time.Duration, standard time.Duration) {
		if *d == 0 {
			*d = standard
		}
	}
	set(&l.Stall, 60*time.Second)
	set(&l.Header, 10*time.Second)
	set(&l.Idle, 2*time.Minute)
	set(&l.Drain, 30*time.Second)
	if l.Connections == 0 {
		l.Connections = 16384
	}
	if l.HeaderBytes == 0 {
		l.HeaderBytes = 64 << 10
	}
	return l
}

// Config is what a Gateway is made of.
type Config struct {
	// Self and Role are this node's.
	Self meta.NodeID
	Role meta.Role
	// Listen is host:port; port 0 takes any.
	Listen string
	// Protocols in the order of the table; the admin API is one.
	Protocols []protocol.Protocol
	Mounts    []Mount
	Gate      *access.Gate
	// Repositories looks a repository up; usually the gate's own Metadata.
	Repositories access.Metadata
	// Login is for servers: who has a password or the token of an issuer gets a credential.
	// Without it only tokens count.
	Login Login
	// Forward is required on agents; on a server without it uploads of other nodes
	// are unknown.
	Forward Forwarder
	// Wrote is told, before the client is, the point of the log of each write that was
	// forwarded: reads here shall follow it. Nil on servers, which answer a write when
	// they have applied it.
	Wrote func(meta.Token)
	// Elsewhere says, on a server, that it cannot use its blobs: what needs them is sent
	// to another server, and served here only when there is none. Nil never does.
	Elsewhere func() bool
	// Leaving says, on a server, that it takes nothing new: pushes are sent to another
	// server, and served here only when there is none. Nil never does.
	Leaving func() bool
	// Writable refuses pushes early, before any of their bodies is read; nil takes them.
	Writable func() error
	// Quota bounds what tenants take; nil bounds nothing.
	Quota Quota
	// Head is how recently this node knows that no right was taken back: calls are
	// refused, and ended, without it (access.Judge). Nil never does.
	Head access.Head
	// Trail takes down denials, failed logins and pulls; nil does not.
	Trail Trail
	// TLS serves the node certificate; nil takes plain HTTP only.
	TLS *tls.Config
	// Plain takes plain HTTP from everywhere, not only from loopback.
	Plain bool
	// TLSOnly takes it from nowhere.
	TLSOnly bool
	// TrustedProxies may say for whom they forward (X-Forwarded-*).
	TrustedProxies []netip.Prefix
	Limits         Limits
	Log            *slog.Logger
	// Metrics takes the gateway's metrics.
	Metrics prometheus.Registerer
}

// Gateway serves. It is built by New.
type Gateway struct {
	Config
	router   *protocol.Router
	aimers   []protocol.Aimer
	long     map[string]bool // names of routes whose requests end with the drain
	cross    *http.CrossOriginProtection
	metrics  *metrics
	watcher  watcher
	peers    *peers
	listener net.Listener
	// draining is done when the node begins to shut down; drain makes it so.
	draining context.Context
	drain    context.CancelFunc
}

// New checks the table of routes and opens the port.
//
// Errors: meta.ErrInvalid for a route without action, a tie between routes or a
// Config without a required field; those of listening.
func New(c Config) (*Gateway, error) {
	g, err := build(c)
	if err != nil {
		return nil, err
	}
	if g.listener, err = net.Listen("tcp", c.Listen); err != nil {
		return nil, fmt.Errorf("gateway: listen: %w", err)
	}
	return g, nil
}

// build is New without the port.
func build(c Config) (*Gateway, error) {
	switch {
	case c.Self == "" || c.Role == "" || c.Gate == nil || c.Repositories == nil || c.Log == nil || c.Metrics == nil:
		return nil, fmt.Errorf("gateway: Self, Role, Gate, Repositories, Log and Metrics are required: %w", meta.ErrInvalid)
	case c.Role == meta.RoleAgent && c.Forward == nil:
		return nil, fmt.Errorf("gateway: an agent needs Forward: %w", meta.ErrInvalid)
	}
	c.Limits = c.Limits.withStandards()
	g := &Gateway{
		Config: c,
		long:   map[string]bool{},
		cross:  http.NewCrossOriginProtection(),
	}
	g.watcher.calls, g.peers = map[*watched]struct{}{}, newPeers()
	g.draining, g.drain = context.WithCancel(context.Background())
	for _, p := range c.Protocols {
		if a, ok := p.(protocol.Aimer); ok {
			g.aimers = append(g.aimers, a)
		}
	}
	table := append([]protocol.Protocol{&tokens{g}}, c.Protocols...)
	if len(c.Mounts) > 0 {
		table = append(table, mounted(c.Mounts))
		for _, m := range c.Mounts {
			if m.Long {
				for _, method := range m.Methods {
					g.long[mountName(m, method)] = true
				}
			}
		}
	}
	var err error
	if g.router, err = protocol.NewRouter(table...); err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	if g.metrics, err = newMetrics(c.Metrics); err != nil {
		return nil, fmt.Errorf("gateway: metrics: %w", err)
	}
	return g, nil
}

// Addr returns where the gateway listens.
func (g *Gateway) Addr() net.Addr { return g.listener.Addr() }

// Routes lists all routes with their actions.
func (g *Gateway) Routes() []*protocol.Route { return g.router.Routes() }

// Close frees the port of a Gateway that does not run.
func (g *Gateway) Close() error { return g.listener.Close() }

// Run serves until ctx ends, then lets requests under way finish for
// Limits.Drain, and cuts off what is left. It returns nil after a shutdown.
func (g *Gateway) Run(ctx context.Context) error {
	split := &splitter{
		listener: g.listener,
		tls:      newFeeder(g.listener.Addr()),
		plain:    newFeeder(g.listener.Addr()),
		slots:    make(chan struct{}, g.Limits.Connections),
		wait:     g.Limits.Header,
		refused:  g.metrics.refused.Inc,
		log:      g.Log,
	}
	plain, secure := g.server(), g.server()
	// Requests outlive ctx by the drain.
	base, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	plain.BaseContext = func(net.Listener) context.Context { return base }
	secure.BaseContext = plain.BaseContext

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return split.run(ctx) })
	serve := func(name string, serve func() error) {
		group.Go(func() error {
			if err := serve(); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("gateway: serve %s: %w", name, err)
			}
			return nil
		})
	}
	// Calls are judged until the last has ended.
	watching, unwatch := context.WithCancel(base)
	defer unwatch()
	group.Go(func() error { return g.watchCalls(watching) })
	serve("plain", func() error { return plain.Serve(split.plain) })
	if g.TLS != nil {
		secure.TLSConfig = g.TLS.Clone()
		serve("tls", func() error { return secure.ServeTLS(split.tls, "", "") })
	} else {
		split.tls.Close()
	}
	group.Go(func() error {
		<-ctx.Done()
		defer unwatch()
		g.drain()
		g.listener.Close()
		drain, cancel := context.WithTimeout(context.Background(), g.Limits.Drain)
		defer cancel()
		var shut errgroup.Group
		for _, server := range []*http.Server{plain, secure} {
			shut.Go(func() error {
				if err := server.Shutdown(drain); err != nil {
					g.Log.Warn("requests were cut off at shutdown", "after", g.Limits.Drain)
					cut(errDrained)
					server.Close()
				}
				return nil
			})
		}
		return shut.Wait()
	})
	return group.Wait()
}

// errDrained ends requests that were still under way after the drain.
var errDrained = fmt.Errorf("the node stops: %w", meta.ErrUnavailable)

func (g *Gateway) server() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           g.Handler(),
		Protocols:         protocols,
		ConnContext:       withConn,
		ConnState:         g.peers.state,
		ReadHeaderTimeout: g.Limits.Header,
		IdleTimeout:       g.Limits.Idle,
		MaxHeaderBytes:    g.Limits.HeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250,
			// A layer is pushed over one stream: its window, not the link, would be
			// the limit at 64 KiB.
			MaxReceiveBufferPerStream:     4 << 20,
			MaxReceiveBufferPerConnection: 16 << 20,
			MaxReadFrameSize:              256 << 10,
			SendPingTimeout:               15 * time.Second,
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              g.Limits.Stall,
		},
		ErrorLog: slog.NewLogLogger(debugHandler{g.Log.Handler()}, slog.LevelDebug),
	}
}

// debugHandler keeps net/http's remarks about clients (bad handshakes, resets)
// at debug: no operator acts on them.
type debugHandler struct{ slog.Handler }

// Handle implements slog.Handler.
func (h debugHandler) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, slog.LevelDebug, "http server", r.PC)
	out.AddAttrs(slog.String("error", strings.TrimSpace(r.Message)))
	if !h.Enabled(ctx, slog.LevelDebug) {
		return nil
	}
	return h.Handler.Handle(ctx, out)
}
