package npm_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha1" //nolint:gosec // npm's shasum
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/archive/archivetest"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/gateway/protocols/npm"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

var update = flag.Bool("update", false, "write the answers of conversations anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type registry struct {
	*catalogtest.Stack
	t testing.TB
}

func pages(t testing.TB) *rendered.Cache {
	t.Helper()
	c, err := rendered.New(rendered.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func start(t testing.TB, o catalogtest.Options) *registry {
	if o.Content == nil {
		o.Content = catalogtest.NewMemory()
	}
	return &registry{catalogtest.New(t, o, func(c *catalog.Catalog) []protocol.Protocol {
		return []protocol.Protocol{npm.New(c, pages(t), nil)}
	}), t}
}

// do sends a request about a path below /npm/acme/lib/; headers are `Name: value`.
func (r *registry) do(method, path string, body io.Reader, headers ...string) catalogtest.Answer {
	r.t.Helper()
	return r.at("acme/lib", method, path, body, headers...)
}

func (r *registry) at(repo, method, path string, body io.Reader, headers ...string) catalogtest.Answer {
	r.t.Helper()
	return r.Ask(r.t, method, "/npm/"+repo+"/"+path, body, headers...)
}

func (r *registry) expect(a catalogtest.Answer, status int) catalogtest.Answer {
	r.t.Helper()
	return a.Expect(r.t, status)
}

// ball makes a tarball with a package.json and one more file.
func ball(t testing.TB, packageJSON, content string) []byte {
	t.Helper()
	return archivetest.Tgz(t, "package/package.json", packageJSON, "package/index.js", content)
}

type object = map[string]any

// document is what a client PUTs to publish a tarball; change may alter it.
func document(t testing.TB, name, version string, tarball []byte, change func(doc, manifest object)) []byte {
	t.Helper()
	s1, s512 := sha1.Sum(tarball), sha512.Sum512(tarball) //nolint:gosec // npm's shasum
	_, base, scoped := strings.Cut(name, "/")
	if !scoped {
		base = name
	}
	manifest := object{"name": name, "version": version, "description": "a test", "readme": "not kept", "_id": name + "@" + version,
		"dist": object{"shasum": hex.EncodeToString(s1[:]), "integrity": "sha512-" + base64.StdEncoding.EncodeToString(s512[:]), "tarball": "http://elsewhere/" + base + ".tgz"}}
	doc := object{"_id": name, "name": name, "description": "a test", "dist-tags": object{"latest": version}, "versions": object{version: manifest}, "access": nil,
		"_attachments": object{name + "-" + version + ".tgz": object{"content_type": "application/octet-stream", "data": base64.StdEncoding.EncodeToString(tarball), "length": len(tarball)}}}
	if change != nil {
		change(doc, manifest)
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func packageJSON(name, version string) string {
	return fmt.Sprintf(`{"name":%q,"version":%q,"dependencies":{"real":"^1.0.0"}}`, name, version)
}

// publish sends a version whose content is text.
func (r *registry) publish(name, version, text string, change func(doc, manifest object)) catalogtest.Answer {
	r.t.Helper()
	raw := document(r.t, name, version, ball(r.t, packageJSON(name, version), text), change)
	return r.do("PUT", strings.ReplaceAll(name, "/", "%2f"), bytes.NewReader(raw))
}

type packument struct {
	ID       string                     `json:"_id"`
	Rev      string                     `json:"_rev"`
	Tags     map[string]string          `json:"dist-tags"`
	Versions map[string]manifest        `json:"versions"`
	Time     map[string]string          `json:"time"`
	Raw      map[string]json.RawMessage `json:"-"`
}

type manifest struct {
	Name         string            `json:"name"`
	Description  string            `json:"description"`
	Deprecated   string            `json:"deprecated"`
	Readme       string            `json:"readme"`
	Dependencies map[string]string `json:"dependencies"`
	Dist         struct {
		Tarball   string `json:"tarball"`
		Integrity string `json:"integrity"`
	} `json:"dist"`
}

func (r *registry) packument(path string, headers ...string) packument {
	r.t.Helper()
	a := r.expect(r.do("GET", path, nil, headers...), 200)
	var p packument
	if err := errors.Join(json.Unmarshal([]byte(a.Text), &p), json.Unmarshal([]byte(a.Text), &p.Raw)); err != nil {
		r.t.Fatalf("%s: %v", a.Text, err)
	}
	return p
}

func TestPublishAndInstall(t *testing.T) {
	for _, name := range []string{"demo", "@acme/demo"} {
		t.Run(name, func(t *testing.T) {
			r := start(t, catalogtest.Options{})
			a := r.expect(r.publish(name, "1.0.0", "one", nil), 201)
			if a.Header.Get("Shoal-Token") == "" {
				t.Error("no token")
			}
			r.expect(r.publish(name, "1.1.0", "two", nil), 201)
			escaped := strings.ReplaceAll(name, "/", "%2f")
			for _, path := range []string{escaped, strings.ReplaceAll(name, "/", "%2F"), name} {
				p := r.packument(path)
				if p.ID != name || p.Tags["latest"] != "1.1.0" || len(p.Versions) != 2 || p.Time["1.0.0"] == "" || p.Time["created"] == "" || p.Rev == "" {
					t.Errorf("%s: %+v", path, p)
				}
				m := p.Versions["1.0.0"]
				if m.Dependencies["real"] == "" || m.Readme != "" || m.Description != "a test" {
					t.Errorf("the manifest is %+v", m)
				}
				want := r.URL + "/npm/acme/lib/" + name + "/-/demo-1.0.0.tgz"
				if m.Dist.Tarball != want {
					t.Errorf("tarball %s, want %s", m.Dist.Tarball, want)
				}
			}
			short := r.expect(r.do("GET", escaped, nil, "Accept: application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*"), 200)
			if short.Header.Get("Content-Type") != "application/vnd.npm.install-v1+json" || strings.Contains(short.Text, "a test") || !strings.Contains(short.Text, `"time":{`) || !strings.Contains(short.Text, `"modified":`) {
				t.Errorf("abbreviated: %v %s", short.Header, short.Text)
			}
			r.expect(r.do("GET", escaped, nil, "Accept: application/vnd.npm.install-v1+json", "If-None-Match: "+short.Header.Get("Etag")), 304)

			whole := ball(t, packageJSON(name, "1.0.0"), "one")
			for _, path := range []string{name + "/-/demo-1.0.0.tgz", escaped + "/-/demo-1.0.0.tgz", name + "/-/" + strings.TrimSuffix(name, "demo") + "demo-1.0.0.tgz"} {
				if got := r.expect(r.do("GET", path, nil), 200); got.Text != string(whole) {
					t.Errorf("%s has %d bytes, want %d", path, len(got.Text), len(whole))
				}
			}
			r.expect(r.do("GET", name+"/-/demo-9.0.0.tgz", nil), 404)
			r.expect(r.do("GET", name+"/-/other-1.0.0.tgz", nil), 404)
			for path, want := range map[string]string{"/1.0.0": "1.0.0", "/latest": "1.1.0"} {
				if one := r.expect(r.do("GET", name+path, nil), 200); !strings.Contains(one.Text, `"_id":"`+name+"@"+want) {
					t.Errorf("%s: %s", path, one.Text)
				}
			}
			r.expect(r.do("GET", name+"/nope", nil), 404)
		})
	}
}

func TestDuplicates(t *testing.T) {
	r := start(t, catalogtest.Options{})
	r.expect(r.publish("demo", "1.0.0", "one", nil), 201)
	r.expect(r.publish("demo", "1.1.0", "two", nil), 201)
	const message = `"You cannot publish over the previously published versions: 1.0.0."`
	if a := r.expect(r.publish("demo", "1.0.0", "other", nil), 403); !strings.Contains(a.Text, message) {
		t.Errorf("a duplicate is refused with %s", a.Text)
	}
	// The very same again is no error, and rolls nothing back.
	r.expect(r.publish("demo", "1.0.0", "one", nil), 201)
	if p := r.packument("demo"); p.Tags["latest"] != "1.1.0" {
		t.Errorf("after a repetition the tags are %v", p.Tags)
	}
	r.expect(r.do("DELETE", "demo/-/demo-1.0.0.tgz/-rev/"+r.packument("demo").Rev, nil), 200)
	if a := r.expect(r.publish("demo", "1.0.0", "other", nil), 403); !strings.Contains(a.Text, message) {
		t.Errorf("what was deleted is refused with %s", a.Text)
	}
	r.expect(r.publish("demo", "1.0.0", "one", nil), 201)
}

func TestRefusals(t *testing.T) {
	r := start(t, catalogtest.Options{})
	good := ball(t, packageJSON("demo", "1.0.0"), "x")
	attachment := func(doc object) object { return doc["_attachments"].(object)["demo-1.0.0.tgz"].(object) }
	for name, test := range map[string]struct {
		tarball []byte
		change  func(doc, manifest object)
		path    string
		status  int
	}{
		"another sum":            {good, func(_, m object) { m["dist"].(object)["shasum"] = strings.Repeat("0", 40) }, "", 400},
		"another integrity":      {good, func(_, m object) { m["dist"].(object)["integrity"] = "sha512-AAAA" }, "", 400},
		"another name inside":    {ball(t, packageJSON("evil", "1.0.0"), "x"), nil, "", 400},
		"another version inside": {ball(t, packageJSON("demo", "6.6.6"), "x"), nil, "", 400},
		"another path":           {good, nil, "other", 400},
		"no tarball":             {[]byte("this is no tarball"), nil, "", 400},
		"cut off":                {good[:len(good)/2], nil, "", 400},
		"no base64":              {good, func(doc, _ object) { attachment(doc)["data"] = "!!!!" }, "", 400},
		"no data":                {good, func(doc, _ object) { delete(attachment(doc), "data") }, "", 400},
		"no attachment":          {good, func(doc, _ object) { delete(doc, "_attachments") }, "", 404},
		"two versions":           {good, func(doc, m object) { doc["versions"].(object)["1.0.1"] = m }, "", 400},
		"a tag of another":       {good, func(doc, _ object) { doc["dist-tags"] = object{"latest": "2.0.0"} }, "", 400},
		"a tag like a version":   {good, func(doc, _ object) { doc["dist-tags"] = object{"1.0": "1.0.0"} }, "", 400},
		"provenance":             {good, func(doc, _ object) { doc["_attachments"].(object)["demo-1.0.0.sigstore"] = object{"data": "{}"} }, "", 400},
		"a bad name":             {good, nil, "Demo", 400},
		"a large manifest":       {good, func(_, m object) { m["x"] = strings.Repeat("x", 2<<20) }, "", 413},
	} {
		t.Run(name, func(t *testing.T) {
			if test.path == "" {
				test.path = "demo"
			}
			raw := document(t, "demo", "1.0.0", test.tarball, test.change)
			a := r.do("PUT", test.path, bytes.NewReader(raw))
			var failure struct{ Error string }
			if err := json.Unmarshal([]byte(a.Text), &failure); err != nil || a.StatusCode != test.status || failure.Error == "" {
				t.Errorf("%d %s, want %d", a.StatusCode, a.Text, test.status)
			}
			r.expect(r.do("GET", "demo", nil), 404)
		})
	}
	r.expect(r.do("PUT", "demo", strings.NewReader("{")), 400)
}

func TestTwins(t *testing.T) {
	r := start(t, catalogtest.Options{})
	r.expect(r.publish("left-pad", "1.0.0", "x", nil), 201)
	for _, twin := range []string{"left_pad", "left.pad", "left--pad"} {
		if a := r.expect(r.publish(twin, "9.0.0", "x", nil), 403); !strings.Contains(a.Text, "too similar") {
			t.Errorf("%s is refused with %s", twin, a.Text)
		}
		r.expect(r.do("GET", twin, nil), 404)
		r.expect(r.do("GET", twin+"/-/"+twin+"-1.0.0.tgz", nil), 404)
	}
	r.expect(r.publish("lodash.merge", "1.0.0", "x", nil), 201)
	if p := r.packument("lodash.merge"); p.ID != "lodash.merge" || !strings.HasSuffix(p.Versions["1.0.0"].Dist.Tarball, "/lodash.merge/-/lodash.merge-1.0.0.tgz") {
		t.Errorf("%+v", p)
	}
	r.expect(r.publish("lodash.merge", "1.0.1", "x", nil), 201)
}

func TestTags(t *testing.T) {
	r := start(t, catalogtest.Options{})
	// The first version is latest, whatever its tag.
	r.expect(r.publish("demo", "1.0.0-rc.1", "x", func(doc, _ object) { doc["dist-tags"] = object{"next": "1.0.0-rc.1"} }), 201)
	r.expect(r.publish("demo", "1.0.0-rc.2", "x", func(doc, _ object) { doc["dist-tags"] = object{"next": "1.0.0-rc.2"} }), 201)
	const tags = "-/package/demo/dist-tags"
	want := func(text string) {
		t.Helper()
		if a := r.expect(r.do("GET", tags, nil), 200); a.Text != text {
			t.Errorf("tags are %s, want %s", a.Text, text)
		}
	}
	want(`{"latest":"1.0.0-rc.1","next":"1.0.0-rc.2"}`)
	r.expect(r.do("PUT", tags+"/beta", strings.NewReader(`"1.0.0-rc.1"`)), 201)
	want(`{"beta":"1.0.0-rc.1","latest":"1.0.0-rc.1","next":"1.0.0-rc.2"}`)
	r.expect(r.do("PUT", tags+"/beta", strings.NewReader(`"7.0.0"`)), 404)
	r.expect(r.do("PUT", tags+"/beta", strings.NewReader(`7`)), 400)
	r.expect(r.do("PUT", tags+"/1.0", strings.NewReader(`"1.0.0-rc.1"`)), 400)
	r.expect(r.do("DELETE", tags+"/beta", nil), 200)
	r.expect(r.do("DELETE", tags+"/beta", nil), 404)
	r.expect(r.do("DELETE", tags+"/latest", nil), 400)
	want(`{"latest":"1.0.0-rc.1","next":"1.0.0-rc.2"}`)
	r.expect(r.do("GET", "-/package/other/dist-tags", nil), 404)
}

// back is the document of a package as `?write=true` gives it.
func (r *registry) back(name string) object {
	r.t.Helper()
	var doc object
	if err := json.Unmarshal([]byte(r.expect(r.do("GET", name+"?write=true", nil), 200).Text), &doc); err != nil {
		r.t.Fatal(err)
	}
	return doc
}

func (r *registry) send(path string, doc object) catalogtest.Answer {
	r.t.Helper()
	raw, err := json.Marshal(doc)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.do("PUT", path, bytes.NewReader(raw))
}

func TestDeprecate(t *testing.T) {
	r := start(t, catalogtest.Options{})
	for _, v := range []string{"1.0.0", "1.1.0", "2.0.0"} {
		r.expect(r.publish("demo", v, v, nil), 201)
	}
	doc := r.back("demo")
	versions := doc["versions"].(object)
	versions["1.0.0"].(object)["deprecated"] = "use 2"
	versions["1.1.0"].(object)["deprecated"] = "use 2"
	r.expect(r.send("demo", doc), 200)
	if p := r.packument("demo", "Accept: application/vnd.npm.install-v1+json"); p.Versions["1.0.0"].Deprecated != "use 2" || p.Versions["1.1.0"].Deprecated != "use 2" || p.Versions["2.0.0"].Deprecated != "" {
		t.Errorf("%+v", p.Versions)
	}
	// The document that was changed is of an older revision now.
	r.expect(r.send("demo", doc), 409)
	doc = r.back("demo")
	r.expect(r.send("demo", doc), 200) // nothing to do
	doc["versions"].(object)["1.0.0"].(object)["deprecated"] = ""
	r.expect(r.send("demo", doc), 200)
	if p := r.packument("demo"); p.Versions["1.0.0"].Deprecated != "" || p.Versions["1.1.0"].Deprecated != "use 2" {
		t.Errorf("%+v", p.Versions)
	}
	for name, change := range map[string]func(versions object){
		"another tarball": func(v object) { v["1.0.0"].(object)["dist"].(object)["integrity"] = "sha512-AAAA" },
		"another sum":     func(v object) { v["1.0.0"].(object)["dist"].(object)["shasum"] = "00" },
		"no integrity":    func(v object) { delete(v["1.0.0"].(object)["dist"].(object), "integrity") },
		"a new version":   func(v object) { v["3.0.0"] = v["2.0.0"] },
		"one left out":    func(v object) { delete(v, "1.0.0") },
	} {
		doc := r.back("demo")
		change(doc["versions"].(object))
		if a := r.send("demo", doc); a.StatusCode != 400 {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.Text)
		}
	}
	if p := r.packument("demo"); len(p.Versions) != 3 {
		t.Errorf("%+v", p.Versions)
	}
}

func TestUnpublish(t *testing.T) {
	r := start(t, catalogtest.Options{})
	for _, v := range []string{"1.0.0", "1.1.0", "2.0.0"} {
		r.expect(r.publish("@acme/demo", v, v, nil), 201)
	}
	doc := r.back("@acme%2fdemo")
	delete(doc["versions"].(object), "2.0.0")
	doc["dist-tags"] = object{"latest": "1.1.0"}
	rev := doc["_rev"].(string)
	r.expect(r.send("@acme%2fdemo/-rev/1", doc), 409)
	r.expect(r.send("@acme%2fdemo/-rev/"+rev, doc), 200)
	p := r.packument("@acme/demo")
	if len(p.Versions) != 2 || p.Tags["latest"] != "1.1.0" {
		t.Errorf("%+v", p)
	}
	// npm takes the tarball away then, which is gone.
	r.expect(r.do("DELETE", "@acme/demo/-/demo-2.0.0.tgz/-rev/"+p.Rev, nil), 200)
	r.expect(r.do("GET", "@acme/demo/-/demo-2.0.0.tgz", nil), 404)
	r.expect(r.do("DELETE", "@acme%2fdemo/-rev/1", nil), 409)
	// The path of a version's manifest is not that of its package.
	r.expect(r.do("DELETE", "@acme%2fdemo/1.0.0/-rev/"+p.Rev, nil), 404)
	r.expect(r.do("DELETE", "@acme/demo/latest/-rev/"+p.Rev, nil), 404)
	r.expect(r.do("GET", "@acme/demo/-/demo-1.0.0.tgz", nil), 200)
	r.expect(r.do("DELETE", "@acme%2fdemo/-rev/"+p.Rev, nil), 200)
	r.expect(r.do("GET", "@acme/demo", nil), 404)
	r.expect(r.do("DELETE", "@acme%2fdemo/-rev/"+p.Rev, nil), 404)
	r.expect(r.publish("@acme/demo", "1.0.0", "other bytes", nil), 403)
	// The name stays with who had it.
	r.expect(r.publish("@acme/demo", "3.0.0", "x", nil), 201)
}

// Who may take versions away may not so much as move a tag by that, or deprecate.
func TestUnpublishOnly(t *testing.T) {
	r := start(t, catalogtest.Options{})
	for _, v := range []string{"1.0.0", "1.1.0", "2.0.0"} {
		r.expect(r.publish("demo", v, v, nil), 201)
	}
	r.expect(r.do("PUT", "-/package/demo/dist-tags/stable", strings.NewReader(`"1.1.0"`)), 201)
	for name, change := range map[string]func(doc object){
		"deprecated": func(doc object) { doc["versions"].(object)["1.0.0"].(object)["deprecated"] = "use mine" },
		"moved":      func(doc object) { doc["dist-tags"].(object)["stable"] = "1.0.0" },
		"latest":     func(doc object) { doc["dist-tags"].(object)["latest"] = "1.0.0" },
		"new":        func(doc object) { doc["dist-tags"].(object)["beta"] = "1.0.0" },
		"untagged":   func(doc object) { delete(doc["dist-tags"].(object), "stable") },
	} {
		doc := r.back("demo")
		change(doc)
		if a := r.send("demo/-rev/"+doc["_rev"].(string), doc); a.StatusCode != 403 {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.Text)
		}
	}
	if p := r.packument("demo"); fmt.Sprint(p.Tags) != "map[latest:2.0.0 stable:1.1.0]" || p.Versions["1.0.0"].Deprecated != "" {
		t.Errorf("%+v", p)
	}
	doc := r.back("demo")
	delete(doc["versions"].(object), "2.0.0")
	doc["dist-tags"].(object)["latest"] = "1.1.0"
	r.expect(r.send("demo/-rev/"+doc["_rev"].(string), doc), 200)
	if p := r.packument("demo"); fmt.Sprint(p.Tags) != "map[latest:1.1.0 stable:1.1.0]" {
		t.Errorf("%+v", p)
	}
}

func TestMarks(t *testing.T) {
	r := start(t, catalogtest.Options{})
	for _, v := range []string{"1.0.0", "1.1.0", "1.2.0", "1.3.0-beta"} {
		r.expect(r.publish("demo", v, v, nil), 201)
	}
	ref, yes := meta.RepoRef{Tenant: "acme", Name: "lib"}, true
	do := func(c state.Command) {
		t.Helper()
		if _, err := r.Metadata.Do(t.Context(), state.Origin{Principal: "user:curator"}, c); err != nil {
			t.Fatal(err)
		}
	}
	do(state.MarkVersions{Repo: ref, Package: "demo", Versions: []string{"1.2.0"}, Marking: meta.Marking{Yanked: &yes}})
	do(state.QuarantineVersion{Repo: ref, Package: "demo", Version: "1.0.0", Reason: "stolen"})
	do(state.DeleteAlias{Repo: ref, Package: "demo", Name: "latest"})
	p := r.packument("demo")
	if len(p.Versions) != 2 || p.Versions["1.1.0"].Name == "" || p.Versions["1.3.0-beta"].Name == "" || p.Tags["latest"] != "1.1.0" {
		t.Errorf("%+v", p)
	}
	if one := r.expect(r.do("GET", "demo/latest", nil), 200); !strings.Contains(one.Text, `"version":"1.1.0"`) {
		t.Errorf("latest without a tag is %s", one.Text)
	}
	r.expect(r.do("GET", "demo/-/demo-1.2.0.tgz", nil), 200)
	if a := r.expect(r.do("GET", "demo/-/demo-1.0.0.tgz", nil), 403); !strings.Contains(a.Text, "stolen") {
		t.Errorf("%s", a.Text)
	}
	// A document that comes back is not taken to delete what it does not show.
	doc := r.back("demo")
	if n := len(doc["versions"].(object)); n != 3 {
		t.Errorf("%d versions to write", n)
	}
	r.expect(r.send("demo/-rev/"+doc["_rev"].(string), doc), 200)
	do(state.ReleaseVersion{Repo: ref, Package: "demo", Version: "1.0.0", Reason: "it was not"})
	r.expect(r.do("GET", "demo/-/demo-1.0.0.tgz", nil), 200)
}

func TestLargeManifest(t *testing.T) {
	r := start(t, catalogtest.Options{})
	deps := object{}
	for i := range 2000 {
		deps[fmt.Sprintf("dependency-%d", i)] = "^1.0.0"
	}
	raw, err := json.Marshal(object{"name": "large", "version": "1.0.0", "dependencies": deps})
	if err != nil {
		t.Fatal(err)
	}
	r.expect(r.do("PUT", "large", bytes.NewReader(document(t, "large", "1.0.0", ball(t, string(raw), "x"), nil))), 201)
	if p := r.packument("large"); len(p.Versions["1.0.0"].Dependencies) != 2000 {
		t.Errorf("%d dependencies", len(p.Versions["1.0.0"].Dependencies))
	}
	v, _, err := r.Catalog.Version(t.Context(), catalog.Caller{}, catalog.Package{Repo: meta.RepoRef{Tenant: "acme", Name: "lib"}, Name: "large"}, "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := npm.New(r.Catalog, nil, nil).Closure(t.Context(), meta.Principal{}, v, "")
	if err != nil || len(blobs) != 2 {
		t.Errorf("closure %v, %v", blobs, err)
	}
}

func TestSearchAuditAndKeys(t *testing.T) {
	r := start(t, catalogtest.Options{})
	for _, name := range []string{"@acme/web-app", "@acme/web-lib", "other"} {
		r.expect(r.publish(name, "1.0.0", "x", nil), 201)
	}
	search := func(query string) (names []string, total int) {
		var found struct {
			Objects []struct {
				Package struct{ Name, Version, Description string }
			}
			Total int
		}
		if err := json.Unmarshal([]byte(r.expect(r.do("GET", "-/v1/search?"+query, nil), 200).Text), &found); err != nil {
			t.Fatal(err)
		}
		for _, o := range found.Objects {
			if o.Package.Version != "1.0.0" || o.Package.Description != "a test" {
				t.Errorf("%+v", o)
			}
			names = append(names, o.Package.Name)
		}
		return names, found.Total
	}
	for query, want := range map[string]string{
		"text=web": "[@acme/web-app @acme/web-lib] 2", "text=WEB+lib": "[@acme/web-lib] 1", "text=scope:acme": "[@acme/web-app @acme/web-lib] 2", "text=": "[@acme/web-app @acme/web-lib other] 3",
		"text=web&size=1": "[@acme/web-app] 2", "text=web&size=1&from=1": "[@acme/web-lib] 2", "text=nothing": "[] 0",
	} {
		names, total := search(query)
		if got := fmt.Sprint(names, total); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	fmt.Fprint(z, `{"other":["1.0.0"]}`)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	const bulk = "-/npm/v1/security/advisories/bulk"
	if a := r.expect(r.do("POST", bulk, &packed, "Content-Encoding: gzip", "Content-Type: application/json"), 200); strings.TrimSpace(a.Text) != "{}" {
		t.Errorf("advisories: %s", a.Text)
	}
	r.expect(r.do("POST", bulk, strings.NewReader("no gzip"), "Content-Encoding: gzip"), 400)
	r.expect(r.do("POST", bulk, strings.NewReader("[]")), 400)
	for _, path := range []string{"-/npm/v1/security/audits", "-/npm/v1/security/audits/quick"} {
		if a := r.expect(r.do("POST", path, strings.NewReader("{}")), 200); !strings.Contains(a.Text, `"vulnerabilities"`) {
			t.Errorf("%s: %s", path, a.Text)
		}
	}
	if a := r.expect(r.do("GET", "-/npm/v1/keys", nil), 200); a.Text != `{"keys":[]}` {
		t.Errorf("keys: %s", a.Text)
	}
	r.expect(r.do("GET", "-/ping", nil), 200)
}

// A body that unpacks to more than any audit asks is refused, not unpacked.
func TestAuditBomb(t *testing.T) {
	r := start(t, catalogtest.Options{})
	r.expect(r.publish("demo", "1.0.0", "x", nil), 201)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(make([]byte, 32<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	r.expect(r.do("POST", "-/npm/v1/security/advisories/bulk", &packed, "Content-Encoding: gzip"), 413)
	// Each name costs a look-up.
	var many strings.Builder
	for i := range 60_000 {
		fmt.Fprintf(&many, `%c"p%d":[]`, "{,"[min(i, 1)], i)
	}
	r.expect(r.do("POST", "-/npm/v1/security/advisories/bulk", strings.NewReader(many.String()+"}")), 413)
}

// TestAuditSlow: who sends an audit slowly holds none of the memory that all share.
func TestAuditSlow(t *testing.T) {
	r := start(t, catalogtest.Options{Catalog: catalog.Config{WorkingBytes: 4 << 20}})
	r.expect(r.publish("demo", "1.0.0", "x", nil), 201)
	const bulk = "-/npm/v1/security/advisories/bulk"
	slow, send := io.Pipe()
	var ended sync.WaitGroup
	ended.Go(func() {
		req, err := http.NewRequestWithContext(t.Context(), "POST", r.URL+"/npm/acme/lib/"+bulk, slow)
		if err != nil {
			t.Error(err)
			return
		}
		if resp, err := r.Client.Do(req); err == nil {
			resp.Body.Close()
		}
	})
	if _, err := send.Write([]byte(`{"demo":`)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // a bound against a hang
	defer cancel()
	for range 20 { // the slow one is in by then
		req, err := http.NewRequestWithContext(ctx, "POST", r.URL+"/npm/acme/lib/"+bulk, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.Client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("%d", resp.StatusCode)
		}
	}
	send.CloseWithError(io.ErrUnexpectedEOF)
	ended.Wait()
}

func TestOnePublisherWins(t *testing.T) {
	r := start(t, catalogtest.Options{})
	r.expect(r.publish("demo", "0.0.1", "x", nil), 201)
	catalogtest.Race(t, 20, 201, 403, func(i int) func() catalogtest.Answer {
		raw := document(t, "demo", "1.0.0", ball(t, packageJSON("demo", "1.0.0"), fmt.Sprint(i)), nil)
		return func() catalogtest.Answer { return r.do("PUT", "demo", bytes.NewReader(raw)) }
	})
}

// A tarball of 64 MiB passes through a bounded share of memory.
func TestLargeTarball(t *testing.T) {
	r := &registry{catalogtest.New(t, catalogtest.Options{}, func(c *catalog.Catalog) []protocol.Protocol {
		return []protocol.Protocol{npm.New(c, pages(t), nil)}
	}), t}
	const bytesOf = 64 << 20
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	text := packageJSON("demo", "1.0.0")
	fill := func(name string, size int64, from io.Reader) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, from, size); err != nil {
			t.Fatal(err)
		}
	}
	fill("package/package.json", int64(len(text)), strings.NewReader(text))
	fill("package/data", bytesOf, rand.NewChaCha8([32]byte{1}))
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	raw := document(t, "demo", "1.0.0", b.Bytes(), nil)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r.expect(r.do("PUT", "demo", bytes.NewReader(raw)), 201)
	runtime.ReadMemStats(&after)
	// The store's own chunks count in; a copy of the tarball would be twice this.
	if grown := int64(after.TotalAlloc - before.TotalAlloc); grown > 48<<20 {
		t.Errorf("%d MiB were allocated for a tarball of %d MiB", grown>>20, bytesOf>>20)
	}
	got := r.expect(r.do("GET", "demo/-/demo-1.0.0.tgz", nil), 200)
	if got.Text != b.String() {
		t.Error("other bytes came back")
	}
}

func TestManyVersions(t *testing.T) {
	r := start(t, catalogtest.Options{})
	const versions = 600 // over two pages
	for i := range versions {
		v := fmt.Sprintf("1.0.%d", i)
		r.expect(r.publish("demo", v, "x", nil), 201)
	}
	p := r.packument("demo")
	if len(p.Versions) != versions || p.Tags["latest"] != fmt.Sprintf("1.0.%d", versions-1) || len(p.Time) != versions+2 {
		t.Errorf("%d versions, %d times, %v", len(p.Versions), len(p.Time), p.Tags)
	}
}

func TestProtocol(t *testing.T) {
	r := start(t, catalogtest.Options{})
	r.expect(r.publish("@acme/demo", "1.0.0", "x", nil), 201)
	const name = "/npm/acme/lib/"
	doc := document(t, "@acme/demo", "1.1.0", ball(t, packageJSON("@acme/demo", "1.1.0"), "x"), nil)
	protocoltest.Run(t, protocoltest.Case{
		Protocol: npm.New(r.Catalog, pages(t), nil), Metadata: access.Records{Asker: r.Metadata},
		Repo: meta.RepoRef{Tenant: "acme", Name: "lib"}, Absent: meta.RepoRef{Tenant: "acme", Name: "lix"},
		Reads: []protocoltest.Request{
			{Method: "GET", Path: name + "@acme%2fdemo"},
			{Method: "GET", Path: name + "@acme/demo", Header: http.Header{"Accept": {"application/vnd.npm.install-v1+json"}}},
			{Method: "GET", Path: name + "@acme/demo/-/demo-1.0.0.tgz"},
			{Method: "GET", Path: name + "@acme/demo/latest"},
			{Method: "GET", Path: name + "-/package/@acme%2fdemo/dist-tags"},
			{Method: "GET", Path: name + "-/v1/search?text=demo"},
			{Method: "GET", Path: name + "-/npm/v1/keys"},
		},
		Writes: []protocoltest.Request{
			{Method: "PUT", Path: name + "@acme%2fdemo", Body: doc},
			{Method: "PUT", Path: name + "@acme%2fdemo/-rev/1", Body: []byte("{}")},
			{Method: "DELETE", Path: name + "@acme%2fdemo/-rev/1"},
			{Method: "PUT", Path: name + "-/package/@acme%2fdemo/dist-tags/beta", Body: []byte(`"1.0.0"`)},
			{Method: "DELETE", Path: name + "-/package/@acme%2fdemo/dist-tags/beta"},
		},
		CheckError: func(_ int, h http.Header, body []byte) error {
			var doc struct{ Error string }
			if err := json.Unmarshal(body, &doc); err != nil || doc.Error == "" {
				return fmt.Errorf("no error in %s: %w", body, err)
			}
			return nil
		},
	})
}

func TestConversation(t *testing.T) {
	r := start(t, catalogtest.Options{Private: true})
	r.Create(t, meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "lib"}, Format: "npm"})
	r.Create(t, meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: "images"}, Format: "oci"})
	catalogtest.Converse(t, r.Stack, "testdata/packages.txtar", *update, catalogtest.AdminToken)
}

// TestFull: a disk without room and a quota that is used up have npm's form.
func TestFull(t *testing.T) {
	memory := catalogtest.NewMemory()
	r := start(t, catalogtest.Options{Content: memory})
	r.expect(r.publish("demo", "1.0.0", "x", nil), 201)
	memory.Fill(true)
	if a := r.expect(r.publish("demo", "1.1.0", "x", nil), 507); !strings.Contains(a.Text, `"error"`) {
		t.Errorf("%s", a.Text)
	}
	memory.Fill(false)
	over := start(t, catalogtest.Options{Catalog: catalog.Config{Storage: used{}}})
	if a := over.expect(over.publish("demo", "1.0.0", "x", nil), 403); !strings.Contains(a.Text, "storage quota of 1 GiB; delete something") {
		t.Errorf("%s", a.Text)
	}
}

// used is storage of which nothing is left.
type used struct{}

func (used) Reserve(_ context.Context, tenant meta.TenantName, _ string, _ int64) error {
	return &meta.QuotaError{Tenant: tenant, Limit: "storage quota of 1 GiB", Help: "delete something"}
}
func (used) Held(meta.TenantName, string) int64 { return 0 }
func (used) Settled(meta.TenantName, string)    {}
func (used) Release(meta.TenantName, string)    {}
