package cargo_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/archive/archivetest"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/cargo"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

var update = flag.Bool("update", false, "write the answers of conversations anew")

// crates is a client of a running node.
type crates struct {
	*upstreamtest.Stack
	t testing.TB
	p *cargo.Protocol
}

func start(t testing.TB, o catalogtest.Options) *crates {
	t.Helper()
	c := &crates{t: t}
	pages, err := rendered.New(rendered.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	c.Stack = upstreamtest.New(t, o, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		c.p = cargo.New(s.Catalog, pages, e)
		return []protocol.Protocol{c.p}
	})
	return c
}

// do sends a request about a path below /cargo/acme/cargo/, or an absolute one; headers
// are `Name: value`.
func (c *crates) do(method, path, body string, headers ...string) catalogtest.Answer {
	c.t.Helper()
	if !strings.HasPrefix(path, "/") {
		path = "/cargo/acme/cargo/" + path
	}
	return c.Ask(c.t, method, path, strings.NewReader(body), headers...)
}

func (c *crates) expect(a catalogtest.Answer, status int) catalogtest.Answer {
	c.t.Helper()
	return a.Expect(c.t, status)
}

// file is one of a crate, below NAME-VERSION/ unless it begins with a slash.
type file struct{ name, text string }

// packed is a crate.
func packed(t testing.TB, folder string, files ...file) string {
	t.Helper()
	return string(archivetest.Tgz(t, below(folder, files)...))
}

// below are the names and texts of files in a folder.
func below(folder string, files []file) (all []string) {
	for _, f := range files {
		name, raw := strings.CutPrefix(f.name, "/")
		if !raw {
			name = folder + "/" + name
		}
		all = append(all, name, f.text)
	}
	return all
}

func framed(parts ...string) string {
	var b []byte
	for _, p := range parts {
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(p))), p...)
	}
	return string(b)
}

func manifest(name, version string) string {
	return fmt.Sprintf("[package]\nname = %q\nversion = %q\nedition = \"2021\"\n", name, version)
}

// said is what cargo says of a crate without dependencies.
func said(name, version string) string {
	return fmt.Sprintf(`{"name":%q,"vers":%q,"deps":[],"features":{},"authors":[],"description":"about %s","documentation":null,"homepage":null,"readme":null,"readme_file":null,"keywords":[],"categories":[],"license":"MIT","license_file":null,"repository":null,"badges":{},"links":null,"rust_version":null}`, name, version, name)
}

func crate(t testing.TB, name, version, text string) string {
	t.Helper()
	return packed(t, name+"-"+version, file{"Cargo.toml", manifest(name, version)}, file{"src/lib.rs", "// " + text + "\n"})
}

func (c *crates) put(name, version, text string) catalogtest.Answer {
	c.t.Helper()
	return c.do("PUT", "api/v1/crates/new", framed(said(name, version), crate(c.t, name, version, text)))
}

func TestConversation(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.expect(c.put("demo", "1.0.0", "one"), 200)
	catalogtest.Converse(t, c.Stack.Stack, "testdata/cargo.txtar", *update, "")
}

