package gomod_test

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"

	"github.com/shoal-registry/shoal/gateway/archive/archivetest"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/gomod"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

var update = flag.Bool("update", false, "write the answers of conversations anew")

// modules is a client of a running node.
type modules struct {
	*upstreamtest.Stack
	t testing.TB
	p *gomod.Protocol
}

func start(t testing.TB, o catalogtest.Options) *modules {
	t.Helper()
	m := &modules{t: t}
	pages, err := rendered.New(rendered.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	m.Stack = upstreamtest.New(t, o, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		m.p = gomod.New(s.Catalog, pages, e)
		return []protocol.Protocol{m.p}
	})
	return m
}

// do sends a request about a path below /go/acme/go/, or an absolute one; headers are
// `Name: value`.
func (m *modules) do(method, path, body string, headers ...string) catalogtest.Answer {
	m.t.Helper()
	if !strings.HasPrefix(path, "/") {
		path = "/go/acme/go/" + path
	}
	return m.Ask(m.t, method, path, strings.NewReader(body), headers...)
}

func (m *modules) expect(a catalogtest.Answer, status int) catalogtest.Answer {
	m.t.Helper()
	return a.Expect(m.t, status)
}

// file is one of a zip: a name below PATH@VERSION/, unless it begins with a slash.
type file struct{ name, text string }

func zipped(t testing.TB, path, version string, files ...file) string {
	t.Helper()
	var all []string
	for _, f := range files {
		name, raw := strings.CutPrefix(f.name, "/")
		if !raw {
			name = path + "@" + version + "/" + name
		}
		all = append(all, name, f.text)
	}
	return string(archivetest.Zip(t, all...))
}

// lib is a module of one file.
func lib(t testing.TB, path, version, text string) string {
	t.Helper()
	return zipped(t, path, version, file{"go.mod", "module " + path + "\n\ngo 1.21\n"}, file{"lib.go", "package lib // " + text + "\n"})
}

func (m *modules) put(path, version, text string) catalogtest.Answer {
	m.t.Helper()
	escaped, err := module.EscapePath(path)
	if err != nil {
		m.t.Fatal(err)
	}
	return m.do("PUT", escaped+"/@v/"+version+".zip", lib(m.t, path, version, text))
}

func TestConversation(t *testing.T) {
	m := start(t, catalogtest.Options{})
	m.expect(m.put("example.com/lib", "v1.0.0", "one"), 201)
	catalogtest.Converse(t, m.Stack.Stack, "testdata/go.txtar", *update, "")
}

