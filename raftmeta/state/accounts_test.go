package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func init() { levelFiveParts = append(levelFiveParts, accounts) }

// accounts are the commands 100 to 106 in the golden log.
func accounts(l *logWriter) {
	yes, no, note := true, false, "the laptop was lost"
	l.add("", CreateAccount{Name: "user:ada", Note: "Ada"})
	l.add("", CreateAccount{Name: "user:ada"})
	l.add("", CreateAccount{Name: "robot:acme/ci"})
	l.add("", CreateAccount{Name: "robot:nobody/ci"})
	l.add("", SetAccount{Name: "user:ada", Disabled: &yes, Note: &note})
	l.add("", SetAccount{Name: "user:ada", Disabled: &no})
	l.add("", PutRole{Name: "acme/deployer", Actions: []meta.Action{meta.ActionPromote, meta.ActionPull}, Note: "for pipelines"})
	l.add("", AddBinding{Binding: meta.Binding{Principal: "robot:acme/ci", Role: "acme/deployer", Repository: "acme/*", Environment: "dev*", Tenant: "acme", Reason: "builds"}})
	bound := fmt.Sprint("b", len(l.entries))
	l.add("", AddBinding{Binding: meta.Binding{Principal: "robot:acme/ci", Role: "acme/deployer", Repository: "acme/*", Environment: "dev*", Tenant: "acme"}})
	l.add("", AddBinding{Binding: meta.Binding{Principal: "user:ada", Role: "publisher", Repository: "acme/app", Deny: true, Expires: meta.TimeOf(l.now.Add(time.Hour))}})
	l.add("", AddBinding{Binding: meta.Binding{Principal: "ci:acme/gitlab/app", Role: "publisher", Repository: "acme/app"}})
	l.add("", AddBinding{Binding: meta.Binding{Principal: "user:nobody", Role: "reader", Repository: "*"}})
	l.add("", AddBinding{Binding: meta.Binding{Principal: "user:ada", Role: "painter", Repository: "*"}})
	l.add("", AddBinding{Binding: meta.Binding{Principal: "user:ada", Role: "reader", Repository: "*", Expires: 1}})
	l.add("", PutRole{Name: "acme/deployer", Actions: []meta.Action{meta.ActionPull}})
	l.add("", RemoveRole{Name: "acme/deployer"})
	l.add("", RemoveBinding{ID: bound})
	l.add("", RemoveBinding{ID: bound})
	l.add("", RemoveRole{Name: "acme/deployer"})
	l.add("", PutRole{Name: "watcher", Actions: []meta.Action{meta.ActionObserve}})
	l.now = l.now.Add(time.Hour)
	l.add("", AddBinding{Binding: meta.Binding{Principal: "user:ada", Role: "watcher", Repository: "*"}}) // its deny has ended
	l.add("", RemoveAccount{Name: "robot:acme/ci"})
	l.add("", RemoveAccount{Name: "robot:acme/ci"})
}

// bind gives a principal a role, and its account when it has none.
func (b *bench) bind(principal, role, repository string, change ...func(*meta.Binding)) meta.Binding {
	b.Helper()
	if kind, _ := meta.SplitPrincipal(principal); kind != meta.KindCI {
		if r := b.do(CreateAccount{Name: principal}); r.Err != nil && !errors.Is(r.Err, meta.ErrConflict) {
			b.Fatal(r.Err)
		}
	}
	binding := meta.Binding{Principal: principal, Role: role, Repository: repository}
	for _, f := range change {
		f(&binding)
	}
	return b.must(AddBinding{Binding: binding}).Value.(meta.Binding)
}

