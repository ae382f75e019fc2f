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
// private, at home in this region. A push to a group goes to the member that it
// writes to, when the caller may push there: publish to what is returned. known is
// the record that the caller has, nil when it found none.
//
// Errors: meta.ErrNotFound with what to do about it; meta.ErrConflict when the
// repository is of another format; *meta.ReadOnlyError for a proxy, and a group
// without a member to write to; meta.ErrDenied; meta.ErrInvalid for the name.
func (c *Catalog) ForPush(ctx context.Context, by Caller, ref meta.RepoRef, format string, known *meta.Repository) (meta.Repository, error) {
	if known != nil {
		return c.ForChange(ctx, by, *known, format, meta.ActionPush)
	}
	if err := ref.Check(); err != nil {
		return meta.Repository{}, err
	}
	r, _, err := ask(ctx, c, by, meta.Bounded, state.GetRepository{Ref: ref})
	if err == nil {
		return c.ForChange(ctx, by, r, format, meta.ActionPush)
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
	return c.ForChange(ctx, by, r, format, meta.ActionPush)
}

// ForChange returns the repository that a change to known goes to: to a group's member
// that it writes to, when the caller may do the action there, else to itself.
//
// Errors: as ForPush, but nothing is created.
func (c *Catalog) ForChange(ctx context.Context, by Caller, known meta.Repository, format string, action meta.Action) (meta.Repository, error) {
	if known.Kind != meta.KindGroup || known.WriteTo == "" {
		return known, accepts(known, format)
	}
	ref := meta.RepoRef{Tenant: known.Ref.Tenant, Name: known.WriteTo}
	member, _, err := ask(ctx, c, by.inside(), meta.Bounded, state.GetRepository{Ref: ref})
	if err != nil {
		return member, fmt.Errorf("group %s writes to %s: %w", known.Ref, ref, err)
	}
	if !c.cfg.May(by.Who, action, &member) {
		return member, fmt.Errorf("group %s writes to %s, to which %s may not %s: %w", known.Ref, ref, by.Who.Name, action, meta.ErrDenied)
	}
	return member, accepts(member, format)
}

// The commands of one call in the order they may be sent; each takes a step of
// its own, staged references all from stepStage on.
const (
	stepCreate = iota
	stepLink
	stepMount
	stepRemove
	stepPublish
	stepClose
	stepStage
)

func accepts(r meta.Repository, format string) error {
	switch {
	case r.Format != format:
		return fmt.Errorf("repository %s holds %s, not %s: %w", r.Ref, r.Format, format, meta.ErrConflict)
	case r.Kind != meta.KindHosted:
		return &meta.ReadOnlyError{Repo: r.Ref, Kind: r.Kind}
	}
	return nil
}
