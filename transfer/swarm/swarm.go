// Package swarm fetches a blob's chunks from peers while it serves them to others.
package swarm

import (
	"context"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Swarm fetches and serves blobs by their roots.
type Swarm struct{ cfg Config }

// New returns a Swarm that works once Run is called.
func New(cfg Config) (*Swarm, error) { return &Swarm{cfg: cfg}, nil }

// Run serves and fetches until ctx ends; every goroutine of the swarm is its own.
func (s *Swarm) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Fetch joins the one fetch of root, or starts it, and returns a hold on it. The
// fetch goes on while a hold is open; the holder must Close it.
//
// A new hold wants every chunk in order from 0; Prefer changes that.
func (s *Swarm) Fetch(ctx context.Context, root digest.CID, hints Hints) (*Session, error) {
	return nil, meta.ErrUnavailable
}

// Map returns the encoded chunk map of root, from the store, the finder or a peer.
func (s *Swarm) Map(ctx context.Context, root digest.CID) ([]byte, error) {
	return nil, meta.ErrUnavailable
}

// Session is one caller's hold on the fetch of a root.
type Session struct{}

// Blob waits until the map is known and the blob exists in the store, partial or
// complete. It stays valid until Close and is closed by the session, not the caller.
//
// Errors: ctx's, the fetch's own (Err).
func (s *Session) Blob(ctx context.Context) (store.Blob, error) { return nil, meta.ErrUnavailable }

// Map is Blob's map.
func (s *Session) Map(ctx context.Context) (*chunk.Map, error) { return nil, meta.ErrUnavailable }

// Prefer says that this caller wants chunks [from, to) and reads them in that
// order; to <= 0 means to the end. It does not block.
func (s *Session) Prefer(from, to int) {}

// Wait returns nil as soon as chunk i is in the store, verified. It implies that
// the caller wants it.
//
// Errors: ctx's; the fetch's own, wrapping a kind of meta.
func (s *Session) Wait(ctx context.Context, i int) error { return meta.ErrUnavailable }

// Done is closed when every chunk is in the store or the fetch has failed; Err
// then tells which.
func (s *Session) Done() <-chan struct{} { return nil }

// Err returns why the fetch failed, nil while it runs or when the blob is complete.
func (s *Session) Err() error { return nil }

// Close lets go. The last one ends the fetch; what is fetched stays in the store.
func (s *Session) Close() error { return nil }
