package bucket

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	sent     prometheus.Counter
	received prometheus.Counter
	corrupt  prometheus.Counter
	removed  prometheus.Counter
	resumed  prometheus.Counter
	all      []prometheus.Collector
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "bucket", Name: name, Help: help})
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "bucket", Name: "requests_total",
			Help: "Requests to the bucket by operation, and outcome: ok, missing, refused (what was there already, or is full) or failed."}, []string{"operation", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "shoal", Subsystem: "bucket", Name: "request_seconds",
			Help: "Time of requests to the bucket; of reads until they begin.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 9)}, []string{"operation"}),
		sent:     counter("sent_bytes_total", "Bytes written to the bucket."),
		received: counter("received_bytes_total", "Bytes read from the bucket."),
		corrupt:  counter("corrupt_chunks_total", "Chunks of objects found damaged."),
		removed:  counter("orphans_removed_total", "Objects and unfinished uploads that nobody needs any more, removed."),
		resumed:  counter("resumed_parts_total", "Parts of objects that an earlier try had uploaded."),
	}
	m.all = []prometheus.Collector{m.requests, m.seconds, m.sent, m.received, m.corrupt, m.removed, m.resumed}
	if r != nil {
		r.MustRegister(m.all...)
	}
	return m
}

func (m *metrics) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.all {
		r.Unregister(c)
	}
}

// begin notes a request; done is told what became of it.
func (m *metrics) begin(operation string) (done func(error)) {
	began := time.Now()
	return func(err error) {
		outcome := "failed"
		switch {
		case err == nil, errors.Is(err, context.Canceled):
			outcome = "ok"
		case errors.Is(err, meta.ErrNotFound):
			outcome = "missing"
		case errors.Is(err, meta.ErrExists), errors.Is(err, meta.ErrNoSpace):
			outcome = "refused"
		}
		m.requests.WithLabelValues(operation, outcome).Inc()
		m.seconds.WithLabelValues(operation).Observe(time.Since(began).Seconds())
	}
}
