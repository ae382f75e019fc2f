package state

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// newGCBench is newBench at a level that collects garbage.
func newGCBench(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: GCLevel})
	b.must(CollectBlobs{Limit: 1000}) // the walk, over nothing
	return b
}

func (b *bench) collect(grace time.Duration) CollectResult {
	b.Helper()
	return b.collectBy(10, grace)
}

func (b *bench) collectBy(limit uint32, grace time.Duration) (sum CollectResult) {
	b.Helper()
	for more := true; more; {
		r := b.must(CollectBlobs{Limit: limit, Grace: &grace}).Value.(CollectResult)
		sum.Links, sum.Collected, sum.Bytes, sum.Held, more = sum.Links+r.Links, sum.Collected+r.Collected, sum.Bytes+r.Bytes, r.Held, r.More
	}
	return sum
}

func (b *bench) orders(server meta.NodeID) []Order {
	b.Helper()
	return ask(b, ListOrders{Server: server})
}

func manifestOf(name string) DeleteVersion {
	return DeleteVersion{Repo: appRef, Package: "api", Version: string(blob(name).Digest)}
}

// What a deleted version used is kept for the grace period, then all its records go,
// and the servers that had copies are told to remove them.
func TestCollect(t *testing.T) {
	b := newGCBench(t)
	b.must(link("layer", "eu-1"))
	b.must(image("m1", "layer"))
	b.must(report("us-1", meta.ReplicaVerified, "layer"))
	b.must(manifestOf("m1"))
	check(b)
	b.now = b.now.Add(DefaultGrace - time.Second)
	if due := ask(b, GarbageDue{Now: meta.TimeOf(b.now)}); due {
		t.Error("something is due before the grace has ended")
	}
	if r := b.must(CollectBlobs{Limit: 1000}).Value.(CollectResult); r.Collected+r.Links != 0 {
		t.Fatalf("collected within the grace: %+v", r)
	}
	listed := ask(b, ListGarbage{})
	if len(listed) != 2 || !listed[0].Released || listed[0].By != "user:ada" || listed[0].Others {
		t.Errorf("what waits is %+v", listed)
	}
	if len(ask(b, ListGarbage{Before: meta.TimeOf(b.now.Add(-DefaultGrace))})) != 0 {
		t.Error("a dry run lists what is not due")
	}
	b.now = b.now.Add(2 * time.Second)
	if due := ask(b, GarbageDue{Now: meta.TimeOf(b.now)}); !due {
		t.Error("nothing is due after the grace")
	}
	r := b.must(CollectBlobs{Limit: 1000}).Value.(CollectResult)
	if want := int64(len("layer") + len("m1")); r.Collected != 2 || r.Links != 2 || r.Bytes != want || r.More {
		t.Fatalf("collected %+v, want two of %d bytes", r, want)
	}
	check(b)
	for _, name := range []string{"layer", "m1"} {
		missing(b, GetBlob{Repo: appRef, Digest: blob(name).Digest})
		missing(b, BlobByRoot{Root: blob(name).Root})
		if copies := ask(b, Replicas{Root: blob(name).Root}); len(copies) != 0 {
			t.Errorf("%s still has %+v", name, copies)
		}
	}
	if got := len(b.orders("eu-1")); got != 2 {
		t.Errorf("eu-1 is to remove %d blobs, not 2", got)
	}
	if got := b.orders("us-1"); len(got) != 1 || got[0].Root != blob("layer").Root || got[0].StoredBytes != int64(len("layer")) {
		t.Errorf("us-1 is to remove %+v", got)
	}
	if got := b.orders("ap-1"); len(got) != 0 {
		t.Errorf("ap-1 never had a copy and is to remove %+v", got)
	}
	b.must(SettleCollected{Server: "us-1", Removed: []CollectedCopy{{Root: blob("layer").Root, Index: 1}}})
	if got := len(b.orders("us-1")); got != 1 {
		t.Errorf("the word on another order settles this one: %d", got)
	}
	b.must(SettleCollected{Server: "us-1", Removed: []CollectedCopy{b.orders("us-1")[0].CollectedCopy}})
	check(b)
	s := ask(b, GetGC{})
	if len(s.Contexts) != 1 || s.Contexts[0] != (ContextCount{Context: "acme", Collected: 2, CollectedBytes: r.Bytes}) {
		t.Errorf("counts are %+v", s.Contexts)
	}
	if len(s.Servers) != 2 || s.Servers[1].Reclaimed != 1 || s.Servers[1].ReclaimedBytes != int64(len("layer")) || s.Servers[0].Ordered != 2 {
		t.Errorf("servers are %+v", s.Servers)
	}
	// The marks go after a day, except that of what is still to be removed.
	b.now = b.now.Add(25 * time.Hour)
	b.must(CollectBlobs{Limit: 1000})
	if n := count(b, inGarbage(ofCollected)); n != 2 {
		t.Errorf("%d marks, want those of eu-1's orders", n)
	}
	for _, o := range b.orders("eu-1") {
		b.must(SettleCollected{Server: "eu-1", Removed: []CollectedCopy{o.CollectedCopy}})
	}
	b.now = b.now.Add(25 * time.Hour)
	b.must(CollectBlobs{Limit: 1000})
	if n := count(b, inGarbage(ofCollected)); n != 0 {
		t.Errorf("%d marks are left", n)
	}
	check(b)
	b.refuse(LinkBlob{Repo: appRef, Digest: blob("layer").Digest, Blob: blob("layer"), Server: "eu-1", Seen: 1}, meta.ErrConflict, "look again")
	b.must(link("layer", "eu-1"))
}

