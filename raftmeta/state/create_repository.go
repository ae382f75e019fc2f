package state

import (
	"fmt"
	"reflect"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// CreateRepository adds a repository, and its tenant too when CreateTenant is set
// (dev). A repository that is equal in format, kind, class, environment, home,
// second region, visibility, immutability, regions, copies, upstream and members is
// idempotent. Result: meta.Repository.
//
// Errors: meta.ErrExists for a different repository of the name,
// meta.ErrNotFound for an unknown tenant, meta.ErrInvalid for members that do not fit.
type CreateRepository struct {
	Repository   meta.Repository `cbor:"1,keyasint,omitempty"`
	CreateTenant bool            `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (CreateRepository) Type() uint16 { return typeCreateRepository }

// Check implements Command.
func (c CreateRepository) Check() error {
	r := c.Repository
	if err := r.Ref.Check(); err != nil {
		return err
	}
	if err := checkTenant(r.Ref.Tenant); err != nil {
		return err
	}
	if r.Format == "" || len(r.Format) > 32 {
		return fmt.Errorf("repository %s: format %q: %w", r.Ref, r.Format, meta.ErrInvalid)
	}
	return checkRepository(r)
}

// since implements newer.
func (c CreateRepository) since() uint32 {
	if r := c.Repository; r.Upstream != nil || len(r.Members) > 0 || r.WriteTo != "" {
		return packagesLevel
	}
	if c.Repository.DegradedReadMax != nil {
		return rightsLevel
	}
	if len(c.Repository.Regions) > 0 || c.Repository.CopiesBeforeAck > 0 {
		return backlogLevel
	}
	return 0
}

// checkRepository checks what SetRepository may change too.
func checkRepository(r meta.Repository) error {
	switch {
	case !slices.Contains([]meta.Kind{meta.KindHosted, meta.KindProxy, meta.KindGroup}, r.Kind):
		return fmt.Errorf("repository %s: kind %q: use hosted, proxy or group: %w", r.Ref, r.Kind, meta.ErrInvalid)
	case !slices.Contains([]meta.Class{meta.ClassCritical, meta.ClassStandard, meta.ClassCold}, r.Class):
		return fmt.Errorf("repository %s: class %q: use critical, standard or cold: %w", r.Ref, r.Class, meta.ErrInvalid)
	case r.Visibility != meta.VisibilityPrivate && r.Visibility != meta.VisibilityPublic:
		return fmt.Errorf("repository %s: visibility %q: use private or public: %w", r.Ref, r.Visibility, meta.ErrInvalid)
	case len(r.Environment) > 63:
		return fmt.Errorf("repository %s: environment of %d bytes, at most 63: %w", r.Ref, len(r.Environment), meta.ErrInvalid)
	case r.Second != "" && r.Second == r.Home:
		return fmt.Errorf("repository %s: second region %s is its home: %w", r.Ref, r.Second, meta.ErrInvalid)
	}
	if len(r.Regions) > meta.MaxRepositoryRegions || r.CopiesBeforeAck > meta.MaxCopiesBeforeAck {
		return fmt.Errorf("repository %s: %d regions and %d copies before acknowledgement, at most %d and %d: %w",
			r.Ref, len(r.Regions), r.CopiesBeforeAck, meta.MaxRepositoryRegions, meta.MaxCopiesBeforeAck, meta.ErrInvalid)
	}
	if d := r.DegradedReadMax; d != nil && (*d < 0 || *d > meta.MaxDegradedRead) {
		return fmt.Errorf("repository %s: reads without a server for %s, use 0s to %s: %w", r.Ref, *d, meta.MaxDegradedRead, meta.ErrInvalid)
	}
	for i, region := range r.Regions {
		if err := meta.CheckRegion(region); err != nil {
			return fmt.Errorf("repository %s: regions: %w", r.Ref, err)
		}
		if i > 0 && region <= r.Regions[i-1] {
			return fmt.Errorf("repository %s: regions: give each once, sorted: %w", r.Ref, meta.ErrInvalid)
		}
	}
	if err := meta.CheckRegion(r.Home); err != nil {
		return fmt.Errorf("repository %s: home: %w", r.Ref, err)
	}
	if r.Second != "" {
		if err := meta.CheckRegion(r.Second); err != nil {
			return fmt.Errorf("repository %s: second: %w", r.Ref, err)
		}
	}
	return checkKindFields(&r)
}

func (c CreateRepository) apply(t *tx) (any, error) {
	ref := c.Repository.Ref
	old, err := load[meta.Repository](t, keyRepository(ref))
	if err != nil {
		return nil, err
	}
	repo := c.Repository
	normalize(&repo)
	if old != nil {
		repo.Created, repo.CreatedBy, repo.Revision = old.Created, old.CreatedBy, old.Revision
		if !reflect.DeepEqual(repo, *old) {
			return nil, fmt.Errorf("create repository %s: it exists with other settings, change them with `shoal repo set`: %w", ref, meta.ErrExists)
		}
		return *old, nil
	}
	if c.CreateTenant {
		if _, err := t.createTenant(ref.Tenant, ""); err != nil {
			return nil, err
		}
	} else if _, err := find[meta.Tenant](t, keyTenant(ref.Tenant), "tenant", ref.Tenant); err != nil {
		return nil, err
	}
	if err := t.needRegions(repo, meta.Repository{}); err != nil {
		return nil, err
	}
	if err := t.checkKind(&repo); err != nil {
		return nil, err
	}
	repo.Created, repo.CreatedBy, repo.Revision = t.now, t.origin.Principal, t.index
	t.indexMembers(ref, nil, repo.Members)
	t.putRepository(&repo)
	return repo, nil
}

// normalize makes lists without entries nil, as they come back from the log.
func normalize(r *meta.Repository) {
	if len(r.Regions) == 0 {
		r.Regions = nil
	}
	if len(r.Members) == 0 {
		r.Members = nil
	}
	if u := r.Upstream; u != nil {
		same := *u
		if len(same.Allow) == 0 {
			same.Allow = nil
		}
		if len(same.Block) == 0 {
			same.Block = nil
		}
		r.Upstream = &same
	}
}

// needRegions refuses a repository in regions that are not there, or that are being
// removed and that it was not in before.
func (t *tx) needRegions(r, old meta.Repository) error {
	need := func(name, before meta.RegionName) error {
		if name == before {
			return t.needRegion(name)
		}
		return t.needLastingRegion(name)
	}
	if err := need(r.Home, old.Home); err != nil {
		return fmt.Errorf("repository %s: home: %w", r.Ref, err)
	}
	if r.Second != "" {
		if err := need(r.Second, old.Second); err != nil {
			return fmt.Errorf("repository %s: second: %w", r.Ref, err)
		}
	}
	for _, region := range r.Regions {
		before := meta.RegionName("")
		if slices.Contains(old.Regions, region) {
			before = region
		}
		if err := need(region, before); err != nil {
			return fmt.Errorf("repository %s: regions: %w", r.Ref, err)
		}
	}
	return nil
}

func (t *tx) putRepository(r *meta.Repository) {
	t.put(keyRepository(r.Ref), r)
	t.emit(feed.Change{Kind: feed.KindRepository, Repo: r.Ref})
}
