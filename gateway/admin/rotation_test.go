package admin_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// A join token for a region that has no server would leave a host without one: that is
// said when it is made.
func TestJoinTokensOfRegions(t *testing.T) {
	f, ctx := start(t), t.Context()
	_, err := f.CreateJoinToken(ctx, client.NewJoinToken{Role: meta.RoleAgent, Region: "mars"})
	if !errors.Is(err, meta.ErrNotFound) || !strings.Contains(err.Error(), "eu") || !strings.Contains(err.Error(), "--role server --region mars") {
		t.Errorf("an unknown region: %v", err)
	}
	// The first server of a region begins it.
	must[client.JoinToken](t)(f.CreateJoinToken(ctx, client.NewJoinToken{Role: meta.RoleServer, Region: "mars"}))
}

func TestJoinTokensAreListedAndRevoked(t *testing.T) {
	f, ctx := start(t), t.Context()
	one := must[client.JoinToken](t)(f.CreateJoinToken(ctx, client.NewJoinToken{Role: meta.RoleAgent, Region: "eu", Uses: 3}))
	two := must[client.JoinToken](t)(f.CreateJoinToken(ctx, client.NewJoinToken{Role: meta.RoleAgent, Region: "eu"}))
	list := func() map[string]uint64 {
		left := map[string]uint64{}
		for token, err := range f.JoinTokens(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			left[token.ID] = token.Uses
		}
		return left
	}
	if left := list(); left[one.ID] != 3 || left[two.ID] != 1 {
		t.Fatalf("%v", left)
	}
	for _, bad := range []string{"00", "ffffffffffffffff", "not-hex-at-all"} {
		if err := f.RevokeJoinToken(ctx, bad); !errors.Is(err, meta.ErrInvalid) && !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if err := f.RevokeJoinToken(ctx, one.ID[:8]); err != nil {
		t.Fatal(err)
	}
	if left := list(); len(left) != 1 || left[two.ID] != 1 {
		t.Fatalf("%v", left)
	}
}