func count(b *bench, prefix key) (n int) {
	b.Helper()
	v, err := b.View()
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	for _, err := range v.scan(within(prefix)) {
		if err != nil {
			b.Fatal(err)
		}
		n++
	}
	return n
}

// A push of what waits, at any point, takes it back.
func TestPushRescues(t *testing.T) {
	for _, name := range []string{"released", "unlinked", "collected"} {
		t.Run(name, func(t *testing.T) {
			b := newGCBench(t)
			b.must(link("layer", "eu-1"))
			b.must(image("m1", "layer"))
			b.must(manifestOf("m1"))
			b.now = b.now.Add(time.Hour)
			switch name {
			case "unlinked":
				b.must(UnlinkBlob{Repo: appRef, Digest: blob("layer").Digest})
			case "collected":
				if r := b.collect(0); r.Collected != 2 {
					t.Fatalf("collected %+v", r)
				}
				b.refuse(link("layer", "eu-1"), meta.ErrConflict, "look again")
				b.must(report("us-1", meta.ReplicaVerified, "layer"))
				for _, o := range b.orders("eu-1") {
					b.must(SettleCollected{Server: "eu-1", Kept: []CollectedCopy{o.CollectedCopy}})
				}
			}
			again := link("layer", "eu-1")
			again.Seen = b.index
			b.must(again)
			check(b)
			doc := image("m1", "layer")
			doc.Blobs[0].Seen = b.index
			b.must(doc)
			check(b)
			b.now = b.now.Add(10 * DefaultGrace)
			if r := b.collect(0); r.Collected != 0 || r.Links != 0 {
				t.Errorf("collected what a version uses: %+v", r)
			}
			ask(b, GetBlob{Repo: appRef, Digest: blob("layer").Digest})
			// The word on a copy of before the collection does not count.
			before := report("us-1", meta.ReplicaVerified, "layer")
			before.Replicas[0].Seen = 1
			b.must(before)
			counted := slices.ContainsFunc(ask(b, Replicas{Root: blob("layer").Root}), func(r meta.Replica) bool { return r.Server == "us-1" })
			if counted != (name != "collected") {
				t.Errorf("a report of before the collection counts: %v", counted)
			}
		})
	}
}

