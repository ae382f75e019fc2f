package pypi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocols/pypi"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const jsonPage = "Content-Type: application/vnd.pypi.simple.v1+json"

func sum(content string) string { return digest.FromBytes([]byte(content)).Encoded() }

// upstreamWith is a registry with one project of two files: an old wheel with metadata and
// a young source distribution.
func upstreamWith(t *testing.T) *upstreamtest.Registry {
	r := upstreamtest.NewRegistry(t)
	young := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	r.Put("simple/left-pad/", fmt.Appendf(nil, `{"meta":{"api-version":"1.1","_last-serial":7},"name":"left-pad","versions":["1.0","1.1"],"alternate-locations":[],"files":[
{"filename":"left_pad-1.0-py3-none-any.whl","url":"%[1]s/packages/a/left_pad-1.0-py3-none-any.whl","hashes":{"sha256":"%[2]s","md5":"x"},"requires-python":">=3.8","size":5,"upload-time":"2020-01-01T00:00:00.1Z","yanked":"broken","data-dist-info-metadata":false,"core-metadata":{"sha256":"%[3]s"},"gpg-sig":true},
{"filename":"left_pad-1.1.tar.gz","url":"../../packages/left_pad-1.1.tar.gz","hashes":{"sha256":"%[4]s"},"requires-python":null,"upload-time":"%[5]s","yanked":false},
{"filename":"../evil-1.1.tar.gz","url":"../../packages/evil","hashes":{}},
{"filename":"left_pad-1.2.tar.gz","url":"file:///etc/passwd","hashes":{}},
{"filename":"left_pad-1.3.exe","url":"../../packages/left_pad-1.3.exe","hashes":{"md5":"%[6]s"}}]}`,
		r.URL, sum("wheel"), sum("Name: left-pad\n"), sum("sdist"), young, strings.Repeat("0", 32)), jsonPage)
	r.Put("packages/a/left_pad-1.0-py3-none-any.whl", []byte("wheel"))
	r.Put("packages/a/left_pad-1.0-py3-none-any.whl.metadata", []byte("Name: left-pad\n"))
	r.Put("packages/left_pad-1.1.tar.gz", []byte("sdist"))
	r.Put("packages/left_pad-1.3.exe", []byte("exe"))
	return r
}

func TestProxy(t *testing.T) {
	r := upstreamWith(t)
	x := start(t, catalogtest.Options{})
	x.Proxy(t, "acme/pp", pypi.Format, r.URL+"/simple/")
	p := x.page("pp", "left-pad")
	if len(p.Files) != 3 || fmt.Sprint(p.Versions) != "[1.0 1.1]" {
		t.Fatalf("%+v", p)
	}
	w, s := p.Files[0], p.Files[1]
	if w.URL != "../../files/left-pad/left_pad-1.0-py3-none-any.whl" || w.Yanked != "broken" || w.RequiresPython != ">=3.8" || w.Hashes["sha256"] != sum("wheel") ||
		w.UploadTime != "2020-01-01T00:00:00.100000Z" || w.Size != 5 || fmt.Sprint(w.CoreMetadata) != "map[sha256:"+sum("Name: left-pad\n")+"]" {
		t.Errorf("%+v", w)
	}
	if s.URL != "../../files/left-pad/left_pad-1.1.tar.gz" || s.Yanked != false || s.CoreMetadata != false {
		t.Errorf("%+v", s)
	}
	for name, want := range map[string]string{
		"left_pad-1.0-py3-none-any.whl": "wheel", "left_pad-1.0-py3-none-any.whl.metadata": "Name: left-pad\n", "left_pad-1.1.tar.gz": "sdist",
	} {
		for range 2 {
			if a := x.expect(x.do("GET", "pp/files/left-pad/"+name, nil), 200); a.Text != want || !strings.Contains(a.Header.Get("Cache-Control"), "immutable") {
				t.Errorf("%s: %q, %v", name, a.Text, a.Header)
			}
		}
	}
	for path, n := range r.All() {
		if n != 1 {
			t.Errorf("%s was asked for %d times", path, n)
		}
	}
	if a := x.expect(x.do("GET", "pp/files/left-pad/left_pad-1.0-py3-none-any.whl", nil, "Range: bytes=1-2"), 206); a.Text != "he" {
		t.Error(a.Text)
	}
	x.expect(x.do("GET", "pp/files/left-pad/left_pad-1.1.tar.gz.metadata", nil), 404)
	x.expect(x.do("GET", "pp/files/left-pad/left_pad-1.2.tar.gz", nil), 404)
	x.expect(x.do("GET", "pp/files/left-pad/left_pad-9.tar.gz", nil), 404)
	x.expect(x.do("GET", "pp/simple/absent/", nil), 404)
	x.expect(x.do("GET", "pp/simple/Left_Pad", nil), 301)
	// Its own checksum says that this one is not what it should be.
	if a := x.do("GET", "pp/files/left-pad/left_pad-1.3.exe", nil); a.StatusCode != http.StatusBadGateway {
		t.Errorf("a wrong checksum: %d %s", a.StatusCode, a.Text)
	}
	// The upstream goes away: what is known is served.
	r.Cut(true)
	x.Later(24 * time.Hour)
	a := x.expect(x.do("GET", "pp/simple/left-pad/", nil), 200)
	if len(a.Header.Values("Warning")) == 0 || !strings.Contains(a.Text, "left_pad-1.0-py3-none-any.whl") {
		t.Errorf("%v %s", a.Header, a.Text)
	}
	x.expect(x.do("GET", "pp/files/left-pad/left_pad-1.1.tar.gz", nil), 200)
	// Nobody writes to a proxy.
	contentType, body := demo(t, "1.0", "").encode(t)
	x.expect(x.do("POST", "pp/legacy/", strings.NewReader(string(body)), "Content-Type: "+contentType), 405)
}