func TestAccounts(t *testing.T) {
	b := newBench(t)
	b.refuse(CreateAccount{Name: "user:ada"}, meta.ErrConflict, "level 5")
	b.must(SetLevel{Level: Level})
	a := b.must(CreateAccount{Name: "user:ada", Note: "Ada"}).Value.(meta.Account)
	if a.Created == 0 || a.CreatedBy != "user:ada" || a.Note != "Ada" {
		t.Errorf("%+v", a)
	}
	b.refuse(CreateAccount{Name: "user:ada"}, meta.ErrConflict)
	b.refuse(CreateAccount{Name: "robot:other/ci"}, meta.ErrNotFound, "tenant other")
	b.must(CreateAccount{Name: "robot:acme/ci"})
	b.must(CreateAccount{Name: "user:bob"})
	var names []string
	for _, q := range []ListAccounts{{}, {Kind: meta.KindUser}, {Tenant: "acme"}, {Tenant: "ac"}, {Page: Page{After: "robot:acme/ci", Limit: 1}}} {
		for _, a := range ask(b, q) {
			names = append(names, a.Name)
		}
		names = append(names, ";")
	}
	if got := strings.Join(names, " "); got != "robot:acme/ci user:ada user:bob ; user:ada user:bob ; robot:acme/ci ; ; user:ada ;" {
		t.Error(got)
	}

	long := strings.Repeat("x", meta.MaxNoteBytes+1)
	for _, c := range []Command{
		CreateAccount{}, CreateAccount{Name: "host:n1"}, CreateAccount{Name: "user:Ada"}, CreateAccount{Name: "user:ada", Note: long},
		SetAccount{}, SetAccount{Name: "user:ada", Note: &long}, RemoveAccount{}, RemoveAccount{Name: meta.AdminBootstrap},
		RemoveBinding{}, RemoveBinding{ID: long}, RemoveRole{},
	} {
		b.refuse(c, meta.ErrInvalid)
	}
	yes := true
	if r := b.must(SetAccount{Name: "user:ada", Disabled: &yes}).Value.(meta.Account); !r.Disabled {
		t.Errorf("%+v", r)
	}
	if _, err := try(b, GetCaller{Principal: "user:ada"}); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("disabled: %v", err)
	}
	if _, err := try(b, GetCaller{Principal: "user:nobody"}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}

	// An account that is made anew has nothing of the old one's.
	b.bind("user:bob", "reader", "acme/*")
	b.mustAs("user:bob", "", RequestElevation{ID: "e1", Role: "curator", Scope: "acme/*", Reason: "prod is down", TTL: time.Hour})
	b.mustAs("user:bob", "", RequestElevation{ID: "e2", Role: "curator", Scope: "acme/*", Reason: "prod is down", TTL: time.Hour})
	b.mustAs("user:ada", "", DecideElevation{ID: "e1", Word: ElevationApprove})
	b.bind("user:bob", "publisher", "acme/app")
	b.must(RemoveAccount{Name: "user:bob"})
	if got := ask(b, ListBindings{}); len(got) != 0 {
		t.Errorf("bindings of nobody: %+v", got)
	}
	b.must(CreateAccount{Name: "user:bob"})
	if c := ask(b, GetCaller{Principal: "user:bob"}); len(c.Rights) != 0 {
		t.Errorf("%+v", c)
	}
	if e := ask(b, GetElevation{ID: "e1"}); e.State != meta.ElevationEnded || e.EndedBy == "" {
		t.Errorf("an elevation of nobody is %+v", e)
	}
	check(b)
}