// Each link and each context of a root keeps it.
func TestSharedRootsStay(t *testing.T) {
	b := newGCBench(t)
	other := app()
	other.Ref = meta.RepoRef{Tenant: "beta", Name: "app"}
	b.must(CreateRepository{Repository: other, CreateTenant: true})
	second := app()
	second.Ref.Name = "second"
	b.must(CreateRepository{Repository: second})
	b.must(link("layer", "eu-1"))
	b.must(image("m1", "layer"))
	b.must(MountBlob{From: appRef, To: second.Ref, Digest: blob("layer").Digest})
	theirs := LinkBlob{Repo: other.Ref, Digest: blob("layer").Digest, Blob: blob("layer"), Server: "us-1"}
	theirs.Blob.Context = "beta"
	b.must(theirs)
	b.must(manifestOf("m1"))
	b.now = b.now.Add(time.Hour)
	if g := ask(b, ListGarbage{}); len(g) != 2 || !g[0].Others && !g[1].Others {
		t.Errorf("what waits is %+v", g)
	}
	b.collect(0) // the manifest, and the link of acme/app
	ask(b, BlobByRoot{Root: blob("layer").Root})
	b.must(UnlinkBlob{Repo: second.Ref, Digest: blob("layer").Digest})
	check(b)
	if r := b.collect(0); r.Collected != 0 {
		t.Errorf("collected what another tenant links: %+v", r)
	}
	b.must(UnlinkBlob{Repo: other.Ref, Digest: blob("layer").Digest})
	if r := b.collect(0); r.Collected != 1 {
		t.Errorf("collected %+v, want the layer", r)
	}
	check(b)
	if n := count(b, key{spaceRoots}); n != 0 {
		t.Errorf("%d roots are left", n)
	}
}

// Uploads under way, drafts, waves and backups keep what they need.
func TestInFlightStays(t *testing.T) {
	b := newGCBench(t)
	zero := time.Duration(0)
	b.must(link("uploaded", "eu-1"))
	b.must(link("drafted", "eu-1"))
	b.now = b.now.Add(time.Hour)
	b.must(StageReferences{Repo: appRef, Draft: "d", References: []meta.Reference{{Digest: blob("drafted").Digest, Size: 7}}})
	b.now = b.now.Add(time.Second)
	if r := b.collect(0); r.Collected+r.Links != 0 {
		t.Fatalf("collected uploads: %+v", r)
	}
	b.must(ExpireUploads{Before: meta.TimeOf(b.now.Add(-time.Minute)), Limit: 10})
	missing(b, GetBlob{Repo: appRef, Digest: blob("uploaded").Digest})
	ask(b, GetBlob{Repo: appRef, Digest: blob("drafted").Digest})

	b.must(image("m1"))
	b.must(image("m2"))
	planned := wave("w1")
	planned.Wave.Refs = []meta.WaveRef{{Repo: appRef, Package: "api", Version: string(blob("m1").Digest)}}
	b.must(planned)
	b.must(manifestOf("m1"))
	b.now = b.now.Add(time.Second)
	if r := b.collect(0); r.Links != 0 {
		t.Errorf("an open wave names the repository: %+v", r)
	}
	b.must(CancelWave{ID: "w1"})
	b.must(HoldBackup{ID: "b1", Lease: meta.MinBackupLease})
	b.now = b.now.Add(time.Second)
	if r := b.must(CollectBlobs{Limit: 100, Grace: &zero}).Value.(CollectResult); r.Collected != 0 || !r.Held {
		t.Errorf("collected during a backup: %+v", r)
	}
	b.now = b.now.Add(meta.MinBackupLease)
	if r := b.collect(0); r.Collected == 0 || r.Held {
		t.Errorf("collected %+v after the backup", r)
	}
	check(b)
}

