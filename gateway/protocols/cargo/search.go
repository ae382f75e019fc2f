package cargo

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of a search: names of so many packages are looked at, and of those that are
// answered so many versions.
const (
	maxSearched       = 20_000
	searchPage        = 1000
	maxPerPage        = 100
	perPage           = 10
	maxSearchVersions = 1000
	searchAtOnce      = 8
)

// hit is a crate that a search finds.
type hit struct {
	Name        string `json:"name"`
	MaxVersion  string `json:"max_version"`
	Description string `json:"description"`
	pkg         catalog.Package
}

// search answers crates with a text in their names, in the order of those; of a group the
// crates of its hosted members.
func (p *Protocol) search(c *protocol.Call) error {
	query := c.R.URL.Query()
	page, err := protocol.ParsePage(query, "per_page", "", perPage, maxPerPage)
	if err != nil {
		return err
	}
	first, err := protocol.ParsePage(query, "page", "", 1, maxSearched)
	if err != nil {
		return err
	}
	ctx, by := c.R.Context(), caller(c)
	members, asOf, err := p.catalog.Members(ctx, by, c.Repo)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	hits, err := p.find(ctx, by, members, normalize(strings.TrimSpace(query.Get("q"))))
	if err != nil {
		return err
	}
	total := len(hits)
	from := min(max(first.Limit-1, 0)*page.Limit, total)
	hits = hits[from:min(from+page.Limit, total)]
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(searchAtOnce)
	for i := range hits {
		g.Go(func() error { return p.describe(inner, by, &hits[i]) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return serveJSON(c, map[string]any{"crates": hits, "meta": map[string]int{"total": total}})
}

// find lists the crates of hosted repositories whose names have text in them.
func (p *Protocol) find(ctx context.Context, by catalog.Caller, repos []meta.Repository, text string) ([]hit, error) {
	hits, looked := []hit{}, 0
	seen := map[string]bool{}
	for i := range repos {
		if repos[i].Kind != meta.KindHosted {
			continue
		}
		for after := ""; looked < maxSearched; {
			packages, _, err := p.catalog.Packages(ctx, by, repos[i].Ref, "", catalog.Page{After: after, Limit: searchPage})
			if err != nil {
				return nil, err
			}
			for _, pkg := range packages {
				looked, after = looked+1, pkg.Name
				if pkg.Versions > 0 && strings.Contains(pkg.Name, text) && !seen[pkg.Name] {
					seen[pkg.Name] = true
					hits = append(hits, hit{Name: spelt(&pkg), pkg: catalog.Package{Repo: pkg.Repo, Name: pkg.Name}})
				}
			}
			if len(packages) < searchPage {
				break
			}
		}
	}
	slices.SortFunc(hits, func(a, b hit) int { return strings.Compare(a.pkg.Name, b.pkg.Name) })
	return hits, nil
}

// describe fills in the highest version that is not yanked, and what it is for.
func (p *Protocol) describe(ctx context.Context, by catalog.Caller, h *hit) error {
	versions, _, err := p.catalog.Versions(ctx, by, h.pkg, catalog.Page{Limit: maxSearchVersions})
	if err != nil {
		return fmt.Errorf("search %s: %w", h.pkg, err)
	}
	for _, v := range versions {
		if v.Quarantine == nil && v.Marks.Yanked == nil && v.Marks.Unlisted == nil && higher(v.Name, h.MaxVersion) {
			h.MaxVersion, h.Description = v.Name, v.Annotations["description"]
		}
	}
	return nil
}

// MarshalJSON implements json.Marshaler: cargo wants a version, also where all are yanked.
func (h hit) MarshalJSON() ([]byte, error) {
	type plain hit
	if h.MaxVersion == "" {
		h.MaxVersion = "0.0.0"
	}
	return json.Marshal(plain(h))
}
