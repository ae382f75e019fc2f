package gomod

import (
	"context"
	"errors"
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
	by := catalog.Caller{Who: who}
	b, _, err := p.catalog.Blob(ctx, by, v.Repo, v.Digest)
	if err != nil {
		return nil, err
	}
	blobs := []meta.Blob{b.Blob}
	f, _, err := p.catalog.File(ctx, by, catalog.Package{Repo: v.Repo, Name: v.Package}, v.Name, modFile)
	if errors.Is(err, meta.ErrNotFound) {
		return blobs, nil
	}
	if err != nil {
		return nil, err
	}
	if b, _, err = p.catalog.Blob(ctx, by, v.Repo, f.Digest); err != nil {
		return nil, err
	}
	return append(blobs, b.Blob), nil
}
