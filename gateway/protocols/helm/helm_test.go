package helm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/archive/archivetest"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/gateway/protocols/helm"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

var update = flag.Bool("update", false, "write the answers of conversations anew")

// museum is a client of a running node.
type museum struct {
	*upstreamtest.Stack
	t        testing.TB
	protocol *helm.Protocol
}

func start(t testing.TB, o catalogtest.Options) *museum {
	t.Helper()
	x := &museum{t: t}
	x.Stack = upstreamtest.New(t, o, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		pages, err := rendered.New(rendered.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		x.protocol = helm.New(s.Catalog, pages, e)
		return []protocol.Protocol{x.protocol}
	})
	return x
}

// do sends a request about a path below /helm/acme/; headers are `Name: value`.
func (x *museum) do(method, path string, body []byte, headers ...string) catalogtest.Answer {
	x.t.Helper()
	return x.Ask(x.t, method, "/helm/acme/"+path, bytes.NewReader(body), headers...)
}

func (x *museum) expect(a catalogtest.Answer, status int) catalogtest.Answer {
	x.t.Helper()
	return a.Expect(x.t, status)
}

func chartOf(t testing.TB, name, version, content string) []byte {
	return archivetest.Tgz(t, name+"/Chart.yaml", "apiVersion: v2\nname: "+name+"\nversion: "+version+"\nappVersion: 1.16\ndescription: A <chart> & \"more\"\n"+
		"maintainers:\n- name: me\ndependencies:\n- name: other\n  version: 1.x\n  repository: https://example.com\n", name+"/values.yaml", content)
}

func provOf(name, version string, chart []byte) string {
	return "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nname: " + name + "\n\n...\nfiles:\n  " + name + "-" + version + ".tgz: " + string(digest.FromBytes(chart)) + "\n-----BEGIN PGP SIGNATURE-----\n"
}

