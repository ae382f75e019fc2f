package npm_test

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // npm's shasum
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/npm"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// world is a registry of others, and a node with proxies of it.
type world struct {
	*registry
	node *upstreamtest.Stack
	up   *upstreamtest.Registry
}

func startWorld(t *testing.T) *world {
	t.Helper()
	s := upstreamtest.New(t, catalogtest.Options{Content: catalogtest.NewMemory()}, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		return []protocol.Protocol{npm.New(s.Catalog, pages(t), e)}
	})
	return &world{&registry{s.Stack, t}, s, upstreamtest.NewRegistry(t)}
}

// offer puts a package of several versions up; times are by version, RFC 3339.
func (w *world) offer(name string, times map[string]string, tags map[string]string, change func(version string, manifest object)) map[string][]byte {
	w.t.Helper()
	balls := map[string][]byte{}
	versions := object{}
	_, base, scoped := strings.Cut(name, "/")
	if !scoped {
		base = name
	}
	for version := range times {
		b := ball(w.t, packageJSON(name, version), "of upstream "+version)
		balls[version] = b
		s1, s512 := sha1.Sum(b), sha512.Sum512(b) //nolint:gosec // npm's shasum
		path := name + "/-/" + base + "-" + version + ".tgz"
		w.up.Put(path, b)
		m := object{"name": name, "version": version, "description": "of upstream", "dependencies": object{"x": "1"}, "dist": object{
			"shasum": hex.EncodeToString(s1[:]), "integrity": "sha512-" + base64.StdEncoding.EncodeToString(s512[:]), "tarball": w.up.URL + "/" + path,
			"signatures": []object{{"keyid": "k", "sig": "s"}}}}
		if change != nil {
			change(version, m)
		}
		versions[version] = m
	}
	raw, err := json.Marshal(object{"_id": name, "name": name, "dist-tags": tags, "versions": versions, "time": times, "readme": "long"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.up.Put(strings.ReplaceAll(name, "/", "%2F"), raw, "Content-Type: application/json", fmt.Sprintf("ETag: \"%d\"", len(raw)))
	return balls
}

const long, longer = "2020-01-01T00:00:00.000Z", "2019-01-01T00:00:00.000Z"

func TestProxy(t *testing.T) {
	w := startWorld(t)
	balls := w.offer("@acme/demo", map[string]string{"1.0.0": longer, "1.1.0": long}, map[string]string{"latest": "1.1.0"}, nil)
	w.node.Proxy(t, "acme/lib", "npm", w.up.URL)
	for _, path := range []string{"@acme%2fdemo", "@acme/demo"} {
		p := w.packument(path)
		m := p.Versions["1.0.0"]
		if p.Tags["latest"] != "1.1.0" || len(p.Versions) != 2 || p.Time["1.0.0"] != longer || m.Dependencies["x"] == "" || m.Dist.Tarball != w.URL+"/npm/acme/lib/@acme/demo/-/demo-1.0.0.tgz" {
			t.Errorf("%s: %+v", path, p)
		}
	}
	a := w.expect(w.do("GET", "@acme%2fdemo", nil, "Accept: application/vnd.npm.install-v1+json"), 200)
	if a.Header.Get("Content-Type") != "application/vnd.npm.install-v1+json" || strings.Contains(a.Text, "of upstream") || !strings.Contains(a.Text, `"signatures":[`) || !strings.Contains(a.Text, `"time":{`) {
		t.Errorf("abbreviated: %v %s", a.Header, a.Text)
	}
	w.expect(w.do("GET", "@acme%2fdemo", nil, "Accept: application/vnd.npm.install-v1+json", "If-None-Match: "+a.Header.Get("Etag")), 304)
	for version, ball := range balls {
		if got := w.expect(w.do("GET", "@acme/demo/-/demo-"+version+".tgz", nil), 200); got.Text != string(ball) {
			t.Errorf("%s has %d bytes, want %d", version, len(got.Text), len(ball))
		}
	}
	w.expect(w.do("GET", "@acme/demo/-/demo-7.0.0.tgz", nil), 404)
	for path, want := range map[string]string{"/1.0.0": `"version":"1.0.0"`, "/latest": `"version":"1.1.0"`} {
		if one := w.expect(w.do("GET", "@acme/demo"+path, nil), 200); !strings.Contains(one.Text, want) {
			t.Errorf("%s: %s", path, one.Text)
		}
	}
	w.expect(w.do("GET", "@acme/demo/9.0.0", nil), 404)
	if tags := w.expect(w.do("GET", "-/package/@acme%2fdemo/dist-tags", nil), 200); tags.Text != `{"latest":"1.1.0"}` {
		t.Errorf("tags %s", tags.Text)
	}
	w.expect(w.do("GET", "other", nil), 404)
	asked := w.up.Asked("other")
	w.expect(w.do("GET", "other", nil), 404)
	if w.up.Asked("other") != asked {
		t.Error("what is not there was asked for again")
	}
	if a := w.publish("@acme/demo", "2.0.0", "x", nil); a.StatusCode != 405 || !strings.Contains(a.Text, "proxy") {
		t.Errorf("a publish to a proxy: %d %s", a.StatusCode, a.Text)
	}
	w.expect(w.do("PUT", "-/package/@acme%2fdemo/dist-tags/beta", strings.NewReader(`"1.0.0"`)), 405)

	// All of it goes on while the upstream is away, and says that it is old.
	w.up.Cut(true)
	w.node.Later(24 * time.Hour)
	a = w.expect(w.do("GET", "@acme%2fdemo", nil), 200)
	if len(a.Header.Values("Warning")) == 0 {
		t.Errorf("a stale answer has headers %v", a.Header)
	}
	w.expect(w.do("GET", "@acme/demo/-/demo-1.0.0.tgz", nil), 200)
}

// TestProxyOldSums: old versions have a shasum alone, or nothing; no other's integrity is theirs.
func TestProxyOldSums(t *testing.T) {
	w := startWorld(t)
	balls := w.offer("demo", map[string]string{"1.0.0": long, "1.1.0": long, "1.2.0": long}, map[string]string{"latest": "1.2.0"}, func(version string, m object) {
		dist := m["dist"].(object)
		if version != "1.0.0" {
			delete(dist, "integrity")
		}
		if version == "1.2.0" {
			delete(dist, "shasum")
		}
	})
	w.node.Proxy(t, "acme/lib", "npm", w.up.URL)
	for version, ball := range balls {
		if a := w.do("GET", "demo/-/demo-"+version+".tgz", nil); a.StatusCode != 200 || a.Text != string(ball) {
			t.Errorf("%s: %d %.100q", version, a.StatusCode, a.Text)
		}
	}
}

// TestProxyTimes: what an upstream says of times is text, whatever it is.
func TestProxyTimes(t *testing.T) {
	w := startWorld(t)
	odd := "a\x7f\u00ad\x01"
	w.offer("demo", map[string]string{"1.0.0": odd}, map[string]string{"latest": "1.0.0"}, nil)
	w.node.Proxy(t, "acme/lib", "npm", w.up.URL)
	if p := w.packument("demo"); p.Time["1.0.0"] != odd {
		t.Errorf("%+v", p.Time)
	}
}

// TestProxyIntegrity: bytes that are not what the upstream's own document says are refused
// and not kept.
func TestProxyIntegrity(t *testing.T) {
	w := startWorld(t)
	w.offer("demo", map[string]string{"1.0.0": long}, map[string]string{"latest": "1.0.0"}, nil)
	w.offer("old", map[string]string{"1.0.0": long}, map[string]string{"latest": "1.0.0"}, func(_ string, m object) { delete(m["dist"].(object), "integrity") })
	w.node.Proxy(t, "acme/lib", "npm", w.up.URL)
	w.up.Lie(func(path string, body []byte) []byte {
		if strings.HasSuffix(path, ".tgz") {
			body = append([]byte("evil"), body...)
		}
		return body
	})
	for _, name := range []string{"demo", "old"} {
		if a := w.do("GET", name+"/-/"+name+"-1.0.0.tgz", nil); a.StatusCode != 502 || !strings.Contains(a.Text, `"error"`) {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.Text)
		}
	}
	w.up.Lie(nil)
	for _, name := range []string{"demo", "old"} {
		w.expect(w.do("GET", name+"/-/"+name+"-1.0.0.tgz", nil), 200)
	}
}

func TestProxyMalformed(t *testing.T) {
	w := startWorld(t)
	w.node.Proxy(t, "acme/lib", "npm", w.up.URL)
	for name, text := range map[string]string{
		"html": "<html>", "half": `{"name":"half","versions":{"1.0.0":{`, "list": `[]`, "words": `{"versions":{"1.0.0":"x"}}`, "tags": `{"dist-tags":[],"versions":{}}`,
		"long": `{"versions":{"1.0.0":{"x":"` + strings.Repeat("x", 2<<20) + `"}}}`,
	} {
		w.up.Put(name, []byte(text), "Content-Type: application/json")
		if a := w.do("GET", name, nil); a.StatusCode != 502 || !strings.Contains(a.Text, `"error"`) {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.Text)
		}
	}
	w.up.Put("empty", []byte(`{"name":"empty","versions":{}}`))
	w.expect(w.do("GET", "empty", nil), 404)
	// What is odd in a document is passed over, where it can be.
	w.up.Put("odd", []byte(`{"name":"odd","versions":{"1.0.0":{"name":"odd","version":"1.0.0","dist":7}},"time":{"unpublished":{"x":1}}}`))
	if p := w.packument("odd"); p.Tags["latest"] != "1.0.0" {
		t.Errorf("%+v", p)
	}
}

