package consensus

import (
	"reflect"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestPlanMembers(t *testing.T) {
	servers := func(ids ...string) (out []raft.Server) {
		for _, id := range ids {
			out = append(out, raft.Server{ID: raft.ServerID(id)})
		}
		return out
	}
	nodes := func(ids ...meta.NodeID) (out []meta.Node) {
		for _, id := range ids {
			out = append(out, meta.Node{ID: id})
		}
		return out
	}
	for name, tc := range map[string]struct {
		configured []raft.Server
		roster     []meta.Node
		want       members
	}{
		"as it should be":     {servers("a", "b"), nodes("b", "a"), members{}},
		"not yet founded":     {servers("a"), nil, members{}},
		"joined":              {servers("a"), nodes("c", "a", "b"), members{Add: []meta.NodeID{"b", "c"}}},
		"removed":             {servers("c", "a", "b"), nodes("a"), members{Remove: []meta.NodeID{"b", "c"}}},
		"replaced":            {servers("a", "b"), nodes("a", "c"), members{Add: []meta.NodeID{"c"}, Remove: []meta.NodeID{"b"}}},
		"the leader must go":  {servers("a", "b"), nodes("b"), members{Leave: true}},
		"and never by itself": {servers("a"), nodes("b"), members{Add: []meta.NodeID{"b"}, Leave: true}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := planMembers(tc.configured, tc.roster, "a"); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}
