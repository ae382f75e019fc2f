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

// newDrainBench is newBench at the level of drains, with all settled.
func newDrainBench(t testing.TB) *bench {
	b := newBench(t)
	b.must(SetLevel{Level: drainLevel})
	settle(b, maxSettled)
	return b
}

// auditRemains computes of which draining servers a root is a remain from the copies
// and the roster, and compares.
func auditRemains(v *View) error {
	want := map[string]string{}
	copies := map[digest.CID][]*meta.Replica{}
	for p, err := range v.scan(within(key{spaceReplicas})) {
		if err != nil {
			return err
		}
		r, err := decode[meta.Replica](p.key, p.value)
		if err != nil {
			return err
		}
		copies[r.Root] = append(copies[r.Root], r)
	}
	for root, all := range copies {
		used, err := linked(v, root)
		if err != nil {
			return err
		}
		stays := false
		draining := map[meta.NodeID]bool{}
		short := map[meta.RegionName]bool{}
		for _, r := range all {
			switch {
			case r.Server == "":
				short[r.Region] = r.State != meta.ReplicaVerified
			case r.State == meta.ReplicaVerified:
				behind, err := serversBehind(v, r.Server)
				if err != nil {
					return err
				}
				remains := true // with a bucket, only when all its servers drain
				for _, id := range behind {
					n, err := load[meta.Node](v, keyNode(id))
					if err != nil {
						return err
					}
					if n != nil && n.Draining == nil {
						stays, remains = true, false
					}
					remains = remains && n != nil
				}
				draining[r.Server] = remains
			}
		}
		able, owing := false, false
		for r, err := range regions(v) {
			if err != nil {
				return err
			}
			if r.Region.Leaving == 0 && len(r.Servers) > len(r.Draining) {
				able, owing = true, owing || short[r.Region.Name]
			}
		}
		for _, r := range all {
			why := ""
			switch {
			case r.Server == "" || !used || !draining[r.Server] || r.State != meta.ReplicaVerified:
			case !stays && able && !owing:
				return fmt.Errorf("%s has the last copy of %s and nobody is to make another", r.Server, root)
			case !stays:
				why = RemainsLast
			case short[r.Region]:
				why = RemainsShort
			}
			if why == "" {
				continue
			}
			behind, err := serversBehind(v, r.Server)
			if err != nil {
				return err
			}
			for _, id := range behind {
				want[string(append(keyRemains(id), root[:]...))] = why
			}
		}
	}
	for p, err := range v.scan(within(key{spaceRemains})) {
		if err != nil {
			return err
		}
		if why := want[string(p.key)]; why != string(p.value) {
			return fmt.Errorf("remain %q is %q, the copies say %q", p.key, p.value, why)
		}
		delete(want, string(p.key))
	}
	for k, why := range want {
		return fmt.Errorf("remain %q (%s) is missing", k, why)
	}
	all, err := draining(v)
	if err != nil {
		return err
	}
	var marked, listed []meta.NodeID
	for r, err := range regions(v) {
		if err != nil {
			return err
		}
		listed = append(listed, r.Draining...)
		for _, id := range r.Servers {
			n, err := findServer(v, id)
			if err != nil {
				return err
			}
			if n.Draining != nil {
				marked = append(marked, id)
			} else if r.Region.Leaving != 0 {
				return fmt.Errorf("%s stays in region %s, which leaves", id, r.Region.Name)
			}
		}
	}
	slices.Sort(marked)
	slices.Sort(listed)
	if !slices.Equal(all, marked) || !slices.Equal(all, listed) {
		return fmt.Errorf("draining are %v, by their records %v, by their regions %v", all, marked, listed)
	}
	return nil
}

func (b *bench) remains(id meta.NodeID) RemainsAnswer {
	b.Helper()
	return ask(b, Remains{Server: id, Limit: 10})
}

