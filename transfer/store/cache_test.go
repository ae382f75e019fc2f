package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// A cache of 100 MiB is never exceeded, by what the file system says is taken, while
// many fetch more than it holds at once; what is pinned stays.
func TestCapIsNeverExceeded(t *testing.T) {
	const limit = 100 << 20
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=200m"); err != nil {
		t.Skipf("SKIPPED: a file system of its own cannot be mounted (not root?): %v", err)
	}
	t.Cleanup(func() { // runs after the store's
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	blocks := func() int64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(dir, &st))
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}
	d := testDisk(t, DiskConfig{Dir: dir, CacheBytes: limit, HotBytes: -1})
	before := blocks() // the mark and the like
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- d.Run(ctx) }()
	var pinned []digest.CID
	for i := range 3 {
		pinned = append(pinned, put(t, d, random(10<<20, byte(i))).Root)
		must(t, d.Pin(pinned[i], "wave/1"))
	}
	var most atomic.Int64
	watching, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			most.Store(max(most.Load(), blocks()-before))
			select {
			case <-watching:
				return
			default:
			}
		}
	}()
	sizes := []int{100, 64 << 10, 300 << 10, 5<<20 + 1, 12 << 20, 30 << 20}
	content := random(40<<20, 99)
	var refused, filled atomic.Int64
	var group sync.WaitGroup
	for w := range 4 {
		group.Go(func() {
			for n := range 18 {
				at := (w*18 + n) * 1000
				part := content[at : at+sizes[(w+n)%len(sizes)]]
				b, err := d.Create(ctx, chunk.Of(part))
				if errors.Is(err, meta.ErrNoSpace) {
					refused.Add(1)
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n%7 != 6 { // some are given up half way
					fillIn(t, b, part)
					filled.Add(int64(len(part)))
				}
				_ = b.Close()
			}
		})
	}
	group.Wait()
	close(watching)
	<-watched
	cancel()
	must(t, <-ran)
	t.Logf("%d MiB passed through a cache of %d MiB that took %.1f MiB at most, %d refused meanwhile",
		filled.Load()>>20, limit>>20, float64(most.Load())/(1<<20), refused.Load())
	if most.Load() > limit {
		t.Errorf("%d bytes were taken of %d", most.Load(), limit)
	}
	if filled.Load() < 2*limit {
		t.Errorf("only %d bytes were fetched", filled.Load())
	}
	for i, root := range pinned {
		if !has(t, d, root) {
			t.Errorf("pinned blob %d is gone", i)
		}
	}
	if used, there := d.used.Load(), taken(t, d); used != there {
		t.Errorf("%d bytes counted, %d are there", used, there)
	}
}

// After a kill nobody has counted yet; the cap holds all the same.
func TestCapHoldsAfterAKill(t *testing.T) {
	const size = 1 << 20
	dir := t.TempDir()
	d := testDisk(t, DiskConfig{Dir: dir, CacheBytes: 10 * size})
	for i := range 9 {
		put(t, d, random(size, byte(i)))
	}
	must(t, d.Close())
	must(t, os.Remove(d.path(markFile))) // a clean start of a new store would count nothing
	must(t, os.WriteFile(d.path(markFile), []byte("torn"), 0o600))
	d = testDisk(t, DiskConfig{Dir: dir, CacheBytes: 10 * size})
	b, err := d.Create(t.Context(), chunk.Of(random(3*size, 50)))
	must(t, err)
	defer b.Close()
	if there := taken(t, d); there > 10*size || d.used.Load() != there {
		t.Errorf("%d bytes are there, %d counted, of %d", there, d.used.Load(), 10*size)
	}
}

