package transfer

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	local, fetched     total
	healed, mismatches prometheus.Counter
	readers            prometheus.Gauge
}

// total is a counter that can be read, too.
type total struct {
	counter prometheus.Counter
	sum     atomic.Int64
}

func (t *total) add(n int) {
	t.counter.Add(float64(n))
	t.sum.Add(int64(n))
}

// Reads returns how many bytes were read since the start: of blobs that were here, and
// of blobs that were arriving.
func (c *Content) Reads() (local, fetched int64) {
	return c.metrics.local.sum.Load(), c.metrics.fetched.sum.Load()
}

func newMetrics(r prometheus.Registerer) *metrics {
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "transfer", Name: "read_bytes_total",
		Help: "Bytes read by clients and checks: of blobs that were here (local), or that were arriving (fetched)."}, []string{"source"})
	m := &metrics{
		local: total{counter: bytes.WithLabelValues("local")}, fetched: total{counter: bytes.WithLabelValues("fetched")},
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
