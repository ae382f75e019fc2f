package catalog_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
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

// TestBucketsServerReserves: the copy of what a server takes in may be its bucket's, the
// reservation is the server's own.
func TestBucketsServerReserves(t *testing.T) {
	const bucket meta.NodeID = "bucket-00000000000000aa"
	store := &room{bytes: 100, held: map[string]int64{}}
	sent := &linked{}
	w := newWorld(t, func(c *catalog.Config) {
		sent.Doer = c.Commands
		c.Storage, c.Holder, c.Commands = store, bucket, sent
	})
	w.create(app)
	u, err := w.Begin(t.Context(), w.by, app, false)
	w.must(err)
	_, err = u.Append(t.Context(), strings.NewReader("12345"))
	w.must(err)
	_, _, _ = u.Commit(t.Context(), "") // the metadata knows of no bucket
	w.must(u.Close())
	if c := sent.command; c.Server != bucket || c.Reserver != catalogtest.Node || c.Reserved != 5 {
		t.Errorf("linked as %+v", c)
	}
}

// linked keeps the LinkBlob that passes.
type linked struct {
	raftmeta.Doer
	command state.LinkBlob
}

func (l *linked) Do(ctx context.Context, o state.Origin, c state.Command) (raftmeta.Receipt, error) {
	if link, ok := c.(state.LinkBlob); ok {
		l.command = link
	}
	return l.Doer.Do(ctx, o, c)
}
