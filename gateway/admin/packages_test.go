package admin_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/uploadid"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// promoter is a catalog over the metadata of the test.
func promoter(t *testing.T, m rooted) admin.Promoter {
	t.Helper()
	ids, err := uploadid.NewMinter(self, bytes.Repeat([]byte("s"), 32))
	if err != nil {
		t.Fatal(err)
	}
	return must[*catalog.Catalog](t)(catalog.New(catalog.Config{
		Metadata: m, Commands: m, Content: catalogtest.NewMemory(), IDs: ids, Node: self, Region: "eu",
		May: func(who meta.Principal, action meta.Action, r *meta.Repository) bool {
			return access.OfRepository(who, action, r)
		},
	}))
}

func named(name string) meta.RepoRef { return meta.RepoRef{Tenant: "acme", Name: name} }

// TestKinds: proxies and groups are made and changed over the API, and nobody puts into a
// group what it may not read.
func TestKinds(t *testing.T) {
	f, ctx := start(t), t.Context()
	create := func(n client.NewRepository) error { return second(f.CreateRepository(ctx, n)) }
	if err := create(client.NewRepository{Ref: ref, Format: "oci", CreateTenant: true}); err != nil {
		t.Fatal(err)
	}
	proxy := client.NewRepository{Ref: named("hub"), Format: "oci", Kind: meta.KindProxy, Upstream: &meta.Upstream{URL: "https://registry.example", DocumentTTL: time.Hour}}
	group := client.NewRepository{Ref: named("all"), Format: "oci", Kind: meta.KindGroup, Members: []string{"app", "hub"}, WriteTo: "app"}
	if err := create(group); !errors.Is(err, meta.ErrNotFound) || !strings.Contains(err.Error(), "acme/hub") {
		t.Errorf("a group of what is not there: %v", err)
	}
	for _, n := range []client.NewRepository{proxy, group} {
		if err := create(n); err != nil {
			t.Fatal(err)
		}
	}
	r := must[meta.Repository](t)(f.Repository(ctx, named("hub")))
	if r.Kind != meta.KindProxy || r.Upstream == nil || r.Upstream.DocumentTTL != time.Hour {
		t.Errorf("%+v", r)
	}
	r = must[meta.Repository](t)(f.SetRepository(ctx, named("hub"), client.RepositoryChange{Upstream: &client.UpstreamChange{Block: &[]string{"evil/*"}}}))
	if r.Upstream.URL != "https://registry.example" || len(r.Upstream.Block) != 1 {
		t.Errorf("%+v", r.Upstream)
	}
	r = must[meta.Repository](t)(f.SetRepository(ctx, named("all"), client.RepositoryChange{Members: &[]string{"hub", "app"}, WriteTo: new("")}))
	if len(r.Members) != 2 || r.Members[0] != "hub" || r.WriteTo != "" {
		t.Errorf("%+v", r)
	}
	for name, err := range map[string]error{
		"a bad member":    second(f.SetRepository(ctx, named("all"), client.RepositoryChange{Members: &[]string{"../x"}})),
		"a secret in it":  second(f.SetRepository(ctx, named("hub"), client.RepositoryChange{Upstream: &client.UpstreamChange{URL: new("https://u:pw@x")}})),
		"no age":          create(client.NewRepository{Ref: named("x"), Format: "oci", Kind: meta.KindProxy, Upstream: &meta.Upstream{URL: "https://registry.example", MinReleaseAge: time.Hour}}),
		"no age later":    second(f.SetRepository(ctx, named("hub"), client.RepositoryChange{Upstream: &client.UpstreamChange{MinReleaseAge: new(time.Hour)}})),
		"no upstream":     create(client.NewRepository{Ref: named("x"), Format: "oci", Kind: meta.KindProxy}),
		"no members":      create(client.NewRepository{Ref: named("x"), Format: "oci", Kind: meta.KindGroup}),
		"a hosted proxy":  create(client.NewRepository{Ref: named("x"), Format: "oci", Upstream: proxy.Upstream}),
		"another's words": create(client.NewRepository{Ref: named("x"), Format: "oci", Kind: "mirror"}),
	} {
		if !errors.Is(err, meta.ErrInvalid) || strings.Contains(err.Error(), "pw") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := f.RemoveRepository(ctx, ref); !errors.Is(err, meta.ErrConflict) || !strings.Contains(err.Error(), "acme/all") {
		t.Errorf("a member is removed: %v", err)
	}
}

// TestVersionVerbs: versions are found by the reference that their format writes or by
// their stored name, marked by whom may push or curate, and deleted.
func TestVersionVerbs(t *testing.T) {
	f, ctx := start(t), t.Context()
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci", CreateTenant: true}))
	const pkg = "team/web app"
	v := publish(t, f.meta, pkg, "latest", "one")
	at := meta.VersionRef{Repo: ref, Package: pkg, Version: v.Name}
	for reference, alias := range map[string]string{"/" + pkg + ":latest": "latest", "/" + pkg + "@" + v.Name: ""} {
		if r := must[client.Resolved](t)(f.as(f.gw.Reader).Resolve(ctx, ref, reference)); r.Package != pkg || r.Version.Name != v.Name || r.Alias != alias {
			t.Errorf("%s is %+v", reference, r)
		}
	}
	for reference, kind := range map[string]error{"/nope:1": meta.ErrNotFound, "": meta.ErrInvalid, "@": meta.ErrInvalid, strings.Repeat("x", 5000): meta.ErrInvalid} {
		if _, err := f.Resolve(ctx, ref, reference); !errors.Is(err, kind) {
			t.Errorf("%.20s: %v", reference, err)
		}
	}
	if done := must[client.Marked](t)(f.as(f.gw.Writer).MarkVersion(ctx, at, meta.Marking{Yanked: new(true), Reason: "broken"})); done.Changed != 1 {
		t.Errorf("%+v", done)
	}
	if got := must[meta.Version](t)(f.Version(ctx, ref, pkg, v.Name)); got.Marks.Yanked == nil || got.Marks.Yanked.Reason != "broken" {
		t.Errorf("%+v", got.Marks)
	}
	if _, err := f.as(f.gw.Reader).MarkVersion(ctx, at, meta.Marking{Yanked: new(false)}); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a reader marks: %v", err)
	}
	if err := f.as(f.gw.Reader).DeleteVersion(ctx, at); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a reader deletes: %v", err)
	}
	if err := f.DeleteVersion(ctx, at); err != nil {
		t.Error(err)
	}
	if err := f.DeleteVersion(ctx, at); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
}

