package state

import (
	"errors"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func init() { levelFiveParts = append(levelFiveParts, rotations) }

// rotations are the commands 150 to 154 in the golden log.
func rotations(l *logWriter) {
	next := meta.RootHash([]byte("root two"))
	begin := BeginRotation{Root: meta.RootHash(nil), Next: []byte("root two"), Cross: []byte("cross"), Keys: map[meta.NodeID][]byte{"eu-1": []byte("sealed")}}
	l.add("", FinishRotation{Root: next})
	l.add("", BeginRotation{Root: next, Next: begin.Next, Cross: begin.Cross, Keys: begin.Keys})
	l.add("", begin)
	l.add("", begin)
	l.add("", SealNextKey{Node: "us-1", Sealed: []byte("sealed"), Root: next})
	l.add("", ConfirmRoot{Node: "eu-1", Root: next})
	l.add("", ConfirmRoot{Node: "nobody", Root: next})
	l.add("", FinishRotation{Root: next})
	l.add("", FinishRotation{Root: next, Force: true})
	l.add("", ConfirmRoot{Node: "eu-1", Root: next})
	l.add("", CreateJoinToken{Token: meta.JoinToken{ID: "ended", Role: meta.RoleAgent, Region: "eu", Uses: 3, Expires: meta.TimeOf(l.now.Add(time.Hour))}})
	l.add("", RevokeJoinToken{ID: "ended"})
	l.add("", RevokeJoinToken{ID: "ended"})
}

func TestRotation(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: 5})
	servers := []meta.NodeID{"eu-1", "eu-2", "us-1", "ap-1"}
	keys := map[meta.NodeID][]byte{}
	for _, id := range servers {
		keys[id] = []byte("sealed to " + id)
		b.must(SealRootKey{Node: id, Sealed: []byte("old, sealed to " + id)})
	}
	old := ask(b, GetCluster{}).Root
	next := meta.RootHash([]byte("root two"))
	begin := BeginRotation{Root: meta.RootHash(old), Next: []byte("root two"), Cross: []byte("word"), Keys: keys}

	b.refuse(FinishRotation{Root: next}, meta.ErrConflict, "trust rotate")
	b.refuse(SealNextKey{Node: "eu-1", Sealed: []byte("x"), Root: next}, meta.ErrConflict, "trust rotate")
	few := begin
	few.Keys = map[meta.NodeID][]byte{"eu-1": []byte("x")}
	b.refuse(few, meta.ErrConflict, "ap-1")
	stranger := begin
	stranger.Keys = map[meta.NodeID][]byte{"stranger": []byte("x")}
	for id, k := range keys {
		stranger.Keys[id] = k
	}
	b.refuse(stranger, meta.ErrConflict, "stranger")
	elsewhere := begin
	elsewhere.Root = next
	b.refuse(elsewhere, meta.ErrConflict, "another root")

	b.must(begin)
	b.refuse(begin, meta.ErrConflict, "already")
	if trust := ask(b, GetTrust{}); string(trust.Next) != "root two" || len(trust.Keys) != 4 || trust.Started == 0 {
		t.Fatalf("%+v", trust)
	}
	if string(ask(b, GetCluster{}).Root) != string(old) {
		t.Fatal("the old root went at once")
	}

	// A server that joins meanwhile gets both keys; one that leaves has none.
	b.enter("us-2", "us")
	b.must(SealRootKey{Node: "us-2", Sealed: []byte("old")})
	b.must(SealNextKey{Node: "us-2", Sealed: []byte("new"), Root: next})
	b.refuse(SealNextKey{Node: "us-2", Sealed: []byte("new"), Root: meta.RootHash(old)}, meta.ErrConflict)
	b.must(RemoveNode{ID: "ap-1", Force: true})
	if trust := ask(b, GetTrust{}); len(trust.Keys["ap-1"]) > 0 || string(trust.Keys["us-2"]) != "new" {
		t.Fatalf("%+v", trust)
	}

	b.refuse(ConfirmRoot{Node: "stranger", Root: next}, meta.ErrNotFound)
	b.must(ConfirmRoot{Node: "eu-1", Root: meta.RootHash([]byte("root three"))}) // of another: says nothing
	for _, id := range []meta.NodeID{"eu-2", "us-1", "us-2"} {
		b.must(ConfirmRoot{Node: id, Root: next})
	}
	b.refuse(FinishRotation{Root: next}, meta.ErrConflict, "eu-1", "trust show")
	waiting := 0
	for _, h := range ask(b, ListHolders{}) {
		if !h.Has {
			waiting++
		}
	}
	if waiting != 1 {
		t.Fatalf("%d nodes wait", waiting)
	}
	b.must(ConfirmRoot{Node: "eu-1", Root: next})
	b.refuse(FinishRotation{Root: meta.RootHash(old)}, meta.ErrConflict, "another root")
	b.must(FinishRotation{Root: next})
	cluster, trust := ask(b, GetCluster{}), ask(b, GetTrust{})
	if string(cluster.Root) != "root two" || string(cluster.RootKey["us-2"]) != "new" || len(cluster.RootKey) != 4 {
		t.Fatalf("%+v", cluster)
	}
	if len(trust.Next) > 0 || string(trust.Former) != string(old) || string(trust.FormerCross) != "word" || trust.Finished == 0 {
		t.Fatalf("%+v", trust)
	}
	for _, h := range ask(b, ListHolders{}) {
		if h.Has {
			t.Fatal("marks are left")
		}
	}
	// A late word of a node does nothing, and the next replacement begins anew.
	b.must(ConfirmRoot{Node: "eu-1", Root: next})
	b.must(BeginRotation{Root: next, Next: []byte("root three"), Cross: []byte("w"), Keys: cluster.RootKey})
	b.must(FinishRotation{Root: meta.RootHash([]byte("root three")), Force: true})
	if string(ask(b, GetTrust{}).Former) != "root two" {
		t.Fatal("the former root is not the last")
	}
	check(b)
}

