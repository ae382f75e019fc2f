package catalog_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// room is a storage with so many bytes for all sessions.
type room struct {
	mu      sync.Mutex
	bytes   int64
	held    map[string]int64
	settled int64
}

func (r *room) Reserve(_ context.Context, tenant meta.TenantName, session string, bytes int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := r.settled
	for id, held := range r.held {
		if id != session {
			sum += held
		}
	}
	if sum+bytes > r.bytes {
		return &meta.QuotaError{Tenant: tenant, Limit: "storage quota", Help: "delete something"}
	}
	r.held[session] = max(r.held[session], bytes)
	return nil
}

func (r *room) Held(_ meta.TenantName, session string) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held[session]
}

func (r *room) Settled(_ meta.TenantName, session string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settled += r.held[session]
	delete(r.held, session)
}

func (r *room) Release(_ meta.TenantName, session string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.held, session)
}

// Uploads reserve what comes before it is stored, keep it from one request to the next,
// and give it back when they are linked, cancelled or refused; documents reserve nothing.
func TestUploadsReserve(t *testing.T) {
	store := &room{bytes: 100, held: map[string]int64{}}
	w := newWorld(t, func(c *catalog.Config) { c.Storage = store })
	w.create(app)
	ctx := t.Context()
	begin := func() *catalog.Upload {
		t.Helper()
		u, err := w.Begin(ctx, w.by, app, false)
		w.must(err)
		return u
	}
	sum := func() (n int64) {
		for _, held := range store.held {
			n += held
		}
		return n
	}
	first := begin()
	_, err := first.Append(ctx, strings.NewReader(strings.Repeat("a", 40)))
	w.must(err)
	w.must(first.Close())
	if sum() != 40 {
		t.Fatalf("between two requests %d bytes are reserved", sum())
	}
	first, err = w.Resume(ctx, w.by, app, first.ID())
	w.must(err)
	_, err = first.Append(ctx, strings.NewReader(strings.Repeat("a", 20)))
	w.must(err)

	second := begin()
	if _, err := second.Append(ctx, strings.NewReader(strings.Repeat("b", 50))); !errors.Is(err, meta.ErrDenied) {
		t.Fatalf("an upload without room: %v", err)
	}
	w.must(second.Close())
	if _, err := w.Resume(ctx, w.by, app, second.ID()); !errors.Is(err, meta.ErrNotFound) {
		t.Fatalf("what was refused is kept: %v", err)
	}
	if sum() != 60 {
		t.Fatalf("after a refusal %d bytes are reserved", sum())
	}
	third := begin()
	_, err = third.Append(ctx, strings.NewReader("ccccc"))
	w.must(err)
	w.must(third.Cancel(ctx))
	w.must(third.Close())

	_, _, err = first.Commit(ctx, digest.FromBytes(bytes.Repeat([]byte("a"), 60)))
	w.must(err)
	w.must(first.Close())
	if sum() != 0 || store.settled != 60 {
		t.Fatalf("in the end %d bytes are reserved and %d arrived", sum(), store.settled)
	}
	// A publish's own documents are judged by the state machine.
	store.bytes = 60
	if _, err := w.Begin(ctx, w.by, app, false); !errors.Is(err, meta.ErrDenied) {
		t.Fatalf("an upload into a full tenant: %v", err)
	}
	_, err = w.Publish(ctx, w.by, app, catalog.Draft{
		Version:   meta.Version{Package: "api", MediaType: "text/plain"},
		Documents: []catalog.Document{{Path: "notes", MediaType: "text/plain", Body: []byte("a document")}},
	})
	w.must(err)
	if len(store.held) != 0 {
		t.Fatalf("%v are reserved", store.held)
	}
}
