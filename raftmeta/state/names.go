package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Names of packages, from level 6 on: a repository owns a name from its first publish
// for ever, also when the last version is deleted, so that an internal name never falls
// back to an upstream (DESIGN.md, Names and groups). What was deleted before level 6 is
// known by the tombstones of its versions.

// packagesLevel is the level of marks, summaries, spellings, groups and proxies.
const packagesLevel = 6

// Letters of inNames; [x] is a bare last part.
const (
	ofOwned   = 'n' // repository, [package] -> nameRecord: of packages without versions
	ofSources = 's' // group, [package] -> Source
	ofGroups  = 'm' // member, [group] -> nothing: the groups that a repository is in
	// Repository, package, version, [repository] -> nothing: where it was promoted to.
	ofPromotions = 'p'
)

func keyOwned(repo meta.RepoRef, pkg string) key {
	return append(below(string(repo.Tenant), inNames), ofOwned).part(repo.Name).last(pkg)
}

func keySource(group meta.RepoRef, pkg string) key {
	return append(below(string(group.Tenant), inNames), ofSources).part(group.Name).last(pkg)
}

func keyGroups(member meta.RepoRef) key {
	return append(below(string(member.Tenant), inNames), ofGroups).part(member.Name)
}

// nameRecord is the tombstone of a package: what its next version takes over.
type nameRecord struct {
	Spelling string    `cbor:"1,keyasint,omitempty"`
	Deleted  meta.Time `cbor:"2,keyasint,omitempty"`
	Revision uint64    `cbor:"3,keyasint,omitempty"` // of the package, when it went
}

// keepName leaves the tombstone of a package that goes.
func (t *tx) keepName(p *meta.Package) {
	if t.level >= packagesLevel {
		t.put(keyOwned(p.Repo, p.Name), nameRecord{Spelling: p.Spelling, Deleted: t.now, Revision: t.index})
	}
}

// takeName gives a package that comes what its tombstone says.
func (t *tx) takeName(p *meta.Package) error {
	if t.level < packagesLevel {
		return nil
	}
	k := keyOwned(p.Repo, p.Name)
	n, err := load[nameRecord](t, k)
	if err != nil || n == nil {
		return err
	}
	p.Spelling = n.Spelling
	t.del(k)
	return nil
}

// spell keeps the spelling of a new package, and refuses another one of an old one.
func (c Publish) spell(p *meta.Package) error {
	switch {
	case c.Spelling == "" || c.Spelling == p.Spelling || p.Spelling == "" && c.Spelling == p.Name:
		return nil
	case p.Versions == 0 && p.Spelling == "":
		p.Spelling = c.Spelling
		return nil
	case c.NewSpelling:
		return nil
	}
	have := p.Spelling
	if have == "" {
		have = p.Name
	}
	return fmt.Errorf("publish %s: the package is spelled %s here, not %s: %w",
		versionName(c.Version.Repo, c.Version.Package, c.Version.Name), have, c.Spelling, meta.ErrExists)
}

// owns reports whether a repository owns the name of a package; p is the package, nil
// when it has no version.
func owns(r reader, repo meta.RepoRef, pkg string) (p *meta.Package, owned bool, err error) {
	if p, err = load[meta.Package](r, keyPackage(repo, pkg)); err != nil || p != nil {
		return p, p != nil, err
	}
	if n, err := r.get(keyOwned(repo, pkg)); err != nil || n != nil {
		return nil, n != nil, err
	}
	for _, err := range r.scan(within(inRepo(inGraves, repo).part(pkg))) {
		return nil, err == nil, err
	}
	return nil, false, nil
}

// Source is the proxy member that a group takes a package from.
type Source struct {
	Member string    `cbor:"1,keyasint,omitempty" json:"member"`
	At     meta.Time `cbor:"2,keyasint,omitempty" json:"at"`
}

// RememberSource notes the proxy member of a group in which a package was found first; it
// stays when another names another one, until Forget, or until the member leaves the
// group. Result: Source, the one that holds.
//
// Errors: meta.ErrNotFound for the group; meta.ErrConflict when a hosted member owns the
// name; meta.ErrInvalid for a member that is no proxy of the group.
type RememberSource struct {
	Group   meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Member  string       `cbor:"3,keyasint,omitempty"`
	// Forget takes back what is remembered; Member is then empty.
	Forget bool `cbor:"4,keyasint,omitempty"`
}

// Type implements Command.
func (RememberSource) Type() uint16 { return typeRememberSource }