func TestPublishAndRead(t *testing.T) {
	m := start(t, catalogtest.Options{})
	const path = "example.com/Acme/lib"
	const at = "example.com/!acme/lib/@v/"
	body := lib(t, path, "v1.2.0", "x")
	a := m.expect(m.do("PUT", at+"v1.2.0.zip", body), 201)
	var put struct{ Module, Version, Digest, Sum string }
	if err := json.Unmarshal([]byte(a.Text), &put); err != nil || put.Module != path || put.Version != "v1.2.0" || !strings.HasPrefix(put.Sum, "h1:") {
		t.Errorf("PUT answers %s, %v", a.Text, err)
	}
	token := "Shoal-Token: " + a.Header.Get("Shoal-Token")
	m.expect(m.do("PUT", at+"v1.2.0.zip", body), 200)
	m.expect(m.put(path, "v1.10.0-rc.1", "y"), 201)
	m.expect(m.put(path, "v1.9.0", "z"), 201)
	const pseudo = "v1.9.1-0.20260102030405-0123456789ab"
	m.expect(m.put(path, pseudo, "p"), 201)
	// The go command sends %21 for the mark of a capital.
	for _, at := range []string{at, "example.com/%21acme/lib/@v/"} {
		if a := m.expect(m.do("GET", at+"list", "", token), 200); a.Text != "v1.10.0-rc.1\nv1.2.0\nv1.9.0\n" {
			t.Errorf("list is %q", a.Text)
		}
	}
	zip := m.expect(m.do("GET", at+"v1.2.0.zip", "", token), 200)
	if zip.Text != body || zip.Header.Get("Content-Type") != "application/zip" || !strings.Contains(zip.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("the zip has %d bytes, %v", len(zip.Text), zip.Header)
	}
	if part := m.expect(m.do("GET", at+"v1.2.0.zip", "", "Range: bytes=0-1"), 206); part.Text != "PK" {
		t.Errorf("a range is %q", part.Text)
	}
	if mod := m.expect(m.do("GET", at+"v1.2.0.mod", "", token), 200); mod.Text != "module "+path+"\n\ngo 1.21\n" {
		t.Errorf("the mod is %q", mod.Text)
	}
	infos := map[string]string{}
	for range 2 {
		i := m.expect(m.do("GET", at+"v1.2.0.info", "", token), 200)
		infos[i.Text] = i.Header.Get("Etag")
		if !strings.HasPrefix(i.Text, `{"Version":"v1.2.0","Time":"20`) || !strings.HasSuffix(i.Text, `Z"}`) {
			t.Errorf("the info is %s", i.Text)
		}
	}
	if len(infos) != 1 {
		t.Errorf("the info changes: %v", infos)
	}
	if l := m.expect(m.do("GET", "example.com/!acme/lib/@latest", ""), 200); !strings.HasPrefix(l.Text, `{"Version":"v1.9.0",`) {
		t.Errorf("latest is %s", l.Text)
	}
	m.expect(m.do("GET", at+pseudo+".info", ""), 200)
	for _, absent := range []string{
		"example.com/acme/lib/@v/list", "example.com/@v/list", "example.com/acme/@latest", "@v/list", "example.com/Acme/lib/@v/list",
		at + "v1.3.0.info", at + "v1.3.0.mod", at + "v1.3.0.zip", at + "main.info", at + "v1.info", at + "x", at + "v1.2.0.tar", "sumdb/sum.example/supported",
	} {
		a := m.expect(m.do("GET", absent, ""), 404)
		if a.Header.Get("Content-Type") != "text/plain; charset=utf-8" || a.Text == "" {
			t.Errorf("%s: %q %v", absent, a.Text, a.Header)
		}
	}
}

func TestMarksAndTombstones(t *testing.T) {
	m := start(t, catalogtest.Options{})
	const path, at = "example.com/lib", "example.com/lib/@v/"
	for _, v := range []string{"v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0"} {
		m.expect(m.put(path, v, v), 201)
	}
	ref := meta.RepoRef{Tenant: "acme", Name: "go"}
	yes, no := true, false
	mark := func(version string, marking meta.Marking) {
		t.Helper()
		if _, err := m.Metadata.Do(t.Context(), state.Origin{Principal: "user:curator"}, state.MarkVersions{Repo: ref, Package: path, Versions: []string{version}, Marking: marking}); err != nil {
			t.Fatal(err)
		}
	}
	list := func(want string) {
		t.Helper()
		if a := m.expect(m.do("GET", at+"list", ""), 200); strings.Join(strings.Fields(a.Text), " ") != want {
			t.Errorf("list is %q, want %q", a.Text, want)
		}
	}
	list("v1.0.0 v1.1.0 v1.2.0 v1.3.0")
	mark("v1.3.0", meta.Marking{Yanked: &yes, Reason: "broken"})
	list("v1.0.0 v1.1.0 v1.2.0")
	m.expect(m.do("GET", at+"v1.3.0.zip", ""), 200)
	mark("v1.2.0", meta.Marking{Unlisted: &yes})
	list("v1.0.0 v1.1.0")
	if l := m.expect(m.do("GET", path+"/@latest", ""), 200); !strings.Contains(l.Text, `"v1.1.0"`) {
		t.Errorf("latest is %s", l.Text)
	}
	mark("v1.3.0", meta.Marking{Yanked: &no})
	list("v1.0.0 v1.1.0 v1.3.0")
	if _, err := m.Metadata.Do(t.Context(), state.Origin{Principal: "user:curator"}, state.QuarantineVersion{Repo: ref, Package: path, Version: "v1.0.0", Reason: "the token was stolen"}); err != nil {
		t.Fatal(err)
	}
	list("v1.1.0 v1.3.0")
	for _, ext := range []string{".info", ".mod", ".zip"} {
		if a := m.expect(m.do("GET", at+"v1.0.0"+ext, ""), 403); !strings.Contains(a.Text, "the token was stolen") {
			t.Errorf("quarantine says %s", a.Text)
		}
	}
	// Deleted is gone, and comes back with the same bytes only.
	m.expect(m.do("DELETE", at+"v1.1.0.zip", ""), 204)
	list("v1.3.0")
	for _, ext := range []string{".info", ".mod", ".zip"} {
		if a := m.expect(m.do("GET", at+"v1.1.0"+ext, ""), 410); !strings.Contains(a.Text, "deleted") {
			t.Errorf("gone says %s", a.Text)
		}
	}
	m.expect(m.do("GET", at+"v1.0.7.zip", ""), 404)
	m.expect(m.put(path, "v1.1.0", "other"), 409)
	m.expect(m.do("GET", at+"v1.1.0.zip", ""), 410)
	m.expect(m.put(path, "v1.1.0", "v1.1.0"), 201)
	m.expect(m.do("GET", at+"v1.1.0.zip", ""), 200)
}

