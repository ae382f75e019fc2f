package nuget

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

var update = flag.Bool("update", false, "write the answers of conversations anew")

// feed is a client of a running node.
type feed struct {
	*upstreamtest.Stack
	t        testing.TB
	repo     string
	protocol *Protocol
}

func start(t testing.TB, o catalogtest.Options) *feed {
	pages, err := rendered.New(rendered.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	f := &feed{t: t, repo: "acme/nuget"}
	f.Stack = upstreamtest.New(t, o, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		f.protocol = New(s.Catalog, pages, e)
		return []protocol.Protocol{f.protocol}
	})
	f.Hosted(t, f.repo, Format)
	return f
}

// do sends a request about a path below the repository's /v3/.
func (f *feed) do(method, path string, body []byte, headers ...string) catalogtest.Answer {
	f.t.Helper()
	if !slices.ContainsFunc(headers, func(h string) bool { return strings.HasPrefix(h, "Accept-Encoding: ") }) {
		headers = append(headers, "Accept-Encoding: identity")
	}
	return f.Ask(f.t, method, "/nuget/"+f.repo+"/v3/"+path, bytes.NewReader(body), headers...)
}

func (f *feed) expect(a catalogtest.Answer, status int) catalogtest.Answer {
	f.t.Helper()
	return a.Expect(f.t, status)
}

// form is a package as clients send it.
func form(t testing.TB, nupkg []byte) (body []byte, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part, err := w.CreateFormFile("package", "package.nupkg")
	if err != nil {
		t.Fatal(err)
	}
	part.Write(nupkg)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), "Content-Type: " + w.FormDataContentType()
}

// push publishes a package whose manifest has more in it, and returns its bytes.
func (f *feed) push(id, version, more string, status int) []byte {
	f.t.Helper()
	nupkg := pack(f.t, part{name: id + ".nuspec", content: spec(id, version, more)}, part{name: "content/x.txt", content: id + version + more})
	body, contentType := form(f.t, nupkg)
	f.expect(f.do("PUT", "package/", body, contentType), status)
	return nupkg
}

// get reads a JSON document.
func get[T any](f *feed, path string) (v T) {
	f.t.Helper()
	a := f.expect(f.do("GET", path, nil), 200)
	if err := json.Unmarshal([]byte(a.Text), &v); err != nil {
		f.t.Fatalf("%s: %v in %s", path, err, a.Text)
	}
	return v
}

type versions struct{ Versions []string }

func (f *feed) versions(id string) []string {
	f.t.Helper()
	return get[versions](f, "flat/"+id+"/index.json").Versions
}

