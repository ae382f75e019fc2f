// Package transfer opens verified content: from the local store, else from the swarm
// while it arrives.
//
// Content is what the rooms above use: Open gives a Reader of a blob's plain bytes,
// Ensure brings a whole blob here and checks it against its digest, Uploads takes
// content in. Each byte that a Reader hands out was checked against the chunk map;
// a blob that is read whole for the first time is also checked against its sha256,
// before its last bytes are handed out. A damaged chunk is fetched again while the
// reader waits. Start reading at Content, then reader.go.
//
// A Reader that reads ahead owns one goroutine, which its Close ends. The memory of
// all Readers together is bounded by Config.ReadBytes.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Fetcher brings blobs that are not here; Swarm makes a *swarm.Swarm one.
type Fetcher interface {
	// Fetch joins the one fetch of b.Root, or starts it, in the class that limit.ClassOf
	// finds in ctx.
	Fetch(ctx context.Context, b meta.Blob) (Session, error)
	// Map returns the encoded chunk map of root.
	Map(ctx context.Context, root digest.CID) ([]byte, error)
}

// Session is a hold on a fetch. Its methods may be called concurrently.
type Session interface {
	// Blob waits until the chunk map is known and returns the blob in the store. It
	// is the session's: valid until Close, not closed by the caller.
	Blob(ctx context.Context) (store.Blob, error)
	// Prefer says that chunks [from, to) are read next, in that order.
	Prefer(from, to int)
	// Wait returns nil once chunk i is in the store.
	Wait(ctx context.Context, i int) error
	Close() error
}

// Config is what a Content needs. Store is required.
type Config struct {
	Store store.Store
	// Fetcher is asked for what is not here; without one that is meta.ErrNotFound.
	Fetcher Fetcher
	// CheckLocal makes the first whole read of a blob that was here at the start of
	// the process compare sha256 too, as for one that was fetched. Agents set it:
	// nobody checked their cache since. Servers compare when they ingest or fetch.
	CheckLocal bool
	// Missed is told of a blob that is opened and not here, or not whole; it must not
	// block. Nil is nobody.
	Missed func(root digest.CID)
	// ReadBytes bounds the chunks that all Readers hold; 0 is 96 MiB. A Reader that
	// would exceed it waits.
	ReadBytes int64
	// Log is silent when nil, Metrics unregistered when nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// minReadBytes is what one Reader of the largest chunks needs to make progress.
const minReadBytes = 2 * chunk.MaxStoredBytes

// checkedMost is how many roots are remembered as checked; forgetting one costs
// hashing it again.
const checkedMost = 1 << 16

// Content opens verified content. New builds it; it has nothing to run or close.
type Content struct {
	cfg     Config
	log     *slog.Logger
	memory  *semaphore.Weighted
	checked *lru.Cache[checkKey, struct{}]
	metrics *metrics
}

// checkKey is a root that was found to have a digest.
type checkKey struct {
	root   digest.CID
	digest digest.Digest
}

// New returns a Content over cfg.Store.
func New(cfg Config) (*Content, error) {
	if cfg.Store == nil {
		return nil, fmt.Errorf("transfer without a store: %w", meta.ErrInvalid)
	}
	if cfg.ReadBytes == 0 {
		cfg.ReadBytes = 96 << 20
	}
	cfg.ReadBytes = max(cfg.ReadBytes, minReadBytes)
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	checked, err := lru.New[checkKey, struct{}](checkedMost)
	if err != nil {
		return nil, err
	}
	return &Content{cfg: cfg, log: log, memory: semaphore.NewWeighted(cfg.ReadBytes), checked: checked, metrics: newMetrics(cfg.Metrics)}, nil
}

// Uploads takes content in.
func (c *Content) Uploads() Uploads { return c.cfg.Store }

// Uploads is the part of the store that takes content in.
type Uploads interface {
	NewUpload(ctx context.Context, o store.UploadOptions) (store.Upload, error)
	OpenUpload(ctx context.Context, id string) (store.Upload, error)
}

// Map returns the encoded chunk map of root, from here or fetched.
//
// Errors: meta.ErrNotFound, meta.ErrUnavailable.
func (c *Content) Map(ctx context.Context, root digest.CID) ([]byte, error) {
	b, err := c.cfg.Store.Open(ctx, root)
	if err == nil {
		defer b.Close()
		return b.Map().Encode(), nil
	}
	if c.cfg.Fetcher == nil || !absent(err) {
		return nil, err
	}
	return c.cfg.Fetcher.Map(ctx, root)
}

// absent says that fetching would help.
func absent(err error) bool {
	return errors.Is(err, meta.ErrNotFound) || errors.Is(err, meta.ErrCorrupt)
}

// Has says whether the whole blob is here.
func (c *Content) Has(ctx context.Context, root digest.CID) bool {
	b, err := c.cfg.Store.Open(ctx, root)
	if err != nil {
		return false
	}
	defer b.Close()
	return b.Complete()
}
