package nuget

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// at is f asking another repository.
func (f *feed) at(repo string) *feed {
	other := *f
	other.repo = repo
	return &other
}

// A proxy of another shoal serves what that has, with its own addresses, and goes on when
// it is away.
func TestProxy(t *testing.T) {
	above := start(t, catalogtest.Options{Content: catalogtest.NewMemory()})
	var want []string
	for i := range 70 {
		above.push("Many", fmt.Sprintf("1.%d.0", i), "", 201)
		want = append(want, fmt.Sprintf("1.%d.0", i))
	}
	nupkg := above.push("Acme.Up", "1.0.0-RC.1", `<dependencies><dependency id="Many" version="1.0"/></dependencies>`, 201)
	registry := upstreamtest.NewRegistry(t)
	registry.Handle(above.Handler)
	f := start(t, catalogtest.Options{})
	f.Proxy(t, "acme/up", Format, registry.URL+"/nuget/acme/nuget")
	f = f.at("acme/up")
	check := func() {
		t.Helper()
		same(t, "versions", f.versions("many"), want)
		for _, hive := range []string{"plain", "gz", "gz-semver2"} {
			same(t, hive, f.registered(hive, "many"), want)
		}
		same(t, "semver2", f.registered("gz-semver2", "acme.up"), []string{"1.0.0-RC.1"})
		f.expect(f.do("GET", "registrations/plain/acme.up/index.json", nil), 404)
		for _, path := range []string{"registrations/gz-semver2/acme.up/index.json", "registrations/gz-semver2/acme.up/1.0.0-rc.1.json", "registrations/plain/many/index.json", "registrations/plain/many/page/1.0.0/1.63.0.json", "query?q=acme.up&prerelease=true&semVerLevel=2.0.0"} {
			if a := f.expect(f.do("GET", path, nil), 200); strings.Contains(a.Text, registry.Host()) || !strings.Contains(a.Text, "/nuget/acme/up/v3/") {
				t.Errorf("%s leads to the upstream: %s", path, a.Text)
			}
		}
		got := f.expect(f.do("GET", "flat/acme.up/1.0.0-rc.1/acme.up.1.0.0-rc.1.nupkg", nil), 200)
		if got.Text != string(nupkg) || !strings.Contains(got.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("the package has %d bytes, %v", len(got.Text), got.Header)
		}
		f.expect(f.do("GET", "flat/acme.up/1.0.0-rc.1/acme.up.nuspec", nil), 200)
		same(t, "completed", get[struct{ Data []string }](f, "autocomplete?id=many&take=1").Data, want)
		found := get[struct{ Data []hit }](f, "query?q=Acme.Up&prerelease=true&semVerLevel=2.0.0").Data
		if len(found) != 1 || found[0].PackageID != "Acme.Up" || found[0].Versions[0].Version != "1.0.0-rc.1" {
			t.Errorf("found is %+v", found)
		}
	}
	check()
	// Once more: everything is kept.
	before := registry.Total()
	check()
	if n := registry.Total(); n != before {
		t.Errorf("%d more requests", n-before)
	}
	for path, n := range registry.All() {
		if n != 1 {
			t.Errorf("%s was asked for %d times", path, n)
		}
	}
	registry.Cut(true)
	f.Later(48 * time.Hour)
	check()
	if a := f.do("GET", "registrations/plain/many/index.json", nil); a.Header.Get("Warning") == "" {
		t.Error("a stale answer has no warning")
	}
	f.expect(f.do("GET", "flat/other/index.json", nil), 503)
	body, contentType := form(t, nupkg)
	f.expect(f.do("PUT", "package/", body, contentType), 405)
	f.expect(f.do("DELETE", "package/many/1.0.0", nil), 405)
}

// gallery lays out documents as nuget.org has them.
type gallery struct {
	*upstreamtest.Registry
}

func newGallery(t *testing.T) *gallery {
	g := &gallery{Registry: upstreamtest.NewRegistry(t)}
	g.json("v3/index.json", map[string]any{"version": "3.0.0", "resources": []any{
		map[string]any{"@id": g.URL + "/flat", "@type": "PackageBaseAddress/3.0.0"},
		map[string]any{"@id": g.URL + "/old/", "@type": "RegistrationsBaseUrl/3.0.0-rc"},
		map[string]any{"@id": g.URL + "/reg/", "@type": []string{"x", "RegistrationsBaseUrl/3.6.0"}},
	}})
	return g
}

func (g *gallery) json(path string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	g.Put(path, b, "Content-Type: application/json")
}

