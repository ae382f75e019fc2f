package gomod_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// release puts a version of a module into a registry.
func release(t testing.TB, r *upstreamtest.Registry, path, version string, at time.Time) string {
	t.Helper()
	body := lib(t, path, version, "upstream")
	r.Put(path+"/@v/"+version+".info", fmt.Appendf(nil, `{"Version":%q,"Time":%q}`, version, at.UTC().Format(time.RFC3339)), "Content-Type: application/json")
	r.Put(path+"/@v/"+version+".mod", []byte("module "+path+"\n\ngo 1.21\n"))
	r.Put(path+"/@v/"+version+".zip", []byte(body))
	return body
}

// at answers about a path of a repository of acme.
func (m *modules) at(repo, path string) catalogtest.Answer {
	m.t.Helper()
	return m.do("GET", "/go/acme/"+repo+"/"+path, "")
}

func TestProxy(t *testing.T) {
	m := start(t, catalogtest.Options{})
	r := upstreamtest.NewRegistry(t)
	m.Proxy(t, "acme/proxy", "go", r.URL)
	const at = "example.com/lib/@v/"
	old := time.Now().Add(-1000 * time.Hour)
	zip := release(t, r, "example.com/lib", "v1.0.0", old)
	r.Put(at+"list", []byte("v1.0.0\n"), "Content-Type: text/plain")
	r.Put("example.com/lib/@latest", []byte(`{"Version":"v1.0.0"}`))
	r.Put(at+"main.info", []byte(`{"Version":"v1.0.1-0.20260102030405-0123456789ab","Time":"2026-01-02T03:04:05Z"}`))
	wants := map[string]string{at + "list": "v1.0.0\n", at + "v1.0.0.zip": zip, at + "v1.0.0.mod": "module example.com/lib\n\ngo 1.21\n", "example.com/lib/@latest": `{"Version":"v1.0.0"}`}
	for range 2 {
		for path, want := range wants {
			if a := m.expect(m.at("proxy", path), 200); a.Text != want {
				t.Errorf("%s: %q", path, a.Text)
			}
		}
		m.expect(m.at("proxy", at+"v1.0.0.info"), 200)
		m.expect(m.at("proxy", at+"main.info"), 200)
		m.expect(m.at("proxy", "example.com/absent/@v/list"), 404)
	}
	for path, times := range r.All() {
		if times != 1 {
			t.Errorf("the upstream was asked %d times for %s", times, path)
		}
	}
	for _, path := range []string{at + "main.zip", at + "main.mod", at + "x", "example.com/lib"} {
		m.expect(m.at("proxy", path), 404)
		if r.Asked(path) > 0 {
			t.Errorf("the upstream was asked for %s", path)
		}
	}
	// Without the upstream all that was read is read again, and says that it may be old.
	r.Cut(true)
	m.Later(100 * time.Hour)
	for path, want := range wants {
		a := m.expect(m.at("proxy", path), 200)
		if a.Text != want {
			t.Errorf("without the upstream %s: %q", path, a.Text)
		}
		if stale := a.Header.Get("Warning") != ""; stale != (strings.HasSuffix(path, "list") || strings.HasSuffix(path, "latest")) {
			t.Errorf("%s: Warning %q", path, a.Header.Get("Warning"))
		}
	}
	m.expect(m.at("proxy", at+"v1.5.0.zip"), 503)
	// A proxy takes nothing.
	m.expect(m.do("PUT", "/go/acme/proxy/example.com/lib/@v/v1.1.0.zip", lib(t, "example.com/lib", "v1.1.0", "x")), 405)
}

