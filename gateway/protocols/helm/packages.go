package helm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var _ protocol.Packages = (*Protocol)(nil)

// ParseReference implements protocol.Packages: `/chart:1.0.0`.
func (p *Protocol) ParseReference(s string) (r protocol.Reference, _ error) {
	text, ok := strings.CutPrefix(s, "/")
	name, version, both := strings.Cut(text, ":")
	if !ok || !both {
		return r, fmt.Errorf("reference %.200q: write tenant/repository/chart:version: %w", s, meta.ErrInvalid)
	}
	return protocol.Reference{Package: name, Version: version}, errors.Join(checkName(name), checkVersion(version))
}

// Closure implements protocol.Packages: the chart and its provenance. The images that it
// names are other packages.
func (p *Protocol) Closure(ctx context.Context, who meta.Principal, v meta.Version, _ string) (blobs []meta.Blob, err error) {
	by := catalog.Caller{Who: who}
	files, _, err := p.catalog.Files(ctx, by, catalog.Package{Repo: v.Repo, Name: v.Package}, v.Name, catalog.Page{Limit: 10})
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		b, _, err := p.catalog.Blob(ctx, by, v.Repo, f.Digest)
		if err != nil {
			return nil, err
		}
		blobs = append(blobs, b.Blob)
	}
	return blobs, nil
}
