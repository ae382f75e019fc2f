package nuget

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of a search.
const (
	standardTake = 20
	maxTake      = 100
	maxSkip      = 3000
	// maxScanned is how many packages one search looks at, in each repository.
	maxScanned = 20_000
	scanPage   = 1000
	// maxFoundVersions is how many versions a hit names, the newest.
	maxFoundVersions = 64
)

// asked is a search as a client sends it
// (learn.microsoft.com/nuget/api/search-query-service-resource).
type asked struct {
	terms      []string // parts of the id, in lower case; none is everything
	exact      string   // packageid:ID
	skip, take int
	prerelease bool
	hive       hive
}

func parseSearch(query url.Values) (a asked, err error) {
	skip, err := protocol.ParsePage(query, "skip", "", 0, maxSkip+1)
	if err != nil {
		return a, err
	}
	if skip.Limit > maxSkip {
		return a, fmt.Errorf("skip is at most %d: ask for parts of the id: %w", maxSkip, meta.ErrInvalid)
	}
	take, err := protocol.ParsePage(query, "take", "", standardTake, maxTake)
	if err != nil {
		return a, err
	}
	a = asked{skip: skip.Limit, take: take.Limit, prerelease: strings.EqualFold(query.Get("prerelease"), "true"), hive: hivePlain}
	if v, ok := scanVersion(query.Get("semVerLevel")); ok && v.numbers[0] >= 2 {
		a.hive = hiveSemVer2
	}
	q := query.Get("q")
	if len(q) > 4*maxIDBytes {
		return a, fmt.Errorf("q is over %d bytes: %w", 4*maxIDBytes, meta.ErrInvalid)
	}
	for term := range strings.FieldsSeq(strings.ToLower(q)) {
		if id, ok := strings.CutPrefix(term, "packageid:"); ok {
			a.exact = strings.Trim(id, `"`)
			continue
		}
		a.terms = append(a.terms, strings.Trim(term, `"*`))
	}
	return a, nil
}

// takes reports whether an id, in lower case, is what was asked for.
func (a *asked) takes(id string) bool {
	if a.exact != "" && id != a.exact {
		return false
	}
	for _, term := range a.terms {
		if !strings.Contains(id, term) {
			return false
		}
	}
	return true
}

// shows reports whether a version may be shown to who asked.
func (a *asked) shows(l line) bool {
	if !l.listed || !a.hive.has(l) {
		return false
	}
	v, ok := scanVersion(l.key)
	return ok && (a.prerelease || !v.prerelease())
}

// found is an id that matched, and how it is spelled.
type found struct{ id, spelling string }

// match looks for ids in the hosted repositories: those that match exactly first, then
// those that begin so, then in byte order.
func (p *Protocol) match(c *protocol.Call, a *asked) ([]found, error) {
	members := []meta.Repository{*c.Repository}
	ctx, by := c.R.Context(), caller(c)
	if c.Repository.Kind == meta.KindGroup {
		all, asOf, err := p.catalog.Members(ctx, by, c.Repo)
		if err != nil {
			return nil, err
		}
		members = all
		c.AsOf(asOf)
	}
	seen := map[string]bool{}
	var hits []found
	for _, r := range members {
		if r.Kind != meta.KindHosted {
			continue
		}
		after := ""
		for range maxScanned / scanPage {
			packages, asOf, err := p.catalog.Packages(ctx, by, r.Ref, "", catalog.Page{After: after, Limit: scanPage})
			if err != nil {
				return nil, err
			}
			c.AsOf(asOf)
			for _, pkg := range packages {
				after = pkg.Name
				if pkg.Versions == 0 || seen[pkg.Name] || !a.takes(pkg.Name) {
					continue
				}
				seen[pkg.Name] = true
				f := found{pkg.Name, pkg.Spelling}
				if f.spelling == "" {
					f.spelling = pkg.Name
				}
				hits = append(hits, f)
			}
			if len(packages) == 0 {
				break
			}
		}
	}
	first := strings.Join(a.terms, "")
	rank := func(f found) int {
		switch {
		case f.id == first:
			return 0
		case strings.HasPrefix(f.id, first):
			return 1
		}
		return 2
	}
	slices.SortStableFunc(hits, func(x, y found) int {
		if d := rank(x) - rank(y); d != 0 {
			return d
		}
		return strings.Compare(x.id, y.id)
	})
	return hits, nil
}

// window is what of a list a page has.
func window[T any](all []T, skip, take int) []T {
	all = all[min(skip, len(all)):]
	return all[:min(take, len(all))]
}

// hit is one package of a search's answer.
type hit struct {
	ID           string       `json:"@id"`
	Type         string       `json:"@type"`
	Registration string       `json:"registration"`
	PackageID    string       `json:"id"`
	Version      string       `json:"version"`
	Description  string       `json:"description"`
	Summary      string       `json:"summary"`
	Title        string       `json:"title"`
	IconURL      string       `json:"iconUrl,omitempty"`
	LicenseURL   string       `json:"licenseUrl,omitempty"`
	ProjectURL   string       `json:"projectUrl,omitempty"`
	Tags         []string     `json:"tags"`
	Authors      []string     `json:"authors"`
	Downloads    int          `json:"totalDownloads"`
	Verified     bool         `json:"verified"`
	Types        []typeName   `json:"packageTypes"`
	Versions     []hitVersion `json:"versions"`
}

type typeName struct {
	Name string `json:"name"`
}

