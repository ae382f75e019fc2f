package bucket_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/bucket"
	"github.com/shoal-registry/shoal/transfer/bucket/buckettest"
	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/store/storetest"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a server's part: a cache of its own in front of the shared bucket.
type node struct {
	*bucket.Bucket
	cfg     bucket.Config
	dir     string
	cap     int64
	seen    *atomic.Uint64
	corrupt *atomic.Int64
}

func (n *node) open(t testing.TB) {
	t.Helper()
	disk, err := store.OpenDisk(store.DiskConfig{Dir: n.dir, CacheBytes: n.cap, HotBytes: -1, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	n.cfg.Cache = disk
	if n.Bucket, err = bucket.New(n.cfg); err != nil {
		t.Fatal(err)
	}
}

func (n *node) close(t testing.TB) {
	t.Helper()
	if err := errors.Join(n.Bucket.Close(), n.cfg.Cache.Close()); err != nil {
		t.Error(err)
	}
}

// newNode opens a cache over a prefix of the service's bucket.
func newNode(t testing.TB, s *buckettest.Service, prefix string) *node {
	t.Helper()
	location, err := bucket.Parse(s.URL(prefix))
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dir: t.TempDir(), cap: 1 << 30, seen: &atomic.Uint64{}, corrupt: &atomic.Int64{}}
	n.seen.Store(1)
	n.cfg = bucket.Config{
		Location: location, Credentials: s.Credentials(),
		Seen:      func(context.Context) (uint64, error) { return n.seen.Load(), nil },
		OnCorrupt: func(digest.CID, int) { n.corrupt.Add(1) },
	}
	n.open(t)
	t.Cleanup(func() { n.close(t) })
	return n
}

// empty takes the cache away, as a server that has just joined has none.
func (n *node) empty(t testing.TB) {
	t.Helper()
	if _, _, err := n.Cache().Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.close(t)
	n.open(t)
}

// objects lists the keys of a root, without the directory.
func objects(s *buckettest.Service, prefix string, root digest.CID) []string {
	var names []string
	for key := range s.Files(path.Join(prefix, "blobs", root.Hex())) {
		names = append(names, path.Base(key))
	}
	slices.Sort(names)
	return names
}

// data returns the key of the only object of a root.
func data(t testing.TB, s *buckettest.Service, prefix string, root digest.CID) string {
	t.Helper()
	var found []string
	for _, name := range objects(s, prefix, root) {
		if !strings.Contains(name, ".") {
			found = append(found, path.Join(prefix, "blobs", root.Hex(), name))
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects of %s, want 1: %v", len(found), root, found)
	}
	return found[0]
}

func TestConformance(t *testing.T) {
	s := buckettest.Start(t)
	var made atomic.Int64
	nodes := map[store.Store]*node{}
	prefixes := map[store.Store]string{}
	storetest.Run(t, storetest.Harness{
		New: func(t *testing.T) store.Store {
			prefix := "t" + string(rune('a'+made.Add(1)-1))
			n := newNode(t, s, prefix)
			nodes[n.Bucket], prefixes[n.Bucket] = n, prefix
			return n.Bucket
		},
		Reopen: func(t *testing.T, old store.Store) store.Store {
			n, prefix := nodes[old], prefixes[old]
			n.close(t)
			n.open(t)
			nodes[n.Bucket], prefixes[n.Bucket] = n, prefix
			return n.Bucket
		},
		// Both the bucket's bytes and the cache's are wrong.
		Damage: func(t *testing.T, st store.Store, root digest.CID, i int) {
			b, err := st.Open(t.Context(), root)
			if err != nil {
				t.Fatal(err)
			}
			at := b.Map().StoredOffset(i) + 1
			_ = b.Close()
			buckettest.Flip(t, path.Join(s.Dir, data(t, s, prefixes[st], root)), at)
			buckettest.Flip(t, path.Join(nodes[st].dir, "blobs", root.Hex()[:2], root.Hex()), at)
		},
	})
}

// A server that has nothing cached reads what another one took in, and what a reader
// gets is checked.
func TestServersShareABucket(t *testing.T) {
	s := buckettest.Start(t)
	a, b := newNode(t, s, "p/q"), newNode(t, s, "p/q")
	for i, size := range []int{0, 1, 100 << 10, 256 << 10, 256<<10 + 1, 9<<20 + 5} {
		content := storetest.Content(size, byte(i))
		in := storetest.Put(t, a, content)
		if !bytes.Equal(storetest.Get(t, b, in.Root), content) {
			t.Fatalf("%d bytes came back changed", size)
		}
		if l, err := b.Look(t.Context(), in.Root); err != nil || !l.Whole || l.StoredBytes != int64(size) {
			t.Errorf("%d bytes: %+v, %v", size, l, err)
		}
		found, err := b.Scrub(t.Context(), in.Root, store.ScrubOptions{})
		if err != nil || !found.Whole || found.Damaged != 0 || found.SHA256 != in.Digest || found.Bytes != int64(size) {
			t.Errorf("%d bytes: %+v, %v", size, found, err)
		}
		// What is there is not uploaded again.
		before := len(objects(s, "p/q", in.Root))
		storetest.Put(t, b, content)
		if now := len(objects(s, "p/q", in.Root)); now != before {
			t.Errorf("%d bytes: %d keys became %d", size, before, now)
		}
	}
}

// Two servers that take the same content in at once both end well.
func TestTwoServersPushOneBlob(t *testing.T) {
	s := buckettest.Start(t)
	nodes := []*node{newNode(t, s, ""), newNode(t, s, "")}
	content := storetest.Content(3<<20, 1)
	var group sync.WaitGroup
	for _, n := range nodes {
		group.Go(func() { storetest.Put(t, n, content) })
	}
	group.Wait()
	root := chunk.Of(content).Root()
	for _, n := range nodes {
		n.empty(t)
		if !bytes.Equal(storetest.Get(t, n, root), content) {
			t.Error("content came back changed")
		}
	}
	// One of two copies is one too many, once it is old.
	if _, err := nodes[0].Tidy(t.Context(), bucket.TidyOptions{Grace: -time.Hour}); err != nil {
		t.Fatal(err)
	}
	data(t, s, "", root)
	nodes[1].empty(t)
	if !bytes.Equal(storetest.Get(t, nodes[1], root), content) {
		t.Error("after tidying content came back changed")
	}
}

// What was pushed after an order was given stays, whoever carries the order out.
func TestCollectSparesWhatIsYounger(t *testing.T) {
	s := buckettest.Start(t)
	a, b := newNode(t, s, ""), newNode(t, s, "")
	content := storetest.Content(600<<10, 1)
	a.seen.Store(10)
	in := storetest.Put(t, a, content)
	yes := func() (bool, error) { return true, nil }

	// Ordered at 20, while another server has seen 25 and takes it in anew.
	b.seen.Store(25)
	if seen, err := b.Keep(t.Context(), in.Root, 20); !errors.Is(err, nil) || seen != 25 {
		t.Fatalf("seen %d, %v", seen, err)
	}
	if freed, err := a.Collect(t.Context(), in.Root, 20, yes); err != nil || freed != int64(len(content)) {
		t.Fatalf("freed %d, %v", freed, err)
	}
	if names := objects(s, "", in.Root); len(names) != 2 || !strings.HasPrefix(names[0], "0000000000000019-") {
		t.Fatalf("the bucket has %v", names)
	}
	a.empty(t)
	if !bytes.Equal(storetest.Get(t, a, in.Root), content) {
		t.Error("content came back changed")
	}
	if _, err := a.Collect(t.Context(), in.Root, 30, func() (bool, error) { return false, nil }); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("an order that does not stand any more: %v", err)
	}
	if freed, err := a.Collect(t.Context(), in.Root, 30, yes); err != nil || freed != int64(len(content)) {
		t.Fatalf("freed %d, %v", freed, err)
	}
	if names := objects(s, "", in.Root); len(names) != 0 {
		t.Errorf("the bucket has %v", names)
	}
	for _, n := range []*node{a, b} {
		n.empty(t)
		if _, err := n.Open(t.Context(), in.Root); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("after the collection: %v", err)
		}
	}
}

