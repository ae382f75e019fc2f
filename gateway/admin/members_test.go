package admin_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// commit makes changes that the API has no calls for.
func (f fixture) commit(t *testing.T, commands ...state.Command) {
	t.Helper()
	for _, c := range commands {
		f.do(t, c)
	}
}

// settle does what the leader does until everything is settled.
func (f fixture) settle(t *testing.T) {
	t.Helper()
	for {
		next, _, err := raftmeta.Ask(t.Context(), f.meta, meta.Local, state.NextSettlement{})
		if errors.Is(err, meta.ErrNotFound) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		f.commit(t, state.SettleDemands{Since: next.Since, After: next.After, Limit: 100})
	}
}

// hold gives the region ap an agent and a server, which has the only copy of a blob of
// a repository that is at home there.
func hold(t *testing.T, f fixture) (meta.RepoRef, meta.Blob) {
	t.Helper()
	admit(t, f, "agent-1", meta.RoleAgent, "ap")
	admit(t, f, "server-2", meta.RoleServer, "ap")
	last, d := meta.RepoRef{Tenant: "acme", Name: "last"}, digest.FromBytes([]byte("last"))
	blob := meta.Blob{Context: "acme", Digest: d, PlainBytes: 4, StoredBytes: 4, Root: digest.Sum([]byte("last"))}
	f.commit(t,
		state.CreateRepository{CreateTenant: true, Repository: meta.Repository{
			Ref: last, Format: "generic", Kind: meta.KindHosted, Class: meta.ClassCold, Home: "ap", Visibility: meta.VisibilityPublic,
		}},
		state.LinkBlob{Repo: last, Digest: d, Server: "server-2", Blob: blob},
	)
	f.settle(t)
	return last, blob
}

func TestServersAreDrained(t *testing.T) {
	f, ctx := start(t), t.Context()
	_, blob := hold(t, f)
	find := func() client.ServerState {
		t.Helper()
		all := must[[]client.ServerState](t)(f.Servers(ctx))
		i := slices.IndexFunc(all, func(s client.ServerState) bool { return s.ID == "server-2" })
		if len(all) != 2 || i < 0 {
			t.Fatalf("%+v", all)
		}
		if me := all[1-i]; !me.Voter || !me.Leader || !me.Answers || me.Level != state.Level+1 || me.Draining != nil {
			t.Errorf("%+v", me)
		}
		return all[i]
	}
	if s := find(); s.Draining != nil || s.Voter || s.Answers || s.Remains != nil {
		t.Errorf("%+v", s)
	}
	if _, err := f.DrainServer(ctx, "agent-1", true); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("an agent: %v", err)
	}
	n := must[meta.Node](t)(f.DrainServer(ctx, "server-2", true))
	if n.Draining == nil || n.Draining.By == "" || n.Draining.Since == 0 {
		t.Errorf("%+v", n)
	}
	if s := find(); s.Draining == nil || s.Remains == nil || s.Remains.Counted {
		t.Errorf("%+v", s.Remains)
	}
	if _, err := f.DrainServer(ctx, self, true); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("the last one: %v", err)
	}
	f.settle(t)
	left := must[client.Remains](t)(f.ServerRemains(ctx, "server-2", 5))
	if !left.Counted || left.Last != 1 || left.Short != 0 || left.Removable || len(left.Blobs) != 1 || left.Blobs[0].Digest != blob.Digest || left.Blobs[0].Why != state.RemainsLast {
		t.Errorf("%+v", left)
	}
	err := f.RemoveNode(ctx, "server-2", false)
	if !errors.Is(err, meta.ErrConflict) || !strings.Contains(err.Error(), string(blob.Digest)) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("with the last copy: %v", err)
	}
	// Kept, it is not drained; asked to go at once, it is, and goes when nothing remains.
	if n := must[meta.Node](t)(f.DrainServer(ctx, "server-2", false)); n.Draining != nil {
		t.Errorf("%+v", n)
	}
	if err := f.RemoveNode(ctx, "server-2", false); !errors.Is(err, meta.ErrConflict) || find().Draining == nil {
		t.Errorf("not drained: %v", err)
	}
	f.commit(t, state.ReportReplicas{Replicas: []meta.Replica{{Root: blob.Root, Server: self, State: meta.ReplicaVerified}}})
	f.settle(t)
	// The region ap has nobody else who could hold what is demanded of it; here nothing is.
	if s := find(); !s.Remains.Removable {
		t.Errorf("%+v", s.Remains)
	}
	if err := f.RemoveNode(ctx, "server-2", false); err != nil {
		t.Error(err)
	}
	if err := f.RemoveNode(ctx, "server-2", false); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("again: %v", err)
	}
}

