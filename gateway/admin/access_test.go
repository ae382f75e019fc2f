package admin_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// token gives a principal, which has an account, a token, and returns its client.
func (f fixture) token(t *testing.T, principal string) *client.Client {
	t.Helper()
	text, token := credential.Mint()
	_, err := f.meta.Do(t.Context(), state.Origin{Principal: meta.AdminBootstrap}, state.CreateCredential{
		Credential: meta.Credential{ID: token.ID, Hash: token.Hash, Principal: principal, Kind: meta.CredentialToken}, Life: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	return f.as(text.Reveal())
}

// bound makes an account with a role, and returns its client and the binding.
func (f fixture) bound(t *testing.T, principal, role, repository string, change ...func(*client.NewBinding)) (*client.Client, meta.Binding) {
	t.Helper()
	if _, err := f.CreateAccount(t.Context(), principal, ""); err != nil && !errors.Is(err, meta.ErrConflict) {
		t.Fatal(err)
	}
	n := client.NewBinding{Principal: principal, Role: role, Repository: repository}
	for _, c := range change {
		c(&n)
	}
	b, err := f.AddBinding(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return f.token(t, principal), b
}

// tenants makes acme and globex with a repository each.
func (f fixture) tenants(t *testing.T) {
	t.Helper()
	for _, r := range []client.NewRepository{
		{Ref: meta.RepoRef{Tenant: "acme", Name: "app"}, Format: "oci", Environment: "dev", CreateTenant: true},
		{Ref: meta.RepoRef{Tenant: "acme", Name: "prod"}, Format: "oci", Environment: "prod"},
		{Ref: meta.RepoRef{Tenant: "globex", Name: "app"}, Format: "oci", CreateTenant: true},
	} {
		if _, err := f.CreateRepository(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAccountsAndRoles(t *testing.T) {
	f := start(t)
	f.tenants(t)
	ctx := t.Context()
	ada := must[meta.Account](t)(f.CreateAccount(ctx, "user:ada@example.org", "Ada"))
	if ada.Name != "user:ada@example.org" || ada.CreatedBy != meta.AdminBootstrap {
		t.Errorf("%+v", ada)
	}
	if _, err := f.CreateAccount(ctx, "user:ada@example.org", ""); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("twice: %v", err)
	}
	must[meta.Account](t)(f.CreateAccount(ctx, "robot:acme/ci", ""))
	if _, err := f.CreateAccount(ctx, "robot:nobody/ci", ""); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("of no tenant: %v", err)
	}
	yes, note := true, "left"
	if a := must[meta.Account](t)(f.SetAccount(ctx, ada.Name, client.AccountChange{Disabled: &yes, Note: &note})); !a.Disabled || a.Note != "left" {
		t.Errorf("%+v", a)
	}
	if a := must[meta.Account](t)(f.Account(ctx, ada.Name)); !a.Disabled {
		t.Errorf("%+v", a)
	}
	if users, robots := collect(t, f.Users(ctx)), collect(t, f.Robots(ctx, "acme")); len(users) != 1 || len(robots) != 1 || robots[0].Name != "robot:acme/ci" {
		t.Errorf("%+v %+v", users, robots)
	}
	role := must[meta.AccessRole](t)(f.PutRole(ctx, "acme/deployer", client.RoleActions{Actions: []meta.Action{meta.ActionPromote}, Note: "pipelines"}))
	if again := must[meta.AccessRole](t)(f.Role(ctx, "acme/deployer")); again.Name != role.Name || again.Note != "pipelines" {
		t.Errorf("%+v", again)
	}
	must[meta.AccessRole](t)(f.PutRole(ctx, "watcher", client.RoleActions{Actions: []meta.Action{meta.ActionObserve}}))
	if roles := collect(t, f.Roles(ctx, "")); len(roles) != len(meta.BuiltInRoles)+1 {
		t.Errorf("%+v", roles)
	}
	if roles := collect(t, f.Roles(ctx, "acme")); len(roles) != 1 {
		t.Errorf("%+v", roles)
	}
	if err := errors.Join(f.RemoveRole(ctx, "watcher"), f.RemoveAccount(ctx, ada.Name), f.RemoveAccount(ctx, "robot:acme/ci")); err != nil {
		t.Error(err)
	}
	if _, err := f.Account(ctx, ada.Name); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("removed: %v", err)
	}
}

// Whoever manages a tenant does so in that tenant, and sees no other.
func TestTenantAdmin(t *testing.T) {
	f := start(t)
	f.tenants(t)
	ctx := t.Context()
	tess, own := f.bound(t, "user:tess", "tenant-admin", "acme/*")
	_, lock := f.bound(t, "user:tess", "publisher", "acme/prod", func(n *client.NewBinding) { n.Deny = true })
	if own.Tenant != "acme" || lock.Tenant != "" {
		t.Errorf("%+v %+v", own, lock)
	}
	_, far := f.bound(t, "user:bob", "reader", "globex/*")

	for name, err := range map[string]error{
		"robot":       second(tess.CreateAccount(ctx, "robot:acme/ci", "")),
		"role":        second(tess.PutRole(ctx, "acme/x", client.RoleActions{Actions: []meta.Action{meta.ActionPull}})),
		"repository":  second(tess.CreateRepository(ctx, client.NewRepository{Ref: meta.RepoRef{Tenant: "acme", Name: "new"}, Format: "oci", CreateTenant: true})),
		"set":         second(tess.SetRepository(ctx, meta.RepoRef{Tenant: "acme", Name: "new"}, client.RepositoryChange{})),
		"remove":      tess.RemoveRepository(ctx, meta.RepoRef{Tenant: "acme", Name: "new"}),
		"bind":        second(tess.AddBinding(ctx, client.NewBinding{Principal: "robot:acme/ci", Role: "publisher", Repository: "acme/*"})),
		"bind one":    second(tess.AddBinding(ctx, client.NewBinding{Principal: "user:bob", Role: "acme/x", Repository: "acme/app"})),
		"cluster's":   second(tess.Role(ctx, "admin")),
		"usage":       second(tess.Usage(ctx, "acme")),
		"own binding": second(tess.Can(ctx, client.Can{Action: meta.ActionPush, Resource: "acme/app"})),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"user":          second(tess.CreateAccount(ctx, "user:eve", "")),
		"users":         firstError(tess.Users(ctx)),
		"cluster role":  second(tess.PutRole(ctx, "x", client.RoleActions{Actions: []meta.Action{meta.ActionPull}})),
		"bind all":      second(tess.AddBinding(ctx, client.NewBinding{Principal: "user:tess", Role: "admin"})),
		"bind wide":     second(tess.AddBinding(ctx, client.NewBinding{Principal: "user:tess", Role: "reader", Repository: "a*/app"})),
		"tenant":        second(tess.CreateTenant(ctx, "mine")),
		"status":        second(tess.Status(ctx)),
		"all bindings":  firstError(tess.Bindings(ctx, "", "")),
		"the deny":      tess.RemoveBinding(ctx, lock.ID),
		"can elsewhere": second(tess.Can(ctx, client.Can{Principal: "user:bob", Action: meta.ActionObserve})),
	} {
		if !errors.Is(err, meta.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"robot":             second(tess.CreateAccount(ctx, "robot:globex/ci", "")),
		"usage":             second(tess.Usage(ctx, "globex")),
		"robots":            firstError(tess.Robots(ctx, "globex")),
		"role":              second(tess.PutRole(ctx, "globex/x", client.RoleActions{Actions: []meta.Action{meta.ActionPull}})),
		"repository":        second(tess.CreateRepository(ctx, client.NewRepository{Ref: meta.RepoRef{Tenant: "globex", Name: "new"}, Format: "oci"})),
		"set":               second(tess.SetRepository(ctx, meta.RepoRef{Tenant: "globex", Name: "app"}, client.RepositoryChange{})),
		"bind":              second(tess.AddBinding(ctx, client.NewBinding{Principal: "user:tess", Role: "reader", Repository: "globex/*"})),
		"bind one":          second(tess.AddBinding(ctx, client.NewBinding{Principal: "user:tess", Role: "reader", Repository: "globex/app"})),
		"bindings":          firstError(tess.Bindings(ctx, "", "globex")),
		"binding":           tess.RemoveBinding(ctx, far.ID),
		"can":               second(tess.Can(ctx, client.Can{Principal: "user:bob", Action: meta.ActionPull, Resource: "globex/app"})),
		"absent tenant":     second(tess.CreateAccount(ctx, "robot:nobody/ci", "")),
		"absent repository": second(tess.SetRepository(ctx, meta.RepoRef{Tenant: "nobody", Name: "app"}, client.RepositoryChange{})),
	} {
		if !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("globex's %s: %v", name, err)
		}
	}
	var names []string
	for _, tenant := range collect(t, tess.Tenants(ctx)) {
		names = append(names, string(tenant.Name))
	}
	for _, r := range collect(t, tess.Repositories(ctx, "")) {
		names = append(names, r.Ref.String())
	}
	for _, b := range collect(t, tess.Bindings(ctx, "", "acme")) {
		names = append(names, b.Principal+" "+b.Role)
	}
	for _, b := range collect(t, tess.Bindings(ctx, "user:bob", "")) {
		names = append(names, b.Principal+" "+b.Repository)
	}
	if !slices.Contains(names, "user:bob acme/app") || slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "globex") }) || names[0] != "acme" || names[1] != "acme/app" {
		t.Errorf("she sees %q", names)
	}
	// What stays within the tenant she may take back, her own rights too.
	if err := tess.RemoveBinding(ctx, own.ID); err != nil {
		t.Error(err)
	}
	if _, err := tess.CreateAccount(ctx, "robot:acme/late", ""); err == nil {
		t.Error("she manages without a binding")
	}
	// A page that hides all its items would still say that there are some.
	if err := firstError(tess.Bindings(ctx, "user:bob", "")); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("who manages nothing asks for another's bindings: %v", err)
	}
	if err := firstError(tess.Bindings(ctx, "user:tess", "")); err != nil {
		t.Errorf("one's own bindings: %v", err)
	}
}

