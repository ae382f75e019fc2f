package catalog

import (
	"context"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// sendable refuses to offer a blob of which no server has a sound copy any more: a
// client that hears that it is not there sends it again, and so heals it. Only servers
// look; it is a read of their own state.
//
// Errors: meta.ErrNotFound.
func (c *Catalog) sendable(ctx context.Context, by Caller, b meta.Blob) error {
	if c.cfg.Commands == nil {
		return nil
	}
	lost, _, err := askOnce(ctx, c, Caller{Who: by.Who}, meta.Local, state.IsLost{Root: b.Root})
	if err != nil || !lost {
		return nil // what cannot be asked is not said to be lost
	}
	return fmt.Errorf("blob %s has no sound copy left, send it again: %w", b.Digest, meta.ErrNotFound)
}
