package admin_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

func get(path string) protocoltest.Request {
	return protocoltest.Request{Method: http.MethodGet, Path: path}
}

// Search shows what is in the repositories that the caller may list, and of others not
// even how many there are.
func TestSearch(t *testing.T) {
	f, ctx := start(t), t.Context()
	for _, r := range []meta.RepoRef{ref, {Tenant: "acme", Name: "other"}, {Tenant: "beta", Name: "app"}} {
		must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: r, Format: "oci", CreateTenant: true}))
	}
	must[meta.Repository](t)(f.CreateRepository(ctx, client.NewRepository{Ref: meta.RepoRef{Tenant: "acme", Name: "files"}, Format: "generic"}))
	first := publish(t, f.meta, "team/api", "latest", "one")
	publish(t, f.meta, "team/api", "latest", "two")
	publish(t, f.meta, "web", "latest", "one")
	if err := f.SetLabels(ctx, ref, "web", "", meta.Labels{"team": "web"}); err != nil {
		t.Fatal(err)
	}
	texts := func(c *client.Client, s client.Search) (got []string) {
		t.Helper()
		for _, m := range collect(t, c.Search(ctx, s)) {
			got = append(got, strings.TrimSpace(m.Repo.String()+" "+m.Package+" "+m.Version))
		}
		return got
	}
	one := first.Name
	for _, test := range []struct {
		s    client.Search
		want []string
	}{
		{client.Search{}, []string{"acme/app team/api", "acme/app web"}},
		{client.Search{Name: "team/"}, []string{"acme/app team/api"}},
		{client.Search{Contains: "API"}, []string{"acme/app team/api"}},
		{client.Search{Labels: []string{"team=web"}}, []string{"acme/app web"}},
		{client.Search{Labels: []string{"team"}}, []string{"acme/app web"}},
		{client.Search{Digest: first.Digest}, []string{"acme/app team/api " + one, "acme/app web " + one}},
		{client.Search{Publisher: "user:ada", Name: "web"}, []string{"acme/app web " + one}},
		{client.Search{Format: "generic"}, nil},
		{client.Search{Tenant: "beta"}, nil},
		{client.Search{Tenant: "acme", Repository: "app", Name: "w"}, []string{"acme/app web"}},
		{client.Search{Tenant: "acme", Repository: "other"}, nil},
		{client.Search{Tenant: "acme", Repository: "nope"}, nil},
	} {
		for _, c := range []*client.Client{f.Client, f.as(f.gw.Reader)} {
			if got := texts(c, test.s); !slices.Equal(got, test.want) {
				t.Errorf("%+v finds %q, want %q", test.s, got, test.want)
			}
		}
	}
	// One thing a page, over repositories that have nothing and such as are not shown.
	for _, token := range []string{f.Client.Token, f.gw.Reader} {
		var got []string
		after := ""
		for range 100 {
			status, _, body := f.gw.Do(t, get("/api/v1/search?limit=1&after="+after), token)
			var page client.Page[client.Match]
			if err := json.Unmarshal(body, &page); err != nil || status != http.StatusOK || len(page.Items) > 1 {
				t.Fatalf("%d %s: %v", status, body, err)
			}
			for _, m := range page.Items {
				got = append(got, m.Package)
			}
			if after = page.Next; after == "" {
				break
			}
		}
		if after != "" {
			t.Error("the search never ends")
		}
		if !slices.Equal(got, []string{"team/api", "web"}) {
			t.Errorf("page by page: %q", got)
		}
	}
	// No page says where to go on by the name of what its reader may not see.
	for _, path := range []string{"repositories", "tenants"} {
		items, after := 0, ""
		for range 10 {
			status, _, body := f.gw.Do(t, get("/api/v1/"+path+"?limit=1&after="+after), f.gw.Reader)
			var page client.Page[any]
			if err := json.Unmarshal(body, &page); err != nil || status != http.StatusOK {
				t.Fatalf("%d %s: %v", status, body, err)
			}
			if after = page.Next; strings.Contains(after, "beta") || strings.Contains(after, "other") || strings.Contains(after, "files") {
				t.Errorf("%s go on after %s", path, after)
			}
			if items += len(page.Items); after == "" {
				break
			}
		}
		if after != "" || items != 1 {
			t.Errorf("%s: %d are shown, next %q", path, items, after)
		}
	}
	for i := range 2100 {
		r := meta.Repository{
			Ref: meta.RepoRef{Tenant: "beta", Name: fmt.Sprint("r", i)}, Format: "generic", Kind: meta.KindHosted, Class: meta.ClassCold,
			Home: "eu", Visibility: meta.VisibilityPrivate,
		}
		if _, err := f.meta.Do(ctx, state.Origin{}, state.CreateRepository{Repository: r}); err != nil {
			t.Fatal(err)
		}
	}
	_, _, body := f.gw.Do(t, get("/api/v1/search"), f.gw.Reader)
	var page client.Page[client.Match]
	if err := json.Unmarshal(body, &page); err != nil || len(page.Items) != 2 || page.Next != "" {
		t.Errorf("with many repositories of others: %s, %v", body, err)
	}
	m := collect(t, f.Search(ctx, client.Search{Digest: first.Digest}))[0]
	if m.Format != "oci" || m.Publisher != "user:ada" || m.Published == nil || m.Path != "manifest" || m.Versions != 2 {
		t.Errorf("%+v", m)
	}
	if got := texts(f.as(f.gw.Stranger), client.Search{}); got != nil {
		t.Errorf("a stranger finds %q", got)
	}
	for _, err := range f.as("").Search(ctx, client.Search{}) {
		if _, refused := errors.AsType[*client.Error](err); !refused {
			t.Errorf("nobody: %v", err)
		}
	}
	for _, query := range []string{"nmae=x", "digest=x", "repository=app", "tenant=A", "limit=0", "after=x", "label=" + strings.Repeat("x", 100)} {
		if status, _, body := f.gw.Do(t, get("/api/v1/search?"+query), f.Client.Token); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
}
