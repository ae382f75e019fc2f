package upstream

import (
	"context"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Remember keeps that a group takes a package from one of its proxies, for protocols that
// find out by themselves which has it, and returns the member that holds: another one when
// that was kept before. w is what the proxy was asked.
//
// Errors: meta.ErrConflict when a hosted member owns the name; meta.ErrUnavailable.
func (e *Engine) Remember(ctx context.Context, group meta.RepoRef, source *meta.Repository, pkg string, w Want) (string, error) {
	w.Package = pkg
	return e.remember(ctx, group, source, pkg, &w)
}
