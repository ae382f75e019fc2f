package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// heal writes what is missing of a blob.
func heal(t *testing.T, d *Disk, content []byte) {
	t.Helper()
	m := chunk.Of(content)
	b, err := d.Create(t.Context(), m)
	must(t, err)
	defer b.Close()
	at := int64(0)
	for i, c := range m.Chunks {
		if !b.Have().Has(i) {
			must(t, b.WriteChunk(t.Context(), i, content[at:at+int64(c.Stored)]))
		}
		at += int64(c.Stored)
	}
	if !b.Complete() {
		t.Fatal("the blob is not whole")
	}
}

// holds says whether the file of a blob is what was put there.
func holds(d *Disk, content []byte) bool {
	b, err := os.ReadFile(d.files(chunk.Of(content).Root()).whole)
	return err == nil && bytes.Equal(b, content)
}

// Look finds what became of a blob's files while they were open, or not; what can be
// put right is.
func TestLook(t *testing.T) {
	for name, test := range map[string]struct {
		size    int
		do      func(fl files) error
		whole   bool
		partial bool
		mended  bool
	}{
		"nothing":        {2 << 20, func(files) error { return nil }, true, false, false},
		"gone":           {2 << 20, func(fl files) error { return os.Remove(fl.whole) }, false, false, false},
		"cut":            {2 << 20, func(fl files) error { return os.Truncate(fl.whole, 1<<20) }, false, true, false},
		"longer":         {2 << 20, func(fl files) error { return os.Truncate(fl.whole, 2<<20+1) }, true, false, false},
		"map gone":       {2 << 20, func(fl files) error { return os.Remove(fl.chunkMap) }, true, false, true},
		"map flipped":    {2 << 20, func(fl files) error { return flipByte(fl.chunkMap, 40) }, true, false, true},
		"map empty":      {2 << 20, func(fl files) error { return os.Truncate(fl.chunkMap, 0) }, true, false, true},
		"another file":   {2 << 20, func(fl files) error { return replace(fl.whole, random(2<<20, 9)) }, true, false, false},
		"shorter file":   {2 << 20, func(fl files) error { return replace(fl.whole, random(7, 9)) }, false, true, false},
		"bare":           {1000, func(files) error { return nil }, true, false, false},
		"bare gone":      {1000, func(fl files) error { return os.Remove(fl.whole) }, false, false, false},
		"bare flipped":   {1000, func(fl files) error { return flipByte(fl.whole, 500) }, false, true, false},
		"bare cut":       {1000, func(fl files) error { return os.Truncate(fl.whole, 10) }, false, true, false},
		"everything":     {2 << 20, func(fl files) error { return os.RemoveAll(fl.dir) }, false, false, false},
		"empty blob":     {0, func(files) error { return nil }, true, false, false},
		"gone and map":   {2 << 20, func(fl files) error { return errors.Join(os.Remove(fl.whole), os.Remove(fl.chunkMap)) }, false, false, false},
		"cut and no map": {2 << 20, func(fl files) error { return errors.Join(os.Truncate(fl.whole, 9), os.Remove(fl.chunkMap)) }, false, true, false},
	} {
		for _, open := range []bool{true, false} {
			t.Run(name+map[bool]string{true: " while open", false: ""}[open], func(t *testing.T) {
				dir := t.TempDir()
				d := testDisk(t, DiskConfig{Dir: dir, Fsync: true})
				content := random(test.size, 1)
				in := put(t, d, content)
				if !open {
					must(t, d.Close())
					d = testDisk(t, DiskConfig{Dir: dir, Fsync: true})
				}
				must(t, test.do(d.files(in.Root)))
				got, err := d.Look(t.Context(), in.Root)
				must(t, err)
				want := Looked{Whole: test.whole, Partial: test.partial, Mended: test.mended}
				if !open && (strings.HasPrefix(name, "bare ") || name == "cut and no map") {
					want.Partial = false // nothing of it can be checked
				}
				got.StoredBytes = 0
				if got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
				heal(t, d, content)
				s, err := d.Scrub(t.Context(), in.Root, ScrubOptions{})
				must(t, err)
				if name == "another file" {
					// Of the right length: what is in it shows when it is read.
					if s.Damaged == 0 {
						t.Error("another file is not noticed")
					}
					heal(t, d, content)
				} else if s.Damaged != 0 || !s.Whole || s.SHA256 != digest.FromBytes(content) {
					t.Errorf("after it was healed: %+v", s)
				}
				if !holds(d, content) {
					t.Error("the file is not what it was")
				}
			})
		}
	}
}

