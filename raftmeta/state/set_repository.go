package state

import (
	"reflect"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// SetRepository changes what may change of a repository; nil leaves as it is. A
// new class or region holds for all versions: what they use is settled anew. Result:
// meta.Repository.
//
// Errors: meta.ErrNotFound, meta.ErrInvalid.
type SetRepository struct {
	Ref         meta.RepoRef     `cbor:"1,keyasint,omitempty"`
	Class       *meta.Class      `cbor:"2,keyasint,omitempty"`
	Home        *meta.RegionName `cbor:"3,keyasint,omitempty"`
	Second      *meta.RegionName `cbor:"4,keyasint,omitempty"`
	Visibility  *meta.Visibility `cbor:"5,keyasint,omitempty"`
	Immutable   *bool            `cbor:"6,keyasint,omitempty"`
	Environment *string          `cbor:"7,keyasint,omitempty"`
	// Regions, of level 4, replace those of the class; an empty list gives them back.
	Regions *[]meta.RegionName `cbor:"8,keyasint,omitempty"`
	// CopiesBeforeAck is of level 4.
	CopiesBeforeAck *uint32 `cbor:"9,keyasint,omitempty"`
	// DegradedReadMax, of level 5, is 0 to meta.MaxDegradedRead.
	DegradedReadMax *time.Duration `cbor:"10,keyasint,omitempty"`
	// Upstream changes that of a proxy. From level 6 on, as those below.
	Upstream *UpstreamChange `cbor:"11,keyasint,omitempty"`
	// Members and WriteTo are a group's.
	Members *[]string `cbor:"12,keyasint,omitempty"`
	WriteTo *string   `cbor:"13,keyasint,omitempty"`
}

// UpstreamChange changes the upstream of a proxy; nil leaves as it is.
type UpstreamChange struct {
	URL           *string        `cbor:"1,keyasint,omitempty"`
	Credential    *string        `cbor:"2,keyasint,omitempty"`
	Allow         *[]string      `cbor:"3,keyasint,omitempty"`
	Block         *[]string      `cbor:"4,keyasint,omitempty"`
	MinReleaseAge *time.Duration `cbor:"5,keyasint,omitempty"`
	DocumentTTL   *time.Duration `cbor:"6,keyasint,omitempty"`
	NegativeTTL   *time.Duration `cbor:"7,keyasint,omitempty"`
}

// change returns u as it is to be.
func (c *UpstreamChange) change(u *meta.Upstream) *meta.Upstream {
	if c == nil {
		return u
	}
	var to meta.Upstream
	if u != nil {
		to = *u
	}
	change(&to.URL, c.URL)
	change(&to.Credential, c.Credential)
	change(&to.Allow, c.Allow)
	change(&to.Block, c.Block)
	change(&to.MinReleaseAge, c.MinReleaseAge)
	change(&to.DocumentTTL, c.DocumentTTL)
	change(&to.NegativeTTL, c.NegativeTTL)
	return &to
}

// Type implements Command.
func (SetRepository) Type() uint16 { return typeSetRepository }

// Check implements Command.
func (c SetRepository) Check() error { return c.Ref.Check() }

// since implements newer.
func (c SetRepository) since() uint32 {
	if c.Upstream != nil || c.Members != nil || c.WriteTo != nil {
		return packagesLevel
	}
	if c.DegradedReadMax != nil {
		return rightsLevel
	}
	if c.Regions != nil || c.CopiesBeforeAck != nil {
		return backlogLevel
	}
	return 0
}

func (c SetRepository) apply(t *tx) (any, error) {
	repo, err := findRepository(t, c.Ref)
	if err != nil {
		return nil, err
	}
	old := *repo
	change(&repo.Class, c.Class)
	change(&repo.Home, c.Home)
	change(&repo.Second, c.Second)
	change(&repo.Visibility, c.Visibility)
	change(&repo.Immutable, c.Immutable)
	change(&repo.Environment, c.Environment)
	change(&repo.Regions, c.Regions)
	change(&repo.CopiesBeforeAck, c.CopiesBeforeAck)
	if c.DegradedReadMax != nil {
		repo.DegradedReadMax = c.DegradedReadMax
	}
	repo.Upstream = c.Upstream.change(repo.Upstream)
	change(&repo.Members, c.Members)
	change(&repo.WriteTo, c.WriteTo)
	normalize(repo)
	if reflect.DeepEqual(*repo, old) {
		return old, nil
	}
	if err := checkRepository(*repo); err != nil {
		return nil, err
	}
	if err := t.needRegions(*repo, old); err != nil {
		return nil, err
	}
	if err := t.checkKind(repo); err != nil {
		return nil, err
	}
	repo.Revision = t.index
	t.indexMembers(repo.Ref, old.Members, repo.Members)
	t.putRepository(repo)
	if repo.Class != old.Class || repo.Home != old.Home || repo.Second != old.Second || !slices.Equal(repo.Regions, old.Regions) {
		if err := t.unsettle(repo.Ref, true); err != nil {
			return nil, err
		}
	}
	if old.Visibility == meta.VisibilityPublic && repo.Visibility != old.Visibility {
		t.bumpAccess()
	}
	return *repo, nil
}

func change[T any](field, to *T) {
	if to != nil {
		*field = *to
	}
}
