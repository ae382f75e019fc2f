package state

import (
	"strings"
	"testing"
	"time"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func TestSHA512IsASecondName(t *testing.T) {
	b := newBench(t)
	c := link("layer", "eu-1")
	b.must(c)
	b512 := godigest.SHA512.FromString("layer")
	missing(b, GetBlob{Repo: appRef, Digest: b512})
	c.Blob.SHA512, c.Digest = b512, b512
	b.must(c)
	got := ask(b, GetBlob{Repo: appRef, Digest: b512})
	if got.Link.Digest != b512 || got.Link.Blob != c.Blob.Digest || got.Blob.Digest != c.Blob.Digest {
		t.Errorf("by its second name it is %+v", got)
	}
	p := image("m1")
	p.Version.References = []meta.Reference{{Digest: b512}}
	b.must(p)
	if got := ask(b, GetBlob{Repo: appRef, Digest: c.Blob.Digest}); got.Link.Claims != 1 {
		t.Errorf("claims are %d", got.Link.Claims)
	}
	b.must(DeleteVersion{Repo: appRef, Package: "api", Version: p.Version.Name})
	b.must(UnlinkBlob{Repo: appRef, Digest: b512})
	missing(b, GetBlob{Repo: appRef, Digest: b512})
	missing(b, GetBlob{Repo: appRef, Digest: c.Blob.Digest})
	check(b)
}

func TestMount(t *testing.T) {
	b := newBench(t)
	other := app()
	other.Ref.Name = "other"
	b.must(CreateRepository{Repository: other})
	foreign := app()
	foreign.Ref.Tenant = "globex"
	b.must(CreateRepository{Repository: foreign, CreateTenant: true})
	b.must(link("layer", "eu-1"))
	d := blob("layer").Digest
	b.refuse(MountBlob{From: appRef, To: other.Ref, Digest: blob("none").Digest}, meta.ErrNotFound)
	b.refuse(MountBlob{From: appRef, To: foreign.Ref, Digest: d}, meta.ErrDenied)
	r := b.must(MountBlob{From: appRef, To: other.Ref, Digest: d})
	if got := r.Value.(meta.Blob); got.Root != blob("layer").Root {
		t.Errorf("mounted %+v", got)
	}
	if got := ask(b, FindLink{Tenant: "acme", Patterns: []string{"acme/o*"}, Digest: d}); got != other.Ref {
		t.Errorf("found in %v", got)
	}
	missing(b, FindLink{Tenant: "acme", Patterns: []string{"acme/x*"}, Digest: d})
	missing(b, FindLink{Tenant: "globex", Patterns: []string{"*"}, Digest: d})
	if got := ask(b, BlobByRoot{Root: blob("layer").Root}); got.Digest != d {
		t.Errorf("by its root it is %+v", got)
	}
	check(b)
}

func TestBlobKeepsItsRecord(t *testing.T) {
	b := newBench(t)
	b.must(link("layer", "eu-1"))
	again := link("layer", "us-1")
	again.Blob.Root = digest.Sum([]byte("sliced otherwise"))
	r := b.must(again)
	if got := r.Value.(meta.Blob); got.Root != blob("layer").Root {
		t.Errorf("the second upload changed the root: %+v", got)
	}
	if got := ask(b, Replicas{Root: again.Blob.Root}); len(got) != 0 {
		t.Errorf("a root that nothing names has replicas: %+v", got)
	}
	again.Blob.PlainBytes++
	b.refuse(again, meta.ErrExists, "6 bytes")
	// Once nobody links it, its bytes may have gone: the next upload holds.
	b.must(UnlinkBlob{Repo: appRef, Digest: again.Digest})
	again.Blob.PlainBytes--
	r = b.must(again)
	if got := r.Value.(meta.Blob); got.Root != again.Blob.Root {
		t.Errorf("the new upload did not hold: %+v", got)
	}
	check(b)
}

func TestExpireUploads(t *testing.T) {
	b := newBench(t)
	start := b.now
	for _, content := range []string{"a", "b", "c", "used"} {
		b.must(link(content, "eu-1"))
		b.now = b.now.Add(time.Minute)
	}
	b.must(StageReferences{Repo: appRef, Draft: "d1", References: []meta.Reference{{Digest: blob("a").Digest}}})
	b.must(image("m1", "used"))
	b.must(link("b", "eu-1")) // Begins its time anew.
	r := b.must(ExpireUploads{Before: meta.TimeOf(start.Add(3 * time.Minute)), Limit: 1})
	if got := r.Value.(ExpireResult); got.Links != 1 {
		t.Errorf("first went %+v", got)
	}
	missing(b, GetBlob{Repo: appRef, Digest: blob("a").Digest})
	ask(b, GetBlob{Repo: appRef, Digest: blob("c").Digest})
	r = b.must(ExpireUploads{Before: meta.TimeOf(b.now.Add(time.Hour)), Limit: 10})
	if got := r.Value.(ExpireResult); got.Links != 2 || got.Drafts != 1 {
		t.Errorf("then went %+v", got)
	}
	ask(b, GetBlob{Repo: appRef, Digest: blob("used").Digest})
	check(b)
}

// states returns what is known of a root's copies: region[/server]=state.
func states(b *bench, content string) string {
	var out []string
	for _, r := range ask(b, Replicas{Root: blob(content).Root}) {
		name := string(r.Region)
		if r.Server != "" {
			name = string(r.Server)
		}
		out = append(out, name+"="+string(r.State))
	}
	return strings.Join(out, " ")
}

func pending(b *bench, region meta.RegionName) int {
	return len(ask(b, PendingReplicas{Region: region}))
}

func report(server meta.NodeID, state meta.ReplicaState, contents ...string) ReportReplicas {
	var c ReportReplicas
	for _, content := range contents {
		c.Replicas = append(c.Replicas, meta.Replica{Root: blob(content).Root, Server: server, State: state})
	}
	return c
}

func TestReplicationByClass(t *testing.T) {
	for _, test := range []struct {
		class meta.Class
		want  string
	}{
		{meta.ClassCold, "eu=pending eu-1=verified"},
		{meta.ClassStandard, "eu=pending eu-1=verified us=pending"},
		{meta.ClassCritical, "ap=pending eu=pending eu-1=verified us=pending"},
	} {
		t.Run(string(test.class), func(t *testing.T) {
			b := newBench(t)
			b.must(SetRepository{Ref: appRef, Class: &test.class})
			b.must(link("layer", "eu-1"))
			b.must(image("m1", "layer"))
			if got := states(b, "layer"); got != test.want {
				t.Errorf("copies are %q, want %q", got, test.want)
			}
			check(b)
		})
	}
}

func TestReplicasAreSettled(t *testing.T) {
	b := newBench(t)
	b.must(link("layer", "us-1"))
	b.must(image("m1", "layer"))
	// us has one server, which has it; eu has two and needs both.
	if got := states(b, "layer"); got != "eu=pending us=verified us-1=verified" {
		t.Fatalf("copies are %q", got)
	}
	b.must(report("eu-1", meta.ReplicaVerified, "layer"))
	b.must(report("eu-2", meta.ReplicaFailed, "layer"))
	if got := states(b, "layer"); got != "eu=pending eu-1=verified eu-2=failed us=verified us-1=verified" {
		t.Fatalf("copies are %q", got)
	}
	if got := pending(b, "eu"); got != 2 { // The layer and the manifest.
		t.Errorf("%d are pending", got)
	}
	b.must(report("eu-2", meta.ReplicaVerified, "layer", "m1", "unknown"))
	if got := pending(b, "eu"); got != 0 {
		t.Errorf("%d are pending", got)
	}
	b.must(report("eu-1", meta.ReplicaFailed, "layer"))
	if got := ask(b, PendingReplicas{Region: "eu"}); len(got) != 1 || got[0].Root != blob("layer").Root {
		t.Errorf("pending are %+v", got)
	}
	b.refuse(report("nobody", meta.ReplicaVerified, "layer"), meta.ErrNotFound)
	// With its second server gone, one copy is all that eu can hold.
	b.must(RemoveNode{ID: "eu-2"})
	b.must(report("eu-1", meta.ReplicaVerified, "layer"))
	if got := pending(b, "eu"); got != 0 {
		t.Errorf("%d are pending", got)
	}
	check(b)
}

func TestPendingReplicasPages(t *testing.T) {
	b := newBench(t)
	contents := []string{"c", "a", "b", "d"}
	for _, content := range contents {
		b.must(link(content, "eu-1"))
		b.must(DemandReplica{Root: blob(content).Root, Region: "ap"})
		b.now = b.now.Add(time.Second)
	}
	b.must(DemandReplica{Root: blob("c").Root, Region: "ap"})
	b.refuse(DemandReplica{Root: blob("none").Root, Region: "ap"}, meta.ErrNotFound)
	b.refuse(DemandReplica{Root: blob("c").Root, Region: "mars"}, meta.ErrNotFound)
	var got []string
	for page := (Page{Limit: 2}); ; {
		list := ask(b, PendingReplicas{Region: "ap", Page: page})
		if len(list) == 0 {
			break
		}
		for _, r := range list {
			for _, content := range contents {
				if blob(content).Root == r.Root {
					got = append(got, content)
				}
			}
		}
		page.After = list[len(list)-1].Root.String()
	}
	if strings.Join(got, "") != "cabd" {
		t.Errorf("pending are %v, oldest first is c a b d", got)
	}
	// What nobody links any more is not demanded.
	b.must(UnlinkBlob{Repo: appRef, Digest: blob("a").Digest})
	if got := pending(b, "ap"); got != 3 {
		t.Errorf("%d are pending", got)
	}
	check(b)
}
