package state

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// backlogAudit counts demands again.
type backlogAudit struct {
	totals    map[string]demandTotal
	lanes     map[string]laneCount
	uncounted int
}

func (a *backlogAudit) add(v *View, d *meta.Replica, want map[string]bool) error {
	if d.Counted == meta.CountNone {
		a.uncounted++
		return nil
	}
	if verified := d.Counted == meta.CountVerified; verified != (d.State == meta.ReplicaVerified) {
		return fmt.Errorf("the demand of %s in %s is %s and counts as %d", d.Root, d.Region, d.State, d.Counted)
	}
	k := string(keyTotal(d.Region, d.Class))
	total := a.totals[k]
	total.Blobs, total.Bytes = total.Blobs+1, total.Bytes+d.StoredBytes
	a.totals[k] = total
	if d.Counted == meta.CountVerified {
		return nil
	}
	want[string(keyInLane(*d))] = true
	k = string(keyBacklog(d.Region, d.Class, d.Context))
	lane := a.lanes[k]
	lane.Blobs, lane.Bytes = lane.Blobs+1, lane.Bytes+d.StoredBytes
	if d.Counted == meta.CountMissing {
		lane.MissingBlobs, lane.MissingBytes = lane.MissingBlobs+1, lane.MissingBytes+d.StoredBytes
	}
	a.lanes[k] = lane
	return nil
}

func (a *backlogAudit) compare(have map[string][]byte) error {
	if have[string(keyCounted)] != nil && a.uncounted > 0 {
		return fmt.Errorf("%d demands are not counted, and all are said to be", a.uncounted)
	}
	for k, value := range have {
		if k[0] != spaceBacklog {
			continue
		}
		switch k[1] {
		case inTotals:
			if got, err := decode[demandTotal]([]byte(k), value); err != nil || *got != a.totals[k] {
				return fmt.Errorf("total %q is %+v, counted %+v: %v", k, got, a.totals[k], err)
			}
			delete(a.totals, k)
		case inBacklogs:
			if got, err := decode[laneCount]([]byte(k), value); err != nil || *got != a.lanes[k] {
				return fmt.Errorf("lane %q is %+v, counted %+v: %v", k, got, a.lanes[k], err)
			}
			delete(a.lanes, k)
		}
	}
	if len(a.totals)+len(a.lanes) > 0 {
		return fmt.Errorf("counts are missing: %v, %v", a.totals, a.lanes)
	}
	return nil
}

// newCountedBench is newSettledBench at level 4, with a second tenant and its
// repository other/files, in the same regions.
func newCountedBench(t testing.TB) *bench {
	b := newSettledBench(t)
	b.must(SetLevel{Level: backlogLevel})
	settle(b, maxSettled)
	other := app()
	other.Ref = otherRef
	b.must(CreateRepository{Repository: other, CreateTenant: true})
	return b
}

var otherRef = meta.RepoRef{Tenant: "other", Name: "files"}

// imageOf is image in another tenant's repository.
func imageOf(ref meta.RepoRef, manifest string) Publish {
	p := image(manifest)
	p.Version.Repo, p.Blobs[0].Repo, p.Blobs[0].Blob.Context = ref, ref, string(ref.Tenant)
	return p
}

func lanes(b *bench, region meta.RegionName) string {
	b.Helper()
	var out string
	for _, l := range ask(b, ListBacklogs{Region: region}) {
		out += fmt.Sprintf("%s/%s %d(%d) ", l.Class, l.Tenant, l.Blobs, l.MissingBlobs)
	}
	return out
}