// When pins fill the cap, what else comes is refused with what to do about it, and
// uploads are too.
func TestPinsFillTheCap(t *testing.T) {
	const size = 1 << 20
	d := testDisk(t, DiskConfig{CacheBytes: 4 * size})
	for i := range 3 {
		in := put(t, d, random(size, byte(i)))
		must(t, d.Pin(in.Root, "wave/1"))
	}
	_, err := d.Create(t.Context(), chunk.Of(random(2*size, 9)))
	if !errors.Is(err, meta.ErrNoSpace) || !strings.Contains(err.Error(), "--cache-size") {
		t.Errorf("err = %v", err)
	}
	_, err = d.Create(t.Context(), chunk.Of(random(5*size, 9)))
	if !errors.Is(err, meta.ErrNoSpace) || !strings.Contains(err.Error(), "--cache-size") {
		t.Errorf("larger than the cache: %v", err)
	}
	if _, err := tryPut(t.Context(), d, random(2*size, 9)); !errors.Is(err, meta.ErrNoSpace) {
		t.Errorf("upload: %v", err)
	}
	if used, there := d.used.Load(), taken(t, d); used != there {
		t.Errorf("%d bytes counted, %d are there", used, there)
	}
	must(t, d.Unpin(chunk.Of(random(size, 0)).Root(), "wave/1"))
	if _, err := tryPut(t.Context(), d, random(size+size/2, 9)); err != nil {
		t.Errorf("after an unpin: %v", err)
	}
}

// The last copy of a region goes after all others, and only when room is needed.
func TestLastCopiesGoLast(t *testing.T) {
	const size = 300 << 10
	last := map[digest.CID]bool{}
	var asked atomic.Int64
	d := testDisk(t, DiskConfig{CacheBytes: 10 * size, Last: func(root digest.CID) bool {
		asked.Add(1)
		return last[root]
	}})
	var roots []digest.CID
	for i := range 9 {
		root := put(t, d, random(size-16<<10, byte(i))).Root
		roots = append(roots, root)
		at := time.Now().Add(time.Duration(i-100) * time.Minute)
		must(t, os.Chtimes(d.files(root).whole, at, at))
	}
	for _, i := range []int{0, 1, 4} {
		last[roots[i]] = true
	}
	there := func() (out []int) {
		for i, root := range roots {
			if _, err := os.Stat(d.files(root).whole); err == nil {
				out = append(out, i)
			}
		}
		return out
	}
	check := func(what string, want ...int) {
		t.Helper()
		if got := there(); !slices.Equal(got, want) {
			t.Errorf("%s: %v are there, want %v", what, got, want)
		}
	}
	// Ahead of need nothing but others go, even if they are used more.
	if _, err := d.evict(t.Context(), 0, d.cfg.CacheBytes); err != nil {
		t.Fatal(err)
	}
	check("ahead", 0, 1, 4)
	if asked.Load() == 0 {
		t.Error("nobody was asked")
	}
	// For new content they go, oldest first and no more than needed.
	b, err := d.Create(t.Context(), chunk.Of(random(8*size, 50)))
	must(t, err)
	defer b.Close()
	check("for new content", 1, 4)
	if there := taken(t, d); there > d.cfg.CacheBytes {
		t.Errorf("%d bytes are there of %d", there, d.cfg.CacheBytes)
	}
}

// Asking about last copies has an end: a registrar that does not answer does not keep
// content out.
func TestLastCopiesAreAskedForAWhile(t *testing.T) {
	const size = 100 << 10
	d := testDisk(t, DiskConfig{CacheBytes: 40 * size, Last: func(digest.CID) bool {
		time.Sleep(lastWithin / 4) // a slow answer is what is tested
		return true
	}})
	for i := range 30 {
		put(t, d, random(size, byte(i)))
	}
	began := time.Now()
	b, err := d.Create(t.Context(), chunk.Of(random(38*size, 50)))
	must(t, err)
	_ = b.Close()
	t.Logf("room was made in %v", time.Since(began))
	if there := taken(t, d); there > d.cfg.CacheBytes {
		t.Errorf("%d bytes are there of %d", there, d.cfg.CacheBytes)
	}
}

