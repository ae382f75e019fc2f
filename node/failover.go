package node

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/node/health"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// watchHealth makes a server's part in the health of regions: its word on itself, and
// its judgement of all while it leads.
func (n *Node) watchHealth(records *raftmeta.Store, kept *blobs) error {
	me := n.id.Node
	copies := health.Copies{Server: kept.holder, Self: me.ID, Metadata: records, Doer: records, Look: func(ctx context.Context, root digest.CID) (bool, error) {
		looked, err := kept.Look(ctx, root)
		return looked.Whole, err
	}}
	n.fares = health.NewSelf(health.SelfConfig{
		Node: me, Metadata: records, Doer: records, Probe: kept.Probe, Check: copies.Check, Log: n.log,
	})
	n.parts.Add("own health", n.fares.Run)
	leader := health.Leader{
		Self: me.ID, Timing: health.Timings[n.cfg.RaftProfile], Metadata: records, Doer: records, Log: n.log,
		Leads:   func() bool { return records.Leader() == me.ID },
		Servers: func() []meta.Node { return n.swarmHost.Nodes("", meta.RoleServer) },
		Sights: func(ctx context.Context) (all []health.Sight) {
			for _, v := range records.Views(ctx) {
				for _, s := range v.Sights {
					all = append(all, health.Sight{By: v.From, Of: s.Server, Ago: s.Heard, RTT: s.RTT})
				}
			}
			return all
		},
	}
	if leader.Timing == (health.Timing{}) {
		leader.Timing = health.Timings["site"]
	}
	n.parts.Add("health of regions", leader.Run)
	return n.metrics.Register(&healthMetrics{metadata: records})
}

// elsewhere says when this node's gateway is to send on what needs blobs.
func (n *Node) elsewhere() func() bool {
	if n.fares == nil {
		return nil
	}
	return n.fares.Failing
}

// serverURLs lists the servers' gateways in the order in which this node asks them: its
// region's, then those of the others by distance, those that are recorded not to serve
// last. Among equal ones each node has an order of its own, so that they spread over
// servers and stay with one.
func (n *Node) serverURLs(region meta.RegionName) []string {
	servers := slices.Clone(n.swarmHost.Nodes("", meta.RoleServer)) // which is everybody's
	servers = slices.DeleteFunc(servers, func(s meta.Node) bool { return s.Gateway == "" })
	rank := make(map[string]int, len(servers))
	for i, url := range raftmeta.NewRoster(servers).Gateways(n.ID(), region) {
		rank[url] = i
	}
	type place struct {
		class int
		away  time.Duration
		rank  int
		url   string
	}
	places := make([]place, len(servers))
	for i, s := range servers {
		p := place{url: "https://" + s.Gateway}
		p.rank = rank[p.url]
		if s.Region != region {
			p.class, p.away = 1, cmp.Or(n.distanceTo(s.Region), time.Hour)
		}
		if !n.serves(s.ID) {
			p.class = 2
		}
		places[i] = p
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.away, b.away), cmp.Compare(a.rank, b.rank))
	})
	urls := make([]string, len(places))
	for i, p := range places {
		urls[i] = p.url
	}
	return urls
}

// healthMetrics tells the recorded health of regions when it is asked for.
type healthMetrics struct{ metadata raftmeta.Asker }

var (
	healthDesc = prometheus.NewDesc("shoal_region_health",
		"How a region fares, as recorded: 0 healthy, 1 degraded, 2 down.", []string{"region"}, nil)
	incidentDesc = prometheus.NewDesc("shoal_region_incident_seconds",
		"For how long the open incident of a region has lasted; 0 without one.", []string{"region", "kind"}, nil)
	uncheckedDesc = prometheus.NewDesc("shoal_region_unchecked_servers",
		"Servers of a region whose copies do not count until they have looked whether they are there.", []string{"region"}, nil)
)

// Describe implements prometheus.Collector.
func (m *healthMetrics) Describe(to chan<- *prometheus.Desc) {
	to <- healthDesc
	to <- incidentDesc
	to <- uncheckedDesc
}

// Collect implements prometheus.Collector. Without metadata it says nothing.
func (m *healthMetrics) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	all, _, err := raftmeta.Ask(ctx, m.metadata, meta.Local, state.RegionHealth{})
	if err != nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	const most = 200 // regions with series of their own
	for _, h := range all[:min(len(all), most)] {
		region := string(h.Region)
		gauge(healthDesc, map[meta.HealthState]float64{meta.HealthDegraded: 1, meta.HealthDown: 2}[h.State], region)
		lasts := 0.0
		if h.Incident != 0 && h.State != meta.HealthHealthy {
			lasts = time.Since(h.Since.Std()).Seconds()
		}
		gauge(incidentDesc, lasts, region, string(h.Kind))
		unchecked := 0
		for _, s := range h.Servers {
			if s.Unchecked != 0 {
				unchecked++
			}
		}
		gauge(uncheckedDesc, float64(unchecked), region)
	}
}