// release puts a version of a package there, whose catalog says hash of its bytes.
func (g *gallery) release(id, version string, published time.Time, content []byte, hash string) map[string]any {
	key := strings.ToLower(id)
	catalog := g.URL + "/catalog/" + key + "." + version + ".json"
	g.json("catalog/"+key+"."+version+".json", map[string]any{"id": id, "packageHash": hash, "packageHashAlgorithm": "SHA512"})
	g.Put("flat/"+key+"/"+version+"/"+key+"."+version+".nupkg", content)
	return map[string]any{"@id": g.URL + "/reg/x", "catalogEntry": map[string]any{
		"@id": catalog, "id": id, "version": version, "published": published.Format(time.RFC3339), "downloads": 7, "listed": true,
		"dependencyGroups": []any{map[string]any{"dependencies": []any{map[string]any{"id": "Other.One", "range": "[1.0.0, )", "registration": g.URL + "/reg/other.one/index.json"}}}},
	}, "packageContent": g.URL + "/flat/x"}
}

func (g *gallery) register(id string, leaves ...map[string]any) {
	g.json("reg/"+id+"/index.json", map[string]any{"count": 1, "items": []any{map[string]any{
		"@id": g.URL + "/reg/" + id + "/page1.json", "lower": "1.0.0", "upper": "9.0.0", "count": len(leaves),
	}}})
	g.json("reg/"+id+"/page1.json", map[string]any{"items": leaves, "lower": "1.0.0", "upper": "9.0.0"})
	versions := []string{}
	for _, leaf := range leaves {
		versions = append(versions, leaf["catalogEntry"].(map[string]any)["version"].(string))
	}
	g.json("flat/"+id+"/index.json", map[string]any{"versions": versions})
}

func sha(b string) string {
	sum := sha512.Sum512([]byte(b))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func TestProxyVerifies(t *testing.T) {
	g := newGallery(t)
	old := time.Now().Add(-1000 * time.Hour)
	g.register("some.thing",
		g.release("Some.Thing", "1.0.0", old, []byte("good"), sha("good")),
		g.release("Some.Thing", "2.0.0", old, []byte("evil"), sha("good")),
		g.release("Another", "3.0.0", old, []byte("x"), sha("x")),
	)
	f := start(t, catalogtest.Options{})
	// The URL may be the service index's, as people know it.
	f.Proxy(t, "acme/up", Format, g.URL+"/v3/index.json")
	f = f.at("acme/up")
	if a := f.expect(f.do("GET", "flat/some.thing/1.0.0/some.thing.1.0.0.nupkg", nil), 200); a.Text != "good" {
		t.Errorf("the package is %q", a.Text)
	}
	a := f.expect(f.do("GET", "flat/some.thing/2.0.0/some.thing.2.0.0.nupkg", nil), 502)
	if !strings.Contains(a.Text, "nothing of them was kept") {
		t.Errorf("says %s", a.Text)
	}
	if g.Asked("catalog/some.thing.1.0.0.json") != 1 {
		t.Error("the catalog was not asked")
	}
	// Leaves of other packages are not ours to say.
	same(t, "registered", f.at("acme/up").registeredLoosely("gz-semver2", "some.thing"), []string{"1.0.0", "2.0.0"})
	page := f.expect(f.do("GET", "registrations/gz-semver2/some.thing/page/1.0.0/9.0.0.json", nil), 200)
	for _, part := range []string{`"downloads":7`, "/nuget/acme/up/v3/registrations/gz-semver2/other.one/index.json"} {
		if !strings.Contains(page.Text, part) {
			t.Errorf("the page has no %s: %s", part, page.Text)
		}
	}
	if strings.Contains(page.Text, g.Host()) {
		t.Errorf("the page leads to the upstream: %s", page.Text)
	}
}

// registeredLoosely is registered without what only this registry says.
func (f *feed) registeredLoosely(hive, id string) (list []string) {
	f.t.Helper()
	type page struct {
		ID    string `json:"@id"`
		Items []struct{ CatalogEntry struct{ Version string } }
	}
	for _, p := range get[struct{ Items []page }](f, "registrations/"+hive+"/"+id+"/index.json").Items {
		if p.Items == nil {
			_, path, _ := strings.Cut(p.ID, "/v3/")
			p = get[page](f, path)
		}
		for _, leaf := range p.Items {
			list = append(list, leaf.CatalogEntry.Version)
		}
	}
	return list
}

func TestProxyRules(t *testing.T) {
	g := newGallery(t)
	g.register("some.thing",
		g.release("Some.Thing", "1.0.0", time.Now().Add(-100*time.Hour), []byte("old"), sha("old")),
		g.release("Some.Thing", "2.0.0", time.Now().Add(-time.Hour), []byte("new"), sha("new")),
	)
	// What is unlisted was released in 1900, as galleries have it.
	unlisted := func(version string, changed time.Time) map[string]any {
		leaf := g.release("Un.Listed", version, time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), []byte(version), sha(version))
		leaf["commitTimeStamp"] = changed.Format(time.RFC3339)
		return leaf
	}
	g.register("un.listed", unlisted("1.0.0", time.Now().Add(-100*time.Hour)), unlisted("2.0.0", time.Now().Add(-time.Hour)))
	g.register("bad.thing", g.release("Bad.Thing", "1.0.0", time.Now().Add(-100*time.Hour), []byte("bad"), sha("bad")))
	f := start(t, catalogtest.Options{})
	f.Proxy(t, "acme/up", Format, g.URL, func(u *meta.Upstream) {
		u.MinReleaseAge, u.Block = 72*time.Hour, []string{"bad.*"}
	})
	f = f.at("acme/up")
	same(t, "versions", f.versions("some.thing"), []string{"1.0.0"})
	same(t, "registered", f.registeredLoosely("gz-semver2", "some.thing"), []string{"1.0.0"})
	f.expect(f.do("GET", "flat/some.thing/1.0.0/some.thing.1.0.0.nupkg", nil), 200)
	same(t, "unlisted", f.versions("un.listed"), []string{"1.0.0"})
	f.expect(f.do("GET", "flat/un.listed/1.0.0/un.listed.1.0.0.nupkg", nil), 200)
	for _, path := range []string{"flat/un.listed/2.0.0/un.listed.2.0.0.nupkg", "flat/some.thing/2.0.0/some.thing.2.0.0.nupkg", "flat/some.thing/2.0.0/some.thing.nuspec", "registrations/gz-semver2/some.thing/2.0.0.json"} {
		if a := f.expect(f.do("GET", path, nil), 403); !strings.Contains(a.Text, "released less than") {
			t.Errorf("%s: %s", path, a.Text)
		}
	}
	for _, path := range []string{"flat/bad.thing/index.json", "registrations/gz-semver2/bad.thing/index.json", "flat/bad.thing/1.0.0/bad.thing.1.0.0.nupkg"} {
		f.expect(f.do("GET", path, nil), 403)
	}
	if g.Asked("flat/bad.thing/index.json")+g.Asked("reg/bad.thing/index.json") != 0 {
		t.Error("the upstream was asked for what is blocked")
	}
}

