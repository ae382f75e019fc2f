package state

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestNothingBeforeBootstrap(t *testing.T) {
	b := &bench{TB: t, Machine: openMachine(t, t.TempDir())}
	b.must(Tick{})
	b.refuse(CreateTenant{Name: "acme"}, meta.ErrConflict, "not bootstrapped")
	first := Bootstrap{Cluster: meta.Cluster{ID: "c1"}, Node: server("s", "eu"), Region: meta.Region{Name: "eu"}}
	b.must(first)
	b.must(first)
	if got := ask(b, GetCluster{}); got.Level != 1 {
		t.Errorf("cluster is %+v", got)
	}
	first.Cluster.ID = "c2"
	b.refuse(first, meta.ErrExists)
	b.must(CreateTenant{Name: "acme"})
	check(b)
}

func TestRepositories(t *testing.T) {
	b := newBench(t)
	b.must(CreateRepository{Repository: app()})
	other := app()
	other.Class = meta.ClassCold
	b.refuse(CreateRepository{Repository: other}, meta.ErrExists, "shoal repo set")
	lost := app()
	lost.Ref.Tenant = "globex"
	b.refuse(CreateRepository{Repository: lost}, meta.ErrNotFound, "tenant globex")
	lost.Home = "mars"
	b.refuse(CreateRepository{Repository: lost, CreateTenant: true}, meta.ErrInvalid, "mars")
	missing(b, GetTenant{Name: "globex"})
	b.refuse(CreateTenant{Name: meta.PublicContext}, meta.ErrInvalid)

	b.must(CreateTenant{Name: "abc"})
	for _, name := range []string{"z", "b"} {
		r := app()
		r.Ref = meta.RepoRef{Tenant: "abc", Name: name}
		b.must(CreateRepository{Repository: r})
	}
	var got []string
	for page := (Page{Limit: 1}); ; {
		list := ask(b, ListRepositories{Page: page})
		if len(list) == 0 {
			break
		}
		got = append(got, list[0].Ref.String())
		page.After = list[0].Ref.String()
	}
	if len(got) != 3 || got[0] != "abc/b" || got[1] != "abc/z" || got[2] != "acme/app" {
		t.Errorf("repositories are %v", got)
	}
	if got := ask(b, ListRepositories{Tenant: "abc", Page: Page{After: "abc/b"}}); len(got) != 1 || got[0].Ref.Name != "z" {
		t.Errorf("of abc behind b: %+v", got)
	}

	bad := meta.Class("hot")
	b.refuse(SetRepository{Ref: appRef, Class: &bad}, meta.ErrInvalid, "hot")
	home := meta.RegionName("us")
	b.refuse(SetRepository{Ref: appRef, Home: &home}, meta.ErrInvalid, "second")
	b.must(image("m1"))
	b.refuse(RemoveRepository{Ref: appRef}, meta.ErrConflict, "versions")
	b.refuse(RemoveRepository{Ref: meta.RepoRef{Tenant: "acme", Name: "none"}}, meta.ErrNotFound)
}

func TestJoinTokens(t *testing.T) {
	b := newBench(t)
	agent := func(id meta.NodeID) meta.Node {
		return meta.Node{ID: id, Role: meta.RoleAgent, Region: "eu", Read: []string{"*"}}
	}
	token := meta.JoinToken{ID: "t1", Role: meta.RoleAgent, Region: "eu", Uses: 1, Expires: meta.TimeOf(b.now.Add(time.Minute)), Read: []string{"acme/*"}}
	b.must(CreateJoinToken{Token: token})
	b.refuse(CreateJoinToken{Token: token}, meta.ErrExists)
	b.refuse(AdmitNode{TokenSecretHash: "t2", Node: agent("a1")}, meta.ErrDenied, "unknown", "shoal token join")
	b.refuse(AdmitNode{TokenSecretHash: "t1", Node: server("s9", "eu")}, meta.ErrDenied, "agent")
	r := b.must(AdmitNode{TokenSecretHash: "t1", Node: agent("a1")})
	if got := r.Value.(meta.Node); len(got.Read) != 1 || got.Read[0] != "acme/*" {
		t.Errorf("admitted with the patterns it asked for: %+v", got)
	}
	b.must(AdmitNode{TokenSecretHash: "t1", Node: agent("a1")}) // It joins again.
	b.refuse(AdmitNode{TokenSecretHash: "t1", Node: agent("a2")}, meta.ErrDenied, "used up")

	moved := agent("a1")
	moved.Swarm, moved.Region, moved.Read, moved.Seal = []string{"/ip4/10.0.0.9/tcp/1"}, "us", []string{"*"}, "mine"
	b.must(UpdateNode{Node: moved})
	if got := ask(b, GetNode{ID: "a1"}); got.Region != "eu" || got.Read[0] != "acme/*" || got.Seal != "" || len(got.Swarm) != 1 {
		t.Errorf("by its own word it is %+v", got)
	}
	b.now = b.now.Add(2 * time.Minute)
	b.refuse(AdmitNode{TokenSecretHash: "t1", Node: agent("a1")}, meta.ErrDenied, "expired")
	token.ID, token.Expires = "t3", meta.TimeOf(b.now.Add(time.Minute))
	b.must(CreateJoinToken{Token: token})
	missing(b, GetJoinToken{ID: "t1"})
}