func TestPublishAndRead(t *testing.T) {
	c := start(t, catalogtest.Options{})
	meta1 := `{"name":"Fancy_Demo","vers":"1.2.0","deps":[
		{"name":"serde","version_req":"^1.0","features":["derive"],"optional":true,"default_features":false,"target":null,"kind":"normal","registry":"https://example.com/index","explicit_name_in_toml":null},
		{"name":"winapi","version_req":">=0.3, <0.5","features":[],"optional":false,"default_features":true,"target":"cfg(windows)","kind":"normal","registry":null,"explicit_name_in_toml":"win"},
		{"name":"cc","version_req":"*","features":[],"optional":false,"default_features":true,"target":null,"kind":"build","registry":null}],
		"features":{"default":["std"],"std":[],"serde":["dep:serde"]},"links":"demo","rust_version":"1.70","description":"line\none","readme":"# long"}`
	toml := `[package]
name = "Fancy_Demo"
version = "1.2.0"
links = "demo"
[dependencies.serde]
version = "1.0"
optional = true
default-features = false
registry-index = "https://example.com/index"
[build-dependencies]
cc = "*"
[dev-dependencies.local]
path = "../local"
[target."cfg(windows)".dependencies.win]
version = ">=0.3,<0.5"
package = "winapi"
`
	body := packed(t, "Fancy_Demo-1.2.0", file{"Cargo.toml", toml}, file{"src/lib.rs", ""})
	sum := digest.FromBytes([]byte(body)).Encoded()
	a := c.expect(c.do("PUT", "api/v1/crates/new", framed(meta1, body)), 200)
	token := "Shoal-Token: " + a.Header.Get("Shoal-Token")
	if !strings.Contains(a.Text, `"warnings"`) {
		t.Errorf("a publish answers %s", a.Text)
	}
	want := `{"name":"Fancy_Demo","vers":"1.2.0","deps":[` +
		`{"name":"serde","req":"^1.0","features":["derive"],"optional":true,"default_features":false,"target":null,"kind":"normal","registry":"https://example.com/index","package":null},` +
		`{"name":"win","req":">=0.3, <0.5","features":[],"optional":false,"default_features":true,"target":"cfg(windows)","kind":"normal","registry":null,"package":"winapi"},` +
		`{"name":"cc","req":"*","features":[],"optional":false,"default_features":true,"target":null,"kind":"build","registry":null,"package":null}],` +
		`"cksum":"` + sum + `","features":{"default":["std"],"std":[]},"links":"demo","v":2,"features2":{"serde":["dep:serde"]},"rust_version":"1.70","yanked":false}` + "\n"
	index := c.expect(c.do("GET", "fa/nc/fancy_demo", "", token), 200)
	if index.Text != want {
		t.Errorf("the index has\n%s\nwant\n%s", index.Text, want)
	}
	if a := c.do("GET", "fa/nc/fancy_demo", "", "If-None-Match: "+index.Header.Get("Etag")); a.StatusCode != 304 {
		t.Errorf("unchanged it answers %d", a.StatusCode)
	}
	for _, name := range []string{"Fancy_Demo", "fancy-demo"} {
		if a := c.expect(c.do("GET", "api/v1/crates/"+name+"/1.2.0/download", ""), 200); a.Text != body {
			t.Errorf("%s: %d bytes", name, len(a.Text))
		}
	}
	for _, path := range []string{
		"fa/nc/fancy-demo", "fa/nc/Fancy_Demo", "fa/xx/fancy_demo", "3/f/fancy_demo", "ab/se/absent", "1/x", "2/xy", "3/x/xyz", "1/ab", "api/v1/crates/Fancy_Demo/1.0.0/download",
		"api/v1/crates/absent/1.0.0/download", "api/v1/crates/absent/owners", "api/v1/crates/Fancy_Demo/1.2/download", "x/../y",
	} {
		c.expect(c.do("GET", path, ""), 404)
	}
	for _, name := range []string{"a", "ab", "abc", "abcd"} {
		c.expect(c.put(name, "0.1.0", ""), 200)
	}
	for _, path := range []string{"1/a", "2/ab", "3/a/abc", "ab/cd/abcd"} {
		c.expect(c.do("GET", path, ""), 200)
	}
	if a := c.expect(c.do("GET", "api/v1/crates/fancy_demo/owners", ""), 200); !strings.Contains(a.Text, `{"id":1,"login":"anonymous","name":""}`) {
		t.Errorf("owners are %s", a.Text)
	}
	var found struct {
		Crates []struct {
			Name        string
			MaxVersion  string `json:"max_version"`
			Description string
		}
		Meta struct{ Total int }
	}
	a = c.expect(c.do("GET", "api/v1/crates?q=fancy-d&per_page=5", ""), 200)
	if err := json.Unmarshal([]byte(a.Text), &found); err != nil || found.Meta.Total != 1 || found.Crates[0].Name != "Fancy_Demo" || found.Crates[0].MaxVersion != "1.2.0" || found.Crates[0].Description != "line one" {
		t.Errorf("found %s, %v", a.Text, err)
	}
	a = c.expect(c.do("GET", "api/v1/crates?q=a&per_page=2&page=2", ""), 200)
	if err := json.Unmarshal([]byte(a.Text), &found); err != nil || found.Meta.Total != 5 || len(found.Crates) != 2 || found.Crates[0].Name != "abc" {
		t.Errorf("the second page is %s, %v", a.Text, err)
	}
}

