package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/gateway/ops"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer"
	"github.com/shoal-registry/shoal/transfer/bucket"
	"github.com/shoal-registry/shoal/transfer/collect"
	"github.com/shoal-registry/shoal/transfer/place"
	"github.com/shoal-registry/shoal/transfer/scrub"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/wait"
	"github.com/shoal-registry/shoal/verify/digest"
)

// blobs is where a server keeps its blobs: on a disk of its own, or in a bucket that it
// shares with others of its region, with a disk as a cache in front.
type blobs struct {
	store.Store
	disk   *store.Disk
	bucket *bucket.Bucket // nil without
	// holder is whose copies the metadata counts: this server's, or the bucket's.
	holder   meta.NodeID
	claim    bucket.Claim
	attached atomic.Bool // the metadata knows it

	node    *Node
	records *raftmeta.Store
	log     *slog.Logger
}

const (
	cacheDir = "cache"
	// tidyEvery is how often a bucket is looked through for orphans; orphanAge is how old
	// they are by then: an upload may take long.
	tidyEvery = 24 * time.Hour
	orphanAge = 24 * time.Hour
	// claimWithin is how long a start waits for a bucket that it knows.
	claimWithin = 10 * time.Second
)

// openBlobs opens the blobs of a server. damaged is told of each damaged chunk.
func (n *Node) openBlobs(ctx context.Context, records *raftmeta.Store, room *room, damaged func(root digest.CID), log *slog.Logger) (*blobs, error) {
	b := &blobs{holder: n.ID(), node: n, records: records, log: log}
	var err error
	if !config.IsBucket(n.cfg.Blobs) {
		if exists(filepath.Join(n.cfg.Data, bucket.KnownFile)) {
			return nil, fmt.Errorf("this server keeps its blobs in a bucket, as %s says: a server does not change where; add another with --blobs DIR, then drain and remove this one: %w",
				filepath.Join(n.cfg.Data, bucket.KnownFile), meta.ErrInvalid)
		}
		b.disk, err = store.OpenDisk(store.DiskConfig{
			OnCorrupt: func(root digest.CID, _ int) { damaged(root) },
			Dir:       n.blobsDir(), Fsync: true, HotBytes: int64(n.cfg.HotBytes), Reserve: room.blobs(n.blobsDir(), int64(n.cfg.Reserve)), UploadTTL: n.uploadTTL(),
			Log: log, Metrics: n.metrics,
		})
		if err != nil {
			return nil, err
		}
		b.Store = b.disk
		b.attached.Store(true)
	} else if err := b.openBucket(ctx, room, damaged); err != nil {
		return nil, err
	}
	n.closes(b.disk.Close)
	n.parts.Add("store", b.disk.Run)
	if b.bucket == nil {
		return b, nil
	}
	n.closes(b.bucket.Close)
	n.parts.Add("bucket", b.run)
	n.views["bucket"] = func() any { return b.claim }
	n.checks = append(n.checks, ops.Check{Name: "bucket", Probe: func(context.Context) error {
		if !b.attached.Load() {
			return errors.New("the cluster was not told of this server's bucket yet")
		}
		return nil
	}})
	return b, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (b *blobs) openBucket(ctx context.Context, room *room, damaged func(root digest.CID)) error {
	n := b.node
	location, err := bucket.Parse(n.cfg.Blobs)
	if err != nil {
		return err
	}
	if own := filepath.Join(n.cfg.Data, "blobs", "mark"); exists(own) {
		return fmt.Errorf("this server keeps its blobs in %s: a server does not change where; add another with --blobs s3://..., then drain and remove this one: %w",
			filepath.Dir(own), meta.ErrInvalid)
	}
	dir, hot := filepath.Join(n.cfg.Data, cacheDir), int64(n.cfg.HotBytes)
	if hot == 0 {
		hot = 64 << 20
	}
	b.disk, err = store.OpenDisk(store.DiskConfig{
		Dir: dir, CacheBytes: int64(n.cfg.CacheBytes), HotBytes: hot, Reserve: room.blobs(dir, int64(n.cfg.Reserve)), UploadTTL: n.uploadTTL(),
		Log: b.log, Metrics: n.metrics,
	})
	if err != nil {
		return err
	}
	b.bucket, err = bucket.New(bucket.Config{
		Location: location, Cache: b.disk,
		Seen: func(ctx context.Context) (uint64, error) {
			_, asOf, err := raftmeta.Ask(ctx, b.records, meta.Local, state.GetLevel{})
			return asOf.Index, err
		},
		OnCorrupt: func(root digest.CID, _ int) { damaged(root) },
		Log:       b.log, Metrics: n.metrics,
	})
	if err == nil {
		b.Store = b.bucket
		err = b.claimBucket(ctx)
	}
	if err != nil {
		return errors.Join(err, b.disk.Close())
	}
	b.holder = meta.NodeID(b.claim.ID)
	return nil
}

// claimBucket makes sure that the bucket is this region's. One that this server used
// before may be out of reach at its start.
func (b *blobs) claimBucket(ctx context.Context) error {
	n := b.node
	file := filepath.Join(n.cfg.Data, bucket.KnownFile)
	var known bucket.Known
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", file, err)
	}
	limited, cancel := context.WithTimeout(ctx, claimWithin)
	defer cancel()
	claim, err := b.bucket.Claim(limited, bucket.Owner{Cluster: n.id.Cluster, Region: n.id.Node.Region, Take: n.cfg.TakeBucket})
	switch {
	case err != nil && known.Claim.ID != "" && ctx.Err() == nil && !errors.Is(err, meta.ErrConflict) && !errors.Is(err, meta.ErrCorrupt):
		b.log.Warn("the bucket cannot be reached, this server starts without it", "bucket", b.bucket.Location().String(), "error", err)
		b.claim = known.Claim
		b.bucket.Expect(known.Claim)
		return nil
	case err != nil:
		return err
	case known.Claim.ID != "" && known.Claim.ID != claim.ID:
		return fmt.Errorf("the bucket %s is %s, this server's copies are in %s: add another server for it, then drain and remove this one: %w",
			b.bucket.Location(), claim.ID, known.Claim.ID, meta.ErrConflict)
	}
	b.claim = claim
	if text, err = json.MarshalIndent(bucket.Known{URL: n.cfg.Blobs, Claim: claim}, "", "  "); err != nil {
		return err
	}
	return WriteFileAtomic(file, text, 0o600)
}