// registered lists what a hive has, over all pages, each as `version[!]`, unlisted ones
// with the mark.
func (f *feed) registered(hive, id string) (list []string) {
	f.t.Helper()
	index := get[registrationIndex](f, "registrations/"+hive+"/"+id+"/index.json")
	for _, page := range index.Items {
		if page.Items == nil {
			_, path, _ := strings.Cut(page.ID, "/v3/")
			page = get[registrationPage](f, path)
		}
		if len(page.Items) != page.Count {
			f.t.Errorf("page %s has %d items, not %d", page.ID, len(page.Items), page.Count)
		}
		for _, leaf := range page.Items {
			text := leaf.Entry.Version
			if !leaf.Entry.Listed {
				text += "!"
			}
			list = append(list, text)
		}
	}
	return list
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestPublish(t *testing.T) {
	f := start(t, catalogtest.Options{})
	nupkg := f.push("Acme.Demo", "1.02.0-Beta+build.7", "", 201)
	const at = "flat/acme.demo/1.2.0-beta/"
	got := f.expect(f.do("GET", at+"acme.demo.1.2.0-beta.nupkg", nil), 200)
	if got.Text != string(nupkg) || !strings.Contains(got.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("%d bytes, %v", len(got.Text), got.Header)
	}
	// Clients normalize, people do not.
	for _, path := range []string{"flat/Acme.Demo/1.2.0.0-BETA/Acme.Demo.1.2.0-Beta.nupkg", "flat/acme.demo/1.2-beta/acme.demo.1.2.0-beta.nupkg"} {
		if a := f.expect(f.do("GET", path, nil), 200); a.Text != string(nupkg) {
			t.Errorf("%s has %d bytes", path, len(a.Text))
		}
	}
	if a := f.expect(f.do("GET", at+"acme.demo.nuspec", nil), 200); a.Text != spec("Acme.Demo", "1.02.0-Beta+build.7", "") {
		t.Errorf("the manifest is %s", a.Text)
	}
	if a := f.expect(f.do("GET", at+"acme.demo.1.2.0-beta.nupkg", nil, "Range: bytes=-4"), 206); a.Text != string(nupkg[len(nupkg)-4:]) {
		t.Errorf("the range is %q", a.Text)
	}
	same(t, "versions", f.versions("acme.demo"), []string{"1.2.0-beta"})
	for _, path := range []string{at + "other.nuspec", at + "acme.demo.9.nupkg", "flat/acme.demo/2.0.0/acme.demo.2.0.0.nupkg", "flat/acme.demo/x/acme.demo.x.nupkg", "flat/none/index.json", "flat/a..b/index.json", "flat/acme.demo/1.2.0-beta/..%2fx"} {
		f.expect(f.do("GET", path, nil), 404)
	}
	// The bare file is taken too; the same version in any spelling is a duplicate.
	f.expect(f.do("PUT", "package", pack(t, part{name: "acme.demo.nuspec", content: spec("Acme.Demo", "2.0.0", "")}), "Content-Type: application/octet-stream"), 201)
	f.push("Acme.Demo", "1.02.0-Beta+build.7", "", 409)
	f.push("Acme.Demo", "1.2.0.0-BETA", "", 409)
	f.push("Acme.Demo", "1.2-beta+other", "", 409)
	if a := f.expect(f.do("GET", at+"acme.demo.1.2.0-beta.nupkg", nil), 200); a.Text != string(nupkg) {
		t.Error("the version changed")
	}
}

func TestPublishRefuses(t *testing.T) {
	f := start(t, catalogtest.Options{})
	bad := pack(t, part{name: "a.nuspec", content: spec("a", "1.0.0", "")}, part{name: "../x", content: "x"})
	body, contentType := form(t, bad)
	a := f.expect(f.do("PUT", "package/", body, contentType), 400)
	if warning := a.Header.Get("X-NuGet-Warning"); !strings.Contains(warning, "leaves the folder") || !strings.Contains(a.Text, "leaves the folder") {
		t.Errorf("says %q, %s", warning, a.Text)
	}
	good, contentType := form(t, pack(t, part{name: "a.nuspec", content: spec("a", "1.0.0", "")}))
	for name, request := range map[string]struct {
		body        []byte
		contentType string
	}{
		"an empty body":           {nil, "Content-Type: application/octet-stream"},
		"an empty form":           {[]byte("--x--\r\n"), "Content-Type: multipart/form-data; boundary=x"},
		"a form without boundary": {good, "Content-Type: multipart/form-data"},
		"half a form":             {good[:len(good)/2], contentType},
		"a form of JSON":          {[]byte("{}"), "Content-Type: application/json"},
	} {
		if a := f.do("PUT", "package/", request.body, request.contentType); a.StatusCode != 400 {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.Text)
		}
	}
	f.expect(f.do("GET", "flat/a/index.json", nil), 404)
	if _, _, err := f.Catalog.Package(t.Context(), upstreamtest.By(), catalogPackage("a")); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("something was stored: %v", err)
	}
	// A name is spelled as it was first: another spelling is somebody's who means another.
	f.push("Acme.Demo", "1.0.0", "", 201)
	f.push("ACME.demo", "1.1.0", "", 409)
	same(t, "versions", f.versions("acme.demo"), []string{"1.0.0"})
	if p, _, err := f.Catalog.Package(t.Context(), upstreamtest.By(), catalogPackage("acme.demo")); err != nil || p.Spelling != "Acme.Demo" {
		t.Errorf("the spelling is %q, %v", p.Spelling, err)
	}
}

// A deleted version never comes back with other bytes, whatever its spelling.
func TestDeletedStaysAway(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.push("Acme.Demo", "1.0.0", "", 201)
	f.push("Acme.Demo", "2.0.0", "", 201)
	if _, err := f.Catalog.DeleteVersion(t.Context(), upstreamtest.By(), catalogPackage("acme.demo"), "1.0.0"); err != nil {
		t.Fatal(err)
	}
	same(t, "versions", f.versions("acme.demo"), []string{"2.0.0"})
	same(t, "registered", f.registered("plain", "acme.demo"), []string{"2.0.0"})
	f.expect(f.do("GET", "flat/acme.demo/1.0.0/acme.demo.1.0.0.nupkg", nil), 404)
	f.push("Acme.Demo", "1.0.0", "<title>other</title>", 409)
	f.push("Acme.Demo", "1.0+x", "<title>other</title>", 409)
	same(t, "versions", f.versions("acme.demo"), []string{"2.0.0"})
}

