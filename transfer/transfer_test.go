package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/store/storetest"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is a Fetcher that has some contents and brings a chunk when it is waited
// for, if its gate lets it.
type source struct {
	store store.Store
	gate  func(ctx context.Context, root digest.CID, i int) error // nil is open

	mu       sync.Mutex
	contents map[digest.CID][]byte
	fetches  int
	open     int
	brought  []int
	prefers  []int
}

func newSource(s store.Store, contents ...[]byte) *source {
	f := &source{store: s, contents: map[digest.CID][]byte{}}
	for _, c := range contents {
		f.contents[chunk.Of(c).Root()] = c
	}
	return f
}

func (f *source) Fetch(_ context.Context, b meta.Blob) (transfer.Session, error) {
	root := b.Root
	f.mu.Lock()
	defer f.mu.Unlock()
	content, ok := f.contents[root]
	if !ok {
		return nil, fmt.Errorf("fetch %s: %w", root, meta.ErrNotFound)
	}
	f.fetches++
	f.open++
	return &session{f: f, content: content, m: chunk.Of(content)}, nil
}

func (f *source) Map(_ context.Context, root digest.CID) ([]byte, error) {
	content, ok := f.contents[root]
	if !ok {
		return nil, meta.ErrNotFound
	}
	return chunk.Of(content).Encode(), nil
}

type session struct {
	f       *source
	content []byte
	m       *chunk.Map
	mu      sync.Mutex
	blob    store.Blob
}

func (s *session) Blob(ctx context.Context) (store.Blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.blob == nil {
		s.blob, err = s.f.store.Create(ctx, s.m)
	}
	return s.blob, err
}

func (s *session) Prefer(from, _ int) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.f.prefers = append(s.f.prefers, from)
}

func (s *session) Wait(ctx context.Context, i int) error {
	if s.f.gate != nil {
		if err := s.f.gate(ctx, s.m.Root(), i); err != nil {
			return err
		}
	}
	blob, err := s.Blob(ctx)
	if err != nil || blob.Have().Has(i) {
		return err
	}
	s.f.mu.Lock()
	s.f.brought = append(s.f.brought, i)
	s.f.mu.Unlock()
	return blob.WriteChunk(ctx, i, s.content[s.m.StoredOffset(i):][:s.m.Chunks[i].Stored])
}

func (s *session) Close() error {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.f.open--
	if s.blob != nil {
		return s.blob.Close()
	}
	return nil
}

func blobOf(content []byte) meta.Blob {
	return meta.Blob{
		Context: meta.PublicContext, Digest: digest.FromBytes(content), Root: chunk.Of(content).Root(),
		PlainBytes: int64(len(content)), StoredBytes: int64(len(content)),
	}
}