func TestBacklogs(t *testing.T) {
	b := newCountedBench(t)
	premium := meta.TierPremium
	b.must(SetTenant{Name: "other", Tier: &premium})
	b.must(image("m1"))
	b.must(image("m2"))
	b.now = b.now.Add(time.Second)
	b.must(imageOf(otherRef, "o1"))
	// eu has two servers and one copy, us one server and none.
	if got, want := lanes(b, "eu"), "standard/acme 2(0) standard/other 1(0) "; got != want {
		t.Errorf("eu owes %q, want %q", got, want)
	}
	if got, want := lanes(b, "us"), "standard/acme 2(2) standard/other 1(1) "; got != want {
		t.Errorf("us owes %q, want %q", got, want)
	}
	all := ask(b, ListBacklogs{Region: "us"})
	if all[1].Tier != premium || all[1].Oldest != meta.TimeOf(b.now) || all[0].Oldest >= all[1].Oldest || all[0].Bytes != 4 {
		t.Errorf("lanes are %+v", all)
	}
	if rest := ask(b, ListBacklogs{Region: "us", Page: Page{After: BacklogAfter(all[0])}}); len(rest) != 1 || rest[0] != all[1] {
		t.Errorf("behind the first are %+v", rest)
	}
	// A tenant's queue by pages, also behind what is verified meanwhile.
	first := ask(b, PendingInLane{Region: "us", Class: meta.ClassStandard, Tenant: "acme", Page: Page{Limit: 1}})
	b.must(ReportReplicas{Replicas: []meta.Replica{{Root: first[0].Root, Server: "us-1", State: meta.ReplicaVerified}}})
	rest := ask(b, PendingInLane{Region: "us", Class: meta.ClassStandard, Tenant: "acme", Page: Page{After: PendingAfter(first[0])}})
	if len(rest) != 1 || rest[0].Root == first[0].Root || rest[0].Context != "acme" {
		t.Errorf("behind the first are %+v", rest)
	}
	if got := ask(b, TenantBacklogs{Tenant: "acme"}); len(got) != 2 || got[1].Region != "us" || got[1].MissingBlobs != 1 || got[0].MissingBlobs != 0 || got[0].Blobs != 2 {
		t.Errorf("acme is owed %+v", got)
	}
	// A stronger class moves it to another lane, a repair back into its own.
	critical := meta.ClassCritical
	b.must(SetRepository{Ref: appRef, Class: &critical})
	settle(b, 3)
	if got, want := lanes(b, "us"), "critical/acme 1(1) standard/other 1(1) "; got != want {
		t.Errorf("us owes %q, want %q", got, want)
	}
	b.must(report("us-1", meta.ReplicaVerified, "m1", "m2", "o1"))
	if got := lanes(b, "us"); got != "" {
		t.Errorf("us owes %q", got)
	}
	b.must(report("us-1", meta.ReplicaFailed, "m1"))
	if got, want := lanes(b, "us"), "critical/acme 1(1) "; got != want {
		t.Errorf("us owes %q, want %q", got, want)
	}
	b.must(report("eu-1", meta.ReplicaFailed, "m2"))
	if got, want := lanes(b, "eu"), "critical/acme 2(1) standard/other 1(0) "; got != want {
		t.Errorf("eu owes %q, want %q", got, want)
	}
	a := ask(b, Replication{})
	at := slices.IndexFunc(a.Classes, func(c ClassReplication) bool { return c.Region == "us" && c.Class == critical })
	if !a.Counted || a.Settlement != nil || at < 0 || a.Classes[at].DemandedBlobs != 2 || a.Classes[at].WaitingBlobs != 1 || a.Classes[at].Tenants != 1 {
		t.Errorf("replication is %+v", a)
	}
	check(b)
}

// What two tenants publish waits in the shorter queue.
func TestSharedBlobsWaitInTheShorterQueue(t *testing.T) {
	b := newCountedBench(t)
	for i := range 5 {
		b.must(image(fmt.Sprint("m", i)))
	}
	b.must(imageOf(otherRef, "m4"))
	if got, want := lanes(b, "us"), "standard/acme 4(4) standard/other 1(1) "; got != want {
		t.Errorf("us owes %q, want %q", got, want)
	}
	b.must(imageOf(otherRef, "o1"))
	b.must(image("o1")) // and it does not go where more wait
	if got, want := lanes(b, "us"), "standard/acme 4(4) standard/other 2(2) "; got != want {
		t.Errorf("us owes %q, want %q", got, want)
	}
	check(b)
}

