package catalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Tombstone looks up who deleted a version, and when, to tell it from one that never was:
// after a look-up that found nothing and has had its strong round, so without another.
// found is false for what has none.
func (c *Catalog) Tombstone(ctx context.Context, by Caller, pkg Package, version string) (t state.Tombstone, found bool, err error) {
	t, _, err = askOnce(ctx, c, by.inside(), meta.Local, state.GetTombstone{Repo: pkg.Repo, Package: pkg.Name, Version: version})
	if errors.Is(err, meta.ErrNotFound) {
		return t, false, nil
	}
	if err != nil {
		return t, false, fmt.Errorf("tombstone of version %s of %s: %w", version, pkg, err)
	}
	return t, true, nil
}