// An open blob stays unless all who have it open yield; then it goes, and who reads
// on hears of it.
func TestYield(t *testing.T) {
	const size = 1 << 20
	d := testDisk(t, DiskConfig{CacheBytes: 3 * size, HotBytes: -1})
	in := put(t, d, random(size, 1))
	one, err := d.Open(t.Context(), in.Root)
	must(t, err)
	defer one.Close()
	two, err := d.Open(t.Context(), in.Root)
	must(t, err)
	evict := func() int {
		n, err := d.evict(t.Context(), 0, 0)
		must(t, err)
		return n
	}
	one.Yield(true)
	if evict() != 0 {
		t.Error("a blob went that somebody needs")
	}
	_ = two.Close()
	one.Yield(false)
	if evict() != 0 {
		t.Error("a blob went whose opener needs it again")
	}
	one.Yield(true)
	one.Yield(true)
	if evict() != 1 {
		t.Error("a blob stayed that nobody needs")
	}
	if _, err := one.ReadChunk(t.Context(), 0, nil); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("err = %v", err)
	}
	// It may come again under the same handle.
	put(t, d, random(size, 1))
	if _, err := one.ReadChunk(t.Context(), 0, nil); err != nil {
		t.Error(err)
	}
}

// A push onto a copy that is damaged on disk replaces it, unless this process knows the
// copy to be sound.
func TestPushHealsADamagedCopy(t *testing.T) {
	for name, content := range map[string][]byte{"small": random(1000, 1), "large": random(3<<20, 1)} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			d := testDisk(t, DiskConfig{Dir: dir, Fsync: true, HotBytes: -1})
			in := put(t, d, content)
			stat := func() os.FileInfo {
				fi, err := os.Stat(d.files(in.Root).whole)
				must(t, err)
				return fi
			}
			before := stat()
			put(t, d, content)
			if !os.SameFile(before, stat()) {
				t.Error("a copy that was just received was written again")
			}
			must(t, d.Close())
			must(t, flipByte(d.files(in.Root).whole, 500))
			d = testDisk(t, DiskConfig{Dir: dir, Fsync: true, HotBytes: -1})
			held, _ := d.Open(t.Context(), in.Root) // a small one is found damaged at once
			put(t, d, content)
			if bad, err := d.Verify(t.Context(), in.Root); bad != 0 || err != nil {
				t.Errorf("after the push: %d bad chunks, %v", bad, err)
			}
			if held != nil {
				if _, err := held.ReadChunk(t.Context(), 0, nil); err != nil {
					t.Errorf("a handle of before: %v", err)
				}
				_ = held.Close()
			}
			if used, there := d.used.Load(), taken(t, d); used != there {
				t.Errorf("%d bytes counted, %d are there", used, there)
			}
			// Verified whole counts as received.
			must(t, d.Close())
			d = testDisk(t, DiskConfig{Dir: dir, Fsync: true})
			if bad, err := d.Verify(t.Context(), in.Root); bad != 0 || err != nil {
				t.Fatalf("%d bad, %v", bad, err)
			}
			before = stat()
			put(t, d, content)
			if !os.SameFile(before, stat()) {
				t.Error("a copy that was just verified was written again")
			}
		})
	}
}

// Verify lets readers, writers and a removal pass.
func TestVerifyBesideOthers(t *testing.T) {
	content := random(6<<20, 1)
	var inside func()
	d := testDisk(t, DiskConfig{HotBytes: -1, OnCorrupt: func(digest.CID, int) {
		if inside != nil {
			inside() // the scan is half way here
		}
	}})
	in := put(t, d, content)
	must(t, flipByte(d.files(in.Root).whole, 5*chunk.MinBytes))
	b, err := d.Open(t.Context(), in.Root)
	must(t, err)
	defer b.Close()
	met := false
	inside = func() {
		met, inside = true, nil
		if _, err := b.ReadChunk(t.Context(), 9, nil); err != nil {
			t.Error(err)
		}
		if err := b.WriteChunk(t.Context(), 5, content[5*chunk.MinBytes:6*chunk.MinBytes]); err != nil || !b.Complete() {
			t.Errorf("heal during a scan: %v, complete %v", err, b.Complete())
		}
	}
	if bad, err := d.Verify(t.Context(), in.Root); bad != 1 || err != nil || !met {
		t.Errorf("%d bad, %v, met %v", bad, err, met)
	}
	if d.sound.Contains(in.Root) {
		t.Error("what was found damaged counts as sound")
	}
}