func replace(path string, content []byte) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o640)
}

// Scrub names each damaged chunk once, can be stopped and goes on, and computes the
// sha256 only of what it read from the start without damage.
func TestScrub(t *testing.T) {
	var told []int
	d := testDisk(t, DiskConfig{Fsync: true, OnCorrupt: func(_ digest.CID, i int) { told = append(told, i) }})
	content := random(3<<20, 1)
	in := put(t, d, content)
	for _, at := range []int64{5, 300 << 10, 3<<20 - 1} {
		must(t, flipByte(d.files(in.Root).whole, at))
	}
	enough := errors.New("enough")
	next := 0
	s, err := d.Scrub(t.Context(), in.Root, ScrubOptions{
		Pace: func(_ context.Context, bytes int64) error {
			if next == 6 {
				return enough
			}
			return nil
		},
		Done: func(n int) { next = n },
	})
	if !errors.Is(err, enough) || s.Damaged != 2 || next != 6 || s.Bytes != 6*256<<10 {
		t.Fatalf("stopped at %d: %+v, %v", next, s, err)
	}
	s, err = d.Scrub(t.Context(), in.Root, ScrubOptions{From: next})
	must(t, err)
	if s.Damaged != 1 || s.Whole || s.SHA256 != "" || s.Bytes != 6*256<<10 {
		t.Errorf("the rest: %+v", s)
	}
	if len(told) != 3 {
		t.Errorf("told of chunks %v", told)
	}
	if s, err = d.Scrub(t.Context(), in.Root, ScrubOptions{}); err != nil || s.Damaged != 0 || s.Whole || s.SHA256 != "" {
		t.Errorf("of a blob with holes: %+v, %v", s, err)
	}
	heal(t, d, content)
	if s, err = d.Scrub(t.Context(), in.Root, ScrubOptions{From: 3}); err != nil || !s.Whole || s.SHA256 != "" {
		t.Errorf("from the middle: %+v, %v", s, err)
	}
	if s, err = d.Scrub(t.Context(), in.Root, ScrubOptions{}); err != nil || s.SHA256 != digest.FromBytes(content) {
		t.Errorf("healed: %+v, %v", s, err)
	}
	if _, err := d.Scrub(t.Context(), digest.Sum([]byte("nothing")), ScrubOptions{}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
}

// Damaged bytes are kept for inspection, for a while and up to a bound; what is removed
// is removed there, too, and a cache keeps none.
func TestSetAside(t *testing.T) {
	d := testDisk(t, DiskConfig{Fsync: true})
	content := random(1<<20, 1)
	in := put(t, d, content)
	must(t, flipByte(d.files(in.Root).whole, 300<<10))
	if bad, err := d.Verify(t.Context(), in.Root); bad != 1 || err != nil {
		t.Fatal(bad, err)
	}
	pieces, bytes := d.Aside()
	names, err := os.ReadDir(d.path(asideDir))
	must(t, err)
	if pieces != 1 || bytes != 256<<10 || len(names) != 1 || !strings.HasPrefix(names[0].Name(), in.Root.Hex()+"-1-") {
		t.Fatalf("%d pieces of %d bytes: %v", pieces, bytes, names)
	}
	kept, err := os.ReadFile(d.path(asideDir, names[0].Name()))
	must(t, err)
	if kept[300<<10-256<<10] == content[300<<10] {
		t.Error("what is kept is not the damaged chunk")
	}
	// Another process finds it, and lets it go after its time.
	must(t, d.Close())
	d = testDisk(t, DiskConfig{Dir: d.cfg.Dir, Fsync: true})
	d.expireAside(time.Now().Add(asideKeep - time.Minute))
	if pieces, _ := d.Aside(); pieces != 1 {
		t.Error("it went before its time")
	}
	d.expireAside(time.Now().Add(asideKeep + time.Minute))
	if pieces, bytes := d.Aside(); pieces != 0 || bytes != 0 {
		t.Error("it is kept for ever")
	}
	heal(t, d, content)
	must(t, flipByte(d.files(in.Root).whole, 1))
	_, err = d.Verify(t.Context(), in.Root)
	must(t, errors.Join(err, d.Remove(t.Context(), in.Root)))
	if pieces, _ := d.Aside(); pieces != 0 {
		t.Error("of a removed blob something is kept")
	}
	// The oldest make place.
	for i := range asideFileMost + 5 {
		d.keepAside(digest.Sum([]byte{byte(i), byte(i >> 8)}), 0, []byte("x"))
	}
	if pieces, bytes := d.Aside(); pieces != asideFileMost || bytes != asideFileMost {
		t.Errorf("%d pieces of %d bytes are kept", pieces, bytes)
	}

	cache := testDisk(t, DiskConfig{CacheBytes: 100 << 20})
	in = put(t, cache, content)
	must(t, flipByte(cache.files(in.Root).whole, 1))
	if bad, err := cache.Verify(t.Context(), in.Root); bad != 1 || err != nil {
		t.Fatal(bad, err)
	}
	if pieces, _ := cache.Aside(); pieces != 0 {
		t.Error("a cache keeps damaged bytes")
	}
}

// A blob of which nothing can be checked is set aside whole.
func TestRuinIsSetAside(t *testing.T) {
	dir := t.TempDir()
	d := testDisk(t, DiskConfig{Dir: dir, Fsync: true})
	in := put(t, d, random(2<<20, 1))
	must(t, d.Close())
	d = testDisk(t, DiskConfig{Dir: dir, Fsync: true})
	must(t, errors.Join(os.Remove(d.files(in.Root).chunkMap), flipByte(d.files(in.Root).whole, 1<<20)))
	if _, err := d.Open(t.Context(), in.Root); !errors.Is(err, meta.ErrCorrupt) {
		t.Fatal(err)
	}
	if pieces, bytes := d.Aside(); pieces != 1 || bytes != 2<<20 {
		t.Errorf("%d pieces of %d bytes are kept", pieces, bytes)
	}
	if _, err := d.Open(t.Context(), in.Root); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}
}

