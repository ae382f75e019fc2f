package maven_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/gateway/protocols/maven"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestProtocol(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.release("demo", "1.0", "jar")
	c.build("1.1", "20261122.133443", 1)
	const at = "/maven/acme/mvn/org/example/demo/"
	protocoltest.Run(t, protocoltest.Case{
		Protocol: protocolOf(t, c.Catalog), Metadata: access.Records{Asker: c.Metadata},
		Repo: repo, Absent: meta.RepoRef{Tenant: "acme", Name: "mvx"},
		Reads: []protocoltest.Request{
			{Method: "GET", Path: at + "1.0/demo-1.0.jar"},
			{Method: "GET", Path: at + "1.0/demo-1.0.jar.sha1"},
			{Method: "GET", Path: at + "maven-metadata.xml"},
			{Method: "GET", Path: at + "maven-metadata.xml.sha512"},
			{Method: "GET", Path: at + "1.1-SNAPSHOT/maven-metadata.xml"},
			{Method: "GET", Path: at + "1.1-SNAPSHOT/demo-1.1-SNAPSHOT.jar"},
		},
		Writes: []protocoltest.Request{
			{Method: "PUT", Path: at + "2.0/demo-2.0.jar", Body: []byte("jar")},
			{Method: "PUT", Path: at + "maven-metadata.xml", Body: []byte("<metadata/>")},
		},
		CheckError: func(_ int, h http.Header, body []byte) error {
			if h.Get("Content-Type") != "text/plain; charset=utf-8" || strings.Count(string(body), "\n") != 1 || len(body) < 2 {
				return fmt.Errorf("%q is no line of text", body)
			}
			return nil
		},
	})
}

// protocoltestServe returns a reader of what another protocol instance answers.
func protocoltestServe(t *testing.T, p *maven.Protocol, c *client) func(path string) string {
	g := protocoltest.Start(t, p, access.Records{Asker: c.Metadata}, repo)
	return func(path string) string {
		status, _, body := g.Do(t, protocoltest.Request{Method: "GET", Path: "/maven/" + repo.String() + "/" + path}, g.Reader)
		if status != http.StatusOK {
			t.Fatalf("%s: %d %s", path, status, body)
		}
		return string(body)
	}
}
