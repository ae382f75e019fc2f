package upstream

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Config is what an Engine is made of.
type Config struct {
	// Catalog keeps and opens what comes.
	Catalog *catalog.Catalog
}

// Engine gets what upstreams have. It is safe for concurrent use.
type Engine struct {
	cfg Config
}

// New returns an Engine over the given parts.
func New(cfg Config) (*Engine, error) {
	if cfg.Catalog == nil {
		return nil, fmt.Errorf("the proxy engine needs a catalog: %w", meta.ErrInvalid)
	}
	return &Engine{cfg: cfg}, nil
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
	return nil, fmt.Errorf("fetch %s: %w", w.Path, &meta.UnavailableError{Reason: "no_upstream", RetryAfter: time.Second})
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

// Sources returns who answers for a package of a repository, in the order of asking: a
// hosted repository and a proxy for themselves; of a group its hosted members that own
// the name; else the one proxy that has it. probe says what to ask of a proxy to find
// out whether it has the package.
//
// Errors: meta.ErrNotFound when nobody has it; as Fetch has them.
func (e *Engine) Sources(ctx context.Context, by catalog.Caller, repo *meta.Repository, pkg string, probe func(member *meta.Repository) Want) ([]meta.Repository, error) {
	if repo.Kind != meta.KindGroup {
		return []meta.Repository{*repo}, nil
	}
	return nil, fmt.Errorf("package %s of %s: %w", pkg, repo.Ref, meta.ErrNotFound)
}