// A cluster that rises to the level looks once through what was there before.
func TestWalkFindsOldGarbage(t *testing.T) {
	b := newBench(t)
	for i := range 20 {
		name := fmt.Sprint("layer", i)
		b.must(link(name, "eu-1"))
		if i%2 == 0 {
			b.must(UnlinkBlob{Repo: appRef, Digest: blob(name).Digest})
		}
	}
	b.refuse(CollectBlobs{Limit: 10}, meta.ErrConflict, "level")
	b.must(SetLevel{Level: GCLevel})
	b.must(UnlinkBlob{Repo: appRef, Digest: blob("layer1").Digest})
	b.must(link("new", "eu-1"))
	if !ask(b, GetGC{}).Walking || !ask(b, GarbageDue{Now: meta.TimeOf(b.now)}) {
		t.Error("the walk is not due")
	}
	walked := uint32(0)
	for more := true; more; {
		r := b.must(CollectBlobs{Limit: 3}).Value.(CollectResult)
		walked += r.Walked
		more = r.More
	}
	check(b)
	s := ask(b, GetGC{})
	if walked != 21 || s.Walking || len(s.Contexts) != 1 || s.Contexts[0].Garbage != 11 || s.Contexts[0].Blobs != 10 {
		t.Fatalf("walked over %d: %+v", walked, s)
	}
	b.now = b.now.Add(time.Second)
	if r := b.collect(0); r.Collected != 11 {
		t.Errorf("collected %+v, want 11", r)
	}
	check(b)
}

// A stray is ordered away only while nobody knows it; a server that leaves takes its
// orders along.
func TestStrays(t *testing.T) {
	b := newGCBench(t)
	b.must(link("known", "eu-1"))
	strays := CollectStrays{Server: "eu-2", Strays: []Stray{{Root: blob("known").Root, StoredBytes: 5}, {Root: blob("lost").Root, StoredBytes: 4}}}
	if r := b.must(strays).Value.(StraysResult); r != (StraysResult{Ordered: 1, Bytes: 4}) {
		t.Fatalf("ordered %+v", r)
	}
	if r := b.must(strays).Value.(StraysResult); r.Ordered != 0 {
		t.Errorf("ordered twice: %+v", r)
	}
	check(b)
	a := ask(b, StrayRoots{Server: "us-1", Region: "us", Roots: []digest.CID{blob("known").Root, blob("lost").Root}})
	if !slices.Equal(a.Unknown, []digest.CID{blob("lost").Root}) || !slices.Equal(a.Spare, []digest.CID{blob("known").Root}) {
		t.Errorf("strays are %+v", a)
	}
	b.refuse(CollectStrays{Server: "nobody", Strays: strays.Strays}, meta.ErrNotFound)
	v, err := b.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	b.must(RemoveNode{ID: "eu-2", Force: true})
	if !ask(b, GarbageDue{Now: meta.TimeOf(b.now)}) {
		t.Error("the orders of a server that has left are not due")
	}
	b.collect(DefaultGrace)
	if got := b.orders("eu-2"); len(got) != 0 {
		t.Errorf("a server that has left is to remove %+v", got)
	}
	check(b)
}

// Whatever else is in the state, a command reads what is due and no more.
func TestCollectCostsTheGarbage(t *testing.T) {
	b := newGCBench(t)
	for i := range 300 {
		b.must(link(fmt.Sprint("kept", i), "eu-1"))
	}
	b.must(link("gone", "eu-1"))
	b.must(image("m1", "gone"))
	b.must(manifestOf("m1"))
	b.now = b.now.Add(time.Hour)
	zero := time.Duration(0)
	if r := b.must(CollectBlobs{Limit: 30, Grace: &zero}).Value.(CollectResult); r.More || r.Collected != 2 {
		t.Errorf("one command of 30 records did %+v", r)
	}
}

// fleet is the servers of the model: what each has on disk, which uploads are between
// commit and link, and what is on its way to the log.
type fleet struct {
	*bench
	disks map[meta.NodeID]map[string]bool
	held  map[meta.NodeID]map[string]int
	// late are commands of which nobody knows whether they will be applied.
	late []Command
	// looked are copies that were looked at and not yet reported.
	looked []meta.Replica
	names  map[digest.CID]string
}

// commit takes content in at a server, as catalog and store do: the bytes are there and
// held, an order to remove them was given back.
func (f *fleet) commit(server meta.NodeID, content string) LinkBlob {
	f.disks[server][content] = true
	f.held[server][content]++
	return f.vouch(server, link(content, server))
}