func TestRoster(t *testing.T) {
	b := newBench(t)
	if got := ask(b, ListNodes{Role: meta.RoleServer, Region: "eu"}); len(got) != 2 {
		t.Errorf("servers of eu are %+v", got)
	}
	token := meta.JoinToken{ID: "agents", Role: meta.RoleAgent, Region: "eu", Uses: 3, Expires: meta.TimeOf(b.now.Add(time.Hour))}
	b.must(CreateJoinToken{Token: token})
	for _, id := range []meta.NodeID{"b", "f", "a"} {
		b.must(AdmitNode{TokenSecretHash: "agents", Node: meta.Node{ID: id, Role: meta.RoleAgent, Region: "eu"}})
	}
	for _, test := range []struct {
		q    ListNodes
		want string
	}{
		{ListNodes{}, "a ap-1 b eu-1 eu-2 f us-1"},
		{ListNodes{Page: Page{After: "b", Limit: 2}}, "eu-1 eu-2"},
		{ListNodes{Role: meta.RoleServer}, "ap-1 eu-1 eu-2 us-1"},
		{ListNodes{Role: meta.RoleServer, Page: Page{After: "eu-1"}}, "eu-2 us-1"},
		{ListNodes{Role: meta.RoleServer, Page: Page{After: "eu-1x", Limit: 1}}, "eu-2"},
		{ListNodes{Role: meta.RoleServer, Region: "us"}, "us-1"},
		{ListNodes{Region: "eu"}, "a b eu-1 eu-2 f"},
		{ListNodes{Role: meta.RoleAgent, Region: "eu", Page: Page{After: "a"}}, "b f"},
		{ListNodes{Region: "mars"}, ""},
	} {
		var got []string
		for _, n := range ask(b, test.q) {
			got = append(got, string(n.ID))
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%+v lists %v, want %s", test.q, got, test.want)
		}
	}
	if got := ask(b, ListRegions{}); len(got) != 3 || !got[2].Primary {
		t.Errorf("regions are %+v", got)
	}
	b.must(SealRootKey{Node: "us-1", Sealed: []byte("sealed")})
	b.must(RemoveNode{ID: "us-1"})
	if got := ask(b, GetCluster{}); len(got.RootKey) != 0 {
		t.Errorf("a removed server keeps its sealed key: %+v", got)
	}
	b.refuse(SealRootKey{Node: "us-1", Sealed: []byte("sealed")}, meta.ErrNotFound)
	b.must(RemoveNode{ID: "eu-1"})
	b.must(RemoveNode{ID: "ap-1"})
	b.refuse(RemoveNode{ID: "eu-2"}, meta.ErrConflict, "last server")
	b.must(PutRegion{Region: meta.Region{Name: "us"}})
	check(b)
}

func TestLevels(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	b.refuse(SetLevel{Level: Level + 1}, meta.ErrInvalid)
	if err := CheckLevel(CreateTenant{}, 0); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("a command above the level: %v", err)
	}
}