func firstError[T any](seq func(func(T, error) bool)) error {
	for _, err := range seq {
		return err
	}
	return nil
}

// Rights to one environment do not let anybody take a repository out of it, or into it.
func TestEnvironments(t *testing.T) {
	f := start(t)
	f.tenants(t)
	ctx := t.Context()
	dev, _ := f.bound(t, "user:dev", "tenant-admin", "acme/*", func(n *client.NewBinding) { n.Environment = "dev*" })
	app, prod := meta.RepoRef{Tenant: "acme", Name: "app"}, meta.RepoRef{Tenant: "acme", Name: "prod"}
	env := func(name string) client.RepositoryChange { return client.RepositoryChange{Environment: &name} }
	if _, err := dev.SetRepository(ctx, app, env("dev-2")); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"out":    second(dev.SetRepository(ctx, app, env("prod"))),
		"into":   second(dev.SetRepository(ctx, prod, env("dev"))),
		"as is":  second(dev.SetRepository(ctx, prod, client.RepositoryChange{})),
		"create": second(dev.CreateRepository(ctx, client.NewRepository{Ref: meta.RepoRef{Tenant: "acme", Name: "x"}, Format: "oci", Environment: "prod"})),
		"robot":  second(dev.CreateAccount(ctx, "robot:acme/ci", "")),
	} {
		if !errors.Is(err, meta.ErrDenied) && !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := dev.CreateRepository(ctx, client.NewRepository{Ref: meta.RepoRef{Tenant: "acme", Name: "y"}, Format: "oci", Environment: "dev"}); err != nil {
		t.Error(err)
	}
}

