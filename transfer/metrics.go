package transfer

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	local, fetched, healed, mismatches prometheus.Counter
	readers                            prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "transfer", Name: "read_bytes_total",
		Help: "Bytes read by clients and checks: of blobs that were here (local), or that were arriving (fetched)."}, []string{"source"})
	m := &metrics{
		local: bytes.WithLabelValues("local"), fetched: bytes.WithLabelValues("fetched"),
		healed: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "transfer", Name: "healed_chunks_total",
			Help: "Chunks fetched again because the local copy was damaged or gone."}),
		mismatches: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "transfer", Name: "digest_mismatches_total",
			Help: "Blobs whose chunks were right but whose sha256 was not."}),
		readers: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "shoal", Subsystem: "transfer", Name: "readers",
			Help: "Open readers of blobs."}),
	}
	if r != nil {
		r.MustRegister(bytes, m.healed, m.mismatches, m.readers)
	}
	return m
}
