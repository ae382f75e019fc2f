package node

import (
	"context"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/dht"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/login"
	"github.com/shoal-registry/shoal/node/cache"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/remote"
	"github.com/shoal-registry/shoal/transfer"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/swarm"
	"github.com/shoal-registry/shoal/transfer/wave"
	"github.com/shoal-registry/shoal/verify/digest"
	"github.com/shoal-registry/shoal/verify/trust"
)

// degradedRead is how long peers honour an expired grant while no server is
// reachable (design.md, Swarm: degraded_read_max).
const degradedRead = 15 * time.Minute

// firstHead bounds how long an agent waits for the revocation head before it is ready:
// servers that are silent must not hold up what goes without them.
const firstHead = 3 * time.Second

// agentReadBytes bounds the chunks that an agent's clients hold, to keep within what a
// host has to spare: transfer/DESIGN.md, Memory of an agent.
const agentReadBytes = 64 << 20

func (n *Node) buildAgent(ctx context.Context) error {
	// Listening comes first: the node has to say in the roster where it is reached.
	if err := n.listenSwarm(); err != nil {
		return err
	}
	record := func() meta.Node { return n.record(nil) }
	if n.id == nil {
		if err := n.enter(ctx, record()); err != nil {
			return err
		}
	}
	if err := n.trusted(); err != nil {
		return err
	}
	me := n.id.Node
	log := n.log.With("region", me.Region)

	// Metadata.
	servers := remote.NewClient(remote.Config{
		HTTP: &http.Client{Transport: n.transport()}, Servers: func() []string { return n.serverURLs(me.Region) },
		Silent: n.doubt,
	})
	near := newNearness(n.swarmHost, me)
	n.distanceTo = near.to
	n.parts.Add("distances", near.run)
	mirror, err := raftmeta.OpenMirror(raftmeta.MirrorConfig{
		Dir: filepath.Join(n.cfg.Data, "mirror"), Region: me.Region, Log: log, Metrics: n.metrics,
		Upstream: servers,
	})
	if err != nil {
		return err
	}
	n.closes(mirror.Close)
	n.metadata = mirror
	n.parts.Add("metadata", mirror.Run)
	n.swarmHost.SetRoster(append(slices.Clone(n.id.Servers), me))
	admit(mirror.Roster(), n.swarmHost)
	n.serves = mirror.Roster().Serves
	lease, err := remote.OpenLease(remote.LeaseConfig{
		Client: servers, Cluster: n.id.Cluster, IsServer: n.isServer, File: filepath.Join(n.cfg.Data, "head"),
		Log: log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.head = lease
	n.parts.Add("revocation head", lease.Run)

	// Bytes.
	var discovery *dht.Finder // there when the store runs, and evicts
	disk, err := store.OpenDisk(store.DiskConfig{
		Dir: n.blobsDir(), CacheBytes: int64(n.cfg.CacheBytes), HotBytes: int64(n.cfg.HotBytes),
		Reserve: int64(n.cfg.Reserve), Last: func(root digest.CID) bool { return discovery.OnlyCopy(root) },
		Log: log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.closes(disk.Close)
	n.parts.Add("store", disk.Run)

	// Who has what.
	regional, err := n.kademlia(me.Region)
	if err != nil {
		return err
	}
	discovery, err = dht.NewFinder(dht.FinderConfig{
		Host: n.swarmHost, Cluster: n.id.Cluster, Self: me, Roster: n.swarmHost, DHT: regional,
		Held: disk.Holds, Grants: filepath.Join(n.cfg.Data, "grants"), Log: log, Metrics: n.metrics,
		Distance: near.to, Serves: n.serves,
	})
	if err != nil {
		return err
	}
	n.parts.Add("finder", discovery.Run)
	swarms, err := swarm.New(swarm.Config{
		Host: n.swarmHost, Outlet: outlet(n.swarmHost), Cluster: n.id.Cluster, Self: self(me), Store: disk, Finder: finder{discovery},
		Budgets: n.budgets, Yield: n.cfg.Yield, TenantOf: trust.ContextOf,
		Authorizer: n.checker(func() time.Duration {
			if discovery.Reachable() {
				return 0
			}
			return degradedRead
		}),
		Report: discovery.Report,
		Log:    log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.parts.Add("swarm", swarms.Run)
	n.parts.Add("rescue", rescue{
		metadata: mirror, store: disk, finder: discovery, lost: mirror.Lost(), spread: rescueSpread, log: log,
	}.run)
	bytes, err := transfer.New(transfer.Config{Store: disk, Fetcher: transfer.Swarm(swarms), CheckLocal: true, ReadBytes: agentReadBytes, Log: log, Metrics: n.metrics})
	if err != nil {
		return err
	}

	// Clients.
	host := access.HostPrincipal(me)
	policy := access.Policy{AllowAnonymous: n.cfg.Dev, Host: &host}
	uses := login.NewUses()
	n.used = uses.Used
	n.parts.Add("uses", n.reportUses(uses, &http.Client{Transport: n.transport()}))
	gate, err := n.gate(policy)
	if err != nil {
		return err
	}
	seen, soon := newNames(nil), newAhead(mirror, discovery.Prepare, log)
	n.parts.Add("look ahead", soon.run)
	n.views["swarm"] = n.view(swarms, seen, discovery.Reachable, nil)
	n.handlers[cache.Path] = cache.Handler(cache.Config{Disk: disk, Name: seen.name, Reads: bytes.Reads})
	if err := n.openQuota(nil); err != nil {
		return err
	}
	names, err := catalog.New(catalog.Config{
		Metadata: mirror, Content: catalog.FromTransfer(bytes), May: access.OfRepository,
		Node: me.ID, Region: me.Region, Metrics: n.metrics, Log: log,
		Asked: func(b meta.Blob, repo meta.RepoRef, d digest.Digest) {
			seen.note(b, repo, d)
			soon.note(repo, d)
		},
		Served: soon.served,
	})
	if err != nil {
		return err
	}
	proxies, err := n.openProxies(names, nil)
	if err != nil {
		return err
	}
	pages, err := n.pages(pageReserve(n.cfg.Data, n.blobsDir(), int64(n.cfg.Reserve)))
	if err != nil {
		return err
	}
	speaks := protocols(names, pages, proxies, nil)
	if err := n.followAudit(mirror, log); err != nil {
		return err
	}
	api, err := n.api(mirror, admin.Config{})
	if err != nil {
		return err
	}
	if err := n.openGateway(gate, append(speaks, api, n.npmLogin(gate)), nil, mirror.Wrote, nil); err != nil {
		return err
	}
	evict(mirror.Roster(), n.gateway)
	waves, err := wave.NewAgent(wave.AgentConfig{
		Servers: servers, News: mirror.Waves(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Expander: expander{names: names, formats: packages(speaks), metadata: mirror, host: host, readable: access.Readable},
		Content:  warmed{bytes, disk}, Log: log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.parts.Add("waves", waves.Run)
	n.parts.Add("certificate", func(ctx context.Context) error {
		return n.cred.Run(ctx, n.renew(record), n.keepPapers, n.renewalFailed)
	})
	n.parts.Add("succession", succession{
		node: n, news: mirror.Cluster(), every: time.Minute,
		spread: func() time.Duration { return time.Duration(len(mirror.Roster().Nodes())) * spreadEach },
	}.run)
	n.parts.Add("standing", n.watchStanding(30*time.Second))
	n.parts.Add("readiness", func(ctx context.Context) error {
		// What was known last is enough to serve what is here.
		if err := n.awaitMetadata(ctx, meta.Local); err != nil {
			return err
		}
		// Who asks at once must not find a node that knows nothing of revocations yet.
		select {
		case <-lease.Tried():
		case <-time.After(firstHead):
		case <-ctx.Done():
			return nil
		}
		close(n.ready)
		if !sameAddresses(me, record()) {
			if _, err := n.renew(record)(ctx); err != nil {
				log.Warn("the cluster was not told of this agent's new addresses", "error", err)
			}
		}
		<-ctx.Done()
		return nil
	})
	return n.openOps()
}

// doubt has the forwarder find out whether a server that lets a question about the
// metadata wait lives, so that requests for it need not wait as well.
func (n *Node) doubt(url string) {
	f := n.forward.Load()
	if f == nil {
		return // the node is starting
	}
	for _, s := range n.swarmHost.Nodes("", meta.RoleServer) {
		if "https://"+s.Gateway == url {
			f.Doubt(s.ID)
		}
	}
}
