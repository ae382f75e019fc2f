package node

import (
	"cmp"
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/collect"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Garbage: the leader proposes what is due, each server carries out its orders.

const (
	// collectEvery is how often the leader looks whether garbage is due.
	collectEvery = 5 * time.Second
	// collectLimit is how many records one command reads: a few milliseconds of every
	// server's time. collectPause is between two of them, for the others' commands.
	collectLimit = 300
	collectPause = 20 * time.Millisecond
	// expireEvery is how often uploads that nobody published expire.
	expireEvery = time.Hour
	// strandedFor is how long after a recovery or a restore blobs that the metadata does
	// not know are left alone: it may have lost what knew them.
	strandedFor = 7 * 24 * time.Hour
)

// collector proposes what is due of the garbage. It remembers nothing: any server may
// propose at any time.
type collector struct {
	metadata  raftmeta.Asker
	doer      raftmeta.Doer
	self      meta.NodeID
	leads     func() bool
	uploadTTL time.Duration // how long what was uploaded and not published is kept
	every     time.Duration
	log       *slog.Logger
}

func (c collector) run(ctx context.Context) error {
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	var expired time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !c.leads() {
			continue
		}
		if time.Since(expired) > expireEvery {
			expired = time.Now()
			if err := c.expire(ctx); err != nil && ctx.Err() == nil {
				c.log.Warn("unclaimed uploads did not expire", "error", err)
			}
		}
		if err := c.collect(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("garbage is not collected, trying again", "error", err)
		}
	}
}

func (c collector) origin() state.Origin { return state.Origin{Principal: "node:" + string(c.self)} }

// expire drops the links that uploads made and no version claims; the store expires
// its sessions itself.
func (c collector) expire(ctx context.Context) error {
	const atOnce = 1000
	before := meta.TimeOf(time.Now().Add(-c.uploadTTL))
	for c.leads() {
		receipt, err := c.doer.Do(ctx, c.origin(), state.ExpireUploads{Before: before, Limit: atOnce})
		if err != nil {
			return err
		}
		if result, ok := receipt.Value.(state.ExpireResult); !ok || result.Links+result.Drafts < atOnce {
			return nil
		}
	}
	return nil
}

// collect proposes until nothing is due or this server does not lead any more.
func (c collector) collect(ctx context.Context) error {
	level, _, err := raftmeta.Ask(ctx, c.metadata, meta.Local, state.GetLevel{})
	if err != nil || state.CheckLevel(state.CollectBlobs{}, level) != nil {
		return err
	}
	var sum state.CollectResult
	defer func() {
		if sum.Collected > 0 {
			c.log.Info("garbage is collected", "blobs", sum.Collected, "bytes", sum.Bytes, "links", sum.Links)
		}
	}()
	for c.leads() {
		due, _, err := raftmeta.Ask(ctx, c.metadata, meta.Local, state.GarbageDue{Now: meta.TimeOf(time.Now())})
		if err != nil || !due {
			return err
		}
		receipt, err := c.doer.Do(ctx, c.origin(), state.CollectBlobs{Limit: collectLimit})
		if err != nil {
			return err
		}
		r, _ := receipt.Value.(state.CollectResult)
		sum.Collected, sum.Bytes, sum.Links = sum.Collected+r.Collected, sum.Bytes+r.Bytes, sum.Links+r.Links
		if !r.More {
			return nil // What is due by this clock may not be by the leader's.
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(collectPause):
		}
	}
	return nil
}

// orders is what the collect loop asks of the metadata: this server's own state says
// what it is to remove, from its disk or its bucket.
type orders struct {
	metadata raftmeta.Asker
	doer     raftmeta.Doer
	self     meta.NodeID
	holder   meta.NodeID
	mine     func(root digest.CID) bool // of those that share a bucket, which one acts
}

func (o orders) List(ctx context.Context, after digest.CID, limit int) (out []collect.Order, _ error) {
	page := state.Page{Limit: limit}
	if !after.IsZero() {
		page.After = after.String()
	}
	for len(out) == 0 {
		listed, _, err := raftmeta.Ask(ctx, o.metadata, meta.Local, state.ListOrders{Server: o.holder, Page: page})
		if err != nil || len(listed) == 0 {
			return nil, err
		}
		for _, l := range listed {
			if o.mine(l.Root) {
				out = append(out, collect.Order{Root: l.Root, Index: l.Index})
			}
		}
		page.After = listed[len(listed)-1].Root.String()
	}
	return out, nil
}

func (o orders) Stands(ctx context.Context, order collect.Order) (bool, error) {
	a, _, err := raftmeta.Ask(ctx, o.metadata, meta.Local, state.GetOrder{Server: o.holder, Root: order.Root})
	return a.Index == order.Index, err
}

func (o orders) Removed(ctx context.Context, done []collect.Order) error {
	removed := make([]state.CollectedCopy, len(done))
	for i, d := range done {
		removed[i] = state.CollectedCopy{Root: d.Root, Index: d.Index}
	}
	_, err := o.doer.Do(ctx, state.Origin{Principal: "node:" + string(o.self)}, state.SettleCollected{Server: o.holder, Removed: removed})
	return err
}

