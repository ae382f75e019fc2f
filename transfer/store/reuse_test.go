package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// versions returns two contents that share a prefix and some chunks in the middle.
func versions(size, prefix int) (one, two []byte) {
	one = random(size, 1)
	two = random(size, 2)
	copy(two, one[:prefix])
	copy(two[size-2*chunk.MinBytes:size-chunk.MinBytes], one[size-2*chunk.MinBytes:size-chunk.MinBytes])
	return one, two
}

// reuse creates the blob of content and runs its Reuse; got are the chunks that came.
func reuse(t testing.TB, d *Disk, content []byte) (b Blob, got []int, failed int) {
	t.Helper()
	b, err := d.Create(t.Context(), chunk.Of(content))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	var mu sync.Mutex
	r := d.Reuse(t.Context(), b)
	r.Run(t.Context(), func(i int, err error) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			failed++
		case !b.Have().Has(i):
			t.Errorf("chunk %d came and is not here", i)
		default:
			got = append(got, i)
		}
	})
	slices.Sort(got)
	return b, got, failed
}

// What a new version shares with an old one is there before anybody is asked, checked,
// and the rest is not.
func TestReuse(t *testing.T) {
	const size, prefix = 8 << 20, 5<<20 + 100
	one, two := versions(size, prefix)
	d := testDisk(t, DiskConfig{CacheBytes: 1 << 30})
	put(t, d, one)
	b, got, failed := reuse(t, d, two)
	want := []int{}
	for i := range prefix / chunk.MinBytes {
		want = append(want, i)
	}
	want = append(want, size/chunk.MinBytes-2)
	if !slices.Equal(got, want) || failed > 0 {
		t.Errorf("chunks %v came and %d failed, want %v", got, failed, want)
	}
	for i := range b.Map().Chunks {
		data, err := b.ReadChunk(t.Context(), i, nil)
		if slices.Contains(want, i) {
			at := b.Map().StoredOffset(i)
			if err != nil || !bytes.Equal(data, two[at:at+int64(len(data))]) {
				t.Errorf("chunk %d: %v", i, err)
			}
		} else if !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("chunk %d, which nobody has: %v", i, err)
		}
	}
	if bad, err := d.Verify(t.Context(), b.Root()); bad > 0 || err != nil {
		t.Errorf("%d bad chunks, %v", bad, err)
	}
	// The rest comes from elsewhere, and nothing is left to reuse.
	fillIn(t, b, two)
	if !b.Complete() || d.Reuse(t.Context(), b) != nil {
		t.Errorf("complete %v", b.Complete())
	}
	if used, there := d.used.Load(), taken(t, d); used != there {
		t.Errorf("%d bytes counted, %d are there", used, there)
	}
}

// fillIn writes the chunks that are missing.
func fillIn(t testing.TB, b Blob, content []byte) {
	t.Helper()
	for i, c := range b.Map().Chunks {
		at := b.Map().StoredOffset(i)
		if err := b.WriteChunk(t.Context(), i, content[at:at+int64(c.Stored)]); err != nil {
			t.Fatal(err)
		}
	}
}

// All of a blob may be in others: it is then complete without a fetch. Partial blobs
// give what they have.
func TestReuseOfAllAndOfPartialBlobs(t *testing.T) {
	d := testDisk(t, DiskConfig{})
	one := random(6<<20, 1)
	b, err := d.Create(t.Context(), chunk.Of(one))
	must(t, err)
	for i := range 12 { // the first half
		must(t, b.WriteChunk(t.Context(), i, one[i*chunk.MinBytes:(i+1)*chunk.MinBytes]))
	}
	must(t, b.Close())
	other := random(6<<20, 2)
	put(t, d, other)
	both := slices.Concat(one[:3<<20], other[3<<20:5<<20])
	c, got, failed := reuse(t, d, both)
	if !c.Complete() || len(got) != 20 || failed != 0 {
		t.Errorf("complete %v, %d chunks came, %d failed", c.Complete(), len(got), failed)
	}
	if bad, err := d.Verify(t.Context(), c.Root()); bad != 0 || err != nil {
		t.Errorf("%d bad, %v", bad, err)
	}
	if _, err := d.Open(t.Context(), c.Root()); err != nil {
		t.Error(err)
	}
}

