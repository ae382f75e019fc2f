package maven_test

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/xml"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/maven"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

var update = flag.Bool("update", false, "write the answers of conversations anew")

var repo = meta.RepoRef{Tenant: "acme", Name: "mvn"}

// client is a client of a running node.
type client struct {
	*catalogtest.Stack
	t    testing.TB
	repo meta.RepoRef
}

func start(t testing.TB, o catalogtest.Options) *client {
	return &client{catalogtest.New(t, o, func(c *catalog.Catalog) []protocol.Protocol { return []protocol.Protocol{protocolOf(t, c)} }), t, repo}
}

func protocolOf(t testing.TB, c *catalog.Catalog) *maven.Protocol {
	t.Helper()
	pages, err := rendered.New(rendered.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return maven.New(c, pages, nil)
}

func (c *client) do(method, path, body string, headers ...string) (int, http.Header, string) {
	c.t.Helper()
	a := c.Ask(c.t, method, "/maven/"+c.repo.String()+"/"+path, strings.NewReader(body), headers...)
	return a.StatusCode, a.Header, a.Text
}

func (c *client) expect(status int, method, path, body string, headers ...string) string {
	c.t.Helper()
	got, _, answer := c.do(method, path, body, headers...)
	if got != status {
		c.t.Fatalf("%s %s: %d %s, want %d", method, path, got, answer, status)
	}
	return answer
}

func (c *client) put(path, body string)  { c.t.Helper(); c.expect(201, "PUT", path, body) }
func (c *client) get(path string) string { c.t.Helper(); return c.expect(200, "GET", path, "") }

// release deploys demo as mvn does.
func (c *client) release(artifact, version, packaging string) {
	c.t.Helper()
	at := "org/example/" + artifact + "/"
	file := at + version + "/" + artifact + "-" + version
	c.put(file+".jar", "jar of "+version)
	c.put(file+".pom", fmt.Sprintf("<project><groupId>org.example</groupId><artifactId>%s</artifactId><version>%s</version><packaging>%s</packaging></project>", artifact, version, packaging))
	c.put(at+"maven-metadata.xml", fmt.Sprintf("<metadata><groupId>org.example</groupId><artifactId>%s</artifactId><versioning><release>%s</release></versioning></metadata>", artifact, version))
}

// build deploys a build of a snapshot of demo.
func (c *client) build(base, timestamp string, number int) {
	c.t.Helper()
	at := "org/example/demo/" + base + "-SNAPSHOT/"
	file := fmt.Sprintf("%sdemo-%s-%s-%d", at, base, timestamp, number)
	c.put(file+".jar", fmt.Sprintf("jar of %s %d", timestamp, number))
	c.put(file+"-bin.tar.gz", fmt.Sprintf("archive of %s %d", timestamp, number))
	c.put(at+"maven-metadata.xml", fmt.Sprintf("<metadata><groupId>org.example</groupId><artifactId>demo</artifactId><version>%s-SNAPSHOT</version>"+
		"<versioning><snapshot><timestamp>%s</timestamp><buildNumber>%d</buildNumber></snapshot></versioning></metadata>", base, timestamp, number))
}

// document is what clients read of metadata.
type document struct {
	GroupID    string   `xml:"groupId"`
	ArtifactID string   `xml:"artifactId"`
	Version    string   `xml:"version"`
	Latest     string   `xml:"versioning>latest"`
	Release    string   `xml:"versioning>release"`
	Versions   []string `xml:"versioning>versions>version"`
	Updated    string   `xml:"versioning>lastUpdated"`
	Timestamp  string   `xml:"versioning>snapshot>timestamp"`
	Number     int      `xml:"versioning>snapshot>buildNumber"`
	Files      []struct {
		Classifier string `xml:"classifier"`
		Extension  string `xml:"extension"`
		Value      string `xml:"value"`
		Updated    string `xml:"updated"`
	} `xml:"versioning>snapshotVersions>snapshotVersion"`
	Plugins []struct {
		Name       string `xml:"name"`
		Prefix     string `xml:"prefix"`
		ArtifactID string `xml:"artifactId"`
	} `xml:"plugins>plugin"`
}

func (c *client) metadata(dir string) (d document) {
	c.t.Helper()
	if err := xml.Unmarshal([]byte(c.get(dir+"/maven-metadata.xml")), &d); err != nil {
		c.t.Fatal(err)
	}
	return d
}

func TestConversation(t *testing.T) {
	catalogtest.Converse(t, start(t, catalogtest.Options{}).Stack, "testdata/release.txtar", *update, "")
}

func TestMetadataOfAnArtifact(t *testing.T) {
	c := start(t, catalogtest.Options{})
	for _, version := range []string{"1.10", "1.2", "2.0-rc1", "1.0"} {
		c.release("demo", version, "jar")
	}
	c.build("2.1", "20261122.133443", 1)
	c.build("2.1", "20261122.133500", 2)
	c.put("org/example/demo/3.0/demo-3.0.jar", "still open")
	d := c.metadata("org/example/demo")
	if d.GroupID != "org.example" || d.ArtifactID != "demo" || d.Latest != "2.1-SNAPSHOT" || d.Release != "2.0-rc1" || len(d.Updated) != 14 {
		t.Errorf("metadata is %+v", d)
	}
	if want := []string{"1.0", "1.2", "1.10", "2.0-rc1", "2.1-SNAPSHOT"}; !slices.Equal(d.Versions, want) {
		t.Errorf("versions are %v, want %v", d.Versions, want)
	}
	// What is withdrawn is not chosen, and stays for those that name it.
	if _, err := c.Catalog.Mark(t.Context(), catalog.Caller{}, catalog.Package{Repo: repo, Name: "org.example:demo"}, "2.0-rc1", meta.Marking{Yanked: new(true)}); err != nil {
		t.Fatal(err)
	}
	if d := c.metadata("org/example/demo"); d.Release != "1.10" || slices.Contains(d.Versions, "2.0-rc1") {
		t.Errorf("with a withdrawn version it is %+v", d)
	}
	c.get("org/example/demo/2.0-rc1/demo-2.0-rc1.jar")
}

// A document and its checksums are the same for one revision, and what conditions say.
func TestChecksums(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.release("demo", "1.0", "jar")
	c.build("1.1", "20261122.133443", 1)
	for _, path := range []string{
		"org/example/demo/1.0/demo-1.0.jar", "org/example/demo/1.0/demo-1.0.pom", "org/example/demo/maven-metadata.xml",
		"org/example/demo/1.1-SNAPSHOT/maven-metadata.xml", "org/example/demo/1.1-SNAPSHOT/demo-1.1-SNAPSHOT.jar",
	} {
		body := []byte(c.get(path))
		for suffix, want := range map[string]string{
			"md5": fmt.Sprintf("%x", md5.Sum(body)), "sha1": fmt.Sprintf("%x", sha1.Sum(body)),
			"sha256": fmt.Sprintf("%x", sha256.Sum256(body)), "sha512": fmt.Sprintf("%x", sha512.Sum512(body)),
		} {
			if got := c.get(path + "." + suffix); got != want {
				t.Errorf("%s.%s is %q, want %q", path, suffix, got, want)
			}
		}
		_, h, _ := c.do("GET", path, "")
		if status, _, _ := c.do("GET", path, "", "If-None-Match: "+h.Get("Etag")); status != 304 {
			t.Errorf("%s with its tag %q: %d", path, h.Get("Etag"), status)
		}
	}
	// Another node renders the same.
	second := protocolOf(t, c.Catalog)
	other := protocoltestServe(t, second, c)
	if a, b := c.get("org/example/demo/maven-metadata.xml"), other("org/example/demo/maven-metadata.xml"); a != b {
		t.Errorf("one node renders\n%s\nanother\n%s", a, b)
	}
}

func TestClientChecksums(t *testing.T) {
	c := start(t, catalogtest.Options{})
	const file = "org/example/demo/1.0/demo-1.0.jar"
	zero := strings.Repeat("0", 128)
	for header, n := range map[string]int{"Md5": 32, "Sha1": 40, "Sha256": 64, "Sha512": 128} {
		if answer := c.expect(400, "PUT", file, "jar", "X-Checksum-"+header+": "+zero[:n]); !strings.Contains(answer, "the client says") {
			t.Error(answer)
		}
	}
	c.expect(400, "PUT", file, "jar", "X-Checksum-Sha1: nonsense")
	c.expect(404, "GET", file, "") // nothing of that was stored
	c.expect(201, "PUT", file, "jar", "X-Checksum-Sha1: "+fmt.Sprintf("%X", sha1.Sum([]byte("jar"))))
	c.put(file+".sha256", fmt.Sprintf("%x  demo-1.0.jar\n", sha256.Sum256([]byte("jar"))))
	for suffix, n := range map[string]int{"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128} {
		if answer := c.expect(400, "PUT", file+"."+suffix, zero[:n]); !strings.Contains(answer, suffix) {
			t.Error(answer)
		}
	}
	c.expect(400, "PUT", file+".sha1", "no checksum")
	c.expect(413, "PUT", file+".sha1", strings.Repeat("0", 8<<10))
	c.put("org/example/demo/1.0/demo-1.0-sources.jar.md5", zero[:32]) // of what is not there
	c.expect(404, "GET", "org/example/demo/1.0/demo-1.0-sources.jar.md5", "")
	c.expect(413, "PUT", "org/example/demo/1.0/demo-1.0.pom", strings.Repeat(" ", 5<<20))
	c.expect(404, "GET", "org/example/demo/1.0/demo-1.0.pom", "")
	c.expect(400, "PUT", "org/example/demo/maven-metadata.xml", "<metadata>")
}

func TestSnapshots(t *testing.T) {
	c := start(t, catalogtest.Options{})
	const at = "org/example/demo/1.1-SNAPSHOT"
	c.put(at+"/demo-1.1-20261122.133443-1.jar", "half of a build")
	c.expect(404, "GET", at+"/maven-metadata.xml", "")
	c.expect(404, "GET", at+"/demo-1.1-SNAPSHOT.jar", "")
	c.build("1.1", "20261122.140000", 10)
	c.build("1.1", "20261122.140000", 9)
	c.build("1.1", "20261121.235959", 11)
	c.build("1.1.1", "20261123.000000", 12) // of another snapshot
	d := c.metadata(at)
	if d.Version != "1.1-SNAPSHOT" || d.Timestamp != "20261122.140000" || d.Number != 10 || len(d.Files) != 2 {
		t.Fatalf("metadata is %+v", d)
	}
	for i, want := range []string{"bin tar.gz", " jar"} {
		if f := d.Files[i]; f.Classifier+" "+f.Extension != want || f.Value != "1.1-20261122.140000-10" || len(f.Updated) != 14 {
			t.Errorf("file %d is %+v", i, f)
		}
	}
	if got := c.get(at + "/demo-1.1-SNAPSHOT.jar"); got != "jar of 20261122.140000 10" {
		t.Errorf("the newest is %q", got)
	}
	if got := c.get(at + "/demo-1.1-SNAPSHOT-bin.tar.gz"); got != "archive of 20261122.140000 10" {
		t.Errorf("the newest archive is %q", got)
	}
	if got := c.get(at + "/demo-1.1-20261122.140000-9.jar"); got != "jar of 20261122.140000 9" {
		t.Errorf("build 9 is %q", got)
	}
	if d := c.metadata("org/example/demo"); !slices.Equal(d.Versions, []string{"1.1-SNAPSHOT", "1.1.1-SNAPSHOT"}) || d.Release != "" {
		t.Errorf("the artifact's metadata is %+v", d)
	}
	c.expect(409, "PUT", at+"/demo-1.1-20261122.140000-10.jar", "another")
	c.expect(404, "GET", at+"/demo-1.1-SNAPSHOT-sources.jar", "")
}

func TestPlugins(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.release("hello-maven-plugin", "1.0", "maven-plugin")
	c.release("hello-maven-plugin", "1.1", "maven-plugin")
	c.release("no-plugin-at-all", "1.0", "jar")
	c.expect(404, "GET", "org/maven-metadata.xml", "")
	d := c.metadata("org/example")
	if len(d.Plugins) != 1 || d.Plugins[0].Prefix != "hello" || d.Plugins[0].ArtifactID != "hello-maven-plugin" || d.Plugins[0].Name != "hello-maven-plugin" || d.ArtifactID != "" {
		t.Errorf("plugins are %+v", d)
	}
	// An artifact that is named like the group: one document is both.
	c.put("org/example/1.0/example-1.0.jar", "jar")
	c.put("org/example/maven-metadata.xml", "<metadata><groupId>org</groupId><artifactId>example</artifactId><versioning><latest>1.0</latest></versioning></metadata>")
	if d := c.metadata("org/example"); len(d.Plugins) != 1 || d.ArtifactID != "example" || d.Release != "1.0" {
		t.Errorf("both are %+v", d)
	}
	c.put("org/example/maven-metadata.xml", "<metadata><plugins><plugin><name>x</name><prefix>x</prefix><artifactId>x-maven-plugin</artifactId></plugin></plugins></metadata>")
	if d := c.metadata("org/example"); len(d.Plugins) != 1 {
		t.Errorf("what a client says is kept: %+v", d)
	}
}

// Of many that deploy one file at once with other bytes, one does.
func TestRace(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.release("demo", "1.0", "jar")
	var all sync.WaitGroup
	var won atomic.Int64
	for i := range 20 {
		all.Go(func() {
			status, _, answer := c.do("PUT", "org/example/demo/2.0/demo-2.0.jar", fmt.Sprintf("jar %02d", i))
			switch status {
			case 201:
				won.Add(1)
			case 409:
			default:
				t.Errorf("%d %s", status, answer)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of them won", won.Load())
	}
}

// A version that was deleted comes back with no other bytes.
func TestDeleted(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.release("demo", "1.0", "jar")
	if _, err := c.Metadata.Do(t.Context(), state.Origin{}, state.DeleteVersion{Repo: repo, Package: "org.example:demo", Version: "1.0"}); err != nil {
		t.Fatal(err)
	}
	c.expect(404, "GET", "org/example/demo/1.0/demo-1.0.jar", "")
	c.expect(404, "GET", "org/example/demo/maven-metadata.xml", "")
	c.expect(409, "PUT", "org/example/demo/1.0/demo-1.0.jar", "other bytes")
}
