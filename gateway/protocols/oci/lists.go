package oci

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxNames is how many names one answer has at most, and has when the client
// does not say.
const maxNames = 10_000

// listTags answers the tags in byte order (spec.md, Listing Tags).
func (p *Protocol) listTags(ctx context.Context, c *call) error {
	page, err := protocol.ParsePage(c.R.URL.Query(), "n", "last", maxNames, maxNames)
	if err != nil {
		return coded(err, meta.ErrInvalid, codeUnsupported, nil)
	}
	if c.proxied() {
		return p.proxyTags(ctx, c, page)
	}
	var tags []meta.Alias
	asOf := meta.AsOf{}
	if page.Limit > 0 {
		if tags, asOf, err = p.catalog.Aliases(ctx, c.by, c.pkg, catalog.Page{After: page.After, Limit: page.Limit}); err != nil {
			return err
		}
	}
	if len(tags) == 0 && page.After == "" {
		// A name that holds nothing is unknown; one without tags has an empty list, as
		// has a repository that was created and never pushed to.
		_, packageAsOf, err := p.catalog.Package(ctx, c.by, c.pkg)
		if errors.Is(err, meta.ErrNotFound) && c.pkg.Name != rootPackage {
			return nameUnknown(c.name)
		}
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return err
		}
		if page.Limit == 0 {
			asOf = packageAsOf
		}
	}
	c.answer(asOf)
	if page.Limit > 0 && len(tags) == page.Limit {
		next(c.W, c.R, page, tags[len(tags)-1].Name)
	}
	b := make([]byte, 0, 64+len(tags)*24)
	b = append(b, `{"name":`...)
	b = appendString(b, c.name)
	b = append(b, `,"tags":[`...)
	for i := range tags {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, tags[i].Name)
	}
	b = append(b, "]}\n"...)
	return protocol.ServeBytes(c.W, c.R, b, protocol.Content{
		MediaType: "application/json", Cache: protocol.Revalidate, Public: c.public(),
	})
}

// next links to the names after last, in pages of the size that was asked for.
func next(w http.ResponseWriter, r *http.Request, page protocol.PageRequest, last string) {
	set := url.Values{"last": {last}}
	if page.Given {
		set.Set("n", r.URL.Query().Get("n"))
	}
	protocol.LinkNext(w, r, set)
}

// appendString appends s in JSON. Names and tags need no escapes; anything else
// takes the long way.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil {
				panic(err) // a string always marshals
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// listRepositories answers `_catalog`: the names that the caller may read, by
// tenant, repository and image. `last` is a name; listing goes on after it.
func (p *Protocol) listRepositories(c *protocol.Call) error {
	ctx, by := c.R.Context(), caller(c)
	page, err := protocol.ParsePage(c.R.URL.Query(), "n", "last", 1000, maxNames)
	if err != nil {
		return coded(err, meta.ErrInvalid, codeUnsupported, nil)
	}
	names, asOf, err := p.names(ctx, by, page)
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	if len(names) == page.Limit && page.Limit > 0 {
		next(c.W, c.R, page, names[len(names)-1])
	}
	if names == nil {
		names = []string{}
	}
	b, err := json.Marshal(map[string][]string{"repositories": names})
	if err != nil {
		return err
	}
	return protocol.ServeBytes(c.W, c.R, append(b, '\n'), protocol.Content{MediaType: "application/json", Cache: protocol.Revalidate})
}

// names collects at most page.Limit names after page.After.
func (p *Protocol) names(ctx context.Context, by catalog.Caller, page protocol.PageRequest) (names []string, asOf meta.AsOf, err error) {
	if page.Limit == 0 {
		return nil, asOf, nil
	}
	after := "" // the repository before the first to look at
	if page.After != "" {
		repo, image, err := splitName(page.After)
		if err != nil {
			return nil, asOf, err
		}
		if image == "" {
			image = rootPackage
		}
		after = repo.String()
		r, _, err := p.catalog.Repository(ctx, by, repo)
		if err == nil && p.catalog.Listed(by.Who, &r) {
			if names, asOf, err = p.packages(ctx, by, r, image, page.Limit, names); err != nil {
				return nil, asOf, err
			}
		} else if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return nil, asOf, err
		}
	}
	for len(names) < page.Limit {
		repos, more, a, err := p.catalog.Repositories(ctx, by, "", catalog.Page{After: after, Limit: 1000})
		if err != nil {
			return nil, a, err
		}
		asOf = a
		for _, r := range repos {
			if len(names) == page.Limit {
				break
			}
			if names, _, err = p.packages(ctx, by, r, "", page.Limit, names); err != nil {
				return nil, asOf, err
			}
		}
		if after = more; more == "" {
			break
		}
	}
	return names, asOf, nil
}

// packages appends the names of a repository's packages after one, up to limit
// in all.
func (p *Protocol) packages(ctx context.Context, by catalog.Caller, r meta.Repository, after string, limit int, names []string) ([]string, meta.AsOf, error) {
	if r.Format != Format {
		return names, meta.AsOf{}, nil
	}
	for {
		page := catalog.Page{After: after, Limit: min(limit-len(names), 1000)}
		if page.Limit <= 0 {
			return names, meta.AsOf{}, nil
		}
		packages, asOf, err := p.catalog.Packages(ctx, by, r.Ref, "", page)
		if err != nil {
			return nil, asOf, err
		}
		for _, pkg := range packages {
			after = pkg.Name
			if pkg.Versions == 0 {
				continue
			}
			name := r.Ref.String()
			if pkg.Name != rootPackage {
				name += "/" + pkg.Name
			}
			names = append(names, name)
		}
		if len(packages) < page.Limit {
			return names, asOf, nil
		}
	}
}
