package maven_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// crowd publishes n releases of one artifact.
func crowd(t testing.TB, c *client, n int) {
	t.Helper()
	c.release("demo", "0.0.0", "jar")
	v, _, err := c.Catalog.File(t.Context(), catalog.Caller{}, catalog.Package{Repo: repo, Name: "org.example:demo"}, "0.0.0", "demo-0.0.0.jar")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n - 1 {
		f := v
		f.Path, f.Uploaded, f.By = fmt.Sprintf("demo-1.%d.jar", i), 0, ""
		_, err := c.Metadata.Do(t.Context(), state.Origin{}, state.Publish{
			Version: meta.Version{Repo: repo, Package: "org.example:demo", Name: fmt.Sprintf("1.%d", i), State: meta.StateClosed, Digest: f.Digest, Size: f.Size},
			Files:   []meta.File{f},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Publishing the next version costs the same whatever is there, and metadata of all is
// rendered once.
func BenchmarkManyVersions(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := start(b, catalogtest.Options{})
			crowd(b, c, n)
			began := time.Now()
			size := len(c.get("org/example/demo/maven-metadata.xml"))
			first := time.Since(began)
			i := 0
			for b.Loop() {
				i++
				c.put(fmt.Sprintf("org/example/demo/2.%d/demo-2.%d.jar", i, i), "jar")
			}
			b.ReportMetric(float64(first.Microseconds())/1000, "ms/first-read")
			b.ReportMetric(float64(size), "bytes")
		})
	}
}

func TestManyVersions(t *testing.T) {
	const n = 700 // more than a page
	c := start(t, catalogtest.Options{})
	crowd(t, c, n)
	d := c.metadata("org/example/demo")
	if len(d.Versions) != n || d.Latest != fmt.Sprintf("1.%d", n-2) || d.Versions[2] != "1.1" || d.Versions[12] != "1.11" {
		t.Errorf("%d versions, the latest is %s, %v ...", len(d.Versions), d.Latest, d.Versions[:min(len(d.Versions), 20)])
	}
}