func TestServersAreDrained(t *testing.T) {
	b := newDrainBench(t)
	b.must(link("layer", "eu-1"))
	b.must(image("m1", "layer"))
	b.must(report("us-1", meta.ReplicaVerified, "layer", "m1"))
	b.refuse(RemoveNode{ID: "eu-1"}, meta.ErrConflict, "drain")

	n := b.must(DrainServer{ID: "eu-1", Drain: true}).Value.(meta.Node)
	if n.Draining == nil || n.Draining.Since == 0 {
		t.Errorf("%+v", n)
	}
	b.refuse(RemoveNode{ID: "eu-1"}, meta.ErrConflict, "counted")
	settle(b, 1)
	// us has it, eu lacks a copy: two are due, one server is left for them.
	if left := b.remains("eu-1"); left.Short != 2 || left.Last != 0 || !left.Settled || len(left.Named) != 2 || left.Removable() {
		t.Errorf("%+v", left)
	}
	if got := states(b, "layer"); got != "eu=pending eu-1=verified us=verified us-1=verified" {
		t.Errorf("copies are %q", got)
	}
	b.refuse(RemoveNode{ID: "eu-1"}, meta.ErrConflict, "lacks copies")
	// What comes to it now is another's last copy, or its own.
	b.must(link("late", "eu-1"))
	if left := b.remains("eu-1"); left.Last != 1 {
		t.Errorf("%+v", left)
	}
	// No version uses it, so nobody owed it; now another of its region does.
	if got := states(b, "late"); got != "eu=pending eu-1=verified" {
		t.Errorf("copies of an upload are %q", got)
	}
	b.must(report("eu-2", meta.ReplicaVerified, "layer", "m1", "late"))
	if left := b.remains("eu-1"); !left.Removable() {
		t.Errorf("%+v", left)
	}
	// A copy elsewhere that is lost makes it needed again.
	b.must(report("eu-2", meta.ReplicaFailed, "late"))
	b.refuse(RemoveNode{ID: "eu-1"}, meta.ErrConflict, "no other server")
	b.must(UnlinkBlob{Repo: appRef, Digest: blob("late").Digest})
	b.must(RemoveNode{ID: "eu-1"})
	settle(b, 2)
	if got := states(b, "layer"); got != "eu=verified eu-2=verified us=verified us-1=verified" {
		t.Errorf("copies are %q", got)
	}
}

func TestDrainsEnd(t *testing.T) {
	b := newDrainBench(t)
	b.must(image("m1"))
	b.refuse(DrainServer{ID: "none", Drain: true}, meta.ErrNotFound)
	// The autopilot does not take back what an operator did.
	b.must(DrainServer{ID: "eu-1", Drain: true, Autopilot: true})
	b.must(DrainServer{ID: "eu-1", Drain: true})
	b.refuse(DrainServer{ID: "eu-1", Autopilot: true}, meta.ErrConflict)
	b.must(DrainServer{ID: "eu-1"})
	b.must(DrainServer{ID: "eu-1"})
	b.must(DrainServer{ID: "eu-1", Drain: true, Autopilot: true})
	settle(b, 3)
	if left := b.remains("eu-1"); left.Last != 1 || left.Draining.By != meta.DrainAutopilot {
		t.Errorf("%+v", left)
	}
	b.must(DrainServer{ID: "eu-1", Autopilot: true})
	settle(b, 3)
	if left := b.remains("eu-1"); left.Last != 0 || left.Draining != nil || left.Removable() {
		t.Errorf("%+v", left)
	}
	// One server stays.
	for _, id := range []meta.NodeID{"eu-1", "us-1", "ap-1"} {
		b.must(DrainServer{ID: id, Drain: true})
	}
	b.refuse(DrainServer{ID: "eu-2", Drain: true}, meta.ErrConflict, "add another")
	// One that joins again is drained as before; its own word changes nothing.
	b.must(CreateJoinToken{Token: meta.JoinToken{ID: "again", Role: meta.RoleServer, Region: "eu", Uses: 1, Expires: meta.TimeOf(b.now.Add(time.Hour))}})
	n := server("eu-1", "eu")
	b.must(AdmitNode{TokenSecretHash: "again", Node: n})
	n.Draining = &meta.Drain{Since: 1, By: "itself"}
	b.must(UpdateNode{Node: n})
	if got := ask(b, GetNode{ID: "eu-1"}).Draining; got == nil || got.By == "itself" {
		t.Errorf("%+v", got)
	}
	settle(b, 2)
}

