package collect

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	removed, bytes, strays prometheus.Counter
	orders                 prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "gc", Name: name, Help: help})
	}
	m := &metrics{
		removed: counter("removed_blobs_total", "Blobs that this server removed because the metadata gave them up."),
		bytes:   counter("removed_bytes_total", "Bytes that the files of those blobs took."),
		strays:  counter("strays_total", "Blobs of this server's store that the metadata did not know."),
		orders: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "shoal", Subsystem: "gc", Name: "orders",
			Help: "Blobs that this server is to remove, of the page looked at last: up to 500."}),
	}
	if r != nil {
		r.MustRegister(m.removed, m.bytes, m.strays, m.orders)
	}
	return m
}
