package state

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// levelFiveRevocations are the commands 120 to 124 in the golden log.
func levelFiveRevocations(l *logWriter) {
	agent := meta.Node{ID: "agent-9", Role: meta.RoleAgent, Region: "eu", Gateway: "a9:5000"}
	token := meta.JoinToken{ID: "narrow", Role: meta.RoleAgent, Region: "eu", Uses: 1, Expires: meta.TimeOf(l.now.Add(time.Hour)), Tenants: []string{"acme", "team-*"}}
	l.add("", CreateJoinToken{Token: token})
	l.add("", AdmitNode{TokenSecretHash: "narrow", Node: agent})
	l.add("", NarrowNode{ID: "agent-9", Tenants: []string{"acme"}})
	l.add("", NarrowNode{ID: "agent-9", Tenants: []string{"acme"}})
	l.add("", NarrowNode{ID: "eu-8", Tenants: []string{"acme"}})
	none := time.Duration(0)
	l.add("", SetRepository{Ref: appRef, DegradedReadMax: &none})
	public, private := meta.VisibilityPublic, meta.VisibilityPrivate
	l.add("", SetRepository{Ref: appRef, Visibility: &public})
	l.add("", SetRepository{Ref: appRef, Visibility: &private})
	l.add("", RevokePrincipal{Principal: "user:ada", Reason: "left the company"})
	l.add("", RevokeTenant{Tenant: "acme", Reason: "drill"})
	l.add("", RevokeTenant{Tenant: "nobody"})
	l.add("", RemoveNode{ID: "agent-9"})
}

func (b *bench) head() meta.AccessHead {
	b.Helper()
	return ask(b, GetAccessHead{})
}

// The revision moves with what takes away, and only with that.
func TestAccessRevision(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	admit := func(id meta.NodeID, tenants ...string) {
		b.must(CreateJoinToken{Token: meta.JoinToken{ID: "of " + string(id), Role: meta.RoleAgent, Region: "eu", Uses: 1, Expires: meta.TimeOf(b.now.Add(time.Hour)), Tenants: tenants}})
		b.must(AdmitNode{TokenSecretHash: "of " + string(id), Node: meta.Node{ID: id, Role: meta.RoleAgent, Region: "eu"}})
	}
	before := b.head().Revision
	admit("a1", "acme")
	b.must(SetRepository{Ref: appRef, Immutable: new(bool)})
	if got := b.head().Revision; got != before {
		t.Fatalf("revision %d after what took nothing away, was %d", got, before)
	}
	if n := ask(b, GetNode{ID: "a1"}); !n.MayHold("acme") || n.MayHold("other") || !n.Narrowed() {
		t.Errorf("admitted as %+v", n)
	}
	public, private := meta.VisibilityPublic, meta.VisibilityPrivate
	b.must(SetRepository{Ref: appRef, Visibility: &public})
	for _, c := range []Command{
		NarrowNode{ID: "a1", Tenants: []string{"team-*"}},
		SetRepository{Ref: appRef, Visibility: &private},
		RevokePrincipal{Principal: "robot:acme/ci"},
		RevokeTenant{Tenant: "acme"},
		RemoveNode{ID: "a1"},
	} {
		b.must(c)
		if got := b.head(); got.Revision != b.index || got.Index != b.index {
			t.Errorf("after %T at %d the head is %+v", c, b.index, got)
		}
	}
	v, err := b.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if until, err := notBefore(v, "robot:acme/ci", "acme"); err != nil || until != meta.TimeOf(b.now) {
		t.Errorf("void until %v: %v", until.Std(), err)
	}
	if until, err := notBefore(v, "user:ada", ""); err != nil || until != 0 {
		t.Errorf("somebody else's is void until %v: %v", until.Std(), err)
	}
	check(b)
}