// Upstreams that are none, or send anything, are 502, never 500.
func TestProxyOfNonsense(t *testing.T) {
	f := start(t, catalogtest.Options{})
	registry := upstreamtest.NewRegistry(t)
	f.Proxy(t, "acme/up", Format, registry.URL, func(u *meta.Upstream) { u.DocumentTTL = time.Nanosecond })
	f = f.at("acme/up")
	for _, body := range []string{"<html>", "{}", `{"resources":[{"@id":"file:///etc/passwd","@type":"PackageBaseAddress/3.0.0"}]}`, `{"resources":[{"@id":7}]}`, "[]", "\x1f\x8b"} {
		registry.Put("v3/index.json", []byte(body))
		f.Later(2 * time.Hour)
		f.expect(f.do("GET", "flat/a/index.json", nil), 502)
	}
	g := newGallery(t)
	f.Proxy(t, "acme/odd", Format, g.URL, func(u *meta.Upstream) { u.DocumentTTL = time.Nanosecond })
	f = f.at("acme/odd")
	for body, want := range map[string][]int{
		"[]": {502}, `{"items":null}`: {404}, `{"items":[{"lower":"x","upper":"y"}]}`: {404}, `{"items":[{"lower":"1.0.0","upper":"2.0.0","items":[{"catalogEntry":7},{"catalogEntry":{"id":"a"}},{}]}]}`: {404},
		`{"items":[{"lower":"1.0.0","upper":"2.0.0","items":[{"catalogEntry":{"id":"a","version":"1.0.0","dependencyGroups":[7,{"dependencies":[7,{"id":7}]}]}}]}]}`: {200},
	} {
		g.Put("reg/a/index.json", []byte(body))
		f.Later(2 * time.Hour)
		if a := f.do("GET", "registrations/gz-semver2/a/index.json", nil); !slices.Contains(want, a.StatusCode) {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.Text)
		}
	}
}

