package maven_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
)

// Who sends a POM slowly holds no memory of others, short or long.
func TestSlowPomHoldsNothing(t *testing.T) {
	c := start(t, catalogtest.Options{})
	for i, comment := range []string{"", strings.Repeat("<!-- long -->", 50_000)} {
		version := fmt.Sprintf("1.%d", i)
		pom := fmt.Sprintf("<project>%s<groupId>org.example</groupId><artifactId>demo</artifactId><version>%s</version></project>", comment, version)
		path := "org/example/demo/" + version + "/demo-" + version + ".pom"
		half := len(pom) / 2
		if status := c.Dawdle(t, "PUT", "/maven/acme/mvn/"+path, pom[:half], pom[half:]); status != 201 {
			t.Errorf("a slow POM of %d bytes is answered %d", len(pom), status)
		}
		if c.get(path) != pom {
			t.Errorf("a POM of %d bytes is not what was sent", len(pom))
		}
	}
}
