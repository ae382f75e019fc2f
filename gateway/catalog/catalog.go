// Package catalog is the one use-case layer that all protocols end in: publish,
// resolve, open, mount, list, delete. What a protocol parses becomes a Draft,
// what it renders comes from here, and the rules that all formats share hold in
// one place: what a repository does not link cannot be seen in it, nothing is
// published unless verify admits it, all that a publish makes visible is one
// log entry, and an answer says how old it may be.
//
// Start reading at Catalog: repository.go (look-up, creation by the first push),
// upload.go (sessions), publish.go (Draft, Publish), read.go (aliases, versions,
// listings, documents, blobs), mount.go and remove.go. The catalog speaks of
// meta's nouns and kinds of error; it knows neither HTTP nor a protocol.
//
// How fresh an answer is (design.md, Metadata): aliases, listings and
// repositories are asked bounded, 2 s on a server; versions and blobs by digest
// are asked locally first, since what a digest names does not change; that
// something does not exist is said only after a strong round. When no bound can
// be kept, because the quorum is away, what is known is served with AsOf.Stale
// set, and what is not known is ErrUnavailable, never ErrNotFound. A Caller's
// After token is always honoured, and so is the mode that it asked for: then
// nothing is confirmed and nothing else is served.
//
// Memory is bounded: documents (manifests and the like, up to 4 MiB each) pass
// through a budget, those read often stay in a cache of bounded bytes, blobs
// only stream. The package starts no goroutines.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Config is what a Catalog is made of.
type Config struct {
	// Metadata answers: the Store on a server, the Mirror on an agent.
	Metadata raftmeta.Asker
	// Commands takes writes; nil on an agent, which forwards them before they come
	// here: every write is then ErrUnavailable.
	Commands raftmeta.Doer
	// Content keeps and opens bytes.
	Content Content
	// May reports whether a principal may do an action to a repository; nil refuses all.
	// The gate has checked the repository of a call; the catalog asks only about
	// others and other actions: when a blob is mounted and when repositories are listed.
	May func(meta.Principal, meta.Action, *meta.Repository) bool
	// IDs makes upload ids; nil on an agent.
	IDs UploadIDs
	// UploadTTL is how long a blob stays that no version uses; 0 means DefaultUploadTTL.
	UploadTTL time.Duration
	// Node and Region are where content comes in: its first verified copy, and the
	// home of a repository that a push creates.
	Node   meta.NodeID
	Region meta.RegionName
	// Holder is whose copy what comes in here becomes: "" is Node's, else its bucket's,
	// and Keep makes sure that the bucket has a copy of a root whose writer had seen the
	// index since of the metadata.
	Holder meta.NodeID
	Keep   func(ctx context.Context, root digest.CID, since uint64) (seen uint64, err error)
	// AutoCreate makes the first push to a repository create it and its tenant.
	AutoCreate bool
	// Second chooses the second region of a repository that a push creates, "" when
	// there is no other; nil chooses none.
	Second func(ctx context.Context, home meta.RegionName) meta.RegionName
	// AckWait is how long a publish waits for second copies where a repository wants
	// them; 0 means DefaultAckWait.
	AckWait time.Duration
	// Backlog is when a tenant is held back; the zero value never does.
	Backlog Backlog
	// Storage reserves room for uploads; nil is without storage quotas.
	Storage Storage
	// CacheBytes bounds the cache of documents; 0 means 64 MiB.
	CacheBytes int64
	// WorkingBytes bounds the documents that are on their way in or out at one
	// time; 0 means 64 MiB, less than 4 MiB means 4 MiB.
	WorkingBytes int64
	// Asked is told what a client calls the blob that it asks for; nil is not told.
	Asked func(b meta.Blob, repo meta.RepoRef, d digest.Digest)
	// Served is told of a version whose document a client is given, and must neither
	// block nor change it; nil is not told.
	Served  func(v *meta.Version)
	Metrics prometheus.Registerer // nil registers nothing
	Log     *slog.Logger
}

// DefaultUploadTTL is how long an upload rests, and what it brought stays without a
// version that uses it.
const DefaultUploadTTL = 24 * time.Hour

// Catalog is the use-case layer. It is safe for concurrent use, has no Run and
// nothing to close.
type Catalog struct {
	cfg       Config
	documents *documents
	working   *semaphore.Weighted // bytes of documents in flight
	working1  int64               // all of it
	backlogs  *lru.Cache[meta.TenantName, behind]
	metrics   metrics
	log       *slog.Logger
}

