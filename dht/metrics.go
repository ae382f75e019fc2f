package dht

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type registrarMetrics struct {
	requests *prometheus.CounterVec
	full     prometheus.Counter
	reports  *prometheus.CounterVec
}

func newRegistrarMetrics(reg prometheus.Registerer, size func() (roots, members, complete int), shunned func() int) (*registrarMetrics, error) {
	m := &registrarMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_registrar_requests_total",
			Help: "Requests to this server's registrar by outcome: answered, not_found, busy, kept_away, lost, failed, malformed, refused_stream.",
		}, []string{"outcome"}),
		full: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_registrar_unrecorded_total",
			Help: "Members answered but not recorded because the table is full.",
		}),
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_peer_reports_total",
			Help: "Reports that a peer sent a wrong chunk, by what they led to: noted, repeated, shunned, ignored.",
		}, []string{"verdict"}),
	}
	if reg == nil {
		return m, nil
	}
	gauge := func(name, help string, value func() int) error {
		return reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return float64(value()) }))
	}
	return m, errors.Join(reg.Register(m.requests), reg.Register(m.full), reg.Register(m.reports),
		gauge("shoal_peers_shunned", "Peers introduced to nobody, because two nodes reported wrong chunks of theirs.", shunned),
		gauge("shoal_registrar_roots", "Blobs with at least one member.", func() int { n, _, _ := size(); return n }),
		gauge("shoal_registrar_complete_members", "Memberships of nodes that have every chunk: the share of shoal_registrar_members is how far the region's swarms are.",
			func() int { _, _, n := size(); return n }),
		gauge("shoal_registrar_members", "Memberships under lease.", func() int { _, n, _ := size(); return n }))
}

type finderMetrics struct {
	joins   *prometheus.CounterVec
	lookups *prometheus.CounterVec
}

func newFinderMetrics(reg prometheus.Registerer) (*finderMetrics, error) {
	m := &finderMetrics{
		joins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_finder_joins_total",
			Help: "Introductions asked for, by who gave them: registrar, dht, beyond (a server of another region), metadata, nobody.",
		}, []string{"source"}),
		lookups: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_finder_server_failures_total",
			Help: "Calls to a server's registrar that failed, by reason: busy, silent.",
		}, []string{"reason"}),
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.joins), reg.Register(m.lookups))
}
