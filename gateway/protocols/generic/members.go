package generic

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxProxiedBytes bounds a file that a proxy passes on.
const maxProxiedBytes = 256 << 30

// want is a file of an upstream. What a path has there may change, so it is asked for
// again when its time is over.
func want(path string) upstream.Want {
	return upstream.Want{Path: (&url.URL{Path: path}).EscapedPath(), Package: path, MaxBytes: maxProxiedBytes, Raw: true}
}

// sources returns who answers for a path: hosted repositories in order, or one proxy.
//
// Errors: as upstream.Engine.Sources has them.
func (p *Protocol) sources(c *protocol.Call, path string) ([]meta.Repository, error) {
	if c.Repository == nil || c.Repository.Kind != meta.KindGroup {
		return []meta.Repository{record(c)}, nil
	}
	return p.proxies.Sources(c.R.Context(), caller(c), c.Repository, path, func(*meta.Repository) upstream.Want { return want(path) })
}

// record is the repository of a call. One that is not known is asked for as a hosted one,
// which says so.
func record(c *protocol.Call) meta.Repository {
	if c.Repository != nil {
		return *c.Repository
	}
	return meta.Repository{Ref: c.Repo, Kind: meta.KindHosted}
}

// target is the repository that a change goes to: a group's member that it writes to.
func (p *Protocol) target(c *protocol.Call, action meta.Action) (meta.Repository, error) {
	if action == meta.ActionPush {
		return p.catalog.ForPush(c.R.Context(), caller(c), c.Repo, Format, c.Repository)
	}
	return p.catalog.ForChange(c.R.Context(), caller(c), record(c), Format, action)
}

// proxied answers with what a proxy's upstream has under a path.
func (p *Protocol) proxied(c *protocol.Call, repo *meta.Repository, path string) error {
	query := c.R.URL.Query()
	if query.Has("history") {
		return fmt.Errorf("%s is a proxy and knows no history of %s: %w", repo.Ref, path, meta.ErrNotFound)
	}
	w := want(path)
	content := protocol.Content{Cache: protocol.Revalidate, Public: public(c)}
	version := query.Get("version")
	if version == "" {
		guard(c)
		return upstream.ServeFile(c, p.proxies, caller(c), repo, w, content)
	}
	// What is there is compared, and asked for anew when it has changed only: a digest that
	// a client makes up brings nothing in.
	w.TTL, content.Cache = versionTTL, protocol.Immutable
	f, err := p.proxies.Fetch(c.R.Context(), caller(c), repo, w)
	if err != nil {
		return err
	}
	if string(f.Record.Digest) != version {
		return fmt.Errorf("version %.200q of %s: %w", version, path, meta.ErrNotFound)
	}
	guard(c)
	return upstream.Serve(c, p.proxies, f, content)
}

// versionTTL is how old what is known may be when one version of it is asked for.
const versionTTL = time.Second

// guard keeps what strangers uploaded from acting as this origin in a browser.
func guard(c *protocol.Call) {
	c.W.Header().Set("Content-Security-Policy", "sandbox; default-src 'none'")
}

func public(c *protocol.Call) bool {
	return c.Repository != nil && c.Repository.Visibility == meta.VisibilityPublic
}

// proxiedListing passes on how an upstream shows a directory, as far as it does.
func (p *Protocol) proxiedListing(c *protocol.Call, repo *meta.Repository, dir, accept string) error {
	path := (&url.URL{Path: dir}).EscapedPath()
	query := url.Values{} // what pages have; all else would be kept for each question
	for _, name := range []string{"n", "last"} {
		if v := c.R.URL.Query().Get(name); v != "" {
			query.Set(name, v)
		}
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	f, err := p.proxies.Fetch(c.R.Context(), caller(c), repo, upstream.Want{Path: path, Accept: accept, MaxBytes: maxListingBytes, Passing: true})
	if err != nil {
		return err
	}
	guard(c)
	if f.Record.Link != "" {
		c.W.Header().Set("Link", f.Record.Link)
	}
	return upstream.Serve(c, p.proxies, f, protocol.Content{Cache: protocol.Revalidate, Public: public(c)})
}

// maxListingBytes bounds the listing of a directory that an upstream makes.
const maxListingBytes = 8 << 20

// merged fills the listing with what the hosted repositories among all have, which are
// in the order in which they answer for a path.
func (p *Protocol) merged(ctx context.Context, by catalog.Caller, all []meta.Repository, page protocol.PageRequest, l *listing) (asOf meta.AsOf, more bool, err error) {
	seen := map[string]bool{}
	for i := range all {
		if all[i].Kind != meta.KindHosted {
			continue
		}
		part := listing{Path: l.Path}
		at, cut, err := p.entries(ctx, by, all[i].Ref, page, &part)
		if err != nil {
			return asOf, false, err
		}
		if asOf == (meta.AsOf{}) || at.Index < asOf.Index {
			asOf = at
		}
		more = more || cut
		for _, e := range part.Entries {
			if !seen[e.Name] {
				seen[e.Name] = true
				l.Entries = append(l.Entries, e)
			}
		}
	}
	slices.SortFunc(l.Entries, func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
	if len(l.Entries) > page.Limit {
		l.Entries, more = l.Entries[:page.Limit], true
	}
	return asOf, more, nil
}
