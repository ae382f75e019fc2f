package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/outbound"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Config is what an Engine is made of.
type Config struct {
	// Catalog keeps and opens what comes.
	Catalog *catalog.Catalog
	// Metadata and Commands know where a group's packages come from; without Commands, as
	// on an agent, nothing is remembered of them here but what servers do.
	Metadata raftmeta.Asker
	Commands raftmeta.Doer
	// Self is this node.
	Self meta.NodeID
	// Peers are the servers that ask upstreams; nil when this one asks for itself, which
	// takes Commands.
	Peers Peers
	// Outgoing says which networks may be dialled although they are reserved, and which
	// roots verify an upstream. Its limits are the engine's own.
	Outgoing outbound.Rules
	// Secrets opens the credentials for a repository's upstream; nil has none.
	Secrets func(ctx context.Context, repo *meta.Repository) (Credential, error)
	// Now is the clock, nil for the real one.
	Now     func() time.Time
	Metrics prometheus.Registerer // nil registers nothing
	Log     *slog.Logger
}

// Credential is what an upstream is asked with: a user and a password, or without a user
// a bearer token.
type Credential struct {
	User   string
	Secret trust.Secret
	// Version tells one from those before it.
	Version uint64
}

// Peers are the servers that ask upstreams.
type Peers interface {
	// For lists them in the order in which they are asked for a key: the one that answers
	// for it first. This node is among them when it is one of them.
	For(key string) []meta.NodeID
	// Ask has a server get what is wanted. When the question is for a stream, told hears
	// what has come of a file so far, before the answer.
	//
	// Errors: an error that is ErrUnreachable when another one may be asked; else what the
	// server says.
	Ask(ctx context.Context, server meta.NodeID, q Question, told func(Progress)) (*Found, error)
}

// Question is what one node asks another.
type Question struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Want Want         `cbor:"2,keyasint,omitempty"`
	// Group, when set, is the group of Repo's tenant that takes the package from Repo when
	// it is there.
	Group string `cbor:"3,keyasint,omitempty"`
	// Package is what the group keeps the package by, "" for the one that is wanted.
	Package string `cbor:"5,keyasint,omitempty"`
	// Stream asks to be told of a large file while it arrives.
	Stream bool `cbor:"4,keyasint,omitempty"`
}

// ErrUnreachable says that a server could not be asked, so that another one may be. It is
// a meta.ErrUnavailable.
var ErrUnreachable = fmt.Errorf("the server that asks the upstream cannot be reached: %w", meta.ErrUnavailable)

const (
	// maxDownloads bounds the answers of upstreams that arrive at one time.
	maxDownloads = 128
	// maxTenantDownloads bounds those for one tenant, whose upstreams may drip; fewer than
	// outbound has connections to one host, which other tenants may ask too.
	maxTenantDownloads = 24
	// maxKnownAbsent bounds the addresses with nothing there that are remembered here.
	maxKnownAbsent = 50_000
	// absences that are kept in the log, a second and at once: strangers' guesses must not
	// fill it.
	absencesPerSecond = 20
	absencesAtOnce    = 500
	// warnEvery bounds what the log says of nodes that ask for what they may not.
	warnEvery = time.Minute
	// downFor is how long an upstream that did not answer is not asked for what is known.
	downFor = 10 * time.Second
	// maxUpstreams bounds what is remembered of upstreams: tokens, and that one is down.
	maxUpstreams = 1024
)

// Engine gets what upstreams have. It is safe for concurrent use. Close ends its
// downloads.
type Engine struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	client  *http.Client

	slots    *semaphore.Weighted
	absences *lru.Cache[flightKey, time.Time] // until when
	durable  *rate.Limiter                    // absences that are kept in the log
	unnamed  rate.Sometimes                   // warnings of addresses that no document names
	down     *lru.Cache[downKey, time.Time]   // until when
	tokens   *lru.Cache[tokenKey, bearer]

	base    context.Context // of downloads
	end     context.CancelFunc
	running sync.WaitGroup
	mu      sync.Mutex
	flights map[flightKey]*flight
	names   map[string]Names // by format
	naming  singleflight.Group
	tenants map[meta.TenantName]*share // those with downloads under way or waiting
}