// A flipped bit is found before a byte leaves, noted for all servers, and a new object
// is made of the good chunks and the one that was fetched.
func TestDamageIsHealed(t *testing.T) {
	s := buckettest.Start(t)
	a, b := newNode(t, s, ""), newNode(t, s, "")
	content := storetest.Content(2<<20, 1)
	in := storetest.Put(t, a, content)
	a.empty(t)
	buckettest.Flip(t, path.Join(s.Dir, data(t, s, "", in.Root)), 700<<10)
	found, err := b.Scrub(t.Context(), in.Root, store.ScrubOptions{})
	if err != nil || found.Damaged != 1 || found.Whole || found.SHA256 != "" || b.corrupt.Load() != 1 {
		t.Fatalf("%+v, %v, told %d", found, err, b.corrupt.Load())
	}
	if l, err := a.Look(t.Context(), in.Root); err != nil || l.Whole || !l.Partial {
		t.Errorf("%+v, %v", l, err)
	}
	blob, err := a.Open(t.Context(), in.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if blob.Complete() || blob.Have().Has(2) || blob.Have().Count() != 7 {
		t.Fatalf("complete %v, %d chunks", blob.Complete(), blob.Have().Count())
	}
	if _, err := blob.ReadChunk(t.Context(), 2, nil); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("the damaged chunk: %v", err)
	}
	if _, err := a.Keep(t.Context(), in.Root, 0); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("kept without it: %v", err)
	}
	m := blob.Map()
	if err := blob.WriteChunk(t.Context(), 2, content[m.PlainOffset(2):m.PlainOffset(3)]); err != nil {
		t.Fatal(err)
	}
	a.seen.Store(2)
	if _, err := a.Keep(t.Context(), in.Root, 0); err != nil {
		t.Fatal(err)
	}
	b.empty(t)
	if !bytes.Equal(storetest.Get(t, b, in.Root), content) {
		t.Error("content came back changed")
	}
	tidied, err := a.Tidy(t.Context(), bucket.TidyOptions{Grace: -time.Hour})
	if err != nil || tidied.Removed != 1 {
		t.Errorf("%+v, %v", tidied, err)
	}
	data(t, s, "", in.Root)
}

