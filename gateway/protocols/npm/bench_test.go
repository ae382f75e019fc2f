package npm_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// BenchmarkManyVersions is of a package with 100,000 versions: what a publish costs beside
// them (protocol, catalog and state machine, without raft), what rendering its document
// once does, and serving it after that.
func BenchmarkManyVersions(b *testing.B) {
	const versions = 100_000
	r := start(b, catalogtest.Options{})
	r.expect(r.publish("demo", "0.0.1", "x", nil), 201)
	ref := meta.RepoRef{Tenant: "acme", Name: "lib"}
	first, _, err := r.Catalog.Version(b.Context(), catalog.Caller{}, catalog.Package{Repo: ref, Name: "demo"}, "0.0.1")
	if err != nil {
		b.Fatal(err)
	}
	for i := range versions {
		v := first
		v.Name = fmt.Sprintf("1.0.%d", i)
		files := []meta.File{{Path: "demo.tgz", Digest: v.Digest, Size: v.Size}}
		if _, err := r.Metadata.Do(b.Context(), state.Origin{Principal: "user:ci"}, state.Publish{Version: v, Files: files, Aliases: []string{"latest"}}); err != nil {
			b.Fatal(err)
		}
	}
	n := 0
	b.Run("publish", func(b *testing.B) {
		for b.Loop() {
			n++
			r.expect(r.publish("demo", fmt.Sprintf("2.0.%d", n), fmt.Sprint(n), nil), 201)
		}
	})
	b.Run("publish beside none", func(b *testing.B) {
		for b.Loop() {
			n++
			r.expect(r.publish(fmt.Sprintf("other-%d", n), "1.0.0", fmt.Sprint(n), nil), 201)
		}
	})
	short := "Accept: application/vnd.npm.install-v1+json"
	b.Run("render", func(b *testing.B) {
		for b.Loop() {
			n++
			r.expect(r.publish("demo", fmt.Sprintf("2.0.%d", n), fmt.Sprint(n), nil), 201)
			a := r.expect(r.do(http.MethodGet, "demo", nil, short), 200)
			if !json.Valid([]byte(a.Text)) {
				b.Fatal("no JSON")
			}
			b.ReportMetric(float64(len(a.Text)), "doc-bytes")
		}
	})
	b.Run("serve", func(b *testing.B) {
		for b.Loop() {
			r.expect(r.do(http.MethodGet, "demo", nil, short), 200)
		}
	})
}