// What the go command would not make or take is refused, and nothing of it is there.
func TestRefused(t *testing.T) {
	m := start(t, catalogtest.Options{Content: catalogtest.NewMemory()})
	const p, v = "example.com/lib", "v1.0.0"
	mod := file{"go.mod", "module " + p + "\n"}
	for name, c := range map[string]struct {
		path, version, body string
		want                int
	}{
		"no zip":                {p, v, "hello", 400},
		"empty":                 {p, v, "", 400},
		"half a zip":            {p, v, lib(t, p, v, "x")[:100], 400},
		"another version":       {p, v, lib(t, p, "v1.0.1", "x"), 400},
		"another module":        {p, v, lib(t, "example.com/bib", v, "x"), 400},
		"another go.mod":        {p, v, zipped(t, p, v, file{"go.mod", "module example.com/bib\n"}), 400},
		"go.mod without module": {p, v, zipped(t, p, v, file{"go.mod", "go 1.21\n"}), 400},
		"go.mod is binary":      {p, v, zipped(t, p, v, file{"go.mod", "\x00\x01"}), 400},
		"GO.MOD":                {p, v, zipped(t, p, v, file{"GO.MOD", "module " + p}), 400},
		"go.mod below":          {p, v, zipped(t, p, v, mod, file{"sub/go.mod", "module " + p + "/sub"}, file{"sub/x.go", ""}), 400},
		"vendor":                {p, v, zipped(t, p, v, mod, file{"vendor/x/x.go", ""}), 400},
		"up":                    {p, v, zipped(t, p, v, mod, file{"../x", ""}), 400},
		"absolute":              {p, v, zipped(t, p, v, mod, file{"//etc/passwd", ""}), 400},
		"windows":               {p, v, zipped(t, p, v, mod, file{"con/x", ""}), 400},
		"case":                  {p, v, zipped(t, p, v, mod, file{"a.go", ""}, file{"A.go", ""}), 400},
		"twice":                 {p, v, zipped(t, p, v, mod, file{"a.go", ""}, file{"a.go", ""}), 400},
		"a directory":           {p, v, zipped(t, p, v, mod, file{"dir/", ""}), 400},
		"a large go.mod":        {p, v, zipped(t, p, v, file{"go.mod", "module " + p + "\n//" + strings.Repeat("x", modzip.MaxGoMod)}), 400},
		"a long go.mod":         {p, v, zipped(t, p, v, file{"go.mod", "module " + p + "\n" + strings.Repeat("a\n", 300_000)}), 400},
		"part of a version":     {p, "v1.0", lib(t, p, "v1.0", "x"), 400},
		"no version":            {p, "main", lib(t, p, "main", "x"), 400},
		"build metadata":        {p, "v1.0.0+x", lib(t, p, "v1.0.0+x", "x"), 400},
		"major 2 without /v2":   {p, "v2.0.0", lib(t, p, "v2.0.0", "x"), 400},
		"/v2 of major 1":        {p + "/v2", v, lib(t, p+"/v2", v, "x"), 400},
		"capitals unescaped":    {"example.com/Lib", v, lib(t, "example.com/Lib", v, "x"), 400},
		"no dot":                {"std/lib", v, lib(t, "std/lib", v, "x"), 400},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			a := m.expect(m.do("PUT", c.path+"/@v/"+c.version+".zip", c.body), c.want)
			if len(a.Text) > 1000 {
				t.Errorf("the refusal has %d bytes", len(a.Text))
			}
			m.expect(m.do("GET", p+"/@v/list", ""), 404)
		})
	}
	m.t = t
	m.expect(m.put(p, v, "x"), 201)
	m.expect(m.put(p+"/v2", "v2.0.0", "x"), 201)
	m.expect(m.put("gopkg.in/yaml.v3", "v3.0.0", "x"), 201)
	m.expect(m.do("PUT", p+"/@v/v2.0.0+incompatible.zip", zipped(t, p, "v2.0.0+incompatible", file{"x.go", "package x"})), 201)
	if a := m.expect(m.do("GET", p+"/@v/v2.0.0+incompatible.mod", ""), 200); a.Text != "module "+p+"\n" {
		t.Errorf("the made-up go.mod is %q", a.Text)
	}
	a := m.expect(m.put(p, v, "other"), 409)
	if !strings.Contains(a.Text, "versions of modules never change") {
		t.Errorf("a duplicate is refused with %s", a.Text)
	}
}

