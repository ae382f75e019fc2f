package catalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Repository looks a repository up.
//
// Errors: meta.ErrNotFound, confirmed; meta.ErrUnavailable.
func (c *Catalog) Repository(ctx context.Context, by Caller, ref meta.RepoRef) (meta.Repository, meta.AsOf, error) {
	r, asOf, err := ask(ctx, c, by, meta.Bounded, state.GetRepository{Ref: ref})
	if err != nil {
		return r, asOf, about(err, "repository %s", ref)
	}
	return r, asOf, nil
}

// Listed reports whether a listing for who may show r.
func (c *Catalog) Listed(who meta.Principal, r *meta.Repository) bool {
	return c.cfg.May(who, meta.ActionList, r)
}

// ForPush returns the repository that a push of a format goes to, and creates
// it, with its tenant, where the first push does so: hosted, class standard,
// private, at home in this region. known is the record that the caller has, nil
// when it found none.
//
// Errors: meta.ErrNotFound with what to do about it; meta.ErrConflict when the
// repository is of another format or not hosted; meta.ErrInvalid for the name.
func (c *Catalog) ForPush(ctx context.Context, by Caller, ref meta.RepoRef, format string, known *meta.Repository) (meta.Repository, error) {
	if known != nil {
		return *known, accepts(*known, format)
	}
	if err := ref.Check(); err != nil {
		return meta.Repository{}, err
	}
	r, _, err := ask(ctx, c, by, meta.Bounded, state.GetRepository{Ref: ref})
	if err == nil {
		return r, accepts(r, format)
	}
	if !errors.Is(err, meta.ErrNotFound) {
		return r, fmt.Errorf("repository %s: %w", ref, err)
	}
	if !c.cfg.AutoCreate {
		return r, fmt.Errorf("repository %s does not exist, create it with `shoal repo create %s --format %s`: %w", ref, ref, format, meta.ErrNotFound)
	}
	var second meta.RegionName
	if c.cfg.Second != nil {
		second = c.cfg.Second(ctx, c.cfg.Region)
	}
	_, err = c.do(ctx, by, stepCreate, state.CreateRepository{
		Repository: meta.Repository{
			Ref: ref, Format: format, Kind: meta.KindHosted, Class: meta.ClassStandard,
			Home: c.cfg.Region, Second: second, Visibility: meta.VisibilityPrivate,
		},
		CreateTenant: true,
	})
	// Another push may have created it meanwhile, with another home.
	if err != nil && !errors.Is(err, meta.ErrExists) {
		return r, fmt.Errorf("create repository %s: %w", ref, err)
	}
	if r, _, err = ask(ctx, c, by, meta.Strong, state.GetRepository{Ref: ref}); err != nil {
		return r, fmt.Errorf("repository %s: %w", ref, err)
	}
	return r, accepts(r, format)
}

// The commands of one call in the order they may be sent; each takes a step of
// its own, staged references all from stepStage on.
const (
	stepCreate = iota
	stepLink
	stepMount
	stepRemove
	stepPublish
	stepStage
)

func accepts(r meta.Repository, format string) error {
	switch {
	case r.Format != format:
		return fmt.Errorf("repository %s holds %s, not %s: %w", r.Ref, r.Format, format, meta.ErrConflict)
	case r.Kind != meta.KindHosted:
		return fmt.Errorf("repository %s is a %s, push to a hosted one: %w", r.Ref, r.Kind, meta.ErrConflict)
	}
	return nil
}
