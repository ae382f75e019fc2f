package maven_test

import (
	"crypto/sha1"
	"crypto/sha512"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/maven"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// foreign is an upstream with one artifact, and a node with proxies of it.
type foreign struct {
	*upstreamtest.Stack
	*upstreamtest.Registry
	t *testing.T
}

func startForeign(t *testing.T) *foreign {
	pages, err := rendered.New(rendered.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	f := &foreign{t: t, Registry: upstreamtest.NewRegistry(t)}
	f.Stack = upstreamtest.New(t, catalogtest.Options{}, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		return []protocol.Protocol{maven.New(s.Catalog, pages, e)}
	})
	return f
}

func metadataOf(group, artifact string, versions ...string) []byte {
	return []byte(fmt.Sprintf("<metadata><groupId>%s</groupId><artifactId>%s</artifactId><versioning><release>%s</release><versions><version>%s</version></versions></versioning></metadata>",
		group, artifact, versions[len(versions)-1], strings.Join(versions, "</version><version>")))
}

// has puts a version into the upstream, with its metadata.
func (f *foreign) has(dir, artifact, version string) {
	group := strings.ReplaceAll(dir, "/", ".")
	file := dir + "/" + artifact + "/" + version + "/" + artifact + "-" + version + ".jar"
	body := []byte("upstream's " + version)
	f.Put(file, body)
	f.Put(file+".sha1", fmt.Appendf(nil, "%x  %s-%s.jar\n", sha1.Sum(body), artifact, version))
	f.Put(dir+"/"+artifact+"/maven-metadata.xml", metadataOf(group, artifact, version), `ETag: "`+version+`"`)
}

// in is a client of one repository.
func (f *foreign) in(repo string) *client {
	return &client{f.Stack.Stack, f.t, upstreamtest.Ref(repo)}
}

func TestProxy(t *testing.T) {
	f := startForeign(t)
	f.has("org/example", "demo", "1.0")
	f.Stack.Proxy(t, "acme/central", "maven", f.Registry.URL)
	c := f.in("acme/central")
	const jar = "org/example/demo/1.0/demo-1.0.jar"
	if got := c.get(jar); got != "upstream's 1.0" {
		t.Errorf("the jar is %q", got)
	}
	if got := c.get(jar + ".sha1"); !strings.HasPrefix(got, fmt.Sprintf("%x", sha1.Sum([]byte("upstream's 1.0")))) {
		t.Errorf("its checksum is %q", got)
	}
	c.expect(404, "GET", jar+".md5", "") // the upstream has none
	if d := c.metadata("org/example/demo"); d.Release != "1.0" {
		t.Errorf("metadata is %+v", d)
	}
	document := c.get("org/example/demo/maven-metadata.xml")
	if got, want := c.get("org/example/demo/maven-metadata.xml.sha512"), fmt.Sprintf("%x", sha512.Sum512([]byte(document))); got != want {
		t.Errorf("the checksum of what is served is %s, want %s", got, want)
	}
	asked := f.Asked(jar)
	// Metadata follows the upstream, artifacts never do, and all is there without it.
	f.has("org/example", "demo", "2.0")
	f.Later(24 * time.Hour)
	if d := c.metadata("org/example/demo"); d.Release != "2.0" {
		t.Errorf("a day later metadata is %+v", d)
	}
	c.get(jar)
	if n := f.Asked(jar); n != asked {
		t.Errorf("the upstream was asked %d times for an artifact", n)
	}
	f.Cut(true)
	f.Later(24 * time.Hour)
	c.get(jar)
	status, h, _ := c.do("GET", "org/example/demo/maven-metadata.xml", "")
	if status != http.StatusOK || !slices.ContainsFunc(h.Values("Warning"), func(w string) bool { return strings.HasPrefix(w, "110") }) {
		t.Errorf("without the upstream: %d %v", status, h)
	}
	c.expect(503, "GET", "org/example/demo/2.0/demo-2.0.jar", "")
	c.expect(405, "PUT", "org/example/demo/3.0/demo-3.0.jar", "jar")
}

func TestProxyChecksWhatComes(t *testing.T) {
	f := startForeign(t)
	f.has("org/example", "demo", "1.0")
	f.Stack.Proxy(t, "acme/central", "maven", f.Registry.URL, func(u *meta.Upstream) { u.Block = []string{"evil:*"} })
	c := f.in("acme/central")
	const jar = "org/example/demo/1.0/demo-1.0.jar"
	f.Registry.Lie(func(path string, body []byte) []byte {
		if strings.HasSuffix(path, ".jar") {
			return []byte("something else")
		}
		return body
	})
	if status, _, answer := c.do("GET", jar, ""); status != http.StatusBadGateway {
		t.Errorf("other bytes than the upstream's checksum: %d %s", status, answer)
	}
	f.Registry.Lie(nil)
	if got := c.get(jar); got != "upstream's 1.0" {
		t.Errorf("then the jar is %q", got)
	}
	// Without sha1 its sha512 counts; what is no checksum does not.
	const other = "org/example/other/1.0/other-1.0.jar"
	f.Put(other, []byte("jar"))
	f.Put(other+".sha1", []byte("<html>not found</html>"))
	f.Put(other+".sha512", fmt.Appendf(nil, "%x", sha512.Sum512([]byte("another jar"))))
	if status, _, answer := c.do("GET", other, ""); status != http.StatusBadGateway {
		t.Errorf("other bytes than the upstream's sha512: %d %s", status, answer)
	}
	f.has("evil", "demo", "1.0")
	c.expect(403, "GET", "evil/demo/1.0/demo-1.0.jar", "")
	c.expect(404, "GET", "evil/demo/maven-metadata.xml", "") // a refusal would end the client's search
	if n := f.Asked("evil/demo/1.0/demo-1.0.jar"); n != 0 {
		t.Errorf("what is blocked was asked for %d times", n)
	}
}

func TestProxyOfSnapshots(t *testing.T) {
	f := startForeign(t)
	f.Stack.Proxy(t, "acme/central", "maven", f.Registry.URL)
	c := f.in("acme/central")
	const at = "org/example/demo/1.1-SNAPSHOT/"
	f.Put(at+"demo-1.1-20261122.133443-1.jar", []byte("build 1"))
	f.Put(at+"demo-1.1-SNAPSHOT.jar", []byte("build 1"), `ETag: "1"`)
	if c.get(at+"demo-1.1-20261122.133443-1.jar") != "build 1" || c.get(at+"demo-1.1-SNAPSHOT.jar") != "build 1" {
		t.Error("the build is another")
	}
	f.Put(at+"demo-1.1-20261122.133443-1.jar", []byte("never again"))
	f.Put(at+"demo-1.1-SNAPSHOT.jar", []byte("build 2"), `ETag: "2"`)
	f.Later(24 * time.Hour)
	if got := c.get(at + "demo-1.1-20261122.133443-1.jar"); got != "build 1" {
		t.Errorf("a build has become %q", got)
	}
	if got := c.get(at + "demo-1.1-SNAPSHOT.jar"); got != "build 2" {
		t.Errorf("the newest is %q", got)
	}
}

// What a hosted member owns never comes from elsewhere; listings are of the hosted
// members, or of the one proxy that has the name.
func TestGroup(t *testing.T) {
	f := startForeign(t)
	f.has("org/example", "demo", "9.9")
	f.has("org/other", "theirs", "1.0")
	f.has("org/example", "hello-maven-plugin", "6.6")
	f.Put("org/example/maven-metadata.xml", []byte("<metadata><plugins><plugin><name>x</name><prefix>hello</prefix><artifactId>evil-maven-plugin</artifactId></plugin></plugins></metadata>"))
	f.Stack.Hosted(t, "acme/first", "maven")
	f.Stack.Hosted(t, "acme/second", "maven")
	f.Stack.Proxy(t, "acme/central", "maven", f.Registry.URL)
	f.Stack.Group(t, "acme/all", "maven", "second", "first", "central", "second")
	f.in("acme/first").release("demo", "1.0", "jar")
	f.in("acme/second").release("demo", "1.1", "jar")
	f.in("acme/first").build("1.2", "20261122.133443", 1)
	f.in("acme/second").build("1.2", "20261122.133444", 1)
	f.in("acme/first").release("hello-maven-plugin", "1.0", "maven-plugin")
	all := f.in("acme/all")
	if d := all.metadata("org/example/demo"); !slices.Equal(d.Versions, []string{"1.0", "1.1", "1.2-SNAPSHOT"}) || d.Release != "1.1" {
		t.Errorf("the members' versions are %+v", d)
	}
	all.get("org/example/demo/1.0/demo-1.0.jar")
	all.get("org/example/demo/1.1/demo-1.1.jar")
	all.expect(404, "GET", "org/example/demo/9.9/demo-9.9.jar", "")
	if d := all.metadata("org/example/demo/1.2-SNAPSHOT"); d.Timestamp != "20261122.133444" {
		t.Errorf("the newest of all members is %+v", d)
	}
	all.get("org/example/demo/1.2-SNAPSHOT/demo-1.2-20261122.133443-1.jar")
	if d := all.metadata("org/other/theirs"); !slices.Equal(d.Versions, []string{"1.0"}) {
		t.Errorf("the proxy's versions are %+v", d)
	}
	if got := all.get("org/other/theirs/1.0/theirs-1.0.jar"); got != "upstream's 1.0" {
		t.Errorf("the proxy's jar is %q", got)
	}
	if d := all.metadata("org/example"); len(d.Plugins) != 1 || d.Plugins[0].ArtifactID != "hello-maven-plugin" {
		t.Errorf("plugins are %+v", d)
	}
	// What is written goes to the member that takes it.
	all.release("mine", "1.0", "jar")
	f.in("acme/second").get("org/example/mine/1.0/mine-1.0.jar")
	if d := all.metadata("org/example/mine"); d.Release != "1.0" {
		t.Errorf("what was deployed to the group is %+v", d)
	}
	// The newest build by the snapshot's own name is that of the member that has it newest.
	if got := all.get("org/example/demo/1.2-SNAPSHOT/demo-1.2-SNAPSHOT.jar"); got != "jar of 20261122.133444 1" {
		t.Errorf("the newest is %q", got)
	}
}