// Damage in the old version does not get into the new one.
func TestReuseOfDamagedBytes(t *testing.T) {
	one, two := versions(4<<20, 2<<20)
	var told sync.Map
	d := testDisk(t, DiskConfig{HotBytes: -1, OnCorrupt: func(root digest.CID, i int) { told.Store(i, root) }})
	old := put(t, d, one).Root
	must(t, flipByte(d.files(old).whole, 3*chunk.MinBytes+7))
	b, got, failed := reuse(t, d, two)
	if slices.Contains(got, 3) || b.Have().Has(3) || failed != 1 || len(got) != 8 {
		t.Errorf("chunks %v came, %d failed", got, failed)
	}
	if root, _ := told.Load(3); root != old {
		t.Errorf("the damage was not told: %v", root)
	}
	// The old blob is partial now; the next one does not even try.
	c, err := d.Create(t.Context(), chunk.Of(slices.Concat(one[:2<<20], random(1<<20, 3))))
	must(t, err)
	defer c.Close()
	r := d.Reuse(t.Context(), c)
	if r.Has(3) || r.Count() != 7 {
		t.Errorf("%d chunks are promised", r.Count())
	}
	r.Close()
}

// The index is made again from the maps, whatever ended the process.
func TestReuseAfterARestart(t *testing.T) {
	one, two := versions(4<<20, 2<<20)
	dir := t.TempDir()
	d := testDisk(t, DiskConfig{Dir: dir})
	put(t, d, one)
	must(t, d.Close())
	d = testDisk(t, DiskConfig{Dir: dir})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- d.Run(ctx) }()
	await(t, func() bool { return d.index.len() > 0 })
	if _, got, _ := reuse(t, d, two); len(got) != 9 {
		t.Errorf("%d chunks came", len(got))
	}
	cancel()
	must(t, <-ran)
}

// Hints that lead nowhere cost nothing but the look.
func TestReuseFollowsWrongHints(t *testing.T) {
	one, two := versions(4<<20, 2<<20)
	d := testDisk(t, DiskConfig{})
	in := put(t, d, one)
	must(t, d.Remove(t.Context(), in.Root))
	if n := d.index.len(); n != 0 {
		t.Errorf("%d hints are left", n)
	}
	d.index.add(in.Root, in.Map) // as if it had gone without the store
	if _, got, failed := reuse(t, d, two); len(got)+failed != 0 {
		t.Errorf("%d chunks came, %d failed", len(got), failed)
	}
	// A hint to a blob that has other chunks.
	other := put(t, d, random(4<<20, 9))
	d.index.add(other.Root, in.Map)
	three := slices.Concat(one[:1<<20], random(1<<20, 5))
	if _, got, failed := reuse(t, d, three); len(got)+failed != 4 { // from two, which is partial
		t.Logf("%d chunks came, %d failed", len(got), failed)
	}
}

// The sources of a new blob are not what makes room for it, as long as something else can.
func TestReuseKeepsItsSources(t *testing.T) {
	const size = 4 << 20
	one, two := versions(size, 3<<20)
	d := testDisk(t, DiskConfig{CacheBytes: 3*size + 1<<20})
	old := put(t, d, one).Root
	unused := put(t, d, random(size, 7)).Root
	newest := put(t, d, random(size, 8)).Root
	for i, root := range []digest.CID{old, unused, newest} {
		at := time.Now().Add(time.Duration(i-100) * time.Hour) // old goes first
		must(t, os.Chtimes(d.files(root).whole, at, at))
	}
	_, got, _ := reuse(t, d, two)
	if len(got) != 13 || !has(t, d, old) || has(t, d, unused) {
		t.Errorf("%d chunks came, the source is there %v, what nobody uses %v", len(got), has(t, d, old), has(t, d, unused))
	}
	// In a cache for one blob the old version goes: better the new one than none.
	small := testDisk(t, DiskConfig{CacheBytes: size + 1<<20})
	put(t, small, one)
	if b, got, _ := reuse(t, small, two); len(got) != 0 || b.Have().Count() != 0 {
		t.Errorf("%d chunks came", len(got))
	}
}