// New returns an Engine over the given parts.
func New(cfg Config) (*Engine, error) {
	switch {
	case cfg.Catalog == nil || cfg.Metadata == nil || cfg.Self == "":
		return nil, fmt.Errorf("the proxy engine needs a catalog, metadata and its own name: %w", meta.ErrInvalid)
	case cfg.Peers == nil && cfg.Commands == nil:
		return nil, fmt.Errorf("a proxy engine that writes nothing needs servers to ask: %w", meta.ErrInvalid)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		cfg: cfg, log: cfg.Log, slots: semaphore.NewWeighted(maxDownloads), flights: map[flightKey]*flight{}, names: map[string]Names{}, tenants: map[meta.TenantName]*share{},
		durable: rate.NewLimiter(absencesPerSecond, absencesAtOnce), unnamed: rate.Sometimes{Interval: warnEvery},
	}
	var err error
	if e.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, err
	}
	// They fail for a size below 1 only.
	e.absences, _ = lru.New[flightKey, time.Time](maxKnownAbsent)
	e.down, _ = lru.New[downKey, time.Time](maxUpstreams)
	e.tokens, _ = lru.New[tokenKey, bearer](maxUpstreams)
	e.client = newClient(cfg.Outgoing)
	e.base, e.end = context.WithCancel(context.Background())
	return e, nil
}

// Close ends the downloads that are under way, and waits for them.
func (e *Engine) Close() error {
	e.end()
	e.running.Wait()
	e.client.CloseIdleConnections()
	return nil
}

// Fetch returns what the upstream of a proxy repository has: what is kept, as long as
// that may be served, else what the region's server for the address gets. The caller
// has checked that by may read the repository.
//
// Errors: meta.ErrNotFound when the upstream has nothing there; *BlockedError (a
// meta.ErrDenied); meta.ErrUnavailable when the upstream could not be asked and nothing
// is kept; *IntegrityError, or an error that is protocol.ErrUpstream, when its answer
// cannot be used; meta.ErrTooLarge.
func (e *Engine) Fetch(ctx context.Context, by catalog.Caller, repo *meta.Repository, w Want) (*Found, error) {
	return e.fetch(ctx, by, repo, &w, func(ctx context.Context, repo *meta.Repository, w *Want) (*Found, error) {
		return e.ask(ctx, repo, w, nil)
	})
}

// fetch is Fetch, which gets what is not known, or not for sure, by get.
func (e *Engine) fetch(ctx context.Context, by catalog.Caller, repo *meta.Repository, w *Want, get func(context.Context, *meta.Repository, *Want) (*Found, error)) (*Found, error) {
	if err := admits(repo, w); err != nil {
		return nil, err
	}
	known, asOf, err := e.known(ctx, by, repo, w)
	if err != nil {
		return nil, err
	}
	v := judge(known, w, repo.Upstream, e.cfg.Now())
	switch v {
	case serveKnown:
		e.metrics.answers.WithLabelValues("known").Inc()
		return found(known, asOf), nil
	case sayAbsent:
		e.metrics.answers.WithLabelValues("absent").Inc()
		return nil, absent(repo.Ref, w)
	}
	f, err := get(ctx, repo, w)
	if err == nil || v != revalidate || !stale(err) || ctx.Err() != nil {
		return f, err
	}
	e.metrics.answers.WithLabelValues("stale").Inc()
	e.log.Debug("an upstream could not be asked, what is known serves", "repository", repo.Ref.String(), "path", w.Path, "error", err)
	if known.Fetched.Absent() {
		return nil, &unconfirmedError{absence: absent(repo.Ref, w), cause: err}
	}
	f = found(known, asOf)
	f.Stale = true
	return f, nil
}