// What one server found damaged another, which has read the object whole, learns, and
// makes it again; then the first one reads the new object.
func TestDamageIsLearnt(t *testing.T) {
	s := buckettest.Start(t)
	a, b := newNode(t, s, ""), newNode(t, s, "")
	content := storetest.Content(2<<20, 1)
	in := storetest.Put(t, a, content)
	a.empty(t)
	whole := func(n *node) bool {
		blob, err := n.Open(t.Context(), in.Root)
		if err != nil {
			t.Fatal(err)
		}
		defer blob.Close()
		l, err := n.Look(t.Context(), in.Root)
		if err != nil || l.Whole != blob.Complete() {
			t.Errorf("looks like %+v, %v; complete %v", l, err, blob.Complete())
		}
		return blob.Complete()
	}
	if !whole(a) || !whole(b) {
		t.Fatal("it is not whole")
	}
	if _, err := b.Keep(t.Context(), in.Root, 0); err != nil {
		t.Fatal(err)
	}
	old := data(t, s, "", in.Root)
	buckettest.Flip(t, path.Join(s.Dir, old), 700<<10)
	if found, err := a.Scrub(t.Context(), in.Root, store.ScrubOptions{}); err != nil || found.Damaged != 1 || whole(a) {
		t.Fatalf("%+v, %v", found, err)
	}
	if err := b.Refresh(t.Context(), in.Root); err != nil {
		t.Fatal(err)
	}
	if whole(b) {
		t.Error("the other server does not know")
	}
	if _, err := b.Keep(t.Context(), in.Root, 0); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("kept without the damaged chunk: %v", err)
	}
	blob, err := b.Open(t.Context(), in.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	m := blob.Map()
	if err := blob.WriteChunk(t.Context(), 2, content[m.PlainOffset(2):m.PlainOffset(3)]); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Keep(t.Context(), in.Root, 0); err != nil || !whole(b) {
		t.Errorf("kept: %v", err)
	}
	if err := a.Refresh(t.Context(), in.Root); err != nil || !whole(a) {
		t.Errorf("the first server does not read the new object: %v", err)
	}
	if !bytes.Equal(storetest.Get(t, a, in.Root), content) {
		t.Error("content came back changed")
	}
	// When all of it is gone that is learnt as well.
	for key := range s.Files(path.Dir(old)) {
		if err := os.Remove(path.Join(s.Dir, key)); err != nil {
			t.Fatal(err)
		}
	}
	a.empty(t)
	if err := a.Refresh(t.Context(), in.Root); err != nil {
		t.Error(err)
	}
	if _, err := a.Open(t.Context(), in.Root); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("opened: %v", err)
	}
}