// The directories go while the store is used: what is open is read to its end, writes
// go on, what is gone is not here any more, and nobody else can take the directory.
func TestDirectoryRemoved(t *testing.T) {
	for _, whole := range []bool{true, false} {
		dir := filepath.Join(t.TempDir(), "store")
		d := testDisk(t, DiskConfig{Dir: dir, Fsync: true})
		content := random(2<<20, 1)
		in := put(t, d, content)
		other := put(t, d, random(1<<20, 2))
		must(t, d.Pin(in.Root, "somebody"))
		b, err := d.Open(t.Context(), in.Root)
		must(t, err)
		started, err := d.NewUpload(t.Context(), UploadOptions{})
		must(t, err)
		_, err = started.Append(t.Context(), bytes.NewReader(content[:1<<20]))
		must(t, err)
		if whole {
			must(t, os.RemoveAll(dir))
		} else {
			must(t, os.RemoveAll(filepath.Join(dir, blobsDir)))
		}
		// A commit right away makes its directory again.
		after := put(t, d, random(3<<20, 3))
		if lost, err := d.Present(t.Context()); lost != 1 || err != nil {
			t.Errorf("lost %d times: %v", lost, err)
		}
		if lost, err := d.Present(t.Context()); lost != 1 || err != nil {
			t.Errorf("lost %d times: %v", lost, err)
		}
		if b.Complete() {
			t.Error("what is gone is said to be whole")
		}
		must(t, b.Close())
		for root, want := range map[digest.CID]bool{in.Root: false, other.Root: false, after.Root: true} {
			if got := d.Holds(t.Context(), root); got != want {
				t.Errorf("held %v, want %v", got, want)
			}
		}
		if whole {
			if _, err := started.Commit(t.Context(), ""); !errors.Is(err, meta.ErrNotFound) {
				t.Errorf("a commit of an upload that is gone: %v", err)
			}
		} else {
			must(t, started.Cancel(t.Context()))
		}
		must(t, started.Close())
		heal(t, d, content)
		if !holds(d, content) {
			t.Error("the blob is not back")
		}
		if _, err := OpenDisk(DiskConfig{Dir: dir}); !errors.Is(err, meta.ErrUnavailable) {
			t.Errorf("a second process: %v", err)
		}
		must(t, d.Close())
		d = testDisk(t, DiskConfig{Dir: dir, Fsync: true})
		if !d.pins.has(in.Root) {
			t.Error("the pin is gone")
		}
		if used := d.used.Load(); used != taken(t, d) {
			t.Errorf("%d bytes counted, %d are there", used, taken(t, d))
		}
	}
}