// admits refuses what no engine fetches.
func admits(repo *meta.Repository, w *Want) error {
	if repo.Kind != meta.KindProxy || repo.Upstream == nil {
		return fmt.Errorf("repository %s is %s and has no upstream: %w", repo.Ref, repo.Kind, meta.ErrConflict)
	}
	if err := meta.CheckFetchedPath(w.Path); err != nil {
		// A path that no upstream can have is not there.
		return fmt.Errorf("%w: %w", meta.ErrNotFound, err)
	}
	if err := w.check(); err != nil {
		return err
	}
	if w.Package == "" {
		return nil
	}
	if ok, rule := rulesOf(repo).Admits(w.Package); !ok {
		return &BlockedError{Repo: repo.Ref, Package: w.Package, Rule: rule}
	}
	return nil
}

// known returns what this node knows of an address, nil when that is nothing, or of
// another upstream and not promised.
func (e *Engine) known(ctx context.Context, by catalog.Caller, repo *meta.Repository, w *Want) (*state.FetchedAnswer, meta.AsOf, error) {
	path, accept := w.record()
	a, asOf, err := e.cfg.Catalog.Fetched(ctx, by, repo.Ref, path, accept)
	switch {
	case errors.Is(err, meta.ErrNotFound), errors.Is(err, meta.ErrUnavailable) && ctx.Err() == nil:
		return nil, asOf, nil
	case err != nil:
		return nil, asOf, err
	}
	promised := w.Digest != "" && (w.Digest == a.Blob.Digest || w.Digest == a.Blob.SHA512)
	if of := a.Fetched.Upstream; of != "" && !promised && of != w.upstream(repo) {
		return nil, asOf, nil
	}
	return &a, asOf, nil
}

func found(a *state.FetchedAnswer, asOf meta.AsOf) *Found {
	return &Found{Record: a.Fetched, Blob: a.Blob, AsOf: asOf}
}

func absent(repo meta.RepoRef, w *Want) error {
	return fmt.Errorf("the upstream of %s has no %s: %w", repo, cmp.Or(w.Path, "document"), meta.ErrNotFound)
}

// unconfirmedError is an absence that was so once, while the upstream cannot be asked
// whether it still is: an absence to readers, but no reason to look elsewhere.
type unconfirmedError struct{ absence, cause error }

func (e *unconfirmedError) Error() string {
	return fmt.Sprintf("%v (as it was, now it cannot be asked: %v)", e.absence, e.cause)
}

// Unwrap returns the absence.
func (e *unconfirmedError) Unwrap() error { return e.absence }

// ask has the server get what is wanted that answers for it, or the next when that one
// is away. watch, when not nil, is told of what arrives.
func (e *Engine) ask(ctx context.Context, repo *meta.Repository, w *Want, watch func(*arrival)) (*Found, error) {
	if e.cfg.Peers == nil {
		return e.own(ctx, repo, w, watch)
	}
	last := fmt.Errorf("no server of the region asks upstreams: %w", &meta.UnavailableError{Reason: "no_server", RetryAfter: 2 * time.Second})
	for _, server := range e.cfg.Peers.For(repo.Ref.String() + "/" + w.Path) {
		if server == e.cfg.Self {
			return e.own(ctx, repo, w, watch)
		}
		f, err := e.cfg.Peers.Ask(ctx, server, Question{Repo: repo.Ref, Want: *w, Stream: watch != nil}, told(watch))
		if !errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			return f, err
		}
		last = err
	}
	return nil, last
}

// Open returns a reader of what was found. Errors: as catalog.Catalog.Open has them.
func (e *Engine) Open(ctx context.Context, f *Found) (catalog.Reader, error) {
	return e.cfg.Catalog.Open(ctx, f.Blob)
}

// Document returns the bytes of what was found, at most maxBytes of them. The caller
// bounds how many it holds at a time (catalog.Catalog.Reserve).
//
// Errors: meta.ErrTooLarge; as Open has them.
func (e *Engine) Document(ctx context.Context, f *Found, maxBytes int64) ([]byte, error) {
	if f.Record.Size > maxBytes {
		return nil, fmt.Errorf("document %s of %s has %d bytes, at most %d are read: %w", f.Record.Path, f.Record.Repo, f.Record.Size, maxBytes, meta.ErrTooLarge)
	}
	r, err := e.Open(ctx, f)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	body := make([]byte, f.Record.Size)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("read document %s: %w", f.Record.Digest, err)
	}
	return body, nil
}
