package maven_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// A version in quarantine is refused with the reason, is in no metadata, and takes no
// files; a snapshot goes back to the build before.
func TestQuarantine(t *testing.T) {
	c := start(t, catalogtest.Options{})
	c.release("demo", "1.0", "jar")
	c.release("demo", "1.1", "jar")
	c.build("2.0", "20261122.133443", 1)
	c.build("2.0", "20261122.133500", 2)
	if d := c.metadata("org/example/demo"); d.Release != "1.1" {
		t.Fatalf("before: %+v", d)
	}
	do := func(cmd state.Command) {
		t.Helper()
		if _, err := c.Metadata.Do(t.Context(), state.Origin{Principal: "user:curator"}, cmd); err != nil {
			t.Fatal(err)
		}
	}
	for _, version := range []string{"1.1", "2.0-20261122.133500-2"} {
		do(state.QuarantineVersion{Repo: repo, Package: "org.example:demo", Version: version, Reason: "the token was stolen"})
	}
	for _, path := range []string{"org/example/demo/1.1/demo-1.1.jar", "org/example/demo/1.1/demo-1.1.pom.sha1", "org/example/demo/2.0-SNAPSHOT/demo-2.0-20261122.133500-2.jar"} {
		if answer := c.expect(403, "GET", path, ""); !strings.Contains(answer, "the token was stolen") {
			t.Errorf("%s is refused with %s", path, answer)
		}
	}
	c.expect(403, "PUT", "org/example/demo/1.1/demo-1.1.jar", "jar of 1.1")
	if d := c.metadata("org/example/demo"); d.Release != "1.0" || slices.Contains(d.Versions, "1.1") {
		t.Errorf("metadata is %+v", d)
	}
	if d := c.metadata("org/example/demo/2.0-SNAPSHOT"); d.Number != 1 {
		t.Errorf("the snapshot's metadata is %+v", d)
	}
	if got := c.get("org/example/demo/2.0-SNAPSHOT/demo-2.0-SNAPSHOT.jar"); got != "jar of 20261122.133443 1" {
		t.Errorf("the newest is %q", got)
	}
	do(state.ReleaseVersion{Repo: repo, Package: "org.example:demo", Version: "1.1", Reason: "it was not"})
	if d := c.metadata("org/example/demo"); d.Release != "1.1" {
		t.Errorf("released: %+v", d)
	}
	c.get("org/example/demo/1.1/demo-1.1.jar")
}
