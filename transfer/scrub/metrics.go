package scrub

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

type metrics struct {
	looked, read prometheus.Counter
}

func newMetrics(r prometheus.Registerer, s *Scrubber) *metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "shoal", Subsystem: "scrub", Name: name, Help: help}
	}
	m := &metrics{
		looked: prometheus.NewCounter(prometheus.CounterOpts(opts("looked_total", "Copies compared with their files."))),
		read:   prometheus.NewCounter(prometheus.CounterOpts(opts("read_bytes_total", "Bytes read from the disk and compared."))),
	}
	total := func(name, help string, f func() uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts(opts(name, help)), func() float64 { return float64(f()) })
	}
	gauge := func(name, help string, f func(meta.AuditReport) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), func() float64 { return f(s.Status()) })
	}
	if r == nil {
		return m
	}
	r.MustRegister(m.looked, m.read,
		total("damaged_chunks_total", "Chunks found damaged, by the scrub or by whoever read them.", s.chunks.Load),
		total("failed_copies_total", "Copies found damaged or gone.", s.failed.Load),
		total("repaired_total", "Failed copies that are whole again.", s.repaired.Load),
		gauge("open_copies", "Failed copies that are not whole again.", func(r meta.AuditReport) float64 { return float64(r.Open) }),
		gauge("existence_last_seconds", "When all copies were last compared with their files, Unix seconds; 0 is never.", func(r meta.AuditReport) float64 { return seconds(r.Existence.Last) }),
		gauge("full_last_seconds", "When every byte was last read, Unix seconds; 0 is never.", func(r meta.AuditReport) float64 { return seconds(r.Full.Last) }),
		gauge("full_done_ratio", "How far the pass is that reads every byte.", func(r meta.AuditReport) float64 { return float64(r.Full.PerMille) / 1000 }),
	)
	return m
}

func seconds(t meta.Time) float64 {
	if t == 0 {
		return 0
	}
	return float64(t.Std().Unix())
}