// New returns a Catalog over the given parts.
func New(cfg Config) (*Catalog, error) {
	switch {
	case cfg.Metadata == nil || cfg.Content == nil:
		return nil, fmt.Errorf("catalog needs metadata and content: %w", meta.ErrInvalid)
	case cfg.Commands != nil && cfg.IDs == nil:
		return nil, fmt.Errorf("a catalog that writes needs upload ids: %w", meta.ErrInvalid)
	}
	if cfg.May == nil {
		cfg.May = func(meta.Principal, meta.Action, *meta.Repository) bool { return false }
	}
	if cfg.CacheBytes == 0 {
		cfg.CacheBytes = 64 << 20
	}
	if cfg.WorkingBytes == 0 {
		cfg.WorkingBytes = 64 << 20
	}
	if cfg.Holder == "" {
		cfg.Holder = cfg.Node
	}
	if cfg.UploadTTL == 0 {
		cfg.UploadTTL = DefaultUploadTTL
	}
	if cfg.AckWait == 0 {
		cfg.AckWait = DefaultAckWait
	}
	if cfg.Storage == nil {
		cfg.Storage = noStorage{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Catalog{cfg: cfg, log: cfg.Log, working1: max(cfg.WorkingBytes, verify.MaxDocumentBytes), backlogs: newBacklogs()}
	c.working = semaphore.NewWeighted(c.working1)
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	c.metrics = m
	c.documents = newDocuments(cfg.CacheBytes)
	return c, nil
}

// Caller is who calls, and the point that the answer must include.
type Caller struct {
	Who meta.Principal
	// Origin goes into commands; its RequestID must be unique to the call.
	Origin state.Origin
	After  meta.Token
	// Asked is how fresh a read's answer has to be; the zero Mode leaves it to what is
	// asked. It is exact: no other mode takes its place, and an absence is as fresh as
	// the rest.
	Asked meta.Freshness
	// Absent, when set, is told what an answer is of which says that nothing is there.
	Absent func(meta.AsOf)
}

// inside returns by without what it asked of the answer: for a look-up that only
// helps the catalog.
func (by Caller) inside() Caller {
	by.Asked, by.Absent = meta.Freshness{}, nil
	return by
}

// Nth returns by for the n-th of several calls of the same kind in one request: each has
// a request id of its own, or the second would be taken for a repetition of the first.
func (by Caller) Nth(n int) Caller {
	if by.Origin.RequestID != "" {
		by.Origin.RequestID += "/" + strconv.Itoa(n)
	}
	return by
}

// Package names a package of a repository.
type Package struct {
	Repo meta.RepoRef
	Name string
}

func (p Package) String() string { return p.Repo.String() + "/" + p.Name }

// Reserve takes part of the budget for documents in flight, waiting for it, and
// returns what gives it back. A protocol reserves before it reads a document
// into memory. bytes above the whole budget take all of it.
//
// Errors: meta.ErrUnavailable when ctx ends first.
func (c *Catalog) Reserve(ctx context.Context, bytes int64) (release func(), err error) {
	bytes = min(max(bytes, 1), c.working1)
	if err := c.working.Acquire(ctx, bytes); err != nil {
		return nil, fmt.Errorf("wait for memory to hold a document: %w: %w", meta.ErrUnavailable, err)
	}
	return func() { c.working.Release(bytes) }, nil
}

// ask answers q as fresh as f says, and the caller's token; that nothing is
// there is confirmed by a strong round.
//
// A bounded question that cannot be answered so, because the quorum is away, is
// answered from what is known here, labelled stale. That is not done for a caller
// with a token: it asked not to be answered from before its write.
func ask[A any](ctx context.Context, c *Catalog, by Caller, f meta.Freshness, q state.Question[A]) (A, meta.AsOf, error) {
	a, asOf, err := askOnce(ctx, c, by, f, q)
	if f.Mode != meta.ModeStrong && by.Asked.Mode == "" && errors.Is(err, meta.ErrNotFound) {
		c.metrics.confirmed.Inc()
		strong := meta.Strong
		strong.After = by.After
		a, asOf, err = raftmeta.Ask(ctx, c.cfg.Metadata, strong, q)
	}
	if by.Absent != nil && errors.Is(err, meta.ErrNotFound) {
		by.Absent(asOf)
	}
	return a, asOf, err
}

// askOnce is ask without the confirmation.
func askOnce[A any](ctx context.Context, c *Catalog, by Caller, f meta.Freshness, q state.Question[A]) (A, meta.AsOf, error) {
	if by.Asked.Mode != "" {
		f = by.Asked
	} else if f.Mode == meta.ModeBounded {
		f.Own = by.Who.MayHaveWritten()
	}
	f.After = by.After
	a, asOf, err := raftmeta.Ask(ctx, c.cfg.Metadata, f, q)
	if f.Mode == meta.ModeBounded && !f.Exact && by.After == (meta.Token{}) && errors.Is(err, meta.ErrUnavailable) && ctx.Err() == nil {
		c.metrics.stale.Inc()
		a, asOf, err = raftmeta.Ask(ctx, c.cfg.Metadata, meta.Local, q)
		asOf.Stale = true
	}
	return a, asOf, err
}

// do sends a command. step tells the commands of one call apart, so that each
// has a request id of its own and a repeated call repeats none of them.
func (c *Catalog) do(ctx context.Context, by Caller, step int, cmd state.Command) (raftmeta.Receipt, error) {
	if c.cfg.Commands == nil {
		return raftmeta.Receipt{}, fmt.Errorf("write on an agent: %w", &meta.UnavailableError{Reason: "no_server"})
	}
	origin := by.Origin
	if origin.RequestID != "" {
		origin.RequestID += "." + strconv.Itoa(step)
	}
	if origin.Principal == "" {
		origin.Principal = by.Who.Name
	}
	origin.Node = c.cfg.Node
	return c.cfg.Commands.Do(ctx, origin, cmd)
}
