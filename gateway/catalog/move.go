package catalog

import (
	"context"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// MoveAlias points an alias at a version that is there.
//
// Errors: meta.ErrNotFound for the version; meta.ErrExists in an immutable repository when
// the alias names another; meta.ErrUnavailable.
func (c *Catalog) MoveAlias(ctx context.Context, by Caller, pkg Package, alias, version string) (meta.Token, error) {
	receipt, err := c.do(ctx, by, stepPublish, state.MoveAlias{Repo: pkg.Repo, Package: pkg.Name, Name: alias, Version: version})
	if err != nil {
		return meta.Token{}, fmt.Errorf("move alias %s of %s to %s: %w", alias, pkg, version, err)
	}
	return receipt.Token, nil
}
