package state

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	bucketA meta.NodeID = "bucket-00000000000000aa"
	bucketB meta.NodeID = "bucket-00000000000000bb"
)

func attach(server, bucket meta.NodeID) AttachBucket {
	return AttachBucket{Server: server, Bucket: meta.Bucket{ID: bucket, Location: "s3://blobs/eu"}}
}

// newBucketBench has a bucket of eu-8 and eu-9 in the region eu, which has no other
// servers, and all settled.
func newBucketBench(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: 5})
	for _, id := range []meta.NodeID{"eu-8", "eu-9"} {
		b.enter(id, "eu")
		b.must(attach(id, bucketA))
	}
	for _, id := range []meta.NodeID{"eu-1", "eu-2"} {
		b.must(DrainServer{ID: id, Drain: true})
		settle(b, maxSettled)
		b.must(RemoveNode{ID: id})
		settle(b, maxSettled)
	}
	return b
}

func levelFiveBuckets(l *logWriter) {
	l.add("", CreateJoinToken{Token: meta.JoinToken{ID: "of eu-b", Role: meta.RoleServer, Region: "eu", Uses: 2, Expires: meta.TimeOf(l.now.Add(time.Hour))}})
	l.add("", AdmitNode{TokenSecretHash: "of eu-b", Node: server("eu-b", "eu")})
	l.add("", AdmitNode{TokenSecretHash: "of eu-b", Node: server("eu-c", "eu")})
	l.settle(4)
	l.add("", attach("eu-b", bucketA))
	l.add("", attach("eu-b", bucketA))
	l.add("", attach("eu-b", bucketB))
	l.add("", attach("us-7", bucketA))
	l.add("", attach("nobody", bucketB))
	l.settle(4)
	l.add("", link("in the bucket", bucketA))
	l.add("", imageAt(bucketA, "b1", "in the bucket"))
	l.add("", link("in the bucket", "eu-b"))
	l.add("", attach("eu-c", bucketA))
	l.settle(4)
	l.add("", report(bucketA, meta.ReplicaVerified, "b1"))
	l.add("", DrainServer{ID: "eu-b", Drain: true})
	l.settle(4)
	l.add("", RemoveNode{ID: "eu-b"})
	l.settle(4)
	l.add("", DrainServer{ID: "eu-c", Drain: true})
	l.settle(4)
	l.add("", RemoveNode{ID: "eu-c"})
	l.settle(4)
}

func TestABucketHoldsOneCopy(t *testing.T) {
	b := newBucketBench(t)
	b.must(link("layer", bucketA))
	b.must(link("m1", bucketA))
	b.must(imageAt(bucketA, "m1", "layer"))
	if got, want := states(b, "layer"), "bucket-00000000000000aa=verified eu=verified us=pending"; !sameWords(got, want) {
		t.Errorf("copies are %q, want %q", got, want)
	}
	if n := ask(b, CopiesOf{Roots: rootsOf("layer")})[0]; n != 1 {
		t.Errorf("%d copies", n)
	}
	// The only copy there is: not lost, and gone only with all servers of the bucket.
	if lost := ask(b, IsLost{Root: rootsOf("layer")[0]}); lost {
		t.Error("what is in the bucket only is said to be lost")
	}
	for _, c := range []struct {
		leaving []meta.NodeID
		only    int
	}{{[]meta.NodeID{"eu-8"}, 0}, {[]meta.NodeID{"eu-8", "eu-9"}, 2}} {
		if n := len(ask(b, LastCopies{Leaving: c.leaving}).Roots); n != c.only {
			t.Errorf("%d blobs go with %v, want %d", n, c.leaving, c.only)
		}
	}
	b.refuse(link("layer", "eu-8"), meta.ErrConflict, "bucket-00000000000000aa")
	b.refuse(report("eu-9", meta.ReplicaVerified, "layer"), meta.ErrConflict, "bucket")
	check(b)

	// It can be relied on as long as one of its servers can reach it.
	b.must(ReportBlobs{Server: "eu-8", State: meta.BlobsFailing, Why: "the bucket is down"})
	if n := ask(b, CopiesOf{Roots: rootsOf("layer")})[0]; n != 1 {
		t.Errorf("%d copies, one server can still reach the bucket", n)
	}
	b.must(ReportBlobs{Server: "eu-9", State: meta.BlobsFailing, Why: "the bucket is down"})
	if n := ask(b, CopiesOf{Roots: rootsOf("layer")})[0]; n != 0 {
		t.Errorf("%d copies, nobody can reach the bucket", n)
	}
	// A failed copy is owed again.
	b.must(report(bucketA, meta.ReplicaFailed, "layer"))
	if got, want := states(b, "layer"), "bucket-00000000000000aa=failed eu=pending us=pending"; !sameWords(got, want) {
		t.Errorf("copies are %q, want %q", got, want)
	}
	check(b)
}