func TestMinReleaseAge(t *testing.T) {
	w := startWorld(t)
	fresh := time.Now().Add(-time.Hour).UTC().Format("2006-01-02T15:04:05.000Z")
	w.offer("demo", map[string]string{"1.0.0": longer, "1.1.0": long, "2.0.0": fresh}, map[string]string{"latest": "2.0.0", "next": "2.0.0", "old": "1.0.0"}, nil)
	w.node.Proxy(t, "acme/lib", "npm", w.up.URL, func(u *meta.Upstream) { u.MinReleaseAge = 72 * time.Hour })
	p := w.packument("demo")
	if len(p.Versions) != 2 || p.Tags["latest"] != "1.1.0" || p.Tags["next"] != "" || p.Tags["old"] != "1.0.0" {
		t.Errorf("%v %v", p.Versions, p.Tags)
	}
	w.expect(w.do("GET", "demo/-/demo-1.1.0.tgz", nil), 200)
	if a := w.expect(w.do("GET", "demo/-/demo-2.0.0.tgz", nil), 404); !strings.Contains(a.Text, "younger") {
		t.Errorf("%s", a.Text)
	}
	w.expect(w.do("GET", "demo/2.0.0", nil), 404)
	if tags := w.expect(w.do("GET", "-/package/demo/dist-tags", nil), 200); tags.Text != `{"latest":"1.1.0","old":"1.0.0"}` {
		t.Errorf("tags %s", tags.Text)
	}
}

