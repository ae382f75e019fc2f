package state

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// TestHoldsOfBackups: a hold ends by itself, renewing is no second opening, and what
// has ended cannot be renewed.
func TestHoldsOfBackups(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: 4})
	lease := meta.MinBackupLease
	first := b.must(HoldBackup{ID: "one", Lease: lease}).Value.(meta.Backup)
	if first.Until-first.Opened != meta.Time(lease) {
		t.Errorf("held from %d until %d", first.Opened, first.Until)
	}
	b.refuse(HoldBackup{ID: "one", Lease: lease}, meta.ErrExists)
	b.refuse(HoldBackup{ID: "two", Lease: lease, Renew: true}, meta.ErrConflict)
	renewed := b.must(HoldBackup{ID: "one", Lease: time.Minute, Renew: true}).Value.(meta.Backup)
	if renewed.Opened != first.Opened || renewed.Until <= first.Until {
		t.Errorf("renewed %+v of %+v", renewed, first)
	}
	if open := ask(b, OpenBackups{Now: renewed.Until - 1}); len(open) != 1 || open[0].ID != "one" {
		t.Errorf("open are %+v", open)
	}
	if open := ask(b, OpenBackups{Now: renewed.Until}); len(open) != 0 {
		t.Errorf("open after the lease are %+v", open)
	}
	for i := range meta.MaxBackups - 1 {
		b.must(HoldBackup{ID: fmt.Sprint("more", i), Lease: time.Hour})
	}
	b.refuse(HoldBackup{ID: "full", Lease: lease}, meta.ErrConflict)
	b.now = renewed.Until.Std()
	b.refuse(HoldBackup{ID: "one", Lease: lease, Renew: true}, meta.ErrConflict)
	b.must(HoldBackup{ID: "two", Lease: lease}) // In the place of the one that ended.
	if all := ask(b, OpenBackups{}); len(all) != meta.MaxBackups {
		t.Errorf("%d records of holds", len(all))
	}
	b.must(CloseBackup{ID: "two"})
	b.must(CloseBackup{ID: "two"})
	if all := ask(b, OpenBackups{}); slices.ContainsFunc(all, func(b meta.Backup) bool { return b.ID == "two" }) {
		t.Errorf("closed and still there: %+v", all)
	}
}

// TestUsedBlobs compares the listing with what was published.
func TestUsedBlobs(t *testing.T) {
	b := newBench(t)
	b.must(image("u1"))
	b.must(image("u2"))
	v, err := b.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	want := map[digest.CID]bool{}
	for p, err := range v.scan(span{}) {
		if err != nil {
			t.Fatal(err)
		}
		if len(p.value) == 0 || p.key[0] != spaceTenant {
			continue
		}
		_, rest, _ := cutPart(p.key[1:])
		if rest[0] != inLinks || string(p.value[:min(7, len(p.value))]) == "sha256:" {
			continue
		}
		l, err := decode[linkRecord](p.key, p.value)
		if err != nil {
			t.Fatal(err)
		}
		record, err := blobOf(v, l)
		if err != nil {
			t.Fatal(err)
		}
		if l.Link.Claims > 0 {
			want[record.Blob.Root] = true
		}
	}
	got := map[digest.CID]bool{}
	for q := (UsedBlobs{}); ; {
		a := ask(b, q)
		for _, u := range a.Blobs {
			got[u.Blob.Root] = true
			if u.Class == "" || u.Repo.Name == "" {
				t.Errorf("%+v lacks its class or repository", u)
			}
		}
		if q.After = a.After; q.After.IsZero() {
			break
		}
	}
	if len(got) == 0 || len(got) != len(want) {
		t.Fatalf("%d blobs are used, want %d", len(got), len(want))
	}
	for root := range want {
		if !got[root] {
			t.Errorf("%s is missing", root)
		}
	}
}

func epochOf(b *bench, id meta.NodeID) BeginEpoch {
	n := ask(b, GetNode{ID: id})
	return BeginEpoch{Epoch: 2, Node: n, Sealed: []byte("sealed"), Recovery: meta.Recovery{First: id, Index: b.index}}
}