func TestRoles(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	r := b.must(PutRole{Name: "acme/deployer", Actions: []meta.Action{meta.ActionPromote, meta.ActionPull, meta.ActionPull}}).Value.(meta.AccessRole)
	if !slices.Equal(r.Actions, []meta.Action{meta.ActionPull, meta.ActionPromote}) || r.Tenant() != "acme" || r.BuiltIn() {
		t.Errorf("%+v", r)
	}
	b.must(PutRole{Name: "watcher", Actions: []meta.Action{meta.ActionObserve}})
	b.refuse(PutRole{Name: "other/x", Actions: []meta.Action{meta.ActionPull}}, meta.ErrNotFound)
	for _, c := range []Command{
		PutRole{Name: "reader", Actions: []meta.Action{meta.ActionPull}},
		PutRole{Name: "acme/x", Actions: []meta.Action{meta.ActionOperate}},
		PutRole{Name: "x", Actions: []meta.Action{"fly"}}, PutRole{Name: "x"}, PutRole{Name: "X", Actions: []meta.Action{meta.ActionPull}},
		RemoveRole{Name: "admin"},
	} {
		b.refuse(c, meta.ErrInvalid)
	}
	if got := ask(b, ListRoles{Tenant: "acme"}); len(got) != 1 || got[0].Name != "acme/deployer" {
		t.Errorf("%+v", got)
	}
	if got := ask(b, GetRole{Name: "auditor"}); !got.BuiltIn() {
		t.Errorf("%+v", got)
	}

	// New actions hold at once, and move the revision.
	b.bind("robot:acme/ci", "acme/deployer", "acme/*")
	before := ask(b, GetCaller{Principal: "robot:acme/ci"})
	b.must(PutRole{Name: "acme/deployer", Actions: []meta.Action{meta.ActionPromote, meta.ActionPull}, Note: "as before"})
	if got := ask(b, GetCaller{Principal: "robot:acme/ci"}); got.Revision != before.Revision {
		t.Errorf("a note moved the revision: %+v", got)
	}
	b.must(PutRole{Name: "acme/deployer", Actions: []meta.Action{meta.ActionPull}})
	after := ask(b, GetCaller{Principal: "robot:acme/ci"})
	if after.Revision <= before.Revision || !slices.Equal(after.Rights[0].Actions, []meta.Action{meta.ActionPull}) {
		t.Errorf("%+v, was %+v", after, before)
	}
	b.refuse(RemoveRole{Name: "acme/deployer"}, meta.ErrConflict, after.Rights[0].Binding)
	b.must(RemoveBinding{ID: after.Rights[0].Binding})
	b.must(RemoveRole{Name: "acme/deployer"})
	b.refuse(RemoveRole{Name: "acme/deployer"}, meta.ErrNotFound)
	check(b)
}

