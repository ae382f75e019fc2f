package npm

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Limits of a search: what one answers, and how many names it looks at.
const (
	searchSize   = 20
	maxSearch    = 250
	maxSearchAll = 100_000
	maxFound     = 4 << 20 // bytes of an upstream's answer
)

// hit is a package as a search shows it.
type hit struct {
	Package     fields          `json:"package"`
	Score       json.RawMessage `json:"score"`
	SearchScore float64         `json:"searchScore"`
}

// evenly is the score of all: nothing here says that one is better.
var evenly = json.RawMessage(`{"final":1,"detail":{"quality":1,"popularity":1,"maintenance":1}}`)

// query is what a search looks for: all words, in a name.
type query struct {
	words []string
	scope string
}

// parseQuery reads the text of a search. Of the qualifiers only scope counts; what is
// said of keywords and people no name tells.
func parseQuery(text string) (q query) {
	for _, word := range strings.Fields(strings.ToLower(text)) {
		switch name, value, ok := strings.Cut(word, ":"); {
		case !ok:
			q.words = append(q.words, word)
		case name == "scope":
			q.scope = "@" + strings.TrimPrefix(value, "@") + "/"
		}
	}
	return q
}

func (q query) matches(name string) bool {
	if !strings.HasPrefix(name, q.scope) {
		return false
	}
	for _, word := range q.words {
		if !strings.Contains(name, word) {
			return false
		}
	}
	return true
}

// search looks for packages by name: in the hosted repositories behind the call's, or,
// where it is a proxy, at its upstream.
func (p *Protocol) search(c *protocol.Call) error {
	values := c.R.URL.Query()
	page, err := protocol.ParsePage(values, "size", "", searchSize, maxSearch)
	if err != nil {
		return err
	}
	from, _ := strconv.Atoi(values.Get("from")) // what is no number is 0
	by, ctx := caller(c), c.R.Context()
	if c.Repository.Kind == meta.KindProxy {
		release, err := p.catalog.Reserve(ctx, maxFound)
		if err != nil {
			return err
		}
		defer release()
		ask := url.Values{"text": {values.Get("text")}, "size": {strconv.Itoa(page.Limit)}, "from": {strconv.Itoa(from)}}
		body, err := p.proxies.Relay(ctx, c.Repository, upstream.Relayed{Method: http.MethodGet, Path: "-/v1/search?" + ask.Encode(), Accept: fullType, MaxBytes: maxFound})
		if err != nil {
			return err
		}
		// It is the upstream's of this moment, whatever is known here.
		c.AsOf(meta.AsOf{Mode: meta.ModeStrong})
		return protocol.ServeBytes(c.W, c.R, body, protocol.Content{MediaType: fullType, Cache: protocol.NoStore})
	}
	repos, asOf, err := p.catalog.Members(ctx, by, c.Repo)
	if err != nil {
		return err
	}
	q := parseQuery(values.Get("text"))
	hits, total := []hit{}, 0
	seen := map[string]bool{}
	for i := range repos {
		if repos[i].Kind != meta.KindHosted {
			continue
		}
		for at := (catalog.Page{Limit: 1000}); len(seen) < maxSearchAll; {
			some, _, err := p.catalog.Packages(ctx, by, repos[i].Ref, "", at)
			if err != nil {
				return err
			}
			if len(some) == 0 {
				break
			}
			for j := range some {
				pkg := &some[j]
				at.After = pkg.Name
				if seen[pkg.Name] || !q.matches(spelled(*pkg)) {
					seen[pkg.Name] = true
					continue
				}
				seen[pkg.Name] = true
				if total++; total <= from || len(hits) >= page.Limit {
					continue
				}
				one, err := p.hit(ctx, by, pkg)
				if err != nil {
					return err
				}
				hits = append(hits, one)
			}
		}
	}
	body, err := marshal(map[string]any{"objects": hits, "total": total})
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	return protocol.ServeBytes(c.W, c.R, body, protocol.Content{MediaType: fullType, Cache: protocol.Revalidate, Public: public(c)})
}

// hit shows a package by its latest version; one without such by its name.
func (p *Protocol) hit(ctx context.Context, by catalog.Caller, pkg *meta.Package) (hit, error) {
	name := spelled(*pkg)
	f := fields{}
	h := hit{Package: f, Score: evenly, SearchScore: 1}
	said := map[string]any{"name": name, "version": "", "date": stamp(pkg.Created), "links": map[string]string{}, "maintainers": []string{}}
	if scope, _, scoped := cutScope(name); scoped {
		said["scope"] = scope
	} else {
		said["scope"] = "unscoped"
	}
	a, _, err := p.catalog.Peek(ctx, by, catalog.Package{Repo: pkg.Repo, Name: pkg.Name}, latest)
	if err == nil {
		m, err := p.manifest(ctx, by, &a.Version)
		if err != nil {
			return h, err
		}
		for _, field := range []string{"description", "keywords", "license", "author"} {
			if raw, ok := m[field]; ok {
				f[field] = raw
			}
		}
		who := map[string]string{"username": strings.TrimPrefix(a.Version.CreatedBy, meta.KindUser+":")}
		said["version"], said["date"], said["publisher"], said["maintainers"] = a.Version.Name, stamp(a.Version.PublishTime), who, []any{who}
	}
	for field, v := range said {
		if err := f.set(field, v); err != nil {
			return h, err
		}
	}
	return h, nil
}