func (f *fleet) vouch(server meta.NodeID, l LinkBlob) LinkBlob {
	if o := ask(f.bench, GetOrder{Server: server, Root: l.Blob.Root}); o.Index != 0 {
		f.must(SettleCollected{Server: server, Kept: []CollectedCopy{{Root: l.Blob.Root, Index: o.Index}}})
	}
	l.Seen = f.index
	return l
}

// remove carries out an order, unless the blob is held or the order gone.
func (f *fleet) remove(server meta.NodeID, o Order) bool {
	content := f.names[o.Root]
	if f.held[server][content] > 0 || ask(f.bench, GetOrder{Server: server, Root: o.Root}).Index != o.Index {
		return false
	}
	delete(f.disks[server], content)
	return true
}

// whole fails where the metadata counts a copy that is not there, or links what nobody
// has.
func (f *fleet) whole(r *rapid.T, contents []string) {
	for _, content := range contents {
		if _, err := try(f.bench, BlobByRoot{Root: blob(content).Root}); err != nil {
			continue
		}
		copies := 0
		for _, c := range ask(f.bench, Replicas{Root: blob(content).Root}) {
			if c.Server == "" || c.State != meta.ReplicaVerified {
				continue
			}
			if !f.disks[c.Server][content] {
				r.Fatalf("%s is said to have %s and has not", c.Server, content)
			}
			copies++
		}
		if copies == 0 {
			r.Fatalf("nobody has %s", content)
		}
	}
}

