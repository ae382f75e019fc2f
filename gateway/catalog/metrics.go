package catalog

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// metrics are the catalog's own; labels come from bounded sets.
type metrics struct {
	hits, misses     prometheus.Counter
	confirmed, stale prometheus.Counter
	publishes        *prometheus.CounterVec
	heldBack         prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (metrics, error) {
	reads := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_catalog_document_reads_total",
		Help: "Documents (manifests and the like) that were asked for, by whether they were in memory.",
	}, []string{"from"})
	m := metrics{
		hits:   reads.WithLabelValues("memory"),
		misses: reads.WithLabelValues("content"),
		confirmed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_catalog_confirmations_total",
			Help: "Strong rounds made because something was not found.",
		}),
		stale: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_catalog_stale_answers_total",
			Help: "Answers given from what was known, labelled stale, because no bound could be kept.",
		}),
		publishes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_catalog_publishes_total",
			Help: "Drafts, by outcome: published, refused (not admitted), denied (exists, conflict, denied), held_back (the tenant's backlog), failed.",
		}, []string{"outcome"}),
		heldBack: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_catalog_held_back_total",
			Help: "Uploads and publishes refused because the tenant's replication backlog is over its bound.",
		}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{reads, m.confirmed, m.stale, m.publishes, m.heldBack} {
		if err := r.Register(c); err != nil {
			return m, fmt.Errorf("register catalog metrics: %w", err)
		}
	}
	return m, nil
}

func (m metrics) published(err error) {
	outcome := "failed"
	var refused *RefusedError
	switch {
	case err == nil:
		outcome = "published"
	case errors.As(err, &refused):
		outcome = "refused"
	case errors.Is(err, meta.ErrExists), errors.Is(err, meta.ErrConflict), errors.Is(err, meta.ErrDenied):
		outcome = "denied"
	case isHeldBack(err):
		outcome = "held_back"
	}
	m.publishes.WithLabelValues(outcome).Inc()
}
