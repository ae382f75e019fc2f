package gomod

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/mod/module"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var _ protocol.Packages = (*Protocol)(nil)

// ParseReference implements protocol.Packages: `/module/path@v1.2.3`, as the go command
// writes it.
func (p *Protocol) ParseReference(s string) (r protocol.Reference, _ error) {
	path, version, ok := strings.Cut(strings.TrimPrefix(s, "/"), "@")
	if !ok || !strings.HasPrefix(s, "/") {
		return r, fmt.Errorf("reference %.300q: write tenant/repository/module/path@v1.2.3: %w", s, meta.ErrInvalid)
	}
	if err := module.CheckPath(path); err != nil {
		return r, fmt.Errorf("reference %.300q: %w: %w", s, err, meta.ErrInvalid)
	}
	m := module.Version{Path: path, Version: version}
	if err := checkVersion(m); err != nil {
		return r, fmt.Errorf("reference %.300q: %w", s, err)
	}
	return protocol.Reference{Package: path, Version: version}, meta.CheckPackage(path)
}

// Closure implements protocol.Packages: the zip, and the go.mod where it is a file of its
// own. A module is for all platforms, and what it requires is said in versions that a
// build chooses, so it closes over itself only.
func (p *Protocol) Closure(ctx context.Context, who meta.Principal, v meta.Version, _ string) ([]meta.Blob, error) {
	return p.catalog.VersionBlobs(ctx, catalog.Caller{Who: who}, v, modFile)
}