// A file that lies about its size, or is damaged, is found by unpacking it.
func TestDamaged(t *testing.T) {
	m := start(t, catalogtest.Options{Content: catalogtest.NewMemory()})
	const p, v = "example.com/lib", "v1.0.0"
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range []file{{"go.mod", "module " + p + "\n"}, {"a.go", strings.Repeat("package a\n", 100)}} {
		w, err := z.CreateHeader(&zip.FileHeader{Name: p + "@" + v + "/" + f.name, Method: zip.Store})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	good := b.String()
	bad := strings.Replace(good, "package a\npackage a", "package a\npackage b", 1)
	m.expect(m.do("PUT", p+"/@v/"+v+".zip", bad), 400)
	m.expect(m.do("PUT", p+"/@v/"+v+".zip", good), 201)
}

func TestModAndInfoAgree(t *testing.T) {
	m := start(t, catalogtest.Options{})
	const p, at = "example.com/lib", "example.com/lib/@v/v1.0.0"
	m.expect(m.do("PUT", at+".mod", "module "+p+"\n\ngo 1.21\n"), 409)
	m.expect(m.put(p, "v1.0.0", "x"), 201)
	m.expect(m.do("PUT", at+".mod", "module "+p+"\n\ngo 1.21\n"), 204)
	m.expect(m.do("PUT", at+".mod", "module "+p+"\n\ngo 1.22\n"), 409)
	m.expect(m.do("PUT", at+".info", `{"Version":"v1.0.0","Time":"2020-01-01T00:00:00Z","Origin":{"VCS":"git"}}`), 204)
	m.expect(m.do("PUT", at+".info", `{"Version":"v1.0.1"}`), 409)
	m.expect(m.do("PUT", at+".info", `no`), 400)
	m.expect(m.do("PUT", at+".info", strings.Repeat(" ", 100_000)), 413)
	m.expect(m.do("PUT", "example.com/lib/@v/list", "v1.0.0"), 400)
}

// A go.mod that is too long for the summary, or no text, is a file of the version.
func TestLongMod(t *testing.T) {
	m := start(t, catalogtest.Options{})
	for i, mod := range []string{
		"module example.com/lib\n\n// " + strings.Repeat("long ", 10_000) + "\n",
		"module example.com/lib\n\n// \xff\xfe\n",
	} {
		v := fmt.Sprintf("v1.%d.0", i)
		m.expect(m.do("PUT", "example.com/lib/@v/"+v+".zip", zipped(t, "example.com/lib", v, file{"go.mod", mod})), 201)
		if a := m.expect(m.do("GET", "example.com/lib/@v/"+v+".mod", ""), 200); a.Text != mod {
			t.Errorf("%d bytes of %d", len(a.Text), len(mod))
		}
		ref := meta.RepoRef{Tenant: "acme", Name: "go"}
		version, _, err := m.Catalog.Version(t.Context(), catalog.Caller{}, catalog.Package{Repo: ref, Name: "example.com/lib"}, v)
		if err != nil {
			t.Fatal(err)
		}
		if blobs, err := m.p.Closure(t.Context(), meta.Principal{}, version, "linux/amd64"); err != nil || len(blobs) != 2 {
			t.Errorf("the closure has %d blobs, %v", len(blobs), err)
		}
	}
}

// Of many who put one version at a time one gets it, and what is served is its.
func TestRace(t *testing.T) {
	m := start(t, catalogtest.Options{})
	m.expect(m.put("example.com/lib", "v1.0.0", "x"), 201)
	bodies := make([]string, 20)
	winner := catalogtest.Race(t, len(bodies), 201, 409, func(i int) func() catalogtest.Answer {
		bodies[i] = lib(t, "example.com/lib", "v1.1.0", fmt.Sprint(i))
		return func() catalogtest.Answer { return m.do("PUT", "example.com/lib/@v/v1.1.0.zip", bodies[i]) }
	})
	if a := m.expect(m.do("GET", "example.com/lib/@v/v1.1.0.zip", ""), 200); a.Text != bodies[winner] {
		t.Error("what is served is not what was acknowledged")
	}
}

// A list is rendered once, and again when the module changes.
func TestListIsKept(t *testing.T) {
	m := start(t, catalogtest.Options{})
	m.expect(m.put("example.com/lib", "v1.0.0", "x"), 201)
	first := m.expect(m.do("GET", "example.com/lib/@v/list", ""), 200)
	tag := first.Header.Get("Etag")
	if a := m.do("GET", "example.com/lib/@v/list", "", "If-None-Match: "+tag); a.StatusCode != 304 {
		t.Errorf("unchanged it answers %d", a.StatusCode)
	}
	m.expect(m.put("example.com/lib", "v1.0.1", "y"), 201)
	if a := m.expect(m.do("GET", "example.com/lib/@v/list", "", "If-None-Match: "+tag), 200); a.Text != "v1.0.0\nv1.0.1\n" {
		t.Errorf("the list is %q", a.Text)
	}
}

func TestParseReference(t *testing.T) {
	p := gomod.New(nil, nil, nil)
	for text, want := range map[string]protocol.Reference{
		"/example.com/Acme/lib@v1.2.3":                          {Package: "example.com/Acme/lib", Version: "v1.2.3"},
		"/example.com/lib/v2@v2.0.0-rc.1":                       {Package: "example.com/lib/v2", Version: "v2.0.0-rc.1"},
		"/example.com/lib@v2.0.0+incompatible":                  {Package: "example.com/lib", Version: "v2.0.0+incompatible"},
		"/example.com/lib@v0.0.0-20260102030405-0123456789abcd": {},
	} {
		got, err := p.ParseReference(text)
		if want == (protocol.Reference{}) {
			want = protocol.Reference{Package: "example.com/lib", Version: "v0.0.0-20260102030405-0123456789abcd"}
		}
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "/", "/example.com/lib", "/example.com/lib@", "/example.com/lib@v1", "/example.com/lib@main", "/lib@v1.0.0@", "example.com/lib@v1.0.0", "/../x@v1.0.0"} {
		if got, err := p.ParseReference(text); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}
