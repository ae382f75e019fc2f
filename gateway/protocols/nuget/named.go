package nuget

import (
	"context"
	"errors"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// names implements upstream.Names: the service index names where a package's documents and
// files begin, its registration the pages and the entries of the catalog.
func (p *Protocol) names(ctx context.Context, by catalog.Caller, repo *meta.Repository, w *upstream.Want) (bool, error) {
	id, err := parseID(w.Package)
	if err != nil || id != w.Package {
		return false, nil
	}
	for _, h := range []hive{hiveSemVer2, hivePlain} {
		s, err := p.discover(ctx, by, repo, h)
		if err != nil {
			return false, err
		}
		named := []string{s.flat + id + "/index.json", s.registration + id + "/index.json"}
		if v, ok := scanVersion(w.Version); ok && v.key() == w.Version {
			named = append(named, s.file(id, w.Version, packageFile(id, w.Version)), s.file(id, w.Version, manifestFile(id)))
		}
		for _, at := range named {
			if at == w.Path {
				return true, nil
			}
		}
		if is, err := p.registered(ctx, by, repo, h, id, w); is || err != nil && !errors.Is(err, meta.ErrNotFound) {
			return is, err
		}
	}
	return false, nil
}

// registered reports whether a package's registration names an address.
func (p *Protocol) registered(ctx context.Context, by catalog.Caller, repo *meta.Repository, h hive, id string, w *upstream.Want) (bool, error) {
	pages, _, err := p.foreignPages(ctx, by, repo, h, id)
	if err != nil {
		return false, err
	}
	for i := range pages {
		if pages[i].ID == w.Path {
			return true, nil
		}
	}
	entry, _, err := p.foreignEntry(ctx, by, repo, h, id, w.Version)
	return err == nil && entryURL(entry) == w.Path, err
}