func TestRepeatedRequest(t *testing.T) {
	b := newBench(t)
	o := Origin{RequestID: "r1", Principal: "user:ada", Time: meta.TimeOf(b.now)}
	first := b.doAs(o, tagged(image("m1"), "latest"))
	b.must(tagged(image("m2"), "latest"))
	again := b.doAs(o, tagged(image("m1"), "latest"))
	if again.Index != first.Index || again.Value != first.Value || again.Err != nil {
		t.Errorf("repeated: %+v, first: %+v", again, first)
	}
	if got := ask(b, Resolve{Repo: appRef, Package: "api", Alias: "latest"}); got.Version.Digest != blob("m2").Digest {
		t.Error("the repeated request moved the alias back")
	}
	o.RequestID = "r2"
	refused := b.doAs(o, image("m3", "lost"))
	b.must(link("lost", "eu-1"))
	if again := b.doAs(o, image("m3", "lost")); again.Err == nil || again.Err.Error() != refused.Err.Error() || !errors.Is(again.Err, meta.ErrInvalid) {
		t.Errorf("the refusal was not repeated: %v", again.Err)
	}
	if other := b.doAs(o, CreateTenant{Name: "x"}); !errors.Is(other.Err, meta.ErrConflict) {
		t.Errorf("another command under the id: %v", other.Err)
	}
}

func TestRequestsAreForgottenInOrder(t *testing.T) {
	b := newBench(t)
	// As if the window were full but for one.
	batch := b.db.NewBatch()
	set := func(k key, v []byte) {
		if err := batch.Set(k, v, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i, id := range []string{"old0", "old1"} {
		set(keyWindow(uint64(i)), []byte(id))
		set(keyRequest(id), Result{Index: 1, Type: typeTick}.Encode())
	}
	set(keyRequests, mustMarshal(t, window{First: 0, Next: keepRequests - 1}))
	if err := batch.Commit(nil); err != nil {
		t.Fatal(err)
	}
	known := func(id string) bool {
		v, err := b.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		record, err := v.get(keyRequest(id))
		if err != nil {
			t.Fatal(err)
		}
		return record != nil
	}
	b.doAs(Origin{RequestID: "new0"}, Tick{})
	if !known("old0") || !known("new0") {
		t.Error("forgotten before the window was full")
	}
	b.doAs(Origin{RequestID: "new1"}, Tick{})
	if known("old0") || !known("old1") || !known("new1") {
		t.Error("not the oldest was forgotten")
	}
}

func TestFeed(t *testing.T) {
	b := newBench(t)
	from := b.index
	b.must(link("layer", "eu-1"))
	b.must(tagged(image("m1", "layer"), "1", "latest"))
	changes, upTo, err := b.Changes(from, 100)
	if err != nil || upTo != b.index {
		t.Fatalf("up to %d: %v", upTo, err)
	}
	count := map[feed.Kind]int{}
	for i, c := range changes {
		count[c.Kind]++
		if c.Index != b.index || c.Seq != uint32(i) {
			t.Errorf("change %d is at %d.%d", i, c.Index, c.Seq)
		}
	}
	if count[feed.KindVersion] != 1 || count[feed.KindAlias] != 2 || count[feed.KindDemand] != 2 || len(changes) != 5 {
		t.Errorf("changes are %+v", changes)
	}
	// A page never ends within an index.
	if page, upTo, err := b.Changes(0, 1); err != nil || upTo != page[0].Index || len(page) < 2 {
		t.Errorf("the first page is %+v up to %d: %v", page, upTo, err)
	}
}

func TestFeedIsTrimmed(t *testing.T) {
	b := newBench(t)
	for _, jump := range []uint64{feedStep, keepFeed, keepFeed + feedStep, 2 * keepFeed} {
		b.index = jump
		b.must(CreateTenant{Name: meta.TenantName("t" + string(rune('a'+jump/feedStep%26)))})
	}
	floor := uint64(keepFeed)
	if _, _, err := b.Changes(floor-1, 10); !errors.Is(err, feed.ErrCompacted) {
		t.Errorf("below the floor: %v", err)
	}
	changes, _, err := b.Changes(floor, 10)
	if err != nil || len(changes) == 0 || changes[0].Index != keepFeed+1 {
		t.Errorf("from the floor: %+v, %v", changes, err)
	}
}

func TestFollowWakes(t *testing.T) {
	b := newBench(t)
	var got []string
	for c, err := range feed.Follow(t.Context(), b, b.index) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, c.Kind.String()+" "+c.Name)
		if len(got) == 1 {
			// It has caught up and will wait.
			go b.do(CreateTenant{Name: "new"})
		}
		if len(got) == 3 {
			break
		}
	}
	if strings.Join(got, ", ") != "progress , tenant new, progress " {
		t.Errorf("followed %q", got)
	}
}
