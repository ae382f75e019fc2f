package npm

import (
	"context"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// names implements upstream.Names: the document of a package names the tarballs of its
// versions, on whatever host.
func (p *Protocol) names(ctx context.Context, by catalog.Caller, repo *meta.Repository, w *upstream.Want) (bool, error) {
	found, err := p.proxies.Fetch(ctx, by, repo, documentOf(w.Package))
	if err != nil {
		return false, err
	}
	s := &source{p: p, name: w.Package, proxy: repo, found: found}
	b, err := s.ball(ctx, w.Version)
	return err == nil && b.want(s.name, repo.Upstream.URL).Path == w.Path, err
}
