package node

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/gateway"
	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/quota"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// openQuota opens the quotas of tenants. records is nil on an agent, which reports to a
// server of its region; a server reports to the leader.
func (n *Node) openQuota(records *raftmeta.Store) (err error) {
	client := &http.Client{Transport: n.transport()}
	c := quota.Config{
		Self: n.ID(), Metadata: n.metadata, Fresh: meta.Bounded, Log: n.log, Metrics: n.metrics,
		Nodes: (&census{nodes: n.swarmHost.Nodes}).count,
		Above: func(ctx context.Context, r *quota.Report) (*quota.Answer, bool, error) {
			var failed error = &quota.UnsentError{Cause: &meta.UnavailableError{Reason: "no_server"}}
			for _, url := range n.serverURLs(n.Region()) {
				answer, err := quota.Tell(ctx, client, url, r)
				if err == nil || !quota.Unsent(err) || ctx.Err() != nil {
					return answer, false, err
				}
				failed = err
			}
			return nil, false, failed
		},
	}
	if records != nil {
		c.Doer, c.Fresh = records, meta.Local
		c.Above = func(ctx context.Context, r *quota.Report) (*quota.Answer, bool, error) {
			leader := records.Leader()
			if leader == n.ID() {
				return nil, true, nil
			}
			known, ok := n.swarmHost.Node(leader)
			if !ok {
				return nil, false, &quota.UnsentError{Cause: &meta.NotLeaderError{}}
			}
			answer, err := quota.Tell(ctx, client, "https://"+known.Gateway, r)
			return answer, false, err
		}
	}
	if n.quota, err = quota.New(c); err != nil {
		return err
	}
	n.parts.Add("quota", n.quota.Run)
	if records != nil {
		n.metrics.MustRegister(&quotaMetrics{records})
		keeper := usageKeeper{
			metadata: records, doer: records, self: n.ID(), log: n.log,
			leads: func() bool { return records.Leader() == n.ID() }, watch: records,
		}
		n.parts.Add("usage", keeper.run)
		n.parts.Add("thresholds", keeper.say)
	}
	return nil
}

// census counts the nodes of the roster, now and then: it may have thousands.
type census struct {
	nodes func(meta.RegionName, meta.Role) []meta.Node

	mu              sync.Mutex
	at              time.Time
	servers, agents int
}

// censusEvery is how long a count is used.
const censusEvery = 5 * time.Second

// count returns how many nodes may serve a call: those that publish only servers do. An
// agent knows the agents of its own region.
func (c *census) count(publish bool) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.at) > censusEvery {
		c.at, c.servers, c.agents = now, len(c.nodes("", meta.RoleServer)), len(c.nodes("", meta.RoleAgent))
	}
	if publish {
		return c.servers
	}
	return c.servers + c.agents
}

// quotaMount takes the reports of other nodes.
func (n *Node) quotaMount(records *raftmeta.Store) gateway.Mount {
	return gateway.Mount{
		Name: "quota", Pattern: quota.Path, Methods: []string{http.MethodPost}, Action: access.NodeOnly,
		Serve: func(c *protocol.Call) error { return n.quota.Serve(c, records.Leader() == n.ID()) },
	}
}

// quotaMetrics tells how much of their quotas tenants use when it is asked for.
type quotaMetrics struct{ metadata raftmeta.Asker }

// maxQuotaSeries bounds the tenants with series of their own.
const maxQuotaSeries = 200

var (
	quotaUsedDesc = prometheus.NewDesc("shoal_tenant_quota_used_ratio",
		"How much of a quota (storage, egress) a tenant uses, 1 is all; the first 200 tenants that have one.", []string{"tenant", "quota"}, nil)
	tenantBytesDesc = prometheus.NewDesc("shoal_tenant_storage_bytes",
		"What the repositories of a tenant hold, each blob once a repository; the first 200 tenants.", []string{"tenant"}, nil)
)

// Describe implements prometheus.Collector.
func (m *quotaMetrics) Describe(to chan<- *prometheus.Desc) {
	to <- quotaUsedDesc
	to <- tenantBytesDesc
}

