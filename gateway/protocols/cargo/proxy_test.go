package cargo_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func lineOf(name, version, body, pubtime string) string {
	return fmt.Sprintf(`{"name":%q,"vers":%q,"deps":[],"cksum":%q,"features":{},"yanked":false,"pubtime":%q,"unknown":{"kept":true}}`+"\n",
		name, version, digest.FromBytes([]byte(body)).Encoded(), pubtime)
}

// at answers about a path of a repository of acme.
func (c *crates) at(repo, path string) catalogtest.Answer {
	c.t.Helper()
	return c.do("GET", "/cargo/acme/"+repo+"/"+path, "")
}

func TestProxy(t *testing.T) {
	c := start(t, catalogtest.Options{})
	r := upstreamtest.NewRegistry(t)
	c.Proxy(t, "acme/proxy", "cargo", r.URL)
	body, bad := crate(t, "Demo", "1.0.0", "upstream"), crate(t, "Demo", "1.1.0", "upstream")
	index := lineOf("Demo", "1.0.0", body, "2020-01-01T00:00:00Z") + lineOf("Demo", "1.1.0", "other", "2020-01-01T00:00:00Z")
	r.Put("config.json", fmt.Appendf(nil, `{"dl":"%s/files/{lowerprefix}/{crate}/{version}.crate","api":"https://example.com"}`, r.URL))
	r.Put("de/mo/demo", []byte(index), `ETag: "1"`)
	r.Put("files/de/mo/Demo/1.0.0.crate", []byte(body))
	r.Put("files/de/mo/Demo/1.1.0.crate", []byte(bad))
	for range 2 {
		if a := c.expect(c.at("proxy", "de/mo/demo"), 200); a.Text != index {
			t.Errorf("the index is %s", a.Text)
		}
		if a := c.expect(c.at("proxy", "api/v1/crates/Demo/1.0.0/download"), 200); a.Text != body {
			t.Errorf("the crate has %d bytes", len(a.Text))
		}
		c.expect(c.at("proxy", "no/mo/nomo"), 404)
		c.expect(c.at("proxy", "api/v1/crates/Demo/3.0.0/download"), 404)
	}
	for path, times := range r.All() {
		if times != 1 {
			t.Errorf("the upstream was asked %d times for %s", times, path)
		}
	}
	// Its config.json is ours.
	if a := c.expect(c.at("proxy", "config.json"), 200); !strings.Contains(a.Text, c.URL+"/cargo/acme/proxy/api/v1/crates") {
		t.Errorf("config.json is %s", a.Text)
	}
	// A crate that is not what the index says is nothing.
	c.expect(c.at("proxy", "api/v1/crates/Demo/1.1.0/download"), 502)
	r.Cut(true)
	c.Later(100 * time.Hour)
	if a := c.expect(c.at("proxy", "de/mo/demo"), 200); a.Text != index || a.Header.Get("Warning") == "" {
		t.Errorf("without the upstream: %s, %v", a.Text, a.Header)
	}
	if a := c.expect(c.at("proxy", "api/v1/crates/Demo/1.0.0/download"), 200); a.Text != body {
		t.Errorf("without the upstream the crate has %d bytes", len(a.Text))
	}
	c.expect(c.do("PUT", "/cargo/acme/proxy/api/v1/crates/new", framed(said("demo", "1.0.0"), body)), 405)
}

func TestMinReleaseAge(t *testing.T) {
	c := start(t, catalogtest.Options{})
	r := upstreamtest.NewRegistry(t)
	c.Proxy(t, "acme/proxy", "cargo", r.URL, func(u *meta.Upstream) { u.MinReleaseAge = 72 * time.Hour })
	old, young := lineOf("demo", "1.0.0", "one", "2020-01-01T00:00:00Z"), lineOf("demo", "1.1.0", "two", time.Now().Add(-time.Hour).UTC().Format(time.RFC3339))
	untold := `{"name":"demo","vers":"0.9.0","deps":[],"cksum":"00","features":{},"yanked":false}` + "\n"
	r.Put("config.json", fmt.Appendf(nil, `{"dl":"%s/dl"}`, r.URL))
	r.Put("de/mo/demo", []byte(untold+old+"\nno JSON\n"+young))
	r.Put("dl/demo/1.0.0/download", []byte("one"))
	if a := c.expect(c.at("proxy", "de/mo/demo"), 200); a.Text != untold+old {
		t.Errorf("the index is %s", a.Text)
	}
	if a := c.expect(c.at("proxy", "api/v1/crates/demo/1.0.0/download"), 200); a.Text != "one" {
		t.Errorf("the crate is %s", a.Text)
	}
	if a := c.expect(c.at("proxy", "api/v1/crates/demo/1.1.0/download"), 403); !strings.Contains(a.Text, "minimum release age of 72h") {
		t.Errorf("refused with %s", a.Text)
	}
	c.expect(c.at("proxy", "api/v1/crates/demo/0.9.0/download"), 502) // its checksum is none
}