// run tells the metadata of the bucket, then looks for orphans.
func (b *blobs) run(ctx context.Context) error {
	if !b.attach(ctx) {
		return nil
	}
	pause := rand.N(time.Hour)
	for wait.For(ctx, pause) {
		tidied, err := b.bucket.Tidy(ctx, bucket.TidyOptions{Grace: orphanAge, Mine: b.mine})
		pause = tidyEvery/10*9 + rand.N(tidyEvery/5)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			pause = 10 * time.Minute
			b.log.Warn("the bucket was not looked through for orphans, trying again", "error", err)
		default:
			b.log.Info("looked through the bucket for orphans", "blobs", tidied.Blobs, "bytes", tidied.Bytes, "removed", tidied.Removed)
		}
	}
	return nil
}

func (b *blobs) attach(ctx context.Context) bool {
	command := state.AttachBucket{Server: b.node.ID(), Bucket: meta.Bucket{ID: b.holder, Location: b.bucket.Location().String()}}
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		known, _, err := raftmeta.Ask(ctx, b.records, meta.Local, state.ListBuckets{Region: b.claim.Region})
		at := slices.IndexFunc(known, func(k meta.Bucket) bool { return k.ID == b.holder })
		if err == nil && (at < 0 || known[at].Location != command.Bucket.Location || !slices.Contains(known[at].Servers, b.node.ID())) {
			var receipt raftmeta.Receipt
			if receipt, err = b.records.Do(ctx, state.Origin{Principal: "node:" + string(b.node.ID())}, command); err == nil {
				_, _, err = raftmeta.Ask(ctx, b.records, meta.Freshness{After: receipt.Token}, state.GetLevel{})
			}
		}
		if err == nil {
			b.attached.Store(true)
			b.log.Info("this server's blobs are in the bucket", "bucket", b.holder, "location", command.Bucket.Location)
			return true
		}
		if ctx.Err() == nil {
			b.log.Warn("the cluster was not told of this server's bucket yet, trying again", "error", err)
		}
		if !wait.For(ctx, pause) {
			return false
		}
	}
}

// writable refuses new content until the metadata knows where it is.
func (b *blobs) writable(also func() error) func() error {
	return func() error {
		if !b.attached.Load() {
			return fmt.Errorf("this server has not told the cluster of its bucket yet: %w", &meta.UnavailableError{Reason: "starting", RetryAfter: time.Second})
		}
		return also()
	}
}