// TestBeginEpoch: nothing that may have been used up, and no server that is lost,
// comes along; agents follow their cluster and do not follow another.
func TestBeginEpoch(t *testing.T) {
	servers := func(b *bench) (ids []meta.NodeID) {
		for _, n := range ask(b, ListNodes{Role: meta.RoleServer}) {
			ids = append(ids, n.ID)
		}
		return ids
	}
	for _, foreign := range []bool{false, true} {
		t.Run(fmt.Sprint("foreign=", foreign), func(t *testing.T) {
			b := newBench(t)
			b.must(SetLevel{Level: 4})
			before := servers(b)
			first := before[0]
			admit := func(id meta.NodeID, role meta.Role, region meta.RegionName) {
				b.must(CreateJoinToken{Token: meta.JoinToken{ID: "t-" + string(id), Role: role, Region: region, Expires: meta.TimeOf(b.now.Add(time.Hour)), Uses: 2}})
				b.must(AdmitNode{TokenSecretHash: "t-" + string(id), Node: meta.Node{ID: id, Role: role, Region: region, Gateway: string(id) + ":5000"}})
			}
			region := ask(b, GetNode{ID: first}).Region
			admit("lost", meta.RoleServer, "elsewhere")
			admit("agent", meta.RoleAgent, region)
			b.must(HoldBackup{ID: "open", Lease: time.Hour})
			b.must(image("e1"))
			c := epochOf(b, first)
			if foreign {
				c.Foreign, c.ID, c.Root = true, "another", []byte("root")
				c.Node.ID, c.AdminToken = "new", []byte("hash")
			}
			got := b.must(c).Value.(meta.Cluster)
			if got.Epoch != 2 || got.Recovery == nil || len(got.RootKey) != 1 {
				t.Errorf("the cluster is %+v", got)
			}
			if ids := servers(b); len(ids) != 1 || ids[0] != c.Node.ID {
				t.Errorf("servers are %v", ids)
			}
			v, err := b.View()
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			if _, err := (GetNode{ID: "agent"}).Answer(v); (err == nil) == foreign {
				t.Errorf("the agent: %v", err)
			}
			if _, err := (GetJoinToken{ID: "t-lost"}).Answer(v); !errors.Is(err, meta.ErrNotFound) {
				t.Errorf("a join token of the old epoch: %v", err)
			}
			if open := ask(b, OpenBackups{}); len(open) != 0 {
				t.Errorf("holds of the old epoch: %+v", open)
			}
			switch lost := got.Recovery.Lost; {
			case foreign && len(lost) != 0:
				t.Errorf("another cluster has lost %+v", lost)
			case !foreign && (len(lost) != len(before) || !slices.ContainsFunc(lost, func(s meta.LostServer) bool { return s.ID == "lost" && s.Gateway == "lost:5000" })):
				t.Errorf("lost are %+v", lost)
			}
			if s := ask(b, NextSettlement{}); !s.Links {
				t.Errorf("to be settled is %+v", s)
			}
			b.refuse(c, meta.ErrConflict)
			check(b)
		})
	}
}

// TestAnEpochBeginsUndrained: the one server holds the copies, whatever was to become of
// it and its region before.
func TestAnEpochBeginsUndrained(t *testing.T) {
	for _, before := range []Command{DrainServer{ID: "eu-1", Drain: true}, LeaveRegion{Name: "eu", Leave: true}} {
		b := newDrainBench(t)
		b.must(image("m1"))
		b.must(before)
		settle(b, maxSettled)
		c := epochOf(b, "eu-1")
		c.Node.Draining = nil
		b.must(c)
		settle(b, maxSettled)
		if got := states(b, "m1"); got != "eu=verified eu-1=verified us=pending" {
			t.Errorf("after %s copies are %q", Name(before), got)
		}
		if left := b.remains("eu-1"); left.Draining != nil || left.Last+left.Short > 0 {
			t.Errorf("after %s remains are %+v", Name(before), left)
		}
		check(b)
	}
}