func TestRegionsAreGivenUp(t *testing.T) {
	b := newDrainBench(t)
	critical := meta.ClassCritical
	b.must(SetRepository{Ref: appRef, Class: &critical})
	b.must(image("m1"))
	b.must(report("us-1", meta.ReplicaVerified, "m1"))
	b.must(report("ap-1", meta.ReplicaVerified, "m1"))
	settle(b, 5)
	b.refuse(RemoveRegion{Name: "ap"}, meta.ErrConflict)
	since := b.must(LeaveRegion{Name: "ap", Leave: true}).Value.(meta.Region).Leaving
	if since == 0 {
		t.Fatal("it does not leave")
	}
	b.refuse(RemoveRegion{Name: "ap", Since: since}, meta.ErrConflict, "counted")
	settle(b, 1)
	if got := states(b, "m1"); got != "ap-1=verified eu=pending eu-1=verified us=verified us-1=verified" {
		t.Errorf("copies are %q", got)
	}
	// Nothing new comes to name it.
	in := meta.RegionName("ap")
	b.refuse(SetRepository{Ref: appRef, Home: &in}, meta.ErrConflict, "being removed")
	b.refuse(DemandReplica{Root: blob("m1").Root, Region: "ap"}, meta.ErrConflict)
	b.refuse(DrainServer{ID: "ap-1"}, meta.ErrConflict, "region")
	token := meta.JoinToken{ID: "to-ap", Role: meta.RoleServer, Region: "ap", Uses: 1, Expires: meta.TimeOf(b.now.Add(time.Hour))}
	b.must(CreateJoinToken{Token: token})
	b.refuse(AdmitNode{TokenSecretHash: "to-ap", Node: server("ap-2", "ap")}, meta.ErrConflict, "being removed")
	b.must(image("m2"))
	if got := states(b, "m2"); got != "eu=pending eu-1=verified us=pending" {
		t.Errorf("copies of what came meanwhile are %q", got)
	}
	// Kept, it is filled again; what was seen before does not remove it.
	b.must(LeaveRegion{Name: "ap"})
	settle(b, 2)
	if n := pending(b, "ap"); n != 1 {
		t.Errorf("ap owes %d blobs", n)
	}
	b.refuse(RemoveRegion{Name: "ap", Since: since}, meta.ErrConflict)
	b.now = b.now.Add(time.Second)
	again := b.must(LeaveRegion{Name: "ap", Leave: true}).Value.(meta.Region).Leaving
	settle(b, 2)
	b.refuse(RemoveRegion{Name: "ap", Since: since}, meta.ErrConflict)
	if got := b.must(RemoveRegion{Name: "ap", Since: again}).Value.(RemovedRegion); !slices.Equal(got.Servers, []meta.NodeID{"ap-1"}) {
		t.Errorf("%+v", got)
	}
	missing(b, GetNode{ID: "ap-1"})
	settle(b, 2)
	if got := states(b, "m1"); got != "eu=pending eu-1=verified us=verified us-1=verified" {
		t.Errorf("copies are %q", got)
	}
	// The last copy keeps a region, unless it is given up too.
	since = b.must(LeaveRegion{Name: "eu", Leave: true}).Value.(meta.Region).Leaving
	b.refuse(LeaveRegion{Name: "us", Leave: true}, meta.ErrConflict)
	settle(b, 2)
	b.refuse(RemoveRegion{Name: "eu", Since: since}, meta.ErrConflict, "eu-1")
	b.must(RemoveRegion{Name: "eu", Since: since, Force: true})
	settle(b, 2)
}

// Below its level servers go as they did, forced or not.
func TestDrainsHaveALevel(t *testing.T) {
	b := newSettledBench(t)
	b.must(image("m1"))
	b.refuse(DrainServer{ID: "eu-1", Drain: true}, meta.ErrConflict, "level")
	b.refuse(LeaveRegion{Name: "eu", Leave: true}, meta.ErrConflict, "level")
	b.refuse(RemoveRegion{Name: "eu"}, meta.ErrConflict, "level")
	b.refuse(HoldLevel{Level: 9}, meta.ErrConflict, "level")
	b.must(RemoveNode{ID: "eu-1"})
	settle(b, 2)
}

func TestLevelIsHeld(t *testing.T) {
	b := newDrainBench(t)
	b.refuse(HoldLevel{Level: drainLevel - 1}, meta.ErrConflict)
	b.must(HoldLevel{Level: drainLevel})
	if hold := ask(b, GetHold{}); hold != drainLevel {
		t.Errorf("held at %d", hold)
	}
	b.must(SetLevel{Level: drainLevel})
	b.must(HoldLevel{})
	if hold := ask(b, GetHold{}); hold != 0 {
		t.Errorf("held at %d", hold)
	}
}