// TestDependencyConfusion: a name that is owned here is never taken from elsewhere,
// whatever is there, and also when its last version is gone.
func TestDependencyConfusion(t *testing.T) {
	w := startWorld(t)
	w.node.Hosted(t, "acme/lib", "npm")
	w.node.Hosted(t, "acme/second", "npm")
	w.node.Proxy(t, "acme/proxy", "npm", w.up.URL, func(u *meta.Upstream) { u.Block = []string{"evil*"} })
	w.node.Group(t, "acme/all", "npm", "lib", "lib", "second", "proxy")
	w.offer("internal", map[string]string{"9.9.9": long}, map[string]string{"latest": "9.9.9"}, nil)
	w.offer("public", map[string]string{"1.0.0": long}, map[string]string{"latest": "1.0.0"}, nil)
	w.offer("evil-twin", map[string]string{"1.0.0": long}, map[string]string{"latest": "1.0.0"}, nil)
	raw := func(name, version, text string) io.Reader {
		return bytes.NewReader(document(t, name, version, ball(t, packageJSON(name, version), text), nil))
	}
	// A publish to the group goes to its member.
	w.expect(w.at("acme/all", "PUT", "internal", raw("internal", "1.0.0", "ours")), 201)
	w.expect(w.at("acme/second", "PUT", "internal", raw("internal", "1.0.0", "theirs")), 201)
	w.expect(w.at("acme/second", "PUT", "internal", raw("internal", "1.5.0", "theirs")), 201)
	get := func(name string) packument {
		t.Helper()
		var p packument
		if err := json.Unmarshal([]byte(w.expect(w.at("acme/all", "GET", name, nil), 200).Text), &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := get("internal")
	if len(p.Versions) != 2 || p.Tags["latest"] != "1.0.0" || p.Versions["9.9.9"].Name != "" || !strings.HasPrefix(p.Versions["1.0.0"].Dist.Tarball, w.URL+"/npm/acme/all/") {
		t.Errorf("%+v", p)
	}
	if a := w.expect(w.at("acme/all", "GET", "internal/-/internal-1.0.0.tgz", nil), 200); a.Text != string(ball(t, packageJSON("internal", "1.0.0"), "ours")) {
		t.Error("the first member's version is not what came")
	}
	w.expect(w.at("acme/all", "GET", "internal/-/internal-1.5.0.tgz", nil), 200)
	w.expect(w.at("acme/all", "GET", "internal/-/internal-9.9.9.tgz", nil), 404)
	// Nor under a name that differs by a separator.
	w.offer("inter-nal", map[string]string{"1.0.0": long}, map[string]string{"latest": "1.0.0"}, nil)
	if p := get("public"); p.Tags["latest"] != "1.0.0" {
		t.Errorf("%+v", p)
	}
	w.expect(w.at("acme/all", "GET", "public/-/public-1.0.0.tgz", nil), 200)
	w.expect(w.at("acme/all", "GET", "evil-twin", nil), 403)
	for _, repo := range []string{"lib", "second"} {
		var p packument
		if err := json.Unmarshal([]byte(w.expect(w.at("acme/"+repo, "GET", "internal", nil), 200).Text), &p); err != nil {
			t.Fatal(err)
		}
		w.expect(w.at("acme/"+repo, "DELETE", "internal/-rev/"+p.Rev, nil), 200)
	}
	w.expect(w.at("acme/all", "GET", "internal", nil), 404)
	w.expect(w.at("acme/all", "GET", "internal/-/internal-9.9.9.tgz", nil), 404)
	if n := w.up.Asked("internal"); n != 0 {
		t.Errorf("the upstream was asked %d times for a name that is owned here", n)
	}
}

// A rule is of the name that people write, through a group as well: its key has no dots.
func TestGroupRules(t *testing.T) {
	w := startWorld(t)
	w.node.Proxy(t, "acme/proxy", "npm", w.up.URL, func(u *meta.Upstream) { u.Allow, u.Block = []string{"socket.io", "lodash*"}, []string{"lodash.bad"} })
	w.node.Group(t, "acme/all", "npm", "", "proxy")
	for name, status := range map[string]int{"socket.io": 200, "lodash.get": 200, "lodash.bad": 403, "socket-io": 403, "other.one": 403} {
		w.offer(name, map[string]string{"1.0.0": long}, map[string]string{"latest": "1.0.0"}, nil)
		for _, repo := range []string{"acme/proxy", "acme/all"} {
			if a := w.at(repo, "GET", name, nil); a.StatusCode != status {
				t.Errorf("%s of %s: %d %s, want %d", name, repo, a.StatusCode, a.Text, status)
			}
		}
	}
}

// TestGroupAudit: internal names do not leave, and what the upstream says comes back.
func TestGroupAudit(t *testing.T) {
	w := startWorld(t)
	w.node.Hosted(t, "acme/lib", "npm")
	w.node.Proxy(t, "acme/proxy", "npm", w.up.URL)
	w.node.Group(t, "acme/all", "npm", "lib", "lib", "proxy")
	w.expect(w.publish("internal", "1.0.0", "x", nil), 201)
	const bulk = "-/npm/v1/security/advisories/bulk"
	var mu sync.Mutex
	heard := ""
	w.up.Handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		heard = r.Method + " " + r.URL.String() + " " + string(body)
		if strings.HasPrefix(r.URL.Path, "/-/v1/search") {
			fmt.Fprint(rw, `{"objects":[],"total":7}`)
			return
		}
		fmt.Fprint(rw, `{"public":[{"id":1}]}`)
	}))
	for _, repo := range []string{"acme/all", "acme/proxy"} {
		a := w.expect(w.at(repo, "POST", bulk, strings.NewReader(`{"internal":["1.0.0"],"public":["1.0.0"]}`)), 200)
		if strings.TrimSpace(a.Text) != `{"public":[{"id":1}]}` {
			t.Errorf("%s: %s", repo, a.Text)
		}
		want := `POST /` + bulk + ` {"public":["1.0.0"]}`
		if repo == "acme/proxy" { // which knows of no others
			want = `POST /` + bulk + ` {"internal":["1.0.0"],"public":["1.0.0"]}`
		}
		if heard != want {
			t.Errorf("%s: the upstream heard %s", repo, heard)
		}
		w.expect(w.at(repo, "POST", "-/npm/v1/security/audits", strings.NewReader(`{}`)), 404)
	}
	if a := w.expect(w.at("acme/proxy", "GET", "-/v1/search?text=a+b&from=3", nil), 200); a.Text != `{"objects":[],"total":7}` || heard != "GET /-/v1/search?from=3&size=20&text=a+b " {
		t.Errorf("%s, heard %s", a.Text, heard)
	}
	if a := w.expect(w.at("acme/all", "GET", "-/v1/search?text=internal", nil), 200); !strings.Contains(a.Text, `"name":"internal"`) {
		t.Errorf("%s", a.Text)
	}
	w.up.Put("-/npm/v1/keys", []byte(`{"keys":[{"keyid":"k"}]}`), "Content-Type: application/json")
	for _, repo := range []string{"acme/all", "acme/proxy"} {
		if a := w.expect(w.at(repo, "GET", "-/npm/v1/keys", nil), 200); a.Text != `{"keys":[{"keyid":"k"}]}` {
			t.Errorf("keys of %s: %s", repo, a.Text)
		}
	}
	w.up.Fail(503, "")
	w.expect(w.at("acme/proxy", "POST", bulk, strings.NewReader(`{"public":["1.0.0"]}`)), 503)
}

// TestOneUpstreamRequest: many that want one package at once are one to the upstream.
func TestOneUpstreamRequest(t *testing.T) {
	w := startWorld(t)
	w.offer("demo", map[string]string{"1.0.0": long}, map[string]string{"latest": "1.0.0"}, nil)
	w.node.Proxy(t, "acme/lib", "npm", w.up.URL)
	w.up.Hold()
	var wait sync.WaitGroup
	for range 50 {
		wait.Go(func() {
			if a := w.do("GET", "demo", nil); a.StatusCode != 200 {
				t.Errorf("%d %s", a.StatusCode, a.Text)
			}
			if a := w.do("GET", "demo/-/demo-1.0.0.tgz", nil); a.StatusCode != 200 {
				t.Errorf("%d %s", a.StatusCode, a.Text)
			}
		})
	}
	w.up.Awaits(t)
	w.up.Release()
	wait.Wait()
	for path, n := range w.up.All() {
		if n != 1 {
			t.Errorf("%s was asked for %d times", path, n)
		}
	}
}