// form encodes parts: name, content, ...
func form(t testing.TB, parts ...string) (contentType string, body []byte) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(parts); i += 2 {
		part, err := w.CreateFormFile(parts[i], "file")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := part.Write([]byte(parts[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return "Content-Type: " + w.FormDataContentType(), b.Bytes()
}

type entry struct {
	APIVersion, Name, Version, AppVersion, Description, Digest, Created string
	URLs                                                                []string
	Deprecated                                                          bool
	Dependencies                                                        []struct{ Name, Version, Repository string }
}

type index struct {
	APIVersion string `yaml:"apiVersion"`
	Entries    map[string][]map[string]any
	Generated  string
}

// index reads the index as YAML, and its charts as JSON.
func (x *museum) index(repo string) map[string][]entry {
	x.t.Helper()
	a := x.expect(x.do("GET", repo+"/index.yaml", nil), 200)
	var i index
	if err := yaml.Unmarshal([]byte(a.Text), &i); err != nil {
		x.t.Fatalf("%s: %v", a.Text, err)
	}
	if _, err := time.Parse(time.RFC3339Nano, i.Generated); err != nil || i.APIVersion != "v1" || a.Header.Get("Etag") == "" {
		x.t.Errorf("%+v, %v, %v", i, a.Header, err)
	}
	all := map[string][]entry{}
	for name, list := range i.Entries {
		for _, e := range list {
			raw, err := json.Marshal(e)
			if err != nil {
				x.t.Fatal(err)
			}
			var one entry
			if err := json.Unmarshal(raw, &one); err != nil {
				x.t.Fatal(err)
			}
			all[name] = append(all[name], one)
		}
	}
	return all
}

func TestUploadAndIndex(t *testing.T) {
	x := start(t, catalogtest.Options{})
	one, two := chartOf(t, "my-app", "1.0.0", "a"), chartOf(t, "my-app", "1.1.0-rc.1+build.5", "b")
	if a := x.expect(x.do("POST", "hl/api/charts", one, "Content-Type: application/x-www-form-urlencoded"), 201); a.Text != "{\"saved\":true}\n" {
		t.Error(a.Text)
	}
	prov := provOf("my-app", "1.1.0-rc.1+build.5", two)
	contentType, body := form(t, "prov", prov, "chart", string(two), "other", "x")
	x.expect(x.do("POST", "hl/api/charts", body, contentType), 201)
	x.expect(x.do("POST", "hl/api/charts", chartOf(t, "web", "0.1", "c")), 201)

	all := x.index("hl")
	if len(all) != 2 || len(all["my-app"]) != 2 || len(all["web"]) != 1 {
		t.Fatalf("%+v", all)
	}
	e := all["my-app"][0]
	if e.APIVersion != "v2" || e.Version != "1.0.0" || e.AppVersion != "1.16" || e.Description != `A <chart> & "more"` || e.Digest != digest.FromBytes(one).Encoded() ||
		len(e.URLs) != 1 || e.URLs[0] != "charts/my-app-1.0.0.tgz" || e.Created == "" || len(e.Dependencies) != 1 || e.Dependencies[0].Repository != "https://example.com" {
		t.Errorf("%+v", e)
	}
	for file, want := range map[string]string{
		"my-app-1.0.0.tgz": string(one), "my-app-1.1.0-rc.1+build.5.tgz": string(two), "my-app-1.1.0-rc.1+build.5.tgz.prov": prov,
	} {
		a := x.expect(x.do("GET", "hl/charts/"+file, nil), 200)
		if a.Text != want || a.Header.Get("Cache-Control") != "private, max-age=31536000, immutable" {
			t.Errorf("%s: %d bytes, %v", file, len(a.Text), a.Header)
		}
		x.expect(x.do("GET", "hl/charts/"+file, nil, "If-None-Match: "+a.Header.Get("Etag")), 304)
	}
	x.expect(x.do("GET", "hl/charts/my-app-1.0.0.tgz", nil, "Range: bytes=0-1"), 206)
	for _, absent := range []string{"charts/my-app-1.0.0.tgz.prov", "charts/my-app-2.0.0.tgz", "charts/my-1.0.0.tgz", "charts/x.tgz", "charts/a.txt", "api/charts/none", "api/charts/my-app/9.9.9", "api/charts/../x"} {
		if a := x.do("GET", "hl/"+absent, nil); a.StatusCode != 404 {
			t.Errorf("%s: %d %s", absent, a.StatusCode, a.Text)
		}
	}

	var list map[string][]entry
	if a := x.expect(x.do("GET", "hl/api/charts", nil), 200); json.Unmarshal([]byte(a.Text), &list) != nil || len(list["my-app"]) != 2 || len(list["web"]) != 1 {
		t.Error(a.Text)
	}
	var versions []entry
	if a := x.expect(x.do("GET", "hl/api/charts/my-app", nil), 200); json.Unmarshal([]byte(a.Text), &versions) != nil || len(versions) != 2 {
		t.Error(a.Text)
	}
	var version entry
	if a := x.expect(x.do("GET", "hl/api/charts/my-app/1.0.0", nil), 200); json.Unmarshal([]byte(a.Text), &version) != nil || version.Version != "1.0.0" {
		t.Error(a.Text)
	}
}

func TestDuplicatesAndDelete(t *testing.T) {
	x := start(t, catalogtest.Options{})
	one := chartOf(t, "app", "1.0.0", "a")
	x.expect(x.do("POST", "hl/api/charts", one), 201)
	x.expect(x.do("POST", "hl/api/charts", chartOf(t, "app", "1.1.0", "a")), 201)
	x.expect(x.do("POST", "hl/api/charts", one), 201) // the same again, as after a broken connection
	if a := x.expect(x.do("POST", "hl/api/charts?force", chartOf(t, "app", "1.0.0", "b")), 409); !strings.Contains(a.Text, "already exists") {
		t.Error(a.Text)
	}
	if a := x.expect(x.do("DELETE", "hl/api/charts/app/1.0.0", nil), 200); a.Text != "{\"deleted\":true}\n" {
		t.Error(a.Text)
	}
	x.expect(x.do("DELETE", "hl/api/charts/app/1.0.0", nil), 404)
	x.expect(x.do("GET", "hl/charts/app-1.0.0.tgz", nil), 404)
	x.expect(x.do("POST", "hl/api/charts", chartOf(t, "app", "1.0.0", "c")), 409)
	if all := x.index("hl"); len(all["app"]) != 1 || all["app"][0].Version != "1.1.0" {
		t.Errorf("%+v", all)
	}
	// A yanked version is no choice any more, a deprecated one says so; both are there.
	pkg, yes := catalog.Package{Repo: meta.RepoRef{Tenant: "acme", Name: "hl"}, Name: "app"}, true
	x.expect(x.do("POST", "hl/api/charts", chartOf(t, "app", "1.2.0", "a")), 201)
	if _, err := x.Catalog.Mark(t.Context(), catalog.Caller{}, pkg, "1.1.0", meta.Marking{Yanked: &yes}); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Catalog.Mark(t.Context(), catalog.Caller{}, pkg, "1.2.0", meta.Marking{Deprecated: &yes}); err != nil {
		t.Fatal(err)
	}
	if all := x.index("hl"); len(all["app"]) != 1 || all["app"][0].Version != "1.2.0" || !all["app"][0].Deprecated {
		t.Errorf("%+v", all)
	}
	x.expect(x.do("GET", "hl/charts/app-1.1.0.tgz", nil), 200)
}

func TestUploadRefused(t *testing.T) {
	x := start(t, catalogtest.Options{})
	x.expect(x.do("POST", "hl/api/charts", chartOf(t, "app", "0.1.0", "")), 201)
	good := chartOf(t, "app", "1.0.0", "")
	yaml := func(text string) []byte { return archivetest.Tgz(t, "app/Chart.yaml", text) }
	for name, c := range map[string]struct {
		body []byte
		says string
	}{
		"empty":          {nil, "tar.gz"},
		"no archive":     {[]byte("hello"), "tar.gz"},
		"cut off":        {good[:len(good)-4], "tar.gz"},
		"no Chart.yaml":  {archivetest.Tgz(t, "app/values.yaml", ""), "no Chart.yaml"},
		"two folders":    {archivetest.Tgz(t, "app/Chart.yaml", "apiVersion: v2\nname: app\nversion: 1.0.0\n", "b/c", ""), "one folder"},
		"no YAML":        {yaml(":\n- {"), "cannot be read"},
		"no apiVersion":  {yaml("name: app\nversion: 1.0.0\n"), "apiVersion"},
		"no name":        {yaml("apiVersion: v2\nversion: 1.0.0\n"), "no name"},
		"name":           {yaml("apiVersion: v2\nname: ../app\nversion: 1.0.0\n"), "no name"},
		"other name":     {yaml("apiVersion: v2\nname: web\nversion: 1.0.0\n"), "its folder"},
		"no version":     {yaml("apiVersion: v2\nname: app\n"), "no version"},
		"version":        {yaml("apiVersion: v2\nname: app\nversion: one\n"), "no version"},
		"traversal":      {archivetest.Tgz(t, "app/Chart.yaml", "apiVersion: v2\nname: app\nversion: 1.0.0\n", "app/../../x", ""), "leaves the folder"},
		"bomb":           {archivetest.Tgz(t, "app/Chart.yaml", "apiVersion: v2\nname: app\nversion: 1.0.0\n", "app/x", strings.Repeat("\x00", 80<<20)), "bomb"},
		"huge":           {yaml("apiVersion: v2\nname: app\nversion: 1.0.0\n#" + strings.Repeat("x", 300<<10)), "over"},
		"aliases":        {yaml("apiVersion: v2\nname: app\nversion: 1.0.0\na: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nkeywords: [*c,*c,*c,*c]\n"), "cannot be read"},
		"many times":     {yaml("apiVersion: v2\nname: app\nversion: 1.0.0\nsources:\n- &a " + strings.Repeat("x", 50<<10) + strings.Repeat("\n- *a", 400) + "\n"), "more than"},
		"two spellings":  {archivetest.Tgz(t, "app/Chart.yaml", "apiVersion: v2\nname: app\nversion: 1.0.0\n", "app/./Chart.yaml", "apiVersion: v2\nname: app\nversion: 9.0.0\n"), "twice"},
		"backslash":      {archivetest.Tgz(t, "app/Chart.yaml", "apiVersion: v2\nname: app\nversion: 1.0.0\n", `app/x\Chart.yaml`, "apiVersion: v2\nname: app\nversion: 9.0.0\n"), "backslash"},
		"large metadata": {yaml("apiVersion: v2\nname: app\nversion: 1.0.0\ndependencies:\n" + strings.Repeat("- name: abcdefghijklmnopqrstuvwxyz\n", 1000)), "dependencies"},
	} {
		if a := x.do("POST", "hl/api/charts", c.body); a.StatusCode != 400 || !strings.Contains(a.Text, c.says) {
			t.Errorf("%s: %d %q, want 400 and %q", name, a.StatusCode, a.Text, c.says)
		}
	}
	for name, parts := range map[string][]string{
		"no chart": {"prov", "x"}, "two charts": {"chart", string(good), "chart", string(good)}, "two provs": {"chart", string(good), "prov", "x", "prov", "y"},
		"prov of another": {"chart", string(good), "prov", provOf("app", "1.0.0", []byte("x"))}, "prov unsigned": {"chart", string(good), "prov", "hello"},
		"long prov": {"chart", string(good), "prov", strings.Repeat("x", 2<<20)}, "long part": {"x", strings.Repeat("x", 2<<20), "chart", string(good)},
	} {
		contentType, body := form(t, parts...)
		if a := x.do("POST", "hl/api/charts", body, contentType); a.StatusCode != 400 {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.Text)
		}
	}
	if all := x.index("hl"); len(all["app"]) != 1 {
		t.Errorf("something was stored: %+v", all)
	}
	// What is long and says little is left out of the index, the chart is taken.
	x.expect(x.do("POST", "hl/api/charts", yaml("apiVersion: v2\nname: app\nversion: 2.0.0\ndescription: short\nannotations:\n  a: "+strings.Repeat("x", 50<<10)+"\n")), 201)
	if all := x.index("hl"); len(all["app"]) != 2 || all["app"][1].Description != "short" {
		t.Errorf("%+v", all)
	}
}

// NAME-VERSION can be read in several ways where a version has a prerelease of its own: an
// address never changes what it leads to, and one that is owned here leads nowhere else.
func TestOneFileName(t *testing.T) {
	r := upstreamtest.NewRegistry(t)
	r.Put("index.yaml", []byte("apiVersion: v1\nentries:\n  app:\n  - name: app\n    version: 7-1.0.0\n    urls: [evil.tgz]\n  web:\n  - name: web\n    version: 8-1.0.0\n    urls: [web.tgz]\n"))
	r.Put("evil.tgz", []byte("evil"))
	r.Put("web.tgz", []byte("web"))
	x := start(t, catalogtest.Options{})
	x.Hosted(t, "acme/hl", helm.Format)
	x.Proxy(t, "acme/hp", helm.Format, r.URL)
	x.Group(t, "acme/all", helm.Format, "hl", "hl", "hp")
	ours := chartOf(t, "app-7", "1.0.0", "ours")
	x.expect(x.do("POST", "all/api/charts", ours), 201)
	if a := x.expect(x.do("GET", "all/charts/app-7-1.0.0.tgz", nil), 200); a.Text != string(ours) {
		t.Errorf("the chart of another is given out: %.10q", a.Text)
	}
	if a := x.expect(x.do("GET", "all/charts/web-8-1.0.0.tgz", nil), 200); a.Text != "web" {
		t.Errorf("%.10q", a.Text)
	}
	if a := x.expect(x.do("POST", "hl/api/charts", chartOf(t, "app", "7-1.0.0", "other")), 409); !strings.Contains(a.Text, "app-7-1.0.0.tgz") {
		t.Error(a.Text)
	}
	if a := x.expect(x.do("GET", "hl/charts/app-7-1.0.0.tgz", nil), 200); a.Text != string(ours) {
		t.Errorf("the file changed: %.10q", a.Text)
	}
	x.expect(x.do("POST", "hl/api/charts", ours), 201)
	x.expect(x.do("POST", "hl/api/charts", chartOf(t, "app", "7.1.0", "other")), 201)
}

// A rule that is made counts for an index that is there.
func TestRuleChanges(t *testing.T) {
	r := museumWith(t)
	x := start(t, catalogtest.Options{})
	x.Proxy(t, "acme/hp", helm.Format, r.URL+"/repo")
	if all := x.index("hp"); len(all["app"]) != 1 {
		t.Errorf("%+v", all)
	}
	block := []string{"app"}
	if _, err := x.Metadata.Do(t.Context(), state.Origin{Principal: "user:admin"}, state.SetRepository{
		Ref: meta.RepoRef{Tenant: "acme", Name: "hp"}, Upstream: &state.UpstreamChange{Block: &block},
	}); err != nil {
		t.Fatal(err)
	}
	if all := x.index("hp"); len(all["app"]) != 0 || len(all["nginx-stable"]) != 2 {
		t.Errorf("%+v", all)
	}
}

func TestRace(t *testing.T) {
	x := start(t, catalogtest.Options{})
	x.expect(x.do("POST", "hl/api/charts", chartOf(t, "app", "0.1.0", "")), 201)
	catalogtest.Race(t, 16, 201, 409, func(i int) func() catalogtest.Answer {
		body := chartOf(t, "app", "1.0.0", fmt.Sprint(i))
		return func() catalogtest.Answer { return x.do("POST", "hl/api/charts", body) }
	})
}

const foreignIndex = `apiVersion: v1
entries:
  # a comment
  nginx-stable:
  - apiVersion: v2
    appVersion: 1.25
    created: "2020-01-01T00:00:00Z"
    description: |
      many lines

      entries:
    digest: %[2]s
    keywords:
    - web
    name: nginx-stable
    urls:
    - charts/nginx-stable-1.0.0.tgz
    version: 1.0.0
  - apiVersion: v2
    created: "%[4]s"
    digest: sha256:%[3]s
    name: nginx-stable
    urls:
    - %[1]s/far/n.tgz
    version: 1.1.0
  "app":
    - {"apiVersion":"v2","name":"app","version":"9.9.9","urls":["evil.tgz"],"created":"2020-01-01T00:00:00Z"}
  broken:
  - name: other
    version: 1.0.0
    urls: [x]
  - name: broken
    version: ../1
    urls: [x]
  - [1
  local:
  - name: local
    version: 1.0.0
    urls: ["file:///etc/passwd"]
    created: "2020-01-01T00:00:00Z"
generated: "2026-01-01T00:00:00Z"
serverInfo: {}
`

func museumWith(t *testing.T) *upstreamtest.Registry {
	r := upstreamtest.NewRegistry(t)
	r.Put("repo/index.yaml", fmt.Appendf(nil, foreignIndex, r.URL, digest.FromBytes([]byte("one")).Encoded(), digest.FromBytes([]byte("two")).Encoded(),
		time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)), "Content-Type: text/yaml")
	r.Put("repo/charts/nginx-stable-1.0.0.tgz", []byte("one"))
	r.Put("repo/charts/nginx-stable-1.0.0.tgz.prov", []byte("signed"))
	r.Put("far/n.tgz", []byte("two"))
	r.Put("repo/evil.tgz", []byte("evil"))
	return r
}

func TestProxy(t *testing.T) {
	r := museumWith(t)
	x := start(t, catalogtest.Options{})
	x.Proxy(t, "acme/hp", helm.Format, r.URL+"/repo/")
	all := x.index("hp")
	if len(all) != 3 || len(all["nginx-stable"]) != 2 || all["nginx-stable"][1].URLs[0] != "charts/nginx-stable-1.1.0.tgz" || all["nginx-stable"][0].AppVersion != "1.25" ||
		!strings.Contains(all["nginx-stable"][0].Description, "entries:") {
		t.Fatalf("%+v", all)
	}
	for file, want := range map[string]string{"nginx-stable-1.0.0.tgz": "one", "nginx-stable-1.0.0.tgz.prov": "signed", "nginx-stable-1.1.0.tgz": "two"} {
		for range 2 {
			if a := x.expect(x.do("GET", "hp/charts/"+file, nil), 200); a.Text != want {
				t.Errorf("%s: %q", file, a.Text)
			}
		}
	}
	for path, n := range r.All() {
		if n != 1 {
			t.Errorf("%s was asked for %d times", path, n)
		}
	}
	for _, absent := range []string{"charts/nginx-stable-2.0.0.tgz", "charts/local-1.0.0.tgz", "charts/none-1.0.0.tgz", "api/charts/none"} {
		if a := x.do("GET", "hp/"+absent, nil); a.StatusCode != 404 {
			t.Errorf("%s: %d %s", absent, a.StatusCode, a.Text)
		}
	}
	var versions []entry
	if a := x.expect(x.do("GET", "hp/api/charts/nginx-stable", nil), 200); json.Unmarshal([]byte(a.Text), &versions) != nil || len(versions) != 2 {
		t.Error(a.Text)
	}
	x.expect(x.do("POST", "hp/api/charts", chartOf(t, "app", "1.0.0", "")), 405)
	x.expect(x.do("DELETE", "hp/api/charts/app/9.9.9", nil), 405)
	r.Cut(true)
	x.Later(24 * time.Hour)
	if a := x.expect(x.do("GET", "hp/index.yaml", nil), 200); len(a.Header.Values("Warning")) == 0 {
		t.Errorf("%v", a.Header)
	}
	x.expect(x.do("GET", "hp/charts/nginx-stable-1.1.0.tgz", nil), 200)
}

func TestProxyRules(t *testing.T) {
	r := museumWith(t)
	x := start(t, catalogtest.Options{})
	x.Proxy(t, "acme/aged", helm.Format, r.URL+"/repo", func(u *meta.Upstream) { u.MinReleaseAge = 24 * time.Hour; u.Block = []string{"app"} })
	if all := x.index("aged"); len(all["nginx-stable"]) != 1 || len(all["app"]) != 0 {
		t.Errorf("%+v", all)
	}
	x.expect(x.do("GET", "aged/charts/nginx-stable-1.0.0.tgz", nil), 200)
	x.expect(x.do("GET", "aged/charts/nginx-stable-1.1.0.tgz", nil), 404)
	x.expect(x.do("GET", "aged/charts/app-9.9.9.tgz", nil), 404)
	r.Put("repo/index.yaml", []byte("entries: &a {x: [*a]}\n"))
	x.Proxy(t, "acme/odd", helm.Format, r.URL+"/repo")
	if a := x.do("GET", "odd/index.yaml", nil); a.StatusCode != http.StatusBadGateway {
		t.Errorf("%d %s", a.StatusCode, a.Text)
	}
}

// A name that is owned here never comes from upstream.
func TestGroup(t *testing.T) {
	r := museumWith(t)
	second := upstreamtest.NewRegistry(t)
	second.Put("index.yaml", []byte(`{"apiVersion":"v1","entries":{"nginx-stable":[{"apiVersion":"v2","name":"nginx-stable","version":"7.0.0","urls":["x.tgz"]}],"redis":[{"apiVersion":"v2","name":"redis","version":"1.0.0","urls":["x.tgz"]}]}}`))
	second.Put("x.tgz", []byte("redis"))
	x := start(t, catalogtest.Options{})
	x.Hosted(t, "acme/hl", helm.Format)
	x.Proxy(t, "acme/hp", helm.Format, r.URL+"/repo")
	x.Proxy(t, "acme/hq", helm.Format, second.URL)
	x.Group(t, "acme/all", helm.Format, "hl", "hl", "hp", "hq")
	x.expect(x.do("POST", "all/api/charts", chartOf(t, "app", "1.0.0", "")), 201)
	all := x.index("all")
	if len(all["app"]) != 1 || all["app"][0].Version != "1.0.0" || len(all["nginx-stable"]) != 2 || len(all["redis"]) != 1 {
		t.Errorf("%+v", all)
	}
	x.expect(x.do("GET", "all/charts/app-1.0.0.tgz", nil), 200)
	x.expect(x.do("GET", "all/charts/app-9.9.9.tgz", nil), 404)
	x.expect(x.do("GET", "all/charts/nginx-stable-7.0.0.tgz", nil), 404)
	if a := x.expect(x.do("GET", "all/charts/redis-1.0.0.tgz", nil), 200); a.Text != "redis" {
		t.Error(a.Text)
	}
	// What came from one upstream stays that one's, when another has the name too.
	r.Put("repo/index.yaml", []byte("apiVersion: v1\nentries:\n  redis:\n  - name: redis\n    version: 9.0.0\n    urls: [evil.tgz]\n  new:\n  - name: new\n    version: 1.0.0\n    urls: [evil.tgz]\n"))
	x.Later(24 * time.Hour)
	if all := x.index("all"); len(all["redis"]) != 1 || all["redis"][0].Version != "1.0.0" || len(all["new"]) != 1 {
		t.Errorf("%+v", all)
	}
	x.expect(x.do("GET", "all/charts/redis-9.0.0.tgz", nil), 404)
	x.expect(x.do("GET", "all/charts/redis-1.0.0.tgz", nil), 200)
	x.expect(x.do("GET", "all/api/charts/redis/9.0.0", nil), 404)
	// Also when the last version is gone the name stays ours.
	x.expect(x.do("DELETE", "all/api/charts/app/1.0.0", nil), 200)
	if all := x.index("all"); len(all["app"]) != 0 {
		t.Errorf("%+v", all)
	}
	x.expect(x.do("GET", "all/charts/app-9.9.9.tgz", nil), 404)
}

func TestManyCharts(t *testing.T) {
	x := start(t, catalogtest.Options{})
	x.expect(x.do("POST", "hl/api/charts", chartOf(t, "a", "0.1.0", "")), 201)
	const charts = 600
	for i := range charts {
		_, err := x.Catalog.Publish(t.Context(), catalog.Caller{}, meta.RepoRef{Tenant: "acme", Name: "hl"}, catalog.Draft{
			Version:   meta.Version{Package: fmt.Sprintf("c%03d", i/2), Name: fmt.Sprintf("1.%d.0", i), Summary: []byte(`{"apiVersion":"v2"}`)},
			Documents: []catalog.Document{{Path: "x", Body: []byte("x")}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if all := x.index("hl"); len(all) != charts/2+1 || len(all["c000"]) != 2 {
		t.Errorf("%d charts", len(all))
	}
}

func TestProtocol(t *testing.T) {
	x := start(t, catalogtest.Options{})
	one := chartOf(t, "app", "1.0.0", "")
	x.expect(x.do("POST", "hl/api/charts", one), 201)
	const name = "/helm/acme/hl"
	protocoltest.Run(t, protocoltest.Case{
		Protocol: x.protocol, Metadata: access.Records{Asker: x.Metadata},
		Repo: meta.RepoRef{Tenant: "acme", Name: "hl"}, Absent: meta.RepoRef{Tenant: "acme", Name: "hm"},
		Reads: []protocoltest.Request{
			{Method: "GET", Path: name + "/index.yaml"}, {Method: "GET", Path: name + "/charts/app-1.0.0.tgz"}, {Method: "GET", Path: name + "/api/charts"},
			{Method: "GET", Path: name + "/api/charts/app"}, {Method: "GET", Path: name + "/api/charts/app/1.0.0"},
		},
		Writes: []protocoltest.Request{
			{Method: "POST", Path: name + "/api/charts", Body: one}, {Method: "DELETE", Path: name + "/api/charts/app/1.0.0"},
		},
		CheckError: func(_ int, _ http.Header, body []byte) error {
			var doc struct{ Error string }
			if err := json.Unmarshal(body, &doc); err != nil {
				return err
			}
			if doc.Error == "" {
				return fmt.Errorf("no error in %s", body)
			}
			return nil
		},
	})
}

func TestConversation(t *testing.T) {
	x := start(t, catalogtest.Options{})
	x.expect(x.do("POST", "hl/api/charts", chartOf(t, "app", "1.0.0", "")), 201)
	x.expect(x.do("POST", "hl/api/charts", chartOf(t, "app", "1.1.0", "")), 201)
	catalogtest.Converse(t, x.Stack.Stack, "testdata/helm.txtar", *update, "")
}

func TestReference(t *testing.T) {
	p := helm.New(nil, nil, nil)
	if got, err := p.ParseReference("/my-app:1.0.0-rc.1"); err != nil || got != (protocol.Reference{Package: "my-app", Version: "1.0.0-rc.1"}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "/", "/app", "app:1.0.0", "/app:", "/app:x", "/a/b:1.0.0"} {
		if got, err := p.ParseReference(text); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	x := start(t, catalogtest.Options{})
	x.expect(x.do("POST", "hl/api/charts", chartOf(t, "app", "1.0.0", "")), 201)
	v := meta.Version{Repo: meta.RepoRef{Tenant: "acme", Name: "hl"}, Package: "app", Name: "1.0.0"}
	if blobs, err := x.protocol.Closure(t.Context(), meta.Principal{}, v, ""); err != nil || len(blobs) != 1 {
		t.Errorf("%+v, %v", blobs, err)
	}
}