func TestBindings(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	b.must(CreateTenant{Name: "globex"})
	b.must(CreateAccount{Name: "user:ada"})
	b.must(PutRole{Name: "acme/deployer", Actions: []meta.Action{meta.ActionPromote}})
	for _, bad := range []meta.Binding{
		{Principal: "host:n1", Role: "reader", Repository: "*"},
		{Principal: "user:ada", Role: "reader", Repository: "acme"},
		{Principal: "user:ada", Role: "reader", Repository: "*", Environment: strings.Repeat("x", 64)},
		{Principal: "user:ada", Role: "reader", Repository: "*", Reason: strings.Repeat("x", meta.MaxReasonBytes+1)},
		{Principal: "user:ada", Role: "Reader", Repository: "*"},
		{Principal: "user:ada", Role: "reader", Repository: "*", Tenant: "acme"},
		{Principal: "user:ada", Role: "reader", Repository: "ac*/x", Tenant: "ac"},
		{Principal: "user:ada", Role: "acme/deployer", Repository: "globex/*"},
		{Principal: "user:ada", Role: "acme/deployer", Repository: "*"},
		{Principal: "user:ada", Role: "reader", Repository: "*", Expires: 1},
	} {
		b.refuse(AddBinding{Binding: bad}, meta.ErrInvalid)
	}
	for _, lost := range []meta.Binding{
		{Principal: "user:bob", Role: "reader", Repository: "*"},
		{Principal: "robot:acme/x", Role: "reader", Repository: "*"},
		{Principal: "ci:nobody/gitlab/x", Role: "reader", Repository: "acme/*"},
		{Principal: "user:ada", Role: "painter", Repository: "*"},
		{Principal: "user:ada", Role: "reader", Repository: "nobody/*"},
	} {
		b.refuse(AddBinding{Binding: lost}, meta.ErrNotFound)
	}
	soon := meta.TimeOf(b.now.Add(time.Minute))
	first := b.bind("user:ada", "acme/deployer", "acme/*", func(x *meta.Binding) { x.Tenant, x.Environment = "acme", "prod*" })
	again := b.bind("user:ada", "acme/deployer", "acme/*", func(x *meta.Binding) { x.Tenant, x.Environment, x.Reason = "acme", "prod*", "again" })
	if first != again {
		t.Errorf("%+v and %+v", first, again)
	}
	deny := b.bind("user:ada", "publisher", "acme/app", func(x *meta.Binding) { x.Deny, x.Expires = true, soon })
	job := b.bind("ci:globex/gitlab/group/app", "publisher", "globex/app", func(x *meta.Binding) { x.Tenant = "globex" })
	c := ask(b, GetCaller{Principal: "user:ada"})
	want := []meta.Right{
		{Actions: []meta.Action{meta.ActionPromote}, Repository: "acme/*", Environment: "prod*", Role: "acme/deployer", Binding: first.ID},
		{Actions: []meta.Action{meta.ActionPull, meta.ActionList, meta.ActionPush}, Repository: "acme/app", Deny: true, Expires: soon, Role: "publisher", Binding: deny.ID},
	}
	if fmt.Sprint(c.Rights) != fmt.Sprint(want) || c.Revision == 0 {
		t.Errorf("%+v", c)
	}
	if c := ask(b, GetCaller{Principal: job.Principal}); len(c.Rights) != 1 || c.Rights[0].Repository != "globex/app" {
		t.Errorf("%+v", c)
	}
	list := func(q ListBindings) (ids []string) {
		for _, x := range ask(b, q) {
			ids = append(ids, x.ID)
		}
		return ids
	}
	if all, acme, ada := list(ListBindings{}), list(ListBindings{Tenant: "acme"}), list(ListBindings{Principal: "user:ada", Page: Page{After: first.ID}}); len(all) != 3 ||
		!slices.Equal(acme, []string{first.ID}) || !slices.Equal(ada, []string{deny.ID}) {
		t.Errorf("%v %v %v", all, acme, ada)
	}
	if got := ask(b, GetBinding{ID: deny.ID}); got != deny {
		t.Errorf("%+v", got)
	}
	check(b)

	// What has ended makes room for what comes.
	b.now = b.now.Add(time.Minute)
	for i := range meta.MaxBindings - 1 {
		b.bind("user:ada", "reader", fmt.Sprintf("acme/r%d", i))
	}
	if _, err := try(b, GetBinding{ID: deny.ID}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("an ended binding stays: %v", err)
	}
	b.refuse(AddBinding{Binding: meta.Binding{Principal: "user:ada", Role: "reader", Repository: "*"}}, meta.ErrOverQuota)
	before := b.head().Revision
	b.must(RemoveBinding{ID: first.ID})
	if b.head().Revision <= before {
		t.Error("taking a binding back did not move the revision")
	}
	b.refuse(RemoveBinding{ID: first.ID}, meta.ErrNotFound)
	check(b)
}

// BenchmarkGetCaller resolves a principal with three bindings among 50,000.
func BenchmarkGetCaller(b *testing.B) {
	m := newBench(b)
	m.must(SetLevel{Level: Level})
	for i := range 16_666 {
		for _, role := range []string{"reader", "publisher", "promoter"} {
			m.must(AddBinding{Binding: meta.Binding{Principal: fmt.Sprintf("ci:acme/gitlab/p%d", i), Role: role, Repository: fmt.Sprintf("acme/r%d", i%1000)}})
		}
	}
	v, err := m.View()
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c, err := GetCaller{Principal: fmt.Sprintf("ci:acme/gitlab/p%d", i%16_666)}.Answer(v)
		if err != nil || len(c.Rights) != 3 {
			b.Fatal(c, err)
		}
	}
}
