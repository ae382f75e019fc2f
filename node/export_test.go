package node

import (
	"context"
	"io"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Statuses by which the route walk knows how far a request came.
const (
	WalkServed    = 298
	WalkForwarded = 297
)

// WalkRoute is the header with the name of the route that was reached.
const WalkRoute = "Walk-Route"

// Walked is the node's own gateway, table and gate, without what lies behind: a request
// that is let through is answered with WalkServed, one that goes to another node with
// WalkForwarded. It does as a node of production, whatever this one is.
func (n *Node) Walked() (*gateway.Gateway, error) {
	config := n.gateway.Config
	policy := access.Policy{Host: config.Gate.Policy.Host}
	gate, err := n.gate(policy)
	if err != nil {
		return nil, err
	}
	config.Gate, config.Forward, config.Listen = gate, walkForwarder{}, "127.0.0.1:0"
	config.Elsewhere, config.Leaving, config.Writable, config.Quota, config.Trail = nil, nil, nil, nil, nil
	config.Log, config.Metrics = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	var speaks []protocol.Protocol
	for _, p := range config.Protocols {
		speaks = append(speaks, walkedProtocol{p})
	}
	config.Protocols = speaks
	var mounts []gateway.Mount
	for _, m := range config.Mounts {
		m.Serve = func(c *protocol.Call) error { return walkServe(m.Name)(c) }
		mounts = append(mounts, m)
	}
	config.Mounts = mounts
	return gateway.New(config)
}

// WalkDo applies a command on a server.
func (n *Node) WalkDo(ctx context.Context, c state.Command) (any, error) {
	receipt, err := n.doer.Do(ctx, state.Origin{Principal: "admin:bootstrap"}, c)
	return receipt.Value, err
}

// WalkPapers are the node's own.
func (n *Node) WalkPapers() trust.Papers { return n.cred.Papers() }

type walkedProtocol struct{ protocol.Protocol }

func (p walkedProtocol) Routes() []protocol.Route {
	routes := p.Protocol.Routes()
	for i := range routes {
		routes[i].Serve = walkServe(routes[i].Name)
	}
	return routes
}

func walkServe(name string) func(*protocol.Call) error {
	return func(c *protocol.Call) error {
		// A client that sends goes on when its body was taken.
		_, _ = io.Copy(io.Discard, c.R.Body)
		c.W.Header().Set(WalkRoute, name)
		c.W.WriteHeader(WalkServed)
		return nil
	}
}

type walkForwarder struct{}

func (walkForwarder) Server(w http.ResponseWriter, _ *http.Request) error {
	w.WriteHeader(WalkForwarded)
	return nil
}

func (f walkForwarder) Node(w http.ResponseWriter, r *http.Request, _ meta.NodeID) error {
	return f.Server(w, r)
}
