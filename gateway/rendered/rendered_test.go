package rendered

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func open(t *testing.T, cfg Config) *Cache {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(t.TempDir(), "rendered")
	}
	cfg.Metrics = prometheus.NewRegistry()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func key(pkg string, revision uint64) Key {
	return Key{Repo: meta.RepoRef{Tenant: "acme", Name: "npm"}, Package: pkg, Revisions: []uint64{revision}}
}

func text(s []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		for len(s) > 0 {
			n, err := w.Write(s[:min(len(s), 100_000)])
			if err != nil {
				return err
			}
			s = s[n:]
		}
		return nil
	}
}

func never(t *testing.T) func(io.Writer) error {
	return func(io.Writer) error { t.Error("rendered again"); return nil }
}

func read(t *testing.T, d *Document) []byte {
	t.Helper()
	r, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestKeepsDocuments: small and large ones come back as they were rendered, once, and no
// file of them has a name.
func TestKeepsDocuments(t *testing.T) {
	c := open(t, Config{})
	for name, size := range map[string]int{"empty": 0, "small": 10, "edge": MemoryDocumentBytes, "large": MemoryDocumentBytes + 1, "huge": 5 << 20} {
		body := bytes.Repeat([]byte(name+"!"), size/len(name)+1)[:size]
		d, err := c.Get(t.Context(), key(name, 1), text(body))
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.Get(t.Context(), key(name, 1), never(t))
		if err != nil || again != d || d.Size != int64(size) || d.Digest != digest.FromBytes(body) || d.ETag != `"`+string(d.Digest)+`"` {
			t.Errorf("%s: %+v, %v", name, again, err)
		}
		if (d.file != nil) != (size > MemoryDocumentBytes) || !bytes.Equal(read(t, d), body) || !bytes.Equal(read(t, d), body) {
			t.Errorf("%s comes back otherwise", name)
		}
		r, _ := d.Open()
		if _, err := r.Seek(int64(size/2), io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if half, _ := io.ReadAll(r); !bytes.Equal(half, body[size/2:]) {
			t.Errorf("%s: the second half has %d bytes", name, len(half))
		}
	}
	if files, err := os.ReadDir(c.cfg.Dir); err != nil || len(files) != 0 {
		t.Errorf("the folder has %v, %v", files, err)
	}
}

// TestKeysTellApart: all parts of a key count, however they are cut.
func TestKeysTellApart(t *testing.T) {
	seen := map[id]Key{}
	repo := meta.RepoRef{Tenant: "a", Name: "b"}
	for _, k := range []Key{
		{}, {Repo: repo}, {Repo: repo, Package: "p"}, {Repo: repo, Package: "p", Variant: "v"}, {Repo: repo, Package: "pv"},
		{Repo: repo, Revision: "p", Variant: "v"}, {Repo: repo, Revisions: []uint64{1}}, {Repo: repo, Revisions: []uint64{1, 0}},
		{Repo: repo, Revisions: []uint64{0, 1}}, {Repo: meta.RepoRef{Tenant: "ab"}}, {Repo: meta.RepoRef{Name: "ab"}}, {Package: "v"}, {Variant: "v"}, {Revision: "v"},
	} {
		if other, ok := seen[k.id()]; ok {
			t.Errorf("%+v and %+v are one", k, other)
		}
		seen[k.id()] = k
	}
}

// TestRendersOnce: of many who want a document at a time one renders.
func TestRendersOnce(t *testing.T) {
	c := open(t, Config{})
	var renders atomic.Int32
	started, gate := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	get := func(render func(io.Writer) error) {
		all.Go(func() {
			d, err := c.Get(t.Context(), key("p", 1), render)
			if err != nil || d.Size != 4 {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
	get(func(w io.Writer) error {
		renders.Add(1)
		close(started)
		<-gate
		return text([]byte("once"))(w)
	})
	<-started
	for range 50 {
		get(func(w io.Writer) error { renders.Add(1); return text([]byte("once"))(w) })
	}
	close(gate)
	all.Wait()
	if n := renders.Load(); n != 1 {
		t.Errorf("rendered %d times", n)
	}
}

// TestFailures: an error reaches all who wait and is not kept; one who leaves does not
// take the others along.
func TestFailures(t *testing.T) {
	c := open(t, Config{MaxBytes: 2 << 20})
	failed := errors.New("no")
	if _, err := c.Get(t.Context(), key("p", 1), func(io.Writer) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("a failure is %v", err)
	}
	if _, err := c.Get(t.Context(), key("p", 1), text(make([]byte, 3<<20))); !errors.Is(err, meta.ErrTooLarge) {
		t.Errorf("too large is %v", err)
	}
	swallowed := func(w io.Writer) error { _, _ = w.Write(make([]byte, 3<<20)); return nil }
	if _, err := c.Get(t.Context(), key("p", 1), swallowed); !errors.Is(err, meta.ErrTooLarge) {
		t.Errorf("too large and swallowed is %v", err)
	}

	ctx, leave := context.WithCancel(t.Context())
	started := make(chan struct{})
	first := make(chan error)
	go func() {
		_, err := c.Get(ctx, key("p", 1), func(io.Writer) error {
			close(started)
			<-ctx.Done()
			return ctx.Err()
		})
		first <- err
	}()
	<-started
	second := make(chan error)
	go func() {
		d, err := c.Get(t.Context(), key("p", 1), text([]byte("ok")))
		if err == nil && d.Size != 2 {
			err = fmt.Errorf("%d bytes", d.Size)
		}
		second <- err
	}()
	gone, goneToo := context.WithCancel(t.Context())
	goneToo()
	if _, err := c.Get(gone, key("p", 1), never(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("who waits and leaves gets %v", err)
	}
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who left gets %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("who stayed gets %v", err)
	}
}

// TestBounds: memory and disk are bounded, least recently used goes first, and who has a
// document reads it to its end all the same.
func TestBounds(t *testing.T) {
	c := open(t, Config{MemoryBytes: 3 << 20, DiskBytes: 5 << 20})
	large := bytes.Repeat([]byte("x"), 2<<20)
	small := bytes.Repeat([]byte("y"), 1<<20)
	var kept *Document
	for i := range uint64(20) {
		d, err := c.Get(t.Context(), key("large", i), text(large))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			kept = d
		}
		if _, err := c.Get(t.Context(), key("small", i), text(small)); err != nil {
			t.Fatal(err)
		}
	}
	if c.memory.bytes > 3<<20 || c.files.bytes > 5<<20 || c.memory.lru.Len() != 3 || c.files.lru.Len() != 2 {
		t.Errorf("kept are %d bytes of %d in memory, %d of %d on disk", c.memory.bytes, c.memory.lru.Len(), c.files.bytes, c.files.lru.Len())
	}
	if _, err := c.Get(t.Context(), key("large", 19), never(t)); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(read(t, kept), large) {
		t.Error("what was let go is not readable by who has it")
	}
	// What is larger than all that may be kept is rendered each time.
	huge := bytes.Repeat([]byte("z"), 6<<20)
	for range 2 {
		if d, err := c.Get(t.Context(), key("huge", 1), text(huge)); err != nil || !bytes.Equal(read(t, d), huge) {
			t.Error(err)
		}
	}
	if c.files.lru.Len() != 2 {
		t.Errorf("%d files are kept", c.files.lru.Len())
	}
}

// TestStart: what a crash left is removed, others' files are not.
func TestStart(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{filePrefix + "123", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open(t, Config{Dir: dir})
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 || files[0].Name() != "other" {
		t.Errorf("the folder has %v, %v", files, err)
	}
	if _, err := New(Config{Dir: filepath.Join(dir, "other")}); err == nil {
		t.Error("a file is taken for the folder")
	}
}

// TestManyReaders reads while documents come and go.
func TestManyReaders(t *testing.T) {
	c := open(t, Config{MemoryBytes: 2 << 20, DiskBytes: 4 << 20})
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for i := range 12 {
				size := 1000
				if (n+i)%2 == 0 {
					size = 1<<20 + 1000*(i%3)
				}
				body := bytes.Repeat([]byte{byte(i % 3)}, size)
				d, err := c.Get(t.Context(), Key{Package: fmt.Sprint(i % 3), Variant: fmt.Sprint(size)}, text(body))
				if err != nil {
					t.Error(err)
					return
				}
				r, _ := d.Open()
				if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) {
					t.Errorf("%d bytes of %d, %v", len(got), size, err)
				}
			}
		})
	}
	all.Wait()
}

// TestBases: a document is kept for a few base URLs, in memory and on disk, the last that
// were asked for; others' documents stay, whatever a client sends.
func TestBases(t *testing.T) {
	for _, size := range []int{10, MemoryDocumentBytes + 1} {
		c := open(t, Config{})
		body := bytes.Repeat([]byte("x"), size)
		other, of := key("other", 1), func(i int) Key {
			k := key("p", 1)
			k.Base = fmt.Sprintf("http://host-%d/", i)
			return k
		}
		other.Base = "http://host-0/"
		get := func(k Key, render func(io.Writer) error) {
			t.Helper()
			if _, err := c.Get(t.Context(), k, render); err != nil {
				t.Fatal(err)
			}
		}
		get(other, text(body))
		get(of(0), text(body))
		for i := range 100 {
			get(of(i+1), text(body))
			get(of(0), never(t)) // in use all the time
		}
		for i := range maxBases - 1 {
			get(of(100-i), never(t))
		}
		get(other, never(t))
		docs, listed := c.memory.lru.Len()+c.files.lru.Len(), 0
		for _, ids := range c.bases {
			listed += len(ids)
		}
		if docs != maxBases+1 || listed != docs || len(c.bases) != 2 {
			t.Errorf("of %d bytes %d documents are kept, %d listed for %d", size, docs, listed, len(c.bases))
		}
		if bytes := c.memory.bytes + c.files.bytes; bytes != int64(docs*size) {
			t.Errorf("%d bytes are counted", bytes)
		}
		c.memory.lru.Purge()
		c.files.lru.Purge()
		if len(c.bases) != 0 {
			t.Errorf("%d base URLs stay of what went", len(c.bases))
		}
	}
}

// TestRendersAtATime: a few documents are rendered at a time, a tenant leaves some turns
// to others, who waits too long is told to come again, and all turns come back.
func TestRendersAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Config{})
		var now, most atomic.Int32
		gate := make(chan struct{})
		of := func(tenant string, i int) Key {
			return Key{Repo: meta.RepoRef{Tenant: meta.TenantName(tenant), Name: "npm"}, Package: fmt.Sprint(i)}
		}
		slow := func(io.Writer) error {
			n := now.Add(1)
			for m := most.Load(); m < n && !most.CompareAndSwap(m, n); m = most.Load() {
				// Another was counted meanwhile.
			}
			<-gate
			now.Add(-1)
			return nil
		}
		var all sync.WaitGroup
		var busy atomic.Int32
		get := func(ctx context.Context, k Key) {
			all.Go(func() {
				_, err := c.Get(ctx, k, slow)
				if unavailable, ok := errors.AsType[*meta.UnavailableError](err); ok && unavailable.Reason == "busy" && unavailable.RetryAfter > 0 {
					busy.Add(1)
				} else if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		ctx, leave := context.WithCancel(t.Context())
		for i := range 100 {
			get(ctx, of("flood", i))
		}
		synctest.Wait()
		if n := now.Load(); n != maxTenantRenders {
			t.Errorf("%d of one tenant are rendered at a time", n)
		}
		for i := range 20 {
			get(t.Context(), of(fmt.Sprint("other", i), 1))
		}
		synctest.Wait()
		if n := now.Load(); n != maxRenders {
			t.Errorf("%d are rendered at a time", n)
		}
		leave() // those that wait; who renders goes on
		synctest.Wait()
		time.Sleep(turnWait + time.Second)
		synctest.Wait()
		if n := busy.Load(); n != 20-(maxRenders-maxTenantRenders) {
			t.Errorf("%d are told to come again", n)
		}
		close(gate)
		all.Wait()
		if len(c.turns.all) != 0 || len(c.turns.tenants) != 0 || len(c.flights) != 0 || most.Load() != maxRenders {
			t.Errorf("left are %d turns, %d tenants, %d flights; %d at most", len(c.turns.all), len(c.turns.tenants), len(c.flights), most.Load())
		}
		if _, err := c.Get(t.Context(), of("flood", 1000), text([]byte("on"))); err != nil {
			t.Error(err)
		}
	})
}

// TestRoom: a disk that is short of room keeps nothing, one at its reserve takes nothing,
// also in the middle of a document; small documents need none.
func TestRoom(t *testing.T) {
	var room Room
	c := open(t, Config{Room: func() Room { return room }})
	large := func(w io.Writer) error { return text(make([]byte, 2<<20))(w) }
	small := text(make([]byte, 1000))
	get := func(i uint64, render func(io.Writer) error) error {
		d, err := c.Get(t.Context(), key("p", i), render)
		if err == nil && int64(len(read(t, d))) != d.Size {
			t.Error("it does not come back")
		}
		return err
	}
	check := func(files, bytes int) {
		t.Helper()
		if c.files.lru.Len() != files || c.files.bytes != int64(bytes) {
			t.Errorf("%d files of %d bytes are kept", c.files.lru.Len(), c.files.bytes)
		}
	}
	if err := get(1, large); err != nil {
		t.Error(err)
	}
	check(1, 2<<20)
	room = RoomPassing
	for range 2 {
		if err := get(2, large); err != nil {
			t.Error(err)
		}
		check(0, 0)
	}
	room = RoomNone
	if err := get(3, large); !errors.Is(err, meta.ErrNoSpace) || !strings.Contains(err.Error(), "reserve") {
		t.Errorf("without room a large document is %v", err)
	}
	if err := get(4, small); err != nil || c.memory.lru.Len() != 1 {
		t.Errorf("without room a small document is %v", err)
	}
	room = RoomPlenty
	fills := func(w io.Writer) error {
		if err := large(w); err != nil {
			return err
		}
		room = RoomNone
		return large(w)
	}
	if err := get(5, fills); !errors.Is(err, meta.ErrNoSpace) {
		t.Errorf("a document that fills the disk is %v", err)
	}
	check(0, 0)
	if files, err := os.ReadDir(c.cfg.Dir); err != nil || len(files) != 0 {
		t.Errorf("the folder has %v, %v", files, err)
	}
}
