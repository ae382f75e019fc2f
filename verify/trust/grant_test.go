package trust

import (
	"errors"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// What the roster and the revocation head say of a grant counts for those that are out.
func TestGrantsFollowTheRoster(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	server, peer := must(NewKey()), must(NewKey())
	root := digest.Sum([]byte("root"))
	sign := func(context string, public bool, revision uint64) []byte {
		return must(server.SignGrant("prod", Grant{
			Peer: peer.ID(), Context: context, Root: root, Expires: meta.TimeOf(now.Add(GrantLife)), Public: public, Revision: revision,
		}))
	}
	tenant, revised := meta.TenantName("acme"), uint64(5)
	c := Checker{
		Cluster: "prod", IsServer: func(id meta.NodeID) bool { return id == server.ID() },
		MayHold: func(id meta.NodeID, t meta.TenantName) bool { return id == peer.ID() && t == tenant },
		Revised: func() uint64 { return revised },
	}
	for _, test := range []struct {
		name   string
		grant  []byte
		reason string
	}{
		{"its tenant's", sign("acme", false, 1), ""},
		{"another tenant's", sign("other", false, 9), GrantTenant},
		{"another tenant's, public", sign("other", true, 5), ""},
		{"public before rights were taken back", sign("other", true, 4), GrantRevoked},
		{"of the public context", sign(meta.PublicContext, false, 0), ""},
		{"nothing", nil, GrantMissing},
		{"noise", []byte("noise"), GrantMalformed},
		{"of another cluster", must(server.SignGrant("dev", Grant{Peer: peer.ID(), Root: root, Expires: 1})), GrantForged},
	} {
		err := c.Check(test.grant, peer.ID(), root, now)
		var denied *GrantError
		switch {
		case test.reason == "" && err != nil, test.reason != "" && !errors.As(err, &denied), denied != nil && denied.Reason != test.reason:
			t.Errorf("%s: %v", test.name, err)
		case err != nil && !errors.Is(err, meta.ErrDenied):
			t.Errorf("%s is not denied: %v", test.name, err)
		}
	}
	tenant = "moved"
	if err := c.Check(sign("acme", false, 9), peer.ID(), root, now); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a narrowed node keeps its grant: %v", err)
	}
}