// 100 publishers of one version: one is acknowledged.
func TestPublishRace(t *testing.T) {
	f := start(t, catalogtest.Options{Content: catalogtest.NewMemory()})
	catalogtest.Race(t, 100, 201, 409, func(i int) func() catalogtest.Answer {
		body, contentType := form(t, pack(t, part{name: "a.nuspec", content: spec("a", "1.0.0", fmt.Sprint("<title>", i, "</title>"))}))
		return func() catalogtest.Answer { return f.do("PUT", "package/", body, contentType) }
	})
}

func TestPages(t *testing.T) {
	f := start(t, catalogtest.Options{Content: catalogtest.NewMemory()})
	var want []string
	for i := range 130 {
		f.push("many", fmt.Sprintf("1.%d.0", 129-i), "", 201)
		want = append(want, fmt.Sprintf("1.%d.0", i))
	}
	same(t, "versions", f.versions("many"), want)
	same(t, "registered", f.registered("plain", "many"), want)
	index := get[registrationIndex](f, "registrations/plain/many/index.json")
	if index.Count != 3 || index.Items[0].Lower != "1.0.0" || index.Items[0].Upper != "1.63.0" || index.Items[0].Count != 64 || index.Items[2].Count != 2 || index.Items[0].Items != nil {
		t.Errorf("the index is %+v", index)
	}
	// The bounds of an older index go on being answered.
	f.push("many", "1.5.1", "", 201)
	page := get[registrationPage](f, "registrations/plain/many/page/1.0.0/1.63.0.json")
	if page.Count != 65 {
		t.Errorf("the page has %d versions", page.Count)
	}
	f.expect(f.do("GET", "registrations/plain/many/page/3.0.0/4.0.0.json", nil), 404)
	f.expect(f.do("GET", "registrations/plain/many/page/1.0.0/1.63.0", nil), 404)
	f.expect(f.do("GET", "registrations/other/many/index.json", nil), 404)
	leaf := get[registrationLeaf](f, "registrations/plain/many/1.7.0.json")
	if leaf.Hash == "" || leaf.Algorithm != "SHA512" || leaf.Listed == nil || !*leaf.Listed {
		t.Errorf("the leaf is %+v", leaf)
	}
}

// SemVer 2.0.0 versions are for clients that know them; compressed hives are compressed.
func TestHives(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.push("a", "1.0.0", "", 201)
	f.push("a", "1.0.1-beta", "", 201)
	f.push("a", "1.0.1-beta.2", "", 201)
	f.push("a", "1.0.2+meta", "", 201)
	f.push("a", "1.0.3", `<dependencies><dependency id="b" version="1.0.0-x.y"/></dependencies>`, 201)
	same(t, "plain", f.registered("plain", "a"), []string{"1.0.0", "1.0.1-beta"})
	same(t, "gz", f.registered("gz", "a"), []string{"1.0.0", "1.0.1-beta"})
	same(t, "gz-semver2", f.registered("gz-semver2", "a"), []string{"1.0.0", "1.0.1-beta", "1.0.1-beta.2", "1.0.2+meta", "1.0.3"})
	path := "registrations/gz-semver2/a/index.json"
	plain, squeezed := f.expect(f.do("GET", path, nil), 200), f.expect(f.do("GET", path, nil, "Accept-Encoding: gzip, deflate"), 200)
	if squeezed.Header.Get("Content-Encoding") != "gzip" || plain.Header.Get("Content-Encoding") != "" || plain.Header.Get("Etag") == squeezed.Header.Get("Etag") || plain.Header.Get("Vary") != "Accept-Encoding" {
		t.Errorf("headers are %v and %v", squeezed.Header, plain.Header)
	}
	z, err := gzip.NewReader(strings.NewReader(squeezed.Text))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(z); err != nil || string(b) != plain.Text {
		t.Errorf("unpacked it is %s, %v", b, err)
	}
	for _, refusal := range []string{"gzip;q=0", "br", "identity"} {
		if a := f.do("GET", path, nil, "Accept-Encoding: "+refusal); a.Header.Get("Content-Encoding") != "" {
			t.Errorf("%q is answered with %q", refusal, a.Header.Get("Content-Encoding"))
		}
	}
	f.expect(f.do("GET", path, nil, "If-None-Match: "+plain.Header.Get("Etag")), 304)
	if a := f.do("GET", "registrations/plain/a/index.json", nil, "Accept-Encoding: gzip"); a.Header.Get("Content-Encoding") != "" {
		t.Error("the plain hive is compressed")
	}
	// A package of which the older clients see nothing is not there for them.
	f.push("two", "1.0.0-a.b", "", 201)
	f.expect(f.do("GET", "registrations/plain/two/index.json", nil), 404)
	same(t, "gz-semver2", f.registered("gz-semver2", "two"), []string{"1.0.0-a.b"})
}