// Names that are taken for one another are one name, spelt as its first publisher did.
func TestSpelling(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.expect(c.put("My_Crate", "1.0.0", "x"), 200)
	for _, name := range []string{"my_crate", "My-Crate", "MY_CRATE"} {
		if a := c.expect(c.put(name, "1.1.0", "x"), 409); !strings.Contains(a.Text, "My_Crate") {
			t.Errorf("%s is refused with %s", name, a.Text)
		}
	}
	c.expect(c.put("My_Crate", "1.1.0", "x"), 200)
	if a := c.expect(c.do("GET", "my/_c/my_crate", ""), 200); strings.Count(a.Text, "\n") != 2 {
		t.Errorf("the index has %s", a.Text)
	}
	// Versions do not differ by build metadata.
	c.expect(c.put("My_Crate", "1.2.0+one", "x"), 200)
	c.expect(c.put("My_Crate", "1.2.0+two", "x"), 409)
	c.expect(c.put("My_Crate", "1.2.0", "x"), 409)
	if a := c.expect(c.do("GET", "my/_c/my_crate", ""), 200); !strings.Contains(a.Text, `"vers":"1.2.0+one"`) {
		t.Errorf("the index has %s", a.Text)
	}
	c.expect(c.do("GET", "api/v1/crates/My_Crate/1.2.0+one/download", ""), 200)
}

func TestYankAndDelete(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.expect(c.put("demo", "1.0.0", "x"), 200)
	c.expect(c.put("demo", "1.1.0", "x"), 200)
	yanked := func(want string) {
		t.Helper()
		var got []string
		a := c.expect(c.do("GET", "de/mo/demo", ""), 200)
		for line := range strings.Lines(a.Text) {
			var l struct {
				Vers   string
				Yanked *bool
			}
			if err := json.Unmarshal([]byte(line), &l); err != nil || l.Yanked == nil {
				t.Fatalf("line %s: %v", line, err)
			}
			got = append(got, fmt.Sprintf("%s %t", l.Vers, *l.Yanked))
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("the index has %v, want %s", got, want)
		}
	}
	yanked("1.0.0 false, 1.1.0 false")
	c.expect(c.do("DELETE", "api/v1/crates/demo/1.1.0/yank", ""), 200)
	yanked("1.0.0 false, 1.1.0 true")
	c.expect(c.do("GET", "api/v1/crates/demo/1.1.0/download", ""), 200)
	if a := c.expect(c.do("GET", "api/v1/crates?q=demo", ""), 200); !strings.Contains(a.Text, `"max_version":"1.0.0"`) {
		t.Errorf("found %s", a.Text)
	}
	c.expect(c.do("PUT", "api/v1/crates/demo/1.1.0/unyank", ""), 200)
	yanked("1.0.0 false, 1.1.0 false")
	c.expect(c.do("DELETE", "api/v1/crates/demo/9.0.0/yank", ""), 404)
	c.expect(c.do("DELETE", "api/v1/crates/nomo/1.0.0/yank", ""), 404)

	ref := meta.RepoRef{Tenant: "acme", Name: "cargo"}
	if _, err := c.Metadata.Do(t.Context(), state.Origin{Principal: "user:curator"}, state.QuarantineVersion{Repo: ref, Package: "demo", Version: "1.0.0", Reason: "the token was stolen"}); err != nil {
		t.Fatal(err)
	}
	yanked("1.1.0 false")
	if a := c.expect(c.do("GET", "api/v1/crates/demo/1.0.0/download", ""), 403); !strings.Contains(a.Text, "the token was stolen") {
		t.Errorf("quarantine says %s", a.Text)
	}
	by := catalog.Caller{Who: meta.Principal{Name: "user:x"}}
	if _, err := c.Catalog.DeleteVersion(t.Context(), by, catalog.Package{Repo: ref, Name: "demo"}, "1.1.0"); err != nil {
		t.Fatal(err)
	}
	if a := c.expect(c.put("demo", "1.1.0", "other"), 409); !strings.Contains(a.Text, "already exists") {
		t.Errorf("deleted and other bytes: %s", a.Text)
	}
	c.expect(c.put("demo", "1.1.0", "x"), 200)
	yanked("1.1.0 false")
}

