package pypi

import (
	"context"
	"net/url"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// names implements upstream.Names: the page of a project names its files, and those their
// metadata, which lies beside them.
func (p *Protocol) names(ctx context.Context, by catalog.Caller, repo *meta.Repository, w *upstream.Want) (is bool, _ error) {
	g, err := p.upstreamPage(ctx, by, repo, w.Package)
	if err != nil {
		return false, err
	}
	err = p.walk(ctx, g, func(l linked) bool {
		if l.version != w.Version {
			return true
		}
		is = l.url == w.Path
		if !is && l.metadata {
			at, err := metadataURL(l.url)
			is = err == nil && at == w.Path
		}
		return !is
	})
	return is, err
}

// metadataURL is where the metadata of a file is (PEP 658).
func metadataURL(file string) (string, error) {
	u, err := url.Parse(file)
	if err != nil {
		return "", err
	}
	u.Path, u.RawPath = u.Path+metadataSuffix, u.EscapedPath()+metadataSuffix
	return u.String(), nil
}