// A version that is younger than the rule wants is in no list and is not served; the
// refusal does not send the go command elsewhere.
func TestMinReleaseAge(t *testing.T) {
	m := start(t, catalogtest.Options{})
	r := upstreamtest.NewRegistry(t)
	m.Proxy(t, "acme/proxy", "go", r.URL, func(u *meta.Upstream) { u.MinReleaseAge = 72 * time.Hour })
	const at = "example.com/lib/@v/"
	now := time.Now()
	release(t, r, "example.com/lib", "v1.0.0", now.Add(-1000*time.Hour))
	release(t, r, "example.com/lib", "v1.1.0", now.Add(-100*time.Hour))
	release(t, r, "example.com/lib", "v1.2.0", now.Add(-time.Hour))
	r.Put(at+"list", []byte("v1.2.0\nv1.0.0\nv1.3.0\nnonsense\nv1.1.0\n"))
	r.Put("example.com/lib/@latest", fmt.Appendf(nil, `{"Version":"v1.2.0","Time":%q}`, now.UTC().Format(time.RFC3339)))
	// v1.3.0 is listed there and has no info.
	for range 2 {
		if a := m.expect(m.at("proxy", at+"list"), 200); a.Text != "v1.1.0\nv1.0.0\n" {
			t.Errorf("the list is %q", a.Text)
		}
		if a := m.expect(m.at("proxy", "example.com/lib/@latest"), 200); !strings.Contains(a.Text, `"v1.1.0"`) {
			t.Errorf("latest is %s", a.Text)
		}
	}
	for _, ext := range []string{".info", ".mod", ".zip"} {
		m.expect(m.at("proxy", at+"v1.1.0"+ext), 200)
		if a := m.expect(m.at("proxy", at+"v1.2.0"+ext), 403); !strings.Contains(a.Text, "minimum release age of 72h") {
			t.Errorf("refused with %s", a.Text)
		}
	}
	if n := r.Asked(at + "v1.0.0.info"); n != 1 {
		t.Errorf("an info was asked for %d times", n)
	}
	if n := r.Asked(at + "v1.2.0.zip"); n != 0 {
		t.Error("what is too young was fetched")
	}
	// Of a module that is all new nothing is to be had.
	release(t, r, "example.com/new", "v1.0.0", now)
	r.Put("example.com/new/@v/list", []byte("v1.0.0\n"))
	r.Put("example.com/new/@latest", fmt.Appendf(nil, `{"Version":"v1.0.0","Time":%q}`, now.UTC().Format(time.RFC3339)))
	m.expect(m.at("proxy", "example.com/new/@latest"), 403)
	// An upstream that answers otherwise.
	r.Put("example.com/odd/@latest", []byte(`<html>`))
	m.expect(m.at("proxy", "example.com/odd/@latest"), 502)
}

// A name that a hosted member owns never comes from upstream, whatever version is there,
// and its name is not told there.
func TestGroup(t *testing.T) {
	m := start(t, catalogtest.Options{})
	r := upstreamtest.NewRegistry(t)
	m.Hosted(t, "acme/go", "go")
	m.Hosted(t, "acme/second", "go")
	m.Proxy(t, "acme/proxy", "go", r.URL)
	m.Group(t, "acme/all", "go", "go", "go", "second", "proxy")
	put := func(repo, path, version, text string, want int) {
		t.Helper()
		m.expect(m.do("PUT", "/go/acme/"+repo+"/"+path+"/@v/"+version+".zip", lib(t, path, version, text)), want)
	}
	put("go", "corp.example/lib", "v1.0.0", "ours", 201)
	put("second", "corp.example/lib", "v1.1.0", "second", 201)
	put("second", "corp.example/lib", "v1.0.0", "shadowed", 201)
	release(t, r, "corp.example/lib", "v9.9.9", time.Now())
	r.Put("corp.example/lib/@v/list", []byte("v9.9.9\n"))
	r.Put("corp.example/lib/@latest", []byte(`{"Version":"v9.9.9"}`))
	if a := m.expect(m.at("all", "corp.example/lib/@v/list"), 200); a.Text != "v1.0.0\nv1.1.0\n" {
		t.Errorf("the list is %q", a.Text)
	}
	if a := m.expect(m.at("all", "corp.example/lib/@latest"), 200); !strings.Contains(a.Text, `"v1.1.0"`) {
		t.Errorf("latest is %s", a.Text)
	}
	if a := m.expect(m.at("all", "corp.example/lib/@v/v1.0.0.zip"), 200); a.Text != lib(t, "corp.example/lib", "v1.0.0", "ours") {
		t.Error("the first member's version is not the one that is served")
	}
	m.expect(m.at("all", "corp.example/lib/@v/v1.1.0.mod"), 200)
	m.expect(m.at("all", "corp.example/lib/@v/v9.9.9.zip"), 404)
	m.expect(m.at("all", "sumdb/sum.example.org/lookup/corp.example/lib@v1.0.0"), 404)
	if n := r.Total(); n != 0 {
		t.Errorf("the upstream was asked for what is owned here: %v", r.All())
	}
	// What nobody owns comes from there.
	theirs := release(t, r, "example.com/lib", "v1.0.0", time.Now())
	r.Put("example.com/lib/@v/list", []byte("v1.0.0\n"))
	if a := m.expect(m.at("all", "example.com/lib/@v/v1.0.0.zip"), 200); a.Text != theirs {
		t.Error("another zip")
	}
	m.expect(m.at("all", "example.com/lib/sub/@v/list"), 404)
	// The last version of an owned name goes, and the name stays ours.
	put("go", "corp.example/once", "v1.0.0", "x", 201)
	r.Put("corp.example/once/@v/list", []byte("v2.0.0\n"))
	m.expect(m.do("DELETE", "/go/acme/go/corp.example/once/@v/v1.0.0.zip", ""), 204)
	m.expect(m.at("all", "corp.example/once/@v/list"), 404)
	m.expect(m.at("all", "corp.example/once/@v/v1.0.0.zip"), 410)
	// A push to the group is one to its member.
	put("all", "corp.example/lib", "v1.2.0", "x", 201)
	m.expect(m.at("go", "corp.example/lib/@v/v1.2.0.info"), 200)
	m.expect(m.at("second", "corp.example/lib/@v/v1.2.0.info"), 404)
	m.expect(m.do("DELETE", "/go/acme/all/corp.example/lib/@v/v1.2.0.zip", ""), 204)
	m.expect(m.at("go", "corp.example/lib/@v/v1.2.0.info"), 410)
}