func TestCan(t *testing.T) {
	f := start(t)
	f.tenants(t)
	ctx := t.Context()
	ada, b := f.bound(t, "user:ada", "publisher", "acme/*")
	_, deny := f.bound(t, "user:ada", "publisher", "acme/prod", func(n *client.NewBinding) { n.Deny, n.Reason = true, "frozen" })
	for _, test := range []struct {
		q      client.Can
		reason string
		right  string
		words  string
	}{
		{client.Can{Principal: "user:ada", Action: meta.ActionPush, Resource: "acme/app"}, "right", b.ID, "user:ada may push to repository acme/app: binding " + b.ID + " gives role publisher on acme/*"},
		{client.Can{Principal: "user:ada", Action: meta.ActionPush, Resource: "acme/prod"}, "denied", deny.ID, "a deny overrides"},
		{client.Can{Principal: "user:ada", Action: meta.ActionDelete, Resource: "acme/app"}, "no right", "", "no binding of user:ada gives delete there"},
		{client.Can{Principal: "user:ada", Action: meta.ActionPull, Resource: "acme/absent"}, "absent", b.ID, "no such repository"},
		{client.Can{Principal: "user:ada", Action: meta.ActionManage, Resource: "acme"}, "no right", "", "may not manage tenant acme"},
		{client.Can{Principal: "user:ada", Action: meta.ActionOperate}, "no right", "", "may not operate the cluster"},
		{client.Can{Principal: meta.AdminBootstrap, Action: meta.ActionOperate}, "administrator", "", "admin token"},
		{client.Can{Principal: "anonymous", Action: meta.ActionPull, Resource: "acme/app"}, "no right", "", "may not pull"},
		{client.Can{Principal: "host:" + string(self), Action: meta.ActionPull, Resource: "acme/app"}, "no right", "", "may not pull"},
	} {
		got := must[client.Answer](t)(f.Can(ctx, test.q))
		right := ""
		if got.Right != nil {
			right = got.Right.Binding
		}
		if got.Reason != test.reason || right != test.right || !strings.Contains(got.Text, test.words) || got.Allowed != (test.reason == "right" || test.reason == "administrator") {
			t.Errorf("%+v: %+v", test.q, got)
		}
	}
	// One's own rights are no secret, what is there without a right to it is.
	if got := must[client.Answer](t)(ada.Can(ctx, client.Can{Action: meta.ActionPush, Resource: "acme/app"})); !got.Allowed || got.Environment != "dev" {
		t.Errorf("%+v", got)
	}
	for _, resource := range []string{"globex/app", "globex/absent"} {
		got := must[client.Answer](t)(ada.Can(ctx, client.Can{Action: meta.ActionPull, Resource: resource}))
		if got.Allowed || got.Reason != "no right" || got.Visibility != "" || got.Text != "repository "+resource+": not found" {
			t.Errorf("%+v", got)
		}
	}
	if _, err := ada.Can(ctx, client.Can{Principal: "user:bob", Action: meta.ActionPull, Resource: "acme/app"}); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("of others: %v", err)
	}
	yes := true
	must[meta.Account](t)(f.SetAccount(ctx, "user:ada", client.AccountChange{Disabled: &yes}))
	if got := must[client.Answer](t)(f.Can(ctx, client.Can{Principal: "user:ada", Action: meta.ActionPull, Resource: "acme/app"})); got.Allowed || got.Reason != "disabled" {
		t.Errorf("%+v", got)
	}
	if _, err := ada.Whoami(ctx); err == nil || !strings.Contains(err.Error(), "disabled") {
		t.Errorf("a disabled account: %v", err)
	}
}
