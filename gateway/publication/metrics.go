package publication

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	built  prometheus.Histogram
	failed prometheus.Counter
}

func (m *metrics) register(r prometheus.Registerer) error {
	m.built = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "shoal_publication_build_seconds", Help: "How long builds of the documents of a repository took.",
		Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	})
	m.failed = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "shoal_publication_failures_total", Help: "Builds of the documents of a repository that failed and are tried again.",
	})
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{m.built, m.failed} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("metrics of publications: %w", err)
		}
	}
	return nil
}
