package state

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Elevations: a request waits for approvals, then gives a role until a time that the
// leader's clock decides. Its rights carry that time, so every gateway stops at it by
// itself; mayAct refuses what comes later; ExpireElevations, which any leader sends,
// writes down that it is over.

func keyElevation(id string) key       { return inRespond(ofElevations).last(id) }
func keyElevated(principal string) key { return inRespond(ofElevated).part(principal) }
func keyUnreviewed(id string) key      { return inRespond(ofUnreviewed).last(id) }
func keyDue(e *meta.Elevation) key     { return inRespond(ofPending).u64(clock(e.Expires)).last(e.ID) }

func findElevation(r reader, id string) (*meta.Elevation, error) {
	return find[meta.Elevation](r, keyElevation(id), "elevation", id)
}

// putElevation stores a changed elevation with its entries in the indexes. before is as
// it was, nil for a new one.
func (t *tx) putElevation(before, e *meta.Elevation) error {
	waits := func(e *meta.Elevation) bool {
		return e.State == meta.ElevationRequested || e.State == meta.ElevationActive
	}
	if before != nil && waits(before) {
		t.del(keyDue(before))
	}
	if waits(e) {
		t.mark(keyDue(e))
	}
	was, is := before != nil && before.State == meta.ElevationActive, e.State == meta.ElevationActive
	switch k := keyElevated(e.Principal).last(e.ID); {
	case is && !was:
		t.mark(k)
	case was && !is:
		t.del(k)
	}
	if e.Unreviewed() {
		t.mark(keyUnreviewed(e.ID))
	} else if before != nil && before.Unreviewed() {
		t.del(keyUnreviewed(e.ID))
	}
	e.Revision = t.index
	t.put(keyElevation(e.ID), e)
	t.emit(feed.Change{Kind: feed.KindRespond, Name: e.ID})
	if was != is {
		t.bumpAccess()
	}
	return nil
}

// policy returns what the cluster wants of elevations, complete.
func policy(r reader) (meta.ElevationPolicy, error) {
	p, err := load[meta.ElevationPolicy](r, inRespond(ofPolicy))
	if err != nil || p == nil {
		p = &meta.ElevationPolicy{}
	}
	if p.Approvers == 0 {
		p.Approvers = 1
	}
	if p.MaxTTL == 0 {
		p.MaxTTL = meta.MaxElevation
	}
	return *p, err
}

// elevationBinding is in front of an elevation's id where a right says where it is from.
const elevationBinding = "elevation:"

// elevationsOf returns the rights that active elevations give a principal. They carry
// when they end.
func elevationsOf(r reader, principal string) (rights []meta.Right, _ error) {
	prefix := keyElevated(principal)
	for p, err := range r.scan(within(prefix)) {
		if err != nil {
			return nil, err
		}
		e, err := findElevation(r, string(p.key[len(prefix):]))
		if err != nil {
			return nil, err
		}
		actions, err := roleActions(r, e.Role)
		if err != nil {
			return nil, err
		}
		if len(actions) == 0 {
			continue // The role was removed since.
		}
		rights = append(rights, meta.Right{
			Actions: actions, Repository: e.Scope, Environment: e.Environment,
			Expires: e.Expires, Role: e.Role, Binding: elevationBinding + e.ID, Elevated: true,
		})
	}
	return rights, nil
}

// endElevations ends the active elevations of a principal that goes, each as by its own
// command.
func (t *tx) endElevations(principal string) error {
	prefix := keyElevated(principal)
	var active []*meta.Elevation
	for p, err := range t.scan(within(prefix)) {
		if err != nil {
			return err
		}
		e, err := findElevation(t, string(p.key[len(prefix):]))
		if err != nil {
			return err
		}
		active = append(active, e)
	}
	for _, e := range active {
		before := *e
		e.State, e.Ended, e.EndedBy = meta.ElevationEnded, t.now, t.origin.Principal
		if e.Expires <= t.now {
			e.State, e.Ended, e.EndedBy = meta.ElevationExpired, e.Expires, ""
		}
		if err := t.putElevation(&before, e); err != nil {
			return err
		}
	}
	return nil
}