// Unlisted versions stay installable and leave the search; marks show in registrations.
func TestMarks(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.push("Acme.Demo", "1.0.0", "", 201)
	f.push("Acme.Demo", "1.1.0", "", 201)
	f.expect(f.do("DELETE", "package/Acme.Demo/1.1.0.0", nil), 204)
	same(t, "registered", f.registered("plain", "acme.demo"), []string{"1.0.0", "1.1.0!"})
	same(t, "versions", f.versions("acme.demo"), []string{"1.0.0", "1.1.0"})
	f.expect(f.do("GET", "flat/acme.demo/1.1.0/acme.demo.1.1.0.nupkg", nil), 200)
	found := get[struct{ Data []hit }](f, "query?q=demo")
	if len(found.Data) != 1 || found.Data[0].Version != "1.0.0" || len(found.Data[0].Versions) != 1 {
		t.Errorf("found is %+v", found)
	}
	f.expect(f.do("POST", "package/acme.demo/1.1", nil), 200)
	same(t, "registered", f.registered("plain", "acme.demo"), []string{"1.0.0", "1.1.0"})
	f.expect(f.do("DELETE", "package/acme.demo/9.0", nil), 404)
	f.expect(f.do("DELETE", "package/acme.demo/x", nil), 404)
	yes := true
	if _, err := f.Catalog.Mark(t.Context(), upstreamtest.By(), catalogPackage("acme.demo"), "1.0.0", meta.Marking{Deprecated: &yes, Reason: "use Acme.Other"}); err != nil {
		t.Fatal(err)
	}
	leaf := get[registrationIndex](f, "registrations/plain/acme.demo/index.json").Items[0].Items[0]
	if d := leaf.Entry.Deprecation; d == nil || d.Message != "use Acme.Other" || !slices.Equal(d.Reasons, []string{"Other"}) {
		t.Errorf("the deprecation is %+v", d)
	}
}

func TestQuarantine(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.push("a", "1.0.0", "", 201)
	f.push("a", "1.1.0", "", 201)
	if _, err := f.Metadata.Do(t.Context(), state.Origin{Principal: "user:curator"}, state.QuarantineVersion{Repo: upstreamtest.Ref(f.repo), Package: "a", Version: "1.1.0", Reason: "the token was stolen"}); err != nil {
		t.Fatal(err)
	}
	same(t, "versions", f.versions("a"), []string{"1.0.0"})
	same(t, "registered", f.registered("plain", "a"), []string{"1.0.0"})
	for _, path := range []string{"flat/a/1.1.0/a.1.1.0.nupkg", "flat/a/1.1.0/a.nuspec", "registrations/plain/a/1.1.0.json"} {
		if a := f.expect(f.do("GET", path, nil), 403); !strings.Contains(a.Text, "the token was stolen") {
			t.Errorf("%s is refused with %s", path, a.Text)
		}
	}
}

// Dependencies that do not fit into the summary are read from the manifest.
func TestLongDependencies(t *testing.T) {
	f := start(t, catalogtest.Options{})
	var more strings.Builder
	for i := range 1500 {
		fmt.Fprintf(&more, `<dependency id="Some.Dependency.Number%d" version="[1.0,2.0)"/>`, i)
	}
	f.push("long", "1.0.0", "<dependencies>"+more.String()+"</dependencies>", 201)
	entry := get[registrationIndex](f, "registrations/plain/long/index.json").Items[0].Items[0].Entry
	if len(entry.Groups) != 1 || len(entry.Groups[0].Dependencies) != 1500 || entry.Groups[0].Dependencies[7].Range != "[1.0.0, 2.0.0)" {
		t.Errorf("%d groups", len(entry.Groups))
	}
}

