package admin_test

import (
	"errors"
	"testing"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// TestForgetASource: where a group takes a package from is not for ever: whoever manages
// the group has it looked for anew.
func TestForgetASource(t *testing.T) {
	f, ctx := start(t), t.Context()
	named := func(name string) meta.RepoRef { return meta.RepoRef{Tenant: "acme", Name: name} }
	for _, name := range []string{"wrong", "right"} {
		must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{
			Ref: named(name), Format: "oci", Kind: meta.KindProxy, CreateTenant: true, Upstream: &meta.Upstream{URL: "https://registry.example"},
		}))
	}
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: named("all"), Format: "oci", Kind: meta.KindGroup, Members: []string{"right", "wrong"}}))
	remembered := func() string {
		t.Helper()
		a, _, err := raftmeta.Ask(ctx, f.meta, meta.Local, state.GetSources{Repo: named("all"), Package: "left-pad"})
		if err != nil {
			t.Fatal(err)
		}
		return a.Remembered
	}
	if _, err := f.meta.Do(ctx, state.Origin{Principal: "node:x"}, state.RememberSource{Group: named("all"), Package: "left-pad", Member: "wrong"}); err != nil || remembered() != "wrong" {
		t.Fatalf("%q, %v", remembered(), err)
	}
	for _, want := range []uint64{1, 0} {
		if n := must[client.Forgotten](t)(f.ForgetFetched(ctx, named("all"), client.Forget{Package: "left-pad"})); n.Records != want || remembered() != "" {
			t.Errorf("%d are forgotten of %d, %q is left", n.Records, want, remembered())
		}
	}
	if _, err := f.ForgetFetched(ctx, named("right"), client.Forget{Package: "left-pad"}); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("of a proxy: %v", err)
	}
	if _, err := f.ForgetFetched(ctx, named("all"), client.Forget{Package: "left-pad", Path: "x"}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("both: %v", err)
	}
}
