package maven

import (
	"errors"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestParsePath(t *testing.T) {
	for path, want := range map[string]gav{
		"org/example/demo/1.0/demo-1.0.jar":                   {"org.example", "demo", "1.0", "1.0", "", "jar"},
		"org/example/demo/1.0/demo-1.0.pom":                   {"org.example", "demo", "1.0", "1.0", "", "pom"},
		"org/example/demo/1.0/demo-1.0-sources.jar":           {"org.example", "demo", "1.0", "1.0", "sources", "jar"},
		"org/example/demo/1.0/demo-1.0-bin.tar.gz":            {"org.example", "demo", "1.0", "1.0", "bin", "tar.gz"},
		"org/example/demo/1.0/demo-1.0.tar.gz":                {"org.example", "demo", "1.0", "1.0", "", "tar.gz"},
		"org/example/demo/1.0/demo-1.0-jdk1.5.jar":            {"org.example", "demo", "1.0", "1.0", "jdk1.5", "jar"},
		"org/example/demo/1.0/demo-1.0.jar.asc":               {"org.example", "demo", "1.0", "1.0", "", "jar.asc"},
		"org/example/demo/1.0/demo-1.0-bin.tar.gz.asc":        {"org.example", "demo", "1.0", "1.0", "bin", "tar.gz.asc"},
		"org/example/demo/1.0/demo-1.0.module":                {"org.example", "demo", "1.0", "1.0", "", "module"},
		"demo/demo/1.0-beta-2+x~y/demo-1.0-beta-2+x~y.jar":    {"demo", "demo", "1.0-beta-2+x~y", "1.0-beta-2+x~y", "", "jar"},
		"g/a.b_c-d/r09/a.b_c-d-r09.zip":                       {"g", "a.b_c-d", "r09", "r09", "", "zip"},
		"g/a/1-SNAPSHOT/a-1-20261122.133443-1.jar":            {"g", "a", "1-SNAPSHOT", "1-20261122.133443-1", "", "jar"},
		"g/a/1-SNAPSHOT/a-1-20261122.133443-12-sources.jar":   {"g", "a", "1-SNAPSHOT", "1-20261122.133443-12", "sources", "jar"},
		"g/a/1-SNAPSHOT/a-1-SNAPSHOT.jar":                     {"g", "a", "1-SNAPSHOT", "", "", "jar"},
		"g/a/1-SNAPSHOT/a-1-SNAPSHOT-sources.jar":             {"g", "a", "1-SNAPSHOT", "", "sources", "jar"},
		"g/a/1-x-SNAPSHOT/a-1-x-20261122.133443-3-native.dll": {"g", "a", "1-x-SNAPSHOT", "1-x-20261122.133443-3", "native", "dll"},
	} {
		got, err := parsePath(path)
		if err != nil || got.gav == nil || *got.gav != want || got.sum != "" {
			t.Errorf("%s: %+v, %v", path, got, err)
			continue
		}
		if want.version != "" && got.gav.fileOf(want.version) != got.file {
			t.Errorf("%s: the file would be %s", path, got.gav.fileOf(want.version))
		}
		for suffix, sum := range algorithms {
			if got, err := parsePath(path + suffix); err != nil || *got.gav != want || got.sum != sum {
				t.Errorf("%s: %+v, %v", path+suffix, got, err)
			}
		}
	}
}

func TestParsePathOfMetadata(t *testing.T) {
	for path, want := range map[string]struct{ artifact, snapshot string }{
		"org/example/demo/maven-metadata.xml":              {"org.example:demo", ""},
		"org/example/maven-metadata.xml.sha1":              {"org:example", ""},
		"org/maven-metadata.xml":                           {"", ""},
		"org/example/demo/1.0-SNAPSHOT/maven-metadata.xml": {"", "org.example:demo 1.0-SNAPSHOT"},
	} {
		got, err := parsePath(path)
		if err != nil || !got.metadata() {
			t.Errorf("%s: %+v, %v", path, got, err)
			continue
		}
		artifact, snapshot := "", ""
		if pkg, base, ok := got.snapshotOf(); ok {
			snapshot = pkg + " " + base
		} else if group, name, ok := got.artifactOf(); ok {
			artifact = packageName(group, name)
		}
		if artifact != want.artifact || snapshot != want.snapshot {
			t.Errorf("%s is of artifact %q, snapshot %q", path, artifact, snapshot)
		}
	}
}

var badPaths = []string{
	"", "/", "maven-metadata.xml", "demo-1.0.jar", "g/demo-1.0.jar", "a/1.0/a-1.0.jar",
	"g/../a/1.0/a-1.0.jar", "g/./1.0/a-1.0.jar", "g//a/1.0/a-1.0.jar", "g/a/1.0/", "g/a/1.0/../a-1.0.jar", `g/a\b/1.0/x.jar`,
	"g/a/1.0/b-1.0.jar", "g/a/1.0/a-2.0.jar", "g/a/1.0/a-1.0", "g/a/1.0/a-1.0.", "g/a/1.0/a-1.0jar", "g/a/1.0/a-1.01.jar", "g/a/1.0/a-1.0-.jar", "g/a/1.0/a-1.0..jar",
	"g.h/a/1.0/a-1.0.jar", "g/a b/1.0/a b-1.0.jar", "g/a/1 0/a-1 0.jar", "g/a/1:0/a-1:0.jar", "g/a/[1.0]/a-[1.0].jar", "g/a/1%2e0/a-1%2e0.jar", "g/a/<x>/a-<x>.jar",
	"g/a/1-20261122.133443-1/a-1-20261122.133443-1.jar", // would be the build of a snapshot
	"g/a/1-SNAPSHOT/a-1-2026112.133443-1.jar", "g/a/1-SNAPSHOT/a-1-20261122.133443-0.jar", "g/a/1-SNAPSHOT/a-1-20261122.133443-.jar", "g/a/1-SNAPSHOT/a-2-20261122.133443-1.jar",
	"g/a/1-SNAPSHOT/a-1-20261122.133443-1", "g/a/1-SNAPSHOT/a-1.jar",
	"archetype-catalog.xml", ".index/nexus-maven-repository-index.gz", "g/é/1.0/é-1.0.jar",
	"g/" + strings.Repeat("a", 260) + "/1/" + strings.Repeat("a", 260) + "-1.jar",
	"g/a/1/a-1-" + strings.Repeat("c", 600) + ".jar",
}

func TestParsePathRefuses(t *testing.T) {
	for _, path := range badPaths {
		if got, err := parsePath(path); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", path, got, err)
		}
	}
}

