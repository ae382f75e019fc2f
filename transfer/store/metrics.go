package store

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the store's own. A nil *metrics counts nothing.
type metrics struct {
	registerer prometheus.Registerer
	ingested   prometheus.Counter
	commits    *prometheus.CounterVec
	corrupt    prometheus.Counter
	mended     *prometheus.CounterVec
	refused    *prometheus.CounterVec
	evicted    prometheus.Counter
	spared     prometheus.Counter
	reused     *prometheus.CounterVec
	syncs      prometheus.Histogram
	all        []prometheus.Collector
}

func newMetrics(r prometheus.Registerer, d *Disk) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "store", Name: name, Help: help})
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "shoal", Subsystem: "store", Name: name, Help: help}, f)
	}
	total := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "store", Name: name, Help: help}, f)
	}
	m := &metrics{
		registerer: r,
		ingested:   counter("ingested_bytes_total", "Bytes received by upload sessions."),
		commits: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "store", Name: "commits_total",
			Help: "Uploads committed: new content, content that was there (deduplicated), or a wrong digest (mismatch)."}, []string{"outcome"}),
		corrupt: counter("corrupt_chunks_total", "Chunks found damaged on disk."),
		mended: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "store", Name: "damaged_files_total",
			Help: "Files beside the blobs found damaged or lost and made again: map, bitmap, mark, pins, upload."}, []string{"kind"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "store", Name: "refused_total",
			Help: "Content refused because the disk is full (space) or too many uploads are open (uploads)."}, []string{"reason"}),
		evicted: counter("evicted_bytes_total", "Bytes of cached blobs removed to make room."),
		spared:  counter("spared_total", "Times that eviction left a blob because no other copy is in the region."),
		reused: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "shoal", Subsystem: "store", Name: "reused_bytes_total",
			Help: "Bytes of new blobs taken from other blobs here: written again (copied), or shared on disk (shared)."}, []string{"how"}),
		syncs: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "shoal", Subsystem: "store", Name: "fsync_seconds",
			Help: "Time to put a file or directory on the disk.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9)}),
	}
	m.all = []prometheus.Collector{
		m.ingested, m.commits, m.corrupt, m.mended, m.refused, m.evicted, m.spared, m.reused, m.syncs,
		gauge("used_bytes", "Bytes on disk: blobs, partial ones in full, their maps and bitmaps, uploads.", func() float64 { return float64(d.used.Load()) }),
		gauge("set_aside_bytes", "Bytes of damaged pieces kept for inspection.", func() float64 {
			_, bytes := d.Aside()
			return float64(bytes)
		}),
		total("lost_directories_total", "Times that the store's directories had to be made again.", func() float64 { return float64(d.lives.Load()) }),
		gauge("hot_bytes", "Bytes of verified chunks in memory.", func() float64 { return float64(d.hot.size()) }),
		total("hot_hits_total", "Chunk reads answered from memory.", func() float64 { return float64(d.hot.hits.Load()) }),
		total("hot_misses_total", "Chunk reads that went to the disk.", func() float64 { return float64(d.hot.misses.Load()) }),
		gauge("uploads", "Upload sessions that exist.", func() float64 {
			d.mu.Lock()
			defer d.mu.Unlock()
			return float64(d.uploads)
		}),
	}
	if r != nil {
		for _, c := range m.all {
			r.MustRegister(c)
		}
	}
	return m
}

func (m *metrics) unregister() {
	if m == nil || m.registerer == nil {
		return
	}
	for _, c := range m.all {
		m.registerer.Unregister(c)
	}
}

func (m *metrics) countCorrupt() {
	if m != nil {
		m.corrupt.Inc()
	}
}

// countMended counts a damaged file that is none of content.
func (d *Disk) countMended(kind string) {
	d.mended.Add(1)
	if d.metrics == nil {
		d.early = append(d.early, kind)
		return
	}
	d.metrics.mended.WithLabelValues(kind).Inc()
}

func (m *metrics) countSync(start time.Time) {
	if m != nil {
		m.syncs.Observe(time.Since(start).Seconds())
	}
}

func (m *metrics) countEvicted(bytes int64) {
	if m != nil {
		m.evicted.Add(float64(bytes))
	}
}

func (m *metrics) countSpared() {
	if m != nil {
		m.spared.Inc()
	}
}

func (d *Disk) countReused(how string, bytes int) {
	d.reused.Add(int64(bytes))
	if m := d.metrics; m != nil {
		m.reused.WithLabelValues(how).Add(float64(bytes))
	}
}

func (m *metrics) countCommit(outcome string) {
	if m != nil {
		m.commits.WithLabelValues(outcome).Inc()
	}
}