// What cargo would not send is refused, and nothing of it is there.
func TestRefused(t *testing.T) {
	c := start(t, catalogtest.Options{Content: catalogtest.NewMemory()})
	good, about := crate(t, "demo", "1.0.0", "x"), said("demo", "1.0.0")
	with := func(files ...file) string {
		return framed(about, packed(t, "demo-1.0.0", append([]file{{"Cargo.toml", manifest("demo", "1.0.0")}}, files...)...))
	}
	dep := func(deps, toml string) string {
		return framed(strings.Replace(about, `"deps":[]`, `"deps":[`+deps+`]`, 1), packed(t, "demo-1.0.0", file{"Cargo.toml", manifest("demo", "1.0.0") + toml}))
	}
	serde := `{"name":"serde","version_req":"^1.0","features":[],"optional":false,"default_features":true,"target":null,"kind":"normal","registry":null}`
	for name, r := range map[string]struct {
		body string
		want int
	}{
		"nothing":                  {"", 400},
		"half a length":            {"\x01\x00", 400},
		"half the metadata":        {framed(about)[:40], 400},
		"no JSON":                  {framed("{", good), 400},
		"no crate":                 {framed(about), 400},
		"half the crate":           {framed(about, good)[:len(about)+50], 400},
		"more than the crate":      {framed(about, good) + "x", 400},
		"large metadata":           {"\xff\xff\xff\x00" + about, 413},
		"large crate":              {framed(about) + "\xff\xff\xff\xff", 413},
		"no archive":               {framed(about, "hello"), 400},
		"an archive cut short":     {framed(about, good[:len(good)-20]), 400},
		"another crate":            {framed(about, crate(t, "demi", "1.0.0", "x")), 400},
		"another version":          {framed(about, crate(t, "demo", "1.0.1", "x")), 400},
		"another manifest":         {framed(about, packed(t, "demo-1.0.0", file{"Cargo.toml", manifest("demi", "1.0.0")})), 400},
		"no manifest":              {framed(about, packed(t, "demo-1.0.0", file{"src/lib.rs", ""})), 400},
		"two manifests":            {with(file{"Cargo.toml", manifest("demo", "1.0.0")}), 400},
		"cargo.toml":               {with(file{"cargo.toml", "x"}), 400},
		"outside":                  {with(file{"/../x", ""}), 400},
		"beside":                   {with(file{"/demo-1.0.1/x", ""}), 400},
		"up":                       {with(file{"../x", ""}), 400},
		"a manifest of no TOML":    {framed(about, packed(t, "demo-1.0.0", file{"Cargo.toml", "=\n"})), 400},
		"a manifest of arrays":     {framed(about, packed(t, "demo-1.0.0", file{"Cargo.toml", "x = " + strings.Repeat("[", 500_000)})), 400},
		"a hidden dependency":      {dep("", "[dependencies]\nserde = \"1.0\"\n"), 400},
		"an invented dependency":   {dep(serde, ""), 400},
		"another dependency":       {dep(serde, "[dependencies]\nserde = \"2.0\"\n"), 400},
		"of another kind":          {dep(serde, "[build-dependencies]\nserde = \"1.0\"\n"), 400},
		"for another target":       {dep(serde, "[target.'cfg(unix)'.dependencies]\nserde = \"1.0\"\n"), 400},
		"under another name":       {dep(serde, "[dependencies.serde]\nversion = \"1.0\"\npackage = \"evil\"\n"), 400},
		"a dependency's bad name":  {dep(strings.Replace(serde, "serde", "../x", 1), ""), 400},
		"a name with a slash":      {framed(said("de/mo", "1.0.0"), good), 400},
		"a name with a digit":      {framed(said("1demo", "1.0.0"), good), 400},
		"a long name":              {framed(said(strings.Repeat("d", 65), "1.0.0"), good), 400},
		"a name of Windows":        {framed(said("COM1", "1.0.0"), good), 400},
		"no name":                  {framed(said("", "1.0.0"), good), 400},
		"a short version":          {framed(said("demo", "1.0"), good), 400},
		"a version with a v":       {framed(said("demo", "v1.0.0"), good), 400},
		"a version with a zero":    {framed(said("demo", "01.0.0"), good), 400},
		"a version with a newline": {framed(said("demo", "1.0.0\n"), good), 400},
	} {
		t.Run(name, func(t *testing.T) {
			c.t = t
			a := c.expect(c.do("PUT", "api/v1/crates/new", r.body), r.want)
			var f struct{ Errors []struct{ Detail string } }
			if err := json.Unmarshal([]byte(a.Text), &f); err != nil || len(f.Errors) != 1 || f.Errors[0].Detail == "" || len(a.Text) > 1500 {
				t.Errorf("refused with %s, %v", a.Text, err)
			}
			c.expect(c.do("GET", "de/mo/demo", ""), 404)
		})
	}
	c.t = t
	c.expect(c.do("PUT", "api/v1/crates/new", dep(serde, "[dependencies]\nserde = \"1.0\"\n")), 200)
	if a := c.expect(c.put("demo", "1.0.0", "other"), 409); !strings.Contains(a.Text, "already exists") {
		t.Errorf("a duplicate is refused with %s", a.Text)
	}
}

