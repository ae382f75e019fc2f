package helm

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// names implements upstream.Names: the index names the charts, beside which their
// provenance lies.
func (p *Protocol) names(ctx context.Context, by catalog.Caller, repo *meta.Repository, w *upstream.Want) (bool, error) {
	f, err := p.foreignOf(ctx, by, *repo)
	if err != nil {
		return false, err
	}
	of, _, err := p.find(ctx, &f, coordinate{w.Package, w.Version})
	if err != nil || len(of.URLs) == 0 {
		return false, err
	}
	for _, provenance := range []bool{false, true} {
		at, err := f.address(of, provenance)
		if err != nil || at == w.Path {
			return err == nil, err
		}
	}
	return false, nil
}

// address is where a chart of an upstream is, or its provenance: relative to the index.
//
// Errors: meta.ErrNotFound for what is not fetched here, like charts of an OCI registry.
func (f *foreign) address(of chart, provenance bool) (string, error) {
	base, err := url.Parse(strings.TrimSuffix(f.repo.Upstream.URL, "/") + "/")
	if err != nil {
		return "", fmt.Errorf("the upstream's URL of %s: %w: %w", f.repo.Ref, meta.ErrInvalid, err)
	}
	link, err := url.Parse(of.URLs[0])
	if err != nil {
		return "", fmt.Errorf("address of %s %s: %w: %w", of.Name, of.Version, protocol.ErrUpstream, err)
	}
	link = base.ResolveReference(link)
	if link.Scheme != "http" && link.Scheme != "https" || link.User != nil || link.Host == "" {
		return "", fmt.Errorf("chart %s %s at %s is not at an http address: %w", of.Name, of.Version, f.repo.Ref, meta.ErrNotFound)
	}
	if provenance {
		link.Path, link.RawPath = link.Path+provenanceSuffix, link.EscapedPath()+provenanceSuffix
	}
	link.Fragment = ""
	return link.String(), nil
}