// Demands of an older level are counted by the settlement that the rise asks for.
func TestOldDemandsAreCounted(t *testing.T) {
	b := newSettledBench(t)
	for i := range 5 {
		b.must(image(fmt.Sprint("m", i)))
	}
	b.must(report("us-1", meta.ReplicaVerified, "m0"))
	if _, err := try(b, ListBacklogs{Region: "us"}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("below the level: %v", err)
	}
	b.refuse(DemandBlobs{Repo: appRef, Blobs: []digest.Digest{blob("m1").Digest}}, meta.ErrConflict, "level")
	b.refuse(SetRepository{Ref: appRef, Regions: &[]meta.RegionName{"ap"}}, meta.ErrConflict, "level")
	b.refuse(CreateTenant{Name: "gold", Tier: meta.TierPremium}, meta.ErrConflict, "level")
	b.must(SetLevel{Level: backlogLevel})
	if _, err := try(b, ListBacklogs{Region: "us"}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("before the settlement: %v", err)
	}
	first := ask(b, NextSettlement{})
	b.must(SettleDemands{Since: first.Since, Limit: 3})
	b.must(image("during"))
	b.must(report("us-1", meta.ReplicaVerified, "m1"))
	if a := ask(b, Replication{}); a.Counted || a.Settlement == nil || a.Settlement.Phase != PhaseCopies || a.Settlement.Part <= 0 || a.Settlement.Part >= 1 {
		t.Errorf("during the settlement: %+v, %+v", a, a.Settlement)
	}
	check(b)
	settle(b, 2)
	if got, want := lanes(b, "us"), "standard/acme 4(4) "; got != want {
		t.Errorf("us owes %q, want %q", got, want)
	}
	verified := ask(b, Replicas{Root: blob("m0").Root})
	for _, r := range verified {
		if r.Server == "" && r.Region == "us" && (r.Verified == 0 || r.Counted != meta.CountVerified) {
			t.Errorf("a verified demand became %+v", r)
		}
	}
}

func TestRegionsOfARepository(t *testing.T) {
	b := newCountedBench(t)
	b.must(image("m1"))
	b.refuse(SetRepository{Ref: appRef, Regions: &[]meta.RegionName{"mars"}}, meta.ErrInvalid, "mars")
	b.refuse(SetRepository{Ref: appRef, Regions: &[]meta.RegionName{"us", "ap"}}, meta.ErrInvalid, "sorted")
	three := uint32(3)
	b.refuse(SetRepository{Ref: appRef, CopiesBeforeAck: &three}, meta.ErrInvalid)
	b.must(SetRepository{Ref: appRef, Regions: &[]meta.RegionName{"ap", "eu"}})
	settle(b, 2)
	if got, want := lanes(b, "ap"), "standard/acme 1(1) "; got != want {
		t.Errorf("ap owes %q, want %q", got, want)
	}
	b.must(image("m2"))
	if got := states(b, "m2"); got != "ap=pending eu=pending eu-1=verified" {
		t.Errorf("copies are %q", got)
	}
	r := b.must(SetRepository{Ref: appRef, Regions: &[]meta.RegionName{}}).Value.(meta.Repository)
	if r.Regions != nil {
		t.Errorf("regions are %v", r.Regions)
	}
	settle(b, 2)
	if got := states(b, "m2"); got != "ap=pending eu=pending eu-1=verified us=pending" {
		t.Errorf("copies are %q", got)
	}
	own := app()
	own.Ref.Name, own.Regions = "own", []meta.RegionName{"ap"}
	for range 2 { // A repetition is idempotent.
		b.must(CreateRepository{Repository: own})
	}
	own.Regions = []meta.RegionName{"ap", "us"}
	b.refuse(CreateRepository{Repository: own}, meta.ErrExists)
}

// A publish of a repository with two copies before the acknowledgement waits for them,
// whoever proposes it.
func TestCopiesBeforeAck(t *testing.T) {
	b := newCountedBench(t)
	two := uint32(2)
	b.must(SetRepository{Ref: appRef, CopiesBeforeAck: &two})
	b.refuse(image("m1"), meta.ErrUnavailable, "1 verified copies", "try again")
	missing(b, GetVersion{Repo: appRef, Package: "api", Version: string(blob("m1").Digest)})
	b.refuse(DemandBlobs{Repo: appRef, Blobs: []digest.Digest{blob("m1").Digest}}, meta.ErrInvalid, "upload it first")
	b.must(link("m1", "eu-1"))
	b.must(link("layer", "eu-1"))
	b.must(DemandBlobs{Repo: appRef, Blobs: []digest.Digest{blob("m1").Digest, blob("layer").Digest}})
	if got, want := lanes(b, "us"), "standard/acme 2(2) "; got != want {
		t.Errorf("us owes %q, want %q", got, want)
	}
	b.must(report("us-1", meta.ReplicaVerified, "m1"))
	if got := ask(b, CopiesOf{Roots: []digest.CID{blob("layer").Root, blob("m1").Root, blob("nothing").Root}}); !slices.Equal(got, []uint32{1, 2, 0}) {
		t.Errorf("copies are %v", got)
	}
	b.refuse(image("m1", "layer"), meta.ErrUnavailable, string(blob("layer").Digest))
	b.must(report("eu-2", meta.ReplicaVerified, "layer"))
	b.must(image("m1", "layer"))
	// What no version comes to use is taken back.
	b.must(link("unused", "eu-1"))
	b.must(DemandBlobs{Repo: appRef, Blobs: []digest.Digest{blob("unused").Digest}})
	b.must(UnlinkBlob{Repo: appRef, Digest: blob("unused").Digest})
	if got := states(b, "unused"); got != "eu-1=verified" {
		t.Errorf("copies are %q", got)
	}
	check(b)
	// A copy at a server that is not heard does not count.
	b.must(link("m2", "eu-1"))
	b.must(report("us-1", meta.ReplicaVerified, "m2"))
	b.must(RemoveNode{ID: "us-1", Force: true})
	b.refuse(image("m2"), meta.ErrUnavailable)
}

