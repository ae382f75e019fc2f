package pypi

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/rendered"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// wantPage is the page of a project at the upstream of a proxy. Its URL is that of the
// index, with or without the simple/ at its end that people write to pip.
func wantPage(repo *meta.Repository, name string) upstream.Want {
	path := url.PathEscape(name) + "/"
	if repo.Upstream == nil || !strings.HasSuffix(strings.TrimSuffix(repo.Upstream.URL, "/"), "/simple") {
		path = "simple/" + path
	}
	return upstream.Want{Path: path, Kind: upstream.Document, Package: name, Accept: accepts, MaxBytes: maxPageBytes}
}

// page is a project's page at an upstream.
type page struct {
	found *upstream.Found
	base  *url.URL
	// before is when a file must have been there, by the minimum release age of the proxy;
	// zero for any.
	before time.Time
}

// ageStep is how exactly a minimum release age is kept: pages are made once for each.
const ageStep = time.Minute

func (p *Protocol) upstreamPage(ctx context.Context, by catalog.Caller, repo *meta.Repository, name string) (page, error) {
	if repo.Upstream == nil {
		return page{}, fmt.Errorf("proxy %s has no upstream: %w", repo.Ref, meta.ErrNotFound)
	}
	want := wantPage(repo, name)
	base, err := url.Parse(strings.TrimSuffix(repo.Upstream.URL, "/") + "/" + want.Path)
	if err != nil {
		return page{}, fmt.Errorf("the upstream's URL of %s: %w: %w", repo.Ref, meta.ErrInvalid, err)
	}
	found, err := p.engine.Fetch(ctx, by, repo, want)
	if err != nil {
		return page{}, err
	}
	g := page{found: found, base: base}
	if age := repo.Upstream.MinReleaseAge; age > 0 {
		g.before = time.Now().Add(-age).Truncate(ageStep)
	}
	return g, nil
}

// walk reads the files of a page that may be shown.
func (p *Protocol) walk(ctx context.Context, g page, yield func(linked) bool) error {
	r, err := p.engine.Open(ctx, g.found)
	if err != nil {
		return err
	}
	defer r.Close()
	return readPage(r, g.found.Record.MediaType, g.base, func(l linked) bool {
		if !g.before.IsZero() && (l.uploaded.IsZero() || l.uploaded.After(g.before)) {
			return true // too young, or nobody says how old
		}
		return yield(l)
	})
}

// proxied answers a project's page of an upstream, its addresses rewritten to ours.
func (p *Protocol) proxied(c *protocol.Call, repo *meta.Repository, name string) error {
	ctx := c.R.Context()
	g, err := p.upstreamPage(ctx, caller(c), repo, name)
	if err != nil {
		return err
	}
	media, isJSON := negotiate(c)
	key := rendered.Key{Repo: repo.Ref, Package: name, Revision: string(g.found.Record.Digest), Variant: variant(isJSON)}
	if !g.before.IsZero() {
		key.Variant += "<" + g.before.UTC().Format(time.RFC3339)
	}
	files := func(yield func(entry, error) bool) {
		more := true
		err := p.walk(ctx, g, func(l linked) bool {
			more = yield(l.entry, nil)
			return more
		})
		if err != nil && more {
			yield(entry{}, err)
		}
	}
	doc, err := p.pages.Get(ctx, key, func(w io.Writer) error { return write(w, name, files, isJSON, false) })
	if err != nil {
		return fmt.Errorf("page of %s: %w", name, err)
	}
	upstream.Describe(c, g.found)
	return p.serve(c, doc, media)
}

// fetched answers a file of an upstream, or the metadata of one. Its page says where it
// is and what its bytes are: a file that the page does not show is not served.
func (p *Protocol) fetched(c *protocol.Call, repo *meta.Repository, name, file string) error {
	ctx, by := c.R.Context(), caller(c)
	g, err := p.upstreamPage(ctx, by, repo, name)
	if err != nil {
		return err
	}
	var of linked
	base, isMetadata := strings.CutSuffix(file, metadataSuffix)
	err = p.walk(ctx, g, func(l linked) bool {
		if l.name != base {
			return true
		}
		of = l
		return false
	})
	if err != nil {
		return err
	}
	if of.name == "" || isMetadata && !of.metadata {
		return fmt.Errorf("file %.200q of %s at %s: %w", file, name, repo.Ref, meta.ErrNotFound)
	}
	want := upstream.Want{Path: of.url, Kind: upstream.File, Package: name, Version: of.version, Sums: of.sums}
	sum := of.sha256
	if isMetadata {
		if want.Path, err = metadataURL(of.url); err != nil {
			return fmt.Errorf("address of %s: %w: %w", file, protocol.ErrUpstream, err)
		}
		want.Sums, want.MaxBytes, sum = nil, maxMetadata, of.metadataSum
	}
	if sum != "" {
		want.Digest = digest.Digest("sha256:" + sum)
	}
	content := protocol.Content{MediaType: "application/octet-stream", Cache: protocol.Immutable, Public: public(c)}
	if isMetadata {
		content.MediaType = "text/plain; charset=utf-8"
	}
	return upstream.ServeFile(c, p.engine, by, repo, want, content)
}