// A reader's chunk comes first; who ends the context hears of every chunk.
func TestReuseOrder(t *testing.T) {
	one, two := versions(4<<20, 4<<20-2*chunk.MinBytes)
	d := testDisk(t, DiskConfig{})
	put(t, d, one)
	b, err := d.Create(t.Context(), chunk.Of(two))
	must(t, err)
	defer b.Close()
	r := d.Reuse(t.Context(), b)
	if r.Count() != 15 {
		t.Fatalf("%d chunks are promised", r.Count())
	}
	r.Prefer(9)
	if i := r.take(); i != 9 {
		t.Errorf("chunk %d comes first", i)
	}
	r.Prefer(15)
	if i := r.take(); i != 0 {
		t.Errorf("after the last comes %d", i)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var mu sync.Mutex
	told := 0
	r.Run(ctx, func(_ int, err error) {
		mu.Lock()
		defer mu.Unlock()
		if told++; !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
	})
	if told != 13 {
		t.Errorf("%d chunks were told of", told)
	}
}

// Many new versions at once, while the old one is read, removed and put back.
func TestReuseTogether(t *testing.T) {
	one := random(4<<20, 1)
	d := testDisk(t, DiskConfig{CacheBytes: 64 << 20})
	old := put(t, d, one).Root
	var group sync.WaitGroup
	for n := range 6 {
		group.Go(func() {
			content := slices.Concat(one[:3<<20], random(1<<20, byte(10+n)))
			b, err := d.Create(t.Context(), chunk.Of(content))
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Close()
			d.Reuse(t.Context(), b).Run(t.Context(), func(int, error) {})
			fillIn(t, b, content)
			if bad, err := d.Verify(t.Context(), b.Root()); bad > 0 || err != nil || !b.Complete() {
				t.Errorf("%d bad, %v, complete %v", bad, err, b.Complete())
			}
		})
	}
	group.Go(func() {
		for range 5 {
			if err := d.Remove(t.Context(), old); err != nil {
				t.Error(err)
			}
			put(t, d, one)
		}
	})
	group.Wait()
	if used, there := d.used.Load(), taken(t, d); used != there {
		t.Errorf("%d bytes counted, %d are there", used, there)
	}
}

// The index stays within its bound and still finds what is shared.
func TestIndexIsBounded(t *testing.T) {
	x := newChunkIndex(1000)
	var maps []*chunk.Map
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 100 {
		chunks := make([]chunk.Chunk, 200)
		for i := range chunks {
			chunks[i] = chunk.Chunk{Plain: chunk.MinBytes, Stored: chunk.MinBytes}
			for k := range chunks[i].ID {
				chunks[i].ID[k] = byte(r.Uint32())
			}
		}
		m, err := chunk.New(0, chunks)
		must(t, err)
		maps = append(maps, m)
		x.add(m.Root(), m)
		if x.len() > 1000 {
			t.Fatalf("%d hints after %d blobs", x.len(), n)
		}
	}
	if x.len() < 300 {
		t.Errorf("only %d hints are left", x.len())
	}
	for n, m := range maps {
		found := x.find(m)
		if len(found) == 0 || found[0] != head(m.Root()) {
			t.Errorf("blob %d is not found by its 200 chunks", n)
		}
		x.drop(m.Root(), m)
	}
	if x.len() != 0 {
		t.Errorf("%d hints are left of nothing", x.len())
	}
}

func BenchmarkReuse(b *testing.B) {
	content := random(64<<20, 1)
	d := testDisk(b, DiskConfig{})
	put(b, d, content)
	b.SetBytes(int64(len(content)))
	for n := range b.N {
		next := slices.Concat(content[:len(content)-chunk.MinBytes], random(1000, byte(n)))
		blob, err := d.Create(b.Context(), chunk.Of(next))
		if err != nil {
			b.Fatal(err)
		}
		d.Reuse(b.Context(), blob).Run(b.Context(), func(i int, err error) {
			if err != nil {
				b.Error(i, err)
			}
		})
		b.StopTimer()
		_ = blob.Close()
		if err := d.Remove(b.Context(), blob.Root()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkIndex is the index of a full store: what finding the sources of a 1 GiB
// blob takes, and the memory of all hints.
func BenchmarkIndex(b *testing.B) {
	x := newChunkIndex(indexHints)
	r := rand.New(rand.NewPCG(1, 2))
	var last *chunk.Map
	for range 600 {
		chunks := make([]chunk.Chunk, chunk.CountFor(1<<30))
		for i := range chunks {
			chunks[i] = chunk.Chunk{Plain: chunk.MinBytes, Stored: chunk.MinBytes}
			for k := range chunks[i].ID {
				chunks[i].ID[k] = byte(r.Uint32())
			}
		}
		m, err := chunk.New(0, chunks)
		if err != nil {
			b.Fatal(err)
		}
		x.add(m.Root(), m)
		last = m
	}
	b.ReportMetric(float64(x.len()), "hints")
	b.ResetTimer()
	for range b.N {
		if len(x.find(last)) != 1 {
			b.Fatal("not found")
		}
	}
}

// A map that lies about a chunk's length makes nobody read another blob wrongly and take
// it for damaged.
func TestReuseOfAMapThatLies(t *testing.T) {
	d := testDisk(t, DiskConfig{CacheBytes: 1 << 30})
	content := random(4*chunk.MinBytes+100, 1)
	put(t, d, content)
	honest := chunk.Of(content)
	chunks := slices.Clone(honest.Chunks)
	last := &chunks[len(chunks)-1]
	last.Plain, last.Stored = last.Plain+50, last.Stored+50
	lie, err := chunk.New(0, chunks)
	must(t, err)
	b, err := d.Create(t.Context(), lie)
	must(t, err)
	defer b.Close()
	d.Reuse(t.Context(), b).Run(t.Context(), func(int, error) {})
	other, err := d.Open(t.Context(), honest.Root())
	must(t, err)
	defer other.Close()
	if !other.Complete() {
		t.Error("the other blob was taken for damaged")
	}
	if b.Complete() || b.Have().Has(len(chunks)-1) {
		t.Error("a chunk of another length was taken")
	}
}