func newContent(t testing.TB, cfg transfer.Config) *transfer.Content {
	t.Helper()
	c, err := transfer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func open(t testing.TB, c *transfer.Content, content []byte) *transfer.Reader {
	t.Helper()
	r, err := c.Open(t.Context(), blobOf(content))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

var sizes = []int{0, 1, 1000, 64<<10 + 1, 256 << 10, 256<<10 + 1, 2<<20 + 5}

// A Reader is a bytes.Reader of the content, wherever that is.
func TestReaderReads(t *testing.T) {
	for _, where := range []string{"here", "elsewhere", "half"} {
		for k, n := range sizes {
			t.Run(fmt.Sprintf("%s/%d", where, n), func(t *testing.T) {
				s := store.NewMemory()
				content := storetest.Content(n, byte(k))
				f := newSource(s, content)
				switch where {
				case "here":
					storetest.Put(t, s, content)
				case "half":
					m := chunk.Of(content)
					b, err := s.Create(t.Context(), m)
					if err != nil {
						t.Fatal(err)
					}
					for i := m.Len() / 2; i < m.Len(); i++ {
						if err := b.WriteChunk(t.Context(), i, content[m.StoredOffset(i):][:m.Chunks[i].Stored]); err != nil {
							t.Fatal(err)
						}
					}
				}
				c := newContent(t, transfer.Config{Store: s, Fetcher: f, CheckLocal: true})
				r := open(t, c, content)
				if r.Size() != int64(n) {
					t.Errorf("size %d", r.Size())
				}
				if err := iotest.TestReader(r, content); err != nil {
					t.Error(err)
				}
				r = open(t, c, content)
				var out bytes.Buffer
				if wrote, err := r.WriteTo(&out); wrote != int64(n) || err != nil || !bytes.Equal(out.Bytes(), content) {
					t.Errorf("WriteTo = %d, %v", wrote, err)
				}
				// Ranges in any order.
				rnd := rand.New(rand.NewPCG(1, uint64(n)))
				for range 20 {
					from := rnd.IntN(n + 1)
					to := from + rnd.IntN(n+1-from)
					if _, err := r.Seek(int64(from), io.SeekStart); err != nil {
						t.Fatal(err)
					}
					out.Reset()
					if _, err := io.CopyN(&out, r, int64(to-from)); err != nil || !bytes.Equal(out.Bytes(), content[from:to]) {
						t.Fatalf("[%d, %d): %v", from, to, err)
					}
				}
			})
		}
	}
}

// Bytes are handed out as they arrive: the first while the second is still missing.
func TestReaderStreamsWhileFetching(t *testing.T) {
	s := store.NewMemory()
	content := storetest.Content(1<<20, 1)
	f := newSource(s, content)
	arrived := make(chan struct{})
	f.gate = func(ctx context.Context, _ digest.CID, i int) error {
		if i == 0 {
			return nil
		}
		select {
		case <-arrived:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r := open(t, newContent(t, transfer.Config{Store: s, Fetcher: f}), content)
	head := make([]byte, 256<<10)
	if _, err := io.ReadFull(r, head); err != nil || !bytes.Equal(head, content[:256<<10]) {
		t.Fatalf("the first chunk: %v", err)
	}
	close(arrived)
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(rest, content[256<<10:]) {
		t.Errorf("the rest: %d bytes, %v", len(rest), err)
	}
}

// A range of a blob that is not here fetches that range first.
func TestReaderPrefersItsRange(t *testing.T) {
	s := store.NewMemory()
	content := storetest.Content(1<<20, 1)
	f := newSource(s, content)
	r := open(t, newContent(t, transfer.Config{Store: s, Fetcher: f}), content)
	if _, err := r.Seek(-5, io.SeekEnd); err != nil {
		t.Fatal(err)
	}
	if tail, err := io.ReadAll(r); err != nil || !bytes.Equal(tail, content[len(content)-5:]) {
		t.Fatal(err)
	}
	if len(f.brought) != 1 || f.brought[0] != 3 || f.prefers[0] != 3 {
		t.Errorf("brought %v, preferred %v", f.brought, f.prefers)
	}
}

func TestReaderEndsWithItsContext(t *testing.T) {
	s := store.NewMemory()
	content := storetest.Content(1<<20, 1)
	f := newSource(s, content)
	ctx, cancel := context.WithCancel(t.Context())
	f.gate = func(ctx context.Context, _ digest.CID, i int) error {
		if i == 2 {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	r, err := newContent(t, transfer.Config{Store: s, Fetcher: f}).Open(ctx, blobOf(content))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if !errors.Is(err, context.Canceled) || !bytes.HasPrefix(content, got) {
		t.Errorf("ReadAll = %d bytes, %v", len(got), err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("a closed Reader reads")
	}
	if f.open != 0 {
		t.Errorf("%d fetches are still held", f.open)
	}
}

// A Reader gives up when nothing comes of what it waits for, but not while other
// chunks of the blob still come.
func TestReaderGivesUpWhenNothingComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := storetest.Content(1<<20, 1)
		f := newSource(store.NewMemory(), content)
		missing := func(ctx context.Context, _ digest.CID, i int) error {
			if i == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}
		f.gate = missing
		c := newContent(t, transfer.Config{Store: f.store, Fetcher: f})
		r, other := open(t, c, content), open(t, c, content)
		const apart = 20 * time.Second
		var reading sync.WaitGroup
		defer reading.Wait()
		reading.Go(func() { // somebody else's chunks keep the fetch alive for a while
			for _, i := range []int64{2, 3} {
				<-time.After(apart)
				_, _ = other.Seek(i*256<<10, io.SeekStart)
				_, _ = other.Read(make([]byte, 1))
			}
		})
		start := time.Now()
		got, err := io.ReadAll(r)
		if !errors.Is(err, meta.ErrUnavailable) || len(got) != 256<<10 || !bytes.HasPrefix(content, got) {
			t.Errorf("ReadAll = %d bytes, %v", len(got), err)
		}
		if took := time.Since(start); took < 2*apart || took > 2*time.Minute {
			t.Errorf("gave up after %v", took)
		}
	})
}

// A process that was stopped for longer than a Reader waits goes on where it was: others
// send as soon as it takes.
func TestReaderOutlivesAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := storetest.Content(1<<20, 1)
		f := newSource(store.NewMemory(), content)
		var stopped sync.Once
		f.gate = func(ctx context.Context, _ digest.CID, i int) (err error) {
			if i == 1 {
				stopped.Do(func() {
					time.Sleep(90 * time.Second) // and the time of all deadlines passes
					err = ctx.Err()
				})
			}
			return err
		}
		c := newContent(t, transfer.Config{Store: f.store, Fetcher: f})
		if got, err := io.ReadAll(open(t, c, content)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("ReadAll = %d bytes, %v", len(got), err)
		}
	})
}

// A damaged chunk is fetched again while the reader waits; it is never handed out.
func TestReaderHeals(t *testing.T) {
	content := storetest.Content(1<<20, 1)
	dir := t.TempDir()
	disk, err := store.OpenDisk(store.DiskConfig{Dir: dir, Reserve: -1, HotBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	in := storetest.Put(t, disk, content)
	path := filepath.Join(dir, "blobs", in.Root.Hex()[:2], in.Root.Hex())
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{10, 600 << 10} {
		if _, err := f.WriteAt([]byte("damaged"), at); err != nil {
			t.Fatal(err)
		}
	}
	_ = f.Close()

	alone := newContent(t, transfer.Config{Store: disk})
	if got, err := io.ReadAll(open(t, alone, content)); !errors.Is(err, meta.ErrCorrupt) || len(got) != 0 {
		t.Errorf("without help: %d bytes, %v", len(got), err)
	}
	helper := newSource(disk, content)
	c := newContent(t, transfer.Config{Store: disk, Fetcher: helper})
	if got, err := io.ReadAll(open(t, c, content)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("with help: %d bytes, %v", len(got), err)
	}
	if len(helper.brought) != 2 {
		t.Errorf("brought %v, want two chunks", helper.brought)
	}
	if !c.Has(t.Context(), in.Root) {
		t.Error("not whole again")
	}
	if got := storetest.Get(t, disk, in.Root); !bytes.Equal(got, content) {
		t.Error("not healed on disk")
	}
}

// A blob that is removed under a reader is fetched again.
func TestReaderSurvivesRemoval(t *testing.T) {
	s := store.NewMemory()
	content := storetest.Content(1<<20, 1)
	in := storetest.Put(t, s, content)
	r := open(t, newContent(t, transfer.Config{Store: s, Fetcher: newSource(s, content)}), content)
	head := make([]byte, 10)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), in.Root); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || !bytes.Equal(rest, content[10:]) {
		t.Errorf("%d bytes, %v", len(rest), err)
	}
}

// When the chunks are right but the digest is not, somebody lied in the metadata:
// the last chunk is held back and the blob goes.
func TestWrongDigest(t *testing.T) {
	for _, n := range []int{0, 100, 1 << 20} {
		for _, fetched := range []bool{false, true} {
			for _, ensure := range []bool{false, true} {
				s := store.NewMemory()
				content := storetest.Content(n, 1)
				if !fetched {
					storetest.Put(t, s, content)
				}
				c := newContent(t, transfer.Config{Store: s, Fetcher: newSource(s, content), CheckLocal: true})
				b := blobOf(content)
				b.Digest = digest.FromBytes([]byte("something else"))
				var err error
				if ensure {
					err = c.Ensure(t.Context(), b)
				} else {
					var r *transfer.Reader
					if r, err = c.Open(t.Context(), b); err != nil {
						t.Fatal(err)
					}
					var got []byte
					got, err = io.ReadAll(r)
					if n > 0 && len(got) >= n {
						t.Errorf("%d of %d bytes were handed out", len(got), n)
					}
					_ = r.Close()
				}
				var mismatch *digest.MismatchError
				if !errors.Is(err, meta.ErrCorrupt) || !errors.As(err, &mismatch) {
					t.Errorf("%d bytes, fetched %v, ensure %v: %v", n, fetched, ensure, err)
				}
				if _, err := s.Open(t.Context(), b.Root); !errors.Is(err, meta.ErrNotFound) {
					t.Errorf("%d bytes: it is still there: %v", n, err)
				}
			}
		}
	}
}

func TestEnsure(t *testing.T) {
	for k, n := range sizes {
		s := store.NewMemory()
		content := storetest.Content(n, byte(k))
		b := blobOf(content)
		f := newSource(s, content)
		c := newContent(t, transfer.Config{Store: s, Fetcher: f})
		if c.Has(t.Context(), b.Root) {
			t.Error("it is here already")
		}
		for range 2 {
			if err := c.Ensure(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		if f.fetches != 1 || f.open != 0 {
			t.Errorf("%d fetches, %d held", f.fetches, f.open)
		}
		if !bytes.Equal(storetest.Get(t, s, b.Root), content) {
			t.Error("content came changed")
		}
		// A sealed one is compared with its map only.
		b.Seal, b.Digest = "v1", digest.FromBytes([]byte("the plain bytes"))
		if err := c.Ensure(t.Context(), b); err != nil {
			t.Error(err)
		}
	}
	c := newContent(t, transfer.Config{Store: store.NewMemory()})
	if err := c.Ensure(t.Context(), blobOf([]byte("x"))); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("nowhere: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	s := store.NewMemory()
	content := []byte("hello")
	storetest.Put(t, s, content)
	c := newContent(t, transfer.Config{Store: s, Fetcher: newSource(s)})
	sealed := blobOf(content)
	sealed.Seal = "v1"
	if _, err := c.Open(t.Context(), sealed); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("sealed: %v", err)
	}
	longer := blobOf(content)
	longer.PlainBytes++
	if _, err := c.Open(t.Context(), longer); !errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("another length: %v", err)
	}
	if _, err := c.Open(t.Context(), blobOf([]byte("nowhere"))); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("nowhere: %v", err)
	}
	if _, err := transfer.New(transfer.Config{}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("no store: %v", err)
	}
	r := open(t, c, content)
	if _, err := r.Seek(-1, io.SeekStart); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("Seek: %v", err)
	}
	if _, err := r.Seek(0, 9); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("Seek: %v", err)
	}
	if at, err := r.Seek(100, io.SeekStart); at != 100 || err != nil {
		t.Errorf("Seek = %d, %v", at, err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("Read behind the end: %v", err)
	}
}

