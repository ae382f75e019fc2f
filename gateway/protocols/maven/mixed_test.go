package maven_test

import (
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
)

// A version is one client's deploy: while it is open nobody else adds a file to it or
// closes it, and who is told that a deploy has worked finds its own files only.
func TestDeploysDoNotMix(t *testing.T) {
	c := start(t, catalogtest.Options{})
	const (
		other    = "Authorization: Bearer " + catalogtest.AdminToken
		at       = "org/example/demo/1.0/demo-1.0"
		pom      = "<project><groupId>org.example</groupId><artifactId>demo</artifactId><version>1.0</version></project>"
		metadata = "<metadata><groupId>org.example</groupId><artifactId>demo</artifactId><versioning><release>1.0</release></versioning></metadata>"
	)
	c.put(at+".jar", "jar")
	for path, body := range map[string]string{at + ".pom": pom, at + "-sources.jar": "evil", at + ".jar": "evil"} {
		if answer := c.expect(409, "PUT", path, body, other); !strings.Contains(answer, "deploy another version") {
			t.Errorf("%s is refused with %s", path, answer)
		}
	}
	c.expect(404, "GET", at+".pom", "")
	c.expect(201, "PUT", at+".jar", "jar", other) // the same bytes are there already
	c.expect(201, "PUT", "org/example/demo/maven-metadata.xml", metadata, other)
	c.expect(404, "GET", "org/example/demo/maven-metadata.xml", "") // it is not closed
	c.put(at+".pom", pom)
	c.put("org/example/demo/maven-metadata.xml", metadata)
	if d := c.metadata("org/example/demo"); d.Release != "1.0" || c.get(at+".jar") != "jar" {
		t.Errorf("in the end metadata is %+v", d)
	}
	// The other's own version is open to it.
	c.expect(201, "PUT", "org/example/demo/1.1/demo-1.1.jar", "jar", other)
	c.expect(201, "PUT", "org/example/demo/1.1/demo-1.1-sources.jar", "sources", other)
}