// What is parsed names what it was parsed from, and nothing that is not a clean path.
func FuzzParsePath(f *testing.F) {
	for _, path := range badPaths {
		f.Add(path)
	}
	f.Add("org/example/demo/1.0/demo-1.0-bin.tar.gz.asc.sha512")
	f.Add("g/a/1-SNAPSHOT/a-1-20261122.133443-12-sources.jar")
	f.Fuzz(func(t *testing.T, path string) {
		got, err := parsePath(path)
		if err != nil {
			if !errors.Is(err, meta.ErrInvalid) {
				t.Fatalf("%q: %v", path, err)
			}
			return
		}
		back := strings.Join(append(got.dir, got.file), "/")
		if got.sum != "" {
			back += "." + got.sum
		}
		if back != path {
			t.Fatalf("%q is %q", path, back)
		}
		if got.gav == nil {
			return
		}
		g := got.gav
		if g.version != "" && g.fileOf(g.version) != got.file {
			t.Fatalf("%q: the file of %+v is %q", path, g, g.fileOf(g.version))
		}
		if base, _, build := baseOf(g.version); build != g.snapshot() && g.version != "" || build && base != g.base {
			t.Fatalf("%q: %q is a build %v of %q", path, g.version, build, base)
		}
		if err := errors.Join(meta.CheckPackage(g.pkg()), meta.CheckPath(got.file)); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
	})
}
