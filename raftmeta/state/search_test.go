package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// searched goes through all pages, and returns `package[ version][ path]` in their order.
func searched(t *testing.T, b *bench, q Search, limit int) (got []string) {
	t.Helper()
	q.Repo, q.Limit = npmRef("npm"), limit
	for range 1000 {
		a := ask(b, q)
		for _, m := range a.Matches {
			text := m.Package.Name
			if m.Version != nil {
				text += " " + m.Version.Name
				if m.Version.Summary != nil || m.Version.References != nil {
					t.Errorf("a match has all of %+v", m.Version)
				}
			}
			got = append(got, strings.TrimSpace(text+" "+m.Path))
		}
		if len(a.Matches) > limit {
			t.Errorf("%d matches in a page of %d", len(a.Matches), limit)
		}
		if a.After == "" {
			return got
		}
		q.After = a.After
	}
	t.Fatalf("%+v never ends", q)
	return nil
}

func TestSearch(t *testing.T) {
	b := newPackages(t)
	for _, pkg := range []string{"api", "api-tools", "web", "a long name of a package", "gone"} {
		for _, version := range []string{"1", "10", "2"} {
			b.must(b.tarball(pkg, version, pkg+version))
		}
	}
	again := b.tarball("web", "3", "api1") // the same bytes as api 1
	again.Files[0].Path = "copy.tgz"
	r := b.doAs(Origin{Principal: "user:grace"}, again)
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	for _, version := range []string{"1", "10", "2"} {
		b.delete(npmRef("npm"), "gone", version)
	}
	b.must(SetLabels{Repo: npmRef("npm"), Package: "api", Labels: meta.Labels{"team": "core", "tier": "1"}})
	b.must(SetLabels{Repo: npmRef("npm"), Package: "web", Version: "2", Labels: meta.Labels{"team": "web"}})
	shared := blob("api1").Digest
	for _, test := range []struct {
		q    Search
		want []string
	}{
		{Search{}, []string{"a long name of a package", "api", "api-tools", "web"}},
		{Search{Prefix: "api"}, []string{"api", "api-tools"}},
		{Search{Contains: "PI-T"}, []string{"api-tools"}},
		{Search{Prefix: "a", Contains: "name"}, []string{"a long name of a package"}},
		{Search{Labels: meta.Labels{"team": "core"}}, []string{"api"}},
		{Search{Labels: meta.Labels{"team": "", "tier": ""}}, []string{"api"}},
		{Search{Labels: meta.Labels{"team": "web"}}, nil}, // the version's, and packages are looked for
		{Search{Digest: shared}, []string{"api 1 api-1.tgz", "web 3 copy.tgz"}},
		{Search{Digest: shared, Publisher: "user:grace"}, []string{"web 3 copy.tgz"}},
		{Search{Digest: shared, Prefix: "api"}, []string{"api 1 api-1.tgz"}},
		{Search{Digest: digest.FromBytes([]byte("none"))}, nil},
		{Search{Digest: blob("gone1").Digest}, nil},
		{Search{Publisher: "user:grace"}, []string{"web 3"}},
		{Search{Publisher: "user:ada", Prefix: "api"}, []string{"api 1", "api 10", "api 2", "api-tools 1", "api-tools 10", "api-tools 2"}},
		{Search{Publisher: "user:ada", Labels: meta.Labels{"team": "web"}}, []string{"web 2"}},
		{Search{Publisher: "user:ada", Labels: meta.Labels{"team": "core"}}, []string{"api 1", "api 10", "api 2"}},
		{Search{Publisher: "nobody"}, nil},
	} {
		for _, limit := range []int{1, 2, 100} {
			if got := searched(t, b, test.q, limit); !slices.Equal(got, test.want) {
				t.Errorf("%+v in pages of %d: %q, want %q", test.q, limit, got, test.want)
			}
		}
	}
	// What is unlisted is found by its bytes alone.
	b.must(MarkVersions{Repo: npmRef("npm"), Package: "web", Versions: []string{"3"}, Marking: meta.Marking{Unlisted: new(true)}})
	if got := searched(t, b, Search{Publisher: "user:grace"}, 10); got != nil {
		t.Errorf("unlisted, by its publisher: %q", got)
	}
	if got := searched(t, b, Search{Digest: shared, Publisher: "user:grace"}, 10); !slices.Equal(got, []string{"web 3 copy.tgz"}) {
		t.Errorf("unlisted, by its digest: %q", got)
	}
	if _, err := try(b, Search{Repo: npmRef("npm"), After: "x"}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("after nothing: %v", err)
	}
	if _, err := try(b, Search{Repo: npmRef("nope")}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
	if a, err := try(b, Search{Repo: npmRef("npm"), Digest: "sha256:x"}); err != nil || len(a.Matches) > 0 {
		t.Errorf("for no digest: %+v, %v", a, err)
	}
	for _, q := range []Search{{Digest: "x"}, {Prefix: strings.Repeat("x", 300)}, {Contains: strings.Repeat("x", 300)}} {
		if err := q.Check(); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// An answer ends when it has looked at enough, and the next one goes on from there.
func TestSearchIsBounded(t *testing.T) {
	b := newPackages(t)
	p := b.tarball("many", "v", "content")
	for i := range searchMost + 50 {
		next := p
		next.Version.Name = fmt.Sprintf("%06d", i)
		if i == searchMost+40 {
			r := b.doAs(Origin{Principal: "user:grace"}, next)
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			continue
		}
		b.must(next)
	}
	a := ask(b, Search{Repo: npmRef("npm"), Publisher: "user:grace"})
	if len(a.Matches) != 0 || a.After == "" || a.Read > searchMost {
		t.Errorf("%d matches after %d records, then %q", len(a.Matches), a.Read, a.After)
	}
	if got := searched(t, b, Search{Publisher: "user:grace"}, 10); !slices.Equal(got, []string{fmt.Sprintf("many %06d", searchMost+40)}) {
		t.Errorf("found %q", got)
	}
}
