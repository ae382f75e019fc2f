package repair

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

type metrics struct {
	outcomes *prometheus.CounterVec
	bytes    prometheus.Counter
	dropped  prometheus.Counter
	seconds  prometheus.Histogram
	lag      *prometheus.HistogramVec
	paused   prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, l *Loop) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "repair", Name: name, Help: help})
	}
	m := &metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "repair", Name: "copies_total",
			Help: "Copies that this server tried to make, verified or failed."}, []string{"outcome"}),
		bytes:   counter("bytes_total", "Stored bytes of the copies made."),
		dropped: counter("dropped_total", "Reports and news of damage dropped because too many waited."),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "shoal", Subsystem: "repair", Name: "copy_seconds",
			Help: "Time to fetch and check one copy.", Buckets: prometheus.ExponentialBuckets(0.005, 4, 9)}),
		lag: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "shoal", Subsystem: "repair", Name: "lag_seconds",
			Help: "Time from the demand to the verified copy.", Buckets: prometheus.ExponentialBuckets(0.05, 3, 10)}, []string{"class"}),
		paused: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "shoal", Subsystem: "repair", Name: "paused",
			Help: "1 while copies that are not critical wait because of an incident."}),
	}
	backlog := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "shoal", Subsystem: "repair", Name: "backlog",
		Help: "Copies planned for this server at the last listing, at most 64."}, func() float64 { return float64(l.backlog.Load()) })
	if r != nil {
		r.MustRegister(m.outcomes, m.bytes, m.dropped, m.seconds, m.lag, m.paused, backlog)
	}
	return m
}

// className keeps the label's values bounded.
func className(c meta.Class) string {
	switch c {
	case meta.ClassCritical, meta.ClassStandard, meta.ClassCold:
		return string(c)
	}
	return "other"
}
