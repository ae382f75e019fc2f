package generic

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

// ParseReference implements protocol.Packages: `/path/of/file`, behind it `@` and a
// digest for what the path served before.
func (p *Protocol) ParseReference(s string) (r protocol.Reference, _ error) {
	name, ok := strings.CutPrefix(s, "/")
	r = protocol.Reference{Package: name, Alias: current}
	if at := strings.LastIndex(name, "@sha256:"); at >= 0 {
		if _, err := digest.Parse(name[at+1:]); err != nil {
			return r, fmt.Errorf("reference %q: %w: %w", s, err, meta.ErrInvalid)
		}
		r = protocol.Reference{Package: name[:at], Version: name[at+1:]}
	}
	if !ok {
		return r, fmt.Errorf("reference %q: write tenant/repository/path/of/file: %w", s, meta.ErrInvalid)
	}
	if err := meta.CheckPath(r.Package); err != nil {
		return r, err
	}
	return r, meta.CheckPackage(r.Package)
}

// Closure implements protocol.Packages: a file is for all platforms.
func (p *Protocol) Closure(ctx context.Context, who meta.Principal, v meta.Version, _ string) ([]meta.Blob, error) {
	return p.catalog.VersionBlobs(ctx, catalog.Caller{Who: who}, v)
}
