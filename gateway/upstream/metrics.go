package upstream

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

type metrics struct {
	answers  *prometheus.CounterVec
	requests *prometheus.CounterVec
	bytes    prometheus.Counter
	flying   prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_upstream_answers_total",
			Help: "What proxies answered with: known and absent (nobody was asked), fetched, coalesced (with another's request), stale (the upstream could not be asked).",
		}, []string{"from"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_upstream_requests_total",
			Help: "Requests to upstreams by what came of them: bytes, unchanged, absent, refused, failed, unusable, mismatch, unnamed (an agent asked for what no document names, nobody was asked).",
		}, []string{"result"}),
		bytes:  prometheus.NewCounter(prometheus.CounterOpts{Name: "shoal_upstream_bytes_total", Help: "Bytes that came from upstreams."}),
		flying: prometheus.NewGauge(prometheus.GaugeOpts{Name: "shoal_upstream_downloads", Help: "Downloads from upstreams under way or waiting for a place."}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.answers, m.requests, m.bytes, m.flying} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("metrics of the proxy engine: %w: %w", err, meta.ErrInvalid)
		}
	}
	return m, nil
}
