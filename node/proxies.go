package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/outbound"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// openProxies makes the proxy engine; doer is nil on an agent, which asks servers.
func (n *Node) openProxies(names *catalog.Catalog, doer raftmeta.Doer) (*upstream.Engine, error) {
	cfg := upstream.Config{
		Catalog: names, Metadata: n.metadata, Commands: doer, Self: n.ID(),
		Peers:    upstreamPeers{n, &http.Client{Transport: n.transport()}},
		Outgoing: outbound.Rules{Allow: n.cfg.OutgoingAllow}, Metrics: n.metrics, Log: n.log,
	}
	if doer != nil {
		cfg.Secrets = sealed{metadata: n.metadata, self: n.ID(), key: n.key}.credential
	}
	e, err := upstream.New(cfg)
	if err == nil {
		n.closes(e.Close)
	}
	return e, err
}

// proxiesMount takes what other nodes ask of upstreams.
func (n *Node) proxiesMount(e *upstream.Engine) gateway.Mount {
	return gateway.Mount{
		Name: "upstream_fetch", Pattern: upstream.Path, Methods: []string{http.MethodPost}, Action: access.NodeOnly, Long: true,
		Serve: e.Handler(func(node meta.NodeID, repo *meta.Repository) bool {
			known, ok := n.swarmHost.Node(node)
			return ok && (known.MayHold(repo.Ref.Tenant) || repo.Visibility == meta.VisibilityPublic)
		}),
	}
}

// upstreamPeers are the servers that ask upstreams, as this node sees them.
type upstreamPeers struct {
	node   *Node
	client *http.Client
}

// maxAskedServers bounds the servers that one fetch tries.
const maxAskedServers = 4

// For implements upstream.Peers: the servers of the own region that serve, by rendezvous
// with the key, so that all nodes of the region find the same one first; then those of
// the nearest regions, then the others.
func (p upstreamPeers) For(key string) []meta.NodeID {
	type place struct {
		class  int
		away   time.Duration
		weight uint64
		id     meta.NodeID
	}
	var places []place
	for _, s := range p.node.swarmHost.Nodes("", meta.RoleServer) {
		h := fnv.New64a()
		io.WriteString(h, string(s.ID)+"\x00"+key)
		at := place{weight: h.Sum64(), id: s.ID}
		if s.Region != p.node.id.Node.Region {
			at.class, at.away = 1, cmp.Or(p.node.distanceTo(s.Region), time.Hour)
		}
		if s.Draining != nil || !p.node.serves(s.ID) {
			at.class = 2
		}
		places = append(places, at)
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.away, b.away), cmp.Compare(b.weight, a.weight), cmp.Compare(a.id, b.id))
	})
	ids := make([]meta.NodeID, 0, maxAskedServers)
	for _, at := range places[:min(len(places), maxAskedServers)] {
		ids = append(ids, at.id)
	}
	return ids
}

// Ask implements upstream.Peers.
func (p upstreamPeers) Ask(ctx context.Context, server meta.NodeID, q upstream.Question, told func(upstream.Progress)) (*upstream.Found, error) {
	known, ok := p.node.swarmHost.Node(server)
	if !ok {
		return nil, fmt.Errorf("%w: %s has left", upstream.ErrUnreachable, server)
	}
	return upstream.AskServer(ctx, p.client, "https://"+known.Gateway, q, told)
}

// sealed opens secrets that are sealed to this server.
type sealed struct {
	metadata raftmeta.Asker
	self     meta.NodeID
	key      *trust.Key
}

// open returns a secret of a repository.
//
// Errors: meta.ErrNotFound; meta.ErrUnavailable while it is not sealed to this server.
func (s sealed) open(ctx context.Context, repo meta.RepoRef, name string) ([]byte, meta.Sealed, error) {
	record, _, err := raftmeta.Ask(ctx, s.metadata, meta.Local, state.GetSealed{Repo: repo, Name: name})
	if err != nil {
		return nil, record, err
	}
	seal := record.Seals[s.self]
	if seal == nil {
		return nil, record, fmt.Errorf("secret %s of %s is not sealed to this server yet: %w", name, repo, &meta.UnavailableError{Reason: "not_sealed", RetryAfter: 5 * time.Second})
	}
	secret, err := s.key.Open(seal)
	return secret, record, err
}

func (s sealed) credential(ctx context.Context, repo *meta.Repository) (upstream.Credential, error) {
	secret, record, err := s.open(ctx, repo.Ref, repo.Upstream.Credential)
	if err != nil {
		return upstream.Credential{}, err
	}
	return upstream.OpenCredential(repo, secret, record.Version)
}

// sealer seals the secrets of repositories to servers that joined after they were set.
// Of those that can open one, the first by name that serves does it.
type sealer struct {
	sealed
	doer   raftmeta.Doer
	serves func(meta.NodeID) bool
	every  time.Duration
	log    *slog.Logger
}

func (s sealer) run(ctx context.Context) error {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		if err := s.pass(ctx); err != nil && ctx.Err() == nil {
			s.log.Debug("secrets are not sealed to all servers yet, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// pass looks at all secrets once.
func (s sealer) pass(ctx context.Context) error {
	level, _, err := raftmeta.Ask(ctx, s.metadata, meta.Local, state.GetLevel{})
	if err != nil || level < state.SealedLevel {
		return err
	}
	servers, err := upstream.Sealable(ctx, s.metadata)
	if err != nil {
		return err
	}
	var failed error
	for next := (state.ListSealed{}); ; {
		records, _, err := raftmeta.Ask(ctx, s.metadata, meta.Local, next)
		if err != nil || len(records) == 0 {
			return errors.Join(failed, err)
		}
		for _, r := range records {
			next.AfterRepo, next.AfterName = r.Repo, r.Name
			if s.first(servers, r) {
				failed = errors.Join(failed, s.complete(ctx, servers, r))
			}
		}
	}
}

// first says whether this server is the one that completes the seals of r.
func (s sealer) first(servers []meta.Node, r meta.Sealed) bool {
	for _, n := range servers {
		if r.Seals[n.ID] != nil && (n.ID == s.self || s.serves(n.ID)) {
			return n.ID == s.self
		}
	}
	return false
}

func (s sealer) complete(ctx context.Context, servers []meta.Node, r meta.Sealed) error {
	var secret []byte
	for _, n := range servers {
		if r.Seals[n.ID] != nil {
			continue
		}
		if secret == nil {
			var err error
			if secret, r, err = s.open(ctx, r.Repo, r.Name); err != nil {
				return err
			}
		}
		seal, err := upstream.SealFor(n, secret)
		if err != nil {
			return err
		}
		_, err = s.doer.Do(ctx, state.Origin{Principal: "node:" + string(s.self), Node: s.self},
			state.SealSecret{Repo: r.Repo, Name: r.Name, Version: r.Version, Node: n.ID, Seal: seal})
		if err != nil {
			return err
		}
		s.log.Info("a secret was sealed to a server that lacked it", "repository", r.Repo.String(), "secret", r.Name, "server", n.ID)
	}
	return nil
}

// setMirrors tells the protocols which proxies stand for other registries.
func (n *Node) setMirrors(speaks []protocol.Protocol) {
	for _, p := range speaks {
		m, ok := p.(interface {
			Mirror(host string, proxy meta.RepoRef)
		})
		for host, proxy := range n.cfg.Mirrors {
			if ok {
				m.Mirror(host, proxy)
			}
		}
	}
}
