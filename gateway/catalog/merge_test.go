package catalog_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// The versions of a package over several repositories are walked in byte order, each name
// once and of the first that has it, over page ends; a quarantined one is left out and does
// not let another's show.
func TestVersionsOf(t *testing.T) {
	s := catalogtest.New(t, catalogtest.Options{Content: catalogtest.NewMemory()}, func(*catalog.Catalog) []protocol.Protocol { return nil })
	var repos []meta.Repository
	for _, name := range []string{"one", "two", "none"} {
		r := meta.Repository{Ref: meta.RepoRef{Tenant: "acme", Name: name}, Format: "generic", Kind: meta.KindHosted}
		s.Create(t, r)
		repos = append(repos, r)
	}
	by := catalog.Caller{Who: meta.Principal{Name: "user:x"}}
	publish := func(repo int, name string) {
		t.Helper()
		_, err := s.Catalog.Publish(t.Context(), by, repos[repo].Ref, catalog.Draft{
			Version:   meta.Version{Package: "p", Name: name},
			Documents: []catalog.Document{{Path: "f", Body: fmt.Appendf(nil, "%d %s", repo, name)}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	for i := range 300 { // more than a page
		name := fmt.Sprintf("%03d", i)
		publish(i%2, name)
		want = append(want, fmt.Sprintf("%s %s", repos[i%2].Ref.Name, name))
	}
	publish(1, "000")
	publish(1, "002")
	if _, err := s.Metadata.Do(t.Context(), state.Origin{}, state.QuarantineVersion{Repo: repos[0].Ref, Package: "p", Version: "002", Reason: "x"}); err != nil {
		t.Fatal(err)
	}
	want = slices.Delete(want, 2, 3)
	walk := func(repos []meta.Repository) (got []string) {
		t.Helper()
		for v, err := range s.Catalog.VersionsOf(t.Context(), by, repos, "p") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, v.Repo.Name+" "+v.Name)
		}
		return got
	}
	if got := walk(repos); !slices.Equal(got, want) {
		t.Errorf("walked %d versions %v, want %d", len(got), got[:min(len(got), 10)], len(want))
	}
	if got := walk(repos[2:]); len(got) != 0 {
		t.Errorf("of a repository without the package: %v", got)
	}
	for range s.Catalog.VersionsOf(t.Context(), by, repos, "p") {
		break // and nothing goes on
	}
	broken := errors.New("broken")
	s.Metadata.Break(func(meta.Mode) error { return broken })
	n := 0
	for _, err := range s.Catalog.VersionsOf(t.Context(), by, repos, "p") {
		if n++; !errors.Is(err, broken) {
			t.Errorf("an error is %v", err)
		}
	}
	if n != 1 {
		t.Errorf("%d answers of a walk that fails", n)
	}
}

func TestTombstone(t *testing.T) {
	s := catalogtest.New(t, catalogtest.Options{Content: catalogtest.NewMemory()}, func(*catalog.Catalog) []protocol.Protocol { return nil })
	ref := meta.RepoRef{Tenant: "acme", Name: "files"}
	s.Create(t, meta.Repository{Ref: ref, Format: "generic"})
	by := catalog.Caller{Who: meta.Principal{Name: "user:x"}}
	draft := catalog.Draft{Version: meta.Version{Package: "p", Name: "1"}, Documents: []catalog.Document{{Path: "f", Body: []byte("x")}}}
	pkg := catalog.Package{Repo: ref, Name: "p"}
	found := func() bool {
		t.Helper()
		stone, found, err := s.Catalog.Tombstone(t.Context(), by, pkg, "1")
		if err != nil || found && (stone.By != "user:x" || stone.At == 0) {
			t.Fatalf("%+v, %v", stone, err)
		}
		return found
	}
	if found() {
		t.Error("what never was has a tombstone")
	}
	if _, err := s.Catalog.Publish(t.Context(), by, ref, draft); err != nil || found() {
		t.Errorf("what is there has a tombstone, or %v", err)
	}
	if _, err := s.Catalog.DeleteVersion(t.Context(), by, pkg, "1"); err != nil || !found() {
		t.Errorf("what was deleted has no tombstone, or %v", err)
	}
	if _, err := s.Catalog.Publish(t.Context(), by, ref, draft); err != nil || found() {
		t.Errorf("what came back has a tombstone, or %v", err)
	}
}

// short ends pages of versions early, as the state does past 16 MiB of records.
type short struct{ raftmeta.Asker }

func (s short) Answer(ctx context.Context, f meta.Freshness, q raftmeta.Request) (meta.AsOf, error) {
	asOf, err := s.Asker.Answer(ctx, f, q)
	if page, ok := q.Into().(*[]meta.Version); ok && err == nil {
		*page = (*page)[:min(len(*page), 200)]
	}
	return asOf, err
}

// A page that ends early is not the last.
func TestVersionsOfLongRecords(t *testing.T) {
	w := newWorld(t, func(c *catalog.Config) { c.Metadata = short{c.Metadata} })
	w.create(app)
	const count = 300
	for i := range count {
		w.version(fmt.Sprint("version ", i), nil)
	}
	repo, _, err := w.Repository(t.Context(), w.by, app)
	w.must(err)
	walked := 0
	for _, err := range w.VersionsOf(t.Context(), w.by, []meta.Repository{repo}, "api") {
		w.must(err)
		walked++
	}
	if walked != count {
		t.Errorf("%d of %d versions", walked, count)
	}
}
