package catalog_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestPackagesOf(t *testing.T) {
	s := catalogtest.New(t, catalogtest.Options{}, func(*catalog.Catalog) []protocol.Protocol { return nil })
	var repos []meta.Repository
	for _, name := range []string{"one", "two", "none"} {
		r := meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: name}, Format: "generic"}
		s.Create(t, r)
		repos = append(repos, r)
	}
	publish := func(repo meta.RepoRef, name string) {
		t.Helper()
		_, err := s.Catalog.Publish(t.Context(), catalog.Caller{}, repo, catalog.Draft{
			Version:   meta.Version{Package: name, Name: "1"},
			Documents: []catalog.Document{{Path: "a", Body: []byte(repo.Name + name)}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	for i := range 600 { // more than a page of each
		name := fmt.Sprintf("p%04d", i)
		want = append(want, name)
		if i%3 != 0 {
			publish(repos[0].Ref, name)
		}
		if i%3 != 1 {
			publish(repos[1].Ref, name)
		}
	}
	var got []string
	for p, err := range s.Catalog.PackagesOf(t.Context(), catalog.Caller{}, repos) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p.Name)
		if first := len(got)%3 != 1; first != (p.Repo == repos[0].Ref) {
			t.Errorf("%s is from %s", p.Name, p.Repo)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d packages, want %d", len(got), len(want))
	}
}