func TestSearch(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.push("Acme.Demo", "1.0.0", "<tags>one two</tags>", 201)
	f.push("Acme.Demo.Tools", "1.0.0-beta", "", 201)
	f.push("Demo", "1.0.0-a.b", "", 201)
	f.push("Other", "1.0.0", "", 201)
	for query, want := range map[string][]string{
		"q=demo":                 {"Acme.Demo"},
		"q=DEMO&prerelease=true": {"Acme.Demo", "Acme.Demo.Tools"},
		"q=demo&prerelease=true&semVerLevel=2.0.0": {"Demo", "Acme.Demo", "Acme.Demo.Tools"},
		"q=acme+tools&prerelease=true":             {"Acme.Demo.Tools"},
		"q=packageid:acme.demo":                    {"Acme.Demo"},
		"":                                         {"Acme.Demo", "Other"},
		"skip=3":                                   {"Other"},
		"q=none":                                   nil,
		"take=0":                                   nil,
		"q=demo&prerelease=true&semVerLevel=2&take=1": {"Demo"},
	} {
		var got []string
		for _, h := range get[struct{ Data []hit }](f, "query?"+query).Data {
			got = append(got, h.PackageID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q finds %v, want %v", query, got, want)
		}
	}
	h := get[struct{ Data []hit }](f, "query?q=acme.demo").Data[0]
	if !slices.Equal(h.Authors, []string{"Ada", "Grace"}) || !slices.Equal(h.Tags, []string{"one", "two"}) || h.Versions[0].Version != "1.0.0" {
		t.Errorf("the hit is %+v", h)
	}
	for query, want := range map[string][]string{
		"q=demo":                             {"Demo", "Acme.Demo", "Acme.Demo.Tools"},
		"q=demo&skip=1&take=1":               {"Acme.Demo"},
		"id=acme.demo":                       {"1.0.0"},
		"id=Acme.Demo.Tools":                 {},
		"id=acme.demo.tools&prerelease=true": {"1.0.0-beta"},
		"id=none":                            {},
		"id=../x":                            {},
	} {
		if got := get[struct{ Data []string }](f, "autocomplete?"+query).Data; !slices.Equal(got, want) {
			t.Errorf("%q completes to %v, want %v", query, got, want)
		}
	}
	for _, query := range []string{"skip=-1", "take=x", "skip=99999", "q=" + strings.Repeat("x", 500)} {
		f.expect(f.do("GET", "query?"+query, nil), 400)
	}
}

func TestConversation(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.push("Acme.Demo", "1.0.0", `<projectUrl>https://acme.example</projectUrl><dependencies><group targetFramework="net8.0"><dependency id="Acme.Base" version="1.0"/></group></dependencies>`, 201)
	f.push("Acme.Demo", "1.1.0-rc.1", "", 201)
	catalogtest.Converse(t, f.Stack.Stack, "testdata/feed.txtar", *update, "")
}

func TestProtocol(t *testing.T) {
	f := start(t, catalogtest.Options{})
	f.push("Acme.Demo", "1.0.0", "", 201)
	nupkg := pack(t, part{name: "Acme.Demo.nuspec", content: spec("Acme.Demo", "2.0.0", "")})
	const name = "/nuget/acme/nuget/v3/"
	protocoltest.Run(t, protocoltest.Case{
		Protocol: f.protocol, Metadata: access.Records{Asker: f.Metadata},
		Repo: upstreamtest.Ref("acme/nuget"), Absent: upstreamtest.Ref("acme/nugez"),
		Reads: []protocoltest.Request{
			{Method: "GET", Path: name + "flat/acme.demo/index.json"},
			{Method: "GET", Path: name + "flat/acme.demo/1.0.0/acme.demo.1.0.0.nupkg"},
			{Method: "GET", Path: name + "flat/acme.demo/1.0.0/acme.demo.nuspec"},
			{Method: "GET", Path: name + "registrations/plain/acme.demo/index.json"},
			{Method: "GET", Path: name + "registrations/gz-semver2/acme.demo/index.json", Header: http.Header{"Accept-Encoding": {"gzip"}}},
			{Method: "GET", Path: name + "registrations/gz/acme.demo/page/1.0.0/1.0.0.json"},
			{Method: "GET", Path: name + "registrations/plain/acme.demo/1.0.0.json"},
			{Method: "GET", Path: name + "query?q=demo"},
			{Method: "GET", Path: name + "autocomplete?q=demo"},
			{Method: "GET", Path: name + "autocomplete?id=acme.demo"},
			{Method: "GET", Path: name + "vulnerabilities/index.json"},
			{Method: "GET", Path: name + "vulnerabilities/base.json"},
		},
		Writes: []protocoltest.Request{
			{Method: "PUT", Path: name + "package", Body: nupkg},
			{Method: "PUT", Path: name + "package/", Body: nupkg},
			{Method: "DELETE", Path: name + "package/acme.demo/1.0.0"},
			{Method: "POST", Path: name + "package/acme.demo/1.0.0"},
		},
		CheckError: func(_ int, h http.Header, body []byte) error {
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
