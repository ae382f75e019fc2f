package node

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// replicationMetrics shows what regions owe, as this server's metadata has it, and how
// long demands took that became verified by this server's own reports.
type replicationMetrics struct {
	metadata raftmeta.Asker
	took     *prometheus.HistogramVec

	lag, blobs, bytes, missing, demanded *prometheus.Desc
}

func newReplicationMetrics(metadata raftmeta.Asker) *replicationMetrics {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("shoal_replication_"+name, help, []string{"region", "class"}, nil)
	}
	return &replicationMetrics{
		metadata: metadata,
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "shoal_replication_seconds",
			Help: "Time from a region's demand to its last verified copy, of demands that this server's report settled.",
			// A tenth of a second to an hour and a half.
			Buckets: prometheus.ExponentialBuckets(0.1, 2.5, 12),
		}, []string{"region", "class"}),
		lag:      desc("lag_seconds", "Age of the oldest demand that is not verified; 0 when none waits."),
		blobs:    desc("backlog_blobs", "Demands that are not verified."),
		bytes:    desc("backlog_bytes", "Stored bytes of the demands that are not verified."),
		missing:  desc("missing_blobs", "Demands of which the region has no verified copy at all."),
		demanded: desc("demanded_bytes", "Stored bytes that the region owes, verified or not."),
	}
}

// Describe implements prometheus.Collector.
func (m *replicationMetrics) Describe(to chan<- *prometheus.Desc) {
	m.took.Describe(to)
	for _, d := range []*prometheus.Desc{m.lag, m.blobs, m.bytes, m.missing, m.demanded} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m *replicationMetrics) Collect(to chan<- prometheus.Metric) {
	m.took.Collect(to)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	a, _, err := raftmeta.Ask(ctx, m.metadata, meta.Local, state.Replication{})
	if err != nil {
		return // The metadata's own metrics tell of it.
	}
	now := time.Now()
	for _, c := range a.Classes {
		gauge := func(d *prometheus.Desc, v float64) {
			to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, string(c.Region), string(c.Class))
		}
		lag := 0.0
		if c.Oldest != 0 {
			lag = max(now.Sub(c.Oldest.Std()).Seconds(), 0)
		}
		gauge(m.lag, lag)
		gauge(m.blobs, float64(c.WaitingBlobs))
		gauge(m.bytes, float64(c.WaitingBytes))
		gauge(m.missing, float64(c.MissingBlobs))
		gauge(m.demanded, float64(c.DemandedBytes))
	}
}

// settled notes that a demand of the region is verified.
func (m *replicationMetrics) settled(ctx context.Context, region meta.RegionName, root digest.CID) {
	all, _, err := raftmeta.Ask(ctx, m.metadata, meta.Local, state.Replicas{Root: root})
	if err != nil {
		return
	}
	for _, d := range all {
		if d.Server == "" && d.Region == region && d.State == meta.ReplicaVerified && d.Demand != 0 {
			m.took.WithLabelValues(string(region), string(d.Class)).Observe(d.Verified.Std().Sub(d.Demand.Std()).Seconds())
		}
	}
}

// prefetch has this region keep cold blobs that are read in it: the read itself goes
// through to another region, a demand keeps the copy, which then is verified, repaired
// and counted like any other, until no repository links the blob any more.
type prefetch struct {
	metadata raftmeta.Asker
	doer     raftmeta.Doer
	self     meta.NodeID
	region   meta.RegionName
	log      *slog.Logger
	wanted   chan digest.CID

	mu     sync.Mutex
	looked *simplelru.LRU[digest.CID, time.Time] // at roots that were read
}

const (
	prefetchQueue = 1024
	prefetchKnown = 1 << 16
	// prefetchAgain is after how long a blob that is read is looked at again.
	prefetchAgain = 10 * time.Minute
)

func newPrefetch(metadata raftmeta.Asker, doer raftmeta.Doer, self meta.Node, log *slog.Logger) *prefetch {
	looked, _ := simplelru.NewLRU[digest.CID, time.Time](prefetchKnown, nil) // fails for sizes <= 0 only
	return &prefetch{
		metadata: metadata, doer: doer, self: self.ID, region: self.Region, log: log,
		wanted: make(chan digest.CID, prefetchQueue), looked: looked,
	}
}

// read says that a blob is read here. It does not block; when too many wait, the next
// read of it counts.
func (p *prefetch) read(b meta.Blob) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at, ok := p.looked.Get(b.Root); ok && time.Since(at) < prefetchAgain {
		return
	}
	select {
	case p.wanted <- b.Root:
		p.looked.Add(b.Root, time.Now())
	default:
	}
}

// run demands what is read and cold and not owed here yet.
func (p *prefetch) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case root := <-p.wanted:
			replicas, _, err := raftmeta.Ask(ctx, p.metadata, meta.Local, state.Replicas{Root: root})
			if err == nil && coldElsewhere(replicas, p.region) {
				_, err = p.doer.Do(ctx, state.Origin{Principal: "node:" + string(p.self)}, state.DemandReplica{Root: root, Region: p.region})
			}
			if err != nil && ctx.Err() == nil {
				p.log.Debug("a cold blob that was read is not demanded here, the next read does", "root", root.String(), "error", err)
				p.mu.Lock()
				p.looked.Remove(root)
				p.mu.Unlock()
			}
		}
	}
}

// coldElsewhere says that a blob is owed by other regions only, as a cold one.
func coldElsewhere(replicas []meta.Replica, region meta.RegionName) bool {
	demands := slices.DeleteFunc(slices.Clone(replicas), func(r meta.Replica) bool { return r.Server != "" })
	return len(demands) > 0 && !slices.ContainsFunc(demands, func(d meta.Replica) bool {
		return d.Region == region || d.Class != meta.ClassCold
	})
}

// readContent is a catalog's content that tells what is read.
type readContent struct {
	catalog.Content
	read func(meta.Blob)
}

func (c readContent) Open(ctx context.Context, b meta.Blob) (catalog.Reader, error) {
	c.read(b)
	return c.Content.Open(ctx, b)
}