func TestProxyHTML(t *testing.T) {
	r := upstreamtest.NewRegistry(t)
	r.Put("simple/left-pad/", fmt.Appendf(nil, `<!DOCTYPE html><html><head><title>x</title></head><body><h1>Links</h1>
<a href="../../files/left-pad/left_pad-1.0-py3-none-any.whl#sha256=%s" data-requires-python="&gt;=3.8" data-dist-info-metadata="sha256=%s" data-yanked="">left_pad-1.0-py3-none-any.whl</a><br/>
<A HREF="/other/left_pad-1.1.tar.gz" data-core-metadata="false"> left_pad-1.1.tar.gz </A>
<a href="javascript:alert(1)">left_pad-1.2.tar.gz</a><a>left_pad-1.3.tar.gz</a>`, sum("wheel"), sum("metadata")), "Content-Type: text/html; charset=utf-8")
	r.Put("files/left-pad/left_pad-1.0-py3-none-any.whl", []byte("wheel"))
	r.Put("other/left_pad-1.1.tar.gz", []byte("sdist"))
	x := start(t, catalogtest.Options{})
	x.Proxy(t, "acme/pp", pypi.Format, r.URL)
	p := x.page("pp", "left-pad")
	if len(p.Files) != 3 || p.Files[0].Yanked != true || p.Files[0].RequiresPython != ">=3.8" || p.Files[0].Hashes["sha256"] != sum("wheel") ||
		fmt.Sprint(p.Files[0].CoreMetadata) != "map[sha256:"+sum("metadata")+"]" || len(p.Files[1].Hashes) != 0 || p.Files[1].CoreMetadata != false {
		t.Fatalf("%+v", p)
	}
	for name, want := range map[string]string{"left_pad-1.0-py3-none-any.whl": "wheel", "left_pad-1.1.tar.gz": "sdist"} {
		if a := x.expect(x.do("GET", "pp/files/left-pad/"+name, nil), 200); a.Text != want {
			t.Errorf("%s: %q", name, a.Text)
		}
	}
	if a := x.expect(x.do("GET", "pp/simple/left-pad/", nil), 200); !strings.Contains(a.Text, `data-yanked=""`) {
		t.Error(a.Text)
	}
}

func TestProxyRules(t *testing.T) {
	r := upstreamWith(t)
	x := start(t, catalogtest.Options{})
	x.Proxy(t, "acme/aged", pypi.Format, r.URL, func(u *meta.Upstream) { u.MinReleaseAge = 24 * time.Hour })
	x.Proxy(t, "acme/shut", pypi.Format, r.URL, func(u *meta.Upstream) { u.Block = []string{"left-*"} })
	if p := x.page("aged", "left-pad"); len(p.Files) != 1 || p.Files[0].Filename != "left_pad-1.0-py3-none-any.whl" {
		t.Errorf("%+v", p)
	}
	x.expect(x.do("GET", "aged/files/left-pad/left_pad-1.0-py3-none-any.whl", nil), 200)
	x.expect(x.do("GET", "aged/files/left-pad/left_pad-1.1.tar.gz", nil), 404)
	x.expect(x.do("GET", "shut/simple/left-pad/", nil), 403)
}

