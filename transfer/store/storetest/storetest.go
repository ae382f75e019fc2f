// Package storetest is the conformance suite of store.Store: every implementation
// runs it. Start reading at Run.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/iotest"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Harness makes stores for the suite.
type Harness struct {
	// New returns an empty store that is freed with the test.
	New func(t *testing.T) store.Store
	// Reopen ends s as a process would end and returns its successor; nil when the
	// store forgets.
	Reopen func(t *testing.T, s store.Store) store.Store
	// Damage changes the stored bytes of chunk i, as a failing disk would, so that
	// the next ReadChunk meets them.
	Damage func(t *testing.T, s store.Store, root digest.CID, i int)
}

// Content returns n bytes that depend on seed only.
func Content(n int, seed byte) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// Put ingests content and returns what it became.
func Put(t testing.TB, s store.Store, content []byte) store.Ingested {
	t.Helper()
	u, err := s.NewUpload(t.Context(), store.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Append(t.Context(), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	in, err := u.Commit(t.Context(), digest.FromBytes(content))
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// Get reads a complete blob.
func Get(t testing.TB, s store.Store, root digest.CID) []byte {
	t.Helper()
	b, err := s.Open(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if !b.Complete() || !b.Have().Full() {
		t.Fatalf("%s is not complete", root)
	}
	var out []byte
	for i := range b.Map().Chunks {
		c, err := b.ReadChunk(t.Context(), i, nil)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c...)
	}
	return out
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"Ingest", testIngest},
		{"IngestInPieces", testIngestInPieces},
		{"IngestDeduplicates", testIngestDeduplicates},
		{"IngestSHA512", testIngestSHA512},
		{"CommitRefusesAnotherDigest", testCommitRefuses},
		{"AppendKeepsWhatCameBeforeABreak", testAppendBreaks},
		{"AppendStopsWithItsContext", testAppendContext},
		{"UploadIsForOneAtATime", testUploadConflict},
		{"UploadEnds", testUploadEnds},
		{"UnknownUpload", testUnknownUpload},
		{"Fill", testFill},
		{"FillConcurrently", testFillConcurrently},
		{"FillRefusesOtherBytes", testFillRefuses},
		{"FillSealed", testFillSealed},
		{"CommitCompletesAPartialBlob", testCommitCompletes},
		{"Reuse", testReuse},
		{"NotFound", testNotFound},
		{"Remove", testRemove},
		{"List", testList},
		{"Damage", testDamage},
		{"ReopenBlobs", testReopenBlobs},
		{"ReopenUploads", testReopenUploads},
		{"Contexts", testContexts},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, h) })
	}
}

// sizes meet the edges: nothing, one chunk, its exact length, several, several writes.
var sizes = []int{0, 1, 5, 16 << 10, 64 << 10, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1<<20 + 17, 3 << 20}

func testIngest(t *testing.T, h Harness) {
	s := h.New(t)
	for i, n := range sizes {
		content := Content(n, byte(i))
		in := Put(t, s, content)
		want := chunk.Of(content)
		if in.Digest != digest.FromBytes(content) || in.Root != want.Root() || in.Map.Root() != in.Root ||
			in.PlainBytes != int64(n) || in.StoredBytes != int64(n) || in.SHA512 != "" {
			t.Errorf("%d bytes became %+v", n, in)
		}
		if !bytes.Equal(Get(t, s, in.Root), content) {
			t.Errorf("%d bytes came back changed", n)
		}
	}
}