// A checksum database is passed on byte for byte, its tiles kept for ever.
func TestSumDB(t *testing.T) {
	m := start(t, catalogtest.Options{})
	r := upstreamtest.NewRegistry(t)
	m.Hosted(t, "acme/go", "go")
	m.Proxy(t, "acme/proxy", "go", r.URL)
	m.Group(t, "acme/inner", "go", "", "go", "proxy")
	m.Group(t, "acme/all", "go", "", "inner")
	m.Group(t, "acme/own", "go", "", "go")
	const db = "sumdb/sum.example.org"
	r.Put(db+"/supported", nil)
	r.Put(db+"/latest", []byte("go.sum database tree\n1\n"))
	r.Put(db+"/lookup/example.com/!acme/lib@v1.0.0", []byte("0\nexample.com/Acme/lib v1.0.0 h1:x\n"))
	r.Put("example.com/!acme/lib/@v/list", []byte("v1.0.0\n"))
	r.Put(db+"/tile/8/0/x001/234", []byte("tile"))
	r.Put(db+"/tile/8/data/000.p/1", []byte("data"))
	for _, repo := range []string{"proxy", "all", "inner"} {
		for path, want := range map[string]string{
			"/supported": "", "/latest": "go.sum database tree\n1\n", "/lookup/example.com/!acme/lib@v1.0.0": "0\nexample.com/Acme/lib v1.0.0 h1:x\n",
			"/tile/8/0/x001/234": "tile", "/tile/8/data/000.p/1": "data",
		} {
			if a := m.expect(m.at(repo, db+path), 200); a.Text != want {
				t.Errorf("%s%s is %q", repo, path, a.Text)
			}
		}
	}
	before := r.Total()
	for _, repo := range []string{"go", "own"} {
		m.expect(m.at(repo, db+"/supported"), 404)
	}
	for _, path := range []string{"/tile/8/0/../../x", "/tile/8/0/1", "/lookup/example.com", "/lookup/x@v1", "/other", "/", "/latest/x"} {
		m.expect(m.at("proxy", db+path), 404)
	}
	m.expect(m.at("proxy", "sumdb/UPPER/latest"), 404)
	m.Proxy(t, "acme/ruled", "go", r.URL, func(u *meta.Upstream) { u.Block = []string{"example.com/Acme/*"} })
	m.expect(m.at("ruled", db+"/lookup/example.com/!acme/lib@v1.0.0"), 403)
	if r.Total() != before {
		t.Errorf("the upstream was asked for what is no checksum database, or blocked: %v", r.All())
	}
}