// One server of a bucket goes and nothing has to be copied; with the last one all has.
func TestServersOfABucketGo(t *testing.T) {
	b := newBucketBench(t)
	b.must(link("layer", bucketA))
	b.must(link("m1", bucketA))
	b.must(imageAt(bucketA, "m1", "layer"))
	b.must(DrainServer{ID: "eu-8", Drain: true})
	if _, sum := settle(b, 3); sum.Owed+sum.Dropped != 0 {
		t.Errorf("a drain of one of two moved %+v", sum)
	}
	if a := b.remains("eu-8"); !a.Removable() {
		t.Errorf("remains %+v", a)
	}
	b.must(RemoveNode{ID: "eu-8"})
	if _, sum := settle(b, 3); sum.Owed+sum.Dropped != 0 {
		t.Errorf("the removal of one of two moved %+v", sum)
	}
	if all := ask(b, ListBuckets{Region: "eu"}); len(all) != 1 || len(all[0].Servers) != 1 || all[0].Servers[0] != "eu-9" {
		t.Errorf("buckets %+v", all)
	}
	b.must(DrainServer{ID: "eu-9", Drain: true})
	settle(b, 3)
	if a := b.remains("eu-9"); a.Last != 2 || a.Removable() {
		t.Errorf("remains %+v", a)
	}
	b.refuse(RemoveNode{ID: "eu-9"}, meta.ErrConflict, "no other server has")
	b.must(report("us-1", meta.ReplicaVerified, "layer", "m1"))
	b.enter("eu-3", "eu")
	settle(b, 3)
	b.must(report("eu-3", meta.ReplicaVerified, "layer", "m1"))
	settle(b, 3)
	b.must(RemoveNode{ID: "eu-9"})
	settle(b, 3)
	if got, want := states(b, "layer"), "eu=verified eu-3=verified us=verified us-1=verified"; !sameWords(got, want) {
		t.Errorf("copies are %q, want %q", got, want)
	}
	if all := ask(b, ListBuckets{}); len(all) != 0 {
		t.Errorf("buckets %+v", all)
	}
	check(b)
}

