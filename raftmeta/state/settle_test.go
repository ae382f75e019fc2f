package state

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// newSettledBench is newBench at the level of settlements, with all settled.
func newSettledBench(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: settleLevel})
	settle(b, maxSettled)
	return b
}

// settle does as proposers do, in commands of limit records, and then audits.
func settle(b *bench, limit uint32) (commands int, sum SettleResult) {
	b.Helper()
	for {
		s, err := try(b, NextSettlement{})
		if errors.Is(err, meta.ErrNotFound) {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
		r := b.must(SettleDemands{Since: s.Since, After: s.After, Limit: limit}).Value.(SettleResult)
		if r.Read > limit {
			b.Fatalf("a command of at most %d records read %d", limit, r.Read)
		}
		sum.Read, sum.Dropped, sum.Owed = sum.Read+r.Read, sum.Dropped+r.Dropped, sum.Owed+r.Owed
		if commands++; commands > 10_000 {
			b.Fatalf("the settlement does not end: it is at %+v", s)
		}
	}
	check(b)
	v, err := b.View()
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	if err := auditSettled(v); err != nil {
		b.Fatalf("after index %d: %v", v.Index(), err)
	}
	return commands, sum
}

// auditSettled computes what is owed and what is there from the roster and the
// versions, and compares.
func auditSettled(v *View) error {
	rosters := map[meta.RegionName]*regionRecord{}
	for r, err := range regions(v) {
		if err != nil {
			return err
		}
		rosters[r.Region.Name] = r
	}
	verified := map[string]int{}
	demands := map[string]*meta.Replica{}
	for p, err := range v.scan(within(key{spaceReplicas})) {
		if err != nil {
			return err
		}
		r, err := decode[meta.Replica](p.key, p.value)
		if err != nil {
			return err
		}
		of := string(keyReplica(r.Root, r.Region, ""))
		roster := rosters[r.Region]
		switch {
		case r.Server == "":
			demands[of] = r
		case roster == nil || len(roster.behind(r.Server)) == 0:
			return fmt.Errorf("%s is said to have %s and is no server of %s", r.Server, r.Root, r.Region)
		case r.State == meta.ReplicaVerified && slices.Contains(roster.holders(), r.Server):
			verified[of]++
		}
	}
	for of, d := range demands {
		servers := 0
		if r := rosters[d.Region]; r != nil {
			servers = len(r.holders())
		}
		if r := rosters[d.Region]; r == nil || r.Region.Leaving != 0 {
			return fmt.Errorf("%s is demanded in %s, which leaves or is gone", d.Root, d.Region)
		}
		if enough := verified[of] >= min(regionCopies, max(servers, 1)); enough != (d.State == meta.ReplicaVerified) {
			return fmt.Errorf("%s in %s is %s with %d copies at %d servers", d.Root, d.Region, d.State, verified[of], servers)
		}
	}
	for p, err := range v.scan(within(key{spaceTenant})) {
		if err != nil {
			return err
		}
		tenant, rest, _ := cutPart(p.key[1:])
		if rest[0] != inLinks || len(p.value) > 6 && string(p.value[:7]) == "sha256:" {
			continue
		}
		name, _, _ := cutPart(rest[1:])
		l, err := decode[linkRecord](p.key, p.value)
		if err != nil || l.Link.Claims == 0 {
			if err != nil {
				return err
			}
			continue
		}
		repo, err := findRepository(v, meta.RepoRef{Tenant: meta.TenantName(tenant), Name: name})
		if err != nil {
			return err
		}
		blob, err := blobOf(v, l)
		if err != nil {
			return err
		}
		owing := []meta.RegionName{repo.Home}
		if repo.Class == meta.ClassStandard {
			owing = append(owing, repo.Second)
		}
		for region, r := range rosters {
			if repo.Class == meta.ClassCritical && r.Region.Primary {
				owing = append(owing, region)
			}
		}
		if len(repo.Regions) > 0 {
			owing = repo.Regions
		}
		for _, region := range owing {
			d := demands[string(keyReplica(blob.Blob.Root, region, ""))]
			if r := rosters[region]; r != nil && r.Region.Leaving == 0 && (d == nil || strength(d.Class) < strength(repo.Class)) {
				return fmt.Errorf("%s owes %s of %s (%s) and its demand is %+v", region, blob.Blob.Root, repo.Ref, repo.Class, d)
			}
		}
	}
	return auditRemains(v)
}

// enter adds a server to the roster.
func (b *bench) enter(id meta.NodeID, region meta.RegionName) {
	b.Helper()
	token := fmt.Sprint("token of ", id, " ", b.index)
	b.must(CreateJoinToken{Token: meta.JoinToken{ID: token, Role: meta.RoleServer, Region: region, Uses: 1, Expires: meta.TimeOf(b.now.Add(time.Hour))}})
	b.must(AdmitNode{TokenSecretHash: token, Node: server(id, region)})
}

func TestServersAreReplaced(t *testing.T) {
	b := newSettledBench(t)
	b.must(link("layer", "eu-1"))
	b.must(image("m1", "layer"))
	b.must(report("eu-2", meta.ReplicaVerified, "layer", "m1"))
	b.must(report("us-1", meta.ReplicaVerified, "layer", "m1"))
	if got := states(b, "layer"); got != "eu=verified eu-1=verified eu-2=verified us=verified us-1=verified" {
		t.Fatalf("copies are %q", got)
	}
	before := ask(b, Replicas{Root: blob("layer").Root})[0].Demand

	// A third server changes nothing: two copies are two copies.
	b.enter("eu-3", "eu")
	missing(b, NextSettlement{})

	b.now = b.now.Add(time.Hour)
	b.must(RemoveNode{ID: "eu-1"})
	if _, sum := settle(b, 1); sum.Dropped != 2 || sum.Owed != 2 {
		t.Errorf("settled %+v", sum)
	}
	if got := states(b, "layer"); got != "eu=pending eu-2=verified us=verified us-1=verified" {
		t.Errorf("copies are %q", got)
	}
	// The demand is new, so the new holders have their time for it.
	if got := ask(b, PendingReplicas{Region: "eu"}); len(got) != 2 || got[0].Demand <= before {
		t.Errorf("pending are %+v", got)
	}
	b.must(report("eu-3", meta.ReplicaVerified, "layer", "m1"))

	// us has now two servers and owes a second copy.
	b.enter("us-2", "us")
	settle(b, 3)
	if got := states(b, "layer"); got != "eu=verified eu-2=verified eu-3=verified us=pending us-1=verified" {
		t.Errorf("copies are %q", got)
	}
	// A region without servers owes what it owed, and has nothing.
	b.must(RemoveNode{ID: "us-1"})
	b.must(RemoveNode{ID: "us-2"})
	settle(b, 2)
	if got := states(b, "layer"); got != "eu=verified eu-2=verified eu-3=verified us=pending" {
		t.Errorf("copies are %q", got)
	}
}

func TestNothingIsOwedOfWhatNobodyLinks(t *testing.T) {
	b := newSettledBench(t)
	b.must(link("orphan", "us-1"))
	b.must(DemandReplica{Root: blob("orphan").Root, Region: "us"})
	b.must(UnlinkBlob{Repo: appRef, Digest: blob("orphan").Digest})
	b.must(RemoveNode{ID: "us-1"})
	settle(b, 10)
	if got := states(b, "orphan"); got != "" || pending(b, "us") != 0 {
		t.Errorf("copies are %q", got)
	}
}

func TestClassesAndRegionsAreSettled(t *testing.T) {
	b := newSettledBench(t)
	critical, cold := meta.ClassCritical, meta.ClassCold
	other := app()
	other.Ref.Name, other.Class = "other", meta.ClassCold
	b.must(CreateRepository{Repository: other})
	for i := range 5 {
		layer := fmt.Sprint("layer", i)
		b.must(link(layer, "eu-1"))
		b.must(image(fmt.Sprint("m", i), layer))
	}
	b.must(link("unused", "eu-1"))
	if n := pending(b, "ap"); n != 0 {
		t.Fatalf("ap owes %d", n)
	}
	b.must(SetRepository{Ref: appRef, Class: &critical})
	if commands, _ := settle(b, 2); commands < 5 {
		t.Errorf("it took %d commands of 2 records", commands)
	}
	if n := pending(b, "ap"); n != 10 {
		t.Errorf("ap owes %d blobs of 10", n)
	}
	// A region that is made, and one that begins with a server, are filled.
	b.must(PutRegion{Region: meta.Region{Name: "sa", Primary: true}})
	settle(b, 3)
	b.enter("af-1", "af")
	settle(b, 3)
	if sa, af := pending(b, "sa"), pending(b, "af"); sa != 10 || af != 10 {
		t.Errorf("sa owes %d and af %d blobs of 10", sa, af)
	}
	if got := states(b, "unused"); got != "eu-1=verified" {
		t.Errorf("copies of what no version uses are %q", got)
	}
	// What is there stays: too many copies lose nothing.
	b.must(SetRepository{Ref: appRef, Class: &cold})
	settle(b, 7)
}

// A proposer that was overtaken changes nothing, and a change under way begins anew.
func TestProposersOfSettlements(t *testing.T) {
	b := newSettledBench(t)
	for i := range 4 {
		b.must(image(fmt.Sprint("m", i)))
	}
	b.must(RemoveNode{ID: "eu-2"})
	first := ask(b, NextSettlement{})
	c := SettleDemands{Since: first.Since, After: first.After, Limit: 2}
	b.must(c)
	second := ask(b, NextSettlement{})
	if r := b.must(c).Value.(SettleResult); r != (SettleResult{}) {
		t.Errorf("the same again did %+v", r)
	}
	if got := ask(b, NextSettlement{}); string(got.After) != string(second.After) || second.Read != 2 {
		t.Errorf("it is at %+v, was at %+v", got, second)
	}
	b.must(RemoveNode{ID: "ap-1"})
	if got := ask(b, NextSettlement{}); got.Since <= first.Since || len(got.After) != 0 {
		t.Errorf("after another change it is at %+v", got)
	}
	b.must(SettleDemands{Since: second.Since, After: second.After, Limit: 2})
	settle(b, 2)
	b.refuse(SettleDemands{Limit: maxSettled + 1}, meta.ErrInvalid)
}

// Below its level nothing is asked for; the level itself asks for all.
func TestSettlementsHaveALevel(t *testing.T) {
	b := newBench(t)
	b.must(image("m1"))
	b.must(report("eu-2", meta.ReplicaVerified, "m1"))
	b.must(RemoveNode{ID: "eu-1"})
	b.enter("eu-3", "eu")
	missing(b, NextSettlement{})
	b.refuse(SettleDemands{Limit: 1}, meta.ErrConflict, "level")
	b.must(SetLevel{Level: 2})
	missing(b, NextSettlement{})
	if got := states(b, "m1"); got != "eu=verified eu-1=verified eu-2=verified us=pending" {
		t.Fatalf("copies are %q", got)
	}
	b.must(SetLevel{Level: settleLevel})
	settle(b, 1)
	if got := states(b, "m1"); got != "eu=pending eu-2=verified us=pending" {
		t.Errorf("copies are %q", got)
	}
}

func TestLastCopies(t *testing.T) {
	b := newSettledBench(t)
	b.must(image("m1"))
	b.must(link("unlinked", "eu-1"))
	b.must(UnlinkBlob{Repo: appRef, Digest: blob("unlinked").Digest})
	last := func(servers ...meta.NodeID) int {
		a := ask(b, LastCopies{Leaving: servers})
		if !a.After.IsZero() {
			t.Errorf("it goes on at %s", a.After)
		}
		if after := ask(b, LastCopies{Leaving: servers, After: blob("m1").Root}); slices.Contains(after.Roots, blob("m1").Root) {
			t.Errorf("behind m1 is %+v", after)
		}
		return len(a.Roots)
	}
	if last("eu-1") != 1 || last("eu-2") != 0 {
		t.Errorf("the last copies of eu-1 are %d, of eu-2 %d", last("eu-1"), last("eu-2"))
	}
	b.must(report("eu-2", meta.ReplicaVerified, "m1"))
	if last("eu-1") != 0 || last("eu-1", "eu-2") != 1 {
		t.Errorf("the last copies of eu-1 are %d, of both %d", last("eu-1"), last("eu-1", "eu-2"))
	}
	// What a server had that has left already is no copy, settled or not.
	b.must(RemoveNode{ID: "eu-2"})
	if last("eu-1") != 1 {
		t.Errorf("the last copies of eu-1 are %d", last("eu-1"))
	}
}

// A listing goes on behind a demand that was settled, withdrawn or made anew meanwhile.
func TestPendingGoesOnBehindWhatIsGone(t *testing.T) {
	b := newSettledBench(t)
	for _, content := range []string{"c", "a", "b"} {
		b.must(link(content, "eu-1"))
		b.must(DemandReplica{Root: blob(content).Root, Region: "ap"})
		b.now = b.now.Add(time.Second)
	}
	first := ask(b, PendingReplicas{Region: "ap", Page: Page{Limit: 1}})
	b.must(UnlinkBlob{Repo: appRef, Digest: blob("c").Digest})
	rest := ask(b, PendingReplicas{Region: "ap", Page: Page{After: PendingAfter(first[0])}})
	if len(rest) != 2 || rest[0].Root != blob("a").Root || rest[1].Root != blob("b").Root {
		t.Errorf("behind what is gone are %+v", rest)
	}
	for _, after := range []string{"x~" + first[0].Root.String(), "1~x", "~"} {
		if _, err := try(b, PendingReplicas{Region: "ap", Page: Page{After: after}}); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("a page after %q: %v", after, err)
		}
	}
}