// What does not fit passes through within the cap: what was read goes, what is ahead
// of the reader stays, and the end of the last opener frees it.
func TestWindow(t *testing.T) {
	const size = 12 << 20
	d := testDisk(t, DiskConfig{CacheBytes: 6 << 20, HotBytes: -1})
	kept := put(t, d, random(1<<20, 1)).Root
	must(t, d.Pin(kept, "wave/1"))
	content := random(size, 2)
	m := chunk.Of(content)
	b, err := d.Create(t.Context(), m)
	must(t, err)
	window := b.Window()
	if window == 0 || window > 5<<20 {
		t.Fatalf("the window has %d bytes", window)
	}
	piece := func(i int) []byte { return content[i*chunk.MinBytes : (i+1)*chunk.MinBytes] }
	for i := range m.Len() {
		must(t, b.WriteChunk(t.Context(), i, piece(i)))
		got, err := b.ReadChunk(t.Context(), i, nil)
		if err != nil || !bytes.Equal(got, piece(i)) {
			t.Fatalf("chunk %d: %v", i, err)
		}
		if used := d.used.Load(); used > d.cfg.CacheBytes {
			t.Fatalf("%d bytes are used", used)
		}
	}
	if b.Complete() || b.Have().Count() > int(window/chunk.MinBytes) || !b.Have().Has(m.Len()-1) {
		t.Errorf("complete %v, %d chunks are here", b.Complete(), b.Have().Count())
	}
	if _, err := b.ReadChunk(t.Context(), 0, nil); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a chunk that went: %v", err)
	}
	must(t, b.WriteChunk(t.Context(), 0, piece(0))) // it may come again
	if got, err := b.ReadChunk(t.Context(), 0, nil); err != nil || !bytes.Equal(got, piece(0)) {
		t.Error(err)
	}
	// What nobody has read stays before what is further on.
	for i := 1; i < m.Len(); i++ {
		must(t, b.WriteChunk(t.Context(), i, piece(i)))
	}
	if !b.Have().Has(1) || !b.Have().Has(2) {
		t.Error("what comes next made place for what comes later")
	}
	other, err := d.Open(t.Context(), m.Root())
	must(t, err)
	if other.Window() != window {
		t.Error("another opener finds another blob")
	}
	must(t, other.Close())
	var st unix.Stat_t
	must(t, unix.Fstat(int(b.(*handle).e.file.Fd()), &st))
	if taken := st.Blocks * 512; taken > window {
		t.Errorf("the file takes %d bytes of %d", taken, window)
	}
	must(t, b.Close())
	if used, there := d.used.Load(), taken(t, d); used != there || d.windows.Load() != 0 {
		t.Errorf("%d bytes counted, %d are there, %d of windows", used, there, d.windows.Load())
	}
	if has(t, d, m.Root()) || !has(t, d, kept) {
		t.Error("it stayed, or what is pinned went")
	}
	// Who yields frees it, too, and a small blob may have to pass.
	b, err = d.Create(t.Context(), m)
	must(t, err)
	b.Yield(true)
	if _, err := d.Open(t.Context(), m.Root()); !errors.Is(err, meta.ErrNotFound) || d.windows.Load() != 0 {
		t.Errorf("after all yielded: %v, %d bytes of windows", err, d.windows.Load())
	}
	must(t, b.Close())
}
