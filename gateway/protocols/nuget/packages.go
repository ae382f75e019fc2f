package nuget

import (
	"context"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var _ protocol.Packages = (*Protocol)(nil)

// ParseReference implements protocol.Packages: `/Acme.Demo@1.2.0`.
func (p *Protocol) ParseReference(s string) (protocol.Reference, error) {
	name, ok := strings.CutPrefix(s, "/")
	name, text, hasVersion := strings.Cut(name, "@")
	if !ok || !hasVersion {
		return protocol.Reference{}, fmt.Errorf("reference %q: write tenant/repository/Package.Id@1.2.0: %w", s, meta.ErrInvalid)
	}
	id, err := parseID(name)
	if err != nil {
		return protocol.Reference{}, err
	}
	v, err := parseVersion(text)
	if err != nil {
		return protocol.Reference{}, err
	}
	return protocol.Reference{Package: id, Version: v.key()}, nil
}

// Closure implements protocol.Packages: a package is for all platforms, and what it
// depends on are other packages.
func (p *Protocol) Closure(ctx context.Context, who meta.Principal, v meta.Version, _ string) ([]meta.Blob, error) {
	return p.catalog.VersionBlobs(ctx, catalog.Caller{Who: who}, v)
}