// TestDrainModel drains, keeps and removes servers and regions at random, between
// uploads, deletions, reports of copies kept and lost, and settlements that stop
// anywhere. What is removed without force never had the last copy of a linked blob, and
// once settled every mark is what the copies say.
func TestDrainModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		b := newDrainBench(t)
		manifests := []string{"m1", "m2", "m3"}
		names := []meta.RegionName{"eu", "us", "ap"}
		joined := 0
		reachable := func() map[digest.CID]bool { // roots with a verified copy at a server
			v, err := b.View()
			if err != nil {
				r.Fatal(err)
			}
			defer v.Close()
			has := map[digest.CID]bool{}
			for p, err := range v.scan(within(key{spaceReplicas})) {
				if err != nil {
					r.Fatal(err)
				}
				c, err := decode[meta.Replica](p.key, p.value)
				if err != nil {
					r.Fatal(err)
				}
				if used, err := linked(v, c.Root); err != nil || !used || c.Server == "" || c.State != meta.ReplicaVerified {
					continue
				}
				if n, err := load[meta.Node](v, keyNode(c.Server)); err == nil && n != nil {
					has[c.Root] = true
				}
			}
			return has
		}
		keeps := func(c Command) {
			before := reachable()
			if b.do(c).Err != nil {
				return
			}
			after := reachable()
			for root := range before {
				if !after[root] {
					r.Fatalf("%+v lost the last copy of %s", c, root)
				}
			}
		}
		for range rapid.IntRange(1, 40).Draw(r, "steps") {
			b.now = b.now.Add(time.Second)
			region := rapid.SampledFrom(names).Draw(r, "region")
			manifest := rapid.SampledFrom(manifests).Draw(r, "manifest")
			var servers []meta.NodeID
			for _, n := range ask(b, ListNodes{Role: meta.RoleServer}) {
				servers = append(servers, n.ID)
			}
			some := rapid.SampledFrom(servers).Draw(r, "server")
			switch rapid.IntRange(0, 10).Draw(r, "change") {
			case 0:
				joined++
				token := fmt.Sprint("join ", joined)
				b.must(CreateJoinToken{Token: meta.JoinToken{ID: token, Role: meta.RoleServer, Region: region, Uses: 1, Expires: meta.TimeOf(b.now.Add(time.Hour))}})
				b.do(AdmitNode{TokenSecretHash: token, Node: server(meta.NodeID(fmt.Sprint("new-", joined)), region)})
			case 1, 2:
				b.do(DrainServer{ID: some, Drain: rapid.IntRange(0, 3).Draw(r, "really") > 0, Autopilot: rapid.Bool().Draw(r, "autopilot")})
			case 3:
				keeps(RemoveNode{ID: some})
			case 4:
				b.do(RemoveNode{ID: some, Force: rapid.IntRange(0, 3).Draw(r, "force") == 0})
			case 5:
				b.do(LeaveRegion{Name: region, Leave: rapid.IntRange(0, 3).Draw(r, "really") > 0})
			case 6:
				for _, known := range ask(b, ListRegions{}) {
					if known.Name == region {
						keeps(RemoveRegion{Name: region, Since: known.Leaving})
					}
				}
			case 7:
				p := image(manifest)
				p.Blobs[0].Server = some
				b.do(p)
			case 8:
				b.do(DeleteVersion{Repo: appRef, Package: "api", Version: string(blob(manifest).Digest)})
				b.do(UnlinkBlob{Repo: appRef, Digest: blob(manifest).Digest})
			case 9:
				state := rapid.SampledFrom([]meta.ReplicaState{meta.ReplicaVerified, meta.ReplicaVerified, meta.ReplicaFailed}).Draw(r, "state")
				b.do(report(some, state, manifest))
			case 10:
				if s, err := try(b, NextSettlement{}); err == nil {
					b.must(SettleDemands{Since: s.Since, After: s.After, Limit: uint32(rapid.IntRange(1, 9).Draw(r, "limit"))})
				} else if !errors.Is(err, meta.ErrNotFound) {
					r.Fatal(err)
				}
			}
		}
		settle(b, uint32(rapid.IntRange(1, 5).Draw(r, "limit")))
	})
}