// strays is what the collect loop asks of blobs that it has no orders for.
type strays struct {
	orders
	region meta.RegionName
}

func (s strays) Unknown(ctx context.Context, roots []digest.CID) (unknown, spare []digest.CID, err error) {
	cluster, _, err := raftmeta.Ask(ctx, s.metadata, meta.Local, state.GetCluster{})
	if err != nil {
		return nil, nil, err
	}
	if r := cluster.Recovery; cluster.Level < state.GCLevel || r != nil && time.Since(r.At.Std()) < strandedFor {
		return nil, nil, nil
	}
	a, _, err := raftmeta.Ask(ctx, s.metadata, meta.Local, state.StrayRoots{Server: s.holder, Region: s.region, Roots: roots})
	return a.Unknown, a.Spare, err
}

func (s strays) Order(ctx context.Context, blobs []store.Info) error {
	found := make([]state.Stray, len(blobs))
	for i, b := range blobs {
		found[i] = state.Stray{Root: b.Root, StoredBytes: b.StoredBytes}
	}
	_, err := s.doer.Do(ctx, state.Origin{Principal: "node:" + string(s.self)}, state.CollectStrays{Server: s.holder, Strays: found})
	return err
}

func (s strays) Asked(ctx context.Context) (time.Time, error) {
	a, _, err := raftmeta.Ask(ctx, s.metadata, meta.Local, state.GetGC{})
	return a.Strays.Std(), err
}

// uploadTTL is how long what was uploaded is kept without a version that uses it.
func (n *Node) uploadTTL() time.Duration { return cmp.Or(n.cfg.UploadTTL, catalog.DefaultUploadTTL) }

// buildCollection adds the collection of garbage to a server's parts.
func (n *Node) buildCollection(records *raftmeta.Store, kept *blobs, me meta.Node, log *slog.Logger) error {
	mine := orders{metadata: records, doer: records, self: me.ID, holder: kept.holder, mine: kept.mine}
	loop, err := collect.New(collect.Config{
		Orders: mine, Strays: strays{mine, me.Region}, Store: kept.collected(), Log: log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	n.parts.Add("removal of garbage", loop.Run)
	n.parts.Add("garbage collection", collector{
		metadata: records, doer: records, self: me.ID, uploadTTL: n.uploadTTL(), every: collectEvery, log: log,
		leads: func() bool { return records.Leader() == me.ID },
	}.run)
	return n.metrics.Register(newGarbageMetrics(records))
}

// garbageMetrics are gauges of what the metadata says of garbage, read when they are
// asked for, at most every few seconds.
type garbageMetrics struct {
	metadata raftmeta.Asker
	last     atomic.Pointer[garbageReading]
}

type garbageReading struct {
	at     time.Time
	status state.GCStatus
}

// garbageAge is how old a reading may be.
const garbageAge = 5 * time.Second

func newGarbageMetrics(metadata raftmeta.Asker) *garbageMetrics {
	return &garbageMetrics{metadata: metadata}
}

var garbageDescs = func() (d [8]*prometheus.Desc) {
	for i, m := range [...]struct{ name, help string }{
		{"shoal_gc_unreferenced_blobs", "Blobs that nothing links and that wait for the end of their grace, in the cluster."},
		{"shoal_gc_unreferenced_bytes", "Bytes of one copy of each of those."},
		{"shoal_gc_released_blobs", "Links that no version uses since one was deleted, in the cluster."},
		{"shoal_gc_released_bytes", "Bytes of their blobs."},
		{"shoal_gc_collected_blobs", "Blobs that were collected in the cluster, ever."},
		{"shoal_gc_collected_bytes", "Bytes of one copy of each of those."},
		{"shoal_gc_ordered_blobs", "Copies that servers are still to remove, in the cluster."},
		{"shoal_gc_ordered_bytes", "Bytes of those."},
	} {
		d[i] = prometheus.NewDesc(m.name, m.help, nil, nil)
	}
	return d
}()

// Describe implements prometheus.Collector.
func (g *garbageMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range garbageDescs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (g *garbageMetrics) Collect(ch chan<- prometheus.Metric) {
	status, err := g.read()
	if err != nil {
		return // A node that is closing has nothing to say.
	}
	var sums [8]float64
	for _, c := range status.Contexts {
		for i, v := range [...]float64{
			float64(c.Garbage), float64(c.GarbageBytes), float64(c.Released), float64(c.ReleasedBytes), float64(c.Collected), float64(c.CollectedBytes),
		} {
			sums[i] += v
		}
	}
	for _, s := range status.Servers {
		sums[6] += float64(s.Ordered)
		sums[7] += float64(s.OrderedBytes)
	}
	for i, d := range garbageDescs {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, sums[i])
	}
}

func (g *garbageMetrics) read() (state.GCStatus, error) {
	if last := g.last.Load(); last != nil && time.Since(last.at) < garbageAge {
		return last.status, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	status, _, err := raftmeta.Ask(ctx, g.metadata, meta.Local, state.GetGC{})
	if err != nil {
		return status, err
	}
	g.last.Store(&garbageReading{at: time.Now(), status: status})
	return status, nil
}