func TestProxyMalformed(t *testing.T) {
	r := upstreamtest.NewRegistry(t)
	x := start(t, catalogtest.Options{})
	x.Proxy(t, "acme/pp", pypi.Format, r.URL)
	for name, page := range map[string][2]string{
		"image": {"image/png", "x"}, "half": {"application/vnd.pypi.simple.v1+json", `{"files":[{"filename":"a`}, "list": {"application/json", `[]`},
		"newer": {"application/vnd.pypi.simple.v1+json", `{"meta":{"api-version":"2.0"},"files":[]}`},
	} {
		r.Put("simple/"+name+"/", []byte(page[1]), "Content-Type: "+page[0])
		if a := x.do("GET", "pp/simple/"+name+"/", nil); a.StatusCode != http.StatusBadGateway {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.Text)
		}
	}
}

// A name that is owned here never comes from upstream.
func TestGroup(t *testing.T) {
	r := upstreamWith(t)
	r.Put("simple/demo-pkg/", fmt.Appendf(nil, `{"meta":{"api-version":"1.0"},"name":"demo-pkg","files":[{"filename":"demo_pkg-9.0.tar.gz","url":"%s/evil","hashes":{"sha256":"%s"}}]}`, r.URL, sum("evil")), jsonPage)
	r.Put("evil", []byte("evil"))
	x := start(t, catalogtest.Options{})
	x.Hosted(t, "acme/py", pypi.Format)
	x.Hosted(t, "acme/other", pypi.Format)
	x.Proxy(t, "acme/pp", pypi.Format, r.URL)
	x.Group(t, "acme/all", pypi.Format, "py", "py", "other", "pp")
	one, two := demo(t, "1.0", "one"), demo(t, "2.0", "two")
	x.expect(x.upload(one), 200)
	contentType, body := two.encode(t)
	x.expect(x.do("POST", "other/legacy/", strings.NewReader(string(body)), "Content-Type: "+contentType), 200)
	shadow := demo(t, "1.0", "shadow")
	contentType, body = shadow.encode(t)
	x.expect(x.do("POST", "other/legacy/", strings.NewReader(string(body)), "Content-Type: "+contentType), 200)

	p := x.page("all", "demo-pkg")
	if fmt.Sprint(p.Versions) != "[1.0 2.0]" || len(p.Files) != 2 || p.Files[0].Hashes["sha256"] != digest.FromBytes(one.content).Encoded() {
		t.Errorf("%+v", p)
	}
	for _, f := range []form{one, two} {
		if a := x.expect(x.do("GET", "all/files/demo-pkg/"+f.file, nil), 200); a.Text != string(f.content) {
			t.Errorf("%s is another file", f.file)
		}
	}
	x.expect(x.do("GET", "all/files/demo-pkg/demo_pkg-9.0.tar.gz", nil), 404)
	if p := x.page("all", "left-pad"); len(p.Files) != 3 {
		t.Errorf("%+v", p)
	}
	x.expect(x.do("GET", "all/files/left-pad/left_pad-1.1.tar.gz", nil), 200)
	x.expect(x.do("GET", "all/simple/absent/", nil), 404)
	if a := x.expect(x.do("GET", "all/simple/", nil, asJSON), 200); !strings.Contains(a.Text, `"projects":[{"name":"Demo.Pkg"}]`) {
		t.Error(a.Text)
	}
	// Writes go to the member.
	contentType, body = demo(t, "3.0", "three").encode(t)
	x.expect(x.do("POST", "all/legacy/", strings.NewReader(string(body)), "Content-Type: "+contentType), 200)
	if p := x.page("py", "demo-pkg"); fmt.Sprint(p.Versions) != "[1.0 3.0]" {
		t.Errorf("%+v", p)
	}
	// Also when the last version is gone the name stays ours.
	for repo, versions := range map[string][]string{"py": {"1.0", "3.0"}, "other": {"1.0", "2.0"}} {
		for i, v := range versions {
			pkg := catalog.Package{Repo: meta.RepoRef{Tenant: "acme", Name: repo}, Name: "demo-pkg"}
			if _, err := x.Catalog.DeleteVersion(t.Context(), catalog.Caller{}.Nth(i), pkg, v); err != nil {
				t.Fatal(err)
			}
		}
	}
	x.expect(x.do("GET", "all/simple/demo-pkg/", nil), 404)
	x.expect(x.do("GET", "all/files/demo-pkg/demo_pkg-9.0.tar.gz", nil), 404)
}
