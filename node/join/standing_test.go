package join_test

import (
	"errors"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/node/join"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// A node learns whether it still belongs, and only who holds its key does.
func TestStanding(t *testing.T) {
	c := begin(t, time.Now())
	key, root := c.key(), c.authority.Root().Hash()
	agent := meta.Node{ID: key.ID(), Role: meta.RoleAgent, Region: "eu"}
	standing := func(want bool) {
		t.Helper()
		if got, err := join.Standing(t.Context(), c.url, root, key); err != nil || got != want {
			t.Errorf("standing is %v, want %v: %v", got, want, err)
		}
	}
	standing(false)
	if _, err := join.Enter(t.Context(), c.url, c.token(meta.RoleAgent, "eu"), key, join.Request{Node: agent}); err != nil {
		t.Fatal(err)
	}
	standing(true)
	c.do(state.RemoveNode{ID: agent.ID})
	standing(false)
	if _, err := join.Standing(t.Context(), "https://127.0.0.1:1", root, key); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("of a server that is not there: %v", err)
	}
}

// A server whose build is older than the cluster does not get in.
func TestOldBuildsDoNotJoin(t *testing.T) {
	c := begin(t, time.Now())
	c.do(state.SetLevel{Level: state.Level})
	key := c.key()
	record := meta.Node{ID: key.ID(), Role: meta.RoleServer, Region: "eu", Seal: key.Recipient()}
	token := c.token(meta.RoleServer, "eu")
	for _, old := range []uint32{0, state.Level - 1} {
		if _, err := join.Enter(t.Context(), c.url, token, key, join.Request{Node: record, Level: old}); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("a build of level %d: %v", old, err)
		}
	}
	if _, err := join.Enter(t.Context(), c.url, token, key, join.Request{Node: record, Level: state.Level}); err != nil {
		t.Errorf("the token is not spent: %v", err)
	}
}