// Orders are the bucket's, and go with it.
func TestOrdersOfABucket(t *testing.T) {
	b := newBucketBench(t)
	b.must(link("layer", bucketA))
	b.must(link("m1", bucketA))
	b.must(imageAt(bucketA, "m1", "layer"))
	b.must(DeleteVersion{Repo: appRef, Package: "api", Version: blob("m1").Digest.String()})
	if r := b.collect(0); r.Collected != 2 {
		t.Fatalf("collected %+v", r)
	}
	if got := len(b.orders(bucketA)); got != 2 {
		t.Errorf("the bucket is to lose %d blobs", got)
	}
	b.refuse(LinkBlob{Repo: appRef, Digest: blob("layer").Digest, Blob: blob("layer"), Server: bucketA, Seen: 1}, meta.ErrConflict, "look again")
	b.must(SettleCollected{Server: bucketA, Removed: []CollectedCopy{b.orders(bucketA)[0].CollectedCopy}})
	root := blob("stray").Root
	if r := b.must(CollectStrays{Server: bucketA, Strays: []Stray{{Root: root, StoredBytes: 5}}}).Value.(StraysResult); r.Ordered != 1 {
		t.Errorf("strays %+v", r)
	}
	b.refuse(CollectStrays{Server: "eu-8", Strays: []Stray{{Root: root}}}, meta.ErrConflict, "bucket")
	check(b)
	for _, id := range []meta.NodeID{"eu-8", "eu-9"} {
		b.must(RemoveNode{ID: id, Force: true})
		settle(b, 100)
	}
	b.collect(0)
	if got := len(b.orders(bucketA)); got != 0 {
		t.Errorf("%d orders of a bucket that is gone", got)
	}
	check(b)
}

// A region moves from disks to a bucket and back by servers that come and go.
func TestAttachRefuses(t *testing.T) {
	b := newBucketBench(t)
	b.refuse(attach("us-1", bucketA), meta.ErrConflict, "region eu")
	b.refuse(attach("eu-8", bucketB), meta.ErrConflict, "add another server")
	b.refuse(attach("eu-7", bucketB), meta.ErrNotFound)
	before := b.index
	moved := attach("eu-8", bucketA)
	moved.Bucket.Location = "s3://blobs/moved"
	if got := b.must(moved).Value.(meta.Bucket); got.Location != "s3://blobs/moved" || len(got.Servers) != 2 || b.index == before {
		t.Errorf("%+v", got)
	}
	if n := ask(b, GetNode{ID: "eu-8"}); n.Bucket != bucketA || n.Holder() != bucketA {
		t.Errorf("%+v", n)
	}
	// A server that joins again, or tells its addresses, keeps its bucket.
	b.must(UpdateNode{Node: server("eu-8", "eu")})
	b.must(CreateJoinToken{Token: meta.JoinToken{ID: "again", Role: meta.RoleServer, Region: "eu", Uses: 1, Expires: meta.TimeOf(b.now.Add(time.Hour))}})
	b.must(AdmitNode{TokenSecretHash: "again", Node: server("eu-8", "eu")})
	if n := ask(b, GetNode{ID: "eu-8"}); n.Bucket != bucketA {
		t.Errorf("%+v", n)
	}
	other := newBench(t)
	other.must(SetLevel{Level: 4})
	other.refuse(attach("eu-1", bucketA), meta.ErrConflict, "level 5")
	check(b)
}

func rootsOf(content string) []digest.CID { return []digest.CID{blob(content).Root} }

func sameWords(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// imageAt is image, ingested elsewhere.
func imageAt(holder meta.NodeID, manifest string, blobs ...string) Publish {
	p := image(manifest, blobs...)
	p.Blobs[0].Server = holder
	return p
}

// TestBucketSettlesReservations: the copy is the bucket's, what was reserved is the
// server's that took the upload.
func TestBucketSettlesReservations(t *testing.T) {
	b := newBucketBench(t)
	quota := int64(10)
	b.must(SetTenant{Name: "acme", Limits: &meta.LimitsChange{StorageBytes: &quota}})
	b.recount("acme", 100)
	b.must(ReserveStorage{Server: "eu-8", Lease: time.Minute, Wants: []StorageWant{{"acme", 7}}})
	in := link("1234567", bucketA)
	in.Reserved, in.Reserver = 7, "eu-8"
	b.must(in)
	if u := ask(b, GetUsage{Tenant: "acme"}); u.Bytes != 7 || u.Reserved != 0 {
		t.Errorf("holds %+v", u)
	}
	in.Reserver = "us-1"
	if in.Reserved = 0; in.since() != quotaLevel {
		t.Error("older builds do not know who reserved")
	}
	check(b)
}