// Check implements Command.
func (c RememberSource) Check() error {
	if err := c.Group.Check(); err != nil {
		return err
	}
	if err := meta.CheckPackage(c.Package); err != nil {
		return err
	}
	if c.Forget {
		if c.Member != "" {
			return fmt.Errorf("source of %s in %s: forgotten and %s: %w", c.Package, c.Group, c.Member, meta.ErrInvalid)
		}
		return nil
	}
	return meta.RepoRef{Tenant: c.Group.Tenant, Name: c.Member}.Check()
}

func (c RememberSource) apply(t *tx) (any, error) {
	group, err := findRepository(t, c.Group)
	if err != nil {
		return nil, err
	}
	k := keySource(c.Group, c.Package)
	if c.Forget {
		t.del(k)
		t.emit(feed.Change{Kind: feed.KindSource, Repo: c.Group, Package: c.Package, Deleted: true})
		return Source{}, nil
	}
	members, err := membersOf(t, group)
	if err != nil {
		return nil, err
	}
	found := false
	for _, m := range members {
		switch m.Kind {
		case meta.KindHosted:
			_, owned, err := owns(t, m.Ref, c.Package)
			if err != nil {
				return nil, err
			}
			if owned {
				return nil, fmt.Errorf("source of %s in %s: %s owns the name: %w", c.Package, c.Group, m.Ref, meta.ErrConflict)
			}
		case meta.KindProxy:
			found = found || m.Ref.Name == c.Member
		}
	}
	if !found {
		return nil, fmt.Errorf("source of %s: %s is no proxy of group %s: %w", c.Package, c.Member, c.Group, meta.ErrInvalid)
	}
	old, err := load[Source](t, k)
	if err != nil {
		return nil, err
	}
	if old != nil {
		for _, m := range members {
			if m.Kind == meta.KindProxy && m.Ref.Name == old.Member {
				return *old, nil
			}
		}
	}
	s := Source{Member: c.Member, At: t.now}
	t.put(k, s)
	t.emit(feed.Change{Kind: feed.KindSource, Repo: c.Group, Package: c.Package, Name: c.Member})
	return s, nil
}

// GetSources asks where the packages of a name come from in a repository.
type GetSources struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
}

// SourcesAnswer says it. The hosted members that own the name answer, in order, and when
// there are any nobody else does; else Remembered, or the first of Proxies that has it.
// Of a repository that is no group, it is the only one.
type SourcesAnswer struct {
	Owners []Owner `cbor:"1,keyasint,omitempty"`
	// Hosted are the hosted members that do not own it, without Owners.
	Hosted  []meta.Repository `cbor:"2,keyasint,omitempty"`
	Proxies []meta.Repository `cbor:"3,keyasint,omitempty"`
	// Remembered is the name of one of Proxies, "" when none is remembered.
	Remembered string `cbor:"4,keyasint,omitempty"`
}

// Owner is a hosted repository that owns the name of a package. Package is the zero value
// while it has no version of it.
type Owner struct {
	Repository meta.Repository `cbor:"1,keyasint,omitempty"`
	Package    meta.Package    `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetSources) Answer(v *View) (a SourcesAnswer, _ error) {
	repo, err := findRepository(v, q.Repo)
	if err != nil {
		return a, err
	}
	members, err := membersOf(v, repo)
	if err != nil {
		return a, err
	}
	for _, m := range members {
		if m.Kind == meta.KindProxy {
			a.Proxies = append(a.Proxies, *m)
			continue
		}
		p, owned, err := owns(v, m.Ref, q.Package)
		switch {
		case err != nil:
			return a, err
		case !owned:
			a.Hosted = append(a.Hosted, *m)
			continue
		case p == nil:
			p = &meta.Package{}
		}
		a.Owners = append(a.Owners, Owner{Repository: *m, Package: *p})
	}
	if len(a.Owners) > 0 || repo.Kind != meta.KindGroup {
		return a, nil
	}
	s, err := load[Source](v, keySource(q.Repo, q.Package))
	if err != nil || s == nil {
		return a, err
	}
	for _, m := range a.Proxies {
		if m.Ref.Name == s.Member {
			a.Remembered = s.Member
		}
	}
	return a, nil
}

// Members asks for the repositories that a group stands for, in order, those of its
// groups in their place; of another repository itself.
type Members struct {
	Repo meta.RepoRef `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q Members) Answer(v *View) (a []meta.Repository, _ error) {
	repo, err := findRepository(v, q.Repo)
	if err != nil {
		return nil, err
	}
	members, err := membersOf(v, repo)
	for _, m := range members {
		a = append(a, *m)
	}
	return a, err
}