func TestMap(t *testing.T) {
	s := store.NewMemory()
	here, there := storetest.Content(300<<10, 1), storetest.Content(300<<10, 2)
	storetest.Put(t, s, here)
	c := newContent(t, transfer.Config{Store: s, Fetcher: newSource(s, there), Metrics: prometheus.NewPedanticRegistry()})
	for _, content := range [][]byte{here, there} {
		want := chunk.Of(content)
		if got, err := c.Map(t.Context(), want.Root()); err != nil || !bytes.Equal(got, want.Encode()) {
			t.Errorf("Map: %v", err)
		}
	}
	if _, err := c.Map(t.Context(), digest.Sum([]byte("x"))); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("Map: %v", err)
	}
}

// Stalled readers hold a bounded amount of memory, and small documents pass them.
func TestReadersAreBounded(t *testing.T) {
	s := store.NewMemory()
	large := make([]byte, 0, 16<<20)
	var chunks []chunk.Chunk
	for i := range 4 { // of the largest length, without the gigabyte before them
		piece := storetest.Content(chunk.MaxBytes, byte(i))
		large = append(large, piece...)
		chunks = append(chunks, chunk.Chunk{ID: digest.Sum(piece), Plain: chunk.MaxBytes, Stored: chunk.MaxBytes})
	}
	m, err := chunk.New(0, chunks)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := s.Create(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range chunks {
		if err := blob.WriteChunk(t.Context(), i, large[i*chunk.MaxBytes:][:chunk.MaxBytes]); err != nil {
			t.Fatal(err)
		}
	}
	small := storetest.Content(1000, 9)
	storetest.Put(t, s, small)
	c := newContent(t, transfer.Config{Store: s, ReadBytes: 1}) // raised to the least that works
	b := meta.Blob{Digest: digest.FromBytes(large), Root: m.Root(), PlainBytes: int64(len(large))}

	var stalled []*transfer.Reader
	for range 2 {
		r, err := c.Open(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		stalled = append(stalled, r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting, err := c.Open(ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	done := make(chan error)
	go func() {
		_, err := waiting.Read(make([]byte, 1))
		done <- err
	}()
	if got, err := io.ReadAll(open(t, c, small)); err != nil || !bytes.Equal(got, small) {
		t.Errorf("a small document: %v", err)
	}
	select {
	case err := <-done:
		t.Errorf("a third reader had memory: %v", err)
	default:
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the third reader: %v", err)
	}
	// When the stalled ones go on, all come to their end.
	var group sync.WaitGroup
	for _, r := range stalled {
		group.Go(func() {
			if n, err := r.WriteTo(io.Discard); n != int64(len(large))-10 || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
	group.Wait()
}

// Any number of readers of one arriving blob.
func TestReadersTogether(t *testing.T) {
	s := store.NewMemory()
	content := storetest.Content(3<<20, 1)
	c := newContent(t, transfer.Config{Store: s, Fetcher: newSource(s, content), ReadBytes: 1})
	var group sync.WaitGroup
	for w := range 8 {
		group.Go(func() {
			r, err := c.Open(t.Context(), blobOf(content))
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			from := w * 100_000
			if _, err := r.Seek(int64(from), io.SeekStart); err != nil {
				t.Error(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[from:]) {
				t.Errorf("from %d: %d bytes, %v", from, len(got), err)
			}
		})
	}
	group.Wait()
}

// BenchmarkRead is the claim that a pull costs one BLAKE3 pass beside the copy.
func BenchmarkRead(b *testing.B) {
	disk, err := store.OpenDisk(store.DiskConfig{Dir: b.TempDir(), Reserve: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer disk.Close()
	content := storetest.Content(256<<20, 1)
	storetest.Put(b, disk, content)
	blob := blobOf(content)
	for name, check := range map[string]bool{"server": false, "agent first": true} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			for b.Loop() {
				c := newContent(b, transfer.Config{Store: disk, CheckLocal: check})
				r, err := c.Open(b.Context(), blob)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := r.WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
				_ = r.Close()
			}
		})
	}
}