// What cargo calls the same requirement passes, however either side writes it.
func TestRequirementsAreCompared(t *testing.T) {
	c := start(t, catalogtest.Options{Content: catalogtest.NewMemory()})
	for i, pair := range [][2]string{{"^1", "1"}, {"^1.2.3", "1.2.3"}, {">=1, <2", ">= 1,<2"}, {"*", "*"}, {"1.*", "1.x"}, {"~1.2", "~1.2"}, {"=1.0.0", "= 1.0.0"}} {
		version := fmt.Sprintf("1.0.%d", i)
		about := strings.Replace(said("demo", version), `"deps":[]`, fmt.Sprintf(`"deps":[{"name":"a","version_req":%q,"kind":"normal","default_features":true}]`, pair[0]), 1)
		body := packed(t, "demo-"+version, file{"Cargo.toml", manifest("demo", version) + fmt.Sprintf("[dependencies]\na = %q\n", pair[1])})
		c.expect(c.do("PUT", "api/v1/crates/new", framed(about, body)), 200)
	}
}

// A line that is too long for the summary is a file of the version.
func TestLongLine(t *testing.T) {
	c := start(t, catalogtest.Options{})
	features := map[string][]string{}
	for i := range 1500 {
		features[fmt.Sprintf("feature-number-%d", i)] = []string{}
	}
	b, err := json.Marshal(features)
	if err != nil {
		t.Fatal(err)
	}
	about := strings.Replace(said("large", "1.0.0"), `"features":{}`, `"features":`+string(b), 1)
	c.expect(c.do("PUT", "api/v1/crates/new", framed(about, crate(t, "large", "1.0.0", "x"))), 200)
	a := c.expect(c.do("GET", "la/rg/large", ""), 200)
	if !strings.Contains(a.Text, "feature-number-1499") || !strings.HasSuffix(a.Text, `"yanked":false}`+"\n") || strings.Count(a.Text, "\n") != 1 {
		t.Errorf("the index has %d bytes", len(a.Text))
	}
	v, _, err := c.Catalog.Version(t.Context(), catalog.Caller{}, catalog.Package{Repo: meta.RepoRef{Tenant: "acme", Name: "cargo"}, Name: "large"}, "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	if blobs, err := c.p.Closure(t.Context(), meta.Principal{}, v, ""); err != nil || len(blobs) != 2 {
		t.Errorf("the closure has %d blobs, %v", len(blobs), err)
	}
}

// Of many who publish one version at a time one gets it.
func TestRace(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.expect(c.put("demo", "1.0.0", "x"), 200)
	bodies := make([]string, 20)
	winner := catalogtest.Race(t, len(bodies), 200, 409, func(i int) func() catalogtest.Answer {
		bodies[i] = crate(t, "demo", "1.1.0", fmt.Sprint(i))
		return func() catalogtest.Answer {
			return c.do("PUT", "api/v1/crates/new", framed(said("demo", "1.1.0"), bodies[i]))
		}
	})
	if a := c.expect(c.do("GET", "api/v1/crates/demo/1.1.0/download", ""), 200); a.Text != bodies[winner] {
		t.Error("what is served is not what was acknowledged")
	}
}

func TestAuth(t *testing.T) {
	c := start(t, catalogtest.Options{Private: true})
	c.Create(t, meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "cargo"}, Format: "cargo"})
	a := c.expect(c.do("GET", "config.json", ""), 401)
	if want := `Cargo login_url="` + c.URL + `/cargo/acme/cargo/me"`; a.Header.Get("Www-Authenticate") != want {
		t.Errorf("the challenge is %q, want %q", a.Header.Get("Www-Authenticate"), want)
	}
	if a := c.expect(c.do("GET", "me", ""), 200); !strings.Contains(a.Text, "cargo login") {
		t.Errorf("the page is %s", a.Text)
	}
	// cargo sends the token as it is.
	a = c.expect(c.do("GET", "config.json", "", "Authorization: "+catalogtest.AdminToken), 200)
	want := fmt.Sprintf(`{"dl":"%[1]s/cargo/acme/cargo/api/v1/crates","api":"%[1]s/cargo/acme/cargo","auth-required":true}`, c.URL)
	if a.Text != want {
		t.Errorf("config.json is %s", a.Text)
	}
}

func TestParseReference(t *testing.T) {
	p := cargo.New(nil, nil, nil)
	for text, want := range map[string]protocol.Reference{
		"/demo@1.2.3":           {Package: "demo", Version: "1.2.3"},
		"/My_Crate:1.2.3-rc.1":  {Package: "my-crate", Version: "1.2.3-rc.1"},
		"/demo@1.2.3+build.1-x": {Package: "demo", Version: "1.2.3"},
	} {
		if got, err := p.ParseReference(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "/", "/demo", "/demo@", "/demo@1", "/de/mo@1.0.0", "demo@1.0.0", "/demo@v1.0.0"} {
		if got, err := p.ParseReference(text); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}
