package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// membersOf returns the hosted repositories and proxies that a group stands for, each
// once, in order; of another repository itself. A group in a group is where it stands;
// deeper ones there are none (checkGroup).
func membersOf(r reader, repo *meta.Repository) ([]*meta.Repository, error) {
	if repo.Kind != meta.KindGroup {
		return []*meta.Repository{repo}, nil
	}
	var out []*meta.Repository
	var add func(group *meta.Repository, deeper bool) error
	add = func(group *meta.Repository, deeper bool) error {
		for _, name := range group.Members {
			m, err := load[meta.Repository](r, keyRepository(meta.RepoRef{Tenant: group.Ref.Tenant, Name: name}))
			switch {
			case err != nil:
				return err
			case m == nil || slices.ContainsFunc(out, func(o *meta.Repository) bool { return o.Ref == m.Ref }):
			case m.Kind != meta.KindGroup:
				out = append(out, m)
			case deeper:
				if err := add(m, false); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return out, add(repo, true)
}

// groupsOf returns the groups that a repository is a member of.
func groupsOf(r reader, member meta.RepoRef) (names []string, _ error) {
	prefix := keyGroups(member)
	for p, err := range r.scan(within(prefix)) {
		if err != nil {
			return nil, err
		}
		names = append(names, string(p.key[len(prefix):]))
	}
	return names, nil
}

// checkKindFields checks, of the settings that only some kinds have, the form.
//
// Errors: meta.ErrInvalid.
func checkKindFields(r *meta.Repository) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("repository %s: %s: %w", r.Ref, fmt.Sprintf(format, args...), meta.ErrInvalid)
	}
	if r.Upstream != nil {
		if r.Kind != meta.KindProxy {
			return fail("a %s has no upstream, only a proxy has", r.Kind)
		}
		if err := r.Upstream.Check(); err != nil {
			return fmt.Errorf("repository %s: %w", r.Ref, err)
		}
	}
	if r.Kind != meta.KindGroup && (len(r.Members) > 0 || r.WriteTo != "") {
		return fail("a %s has no members, only a group has", r.Kind)
	}
	if len(r.Members) > meta.MaxMembers {
		return fail("%d members are over the limit of %d", len(r.Members), meta.MaxMembers)
	}
	for i, name := range r.Members {
		if err := (meta.RepoRef{Tenant: r.Ref.Tenant, Name: name}).Check(); err != nil {
			return fmt.Errorf("repository %s: member: give the name of a repository of %s: %w", r.Ref, r.Ref.Tenant, err)
		}
		if slices.Contains(r.Members[:i], name) {
			return fail("member %s comes twice", name)
		}
	}
	if r.WriteTo != "" && !slices.Contains(r.Members, r.WriteTo) {
		return fail("it writes to %s, which is no member", r.WriteTo)
	}
	return nil
}

// checkKind checks a repository as it is to be against the others, from level 6 on: a
// proxy has an upstream and a group members, which are there, of its format, as public as
// it is, and no groups of groups.
//
// Errors: meta.ErrInvalid, meta.ErrConflict.
func (t *tx) checkKind(r *meta.Repository) error {
	if t.level < packagesLevel {
		return nil
	}
	fail := func(format string, args ...any) error {
		return fmt.Errorf("repository %s: %s: %w", r.Ref, fmt.Sprintf(format, args...), meta.ErrInvalid)
	}
	if r.Kind == meta.KindProxy && r.Upstream == nil {
		return fail("a proxy needs the URL of its upstream")
	}
	groups, err := groupsOf(t, r.Ref)
	if err != nil {
		return err
	}
	if r.Visibility != meta.VisibilityPublic {
		for _, name := range groups {
			g, err := load[meta.Repository](t, keyRepository(meta.RepoRef{Tenant: r.Ref.Tenant, Name: name}))
			if err != nil {
				return err
			}
			if g != nil && g.Visibility == meta.VisibilityPublic {
				return fmt.Errorf("repository %s: it is a member of %s, which everybody may read: take it out of the group first: %w", r.Ref, g.Ref, meta.ErrConflict)
			}
		}
	}
	if r.Kind != meta.KindGroup {
		return nil
	}
	if len(r.Members) == 0 {
		return fail("a group needs members")
	}
	for _, name := range r.Members {
		m, err := load[meta.Repository](t, keyRepository(meta.RepoRef{Tenant: r.Ref.Tenant, Name: name}))
		if err != nil {
			return err
		}
		switch {
		case m == nil:
			return fail("member %s/%s does not exist, create it first", r.Ref.Tenant, name)
		case m.Ref == r.Ref:
			return fail("it cannot be a member of itself")
		case m.Format != r.Format:
			return fail("member %s holds %s, not %s", m.Ref, m.Format, r.Format)
		case r.Visibility == meta.VisibilityPublic && m.Visibility != meta.VisibilityPublic:
			return fail("everybody may read it, and member %s is private: make that public or the group private", m.Ref)
		case m.Kind == meta.KindGroup && len(groups) > 0:
			return fail("it is a member of %s/%s and would have a group, %s, as a member: groups are at most two deep", r.Ref.Tenant, groups[0], m.Ref)
		case name == r.WriteTo && m.Kind != meta.KindHosted:
			return fail("it cannot write to %s, which is a %s: name a hosted member", m.Ref, m.Kind)
		}
		if m.Kind != meta.KindGroup {
			continue
		}
		for _, inner := range m.Members {
			i, err := load[meta.Repository](t, keyRepository(meta.RepoRef{Tenant: r.Ref.Tenant, Name: inner}))
			if err != nil {
				return err
			}
			if i != nil && i.Kind == meta.KindGroup {
				return fail("member %s has a group, %s, as a member: groups are at most two deep", m.Ref, i.Ref)
			}
		}
	}
	return nil
}

// indexMembers keeps the groups of members up to date; nil is a group that goes.
func (t *tx) indexMembers(ref meta.RepoRef, old, members []string) {
	for _, name := range old {
		if !slices.Contains(members, name) {
			t.del(keyGroups(meta.RepoRef{Tenant: ref.Tenant, Name: name}).last(ref.Name))
		}
	}
	for _, name := range members {
		if !slices.Contains(old, name) {
			t.mark(keyGroups(meta.RepoRef{Tenant: ref.Tenant, Name: name}).last(ref.Name))
		}
	}
}