// TestCollectModel lets servers take content in, delete, mount, copy and collect in any
// order, with words that arrive late and a machine that restarts: no copy that counts
// is ever missing, and in the end all garbage is gone.
func TestCollectModel(t *testing.T) {
	contents := []string{"l1", "m1", "m2"}
	layers, manifests := contents[:1], contents[1:]
	servers := []meta.NodeID{"eu-1", "us-1"}
	second := app()
	second.Ref.Name = "second"
	rapid.Check(t, func(r *rapid.T) {
		f := &fleet{bench: newGCBench(t), disks: map[meta.NodeID]map[string]bool{}, held: map[meta.NodeID]map[string]int{}, names: map[digest.CID]string{}}
		for _, s := range servers {
			f.disks[s], f.held[s] = map[string]bool{}, map[string]int{}
		}
		for _, c := range contents {
			f.names[blob(c).Root] = c
		}
		f.must(CreateRepository{Repository: second})
		type upload struct {
			server  meta.NodeID
			content string
			link    LinkBlob
		}
		var uploads []upload
		for range rapid.IntRange(1, 100).Draw(r, "steps") {
			f.now = f.now.Add(time.Duration(rapid.IntRange(0, 2).Draw(r, "later")) * time.Hour)
			server := rapid.SampledFrom(servers).Draw(r, "server")
			content := rapid.SampledFrom(contents).Draw(r, "content")
			switch rapid.IntRange(0, 12).Draw(r, "step") {
			case 0, 1: // an upload is stored
				uploads = append(uploads, upload{server, content, f.commit(server, content)})
			case 2, 3: // one is linked, or published
				if len(uploads) == 0 {
					continue
				}
				at := rapid.IntRange(0, len(uploads)-1).Draw(r, "upload")
				u := uploads[at]
				uploads = slices.Delete(uploads, at, at+1)
				for again := 0; ; again++ {
					var c Command = u.link
					if slices.Contains(manifests, u.content) {
						p := image(u.content)
						p.Blobs[0] = u.link
						for _, l := range layers {
							if _, err := try(f.bench, GetBlob{Repo: appRef, Digest: blob(l).Digest}); err == nil {
								p.Version.References = append(p.Version.References, meta.Reference{Digest: blob(l).Digest, Size: 2})
							}
						}
						c = p
					}
					if f.do(c).Err == nil || again == 2 {
						break
					}
					u.link = f.vouch(u.server, u.link)
				}
				f.held[u.server][u.content]--
			case 4: // one is given up, its command on the way
				if len(uploads) == 0 {
					continue
				}
				u := uploads[0]
				uploads = uploads[1:]
				f.late = append(f.late, u.link)
				f.held[u.server][u.content]--
			case 5: // a late command arrives after all
				if len(f.late) > 0 {
					f.do(f.late[0])
					f.late = f.late[1:]
				}
			case 6:
				f.do(manifestOf(rapid.SampledFrom(manifests).Draw(r, "manifest")))
			case 7:
				repo := rapid.SampledFrom([]meta.RepoRef{appRef, second.Ref}).Draw(r, "repository")
				f.do(UnlinkBlob{Repo: repo, Digest: blob(content).Digest})
			case 8:
				f.do(MountBlob{From: appRef, To: second.Ref, Digest: blob(content).Digest})
			case 9:
				f.must(ExpireUploads{Before: meta.TimeOf(f.now.Add(-time.Hour)), Limit: 10})
				grace := time.Duration(rapid.IntRange(0, 3).Draw(r, "grace")) * time.Hour
				f.must(CollectBlobs{Limit: uint32(rapid.IntRange(1, 20).Draw(r, "limit")), Grace: &grace})
			case 10: // a server carries out orders; what it says of it may be lost
				if rapid.Bool().Draw(r, "strays") {
					f.strays(server)
				}
				for _, o := range f.orders(server) {
					if f.remove(server, o) && rapid.IntRange(0, 3).Draw(r, "said") > 0 {
						f.must(SettleCollected{Server: server, Removed: []CollectedCopy{o.CollectedCopy}})
					}
				}
			case 11: // a server looks at what it owes, copies it, and reports now or later
				for _, d := range ask(f.bench, PendingReplicas{Region: map[meta.NodeID]meta.RegionName{"eu-1": "eu", "us-1": "us"}[server]}) {
					c := f.names[d.Root]
					if slices.ContainsFunc(servers, func(s meta.NodeID) bool { return f.disks[s][c] }) {
						f.disks[server][c] = true
						f.looked = append(f.looked, meta.Replica{Root: d.Root, Server: server, State: meta.ReplicaVerified, Seen: f.index})
					}
				}
				if rapid.Bool().Draw(r, "reported") && len(f.looked) > 0 {
					f.must(ReportReplicas{Replicas: f.looked})
					f.looked = nil
				}
			case 12: // the machine restarts
				dir := f.dir
				if err := f.Close(); err != nil {
					r.Fatal(err)
				}
				m, err := Open(dir, Options{})
				if err != nil {
					r.Fatal(err)
				}
				f.Machine = m
				t.Cleanup(func() { _ = m.Close() })
			}
			f.whole(r, contents)
		}
		check(f.bench)

		// Everything is given up, and everything goes.
		for _, c := range f.late {
			f.do(c)
		}
		if len(f.looked) > 0 {
			f.must(ReportReplicas{Replicas: f.looked})
		}
		for _, m := range manifests {
			f.do(manifestOf(m))
		}
		f.whole(r, contents)
		f.now = f.now.Add(48 * time.Hour)
		f.must(ExpireUploads{Before: meta.TimeOf(f.now), Limit: 100})
		f.bench.collect(0)
		for _, server := range servers {
			f.held[server] = map[string]int{}
			f.strays(server)
			for _, o := range f.orders(server) {
				if !f.remove(server, o) {
					r.Fatalf("%s does not remove %s", server, f.names[o.Root])
				}
				f.must(SettleCollected{Server: server, Removed: []CollectedCopy{o.CollectedCopy}})
			}
			if left := slices.Collect(maps.Keys(f.disks[server])); len(left) > 0 {
				r.Fatalf("%s still has %v", server, left)
			}
		}
		if n := count(f.bench, key{spaceRoots}) + count(f.bench, key{spaceReplicas}); n > 0 {
			r.Fatalf("%d records of roots and copies are left", n)
		}
		check(f.bench)
	})
}

