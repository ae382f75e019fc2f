package node

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/node/health"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/store"
)

// watchHealth makes a server's part in the health of regions: its word on itself, and
// its judgement of all while it leads.
func (n *Node) watchHealth(records *raftmeta.Store, disk *store.Disk) (*health.Self, error) {
	me := n.id.Node
	copies := health.Copies{Server: me.ID, Metadata: records, Doer: records, Holds: held(disk)}
	self := health.NewSelf(health.SelfConfig{
		Node: me, Metadata: records, Doer: records, Probe: disk.Probe, Check: copies.Check, Log: n.log,
	})
	n.parts.Add("own health", self.Run)
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
	return self, n.metrics.Register(&healthMetrics{metadata: records})
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