func testIngestInPieces(t *testing.T, h Harness) {
	s := h.New(t)
	content := Content(1<<20+5, 7)
	u, err := s.NewUpload(t.Context(), store.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	id := u.ID()
	at := 0
	for _, n := range []int{0, 1, 64<<10 - 1, 64 << 10, 300 << 10, 1 << 20} {
		end := min(at+n, len(content))
		if u.Offset() != int64(at) {
			t.Fatalf("offset %d, want %d", u.Offset(), at)
		}
		got, err := u.Append(t.Context(), iotest.HalfReader(bytes.NewReader(content[at:end])))
		if err != nil || got != int64(end-at) {
			t.Fatalf("Append = %d, %v, want %d", got, err, end-at)
		}
		at = end
		if err := u.Close(); err != nil {
			t.Fatal(err)
		}
		if u, err = s.OpenUpload(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	in, err := u.Commit(t.Context(), digest.FromBytes(content))
	if err != nil {
		t.Fatal(err)
	}
	if in.Root != chunk.Of(content).Root() || !bytes.Equal(Get(t, s, in.Root), content) {
		t.Error("content came back changed")
	}
	if err := u.Close(); err != nil {
		t.Error(err)
	}
}

func testIngestDeduplicates(t *testing.T, h Harness) {
	s := h.New(t)
	content := Content(700<<10, 1)
	first := Put(t, s, content)
	b, err := s.Open(t.Context(), first.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if again := Put(t, s, content); again.Root != first.Root {
				t.Errorf("root %s, want %s", again.Root, first.Root)
			}
		})
	}
	group.Wait()
	infos, err := s.List(t.Context(), digest.CID{}, 10)
	if err != nil || len(infos) != 1 {
		t.Errorf("List = %v, %v, want one", infos, err)
	}
	if _, err := b.ReadChunk(t.Context(), 1, nil); err != nil {
		t.Errorf("a handle of before: %v", err)
	}
}

func testIngestSHA512(t *testing.T, h Harness) {
	s := h.New(t)
	content := Content(70<<10, 2)
	want := godigest.SHA512.FromBytes(content)
	u, err := s.NewUpload(t.Context(), store.UploadOptions{SHA512: true})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Append(t.Context(), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	in, err := u.Commit(t.Context(), want)
	if err != nil || in.SHA512 != want || in.Digest != digest.FromBytes(content) {
		t.Errorf("Commit = %+v, %v", in, err)
	}
}

func testCommitRefuses(t *testing.T, h Harness) {
	s := h.New(t)
	content := Content(100, 3)
	u, err := s.NewUpload(t.Context(), store.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Append(t.Context(), bytes.NewReader(content[:50])); err != nil {
		t.Fatal(err)
	}
	want := digest.FromBytes(content)
	var mismatch *digest.MismatchError
	if _, err := u.Commit(t.Context(), want); !errors.As(err, &mismatch) || mismatch.Want != want {
		t.Fatalf("err = %v, want a mismatch", err)
	}
	if _, err := u.Commit(t.Context(), godigest.SHA512.FromBytes(content)); !errors.Is(err, digest.ErrUnsupported) {
		t.Errorf("err = %v, want unsupported", err)
	}
	if infos, err := s.List(t.Context(), digest.CID{}, 10); err != nil || len(infos) != 0 {
		t.Errorf("List = %v, %v, want none", infos, err)
	}
	// The session goes on.
	if _, err := u.Append(t.Context(), bytes.NewReader(content[50:])); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(t.Context(), want); err != nil {
		t.Error(err)
	}
}

func testAppendBreaks(t *testing.T, h Harness) {
	s := h.New(t)
	for _, n := range []int{100, 64 << 10, 64<<10 + 1, 900 << 10, 2 << 20} {
		content := Content(n, 4)
		u, err := s.NewUpload(t.Context(), store.UploadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// What a broken request body says, which must not pass for its end.
		broken := io.MultiReader(bytes.NewReader(content[:n/2]), iotest.ErrReader(io.ErrUnexpectedEOF))
		got, err := u.Append(t.Context(), broken)
		if !errors.Is(err, io.ErrUnexpectedEOF) || got != int64(n/2) || u.Offset() != got {
			t.Errorf("Append = %d, %v, offset %d, want %d", got, err, u.Offset(), n/2)
		}
		if _, err := u.Append(t.Context(), bytes.NewReader(content[n/2:])); err != nil {
			t.Fatal(err)
		}
		if _, err := u.Commit(t.Context(), digest.FromBytes(content)); err != nil {
			t.Error(err)
		}
		_ = u.Close()
	}
}

func testAppendContext(t *testing.T, h Harness) {
	s := h.New(t)
	for _, n := range []int{10, 1 << 20} {
		u, err := s.NewUpload(t.Context(), store.UploadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		content := Content(n, 5)
		endless := io.MultiReader(bytes.NewReader(content), cancelReader{cancel}, bytes.NewReader(content))
		got, err := u.Append(ctx, endless)
		if !errors.Is(err, context.Canceled) || got != u.Offset() || got < int64(n) {
			t.Errorf("Append = %d, %v, offset %d", got, err, u.Offset())
		}
		if err := u.Cancel(t.Context()); err != nil {
			t.Error(err)
		}
		_ = u.Close()
	}
}

// cancelReader cancels and gives a byte at a time for ever.
type cancelReader struct{ cancel func() }

func (r cancelReader) Read(p []byte) (int, error) {
	r.cancel()
	return copy(p, "x"), nil
}

func testUploadConflict(t *testing.T, h Harness) {
	s := h.New(t)
	u, err := s.NewUpload(t.Context(), store.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	r, w := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := u.Append(t.Context(), r)
		done <- err
	}()
	if _, err := w.Write([]byte("a")); err != nil { // returns once Append reads
		t.Fatal(err)
	}
	other, err := s.OpenUpload(t.Context(), u.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Append(t.Context(), bytes.NewReader(nil)); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("Append: %v", err)
	}
	if _, err := other.Commit(t.Context(), ""); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("Commit: %v", err)
	}
	if err := other.Cancel(t.Context()); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("Cancel: %v", err)
	}
	_ = w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if other.Offset() != 1 {
		t.Errorf("offset %d, want 1", other.Offset())
	}
}

func testUploadEnds(t *testing.T, h Harness) {
	s := h.New(t)
	for _, cancel := range []bool{false, true} {
		u, err := s.NewUpload(t.Context(), store.UploadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Append(t.Context(), bytes.NewReader(Content(10, 6))); err != nil {
			t.Fatal(err)
		}
		if cancel {
			err = u.Cancel(t.Context())
		} else {
			_, err = u.Commit(t.Context(), "")
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Append(t.Context(), bytes.NewReader(nil)); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("Append: %v", err)
		}
		if _, err := u.Commit(t.Context(), ""); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("Commit: %v", err)
		}
		if err := u.Cancel(t.Context()); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("Cancel: %v", err)
		}
		for range 2 { // with and without a handle left
			if _, err := s.OpenUpload(t.Context(), u.ID()); !errors.Is(err, meta.ErrNotFound) {
				t.Errorf("OpenUpload: %v", err)
			}
			_ = u.Close()
		}
	}
}

func testUnknownUpload(t *testing.T, h Harness) {
	s := h.New(t)
	for _, id := range []string{"", "x", "../../etc/passwd", fmt.Sprintf("%032x", 77), fmt.Sprintf("%032X", 0xabc)} {
		if _, err := s.OpenUpload(t.Context(), id); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("OpenUpload(%q): %v", id, err)
		}
	}
}

// pieces returns the stored chunks of content.
func pieces(m *chunk.Map, content []byte) [][]byte {
	out := make([][]byte, m.Len())
	for i, c := range m.Chunks {
		at := m.StoredOffset(i)
		out[i] = content[at : at+int64(c.Stored)]
	}
	return out
}

func testFill(t *testing.T, h Harness) {
	s := h.New(t)
	for k, n := range sizes {
		content := Content(n, byte(40+k))
		m := chunk.Of(content)
		b, err := s.Create(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		if b.Root() != m.Root() || b.Complete() != (n == 0) || b.Have().Count() != 0 || b.Have().Len() != m.Len() {
			t.Fatalf("%d bytes: new blob: complete %v, have %d/%d", n, b.Complete(), b.Have().Count(), b.Have().Len())
		}
		order := rand.New(rand.NewPCG(1, uint64(n))).Perm(m.Len())
		for done, i := range order {
			if _, err := b.ReadChunk(t.Context(), i, nil); !errors.Is(err, meta.ErrNotFound) {
				t.Fatalf("ReadChunk before: %v", err)
			}
			if b.Complete() {
				t.Fatalf("complete with %d of %d", done, m.Len())
			}
			for range 2 { // the second does nothing
				if err := b.WriteChunk(t.Context(), i, pieces(m, content)[i]); err != nil {
					t.Fatal(err)
				}
			}
			got, err := b.ReadChunk(t.Context(), i, make([]byte, 0, chunk.MaxStoredBytes))
			if err != nil || !bytes.Equal(got, pieces(m, content)[i]) {
				t.Fatalf("ReadChunk(%d): %d bytes, %v", i, len(got), err)
			}
			if !b.Have().Has(i) || b.Have().Count() != done+1 {
				t.Fatalf("have %d after %d", b.Have().Count(), done+1)
			}
		}
		if !b.Complete() {
			t.Fatalf("%d bytes: not complete", n)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(Get(t, s, m.Root()), content) {
			t.Errorf("%d bytes came back changed", n)
		}
	}
}

func testFillConcurrently(t *testing.T, h Harness) {
	s := h.New(t)
	content := Content(4<<20+3, 50)
	m := chunk.Of(content)
	var group sync.WaitGroup
	for w := range 4 {
		group.Go(func() {
			b, err := s.Create(t.Context(), m)
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Close()
			for k := range m.Len() {
				i := (k*7 + w) % m.Len() // each chunk by several at once
				if err := b.WriteChunk(t.Context(), i, pieces(m, content)[i]); err != nil {
					t.Error(err)
				}
				if got, err := b.ReadChunk(t.Context(), i, nil); err != nil || !bytes.Equal(got, pieces(m, content)[i]) {
					t.Errorf("ReadChunk(%d): %v", i, err)
				}
			}
			if m.Len()%7 != 0 && !b.Complete() {
				t.Error("not complete")
			}
		})
	}
	group.Wait()
	if !bytes.Equal(Get(t, s, m.Root()), content) {
		t.Error("content came back changed")
	}
}

func testFillRefuses(t *testing.T, h Harness) {
	s := h.New(t)
	for _, n := range []int{10, 600 << 10} {
		content := Content(n, 51)
		m := chunk.Of(content)
		b, err := s.Create(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		first := pieces(m, content)[0]
		wrong := append([]byte(nil), first...)
		wrong[3] ^= 1
		for name, bad := range map[string][]byte{"flipped": wrong, "short": first[1:], "long": append(wrong, 1), "empty": nil} {
			if err := b.WriteChunk(t.Context(), 0, bad); !errors.Is(err, meta.ErrCorrupt) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, i := range []int{-1, m.Len()} {
			if err := b.WriteChunk(t.Context(), i, first); !errors.Is(err, meta.ErrInvalid) {
				t.Errorf("WriteChunk(%d): %v", i, err)
			}
			if _, err := b.ReadChunk(t.Context(), i, nil); !errors.Is(err, meta.ErrInvalid) {
				t.Errorf("ReadChunk(%d): %v", i, err)
			}
		}
		if b.Have().Count() != 0 || b.Complete() {
			t.Error("something was taken")
		}
		_ = b.Close()
	}
}

// Sealed chunks are opaque: the store handles whatever the map says is stored.
func testFillSealed(t *testing.T, h Harness) {
	s := h.New(t)
	var chunks []chunk.Chunk
	var stored [][]byte
	for i, plain := range []uint32{100, 5, 70_000} {
		b := Content(int(plain)+16+i, byte(60+i))
		stored = append(stored, b)
		chunks = append(chunks, chunk.Chunk{ID: digest.Sum(b), Plain: plain, Stored: uint32(len(b))})
	}
	for n := 1; n <= len(chunks); n++ {
		m, err := chunk.New(1, chunks[:n:n])
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Create(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if err := b.WriteChunk(t.Context(), i, stored[i]); err != nil {
				t.Fatal(err)
			}
		}
		_ = b.Close()
		if h.Reopen != nil {
			s = h.Reopen(t, s)
		}
		if !bytes.Equal(Get(t, s, m.Root()), slices.Concat(stored[:n]...)) {
			t.Errorf("%d sealed chunks came back changed", n)
		}
	}
}

func testCommitCompletes(t *testing.T, h Harness) {
	s := h.New(t)
	for _, n := range []int{100, 900 << 10} {
		content := Content(n, 70)
		m := chunk.Of(content)
		b, err := s.Create(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		if m.Len() > 1 {
			if err := b.WriteChunk(t.Context(), 1, pieces(m, content)[1]); err != nil {
				t.Fatal(err)
			}
		}
		if in := Put(t, s, content); in.Root != m.Root() {
			t.Fatalf("root %s, want %s", in.Root, m.Root())
		}
		if !b.Complete() {
			t.Error("the open handle is not complete")
		}
		if got, err := b.ReadChunk(t.Context(), 0, nil); err != nil || !bytes.Equal(got, pieces(m, content)[0]) {
			t.Errorf("ReadChunk: %v", err)
		}
		if err := b.WriteChunk(t.Context(), 0, pieces(m, content)[0]); err != nil {
			t.Errorf("WriteChunk: %v", err)
		}
		_ = b.Close()
	}
}

// What a new blob shares with others here is brought without anybody who writes it.
func testReuse(t *testing.T, h Harness) {
	s := h.New(t)
	old := Content(2<<20, 1)
	Put(t, s, old)
	content := append(append([]byte(nil), old[:1<<20]...), Content(700<<10, 2)...)
	m := chunk.Of(content)
	b, err := s.Create(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r := s.Reuse(t.Context(), b)
	if r.Count() != 4 || !r.Has(0) || !r.Has(3) || r.Has(4) {
		t.Fatalf("%d chunks are promised, want the first 4", r.Count())
	}
	var mu sync.Mutex
	came := map[int]error{}
	r.Run(t.Context(), func(i int, err error) {
		mu.Lock()
		defer mu.Unlock()
		came[i] = err
	})
	for i := range 4 {
		if err, told := came[i]; err != nil || !told || !b.Have().Has(i) {
			t.Errorf("chunk %d: told %v, %v", i, told, err)
		}
	}
	for i, p := range pieces(m, content) {
		if err := b.WriteChunk(t.Context(), i, p); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(Get(t, s, m.Root()), content) {
		t.Error("it came back changed")
	}
	if r := s.Reuse(t.Context(), b); r != nil {
		t.Errorf("a complete blob is promised %d chunks", r.Count())
	}
	alone, err := s.Create(t.Context(), chunk.Of(Content(600<<10, 3)))
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	if r := s.Reuse(t.Context(), alone); r.Count() != 0 || r.Has(0) {
		t.Errorf("a blob like no other is promised %d chunks", r.Count())
	}
	r.Close()
}

func testNotFound(t *testing.T, h Harness) {
	s := h.New(t)
	if _, err := s.Open(t.Context(), digest.Sum([]byte("x"))); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("Open: %v", err)
	}
	if err := s.Remove(t.Context(), digest.Sum([]byte("x"))); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func testRemove(t *testing.T, h Harness) {
	s := h.New(t)
	for _, n := range []int{10, 600 << 10} {
		content := Content(n, 80)
		in := Put(t, s, content)
		b, err := s.Open(t.Context(), in.Root)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(t.Context(), in.Root); err != nil {
			t.Fatal(err)
		}
		if _, err := b.ReadChunk(t.Context(), 0, nil); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("ReadChunk: %v", err)
		}
		if err := b.WriteChunk(t.Context(), 0, pieces(in.Map, content)[0]); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("WriteChunk: %v", err)
		}
		if _, err := s.Open(t.Context(), in.Root); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("Open: %v", err)
		}
		_ = b.Close()
		if again := Put(t, s, content); !bytes.Equal(Get(t, s, again.Root), content) {
			t.Error("content came back changed")
		}
	}
}

func testList(t *testing.T, h Harness) {
	s := h.New(t)
	want := map[digest.CID]bool{}
	for i := range 40 {
		want[Put(t, s, Content(10+i, byte(i))).Root] = true
	}
	partial := chunk.Of(Content(600<<10, 99))
	b, err := s.Create(t.Context(), partial)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	want[partial.Root()] = false
	var after digest.CID
	seen := 0
	for {
		infos, err := s.List(t.Context(), after, 7)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range infos {
			complete, known := want[info.Root]
			if !known || complete != info.Complete || bytes.Compare(info.Root[:], after[:]) <= 0 {
				t.Errorf("%+v after %s", info, after)
			}
			after = info.Root
			seen++
		}
		if len(infos) == 0 {
			break
		}
	}
	if seen != len(want) {
		t.Errorf("%d of %d listed", seen, len(want))
	}
}

func testDamage(t *testing.T, h Harness) {
	for _, n := range []int{100, 200 << 10, 900 << 10} {
		s := h.New(t)
		content := Content(n, 90)
		in := Put(t, s, content)
		last := in.Map.Len() - 1
		h.Damage(t, s, in.Root, last)
		b, err := s.Open(t.Context(), in.Root)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.ReadChunk(t.Context(), last, nil); !errors.Is(err, meta.ErrCorrupt) {
			t.Fatalf("%d bytes: ReadChunk: %v", n, err)
		}
		if b.Complete() || b.Have().Has(last) || b.Have().Count() != last {
			t.Fatalf("%d bytes: complete %v, have %d", n, b.Complete(), b.Have().Count())
		}
		if _, err := b.ReadChunk(t.Context(), last, nil); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%d bytes: ReadChunk again: %v", n, err)
		}
		_ = b.Close()
		if h.Reopen != nil {
			s = h.Reopen(t, s)
		}
		if b, err = s.Open(t.Context(), in.Root); err != nil {
			t.Fatal(err)
		}
		if b.Complete() || b.Have().Count() != last {
			t.Errorf("%d bytes: after a restart: complete %v, have %d", n, b.Complete(), b.Have().Count())
		}
		if err := b.WriteChunk(t.Context(), last, pieces(in.Map, content)[last]); err != nil {
			t.Fatal(err)
		}
		_ = b.Close()
		if !bytes.Equal(Get(t, s, in.Root), content) {
			t.Errorf("%d bytes: not healed", n)
		}
	}
}

func testReopenBlobs(t *testing.T, h Harness) {
	if h.Reopen == nil {
		return // the store forgets by design
	}
	s := h.New(t)
	var roots []digest.CID
	for i, n := range sizes {
		roots = append(roots, Put(t, s, Content(n, byte(i))).Root)
	}
	content := Content(1<<20, 100)
	m := chunk.Of(content)
	b, err := s.Create(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.WriteChunk(t.Context(), 2, pieces(m, content)[2]); err != nil {
		t.Fatal(err)
	}
	_ = b.Close()
	s = h.Reopen(t, s)
	for i, n := range sizes {
		if !bytes.Equal(Get(t, s, roots[i]), Content(n, byte(i))) {
			t.Errorf("%d bytes came back changed", n)
		}
	}
	if b, err = s.Open(t.Context(), m.Root()); err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Complete() || b.Have().Count() != 1 || !b.Have().Has(2) {
		t.Errorf("partial blob has %d chunks", b.Have().Count())
	}
	for i, p := range pieces(m, content) {
		if err := b.WriteChunk(t.Context(), i, p); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(Get(t, s, m.Root()), content) {
		t.Error("content came back changed")
	}
}

func testReopenUploads(t *testing.T, h Harness) {
	if h.Reopen == nil {
		return // the store forgets by design
	}
	s := h.New(t)
	for _, sha512 := range []bool{false, true} {
		for _, n := range []int{0, 10, 300 << 10, 40 << 20} {
			content := Content(n+1000, 110)
			u, err := s.NewUpload(t.Context(), store.UploadOptions{SHA512: sha512})
			if err != nil {
				t.Fatal(err)
			}
			id := u.ID()
			if _, err := u.Append(t.Context(), bytes.NewReader(content[:n])); err != nil {
				t.Fatal(err)
			}
			_ = u.Close()
			s = h.Reopen(t, s)
			if u, err = s.OpenUpload(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if u.Offset() != int64(n) {
				t.Fatalf("offset %d, want %d", u.Offset(), n)
			}
			if _, err := u.Append(t.Context(), bytes.NewReader(content[n:])); err != nil {
				t.Fatal(err)
			}
			want := digest.FromBytes(content)
			if sha512 {
				want = godigest.SHA512.FromBytes(content)
			}
			in, err := u.Commit(t.Context(), want)
			if err != nil {
				t.Fatal(err)
			}
			if in.Root != chunk.Of(content).Root() {
				t.Error("another root")
			}
			_ = u.Close()
		}
	}
}

func testContexts(t *testing.T, h Harness) {
	s := h.New(t)
	content := Content(100, 120)
	in := Put(t, s, content)
	b, err := s.Open(t.Context(), in.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.ReadChunk(ctx, 0, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadChunk: %v", err)
	}
	if err := b.WriteChunk(ctx, 0, content); !errors.Is(err, context.Canceled) {
		t.Errorf("WriteChunk: %v", err)
	}
}