// person refuses principals that are no people: only they answer for a broken glass.
func person(principal string) error {
	if kind, _ := meta.SplitPrincipal(principal); kind != meta.KindUser && kind != meta.KindBootstrap {
		return fmt.Errorf("principal %s: only people break the glass: %w", principal, meta.ErrDenied)
	}
	return nil
}

// RequestElevation asks for a role on a scope, for a while. Who asks is the origin's
// principal; whether it may ask is the gate's to judge. Result: meta.Elevation.
//
// Errors: meta.ErrNotFound for the role; meta.ErrInvalid for a time above the policy's;
// meta.ErrDenied for who is no person; meta.ErrExists; meta.ErrConflict for one too many.
type RequestElevation struct {
	ID          string        `cbor:"1,keyasint,omitempty"`
	Role        string        `cbor:"2,keyasint,omitempty"`
	Scope       string        `cbor:"3,keyasint,omitempty"`
	Environment string        `cbor:"4,keyasint,omitempty"`
	Reason      string        `cbor:"5,keyasint,omitempty"`
	TTL         time.Duration `cbor:"6,keyasint,omitempty"`
}

// minElevation is the shortest elevation, maxWaiting how many requests and active
// elevations there are at most in the cluster.
const (
	minElevation = time.Second
	maxWaiting   = 1000
)

// Type implements Command.
func (RequestElevation) Type() uint16 { return typeRequestElevation }

// Check implements Command.
func (c RequestElevation) Check() error {
	switch {
	case c.ID == "" || len(c.ID) > 64:
		return fmt.Errorf("request an elevation: the id %q has not 1 to 64 bytes: %w", c.ID, meta.ErrInvalid)
	case c.Role == "" || len(c.Role) > 2*64:
		return fmt.Errorf("request an elevation: role %q: name one of `shoal role list`: %w", c.Role, meta.ErrInvalid)
	case c.TTL < minElevation || c.TTL > meta.MaxElevation:
		return fmt.Errorf("request an elevation of %v: use %v to %v: %w", c.TTL, minElevation, meta.MaxElevation, meta.ErrInvalid)
	}
	if err := meta.CheckPattern(c.Scope); err != nil {
		return err
	}
	if err := meta.CheckEnvironmentPattern(c.Environment); err != nil {
		return err
	}
	return meta.CheckReason(c.Reason)
}

func (c RequestElevation) apply(t *tx) (any, error) {
	if err := person(t.origin.Principal); err != nil {
		return nil, err
	}
	if _, err := findRole(t, c.Role); err != nil {
		return nil, err
	}
	if tenant := meta.RoleTenant(c.Role); tenant != "" && meta.PatternTenant(c.Scope) != tenant {
		return nil, fmt.Errorf("request an elevation: role %s reaches no further than %s/*: %w", c.Role, tenant, meta.ErrInvalid)
	}
	p, err := policy(t)
	if err != nil {
		return nil, err
	}
	if c.TTL > p.MaxTTL {
		return nil, fmt.Errorf("request an elevation of %v: the cluster allows %v: %w", c.TTL, p.MaxTTL, meta.ErrInvalid)
	}
	if taken, err := t.hasKey(keyElevation(c.ID)); err != nil || taken {
		if err == nil {
			err = fmt.Errorf("request elevation %s: the id is taken: %w", c.ID, meta.ErrExists)
		}
		return nil, err
	}
	waiting := 0
	for _, err := range t.scan(within(inRespond(ofPending))) {
		if err != nil {
			return nil, err
		}
		if waiting++; waiting >= maxWaiting {
			return nil, fmt.Errorf("request an elevation: %d are asked for or active already: %w", waiting, meta.ErrConflict)
		}
	}
	e := &meta.Elevation{
		ID: c.ID, Principal: t.origin.Principal, Credential: t.origin.TokenID, Role: c.Role, Scope: c.Scope, Environment: c.Environment,
		Reason: c.Reason, TTL: c.TTL, State: meta.ElevationRequested, Requested: t.now, Need: p.Approvers,
		Expires: t.now + meta.Time(meta.MaxElevation),
	}
	return *e, t.putElevation(nil, e)
}