// A list of damaged chunks that says nothing is believed as far as that the object is not
// whole: it is written anew, or who looks at it and who makes it would never agree.
func TestAnEmptyListOfDamageIsHealed(t *testing.T) {
	s := buckettest.Start(t)
	a, b := newNode(t, s, ""), newNode(t, s, "")
	in := storetest.Put(t, a, storetest.Content(2<<20, 1))
	key := path.Join(s.Dir, data(t, s, "", in.Root))
	buckettest.Flip(t, key, 700<<10)
	if found, err := a.Scrub(t.Context(), in.Root, store.ScrubOptions{}); err != nil || found.Damaged != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	buckettest.Flip(t, key, 700<<10) // back
	if err := os.Truncate(key+".bad", 0); err != nil {
		t.Fatal(err)
	}
	if err := b.Refresh(t.Context(), in.Root); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Keep(t.Context(), in.Root, 0); err != nil {
		t.Fatal(err)
	}
	if l, err := b.Look(t.Context(), in.Root); err != nil || !l.Whole {
		t.Errorf("after it was kept it looks like %+v, %v", l, err)
	}
}

// A lost map is made again, a lost object is gone for everybody who asks.
func TestLostObjects(t *testing.T) {
	s := buckettest.Start(t)
	a, b := newNode(t, s, ""), newNode(t, s, "")
	content := storetest.Content(1<<20, 1)
	in := storetest.Put(t, a, content)
	key := data(t, s, "", in.Root)
	remove(t, s, key+".map")
	if l, err := b.Look(t.Context(), in.Root); err != nil || l.Whole || !l.Partial {
		t.Errorf("without its map: %+v, %v", l, err)
	}
	if found, err := b.Scrub(t.Context(), in.Root, store.ScrubOptions{}); err != nil || found.SHA256 != in.Digest {
		t.Errorf("without its map: %+v, %v", found, err)
	}
	b.empty(t)
	if !bytes.Equal(storetest.Get(t, b, in.Root), content) {
		t.Error("content came back changed")
	}
	b.empty(t)
	blob, err := b.Open(t.Context(), in.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	remove(t, s, key)
	if _, err := blob.ReadChunk(t.Context(), 3, nil); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("of a lost object: %v", err)
	}
	if blob.Complete() {
		t.Error("a lost object is complete")
	}
}

func remove(t testing.TB, s *buckettest.Service, key string) {
	t.Helper()
	if err := os.Remove(path.Join(s.Dir, key)); err != nil {
		t.Fatal(err)
	}
}