func TestRegionsAreRemoved(t *testing.T) {
	f, ctx := start(t), t.Context()
	last, blob := hold(t, f)
	waits := func(how client.RegionRemoval, words ...string) {
		t.Helper()
		r := must[client.Removed](t)(f.RemoveRegion(ctx, "ap", how))
		if r.Done || len(r.Nodes) != 0 || len(r.Waiting) != len(words) {
			t.Fatalf("%+v", r)
		}
		for i, word := range words {
			if !strings.Contains(r.Waiting[i], word) {
				t.Errorf("waits for %q, not for %q", r.Waiting[i], word)
			}
		}
	}
	if _, err := f.RemoveRegion(ctx, "mars", client.RegionRemoval{}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("no such region: %v", err)
	}
	waits(client.RegionRemoval{}, "acme/last", "counted", "agents")
	f.settle(t)
	waits(client.RegionRemoval{Home: "eu"}, string(blob.Digest), "agents")
	repo, _, err := raftmeta.Ask(ctx, f.meta, meta.Strong, state.GetRepository{Ref: last})
	if err != nil || repo.Home != "eu" {
		t.Errorf("%+v, %v", repo, err)
	}
	i := slices.IndexFunc(must[[]client.Region](t)(f.Regions(ctx)), func(r client.Region) bool {
		return r.Name == "ap" && r.Leaving != 0 && r.Draining == 1
	})
	if i < 0 {
		t.Error("the region is not said to leave")
	}
	// It can be kept, and given up again.
	if r := must[meta.Region](t)(f.KeepRegion(ctx, "ap")); r.Leaving != 0 {
		t.Errorf("%+v", r)
	}
	f.settle(t)
	waits(client.RegionRemoval{Home: "eu"}, "counted", "agents")
	f.settle(t)
	waits(client.RegionRemoval{Home: "eu"}, string(blob.Digest), "agents")
	removed := must[client.Removed](t)(f.RemoveRegion(ctx, "ap", client.RegionRemoval{Agents: true, Force: true}))
	if !removed.Done || !slices.Equal(removed.Nodes, []meta.NodeID{"agent-1", "server-2"}) || len(collect(t, f.Nodes(ctx, "", "ap"))) != 0 {
		t.Errorf("removed %+v", removed)
	}
	for _, r := range must[[]client.Region](t)(f.Regions(ctx)) {
		if r.Name == "ap" {
			t.Errorf("%+v", r)
		}
	}
	// A region without nodes goes at once.
	if r := must[client.Removed](t)(f.RemoveRegion(ctx, "us", client.RegionRemoval{Home: "eu"})); !r.Done {
		t.Errorf("%+v", r)
	}
}

// The servers that stay have to be a majority of the votes: what changes the votes is
// decided by all who have one, and nobody hears who is out of the roster.
func TestVotesStay(t *testing.T) {
	f, ctx := start(t), t.Context()
	for _, id := range []meta.NodeID{"ap-1", "ap-2"} {
		admit(t, f, id, meta.RoleServer, "ap")
	}
	f.votes.others = []meta.NodeID{"ap-1", "ap-2"}
	f.settle(t)
	home := client.RegionRemoval{Home: "eu"}
	must[client.Removed](t)(f.RemoveRegion(ctx, "ap", home))
	f.settle(t)
	// One goes alone, first of all one that is dead; with it dead no other may.
	f.votes.dead = []meta.NodeID{"ap-2"}
	if err := f.RemoveNode(ctx, "ap-1", true); !errors.Is(err, meta.ErrConflict) || !strings.Contains(err.Error(), "1 of 3 voters") {
		t.Errorf("a vote that is needed: %v", err)
	}
	servers := func() (ids []meta.NodeID) {
		for _, n := range collect(t, f.Nodes(ctx, "", "ap")) {
			ids = append(ids, n.ID)
		}
		return ids
	}
	if r := must[client.Removed](t)(f.RemoveRegion(ctx, "ap", home)); r.Done || !slices.Equal(servers(), []meta.NodeID{"ap-1"}) {
		t.Errorf("%+v, %v stay", r, servers())
	}
	f.settle(t)
	// Its vote is there still, then that of the other.
	for _, others := range [][]meta.NodeID{{"ap-1", "ap-2"}, {"ap-1"}} {
		f.votes.others = others
		if r := must[client.Removed](t)(f.RemoveRegion(ctx, "ap", home)); r.Done || len(r.Waiting) != 1 || !strings.Contains(r.Waiting[0], "voters") {
			t.Errorf("with the votes of %v: %+v", others, r)
		}
	}
	f.votes.others = nil
	if r := must[client.Removed](t)(f.RemoveRegion(ctx, "ap", home)); !r.Done || len(servers()) != 0 {
		t.Errorf("%+v, %v stay", r, servers())
	}
}

func TestLevelIsHeld(t *testing.T) {
	f, ctx := start(t), t.Context()
	l := must[client.Level](t)(f.ClusterLevel(ctx))
	if l.Level != state.Level || l.Hold != 0 || l.Next != state.Level+1 || len(l.Waiting) != 0 || len(l.Servers) != 1 {
		t.Errorf("%+v", l)
	}
	if l = must[client.Level](t)(f.HoldLevel(ctx, state.Level)); l.Hold != state.Level || l.Next != state.Level {
		t.Errorf("%+v", l)
	}
	if _, err := f.HoldLevel(ctx, 1); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("a lower one: %v", err)
	}
	if l = must[client.Level](t)(f.HoldLevel(ctx, 0)); l.Hold != 0 {
		t.Errorf("%+v", l)
	}
}