// strays has a server name what it has and nobody knows.
func (f *fleet) strays(server meta.NodeID) {
	var roots []digest.CID
	for content := range f.disks[server] {
		roots = append(roots, blob(content).Root)
	}
	slices.SortFunc(roots, func(a, b digest.CID) int { return slices.Compare(a[:], b[:]) })
	unknown := ask(f.bench, StrayRoots{Server: server, Roots: roots}).Unknown
	if len(unknown) == 0 {
		return
	}
	c := CollectStrays{Server: server}
	for _, root := range unknown {
		c.Strays = append(c.Strays, Stray{Root: root, StoredBytes: 2})
	}
	f.must(c)
}

// BenchmarkCollect is for the claim that collecting costs the same beside any number
// of blobs that stay: time is of one root with two copies.
func BenchmarkCollect(b *testing.B) {
	for _, kept := range []int{100, 100_000} {
		b.Run(fmt.Sprint(kept), func(b *testing.B) {
			m := newGCBench(b)
			for i := range kept {
				m.must(link(fmt.Sprint("kept", i), "eu-1"))
			}
			for i := range b.N {
				name := fmt.Sprint("gone", i)
				m.must(link(name, "eu-1"))
				m.must(report("eu-2", meta.ReplicaVerified, name))
				m.must(UnlinkBlob{Repo: appRef, Digest: blob(name).Digest})
			}
			m.now = m.now.Add(time.Second)
			b.ResetTimer()
			if r := m.collectBy(300, 0); r.Collected != uint32(b.N) {
				b.Fatalf("collected %+v of %d", r, b.N)
			}
		})
	}
}

// TestGarbageIsOwedByNobody: a copy that fails while its root waits to be collected is
// not made again.
func TestGarbageIsOwedByNobody(t *testing.T) {
	b := newDrainBench(t)
	b.must(link("layer", "eu-1"))
	b.must(image("m1", "layer"))
	b.must(report("eu-2", meta.ReplicaVerified, "layer"))
	b.must(report("us-1", meta.ReplicaVerified, "layer"))
	b.must(DeleteVersion{Repo: appRef, Package: "api", Version: string(blob("m1").Digest)})
	b.must(UnlinkBlob{Repo: appRef, Digest: blob("layer").Digest})
	if got := states(b, "layer"); got != "eu=verified eu-1=verified eu-2=verified us=verified us-1=verified" {
		t.Errorf("copies are %q", got)
	}
	b.must(report("us-1", meta.ReplicaFailed, "layer"))
	if got := states(b, "layer"); got != "eu=verified eu-1=verified eu-2=verified us-1=failed" {
		t.Errorf("copies of garbage are %q", got)
	}
	check(b)
}

// TestWavesHoldNobodyElseUp: what an open wave keeps is not looked at again and again,
// also without any grace.
func TestWavesHoldNobodyElseUp(t *testing.T) {
	b := newGCBench(t)
	b.must(link("other", "eu-1"))
	b.must(UnlinkBlob{Repo: appRef, Digest: blob("other").Digest})
	const kept = 7
	for i := range kept {
		b.must(image(fmt.Sprint("m", i)))
	}
	planned := wave("w1")
	planned.Wave.Refs = []meta.WaveRef{{Repo: appRef, Package: "api", Version: string(blob("m0").Digest)}}
	b.must(planned)
	for i := range kept {
		b.must(manifestOf(fmt.Sprint("m", i)))
	}
	b.now = b.now.Add(time.Second)
	zero := time.Duration(0)
	collected := uint32(0)
	for i, more := 0, true; more; i++ {
		if i == 10*kept {
			t.Fatal("there is always more")
		}
		r := b.must(CollectBlobs{Limit: 3, Grace: &zero}).Value.(CollectResult)
		collected, more = collected+r.Collected, r.More
	}
	if collected != 1 {
		t.Errorf("%d blobs were collected, want the one that no wave keeps", collected)
	}
	b.must(CancelWave{ID: "w1"})
	b.now = b.now.Add(keptLeast)
	if r := b.collect(0); r.Links != kept {
		t.Errorf("after the wave %+v", r)
	}
	check(b)
}