func TestTiers(t *testing.T) {
	b := newCountedBench(t)
	if got := b.must(CreateTenant{Name: "gold", Tier: meta.TierPremium}).Value.(meta.Tenant); got.Tier != meta.TierPremium || got.Tier.Weight() != 16 {
		t.Errorf("%+v", got)
	}
	if got := b.must(CreateTenant{Name: "gold"}).Value.(meta.Tenant); got.Tier != meta.TierPremium {
		t.Errorf("a repetition made it %+v", got)
	}
	basic, odd := meta.TierBasic, meta.Tier("lead")
	if got := b.must(SetTenant{Name: "gold", Tier: &basic}).Value.(meta.Tenant); got.Tier != basic || got.CreatedBy != "user:ada" {
		t.Errorf("%+v", got)
	}
	b.refuse(SetTenant{Name: "gold", Tier: &odd}, meta.ErrInvalid, "premium")
	b.refuse(SetTenant{Name: "nobody"}, meta.ErrNotFound)
}

// TestCountedModel changes what is demanded and what is there at random, from below
// the level on; the counts are those of the records at every step.
func TestCountedModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		b := newSettledBench(t)
		other := app()
		other.Ref = otherRef
		b.must(CreateRepository{Repository: other, CreateTenant: true})
		contents := []string{"c1", "c2", "c3", "c4"}
		refs := []meta.RepoRef{appRef, otherRef}
		level := uint32(settleLevel)
		for range rapid.IntRange(1, 40).Draw(r, "steps") {
			b.now = b.now.Add(time.Second)
			content := rapid.SampledFrom(contents).Draw(r, "content")
			ref := rapid.SampledFrom(refs).Draw(r, "repository")
			server := rapid.SampledFrom([]meta.NodeID{"eu-1", "eu-2", "us-1", "ap-1"}).Draw(r, "server")
			region := rapid.SampledFrom([]meta.RegionName{"eu", "us", "ap"}).Draw(r, "region")
			switch rapid.IntRange(0, 8).Draw(r, "change") {
			case 0, 1:
				b.do(imageOf(ref, content))
			case 2:
				state := rapid.SampledFrom([]meta.ReplicaState{meta.ReplicaVerified, meta.ReplicaFailed}).Draw(r, "state")
				b.do(report(server, state, content))
			case 3:
				b.do(DemandReplica{Root: blob(content).Root, Region: region})
			case 4:
				class := rapid.SampledFrom([]meta.Class{meta.ClassCritical, meta.ClassStandard, meta.ClassCold}).Draw(r, "class")
				b.do(SetRepository{Ref: ref, Class: &class})
			case 5:
				b.do(DeleteVersion{Repo: ref, Package: "api", Version: string(blob(content).Digest)})
				b.do(UnlinkBlob{Repo: ref, Digest: blob(content).Digest})
			case 6:
				if level < backlogLevel {
					level = backlogLevel
					b.must(SetLevel{Level: level})
				}
				b.do(SetRepository{Ref: ref, Regions: &[]meta.RegionName{region}})
			case 7:
				if s, err := try(b, NextSettlement{}); err == nil {
					b.must(SettleDemands{Since: s.Since, After: s.After, Limit: uint32(rapid.IntRange(1, 4).Draw(r, "limit"))})
				}
			case 8:
				b.do(RemoveNode{ID: server, Force: level >= backlogLevel})
			}
			check(b)
		}
		settle(b, uint32(rapid.IntRange(1, 5).Draw(r, "limit")))
		if level >= backlogLevel {
			ask(b, ListBacklogs{Region: "eu"})
			ask(b, Replication{})
		}
	})
}