// A name that a hosted member owns, in any spelling, never comes from upstream.
func TestGroup(t *testing.T) {
	c := start(t, catalogtest.Options{})
	r := upstreamtest.NewRegistry(t)
	c.Hosted(t, "acme/cargo", "cargo")
	c.Hosted(t, "acme/second", "cargo")
	c.Proxy(t, "acme/proxy", "cargo", r.URL)
	c.Group(t, "acme/all", "cargo", "cargo", "cargo", "second", "proxy")
	c.expect(c.put("my_lib", "1.0.0", "ours"), 200)
	second := func(version, text string) {
		t.Helper()
		c.expect(c.do("PUT", "/cargo/acme/second/api/v1/crates/new", framed(said("my_lib", version), crate(t, "my_lib", version, text))), 200)
	}
	second("1.0.0", "shadowed")
	second("1.1.0", "second")
	r.Put("config.json", fmt.Appendf(nil, `{"dl":"%s/dl"}`, r.URL))
	for _, name := range []string{"my_lib", "my-lib"} {
		r.Put("my/"+name[2:4]+"/"+name, []byte(lineOf(name, "9.9.9", "x", "")))
		r.Put("dl/"+name+"/9.9.9/download", []byte("x"))
	}
	a := c.expect(c.at("all", "my/_l/my_lib"), 200)
	ours := digest.FromBytes([]byte(crate(t, "my_lib", "1.0.0", "ours"))).Encoded()
	if strings.Count(a.Text, "\n") != 2 || !strings.Contains(a.Text, ours) || strings.Contains(a.Text, "9.9.9") {
		t.Errorf("the index is %s", a.Text)
	}
	c.expect(c.at("all", "my/-l/my-lib"), 404)
	c.expect(c.at("all", "api/v1/crates/my-lib/9.9.9/download"), 404)
	c.expect(c.at("all", "api/v1/crates/my_lib/9.9.9/download"), 404)
	if a := c.expect(c.at("all", "api/v1/crates/my_lib/1.0.0/download"), 200); a.Text != crate(t, "my_lib", "1.0.0", "ours") {
		t.Error("the first member's crate is not the one that is served")
	}
	c.expect(c.at("all", "api/v1/crates/my_lib/1.1.0/download"), 200)
	if n := r.Total(); n != 0 {
		t.Errorf("the upstream was asked for what is owned here: %v", r.All())
	}
	r.Put("th/ei/theirs", []byte(lineOf("theirs", "1.0.0", "theirs", "")))
	r.Put("dl/theirs/1.0.0/download", []byte("theirs"))
	c.expect(c.at("all", "th/ei/theirs"), 200)
	if a := c.expect(c.at("all", "api/v1/crates/theirs/1.0.0/download"), 200); a.Text != "theirs" {
		t.Errorf("theirs is %q", a.Text)
	}
	c.expect(c.do("PUT", "/cargo/acme/all/api/v1/crates/new", framed(said("my_lib", "1.2.0"), crate(t, "my_lib", "1.2.0", "x"))), 200)
	c.expect(c.at("cargo", "api/v1/crates/my_lib/1.2.0/download"), 200)
	c.expect(c.do("DELETE", "/cargo/acme/all/api/v1/crates/my_lib/1.2.0/yank", ""), 200)
	if a := c.expect(c.at("all", "my/_l/my_lib"), 200); strings.Count(a.Text, `"yanked":true`) != 1 {
		t.Errorf("the index is %s", a.Text)
	}
	if a := c.expect(c.at("all", "api/v1/crates?q=lib"), 200); !strings.Contains(a.Text, `"total":1`) || !strings.Contains(a.Text, `"my_lib"`) {
		t.Errorf("found %s", a.Text)
	}
	if a := c.expect(c.at("all", "api/v1/crates/my_lib/owners"), 200); strings.Count(a.Text, `"login"`) != 1 {
		t.Errorf("owners %s", a.Text)
	}
}