// ElevationWord is what is said of an elevation.
type ElevationWord string

// Words on elevations.
const (
	ElevationApprove ElevationWord = "approve"
	ElevationRefuse  ElevationWord = "refuse"
	ElevationEnd     ElevationWord = "end"
	ElevationReview  ElevationWord = "review"
)

// DecideElevation is a word of the origin's principal on an elevation. Approvals are of
// others than who asked, and of different ones; so is the review of what was done, once
// it is over. Nobody approves with a right that is itself an elevation's. Result:
// meta.Elevation.
//
// Errors: meta.ErrNotFound; meta.ErrDenied; meta.ErrConflict when it is not at that point.
type DecideElevation struct {
	ID   string        `cbor:"1,keyasint,omitempty"`
	Word ElevationWord `cbor:"2,keyasint,omitempty"`
	Note string        `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (DecideElevation) Type() uint16 { return typeDecideElevation }

// Check implements Command.
func (c DecideElevation) Check() error {
	if c.ID == "" {
		return fmt.Errorf("decide on an elevation: no id: %w", meta.ErrInvalid)
	}
	switch c.Word {
	case ElevationApprove, ElevationRefuse, ElevationEnd:
		if c.Note == "" {
			return nil
		}
		return meta.CheckReason(c.Note)
	case ElevationReview:
		return meta.CheckReason(c.Note)
	}
	return fmt.Errorf("decide on an elevation: %q: use approve, refuse, end or review: %w", c.Word, meta.ErrInvalid)
}

func (c DecideElevation) apply(t *tx) (any, error) {
	e, err := findElevation(t, c.ID)
	if err != nil {
		return nil, err
	}
	before := *e
	refuse := func(kind error, why string) (any, error) {
		return nil, fmt.Errorf("%s elevation %s: %s: %w", c.Word, c.ID, why, kind)
	}
	if err := person(t.origin.Principal); err != nil {
		return nil, err
	}
	own := t.origin.Principal == e.Principal
	switch c.Word {
	case ElevationApprove:
		switch {
		case e.State != meta.ElevationRequested || e.Expires <= t.now:
			return refuse(meta.ErrConflict, "it is "+string(stateAt(e, t.now)))
		case own:
			return refuse(meta.ErrDenied, "who asks does not approve, somebody else has to")
		case t.origin.Elevation != "":
			return refuse(meta.ErrDenied, "an elevation does not approve another")
		case slices.ContainsFunc(e.Approvals, func(a meta.Approval) bool { return a.By == t.origin.Principal }):
			return refuse(meta.ErrConflict, "you have approved it, another has to")
		}
		e.Approvals = append(slices.Clone(e.Approvals), meta.Approval{By: t.origin.Principal, At: t.now, Note: c.Note})
		if len(e.Approvals) >= int(e.Need) {
			e.State, e.Began, e.Expires = meta.ElevationActive, t.now, t.now+meta.Time(e.TTL)
		}
	case ElevationRefuse:
		if e.State != meta.ElevationRequested {
			return refuse(meta.ErrConflict, "it is "+string(stateAt(e, t.now)))
		}
		e.State, e.Ended, e.EndedBy = meta.ElevationRefused, t.now, t.origin.Principal
	case ElevationEnd:
		if e.State != meta.ElevationActive {
			return refuse(meta.ErrConflict, "it is "+string(e.State))
		}
		e.State, e.Ended, e.EndedBy = meta.ElevationEnded, t.now, t.origin.Principal
		if e.Expires <= t.now {
			e.State, e.Ended, e.EndedBy = meta.ElevationExpired, e.Expires, ""
		}
	case ElevationReview:
		switch {
		case !e.Unreviewed():
			return refuse(meta.ErrConflict, "there is nothing to review now")
		case own:
			return refuse(meta.ErrDenied, "somebody else has to review what you did")
		}
		e.Review = &meta.Approval{By: t.origin.Principal, At: t.now, Note: c.Note}
	}
	return *e, t.putElevation(&before, e)
}

// stateAt is the state that e has at now, whether that was written down or not.
func stateAt(e *meta.Elevation, now meta.Time) meta.ElevationState {
	switch {
	case e.State == meta.ElevationRequested && e.Expires <= now:
		return meta.ElevationLapsed
	case e.State == meta.ElevationActive && e.Expires <= now:
		return meta.ElevationExpired
	}
	return e.State
}

// ExpireElevations ends those whose time is over by the leader's clock, at most 100.
type ExpireElevations struct{}

// Type implements Command.
func (ExpireElevations) Type() uint16 { return typeExpireElevations }

// Check implements Command.
func (ExpireElevations) Check() error { return nil }

func (ExpireElevations) apply(t *tx) (any, error) {
	const most = 100
	due, err := dueElevations(t, t.now, most)
	if err != nil {
		return nil, err
	}
	for _, e := range due {
		before := *e
		e.State, e.Ended = stateAt(e, t.now), e.Expires
		if err := t.putElevation(&before, e); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// dueElevations returns those that end, or lapse, at now or before.
func dueElevations(r reader, now meta.Time, most int) (due []*meta.Elevation, _ error) {
	prefix := inRespond(ofPending)
	for p, err := range r.scan(span{lower: prefix, upper: inRespond(ofPending).u64(clock(now) + 1)}) {
		if err != nil {
			return nil, err
		}
		if len(p.key) < timed {
			return nil, &StorageError{Cause: fmt.Errorf("key %x has no time", p.key)}
		}
		e, err := findElevation(r, string(p.key[timed:]))
		if err != nil {
			return nil, err
		}
		if due = append(due, e); len(due) == most {
			break
		}
	}
	return due, nil
}

// nextDue returns when the next elevation ends or lapses, 0 when none waits.
func nextDue(r reader) (meta.Time, error) {
	for p, err := range r.scan(within(inRespond(ofPending))) {
		if err != nil || len(p.key) < timed {
			return 0, err
		}
		return meta.Time(binary.BigEndian.Uint64(p.key[2:])), nil
	}
	return 0, nil
}

// SetElevationPolicy says what the cluster wants of elevations; those that are asked
// for already need what was wanted then. Result: meta.ElevationPolicy.
type SetElevationPolicy struct {
	Policy meta.ElevationPolicy `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (SetElevationPolicy) Type() uint16 { return typeSetElevationPolicy }

// Check implements Command.
func (c SetElevationPolicy) Check() error {
	switch p := c.Policy; {
	case p.Approvers < 1 || p.Approvers > meta.MaxApprovers:
		return fmt.Errorf("%d approvers of an elevation, use 1 to %d: %w", p.Approvers, meta.MaxApprovers, meta.ErrInvalid)
	case p.MaxTTL < minElevation || p.MaxTTL > meta.MaxElevation:
		return fmt.Errorf("elevations of up to %v, use %v to %v: %w", p.MaxTTL, minElevation, meta.MaxElevation, meta.ErrInvalid)
	}
	return nil
}

func (c SetElevationPolicy) apply(t *tx) (any, error) {
	t.put(inRespond(ofPolicy), c.Policy)
	t.emit(feed.Change{Kind: feed.KindRespond})
	return c.Policy, nil
}
