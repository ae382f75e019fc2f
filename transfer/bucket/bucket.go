// Package bucket keeps a region's blobs in a bucket of an S3 service.
//
// A Bucket is a store.Store: a local cache (a *store.Disk) in front of objects that all
// servers of the region share. Content is taken in by the cache, which hashes it, and
// then uploaded (keep.go); only when the object is there does Commit return. Reading
// takes chunks from the cache, else by ranged requests from the object, each checked
// against the chunk map before anybody sees it (read.go). Start reading at Bucket, then
// name in object.go, which says why deletions never race pushes.
//
// What holds:
//
//   - An object is written once, under a name that no other write ever has, and is whole
//     or not there: its map is written before it.
//   - The name carries the index of the metadata that its writer had seen. An order to
//     remove a blob, given by the log's entry of index i, removes objects of lower
//     indexes only, whoever carries it out (collect.go).
//   - No byte of an object leaves ReadChunk, or is copied to another object, unchecked.
//   - Memory is bounded: parts under way, and chunks that are read ahead.
//
// Run and the requests of readers own the goroutines; Close ends those of reading ahead.
// The objects' names and the order of writes are in transfer/DESIGN.md.
package bucket

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Config is what a Bucket needs. Location, Cache and Seen are required.
type Config struct {
	Location Location
	// Credentials default to those of the environment, of files or of the instance.
	Credentials *credentials.Credentials
	// Cache is in front of the bucket; who made it closes it. Its cap has to hold the
	// largest blob, or that cannot be taken in.
	Cache *store.Disk
	// Seen returns the index of the state of the metadata that this server has.
	Seen func(ctx context.Context) (uint64, error)
	// PartBytes is the length of the parts of objects that are uploaded in several; 0 is
	// 16 MiB. S3 wants 5 MiB at least.
	PartBytes int64
	// OnCorrupt is told of each chunk of an object that was found damaged; it must not
	// block.
	OnCorrupt func(root digest.CID, i int)
	// Log is silent when nil, Metrics unregistered when nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

const (
	knownMost = 1 << 14  // objects remembered
	lateMost  = 1 << 10  // uploads of which the object is not there yet
	aheadMost = 64 << 20 // bytes read ahead at a time
	partsMost = 64 << 20 // bytes of parts in memory at a time
)

// Bucket is a Store in a bucket. New builds it, Close ends it.
type Bucket struct {
	cfg     Config
	cache   *store.Disk
	remote  *remote
	log     *slog.Logger
	metrics *metrics

	known *lru.Cache[digest.CID, *object]
	late  *lru.Cache[string, store.Ingested]
	ahead *semaphore.Weighted
	parts *semaphore.Weighted

	keeping keyed
	look    listing
	stored  atomic.Int64 // bytes of objects, as of the last Tidy

	probing  sync.Mutex
	wrote    time.Time // the last try to write that went well
	ours     Claim     // as it has to be; zero where nobody has said
	claimTag string    // ETag of the claim when it was so

	ctx    context.Context // of reading ahead
	cancel context.CancelFunc
	group  sync.WaitGroup
	closed sync.Once
}

var _ store.Store = (*Bucket)(nil)

// New returns a Bucket. It asks nothing of the service yet.
//
// Errors: meta.ErrInvalid.
func New(cfg Config) (*Bucket, error) {
	if cfg.Cache == nil || cfg.Seen == nil {
		return nil, fmt.Errorf("bucket: Cache and Seen are required: %w", meta.ErrInvalid)
	}
	if cfg.PartBytes == 0 {
		cfg.PartBytes = 16 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	b := &Bucket{
		cfg: cfg, cache: cfg.Cache, log: cfg.Log, metrics: newMetrics(cfg.Metrics),
		ahead: semaphore.NewWeighted(aheadMost), parts: semaphore.NewWeighted(partsMost),
	}
	var err error
	if b.remote, err = newRemote(cfg.Location, cfg.Credentials, b.metrics); err != nil {
		return nil, err
	}
	b.known, _ = lru.New[digest.CID, *object](knownMost) // fails for no size only
	b.late, _ = lru.New[string, store.Ingested](lateMost)
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b, nil
}

// Close ends what is read ahead. The cache stays open.
func (b *Bucket) Close() error {
	b.closed.Do(func() {
		b.cancel()
		b.group.Wait()
		b.remote.close()
		b.metrics.unregister(b.cfg.Metrics)
	})
	return nil
}

// Cache returns the cache in front of the bucket.
func (b *Bucket) Cache() *store.Disk { return b.cache }

// Location returns where the objects are.
func (b *Bucket) Location() Location { return b.cfg.Location }

// Open implements store.Store. While the bucket cannot be asked, a blob that is not
// whole in the cache is as good as absent: other regions have it.
func (b *Bucket) Open(ctx context.Context, root digest.CID) (store.Blob, error) {
	h, err := b.cache.Open(ctx, root)
	switch {
	case err == nil && h.Complete():
		return &blob{b: b, h: h, m: h.Map(), root: root}, nil
	case err != nil && !errors.Is(err, meta.ErrNotFound) && !errors.Is(err, meta.ErrCorrupt):
		return nil, err
	case err != nil:
		h = nil
	}
	o, err := b.find(ctx, root)
	switch {
	case err != nil && h == nil && ctx.Err() != nil:
		return nil, err
	case err != nil && h == nil:
		if !errors.Is(err, meta.ErrNotFound) {
			b.log.Debug("a blob cannot be looked for in the bucket", "root", root.String(), "error", err)
			err = fmt.Errorf("%w: %w", meta.ErrNotFound, err)
		}
		return nil, fmt.Errorf("open blob %s: %w", root, err)
	case err != nil:
		return &blob{b: b, h: h, m: h.Map(), root: root}, nil
	case h != nil:
		return &blob{b: b, h: h, o: o, m: h.Map(), root: root}, nil
	}
	bl, err := b.openObject(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", root, err)
	}
	return bl, nil
}

// Create implements store.Store. What is written is in the cache only, until Keep.
func (b *Bucket) Create(ctx context.Context, m *chunk.Map) (store.Blob, error) {
	root := m.Root()
	o, err := b.find(ctx, root)
	if err != nil {
		o = nil // it is filled by who creates it
	}
	h, err := b.cache.Create(ctx, m)
	if err != nil {
		if o == nil {
			return nil, err
		}
		h = nil
	}
	return &blob{b: b, h: h, o: o, m: m, root: root}, nil
}

// Reuse implements store.Store: it looks in the cache.
func (b *Bucket) Reuse(ctx context.Context, of store.Blob) *store.Reuse {
	if bl, ok := of.(*blob); ok && bl.h != nil && !bl.Complete() {
		return b.cache.Reuse(ctx, bl.h)
	}
	return nil
}

// Remove implements store.Store: the blob goes from the cache and from the bucket.
func (b *Bucket) Remove(ctx context.Context, root digest.CID) error {
	if err := b.cache.Remove(ctx, root); err != nil {
		return err
	}
	found, err := b.objects(ctx, root)
	if err != nil {
		return fmt.Errorf("remove blob %s: %w", root, err)
	}
	for _, o := range found.all {
		if _, err := b.drop(ctx, o); err != nil {
			return fmt.Errorf("remove blob %s: %w", root, err)
		}
	}
	return nil
}

// List implements store.Store: what is in the bucket, and in the cache.
func (b *Bucket) List(ctx context.Context, after digest.CID, limit int) ([]store.Info, error) {
	kept, err := b.ListKept(ctx, after, limit)
	if err != nil {
		return nil, err
	}
	cached, err := b.cache.List(ctx, after, limit)
	if err != nil {
		return nil, err
	}
	all := append(kept, cached...)
	slices.SortStableFunc(all, func(x, y store.Info) int {
		return cmp.Or(bytes.Compare(x.Root[:], y.Root[:]), -boolCompare(x.Complete, y.Complete))
	})
	all = slices.CompactFunc(all, func(x, y store.Info) bool { return x.Root == y.Root })
	return all[:min(limit, len(all))], nil
}

func boolCompare(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return 1
	}
	return -1
}

// ListKept lists what is whole in the bucket, by root.
func (b *Bucket) ListKept(ctx context.Context, after digest.CID, limit int) ([]store.Info, error) {
	found, err := b.roots(ctx, after, limit, func(f found) bool { return f.newest != nil })
	if err != nil {
		return nil, fmt.Errorf("list the bucket: %w", err)
	}
	infos := make([]store.Info, len(found))
	for i, f := range found {
		infos[i] = store.Info{Root: f.root, StoredBytes: f.newest.bytes, Complete: !f.newest.damaged, LastUse: f.touched}
	}
	return infos, nil
}

// NewUpload implements store.Store.
func (b *Bucket) NewUpload(ctx context.Context, o store.UploadOptions) (store.Upload, error) {
	u, err := b.cache.NewUpload(ctx, o)
	if err != nil {
		return nil, err
	}
	return &upload{Upload: u, b: b}, nil
}

// OpenUpload implements store.Store.
func (b *Bucket) OpenUpload(ctx context.Context, id string) (store.Upload, error) {
	if in, ok := b.late.Get(id); ok {
		return &upload{Upload: lateUpload{b, id, in}, b: b, done: &in}, nil
	}
	u, err := b.cache.OpenUpload(ctx, id)
	if err != nil {
		return nil, err
	}
	return &upload{Upload: u, b: b}, nil
}

// keyed is a mutex a root.
type keyed struct {
	mu   sync.Mutex
	held map[digest.CID]*keyedLock
}

type keyedLock struct {
	users int
	sem   chan struct{}
}

// lock waits for root's mutex; unlock gives it back.
func (k *keyed) lock(ctx context.Context, root digest.CID) (unlock func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[digest.CID]*keyedLock{}
	}
	l := k.held[root]
	if l == nil {
		l = &keyedLock{sem: make(chan struct{}, 1)}
		k.held[root] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.held, root)
		}
	}
	select {
	case l.sem <- struct{}{}:
		return func() {
			<-l.sem
			leave()
		}, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
