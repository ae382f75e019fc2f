package pypi_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/crypto/blake2b"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/archive/archivetest"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/gateway/protocols/pypi"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

var update = flag.Bool("update", false, "write the answers of conversations anew")

// do sends a request about a path below /pypi/acme/; headers are `Name: value`.
func (x *index) do(method, path string, body io.Reader, headers ...string) catalogtest.Answer {
	x.t.Helper()
	return x.Ask(x.t, method, "/pypi/acme/"+path, body, headers...)
}

func (x *index) expect(a catalogtest.Answer, status int) catalogtest.Answer {
	x.t.Helper()
	return a.Expect(x.t, status)
}

func metadataOf(name, version string) string {
	return "Metadata-Version: 2.1\nName: " + name + "\nVersion: " + version + "\nRequires-Python: >=3.8\n\nhello\n"
}

func wheelOf(t testing.TB, stem, name, version, content string) []byte {
	return archivetest.Zip(t, "demo.py", content, stem+".dist-info/METADATA", metadataOf(name, version), stem+".dist-info/WHEEL", "Wheel-Version: 1.0\n")
}

// form is an upload: fields in front of the file, those of after behind it.
type form struct {
	name, version, filetype, file string
	content                       []byte
	fields, after                 []string // name, value, ...
}

func (f form) encode(t testing.TB) (contentType string, body []byte) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	field := func(name, value string) {
		if err := w.WriteField(name, value); err != nil {
			t.Fatal(err)
		}
	}
	sum := md5.Sum(f.content)
	long := blake2b.Sum256(f.content)
	for _, kv := range [][2]string{
		{":action", "file_upload"}, {"protocol_version", "1"}, {"name", f.name}, {"version", f.version}, {"filetype", f.filetype},
		{"md5_digest", hex.EncodeToString(sum[:])}, {"sha256_digest", digest.FromBytes(f.content).Encoded()}, {"blake2_256_digest", hex.EncodeToString(long[:])},
		{"description", strings.Repeat("long ", 2000)}, {"classifiers", "one"}, {"classifiers", "two"},
	} {
		value := kv[1]
		for i := 0; i < len(f.fields); i += 2 {
			if f.fields[i] == kv[0] {
				value = f.fields[i+1]
			}
		}
		if value != "-" {
			field(kv[0], value)
		}
	}
	if f.file != "" {
		part, err := w.CreateFormFile("content", f.file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := part.Write(f.content); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < len(f.after); i += 2 {
		field(f.after[i], f.after[i+1])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.FormDataContentType(), b.Bytes()
}

func (x *index) upload(f form) catalogtest.Answer {
	x.t.Helper()
	contentType, body := f.encode(x.t)
	return x.do("POST", "py/legacy/", bytes.NewReader(body), "Content-Type: "+contentType)
}

func demo(t testing.TB, version, content string) form {
	return form{
		name: "Demo.Pkg", version: version, filetype: "bdist_wheel", file: "demo_pkg-" + version + "-py3-none-any.whl",
		content: wheelOf(t, "demo_pkg-"+version, "Demo.Pkg", version, content),
	}
}

type page struct {
	Meta struct {
		APIVersion string `json:"api-version"`
	}
	Name     string
	Versions []string
	Files    []struct {
		Filename, URL  string
		Hashes         map[string]string
		RequiresPython string `json:"requires-python"`
		Size           int64
		UploadTime     string `json:"upload-time"`
		Yanked         any
		CoreMetadata   any `json:"core-metadata"`
		DistInfo       any `json:"dist-info-metadata"`
	}
}

const asJSON = "Accept: application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01"

func (x *index) page(repo, project string) page {
	x.t.Helper()
	a := x.expect(x.do("GET", repo+"/simple/"+project+"/", nil, asJSON), 200)
	var p page
	if err := json.Unmarshal([]byte(a.Text), &p); err != nil {
		x.t.Fatalf("%s: %v", a.Text, err)
	}
	if a.Header.Get("Content-Type") != "application/vnd.pypi.simple.v1+json" || a.Header.Get("Vary") != "Accept" || a.Header.Get("Etag") == "" {
		x.t.Errorf("the page has %v", a.Header)
	}
	return p
}

func TestUploadAndPage(t *testing.T) {
	x := start(t, catalogtest.Options{})
	f := demo(t, "1.0", "x = 1")
	x.expect(x.upload(f), 200)
	sdist := form{name: "demo-pkg", version: "1.0", filetype: "sdist", file: "demo_pkg-1.0.tar.gz", content: archivetest.Tgz(t, "demo_pkg-1.0/setup.py", "", "demo_pkg-1.0/PKG-INFO", metadataOf("demo-pkg", "1.0"))}
	x.expect(x.upload(sdist), 200)

	p := x.page("py", "demo-pkg")
	if p.Meta.APIVersion != "1.4" || p.Name != "demo-pkg" || len(p.Versions) != 1 || p.Versions[0] != "1.0" || len(p.Files) != 2 {
		t.Fatalf("%+v", p)
	}
	w, s := p.Files[0], p.Files[1]
	sum := digest.FromBytes([]byte(metadataOf("Demo.Pkg", "1.0"))).Encoded()
	if w.Filename != f.file || w.URL != "../../files/demo-pkg/"+f.file || w.Hashes["sha256"] != digest.FromBytes(f.content).Encoded() ||
		w.RequiresPython != ">=3.8" || w.Size != int64(len(f.content)) || !strings.HasSuffix(w.UploadTime, "Z") || w.Yanked != false ||
		fmt.Sprint(w.CoreMetadata) != "map[sha256:"+sum+"]" || fmt.Sprint(w.DistInfo) != "map[sha256:"+sum+"]" {
		t.Errorf("%+v", w)
	}
	if s.Filename != sdist.file || s.CoreMetadata != false || s.DistInfo != false || s.RequiresPython != ">=3.8" {
		t.Errorf("%+v", s)
	}
	// The same page for people and old clients.
	a := x.expect(x.do("GET", "py/simple/demo-pkg/", nil), 200)
	for _, want := range []string{
		`<meta name="pypi:repository-version" content="1.4">`, `<a href="../../files/demo-pkg/` + f.file + `#sha256=` + w.Hashes["sha256"] + `"`,
		`data-requires-python="&gt;=3.8"`, `data-core-metadata="sha256=` + sum, `data-dist-info-metadata="sha256=` + sum, ">" + sdist.file + "</a>",
	} {
		if !strings.Contains(a.Text, want) {
			t.Errorf("the page lacks %s: %s", want, a.Text)
		}
	}
	x.expect(x.do("GET", "py/simple/demo-pkg/", nil, "If-None-Match: "+a.Header.Get("Etag")), 304)

	// Files, their ranges and their metadata.
	got := x.expect(x.do("GET", "py/files/demo-pkg/"+f.file, nil), 200)
	if got.Text != string(f.content) || got.Header.Get("Cache-Control") != "private, max-age=31536000, immutable" {
		t.Errorf("%d bytes, %v", len(got.Text), got.Header)
	}
	if part := x.expect(x.do("GET", "py/files/demo-pkg/"+f.file, nil, "Range: bytes=0-1"), 206); part.Text != "PK" {
		t.Errorf("%q", part.Text)
	}
	x.expect(x.do("GET", "py/files/demo-pkg/"+f.file, nil, "If-None-Match: "+got.Header.Get("Etag")), 304)
	if m := x.expect(x.do("GET", "py/files/demo-pkg/"+f.file+".metadata", nil), 200); m.Text != metadataOf("Demo.Pkg", "1.0") {
		t.Errorf("%q", m.Text)
	}
	x.expect(x.do("GET", "py/files/demo-pkg/"+sdist.file+".metadata", nil), 404)
	x.expect(x.do("GET", "py/files/other/"+f.file, nil), 404)
	x.expect(x.do("GET", "py/files/demo-pkg/demo_pkg-9-py3-none-any.whl", nil), 404)

	// Other spellings lead to the page.
	for path, want := range map[string]string{
		"py/simple/Demo_Pkg/": "../demo-pkg/", "py/simple/demo.pkg": "demo-pkg/", "py/simple/demo-pkg": "demo-pkg/", "py/simple": "simple/",
	} {
		if a := x.expect(x.do("GET", path, nil), 301); a.Header.Get("Location") != want {
			t.Errorf("%s leads to %s", path, a.Header.Get("Location"))
		}
	}
	x.expect(x.do("GET", "py/simple/absent/", nil), 404)
	x.expect(x.do("GET", "py/simple/-/", nil), 404)

	// All projects, as their first publishers wrote them.
	if a := x.expect(x.do("GET", "py/simple/", nil, asJSON), 200); !strings.Contains(a.Text, `"projects":[{"name":"Demo.Pkg"}]`) {
		t.Error(a.Text)
	}
	if a := x.expect(x.do("GET", "py/simple/", nil), 200); !strings.Contains(a.Text, `<a href="demo-pkg/">Demo.Pkg</a>`) {
		t.Error(a.Text)
	}
}

// A redirect is of its own request: what others asked is not in it.
func TestRedirects(t *testing.T) {
	x := start(t, catalogtest.Options{})
	x.expect(x.upload(demo(t, "1.0", "x = 1")), 200)
	for range 2 {
		for path, want := range map[string]string{
			"py/simple": "simple/", "py/simple?a=1": "simple/?a=1", "py/simple?b=2": "simple/?b=2",
			"py/simple/Demo.Pkg": "demo-pkg/", "py/simple/Demo.Pkg/?a=1": "../demo-pkg/?a=1",
		} {
			if a := x.expect(x.do("GET", path, nil), 301); a.Header.Get("Location") != want {
				t.Errorf("%s leads to %s, want %s", path, a.Header.Get("Location"), want)
			}
		}
	}
}

func TestDuplicates(t *testing.T) {
	x := start(t, catalogtest.Options{})
	f := demo(t, "1.0", "x = 1")
	x.expect(x.upload(f), 200)
	x.expect(x.upload(f), 200) // the same again, as after a broken connection
	if a := x.expect(x.upload(demo(t, "1.0", "x = 2")), 400); !strings.HasPrefix(a.Text, "File already exists") {
		t.Error(a.Text)
	}
	// A version gains files for ever.
	more := demo(t, "1.0", "x = 3")
	more.file = "demo_pkg-1.0-py2-none-any.whl"
	x.expect(x.upload(more), 200)
	pkg := catalog.Package{Repo: meta.RepoRef{Tenant: "acme", Name: "py"}, Name: "demo-pkg"}
	if _, err := x.Catalog.DeleteVersion(t.Context(), catalog.Caller{}, pkg, "1.0"); err != nil {
		t.Fatal(err)
	}
	x.expect(x.do("GET", "py/files/demo-pkg/"+f.file, nil), 404)
	if a := x.expect(x.upload(demo(t, "1.0", "x = 4")), 400); !strings.Contains(a.Text, "already been used") {
		t.Error(a.Text)
	}
}

func TestYank(t *testing.T) {
	x := start(t, catalogtest.Options{})
	x.expect(x.upload(demo(t, "1.0", "x = 1")), 200)
	x.expect(x.upload(demo(t, "1.1", "x = 2")), 200)
	pkg := catalog.Package{Repo: meta.RepoRef{Tenant: "acme", Name: "py"}, Name: "demo-pkg"}
	yes := true
	if _, err := x.Catalog.Mark(t.Context(), catalog.Caller{}, pkg, "1.1", meta.Marking{Yanked: &yes, Reason: `bad <"build">`}); err != nil {
		t.Fatal(err)
	}
	if p := x.page("py", "demo-pkg"); p.Files[0].Yanked != false || p.Files[1].Yanked != `bad <"build">` {
		t.Errorf("%+v", p.Files)
	}
	if a := x.expect(x.do("GET", "py/simple/demo-pkg/", nil), 200); !strings.Contains(a.Text, `data-yanked="bad &lt;&#34;build&#34;&gt;"`) {
		t.Error(a.Text)
	}
	x.expect(x.do("GET", "py/files/demo-pkg/demo_pkg-1.1-py3-none-any.whl", nil), 200)
}

// Nothing of what is refused is kept, and each refusal says why.
func TestUploadRefused(t *testing.T) {
	x := start(t, catalogtest.Options{})
	x.expect(x.upload(demo(t, "0.1", "")), 200)
	good := func() form { return demo(t, "1.0", "x = 1") }
	with := func(change func(*form)) form { f := good(); change(&f); return f }
	fields := func(kv ...string) form { return with(func(f *form) { f.fields = kv }) }
	content := func(b []byte) form { return with(func(f *form) { f.content = b }) }
	const info = "demo_pkg-1.0.dist-info/"
	for name, c := range map[string]struct {
		form
		says string
	}{
		"action":           {fields(":action", "submit"), "file_upload"},
		"protocol version": {fields("protocol_version", "2"), "protocol_version"},
		"no name":          {fields("name", "-"), "no name"},
		"other name":       {fields("name", "other"), "other"},
		"no version":       {fields("version", "-"), "version"},
		"other version":    {fields("version", "1.1"), "1.1"},
		"other type":       {fields("filetype", "sdist"), "sdist"},
		"md5":              {fields("md5_digest", strings.Repeat("0", 32)), "md5"},
		"sha256":           {fields("sha256_digest", strings.Repeat("0", 64)), "not what the form says"},
		"no sha256":        {fields("sha256_digest", "x"), "sha256_digest"},
		"blake2":           {fields("blake2_256_digest", strings.Repeat("0", 64)), "blake2_256"},
		"long field":       {fields("name", strings.Repeat("n", 5000)), "too long"},
		"long form":        {fields("description", strings.Repeat("n", 17<<20)), "too long"},
		"field twice":      {with(func(f *form) { f.after = []string{"name", "Demo.Pkg"} }), "twice"},
		"no file":          {with(func(f *form) { f.file = "" }), "no file"},
		"file name":        {with(func(f *form) { f.file = "demo.whl" }), "file name"},
		"path":             {with(func(f *form) { f.file = "../demo_pkg-1.0-py3-none-any.whl" }), "file name"},
		"egg":              {with(func(f *form) { f.file = "demo_pkg-1.0.egg" }), "use a wheel"},
		"no zip":           {content([]byte("hello")), "not a zip"},
		"empty":            {content(nil), "not a zip"},
		"no METADATA":      {content(archivetest.Zip(t, info+"WHEEL", "")), "no METADATA"},
		"no WHEEL":         {content(archivetest.Zip(t, info+"METADATA", metadataOf("Demo.Pkg", "1.0"))), "WHEEL"},
		"METADATA empty":   {content(archivetest.Zip(t, info+"METADATA", "", info+"WHEEL", "")), "metadata lack"},
		"METADATA huge":    {content(archivetest.Zip(t, info+"METADATA", metadataOf("Demo.Pkg", "1.0")+strings.Repeat("x", 3<<20), info+"WHEEL", "")), "over the limit"},
		"METADATA other":   {content(wheelOf(t, "demo_pkg-1.0", "Other", "1.0", "")), "Other"},
		"METADATA hidden":  {content(bytes.Replace(wheelOf(t, "demo_pkg-1.0", "Demo.Pkg", "1.0", ""), []byte("METADATA"), []byte("METADATB"), 1)), "not in its list"},
		"METADATA version": {content(wheelOf(t, "demo_pkg-1.0", "Demo.Pkg", "2.0", "")), "2.0"},
		"traversal":        {content(archivetest.Zip(t, "../../etc/passwd", "x", info+"METADATA", metadataOf("Demo.Pkg", "1.0"), info+"WHEEL", "")), "leaves the folder"},
		"sdist, no gzip":   {form{name: "Demo.Pkg", version: "1.0", filetype: "sdist", file: "demo_pkg-1.0.tar.gz", content: []byte("x")}, "tar.gz"},
		"sdist, no info":   {form{name: "Demo.Pkg", version: "1.0", filetype: "sdist", file: "demo_pkg-1.0.tar.gz", content: archivetest.Tgz(t, "a/b", "")}, "PKG-INFO"},
		"sdist, traversal": {form{name: "Demo.Pkg", version: "1.0", filetype: "sdist", file: "demo_pkg-1.0.tar.gz",
			content: archivetest.Tgz(t, "demo_pkg-1.0/PKG-INFO", metadataOf("Demo.Pkg", "1.0"), "../x", "")}, "leaves the folder"},
	} {
		a := x.upload(c.form)
		if a.StatusCode != 400 || !strings.Contains(a.Text, c.says) {
			t.Errorf("%s: %d %q, want 400 and %q", name, a.StatusCode, a.Text, c.says)
		}
	}
	_, body := good().encode(t)
	if a := x.do("POST", "py/legacy/", bytes.NewReader(body), "Content-Type: text/plain"); a.StatusCode != 400 {
		t.Errorf("no form: %d %s", a.StatusCode, a.Text)
	}
	contentType, body := good().encode(t)
	if a := x.do("POST", "py/legacy/", bytes.NewReader(body[:len(body)-20]), "Content-Type: "+contentType); a.StatusCode != 400 {
		t.Errorf("cut off: %d %s", a.StatusCode, a.Text)
	}
	if p := x.page("py", "demo-pkg"); len(p.Versions) != 1 || len(p.Files) != 1 {
		t.Errorf("something was stored: %+v", p)
	}
	// The fields may stand behind the file too, and a signature is taken and dropped.
	f := good()
	f.fields, f.after = []string{"name", "-"}, []string{"name", "demo_pkg", "gpg_signature", "x"}
	x.expect(x.upload(f), 200)
}

// Of publishers of one file at a time one wins.
func TestRace(t *testing.T) {
	x := start(t, catalogtest.Options{})
	x.expect(x.upload(demo(t, "0.1", "")), 200)
	catalogtest.Race(t, 16, 200, 400, func(i int) func() catalogtest.Answer {
		contentType, body := demo(t, "1.0", fmt.Sprint("x = ", i)).encode(t)
		return func() catalogtest.Answer {
			return x.do("POST", "py/legacy/", bytes.NewReader(body), "Content-Type: "+contentType)
		}
	})
}

// Each page of a hundred versions names each once, in pieces of the catalog's pages.
func TestManyVersions(t *testing.T) {
	x := start(t, catalogtest.Options{})
	const versions = 700
	pkg := catalog.Package{Repo: meta.RepoRef{Tenant: "acme", Name: "py"}, Name: "many"}
	x.expect(x.upload(demo(t, "0.1", "")), 200)
	for i := range versions {
		_, err := x.Catalog.Publish(t.Context(), catalog.Caller{}, pkg.Repo, catalog.Draft{
			Version:   meta.Version{Package: "many", Name: fmt.Sprintf("1.%d", i), State: meta.StateOpen},
			Documents: []catalog.Document{{Path: fmt.Sprintf("many-1.%d.tar.gz", i), Body: []byte("x")}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	p := x.page("py", "many")
	if len(p.Versions) != versions || len(p.Files) != versions {
		t.Errorf("%d versions, %d files", len(p.Versions), len(p.Files))
	}
}

func TestProtocol(t *testing.T) {
	x := start(t, catalogtest.Options{})
	f := demo(t, "1.0", "x = 1")
	x.expect(x.upload(f), 200)
	contentType, body := f.encode(t)
	const name = "/pypi/acme/py"
	protocoltest.Run(t, protocoltest.Case{
		Protocol: x.protocol, Metadata: access.Records{Asker: x.Metadata},
		Repo: meta.RepoRef{Tenant: "acme", Name: "py"}, Absent: meta.RepoRef{Tenant: "acme", Name: "px"},
		Reads: []protocoltest.Request{
			{Method: "GET", Path: name + "/simple/"},
			{Method: "GET", Path: name + "/simple/demo-pkg/"},
			{Method: "GET", Path: name + "/simple/demo-pkg/", Header: http.Header{"Accept": {"application/vnd.pypi.simple.v1+json"}}},
			{Method: "GET", Path: name + "/files/demo-pkg/" + f.file},
			{Method: "GET", Path: name + "/files/demo-pkg/" + f.file + ".metadata"},
		},
		Writes: []protocoltest.Request{{Method: "POST", Path: name + "/legacy/", Header: http.Header{"Content-Type": {contentType}}, Body: body}},
		CheckError: func(_ int, h http.Header, body []byte) error {
			if h.Get("Content-Type") != "text/plain; charset=utf-8" || len(bytes.TrimSpace(body)) == 0 {
				return fmt.Errorf("no sentence: %v %s", h, body)
			}
			return nil
		},
	})
}

func TestConversation(t *testing.T) {
	x := start(t, catalogtest.Options{})
	f := demo(t, "1.0", "x = 1")
	x.expect(x.upload(f), 200)
	x.expect(x.upload(demo(t, "1.1rc1", "x = 2")), 200)
	pkg, yes := catalog.Package{Repo: meta.RepoRef{Tenant: "acme", Name: "py"}, Name: "demo-pkg"}, true
	if _, err := x.Catalog.Mark(t.Context(), catalog.Caller{}, pkg, "1.0", meta.Marking{Yanked: &yes, Reason: "broken"}); err != nil {
		t.Fatal(err)
	}
	x.Create(t, meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "images"}, Format: "oci"})
	catalogtest.Converse(t, x.Stack.Stack, "testdata/pypi.txtar", *update, "")
}

func TestReference(t *testing.T) {
	p := pypi.New(nil, nil, nil)
	for text, want := range map[string]protocol.Reference{
		"/Demo.Pkg:1.0":  {Package: "demo-pkg", Version: "1.0"},
		"/demo==1.0-1":   {Package: "demo", Version: "1.0.post1"},
		"/demo:1!2.0+x1": {Package: "demo", Version: "1!2.0+x1"},
	} {
		if got, err := p.ParseReference(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "/", "/demo", "demo:1", "/demo:", "/demo:x", "/a/b:1"} {
		if got, err := p.ParseReference(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestClosure(t *testing.T) {
	x := start(t, catalogtest.Options{})
	x.expect(x.upload(demo(t, "1.0", "x = 1")), 200)
	v := meta.Version{Repo: meta.RepoRef{Tenant: "acme", Name: "py"}, Package: "demo-pkg", Name: "1.0"}
	blobs, err := x.protocol.Closure(t.Context(), meta.Principal{}, v, "linux/amd64")
	if err != nil || len(blobs) != 2 { // the wheel and its metadata
		t.Errorf("%+v, %v", blobs, err)
	}
}
