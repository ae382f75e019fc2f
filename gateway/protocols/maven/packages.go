package maven

import (
	"context"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

var _ protocol.Packages = (*Protocol)(nil)

// ParseReference implements protocol.Packages: `/group:artifact:version`; a build of a
// snapshot goes by its own name, 1.1-20261122.133443-1.
func (p *Protocol) ParseReference(s string) (r protocol.Reference, _ error) {
	name, ok := strings.CutPrefix(s, "/")
	parts := strings.Split(name, ":")
	if !ok || len(parts) != 3 || !isVersion(parts[2]) || !isArtifact(parts[1]) {
		return r, fmt.Errorf("reference %q: write tenant/repository/group:artifact:version: %w", s, meta.ErrInvalid)
	}
	for part := range strings.SplitSeq(parts[0], ".") {
		if !isGroupPart(part) {
			return r, fmt.Errorf("reference %q: %q is no group: %w", s, parts[0], meta.ErrInvalid)
		}
	}
	r = protocol.Reference{Package: packageName(parts[0], parts[1]), Version: parts[2]}
	return r, meta.CheckPackage(r.Package)
}

// Closure implements protocol.Packages: all files, which are for all platforms.
func (p *Protocol) Closure(ctx context.Context, who meta.Principal, v meta.Version, _ string) ([]meta.Blob, error) {
	by := catalog.Caller{Who: who}
	var blobs []meta.Blob
	seen := map[digest.Digest]bool{}
	for page := (catalog.Page{Limit: pageSize}); ; {
		files, _, err := p.catalog.Files(ctx, by, catalog.Package{Repo: v.Repo, Name: v.Package}, v.Name, page)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if seen[f.Digest] {
				continue
			}
			seen[f.Digest] = true
			b, _, err := p.catalog.Blob(ctx, by, v.Repo, f.Digest)
			if err != nil {
				return nil, err
			}
			blobs = append(blobs, b.Blob)
		}
		if len(files) < page.Limit {
			return blobs, nil
		}
		page.After = files[len(files)-1].Path
	}
}
