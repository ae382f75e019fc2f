package cargo

import (
	"context"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var _ protocol.Packages = (*Protocol)(nil)

// ParseReference implements protocol.Packages: `/demo@1.2.3`, as cargo writes it, or with
// a colon.
func (p *Protocol) ParseReference(s string) (r protocol.Reference, _ error) {
	rest, ok := strings.CutPrefix(s, "/")
	at := strings.IndexAny(rest, "@:")
	if !ok || at < 0 {
		return r, fmt.Errorf("reference %.300q: write tenant/repository/crate@1.2.3: %w", s, meta.ErrInvalid)
	}
	if err := checkName(rest[:at]); err != nil {
		return r, fmt.Errorf("reference %.300q: %w", s, err)
	}
	version, err := versionName(rest[at+1:])
	if err != nil {
		return r, fmt.Errorf("reference %.300q: %w", s, err)
	}
	return protocol.Reference{Package: normalize(rest[:at]), Version: version}, nil
}

// Closure implements protocol.Packages: the crate, and its line of the index where that is
// a file. Crates are for all platforms, and what they need a build chooses.
func (p *Protocol) Closure(ctx context.Context, who meta.Principal, v meta.Version, _ string) ([]meta.Blob, error) {
	return p.catalog.VersionBlobs(ctx, catalog.Caller{Who: who}, v, lineFile)
}