// A push of content that is here and damaged puts it right, whether this process knew
// it sound or not.
func TestPushHealsDamage(t *testing.T) {
	for _, size := range []int{100, 2 << 20} {
		dir := t.TempDir()
		d := testDisk(t, DiskConfig{Dir: dir, Fsync: true})
		content := random(size, 1)
		in := put(t, d, content)
		for _, again := range []bool{false, true} {
			if again {
				must(t, d.Close())
				d = testDisk(t, DiskConfig{Dir: dir, Fsync: true})
			}
			must(t, flipByte(d.files(in.Root).whole, int64(size)/2))
			put(t, d, content)
			if !holds(d, content) {
				t.Errorf("%d bytes, another process %v: the push did not heal it", size, again)
			}
			if s, err := d.Scrub(t.Context(), in.Root, ScrubOptions{}); err != nil || s.Damaged != 0 || !s.Whole {
				t.Errorf("%d bytes, another process %v: %+v, %v", size, again, s, err)
			}
		}
	}
}

// Bytes of an upload that rests go bad: what its state vouches for is read back, so a
// commit vouches for nothing else.
func TestDamagedUpload(t *testing.T) {
	content := random(20<<20, 1)
	const received = 17<<20 + 100 // behind it 100 bytes of an unfinished chunk
	for _, test := range []struct {
		at, back int64
	}{
		{5, 0}, {9 << 20, 9 << 20}, {received - 50, 17 << 20}, {-1, received},
	} {
		dir := t.TempDir()
		d := testDisk(t, DiskConfig{Dir: dir, Fsync: true})
		u, err := d.NewUpload(t.Context(), UploadOptions{})
		must(t, err)
		_, err = u.Append(t.Context(), bytes.NewReader(content[:received]))
		must(t, err)
		must(t, errors.Join(u.Close(), d.Close()))
		if test.at >= 0 {
			must(t, flipByte(filepath.Join(dir, uploadsDir, u.ID()+partSuffix), test.at))
		}
		d = testDisk(t, DiskConfig{Dir: dir, Fsync: true})
		u, err = d.OpenUpload(t.Context(), u.ID())
		must(t, err)
		if u.Offset() != test.back {
			t.Errorf("flipped at %d: it goes on at %d, want %d", test.at, u.Offset(), test.back)
		}
		_, err = u.Append(t.Context(), bytes.NewReader(content[u.Offset():]))
		must(t, err)
		in, err := u.Commit(t.Context(), digest.FromBytes(content))
		must(t, err)
		must(t, u.Close())
		if s, err := d.Scrub(t.Context(), in.Root, ScrubOptions{}); err != nil || s.SHA256 != digest.FromBytes(content) {
			t.Errorf("flipped at %d: %+v, %v", test.at, s, err)
		}
	}
}

// Each byte of the files beside the blobs may go bad: it is noticed, and nothing is
// believed that was not written.
func TestDamagedMarkAndPins(t *testing.T) {
	dir := t.TempDir()
	d := testDisk(t, DiskConfig{Dir: dir, Fsync: true})
	one, two := digest.Sum([]byte("1")), digest.Sum([]byte("2"))
	must(t, errors.Join(d.Pin(one, "a"), d.Pin(two, "b"), d.Close()))
	for _, name := range []string{markFile, pinsFile} {
		sound, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		for at := 0; at < len(sound); at += 5 {
			must(t, os.WriteFile(filepath.Join(dir, name), sound, 0o640))
			must(t, flipByte(filepath.Join(dir, name), int64(at)))
			d := testDisk(t, DiskConfig{Dir: dir, Fsync: true})
			if d.mended.Load() != 1 {
				t.Fatalf("byte %d of %s: %d damaged files", at, name, d.mended.Load())
			}
			if name == markFile && !d.restarted.After(time.Now().Add(-time.Minute)) {
				t.Fatalf("byte %d: the damaged mark is believed", at)
			}
			if pinned := len(d.pins.owners); pinned > 2 || name == markFile && pinned != 2 {
				t.Fatalf("byte %d: %d roots are pinned", at, pinned)
			}
			for root := range d.pins.owners {
				if root != one && root != two {
					t.Fatalf("byte %d: %s is pinned", at, root)
				}
			}
			must(t, d.Close())
			must(t, os.WriteFile(filepath.Join(dir, pinsFile), pinsOf(one, two), 0o640))
		}
	}
}

func pinsOf(one, two digest.CID) []byte {
	return []byte(pinLine(one, "a", true) + pinLine(two, "b", true))
}

