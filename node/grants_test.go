package node

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/metatest"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
	"github.com/shoal-registry/shoal/verify/trust"
)

// known is a roster of what it holds.
type known map[meta.NodeID]meta.Node

func (k known) Node(id meta.NodeID) (meta.Node, bool)              { n, ok := k[id]; return n, ok }
func (k known) Nodes(meta.RegionName, meta.Role) (all []meta.Node) { return nil }

// revision is a Head at a revision.
type revision uint64

func (r *revision) Revision() uint64 { return uint64(*r) }
func (*revision) Age() time.Duration { return 0 }
func (*revision) Reachable() bool    { return true }

// A narrowed node gets grants for what is its tenants' and what is public, and cannot
// tell what is forbidden from what is not there.
func TestGranterKeepsToTenants(t *testing.T) {
	s := metatest.New(t)
	key, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	id := func() meta.NodeID {
		k, err := trust.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		return k.ID()
	}
	narrow, wide := meta.Node{ID: id(), Role: meta.RoleAgent, Tenants: []string{"acme"}}, meta.Node{ID: id(), Role: meta.RoleAgent}
	roster := known{narrow.ID: narrow, wide.ID: wide}
	head := revision(7)
	g := granter{
		metadata: s, roster: roster, head: &head, key: key, cluster: "test", log: slog.New(slog.DiscardHandler),
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "refused"}),
	}
	put := func(tenant meta.TenantName, visibility meta.Visibility, content string) digest.CID {
		ref := meta.RepoRef{Tenant: tenant, Name: string(visibility)}
		_, _ = s.Do(t.Context(), state.Origin{}, state.CreateTenant{Name: tenant})
		_, _ = s.Do(t.Context(), state.Origin{}, state.CreateRepository{Repository: meta.Repository{
			Ref: ref, Format: "generic", Kind: meta.KindHosted, Class: meta.ClassStandard, Home: "eu", Visibility: visibility,
		}})
		root := digest.Sum([]byte(content))
		s.Must(state.LinkBlob{Repo: ref, Server: "s1", Blob: meta.Blob{
			Context: string(tenant), Digest: digest.FromBytes([]byte(content)), PlainBytes: 1, StoredBytes: 1, Root: root,
		}})
		return root
	}
	mine, theirs := put("acme", meta.VisibilityPrivate, "mine"), put("other", meta.VisibilityPrivate, "theirs")
	open := put("other", meta.VisibilityPublic, "open")
	absent := digest.Sum([]byte("absent"))
	for _, test := range []struct {
		node    meta.Node
		root    digest.CID
		context string // "" is refused
		public  bool
	}{
		{narrow, mine, "acme", false}, {narrow, theirs, "", false}, {narrow, open, "other", true}, {narrow, absent, "", false},
		{wide, mine, "acme", false}, {wide, theirs, "other", false}, {wide, absent, "", false},
	} {
		signed, _, err := g.Grant(t.Context(), test.node.ID, test.root)
		if test.context == "" {
			if !errors.Is(err, meta.ErrNotFound) || signed != nil {
				t.Errorf("%v of %s: %v", test.node.Tenants, test.root, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := trust.OpenGrant("test", signed)
		if err != nil || got.Context != test.context || got.Public != test.public || got.Revision != 7 || got.Peer != test.node.ID {
			t.Errorf("%v of %s: %+v %v", test.node.Tenants, test.root, got, err)
		}
	}
	if n := testutil.ToFloat64(g.refused); n != 1 {
		t.Errorf("%v refusals counted, want 1", n)
	}
	if _, _, err := g.Grant(t.Context(), id(), mine); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a node that is not in the roster: %v", err)
	}
}

func TestRevisionFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		head := revision(3)
		f := &revisionFloor{head: &head, after: 10 * time.Second}
		expect := func(want uint64) {
			t.Helper()
			if got := f.revision(); got != want {
				t.Errorf("%d, want %d", got, want)
			}
		}
		expect(3)
		head = 5
		expect(3)
		time.Sleep(6 * time.Second)
		head = 8
		expect(3)
		time.Sleep(4 * time.Second)
		expect(5)
		time.Sleep(6*time.Second - 1)
		expect(5)
		time.Sleep(time.Nanosecond)
		expect(8)
		for i := range 1000 { // however often rights are taken back
			head = revision(10 + i)
			f.revision()
		}
		if len(f.known) > maxKnownRevisions {
			t.Errorf("%d revisions are kept", len(f.known))
		}
		time.Sleep(10 * time.Second)
		f.revision()
		time.Sleep(10 * time.Second)
		expect(1009)
	})
}