// TestSettledModel changes the roster, the regions, the classes, the versions and the
// copies at random, with settlements that are interrupted anywhere; once settled,
// every record is what the roster and the versions say.
func TestSettledModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		b := newSettledBench(t)
		manifests := []string{"m1", "m2", "m3"}
		names := []meta.RegionName{"eu", "us", "ap", "sa"}
		joined := 0
		var stale SettleDemands
		for range rapid.IntRange(1, 40).Draw(r, "steps") {
			b.now = b.now.Add(time.Second)
			region := rapid.SampledFrom(names).Draw(r, "region")
			manifest := rapid.SampledFrom(manifests).Draw(r, "manifest")
			var servers []meta.NodeID
			for _, n := range ask(b, ListNodes{Role: meta.RoleServer}) {
				servers = append(servers, n.ID)
			}
			some := rapid.SampledFrom(servers).Draw(r, "server")
			switch rapid.IntRange(0, 8).Draw(r, "change") {
			case 0:
				joined++
				b.enter(meta.NodeID(fmt.Sprint("new-", joined)), region)
			case 1:
				b.do(RemoveNode{ID: some}) // The last one is refused.
			case 2:
				b.must(PutRegion{Region: meta.Region{Name: region, Primary: rapid.Bool().Draw(r, "primary")}})
			case 3:
				class := rapid.SampledFrom([]meta.Class{meta.ClassCritical, meta.ClassStandard, meta.ClassCold}).Draw(r, "class")
				b.must(SetRepository{Ref: appRef, Class: &class})
			case 4:
				p := image(manifest)
				p.Blobs[0].Server = some
				b.must(p)
			case 5:
				b.do(DeleteVersion{Repo: appRef, Package: "api", Version: string(blob(manifest).Digest)})
				b.do(UnlinkBlob{Repo: appRef, Digest: blob(manifest).Digest})
			case 6:
				state := rapid.SampledFrom([]meta.ReplicaState{meta.ReplicaVerified, meta.ReplicaFailed}).Draw(r, "state")
				b.must(report(some, state, manifest))
			case 7:
				if s, err := try(b, NextSettlement{}); err == nil {
					stale = SettleDemands{Since: s.Since, After: s.After, Limit: uint32(rapid.IntRange(1, 4).Draw(r, "limit"))}
					b.must(stale)
				}
			case 8:
				if stale.Limit != 0 {
					b.must(stale)
				}
			}
		}
		settle(b, uint32(rapid.IntRange(1, 5).Draw(r, "limit")))
	})
}