// TestPromote: what a reference names becomes a version of another repository, for whom may
// promote there and read here.
func TestPromote(t *testing.T) {
	f, ctx := start(t), t.Context()
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: ref, Format: "oci", CreateTenant: true}))
	release := named("release")
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: release, Format: "oci"}))
	v := publish(t, f.meta, "api", "1.4", "one")
	n := client.NewPromotion{References: []string{"acme/app/api:1.4"}, To: release, Aliases: []string{"stable", "1.4"}, Reason: "it passed"}
	done := must[client.Promotion](t)(f.Promote(ctx, n))
	if len(done.Versions) != 1 || done.Versions[0].Digest != v.Digest || !done.Versions[0].Created {
		t.Errorf("%+v", done)
	}
	got := must[client.Resolved](t)(f.Resolve(ctx, release, "/api:stable"))
	if p := got.Version.Promotion; p == nil || p.From != ref || p.By != "admin:bootstrap" || p.Reason != "it passed" || p.CreatedBy != "user:ada" {
		t.Errorf("%+v", p)
	}
	if aliases := collect(t, f.Aliases(ctx, release, "api")); len(aliases) != 2 {
		t.Errorf("aliases %+v", aliases)
	}
	for name, test := range map[string]struct {
		c      *client.Client
		change func(*client.NewPromotion)
		kind   error
	}{
		"a reader of the source": {f.as(f.gw.Reader), func(*client.NewPromotion) {}, meta.ErrNotFound},
		"to nowhere":             {f.Client, func(n *client.NewPromotion) { n.To = named("nope") }, meta.ErrNotFound},
		"from nowhere":           {f.Client, func(n *client.NewPromotion) { n.References = []string{"acme/nope/api:1"} }, meta.ErrNotFound},
		"nothing":                {f.Client, func(n *client.NewPromotion) { n.References = nil }, meta.ErrInvalid},
		"no reference":           {f.Client, func(n *client.NewPromotion) { n.References = []string{"api"} }, meta.ErrInvalid},
		"a bad target":           {f.Client, func(n *client.NewPromotion) { n.To.Name = "" }, meta.ErrInvalid},
	} {
		changed := n
		test.change(&changed)
		if _, err := test.c.Promote(ctx, changed); !errors.Is(err, test.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
