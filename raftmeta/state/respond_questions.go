package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// GetCompromise answers a compromise.
type GetCompromise struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetCompromise) Answer(v *View) (meta.Compromise, error) {
	c, err := findCompromise(v, q.ID)
	return value(c, err)
}

// ListCompromises lists compromises against the order of their ids, so the newest
// first, or only those that the leader works on. Page.After is an id.
type ListCompromises struct {
	Working bool `cbor:"1,keyasint,omitempty"`
	Page    Page `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListCompromises) Answer(v *View) ([]meta.Compromise, error) {
	if q.Working {
		return listed(v, inRespond(ofOpen), q.Page, findCompromise)
	}
	return list[meta.Compromise](v, newestFirst(inRespond(ofCompromises), q.Page), q.Page, nil)
}

// newestFirst spans the records below prefix against their order.
func newestFirst(prefix key, page Page) span {
	s := within(prefix)
	if page.After != "" {
		s.upper = slices.Clone(prefix).last(page.After)
	}
	s.reverse = true
	return s
}

// listed reads the records that an index names, newest first.
func listed[T any](v *View, prefix key, page Page, find func(reader, string) (*T, error)) (out []T, _ error) {
	limit, err := page.limit()
	if err != nil {
		return nil, err
	}
	for p, err := range v.scan(newestFirst(prefix, page)) {
		if err != nil {
			return nil, err
		}
		record, err := find(v, string(p.key[len(prefix):]))
		if err != nil {
			return nil, err
		}
		if out = append(out, *record); len(out) == limit {
			break
		}
	}
	return out, nil
}

// ListFindings lists what was found of a compromise, in the order in which it was.
// Page.After is a number, in decimal.
type ListFindings struct {
	ID   string `cbor:"1,keyasint,omitempty"`
	Page Page   `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListFindings) Answer(v *View) ([]meta.Finding, error) {
	if _, err := findCompromise(v, q.ID); err != nil {
		return nil, err
	}
	after, err := q.Page.number()
	if err != nil {
		return nil, err
	}
	prefix := keyFindings(q.ID)
	return list[meta.Finding](v, span{lower: slices.Clone(prefix).u64(after + 1), upper: prefix.after()}, q.Page, nil)
}

// GetFinding answers one finding of a compromise.
type GetFinding struct {
	ID     string `cbor:"1,keyasint,omitempty"`
	Number uint64 `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetFinding) Answer(v *View) (meta.Finding, error) {
	return one[meta.Finding](v, keyFinding(q.ID, q.Number), "finding", fmt.Sprintf("%d of compromise %s", q.Number, q.ID))
}

// ListQuarantined lists versions in quarantine, without their References: of a tenant,
// or of all.
type ListQuarantined struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	// After is the version to go on behind.
	After meta.VersionRef `cbor:"2,keyasint,omitzero"`
	Limit int             `cbor:"3,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListQuarantined) Answer(v *View) (out []meta.Version, _ error) {
	limit, err := Page{Limit: q.Limit}.limit()
	if err != nil {
		return nil, err
	}
	prefix := inRespond(ofQuarantined)
	if q.Tenant != "" {
		prefix = prefix.part(string(q.Tenant))
	}
	s := within(prefix)
	if q.After.Version != "" {
		s.lower = append(keyQuarantined(&meta.Version{Repo: q.After.Repo, Package: q.After.Package, Name: q.After.Version}), 0)
	}
	bytes := 0
	for p, err := range v.scan(s) {
		if err != nil {
			return nil, err
		}
		tenant, rest, ok1 := cutPart(p.key[2:])
		repo, rest, ok2 := cutPart(rest)
		pkg, rest, ok3 := cutPart(rest)
		if !ok1 || !ok2 || !ok3 {
			return nil, &StorageError{Cause: fmt.Errorf("key %x names no version", p.key)}
		}
		version, err := findVersion(v, meta.RepoRef{Tenant: meta.TenantName(tenant), Name: repo}, pkg, string(rest))
		if err != nil {
			return nil, err
		}
		withoutReferences(version)
		out = append(out, *version)
		if bytes += len(p.key) + 512; len(out) == limit || bytes > pageBytes {
			break
		}
	}
	return out, nil
}

// GetElevation answers an elevation.
type GetElevation struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q GetElevation) Answer(v *View) (meta.Elevation, error) {
	e, err := findElevation(v, q.ID)
	return value(e, err)
}

// ListElevations lists elevations against the order of their ids, so the newest first:
// all, or those that are asked for or active (Open), or those that are over and that
// nobody has reviewed. Page.After is an id.
type ListElevations struct {
	Open       bool `cbor:"1,keyasint,omitempty"`
	Unreviewed bool `cbor:"2,keyasint,omitempty"`
	Page       Page `cbor:"3,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListElevations) Answer(v *View) (out []meta.Elevation, _ error) {
	switch {
	case q.Unreviewed:
		return listed(v, inRespond(ofUnreviewed), q.Page, findElevation)
	case !q.Open:
		return list[meta.Elevation](v, newestFirst(inRespond(ofElevations), q.Page), q.Page, nil)
	}
	// At most maxWaiting wait, by when they are due.
	prefix := inRespond(ofPending)
	for p, err := range v.scan(within(prefix)) {
		if err != nil {
			return nil, err
		}
		e, err := findElevation(v, string(p.key[timed:]))
		if err != nil {
			return nil, err
		}
		out = append(out, *e)
	}
	return out, nil
}

// GetElevationPolicy answers what the cluster wants of elevations.
type GetElevationPolicy struct{}

// Answer implements Question.
func (GetElevationPolicy) Answer(v *View) (meta.ElevationPolicy, error) { return policy(v) }

// RespondWork is what a leader has to do.
type RespondWork struct {
	// Compromises that are worked on, at most 100.
	Compromises []meta.Compromise `cbor:"1,keyasint,omitempty"`
	// Due is when the next elevation ends or lapses, 0 when none waits.
	Due meta.Time `cbor:"2,keyasint,omitempty"`
}

// GetRespondWork answers what a leader has to do about compromises and elevations.
type GetRespondWork struct{}

// Answer implements Question.
func (GetRespondWork) Answer(v *View) (w RespondWork, err error) {
	if w.Compromises, err = listed(v, inRespond(ofOpen), Page{Limit: 100}, findCompromise); err != nil {
		return w, err
	}
	w.Due, err = nextDue(v)
	return w, err
}

// ListActs lists what a principal did, or one of its credentials when that is set, from
// Since to Until, by credential and in order. After is Next of the page before.
type ListActs struct {
	Principal  string    `cbor:"1,keyasint,omitempty"`
	Credential string    `cbor:"2,keyasint,omitempty"`
	Since      meta.Time `cbor:"3,keyasint,omitempty"`
	Until      meta.Time `cbor:"4,keyasint,omitempty"`
	After      []byte    `cbor:"5,keyasint,omitempty"`
	Limit      int       `cbor:"6,keyasint,omitempty"`
}

// ActsAnswer is a page of acts; Next is nil after the last.
type ActsAnswer struct {
	Acts []meta.Act `cbor:"1,keyasint,omitempty"`
	Next []byte     `cbor:"2,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListActs) Answer(v *View) (a ActsAnswer, err error) {
	limit, err := Page{Limit: q.Limit}.limit()
	if err != nil {
		return a, err
	}
	until := q.Until
	if until == 0 {
		until = meta.Time(1<<63 - 1)
	}
	who := actor{Principal: q.Principal, Credential: q.Credential, All: q.Credential == "", Since: q.Since}
	a.Acts, a.Next, err = actsOf(v, who, until, q.After, limit)
	return a, err
}
