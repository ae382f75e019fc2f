package catalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Mount makes a blob of another repository visible in to, without a copy. from
// names the other one; nil looks for any that the caller may read. Only a blob
// of the same context can be mounted: tenants share no bytes.
//
// Errors: meta.ErrNotFound whenever the caller has to upload the blob itself: it
// is not there, not of the tenant, or not the caller's to see.
func (c *Catalog) Mount(ctx context.Context, by Caller, to meta.RepoRef, from *meta.RepoRef, d digest.Digest) (meta.Token, error) {
	if _, err := digest.Parse(string(d)); err != nil {
		return meta.Token{}, fmt.Errorf("mount: %w: %w", meta.ErrInvalid, err)
	}
	// A hint only, which is not worth a strong round.
	b, _, err := askOnce(ctx, c, by, meta.Local, state.GetBlob{Repo: to, Digest: d})
	source := to // that is about to expire begins its time anew
	switch {
	case err == nil && !c.waning(b):
		return meta.Token{}, c.sendable(ctx, by, b.Blob)
	case errors.Is(err, meta.ErrNotFound):
		source, err = c.source(ctx, by, to, from, d)
	}
	if err == nil {
		if other, _, unseen := askOnce(ctx, c, by, meta.Local, state.GetBlob{Repo: source, Digest: d}); unseen == nil {
			err = c.sendable(ctx, by, other.Blob) // else the command says whether it is there
		}
	}
	if err != nil {
		return meta.Token{}, fmt.Errorf("mount %s into %s: %w", d, to, err)
	}
	receipt, err := c.do(ctx, by, stepMount, state.MountBlob{From: source, To: to, Digest: d})
	if err != nil {
		return meta.Token{}, fmt.Errorf("mount %s from %s into %s: %w", d, source, to, err)
	}
	return receipt.Token, nil
}

// source returns another repository of to's tenant that the caller may read and that
// links d.
func (c *Catalog) source(ctx context.Context, by Caller, to meta.RepoRef, from *meta.RepoRef, d digest.Digest) (meta.RepoRef, error) {
	fresh := meta.Bounded
	if from == nil {
		found, _, err := askOnce(ctx, c, by, fresh, state.FindLink{Tenant: to.Tenant, Patterns: by.Who.Patterns(meta.ActionPull), Digest: d})
		if err != nil {
			return to, err
		}
		from = &found
	}
	if from.Tenant != to.Tenant {
		return to, fmt.Errorf("%s is of another tenant: %w", from, meta.ErrNotFound)
	}
	r, _, err := askOnce(ctx, c, by, fresh, state.GetRepository{Ref: *from})
	if err != nil {
		return to, err
	}
	if !c.cfg.May(by.Who, meta.ActionPull, &r) {
		return to, fmt.Errorf("%s: %w", from, meta.ErrNotFound)
	}
	// A blob that was pushed a moment ago through another server is worth one round.
	if _, _, err := ask(ctx, c, by, meta.Local, state.GetBlob{Repo: *from, Digest: d}); err != nil {
		return to, err
	}
	return *from, nil
}