type hitVersion struct {
	ID        string `json:"@id"`
	Version   string `json:"version"`
	Downloads int    `json:"downloads"`
}

// query answers a search. A proxy is asked for the id that was written: what an upstream
// has beyond what was fetched is not known here.
func (p *Protocol) query(c *protocol.Call) error {
	a, err := parseSearch(c.R.URL.Query())
	if err != nil {
		return err
	}
	var matched []found
	if c.Repository.Kind == meta.KindProxy {
		if err := p.asOf(c); err != nil {
			return err
		}
		id := a.exact
		if id == "" && len(a.terms) == 1 {
			id = a.terms[0]
		}
		if id, err := parseID(id); err == nil {
			return p.proxiedQuery(c, &a, id)
		}
	} else if matched, err = p.match(c, &a); err != nil {
		return err
	}
	data := []hit{}
	for _, f := range window(matched, a.skip, a.take) {
		h, ok, err := p.look(c, &a, f)
		if err != nil {
			return err
		}
		if ok {
			data = append(data, h)
		}
	}
	if len(matched) == 0 {
		if err := p.asOf(c); err != nil {
			return err
		}
	}
	return writeDocument(c, map[string]any{"totalHits": len(matched), "data": data})
}

// look describes a package by its newest version that may be shown; ok is false when it
// has none.
func (p *Protocol) look(c *protocol.Call, a *asked, f found) (h hit, ok bool, _ error) {
	from, err := p.sources(c, f.id)
	if errors.Is(err, meta.ErrNotFound) || err == nil && from.proxy != nil {
		return h, false, nil // it has gone meanwhile
	}
	if err != nil {
		return h, false, err
	}
	by := caller(c)
	by.Absent = nil
	s, err := p.takeCensus(c, by, from.hosted, f.id)
	if errors.Is(err, meta.ErrNotFound) {
		return h, false, nil
	}
	if err != nil {
		return h, false, err
	}
	shown, err := s.newest(a, maxFoundVersions)
	if err != nil || len(shown) == 0 {
		return h, false, err
	}
	d, ok, err := p.describe(c.R.Context(), s, shown[len(shown)-1])
	if err != nil || !ok {
		return h, false, err
	}
	m, to := &d.manifest, linksOf(c)
	at := to.registration(a.hive, f.id)
	h = hit{
		ID: at, Type: "Package", Registration: at, PackageID: m.ID, Version: m.Version, Description: m.Description, Summary: m.Summary,
		Title: m.Title, IconURL: m.IconURL, LicenseURL: m.LicenseURL, ProjectURL: m.ProjectURL, Tags: m.Tags, Authors: []string{}, Types: []typeName{},
	}
	if h.Tags == nil {
		h.Tags = []string{}
	}
	for author := range strings.SplitSeq(m.Authors, ",") {
		if author = strings.TrimSpace(author); author != "" {
			h.Authors = append(h.Authors, author)
		}
	}
	for _, t := range m.Types {
		h.Types = append(h.Types, typeName{t})
	}
	if len(h.Types) == 0 {
		h.Types = append(h.Types, typeName{"Dependency"})
	}
	for _, l := range shown {
		h.Versions = append(h.Versions, hitVersion{ID: to.leaf(a.hive, f.id, l.key), Version: l.full})
	}
	return h, true, nil
}

// newest returns the newest versions that may be shown, at most so many, ascending.
func (s *census) newest(a *asked, most int) (shown []line, _ error) {
	for l, err := range s.lines() {
		if err != nil {
			return nil, err
		}
		if !a.shows(l) {
			continue
		}
		if len(shown) == most {
			shown = shown[:copy(shown, shown[1:])]
		}
		shown = append(shown, l)
	}
	return shown, nil
}

// autocomplete answers ids that match q, or the versions of id
// (learn.microsoft.com/nuget/api/search-autocomplete-service-resource).
func (p *Protocol) autocomplete(c *protocol.Call) error {
	query := c.R.URL.Query()
	a, err := parseSearch(query)
	if err != nil {
		return err
	}
	data := []string{}
	if id := query.Get("id"); id != "" {
		if data, err = p.complete(c, &a, id); err != nil {
			return err
		}
		return writeDocument(c, map[string]any{"data": data})
	}
	var matched []found
	if c.Repository.Kind != meta.KindProxy {
		if matched, err = p.match(c, &a); err != nil {
			return err
		}
	}
	if len(matched) == 0 {
		if err := p.asOf(c); err != nil {
			return err
		}
	}
	for _, f := range window(matched, a.skip, a.take) {
		data = append(data, f.spelling)
	}
	return writeDocument(c, map[string]any{"totalHits": len(matched), "data": data})
}

// complete lists the versions of a package; none is no error.
func (p *Protocol) complete(c *protocol.Call, a *asked, text string) ([]string, error) {
	data := []string{}
	if err := p.asOf(c); err != nil {
		return nil, err
	}
	id, err := parseID(text)
	if err != nil {
		return data, nil
	}
	from, err := p.sources(c, id)
	if err == nil && from.proxy != nil {
		return p.proxiedComplete(c, from.proxy, a, id)
	}
	var s *census
	if err == nil {
		s, err = p.takeCensus(c, caller(c), from.hosted, id)
	}
	if errors.Is(err, meta.ErrNotFound) {
		return data, nil
	}
	if err != nil {
		return nil, err
	}
	shown, err := s.newest(a, scanPage)
	for _, l := range shown {
		data = append(data, l.full)
	}
	return data, err
}
