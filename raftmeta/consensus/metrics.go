package consensus

import "github.com/prometheus/client_golang/prometheus"

// metrics are the collectors of one Node.
type metrics struct {
	proposals     *prometheus.CounterVec // outcome: applied, not_applied, unknown
	commit        prometheus.Histogram
	apply         prometheus.Histogram
	applied       prometheus.Gauge
	logWrite      prometheus.Histogram
	leaderChanges prometheus.Counter
	leading       prometheus.Gauge
	rounds        *prometheus.CounterVec // outcome: ok, no_quorum
	round         prometheus.Histogram
	stalls        prometheus.Counter
	corrupt       prometheus.Counter
	refused       prometheus.Counter
	snapshots     *prometheus.CounterVec // kind: taken, installed
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const ns, sub = "shoal", "raft"
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
	}
	counters := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, []string{label})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
	}
	seconds := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: ns, Subsystem: sub, Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(0.000_25, 2, 16), // to 8 s
		})
	}
	m := &metrics{
		proposals:     counters("proposals_total", "Commands proposed at this server, by outcome.", "outcome"),
		commit:        seconds("propose_seconds", "From a command's proposal to its result, forwarding and retries included."),
		apply:         seconds("apply_seconds", "One batch through the state machine."),
		applied:       gauge("applied_index", "Log index up to which the state is applied."),
		logWrite:      seconds("log_write_seconds", "One durable write to the log."),
		leaderChanges: counter("leader_changes_total", "Changes of the known leader, seen by this server."),
		leading:       gauge("leading", "1 while this server leads."),
		rounds:        counters("rounds_total", "Quorum-index rounds, by outcome.", "outcome"),
		round:         seconds("round_seconds", "One quorum-index round, waiting for the state included."),
		stalls:        counter("log_stalls_total", "Writes to the log that passed the stall limit."),
		corrupt:       counter("log_corrupt_total", "Log entries that failed their checksum."),
		refused:       counter("streams_refused_total", "Streams of peers that are no servers of the cluster."),
		snapshots:     counters("snapshots_total", "Snapshots taken here or installed from the leader.", "kind"),
	}
	if reg != nil {
		reg.MustRegister(m.proposals, m.commit, m.apply, m.applied, m.logWrite, m.leaderChanges, m.leading,
			m.rounds, m.round, m.stalls, m.corrupt, m.refused, m.snapshots)
	}
	return m
}
