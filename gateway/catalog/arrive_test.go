package catalog_test

import (
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// A document that arrives is the same when it is read, takes memory of others only then,
// and leaves no session behind.
func TestArrive(t *testing.T) {
	w := newWorld(t, func(c *catalog.Config) { c.WorkingBytes = 4 << 20 })
	w.create(app)
	ctx := t.Context()
	all, err := w.Reserve(ctx, math.MaxInt64) // nothing is free while they arrive
	w.must(err)
	for _, size := range []int{0, 1, 64 << 10, 64<<10 + 1, 4 << 20} {
		body := strings.Repeat("x", size)
		for _, says := range []int64{-1, int64(size)} {
			a, err := w.Arrive(ctx, w.by, app, iotest.HalfReader(strings.NewReader(body)), says, 4<<20)
			w.must(err)
			all()
			b, release, err := a.Read(ctx)
			w.must(err)
			if string(b) != body {
				t.Errorf("%d bytes arrived as %d others", size, len(b))
			}
			release()
			all, err = w.Reserve(ctx, math.MaxInt64)
			w.must(err)
			w.must(a.Close())
		}
	}
	all()
	broke := errors.New("broke off")
	for name, r := range map[string]struct {
		body io.Reader
		size int64
		want error
	}{
		"says too much":      {strings.NewReader(""), 101, meta.ErrTooLarge},
		"is too much":        {strings.NewReader(strings.Repeat("x", 101)), -1, meta.ErrTooLarge},
		"is far too much":    {strings.NewReader(strings.Repeat("x", 1<<20)), -1, meta.ErrTooLarge},
		"ends early":         {strings.NewReader("x"), 2, meta.ErrInvalid},
		"ends before it may": {iotest.ErrReader(io.ErrUnexpectedEOF), 2, meta.ErrInvalid},
		"breaks off":         {io.MultiReader(strings.NewReader("x"), iotest.ErrReader(broke)), 2, broke},
	} {
		if _, err := w.Arrive(ctx, w.by, app, r.body, r.size, 100); !errors.Is(err, r.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	long := io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), iotest.ErrReader(broke))
	if _, err := w.Arrive(ctx, w.by, app, long, -1, 4<<20); !errors.Is(err, broke) {
		t.Errorf("breaks off late: %v", err)
	}
}