// Files of before there were sums are read.
func TestOldMarkAndPins(t *testing.T) {
	dir := t.TempDir()
	d := testDisk(t, DiskConfig{Dir: dir, Fsync: true})
	root := digest.Sum([]byte("1"))
	must(t, errors.Join(d.Pin(root, "a"), d.Close()))
	must(t, os.WriteFile(filepath.Join(dir, pinsFile), []byte("+"+root.Hex()+" a\n"), 0o640))
	old := d.mark
	old.Version, old.Clean, old.Counted = 2, true, true
	sealed := old.encode()
	must(t, os.WriteFile(filepath.Join(dir, markFile), sealed[:len(sealed)-len(digest.CID{})], 0o640))
	d = testDisk(t, DiskConfig{Dir: dir, Fsync: true})
	if !d.pins.has(root) || d.mended.Load() != 0 || !d.counted.Load() {
		t.Errorf("pinned %v, %d damaged files, counted %v", d.pins.has(root), d.mended.Load(), d.counted.Load())
	}
}

// A bitmap says that all is here, and it is not: nobody gets what is not.
func TestBitmapThatSaysAll(t *testing.T) {
	dir := t.TempDir()
	d := testDisk(t, DiskConfig{Dir: dir, Fsync: true})
	content := random(1<<20, 1)
	m := chunk.Of(content)
	b, err := d.Create(t.Context(), m)
	must(t, err)
	for i := range 3 {
		must(t, b.WriteChunk(t.Context(), i, content[i*256<<10:(i+1)*256<<10]))
	}
	must(t, errors.Join(b.Close(), d.Close()))
	must(t, os.WriteFile(d.files(m.Root()).have, chunk.FullBitmap(m.Len()).Bytes(), 0o640))
	d = testDisk(t, DiskConfig{Dir: dir, Fsync: true})
	b, err = d.Open(t.Context(), m.Root())
	must(t, err)
	defer b.Close()
	if b.Complete() || b.Have().Count() != 3 {
		t.Errorf("complete %v with %d chunks of 3", b.Complete(), b.Have().Count())
	}
}

// A chunk that was found damaged, and is sound once the finder has the lock, stays: a
// push has put a sound file there meanwhile and was acknowledged.
func TestWhatIsSoundAgainIsNotCondemned(t *testing.T) {
	var told int
	d := testDisk(t, DiskConfig{Dir: t.TempDir(), Fsync: true, HotBytes: -1, OnCorrupt: func(digest.CID, int) { told++ }})
	content := random(2<<20, 1)
	in := put(t, d, content)
	fl := d.files(in.Map.Root())
	must(t, flipByte(fl.whole, 5))
	e := d.hold(in.Map.Root())
	defer d.drop(e)
	must(t, e.peek(t.Context()))
	buf := make([]byte, in.Map.Chunks[0].Stored)
	if _, err := e.readDisk(0, buf); !errors.Is(err, meta.ErrCorrupt) {
		t.Fatalf("the damaged chunk: %v", err)
	}
	put(t, d, content) // before the finder has the lock; it finds the damage, too
	before := told
	got, err := e.condemn(0, buf)
	if err != nil || !bytes.Equal(got, content[:len(buf)]) {
		t.Errorf("the chunk of the push: %v", err)
	}
	if state, _ := e.snapshot(); state != complete || told != before || !holds(d, content) {
		t.Errorf("after a push the blob is in state %v, %d times damaged", state, told-before)
	}
}

// A damaged chunk of a blob that is still open is found after somebody removed the whole
// directory: the store makes it again, and goes on.
func TestDamageAfterTheDirectoryWent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "blobs")
	d := testDisk(t, DiskConfig{Dir: dir, Fsync: true, HotBytes: -1})
	in := put(t, d, random(2<<20, 1))
	b, err := d.Open(t.Context(), in.Map.Root())
	must(t, err)
	must(t, flipByte(d.files(in.Map.Root()).whole, 5))
	must(t, os.RemoveAll(dir))
	if _, err := b.ReadChunk(t.Context(), 0, nil); !errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("the damaged chunk: %v", err)
	}
	must(t, b.Close())
	if _, err := d.Present(t.Context()); err != nil {
		t.Error(err)
	}
	content := random(2<<20, 2)
	if put(t, d, content); !holds(d, content) {
		t.Error("the store takes nothing in")
	}
}