// sharers lists the servers of a bucket that serve and stay.
func (n *Node) sharers(holder meta.NodeID) []meta.NodeID {
	var ids []meta.NodeID
	for _, s := range n.swarmHost.Nodes("", meta.RoleServer) {
		if s.Bucket == holder && s.Draining == nil && n.serves(s.ID) {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// behind lists the servers through which a holder's copies are read.
func (n *Node) behind(holder meta.NodeID) []meta.NodeID {
	if !holder.IsBucket() {
		return []meta.NodeID{holder}
	}
	var ids []meta.NodeID
	for _, s := range n.swarmHost.Nodes("", meta.RoleServer) {
		if s.Bucket == holder {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// mine says whether this server does what one of a bucket's servers has to do for root.
// Servers agree without talking; when one goes away its part falls to the others, and a
// part that is done twice meanwhile does no harm.
func (b *blobs) mine(root digest.CID) bool {
	if b.bucket == nil {
		return true
	}
	ranked := place.Rank(root, b.node.sharers(b.holder))
	return len(ranked) == 0 || ranked[0] == b.node.ID()
}

// keep is catalog.Config.Keep; nil where the store's own commit is all.
func (b *blobs) keep() func(ctx context.Context, root digest.CID, since uint64) (uint64, error) {
	if b.bucket == nil {
		return nil
	}
	return b.bucket.Keep
}

// ensure brings a blob to where this server's copies are counted.
func (b *blobs) ensure(content *transfer.Content) func(context.Context, meta.Blob) error {
	if b.bucket == nil {
		return content.Ensure
	}
	return func(ctx context.Context, blob meta.Blob) error {
		// What is owed may be so because another server found the object damaged.
		if err := b.bucket.Refresh(ctx, blob.Root); err != nil {
			return err
		}
		if err := content.Ensure(ctx, blob); err != nil {
			return err
		}
		// An object from before the last collection may be about to go.
		order, _, err := raftmeta.Ask(ctx, b.records, meta.Local, state.GetOrder{Server: b.holder, Root: blob.Root})
		if err != nil {
			return err
		}
		_, err = b.bucket.Keep(ctx, blob.Root, max(order.Index, order.Collected))
		return err
	}
}

// ensures is a function as a repair.Content.
type ensures func(context.Context, meta.Blob) error

// Ensure implements repair.Content.
func (e ensures) Ensure(ctx context.Context, b meta.Blob) error { return e(ctx, b) }

// Probe tries whether the blobs can be used.
func (b *blobs) Probe(ctx context.Context) error {
	if b.bucket != nil {
		return b.bucket.Probe(ctx)
	}
	return b.disk.Probe(ctx)
}

// Look says what is there of a copy.
func (b *blobs) Look(ctx context.Context, root digest.CID) (store.Looked, error) {
	if b.bucket != nil {
		return b.bucket.Look(ctx, root)
	}
	return b.disk.Look(ctx, root)
}

// collected is what orders are carried out on.
func (b *blobs) collected() collect.Store {
	if b.bucket == nil {
		return b.disk
	}
	return collectBucket{b}
}

// audited is what a scrub looks at.
func (b *blobs) audited() scrub.Store {
	if b.bucket == nil {
		return b.disk
	}
	return auditBucket{collectBucket{b}}
}

// collectBucket is this server's part of the collection of a bucket.
type collectBucket struct{ *blobs }

// Collect implements collect.Store.
func (c collectBucket) Collect(ctx context.Context, root digest.CID, still func() (bool, error)) (int64, error) {
	order, _, err := raftmeta.Ask(ctx, c.records, meta.Local, state.GetOrder{Server: c.holder, Root: root})
	if err != nil {
		return 0, err
	}
	return c.bucket.Collect(ctx, root, order.Index, still)
}

// List implements collect.Store: what is in the bucket and this server's to look after.
func (c collectBucket) List(ctx context.Context, after digest.CID, limit int) ([]store.Info, error) {
	for {
		page, err := c.bucket.ListKept(ctx, after, max(limit, 64))
		if err != nil || len(page) == 0 {
			return nil, err
		}
		after = page[len(page)-1].Root
		mine := slices.DeleteFunc(page, func(i store.Info) bool { return !c.mine(i.Root) })
		if len(mine) > 0 {
			return mine[:min(limit, len(mine))], nil
		}
	}
}

// auditBucket is this server's part of the scrub of a bucket.
type auditBucket struct{ collectBucket }

// Scrub implements scrub.Store.
func (a auditBucket) Scrub(ctx context.Context, root digest.CID, o store.ScrubOptions) (store.Scrubbed, error) {
	return a.bucket.Scrub(ctx, root, o)
}

// Present implements scrub.Store: that a cache is gone is no loss.
func (a auditBucket) Present(ctx context.Context) (lost int64, err error) {
	_, err = a.disk.Present(ctx)
	return 0, err
}

// Aside implements scrub.Store.
func (a auditBucket) Aside() (pieces int, bytes int64) { return 0, 0 }

// Stored implements scrub.Store.
func (a auditBucket) Stored() int64 { return a.bucket.Stored() }