// Below level 5 nothing of it enters the state, or logs of older builds would lead
// elsewhere.
func TestRightsNeedTheirLevel(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: 4})
	zero := time.Duration(0)
	for _, c := range []Command{
		RevokePrincipal{Principal: "user:ada"}, RevokeTenant{Tenant: "acme"}, NarrowNode{ID: "a1"},
		SetRepository{Ref: appRef, DegradedReadMax: &zero},
		CreateJoinToken{Token: meta.JoinToken{ID: "t", Role: meta.RoleAgent, Region: "eu", Uses: 1, Expires: 1, Tenants: []string{"acme"}}},
	} {
		if err := b.do(c).Err; !errors.Is(err, meta.ErrConflict) {
			t.Errorf("%T at level 4: %v", c, err)
		}
	}
	if h := b.head(); h.Revision != 0 {
		t.Errorf("%+v", h)
	}
}

func TestRevocationsRefused(t *testing.T) {
	for _, c := range []Command{
		RevokePrincipal{Principal: "ada"}, RevokePrincipal{Principal: "node:n1"}, RevokePrincipal{Principal: "host:n1"}, RevokePrincipal{Principal: "admin:bootstrap"},
		RevokeTenant{Tenant: "A"}, NarrowNode{}, NarrowNode{ID: "n", Tenants: []string{"a/b"}}, NarrowNode{ID: "n", Tenants: []string{"-*"}},
		CreateJoinToken{Token: meta.JoinToken{ID: "t", Role: meta.RoleServer, Region: "eu", Uses: 1, Expires: 1, Tenants: []string{"acme"}}},
	} {
		if err := c.Check(); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// A narrowed node may have what its tenants have, and what is public; of the rest it
// hears as of what is not there.
func TestMayHold(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	b.must(CreateTenant{Name: "other"})
	otherRef := meta.RepoRef{Tenant: "other", Name: "app"}
	repo := ask(b, GetRepository{Ref: appRef})
	repo.Ref = otherRef
	b.must(CreateRepository{Repository: repo})
	mine, theirs := blob("same"), blob("same")
	theirs.Context = "other"
	b.must(LinkBlob{Repo: appRef, Blob: mine, Server: "eu-1"})
	b.must(LinkBlob{Repo: otherRef, Blob: theirs, Server: "eu-1"})
	secret := blob("secret")
	secret.Context = "other"
	b.must(LinkBlob{Repo: otherRef, Blob: secret, Server: "eu-1"})

	narrow := meta.Node{ID: "a", Role: meta.RoleAgent, Tenants: []string{"acme"}}
	wide := meta.Node{ID: "w", Role: meta.RoleAgent}
	holding := func(n meta.Node, root string) string {
		h, err := try(b, MayHold{Root: blob(root).Root, Node: n})
		switch {
		case errors.Is(err, meta.ErrNotFound):
			return "absent"
		case err != nil:
			t.Fatal(err)
		case h.Public:
			return "public " + h.Blob.Context
		}
		return h.Blob.Context
	}
	expect := func(n meta.Node, root, want string) {
		t.Helper()
		if got := holding(n, root); got != want {
			t.Errorf("%s may have %s: %s, want %s", n.ID, root, got, want)
		}
	}
	expect(narrow, "same", "acme")
	expect(narrow, "secret", "absent")
	expect(narrow, "nothing", "absent")
	expect(wide, "secret", "other")
	_, forbidden := try(b, MayHold{Root: secret.Root, Node: narrow})
	_, absent := try(b, MayHold{Root: secret.Root, Node: meta.Node{Role: meta.RoleAgent, Tenants: []string{"none"}}})
	if forbidden.Error() != absent.Error() {
		t.Errorf("%v, %v", forbidden, absent)
	}
	public := meta.VisibilityPublic
	b.must(SetRepository{Ref: otherRef, Visibility: &public})
	expect(narrow, "secret", "public other")
	private := meta.VisibilityPrivate
	b.must(SetRepository{Ref: otherRef, Visibility: &private})
	expect(narrow, "secret", "absent")
}

// What a revoked credential brings does not enter the state, whoever admitted it.
func TestRevokedCredentialWritesNothing(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	put := func(id, principal string) {
		b.Helper()
		batch := b.db.NewIndexedBatch()
		tx := newTx(batch, b.index, Origin{Time: meta.TimeOf(b.now)})
		err := tx.addCredential(&meta.Credential{ID: id, Hash: make([]byte, 32), Principal: principal, Kind: meta.CredentialToken, Issued: tx.now, Expires: meta.TimeOf(b.now.Add(time.Hour))})
		if err := errors.Join(err, tx.err, batch.Commit(pebble.NoSync)); err != nil {
			b.Fatal(err)
		}
	}
	put("one", "robot:acme/ci")
	put("two", "robot:acme/ci")
	put("three", "user:ada")
	publish := func(token, principal, name string) error {
		return b.doAs(Origin{Principal: principal, TokenID: token, Time: meta.TimeOf(b.now)}, CreateTenant{Name: meta.TenantName(name)}).Err
	}
	allowed := func(want bool, token, principal, name string) {
		t.Helper()
		if err := publish(token, principal, name); want && err != nil || !want && !errors.Is(err, meta.ErrDenied) {
			t.Errorf("%s with %s: %v", principal, token, err)
		}
	}
	allowed(true, "one", "robot:acme/ci", "a1")
	r := b.must(RevokeCredential{ID: "one"})
	if c, ok := r.Value.(meta.Credential); !ok || c.Revoked == 0 || c.Hash != nil {
		t.Errorf("%+v", r.Value)
	}
	if h := b.head(); h.Revision != b.index {
		t.Errorf("%+v", h)
	}
	b.refuse(RevokeCredential{ID: "none"}, meta.ErrNotFound)
	before := b.head().Revision
	b.must(RevokeCredential{ID: "one"})
	if b.head().Revision != before {
		t.Error("revoked twice, told twice")
	}
	allowed(false, "one", "robot:acme/ci", "a2")
	allowed(true, "two", "robot:acme/ci", "a3")
	allowed(true, "three", "user:ada", "a4")
	b.must(RevokePrincipal{Principal: "robot:acme/ci"})
	allowed(false, "two", "robot:acme/ci", "a5")
	allowed(false, "gone", "robot:acme/ci", "a6")
	allowed(true, "bootstrap", "admin:bootstrap", "a7")
	b.now = b.now.Add(time.Second)
	put("four", "robot:acme/ci")
	allowed(true, "four", "robot:acme/ci", "a8")
	// A removed account's tokens are not there any more; what they bring is refused all
	// the same, also when there is an account of that name again.
	b.must(CreateTenant{Name: "globex"})
	b.must(CreateAccount{Name: "robot:globex/ci"})
	put("five", "robot:globex/ci")
	allowed(true, "five", "robot:globex/ci", "b1")
	b.must(RemoveAccount{Name: "robot:globex/ci"})
	allowed(false, "five", "robot:globex/ci", "b2")
	b.now = b.now.Add(time.Second)
	b.must(CreateAccount{Name: "robot:globex/ci"})
	put("six", "robot:globex/ci")
	allowed(false, "five", "robot:globex/ci", "b3")
	allowed(true, "six", "robot:globex/ci", "b4")
	b.must(RevokeTenant{Tenant: "acme"})
	allowed(false, "four", "robot:acme/ci", "a9")
	allowed(true, "three", "user:ada", "a10")
	for i, void := range []bool{false, true} {
		b.must(BeginEpoch{Epoch: uint64(i + 2), Node: server("eu-1", "eu"), Sealed: []byte("k"), VoidTokens: void})
		allowed(!void, "three", "user:ada", fmt.Sprint("a", i+11))
	}
	allowed(true, "bootstrap", "admin:bootstrap", "a13")
}