// Collect implements prometheus.Collector. Without metadata it says nothing.
func (m *quotaMetrics) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	all, _, err := raftmeta.Ask(ctx, m.metadata, meta.Local, state.ListUsage{})
	if err != nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	bounded := 0
	for i, u := range all {
		l, tenant := u.Tenant.Limits, string(u.Tenant.Name)
		if i < maxQuotaSeries {
			gauge(tenantBytesDesc, float64(u.Bytes), tenant)
		}
		if l.StorageBytes == 0 && l.EgressBytes == 0 || bounded == maxQuotaSeries {
			continue
		}
		bounded++
		if l.StorageBytes > 0 {
			gauge(quotaUsedDesc, float64(u.Bytes)/float64(l.StorageBytes), tenant, "storage")
		}
		if l.EgressBytes > 0 {
			gauge(quotaUsedDesc, float64(u.Egress.In(l.EgressPeriod, meta.TimeOf(time.Now())))/float64(l.EgressBytes), tenant, "egress")
		}
	}
}

// usageKeeper has tenants of before cluster level 5 counted, and tells operators of
// thresholds; both at the leader only.
type usageKeeper struct {
	metadata raftmeta.Asker
	doer     raftmeta.Doer
	watch    raftmeta.Watcher
	self     meta.NodeID
	leads    func() bool
	log      *slog.Logger
}

// uncountedEvery is how often the leader looks for tenants that are not counted;
// recountLimit is how many links a command reads.
const (
	uncountedEvery = 10 * time.Second
	recountLimit   = 500
)

func (k usageKeeper) run(ctx context.Context) error {
	tick := time.NewTicker(uncountedEvery)
	defer tick.Stop()
	for {
		if k.leads() {
			if err := k.count(ctx); err != nil && ctx.Err() == nil {
				k.log.Debug("tenants are not counted yet, trying again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// count counts all tenants that are not counted, while this server leads.
func (k usageKeeper) count(ctx context.Context) error {
	tenants, _, err := raftmeta.Ask(ctx, k.metadata, meta.Local, state.Uncounted{})
	if err != nil {
		return err
	}
	for _, tenant := range tenants {
		for more := true; more && k.leads(); {
			receipt, err := k.doer.Do(ctx, state.Origin{Principal: "node:" + string(k.self)}, state.RecountUsage{Tenant: tenant, Limit: recountLimit})
			if err != nil {
				return err
			}
			r, _ := receipt.Value.(state.RecountResult)
			if more = r.More; !more {
				k.log.Info("the storage of a tenant is counted", "tenant", string(tenant), "bytes", r.Bytes, "blobs", r.Blobs, "drift_bytes", r.Drift)
			}
		}
	}
	return nil
}

// say logs, once each, that a tenant has passed a threshold of a quota. It begins with
// what comes after the start: what was before is in `shoal usage`.
func (k usageKeeper) say(ctx context.Context) error {
	for began, after := false, uint64(0); ; {
		if !began {
			_, asOf, err := raftmeta.Ask(ctx, k.metadata, meta.Local, state.GetLevel{})
			began, after = err == nil, asOf.Index
		}
		if began {
			for c, err := range k.watch.Watch(ctx, after) {
				if err != nil {
					began = !errors.Is(err, feed.ErrCompacted)
					break
				}
				after = max(after, c.Index)
				if c.Kind == feed.KindQuota && k.leads() {
					k.tell(ctx, meta.TenantName(c.Name))
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (k usageKeeper) tell(ctx context.Context, tenant meta.TenantName) {
	u, _, err := raftmeta.Ask(ctx, k.metadata, meta.Local, state.GetUsage{Tenant: tenant})
	if err != nil {
		return
	}
	l := u.Tenant.Limits
	level := slog.LevelInfo
	if max(u.Storage, u.EgressState) > meta.BelowQuota {
		level = slog.LevelWarn
	}
	k.log.Log(ctx, level, "a tenant passed a threshold of its quotas", "tenant", string(tenant),
		"storage", u.Storage.String(), "storage_bytes", u.Bytes, "storage_quota_bytes", l.StorageBytes,
		"egress", u.EgressState.String(), "egress_bytes", u.Egress.In(l.EgressPeriod, meta.TimeOf(time.Now())), "egress_quota_bytes", l.EgressBytes)
}
