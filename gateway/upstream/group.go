package upstream

import (
	"context"
	"errors"
	"fmt"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Sources returns who answers for a package of a repository, in the order of asking: a
// hosted repository and a proxy for themselves; of a group its hosted members that own
// the name, and nobody else when there are any; else the one proxy from which it was
// taken before, or the first that has it now, which is remembered. probe says what to ask
// of a proxy to find out whether it has the package. A proxy that cannot be asked is not
// passed over: the name might be another's in the next.
//
// Errors: meta.ErrNotFound when nobody has it; *BlockedError when only proxies whose rules
// keep it out are left; as Fetch has them.
func (e *Engine) Sources(ctx context.Context, by catalog.Caller, repo *meta.Repository, pkg string, probe func(member *meta.Repository) Want) ([]meta.Repository, error) {
	if repo.Kind != meta.KindGroup {
		return []meta.Repository{*repo}, nil
	}
	a, _, err := e.cfg.Catalog.Sources(ctx, by, repo.Ref, pkg)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		if len(a.Owners) > 0 {
			owners := make([]meta.Repository, len(a.Owners))
			for i := range a.Owners {
				owners[i] = a.Owners[i].Repository
			}
			return owners, nil
		}
		for i := range a.Proxies {
			if a.Proxies[i].Ref.Name == a.Remembered {
				return a.Proxies[i : i+1 : i+1], nil
			}
		}
		source, want, err := e.firstWith(ctx, by, repo, a.Proxies, pkg, probe)
		if err != nil {
			return nil, err
		}
		held, err := e.remember(ctx, repo.Ref, source, pkg, want)
		switch {
		case err == nil && held == source.Ref.Name:
			return []meta.Repository{*source}, nil
		case err != nil && !errors.Is(err, meta.ErrConflict):
			e.log.Debug("where a group takes a package from is not remembered", "group", repo.Ref.String(), "package", pkg, "error", err)
			return []meta.Repository{*source}, nil
		case try == 2:
			return nil, fmt.Errorf("the sources of %s in %s change as they are asked for: %w", pkg, repo.Ref, &meta.UnavailableError{Reason: "busy"})
		}
		// It is owned here since, or another proxy is the one: what this node knew is old.
		if a, _, err = raftmeta.Ask(ctx, e.cfg.Metadata, meta.Strong, state.GetSources{Repo: repo.Ref, Package: pkg}); err != nil {
			return nil, fmt.Errorf("sources of %s in %s: %w", pkg, repo.Ref, err)
		}
	}
}

// firstWith returns the first proxy that has a package, and what was asked of it.
func (e *Engine) firstWith(ctx context.Context, by catalog.Caller, group *meta.Repository, proxies []meta.Repository, pkg string, probe func(*meta.Repository) Want) (*meta.Repository, *Want, error) {
	var blocked *BlockedError
	var unconfirmed *unconfirmedError
	for i := range proxies {
		w := probe(&proxies[i])
		if w.Package == "" { // else rules are of the name that the format's people write
			w.Package = pkg
		}
		_, err := e.Fetch(ctx, by, &proxies[i], w)
		switch {
		case err == nil:
			return &proxies[i], &w, nil
		case errors.As(err, &unconfirmed):
			return nil, nil, fmt.Errorf("look for %s in %s: %w", pkg, proxies[i].Ref, unconfirmed.cause)
		case errors.As(err, &blocked), errors.Is(err, meta.ErrNotFound):
		default:
			return nil, nil, fmt.Errorf("look for %s in %s: %w", pkg, proxies[i].Ref, err)
		}
	}
	if blocked != nil {
		return nil, nil, blocked
	}
	return nil, nil, fmt.Errorf("package %s is in no member of %s: %w", pkg, group.Ref, meta.ErrNotFound)
}

// remember keeps where a group takes a package from, and returns what holds: of two
// nodes that found it in different proxies, both take the first one's.
//
// Errors: meta.ErrConflict when a hosted member owns the name.
func (e *Engine) remember(ctx context.Context, group meta.RepoRef, source *meta.Repository, pkg string, w *Want) (string, error) {
	if e.cfg.Commands != nil {
		return e.rememberHere(ctx, group, source.Ref.Name, pkg)
	}
	var last error = ErrUnreachable
	for _, server := range e.cfg.Peers.For(group.String() + "/" + pkg) {
		f, err := e.cfg.Peers.Ask(ctx, server, Question{Repo: source.Ref, Want: *w, Group: group.Name, Package: pkg}, nil)
		if err == nil {
			return f.Source, nil
		}
		if last = err; !errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			break
		}
	}
	return "", last
}

func (e *Engine) rememberHere(ctx context.Context, group meta.RepoRef, member, pkg string) (string, error) {
	receipt, err := e.cfg.Commands.Do(ctx, state.Origin{Principal: e.principal().Name, Node: e.cfg.Self},
		state.RememberSource{Group: group, Package: pkg, Member: member})
	if err != nil {
		return "", err
	}
	s, _ := receipt.Value.(state.Source)
	return s.Member, nil
}