// A name that is owned here is never the upstream's, whatever version that has; other
// names are.
func TestGroup(t *testing.T) {
	above := start(t, catalogtest.Options{})
	above.push("Acme.Demo", "9.9.9", "", 201)
	up := above.push("Only.Up", "1.0.0", "", 201)
	registry := upstreamtest.NewRegistry(t)
	registry.Handle(above.Handler)
	f := start(t, catalogtest.Options{})
	f.Hosted(t, "acme/second", Format)
	f.Proxy(t, "acme/up", Format, registry.URL+"/nuget/acme/nuget")
	f.Group(t, "acme/all", Format, "nuget", "nuget", "second", "up")
	own := f.push("Acme.Demo", "1.0.0", "", 201)
	f.at("acme/second").push("Acme.Demo", "1.0.0", "<title>shadowed</title>", 201)
	f.at("acme/second").push("Acme.Demo", "1.1.0", "", 201)
	f.at("acme/second").push("Second.Only", "1.0.0", "", 201)
	all := f.at("acme/all")
	same(t, "versions", all.versions("acme.demo"), []string{"1.0.0", "1.1.0"})
	same(t, "registered", all.registered("gz-semver2", "acme.demo"), []string{"1.0.0", "1.1.0"})
	if a := all.expect(all.do("GET", "flat/acme.demo/1.0.0/acme.demo.1.0.0.nupkg", nil), 200); a.Text != string(own) {
		t.Error("the second member's package came")
	}
	all.expect(all.do("GET", "flat/acme.demo/1.1.0/acme.demo.1.1.0.nupkg", nil), 200)
	all.expect(all.do("GET", "flat/acme.demo/9.9.9/acme.demo.9.9.9.nupkg", nil), 404)
	same(t, "proxied", all.versions("only.up"), []string{"1.0.0"})
	same(t, "proxied", all.registered("gz-semver2", "only.up"), []string{"1.0.0"})
	if a := all.expect(all.do("GET", "flat/only.up/1.0.0/only.up.1.0.0.nupkg", nil), 200); a.Text != string(up) {
		t.Error("the proxied package is another")
	}
	all.expect(all.do("GET", "flat/none/index.json", nil), 404)
	for path := range registry.All() {
		if strings.Contains(path, "acme.demo") {
			t.Errorf("the upstream was asked for %s", path)
		}
	}
	var ids []string
	for _, h := range get[struct{ Data []hit }](all, "query").Data {
		ids = append(ids, h.PackageID)
	}
	same(t, "found", ids, []string{"Acme.Demo", "Second.Only"})
	if a := all.expect(all.do("GET", "registrations/gz-semver2/acme.demo/index.json", nil), 200); strings.Contains(a.Text, "/nuget/acme/second/") || !strings.Contains(a.Text, "/nuget/acme/all/") {
		t.Errorf("the registration leads elsewhere: %s", a.Text)
	}
	// Writes go to the first member.
	all.push("Acme.Demo", "2.0.0", "", 201)
	same(t, "versions", f.versions("acme.demo"), []string{"1.0.0", "2.0.0"})
	all.expect(all.do("DELETE", "package/acme.demo/2.0.0", nil), http.StatusNoContent)
	f.Group(t, "acme/read", Format, "", "nuget")
	body, contentType := form(t, own)
	read := f.at("acme/read")
	read.expect(read.do("PUT", "package/", body, contentType), http.StatusMethodNotAllowed)
	// An upstream that is away is no reason to look further.
	registry.Cut(true)
	all.expect(all.do("GET", "flat/never.seen/index.json", nil), http.StatusServiceUnavailable)
}

func FuzzForeign(f *testing.F) {
	f.Add([]byte(`{"resources":[{"@id":"https://x.example/","@type":"PackageBaseAddress/3.0.0"},{"@id":"https://x.example/r","@type":["RegistrationsBaseUrl"]}]}`))
	f.Add([]byte(`{"items":[{"lower":"1.0","upper":"2.0","items":[{"catalogEntry":{"id":"a","version":"1.0","dependencyGroups":[{"dependencies":[{"id":"b"}]}]}}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		decode := func(v any) error {
			r, err := unpack(bytes.NewReader(b))
			if err != nil {
				return err
			}
			return json.NewDecoder(io.LimitReader(r, 1<<20)).Decode(v)
		}
		var index serviceIndex
		if decode(&index) == nil {
			if s, err := index.services(hiveSemVer2); err == nil && !strings.HasPrefix(s.flat, "http") {
				t.Errorf("services are %+v", s)
			}
		}
		var pages foreignIndex
		if decode(&pages) == nil {
			for _, page := range pages.Items {
				ours, err := rewrite(page.Items, hivePlain, "a", links{"https://here.example/"}, time.Time{})
				if err != nil {
					t.Error(err)
				}
				for _, text := range ours {
					var leaf struct {
						PackageContent string `json:"packageContent"`
					}
					if err := json.Unmarshal(text, &leaf); err != nil || !strings.HasPrefix(leaf.PackageContent, "https://here.example/") {
						t.Errorf("a leaf leads to %q, %v", leaf.PackageContent, err)
					}
				}
			}
		}
		var doc hashed
		if decode(&doc) == nil {
			doc.sums()
		}
	})
}
