package place

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func root(i int) digest.CID { return digest.Sum(fmt.Appendf(nil, "root %d", i)) }

func servers(n int) []meta.NodeID {
	out := make([]meta.NodeID, n)
	for i := range out {
		out[i] = meta.NodeID(fmt.Sprintf("server-%d", i))
	}
	return out
}

func TestHoldersProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := servers(rapid.IntRange(0, 9).Draw(t, "servers"))
		r := root(rapid.IntRange(0, 1000).Draw(t, "root"))
		copies := rapid.IntRange(0, 4).Draw(t, "copies")
		got := Holders(r, all, copies)
		if len(got) != min(copies, len(all)) {
			t.Fatalf("%d holders of %d copies on %d servers", len(got), copies, len(all))
		}
		// The order in which a server lists its peers does not matter.
		shuffled := rapid.Permutation(all).Draw(t, "shuffled")
		if !slices.Equal(Holders(r, shuffled, copies), got) {
			t.Fatal("the order of the servers matters")
		}
		// Another server leaves: the holders stay, and with one of them gone the
		// others stay and one comes.
		for _, gone := range all {
			left := slices.DeleteFunc(slices.Clone(all), func(s meta.NodeID) bool { return s == gone })
			after := Holders(r, left, copies)
			for _, s := range got {
				if s != gone && !slices.Contains(after, s) {
					t.Fatalf("%s left and %s no longer holds", gone, s)
				}
			}
		}
		if dup := Holders(r, append(slices.Clone(all), all...), copies); !slices.Equal(dup, got) {
			t.Fatal("a name given twice counts twice")
		}
	})
}

// Rendezvous spreads: no server holds much more than its share.
func TestHoldersAreSpread(t *testing.T) {
	const blobs, n = 4000, 5
	count := map[meta.NodeID]int{}
	for i := range blobs {
		for _, s := range Holders(root(i), servers(n), DefaultCopies) {
			count[s]++
		}
	}
	for s, c := range count {
		if share := float64(c) * n / (blobs * DefaultCopies); share < 0.9 || share > 1.1 {
			t.Errorf("%s holds %.2f of its share", s, share)
		}
	}
}

var epoch = time.Unix(1_800_000_000, 0)

func demand(i int, class meta.Class, age time.Duration) meta.Replica {
	return meta.Replica{Root: root(i), Region: "eu", Class: class, Demand: meta.TimeOf(epoch.Add(-age)), State: meta.ReplicaPending}
}

// Each demand is due at exactly its holders; when they do not come, by one more
// server after each stand-in time, in the order of the ranking.
func TestDueProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := servers(rapid.IntRange(1, 6).Draw(t, "servers"))
		copies := rapid.IntRange(1, 3).Draw(t, "copies")
		age := time.Duration(rapid.IntRange(0, 600).Draw(t, "age")) * time.Second
		const standIn = 2 * time.Minute
		d := demand(rapid.IntRange(0, 1000).Draw(t, "root"), meta.ClassStandard, age)
		ranked := Rank(d.Root, all)
		due := min(copies+int(age/standIn), len(all))
		for rank, s := range ranked {
			q := Question{Self: s, Servers: all, Copies: copies, Now: epoch, StandIn: standIn}
			got, is, wake := q.Due(d)
			if is != (rank < due) {
				t.Fatalf("rank %d of %d is due: %v, at age %v", rank, len(all), is, age)
			}
			if is {
				if got.Rank != rank || got.Demand.Root != d.Root || !wake.IsZero() {
					t.Fatalf("rank %d, want %d; wake %v", got.Rank, rank, wake)
				}
				continue
			}
			if !wake.After(epoch) {
				t.Fatalf("wake %v", wake)
			}
			q.Now = wake
			if _, is, _ := q.Due(d); !is {
				t.Fatal("not due when it said so")
			}
			q.StandIn = 0
			if _, is, wake := q.Due(d); is || !wake.IsZero() {
				t.Fatal("stands in though it never should")
			}
			q.Self = "of another region"
			if _, is, wake := q.Due(d); is || !wake.IsZero() {
				t.Fatal("a server of no region makes copies")
			}
		}
	})
}

func TestSources(t *testing.T) {
	copies := []meta.Replica{
		{Region: "us", Server: "u1", State: meta.ReplicaVerified},
		{Region: "us", Server: "u2", State: meta.ReplicaVerified},
		{Region: "ap", Server: "a1", State: meta.ReplicaVerified},
		{Region: "eu", Server: "e1", State: meta.ReplicaVerified},
		{Region: "sa", Server: "s1", State: meta.ReplicaFailed},
		{Region: "af", State: meta.ReplicaVerified}, // a demand, not a copy
		{Region: "zz", Server: "z1", State: meta.ReplicaVerified},
		{Region: "mm", Server: "m1", State: meta.ReplicaVerified},
	}
	rtt := map[meta.RegionName]time.Duration{"us": 90 * time.Millisecond, "ap": 40 * time.Millisecond, "eu": time.Second}
	if got, want := Sources("eu", copies, rtt), []meta.RegionName{"eu", "ap", "us", "mm", "zz"}; !slices.Equal(got, want) {
		t.Errorf("Sources = %v, want %v", got, want)
	}
	if got := Sources("eu", nil, nil); len(got) != 0 {
		t.Errorf("Sources of nothing = %v", got)
	}
}
