package node

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/shoal-registry/shoal/dht"
	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin"
	"github.com/shoal-registry/shoal/gateway/ops"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/node/limits"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
	"github.com/shoal-registry/shoal/verify/trust"
)

// What servers and agents are built of alike.

func (n *Node) blobsDir() string {
	if n.cfg.Blobs != "" && !config.IsBucket(n.cfg.Blobs) {
		return n.cfg.Blobs
	}
	return filepath.Join(n.cfg.Data, "blobs")
}

// kademlia opens the DHT of each region given; "" is that of all servers.
func (n *Node) kademlia(region meta.RegionName) (*dht.DHT, error) {
	d, err := dht.NewDHT(dht.DHTConfig{
		Host: n.swarmHost, Cluster: n.id.Cluster, Region: region, Self: n.ID(), Roster: n.swarmHost, Log: n.log,
		Refused: func(meta.NodeID) { n.strangers.Inc() },
	})
	if err != nil {
		return nil, err
	}
	name := "dht of the servers"
	if region != "" {
		name = "dht of the region"
	}
	n.parts.Add(name, d.Run)
	return d, nil
}

// openLimits opens the bandwidth budgets, which apply to what the swarm moves.
func (n *Node) openLimits() (err error) {
	if n.budgets, err = limit.New(limit.Config{Metrics: n.metrics}); err != nil {
		return err
	}
	n.limits, err = limits.Open(limits.Config{
		Configured: n.cfg.Limits, Budgets: n.budgets,
		File: filepath.Join(n.cfg.Data, "limits.json"), Write: WriteFileAtomic, Log: n.log,
	})
	return err
}

// held reports whether a blob is still, whole, in the store.
func held(s store.Store) func(context.Context, digest.CID) bool {
	return func(ctx context.Context, root digest.CID) bool {
		b, err := s.Open(ctx, root)
		if err != nil {
			return false
		}
		defer b.Close()
		return b.Complete()
	}
}

// transport connects to the gateways of other nodes with this node's certificate.
func (n *Node) transport() *http.Transport {
	t := transportWith(trust.ClientTLS(n.cred))
	n.closes(func() error {
		t.CloseIdleConnections()
		return nil
	})
	return t
}

// transportWith gives up, after 10 s, a connection on which nothing comes any more. One
// carries all that is asked of a server, and a kernel tries for a quarter of an hour to
// send over a way that was cut, with pauses of minutes: a node would be alone for as long
// after it was joined to the others again.
func transportWith(config *tls.Config) *http.Transport {
	const quiet = 5 * time.Second
	return &http.Transport{
		TLSClientConfig: config, ForceAttemptHTTP2: true,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 16,
		HTTP2: &http.HTTP2Config{SendPingTimeout: quiet, PingTimeout: quiet, WriteByteTimeout: 2 * quiet},
	}
}

// gate builds the one gate that every request passes.
func (n *Node) gate(policy access.Policy) (*access.Gate, error) {
	return access.New(access.Config{
		Self: n.ID(), Key: n.key.Private(), KeyOf: trust.PublicKeyOf, Identify: n.identify,
		Metadata: access.Records{Asker: n.metadata}, Policy: policy, Head: n.head, Plain: n.cfg.Plain,
	})
}

// api completes the admin API's configuration.
func (n *Node) api(m raftmeta.Asker, c admin.Config) (*admin.API, error) {
	c.Self, c.Version, c.Metadata, c.Formats = n.id.Node, n.cfg.Version, m, formats()
	c.Trail, c.Audited = n.trail, n.audited.trouble
	return admin.New(c)
}

func (n *Node) openGateway(gate *access.Gate, speaks []protocol.Protocol, mounts []gateway.Mount, wrote func(meta.Token), writable func() error) error {
	n.setMirrors(speaks)
	forward, err := n.forwarder()
	if err != nil {
		return err
	}
	n.forward.Store(forward)
	tlsConfig, err := n.gatewayTLS()
	if err != nil {
		return err
	}
	var logins gateway.Login // nil on agents, which send such calls on
	if n.logins != nil {
		logins = n.logins
	}
	n.gateway, err = gateway.New(gateway.Config{
		Quota: n.quota,
		Login: logins,
		Self:  n.ID(), Role: n.cfg.Role, Listen: n.cfg.Gateway, Protocols: speaks, Mounts: mounts,
		Elsewhere: n.elsewhere(), Leaving: func() bool { return n.drains(n.ID()) },
		Head: n.head,
		Gate: gate, Repositories: access.Records{Asker: n.metadata}, Forward: forward, Wrote: wrote, Writable: writable,
		TLS: tlsConfig, Plain: n.cfg.Plain, Trail: n.trail, TLSOnly: n.cfg.LoopbackTLS, Log: n.log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.closes(func() error {
		// A gateway that ran has closed its port itself.
		n.gateway.Close()
		return nil
	})
	n.parts.Add("gateway", n.gateway.Run)
	return nil
}

func (n *Node) openOps() error {
	n.checks = append(n.checks,
		ops.Check{Name: "serving", Probe: func(context.Context) error {
			select {
			case <-n.ready:
				return nil
			default:
				return errors.New("the node is still starting: its metadata has not answered yet")
			}
		}},
		ops.Check{Name: "metadata", Probe: func(ctx context.Context) error {
			_, _, err := raftmeta.Ask(ctx, n.metadata, meta.Local, state.GetCluster{})
			return err
		}},
	)
	n.handlers[limits.Path] = n.limits.Handler()
	server, err := ops.New(ops.Config{
		Listen: n.cfg.Ops, Metrics: n.metrics, Checks: n.checks, Views: n.views, Log: n.log,
		Handlers: n.handlers,
	})
	if err != nil {
		return err
	}
	n.closes(func() error {
		server.Close()
		return nil
	})
	n.parts.Add("ops", server.Run)
	return nil
}

// awaitMetadata waits until the metadata answers as freshly as f says.
func (n *Node) awaitMetadata(ctx context.Context, f meta.Freshness) error {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		_, _, err := raftmeta.Ask(ctx, n.metadata, f, state.GetCluster{})
		if err == nil {
			return nil
		}
		n.log.Debug("the metadata does not answer yet", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