func TestRotationLevel(t *testing.T) {
	b := newBench(t)
	b.refuse(BeginRotation{Root: meta.RootHash(nil), Next: []byte("n"), Cross: []byte("c"), Keys: map[meta.NodeID][]byte{"eu-1": []byte("k")}}, meta.ErrConflict, "level 5")
	for _, c := range []Command{BeginRotation{}, SealNextKey{}, ConfirmRoot{Node: "n"}, FinishRotation{}, RevokeJoinToken{}} {
		if err := c.Check(); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%T: %v", c, err)
		}
	}
}

// A new epoch gives a replacement up: its keys were sealed to servers that are gone.
func TestRotationInANewEpoch(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: 5})
	old := ask(b, GetCluster{}).Root
	b.must(BeginRotation{Root: meta.RootHash(old), Next: []byte("root two"), Cross: []byte("word"), Keys: map[meta.NodeID][]byte{"eu-1": []byte("k")}})
	b.must(ConfirmRoot{Node: "eu-1", Root: meta.RootHash([]byte("root two"))})
	b.must(BeginEpoch{Epoch: 2, Node: server("eu-1", "eu"), Sealed: []byte("old key")})
	if trust := ask(b, GetTrust{}); len(trust.Next) > 0 || len(trust.Keys) > 0 {
		t.Fatalf("%+v", trust)
	}
	b.refuse(FinishRotation{Root: meta.RootHash([]byte("root two"))}, meta.ErrConflict)
	check(b)
}

// Finishing takes over the next root's word on the epoch.
func TestRotationSignsTheEpoch(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: 5})
	b.must(BeginEpoch{Epoch: 2, Node: server("eu-1", "eu"), Sealed: []byte("k"), Recovery: meta.Recovery{Statement: []byte("by one")}})
	old := ask(b, GetCluster{}).Root
	next := meta.RootHash([]byte("root two"))
	b.must(BeginRotation{Root: meta.RootHash(old), Next: []byte("root two"), Cross: []byte("w"), Keys: map[meta.NodeID][]byte{"eu-1": []byte("k")}})
	b.must(ConfirmRoot{Node: "eu-1", Root: next})
	b.refuse(FinishRotation{Root: next}, meta.ErrInvalid, "sign the epoch")
	b.must(FinishRotation{Root: next, Statement: []byte("by two")})
	if got := ask(b, GetCluster{}).Recovery.Statement; string(got) != "by two" {
		t.Fatalf("%q", got)
	}
}

func TestJoinTokensEndEarly(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: 5})
	make := func(id string) {
		b.must(CreateJoinToken{Token: meta.JoinToken{ID: id, Role: meta.RoleAgent, Region: "eu", Uses: 2, Expires: meta.TimeOf(b.now.Add(time.Hour))}})
	}
	make("a")
	make("b")
	node := meta.Node{ID: "host", Role: meta.RoleAgent, Region: "eu"}
	b.must(AdmitNode{TokenSecretHash: "a", Node: node})
	var left []uint64
	for _, token := range ask(b, ListJoinTokens{Page: Page{Limit: 100}}) {
		if token.ID == "a" || token.ID == "b" {
			left = append(left, token.Uses)
		}
	}
	if len(left) != 2 || left[0] != 1 || left[1] != 2 {
		t.Fatalf("uses left %v", left)
	}
	b.must(RevokeJoinToken{ID: "a"})
	missing(b, GetJoinToken{ID: "a"})
	node.ID = "other"
	b.refuse(AdmitNode{TokenSecretHash: "a", Node: node}, meta.ErrDenied, "unknown")
}

// TestSealAfterLastKey: the server that seals the next root's key to another may be out
// of the roster by the time its command is applied, and its own key was the only one.
func TestSealAfterLastKey(t *testing.T) {
	trust := meta.Trust{Next: []byte("next"), Cross: []byte("cross")}
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	root := ask(b, GetCluster{}).Root
	b.must(BeginRotation{Next: trust.Next, Cross: trust.Cross, Root: meta.RootHash(root), Keys: map[meta.NodeID][]byte{"eu-1": []byte("sealed")}})
	b.must(DrainServer{ID: "eu-1", Drain: true})
	settle(b, maxSettled)
	b.must(RemoveNode{ID: "eu-1"})
	b.must(SealNextKey{Node: "eu-2", Sealed: []byte("sealed"), Root: meta.RootHash(trust.Next)})
	if got := ask(b, GetTrust{}).Keys; len(got) != 1 || string(got["eu-2"]) != "sealed" {
		t.Errorf("keys are sealed to %v", got)
	}
	check(b)
}
