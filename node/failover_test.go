package node

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// someNodes is a roster.
type someNodes []meta.Node

func (s someNodes) Nodes(region meta.RegionName, role meta.Role) []meta.Node {
	return slices.DeleteFunc(slices.Clone(s), func(n meta.Node) bool {
		return role != "" && n.Role != role || region != "" && n.Region != region
	})
}

// TestNearness: the shortest of late counts, regions that are gone do not, the own is
// not measured, and one that does not answer is as far as it was.
func TestNearness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		takes := map[string]time.Duration{"us:1": 80 * time.Millisecond, "ap:1": 30 * time.Millisecond}
		n := newNearness(someNodes{
			{ID: "e", Role: meta.RoleServer, Region: "eu", Gateway: "eu:1"},
			{ID: "u", Role: meta.RoleServer, Region: "us", Gateway: "us:1"},
			{ID: "a", Role: meta.RoleServer, Region: "ap", Gateway: "ap:1"},
			{ID: "x", Role: meta.RoleAgent, Region: "sa", Gateway: "sa:1"},
		}, meta.Node{ID: "self", Region: "eu"})
		n.dial = func(ctx context.Context, _, address string) (net.Conn, error) {
			d, ok := takes[address]
			if !ok {
				return nil, fmt.Errorf("%s was dialled", address)
			}
			select {
			case <-time.After(d):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			in, out := net.Pipe()
			out.Close()
			return in, nil
		}
		check := func(when string, us, ap time.Duration) {
			t.Helper()
			if n.to("us") != us || n.to("ap") != ap || n.to("eu") != 0 || n.to("sa") != 0 {
				t.Errorf("%s: us %v, ap %v, eu %v, sa %v", when, n.to("us"), n.to("ap"), n.to("eu"), n.to("sa"))
			}
		}
		check("at first", 0, 0)
		n.measure(t.Context())
		check("once", 80*time.Millisecond, 30*time.Millisecond)
		takes["us:1"], takes["ap:1"] = 300*time.Millisecond, time.Hour
		n.measure(t.Context())
		check("with a busy one and a silent one", 80*time.Millisecond, 30*time.Millisecond)
		for range len(trips{}.last) {
			n.measure(t.Context())
		}
		check("after it has stayed busy", 300*time.Millisecond, 30*time.Millisecond)
		n.nodes = someNodes{{ID: "u", Role: meta.RoleServer, Region: "us", Gateway: "us:1"}}
		n.measure(t.Context())
		check("after ap has gone", 300*time.Millisecond, 0)
	})
}

// TestHoldersThatDoNotServeAreLeftOut, while others are left.
func TestHoldersThatDoNotServeAreLeftOut(t *testing.T) {
	store := metatest.New(t)
	ref := meta.RepoRef{Tenant: "acme", Name: "app"}
	store.Must(state.CreateRepository{CreateTenant: true, Repository: meta.Repository{
		Ref: ref, Format: "generic", Kind: meta.KindHosted, Class: meta.ClassCold, Home: "eu", Visibility: meta.VisibilityPublic,
	}})
	store.Admit(meta.Node{ID: "s2", Role: meta.RoleServer, Region: "eu", Gateway: "127.0.0.1:5001"})
	content := []byte("x")
	root := digest.Sum(content)
	store.Must(state.LinkBlob{Repo: ref, Digest: digest.FromBytes(content), Server: "s1", Blob: meta.Blob{
		Context: "acme", Digest: digest.FromBytes(content), PlainBytes: 1, StoredBytes: 1, Root: root,
	}})
	store.Must(state.ReportReplicas{Replicas: []meta.Replica{{Root: root, Server: "s2", State: meta.ReplicaVerified}}})
	lame := map[meta.NodeID]bool{}
	itself := func(id meta.NodeID) []meta.NodeID { return []meta.NodeID{id} }
	h := holders{metadata: store, serves: func(id meta.NodeID) bool { return !lame[id] }, behind: itself}
	for _, c := range []struct{ lame, want string }{{"", "s1 s2"}, {"s1", "s2"}, {"s1 s2", "s1 s2"}} {
		clear(lame)
		for _, id := range strings.Fields(c.lame) {
			lame[meta.NodeID(id)] = true
		}
		got, err := h.Holders(t.Context(), root)
		if err != nil || strings.Trim(fmt.Sprint(got), "[]") != c.want {
			t.Errorf("with %q lame: %v, %v, want %s", c.lame, got, err, c.want)
		}
	}
}
