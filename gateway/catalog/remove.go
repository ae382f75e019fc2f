package catalog

import (
	"context"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// DeleteVersion takes a version and its aliases away and leaves a tombstone:
// other bytes never come back under its name.
//
// Errors: meta.ErrNotFound; meta.ErrUnavailable.
func (c *Catalog) DeleteVersion(ctx context.Context, by Caller, pkg Package, version string) (meta.Token, error) {
	return c.remove(ctx, by, "version "+version+" of "+pkg.String(),
		state.DeleteVersion{Repo: pkg.Repo, Package: pkg.Name, Version: version})
}

// DeleteAlias takes an alias away; its history stays.
//
// Errors: meta.ErrNotFound; meta.ErrDenied in an immutable repository;
// meta.ErrUnavailable.
func (c *Catalog) DeleteAlias(ctx context.Context, by Caller, pkg Package, alias string) (meta.Token, error) {
	return c.remove(ctx, by, "alias "+alias+" of "+pkg.String(),
		state.DeleteAlias{Repo: pkg.Repo, Package: pkg.Name, Name: alias})
}

// Unlink takes a blob from a repository.
//
// Errors: meta.ErrNotFound; meta.ErrConflict while a version uses it;
// meta.ErrUnavailable.
func (c *Catalog) Unlink(ctx context.Context, by Caller, repo meta.RepoRef, d digest.Digest) (meta.Token, error) {
	return c.remove(ctx, by, "blob "+d.String()+" of "+repo.String(), state.UnlinkBlob{Repo: repo, Digest: d})
}

func (c *Catalog) remove(ctx context.Context, by Caller, what string, cmd state.Command) (meta.Token, error) {
	receipt, err := c.do(ctx, by, stepRemove, cmd)
	if err != nil {
		return meta.Token{}, fmt.Errorf("delete %s: %w", what, err)
	}
	return receipt.Token, nil
}