// A push while the bucket is down is refused, and the client's next try ends it without
// sending the content again.
func TestBucketGoesDownMidUpload(t *testing.T) {
	s := buckettest.Start(t)
	n := newNode(t, s, "")
	content := storetest.Content(1<<20, 1)
	u, err := n.NewUpload(t.Context(), store.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Append(t.Context(), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	s.Fail(func(*http.Request) int { return -1 })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	_, err = u.Commit(ctx, digest.FromBytes(content))
	cancel()
	if err == nil {
		t.Fatal("a push was acknowledged that is not in the bucket")
	}
	if len(s.Files("blobs")) != 0 {
		t.Fatalf("the bucket has %v", s.Files("blobs"))
	}
	if err := n.Probe(t.Context()); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("a probe: %v", err)
	}
	s.Fail(nil)
	again, err := n.OpenUpload(t.Context(), u.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Offset() != int64(len(content)) {
		t.Errorf("offset %d", again.Offset())
	}
	if _, err := again.Commit(t.Context(), digest.FromBytes([]byte("other"))); err == nil {
		t.Error("another digest was taken")
	}
	in, err := again.Commit(t.Context(), digest.FromBytes(content))
	if err != nil || in.Digest != digest.FromBytes(content) {
		t.Fatalf("%+v, %v", in, err)
	}
	n.empty(t)
	if !bytes.Equal(storetest.Get(t, n, in.Root), content) {
		t.Error("content came back changed")
	}
}

// Errors of the service are tried again, on the way in and out.
func TestErrorsAreTriedAgain(t *testing.T) {
	s := buckettest.Start(t)
	n := newNode(t, s, "")
	var asked atomic.Int64
	s.Fail(func(*http.Request) int {
		if asked.Add(1)%3 == 0 {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	content := storetest.Content(5<<20, 1)
	in := storetest.Put(t, n, content)
	n.empty(t)
	if !bytes.Equal(storetest.Get(t, n, in.Root), content) {
		t.Error("content came back changed")
	}
}

// While the bucket does not answer, what is not cached is as good as absent, so that it
// is fetched elsewhere, and what is cached is read.
func TestBucketIsDown(t *testing.T) {
	s := buckettest.Start(t)
	n := newNode(t, s, "")
	warm, cold := storetest.Content(600<<10, 1), storetest.Content(600<<10, 2)
	kept := storetest.Put(t, n, cold)
	n.empty(t)
	in := storetest.Put(t, n, warm)
	s.Stop()
	if !bytes.Equal(storetest.Get(t, n, in.Root), warm) {
		t.Error("content came back changed")
	}
	if _, err := n.Open(t.Context(), kept.Root); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("open: %v", err)
	}
	if _, err := n.Look(t.Context(), kept.Root); err == nil || errors.Is(err, meta.ErrNotFound) {
		t.Errorf("a look says %v", err)
	}
	if l, err := n.ListKept(t.Context(), digest.CID{}, 10); err == nil {
		t.Errorf("%d blobs are listed", len(l))
	}
	s.Run()
	if !bytes.Equal(storetest.Get(t, n, kept.Root), cold) {
		t.Error("content came back changed")
	}
}

// A large object goes in parts, and what a server that died had uploaded stays.
func TestPartsAreResumed(t *testing.T) {
	s := buckettest.Start(t)
	n := newNode(t, s, "")
	n.cfg.PartBytes = 5 << 20
	n.close(t)
	n.open(t)
	content := storetest.Content(23<<20, 1)
	u, err := n.NewUpload(t.Context(), store.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	// Parts 1 to 3 arrive, then the server is killed.
	ctx, cancel := context.WithCancel(t.Context())
	var there atomic.Int64
	s.Served(func(r *http.Request) {
		if r.URL.Query().Get("partNumber") != "" && there.Add(1) == 3 {
			cancel()
		}
	})
	s.Fail(func(r *http.Request) int {
		if r.URL.Query().Get("partNumber") > "3" {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	if _, err := u.Commit(ctx, digest.FromBytes(content)); err == nil {
		t.Fatal("a push was acknowledged that is not in the bucket")
	}
	_ = u.Close()
	var again sync.Map
	s.Fail(func(r *http.Request) int {
		if number := r.URL.Query().Get("partNumber"); number != "" && r.Method == http.MethodPut {
			again.Store(number, true)
		}
		return 0
	})
	// Another server, to which the client sends it again.
	other := newNode(t, s, "")
	other.cfg.PartBytes = 5 << 20
	other.close(t)
	other.open(t)
	in := storetest.Put(t, other, content)
	for _, number := range []string{"1", "2", "3"} {
		if _, sent := again.Load(number); sent {
			t.Errorf("part %s was sent again", number)
		}
	}
	other.empty(t)
	if !bytes.Equal(storetest.Get(t, other, in.Root), content) {
		t.Error("content came back changed")
	}
	data(t, s, "", in.Root)
}

// What a killed server leaves is removed, once it is old.
func TestOrphansGo(t *testing.T) {
	s := buckettest.Start(t)
	n := newNode(t, s, "")
	n.cfg.PartBytes = 5 << 20
	n.close(t)
	n.open(t)
	keep := storetest.Put(t, n, storetest.Content(600<<10, 1))
	content := storetest.Content(11<<20, 2)
	ctx, cancel := context.WithCancel(t.Context())
	s.Fail(func(r *http.Request) int {
		if r.URL.Query().Get("partNumber") == "2" {
			cancel()
			return http.StatusServiceUnavailable
		}
		return 0
	})
	u, err := n.NewUpload(t.Context(), store.UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Append(t.Context(), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Commit(ctx, ""); err == nil {
		t.Fatal("a push was acknowledged that is not in the bucket")
	}
	s.Fail(nil)
	orphan := chunk.Of(content).Root()
	if names := objects(s, "", orphan); len(names) != 1 {
		t.Fatalf("the bucket has %v", names)
	}
	if tidied, err := n.Tidy(t.Context(), bucket.TidyOptions{Grace: time.Hour}); err != nil || tidied.Removed != 0 {
		t.Fatalf("%+v, %v", tidied, err)
	}
	tidied, err := n.Tidy(t.Context(), bucket.TidyOptions{Grace: -time.Hour})
	if err != nil || tidied.Removed != 2 || tidied.Blobs != 1 || n.Stored() != 600<<10 {
		t.Fatalf("%+v, %v, stored %d", tidied, err, n.Stored())
	}
	if names := objects(s, "", orphan); len(names) != 0 {
		t.Errorf("the bucket has %v", names)
	}
	n.empty(t)
	if !bytes.Equal(storetest.Get(t, n, keep.Root), storetest.Content(600<<10, 1)) {
		t.Error("content came back changed")
	}
}

// A prefix belongs to one region of one cluster, whoever is first.
func TestClaim(t *testing.T) {
	s := buckettest.Start(t)
	a, b := newNode(t, s, "x"), newNode(t, s, "x")
	claims := make([]bucket.Claim, 2)
	var group sync.WaitGroup
	for i, n := range []*node{a, b} {
		group.Go(func() {
			var err error
			if claims[i], err = n.Claim(t.Context(), bucket.Owner{Cluster: "cluster", Region: "eu"}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if claims[0].ID != claims[1].ID || claims[0].ID == "" {
		t.Errorf("claims %+v", claims)
	}
	for _, other := range [][2]string{{"cluster", "us"}, {"other", "eu"}} {
		if _, err := b.Claim(t.Context(), bucket.Owner{Cluster: other[0], Region: meta.RegionName(other[1])}); !errors.Is(err, meta.ErrConflict) {
			t.Errorf("%v: %v", other, err)
		}
	}
	if c, err := newNode(t, s, "y").Claim(t.Context(), bucket.Owner{Cluster: "cluster", Region: "us"}); err != nil || c.ID == claims[0].ID {
		t.Errorf("%+v, %v", c, err)
	}
	for _, check := range bucket.Examine(t.Context(), a.Location(), s.Credentials()) {
		if check.Err != nil {
			t.Errorf("%s: %v", check.Name, check.Err)
		}
	}
	if err := a.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

// A restored cluster takes the bucket of a lost one over, once that was said and nobody
// uses it; who used it before notices, and changes nothing any more.
func TestTakeOver(t *testing.T) {
	s := buckettest.Start(t)
	old, next, second := newNode(t, s, "x"), newNode(t, s, "x"), newNode(t, s, "x")
	was, err := old.Claim(t.Context(), bucket.Owner{Cluster: "old", Region: "eu"})
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	in := storetest.Put(t, old, storetest.Content(600<<10, 1))
	age := func(by time.Duration, names ...string) {
		t.Helper()
		for _, name := range names {
			then := time.Now().Add(-by)
			if err := os.Chtimes(path.Join(s.Dir, "x", name), then, then); err != nil {
				t.Fatal(err)
			}
		}
	}
	owner := bucket.Owner{Cluster: "new", Region: "eu"}
	refused := func(want string, o bucket.Owner) {
		t.Helper()
		if _, err := next.Claim(t.Context(), o); !errors.Is(err, meta.ErrConflict) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	age(time.Hour, "claim", "alive")
	refused("--take-bucket old", owner)
	refused("--take-bucket old", bucket.Owner{Cluster: "new", Region: "eu", Take: "third"})
	refused("a prefix, of its own", bucket.Owner{Cluster: "new", Region: "us", Take: "old"})
	owner.Take = "old"
	for _, used := range []string{"claim", "alive"} {
		age(time.Minute, used)
		refused("that lives", owner)
		age(time.Hour, used)
	}
	if err := old.Probe(t.Context()); err != nil {
		t.Errorf("who was asked for it in vain: %v", err)
	}
	claim, err := next.Claim(t.Context(), owner)
	if err != nil || claim.ID == was.ID || claim.Cluster != "new" || claim.Taken != "old" {
		t.Fatalf("%+v, %v", claim, err)
	}
	for _, take := range []string{"old", ""} {
		if again, err := second.Claim(t.Context(), bucket.Owner{Cluster: "new", Region: "eu", Take: take}); err != nil || again.ID != claim.ID {
			t.Errorf("another server of it: %+v, %v", again, err)
		}
	}
	// What is there is read, and can be vouched for.
	if !bytes.Equal(storetest.Get(t, next, in.Root), storetest.Content(600<<10, 1)) {
		t.Error("content came back changed")
	}
	if _, err := next.Keep(t.Context(), in.Root, 1); err != nil {
		t.Error(err)
	}
	if err := old.Probe(t.Context()); !errors.Is(err, meta.ErrConflict) || !strings.Contains(err.Error(), "of cluster new") {
		t.Errorf("who has lost it: %v", err)
	}
	if _, err := old.Collect(t.Context(), in.Root, 100, func() (bool, error) { return true, nil }); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("who has lost it removes: %v", err)
	}
	if err := next.Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

// A cache smaller than a blob reads it nevertheless.
func TestSmallCache(t *testing.T) {
	s := buckettest.Start(t)
	a, b := newNode(t, s, ""), newNode(t, s, "")
	content := storetest.Content(24<<20, 1)
	in := storetest.Put(t, a, content)
	for _, limit := range []int64{10 << 20, 1 << 20} {
		b.close(t)
		b.cap, b.dir = limit, t.TempDir()
		b.open(t)
		if !bytes.Equal(storetest.Get(t, b, in.Root), content) {
			t.Errorf("a cache of %d bytes: content came back changed", limit)
		}
	}
}

func TestWrongCredentials(t *testing.T) {
	s := buckettest.Start(t)
	n := newNode(t, s, "")
	t.Setenv("AWS_ACCESS_KEY_ID", "nobody")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-ours")
	n.cfg.Credentials = nil
	n.close(t)
	n.open(t)
	_, err := n.Claim(t.Context(), bucket.Owner{Cluster: "cluster", Region: "eu"})
	if !errors.Is(err, meta.ErrUnavailable) || !strings.Contains(err.Error(), "credentials") || strings.Contains(err.Error(), "a-secret") {
		t.Errorf("%v", err)
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]bucket.Location{
		"s3://blobs":                                   {Bucket: "blobs", Endpoint: "s3.amazonaws.com"},
		"s3://blobs?region=eu-west-1":                  {Bucket: "blobs", Endpoint: "s3.amazonaws.com", Region: "eu-west-1"},
		"s3://b-1/a/b/?endpoint=minio:9000":            {Bucket: "b-1", Prefix: "a/b", Endpoint: "minio:9000", Region: "us-east-1"},
		"s3://blobs?endpoint=http://h&region=x":        {Bucket: "blobs", Endpoint: "h", Plain: true, Region: "x"},
		"s3://blobs?endpoint=https://h:1&path-style=1": {Bucket: "blobs", Endpoint: "h:1", PathStyle: true, Region: "us-east-1"},
	} {
		if got, err := bucket.Parse(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "blobs", "http://blobs", "s3://", "s3://B", "s3://blobs/../x", "s3://blobs?endpoint=ftp://x",
		"s3://blobs?endpoint=https://u:p@h", "s3://blobs?region=A B", "s3://blobs?path-style=yes", "s3://blobs?a=secret", "s3://blobs?region=a&region=b",
		"s3://key:secret@blobs", "s3://blobs#secret", "s3://blobs?secret_access_key=secret", "s3://blobs/%zz?secret",
	} {
		_, err := bucket.Parse(text)
		if !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		} else if strings.Contains(err.Error(), "=secret") || strings.Contains(err.Error(), ":secret") {
			t.Errorf("%q: the error repeats it: %v", text, err)
		}
	}
}
