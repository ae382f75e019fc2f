package state

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// actor is whose acts a compromise goes through: those with Credential, or all of the
// Principal.
type actor struct {
	Principal  string `cbor:"1,keyasint,omitempty"`
	Credential string `cbor:"2,keyasint,omitempty"`
	All        bool   `cbor:"3,keyasint,omitempty"`
	// Since leaves out earlier acts: only of the first actor.
	Since meta.Time `cbor:"4,keyasint,omitempty"`
}

// allCredentials stands for all of a principal's in the keys of visited actors; no
// credential has that id.
const allCredentials = "*"

// maxActors bounds how many credentials and accounts one compromise follows.
const maxActors = 10_000

func keyCompromise(id string) key         { return inRespond(ofCompromises).last(id) }
func keyActor(id string, n uint64) key    { return inRespond(ofActors).part(id).u64(n) }
func keyFindings(id string) key           { return inRespond(ofFindings).part(id) }
func keyFinding(id string, n uint64) key  { return keyFindings(id).u64(n) }
func keyFound(id string, a *meta.Act) key { return inRespond(ofFound).part(id).u64(a.Index).u32(a.Seq) }
func keyVisited(id, principal string) key { return inRespond(ofVisited).part(id).part(principal) }
func keyRestored(id string, r meta.RepoRef, pkg, alias string) key {
	return inRespond(ofRestored).part(id).part(string(r.Tenant)).part(r.Name).part(pkg).last(alias)
}
func keyOpenCompromise(id string) key    { return inRespond(ofOpen).last(id) }
func (t *tx) hasKey(k key) (bool, error) { b, err := t.get(k); return b != nil, err }

// putCompromise stores a changed compromise and tells of it.
func (t *tx) putCompromise(c *meta.Compromise) {
	c.Revision = t.index
	t.put(keyCompromise(c.ID), c)
	if c.Working() {
		t.mark(keyOpenCompromise(c.ID))
	} else {
		t.del(keyOpenCompromise(c.ID))
	}
	t.emit(feed.Change{Kind: feed.KindRespond, Name: c.ID})
}

func findCompromise(r reader, id string) (*meta.Compromise, error) {
	return find[meta.Compromise](r, keyCompromise(id), "compromise", id)
}

// OpenCompromise ends a credential, or all that a principal has, and begins to go
// through what was done with it: AdvanceCompromise does that, page by page. Result:
// meta.Compromise.
//
// Errors: meta.ErrInvalid for a principal that cannot be revoked; meta.ErrNotFound for
// a credential that nobody knows; meta.ErrExists for an id that is taken.
type OpenCompromise struct {
	ID string `cbor:"1,keyasint,omitempty"`
	// Credential or Principal, not both.
	Credential string `cbor:"2,keyasint,omitempty"`
	Principal  string `cbor:"3,keyasint,omitempty"`
	// Since and Until bound the acts, both inclusive; 0 is all, and until now.
	Since          meta.Time `cbor:"4,keyasint,omitempty"`
	Until          meta.Time `cbor:"5,keyasint,omitempty"`
	Reason         string    `cbor:"6,keyasint,omitempty"`
	RestoreAliases bool      `cbor:"7,keyasint,omitempty"`
}

// Type implements Command.
func (OpenCompromise) Type() uint16 { return typeOpenCompromise }

// Check implements Command.
func (c OpenCompromise) Check() error {
	switch {
	case c.ID == "" || len(c.ID) > 64:
		return fmt.Errorf("open a compromise: the id %q has not 1 to 64 bytes: %w", c.ID, meta.ErrInvalid)
	case (c.Credential == "") == (c.Principal == ""):
		return fmt.Errorf("open a compromise: name a token or a principal: %w", meta.ErrInvalid)
	case len(c.Credential) > 64 || c.Credential == allCredentials:
		// It may be the stolen token itself.
		return fmt.Errorf("open a compromise: that is no token's id, which is the part of a token between the underscores: %w", meta.ErrInvalid)
	case c.Since < 0 || c.Until < 0 || c.Until != 0 && c.Until < c.Since:
		return fmt.Errorf("open a compromise: the window ends before it begins: %w", meta.ErrInvalid)
	}
	if c.Principal != "" {
		if err := (RevokePrincipal{Principal: c.Principal}).Check(); err != nil {
			return err
		}
	}
	return meta.CheckReason(c.Reason)
}

func (c OpenCompromise) apply(t *tx) (any, error) {
	if taken, err := t.hasKey(keyCompromise(c.ID)); err != nil || taken {
		if err == nil {
			err = fmt.Errorf("open compromise %s: the id is taken: %w", c.ID, meta.ErrExists)
		}
		return nil, err
	}
	record := &meta.Compromise{
		ID: c.ID, Principal: c.Principal, Credential: c.Credential, Since: c.Since, Until: c.Until, Reason: c.Reason,
		RestoreAliases: c.RestoreAliases, State: meta.CompromiseContaining, Opened: t.now, OpenedBy: t.origin.Principal,
	}
	if record.Until == 0 || record.Until > t.now {
		record.Until = t.now
	}
	recorded, err := number(t, inRespond(ofRecorded))
	if err != nil {
		return nil, err
	}
	record.Recorded = meta.Time(recorded)
	first := actor{Principal: c.Principal, Credential: c.Credential, All: c.Principal != "", Since: c.Since}
	if c.Credential != "" {
		if first.Principal, err = t.holderOf(c.Credential); err != nil {
			return nil, err
		}
		record.Principal = first.Principal
	}
	if err := t.follow(record, first); err != nil {
		return nil, err
	}
	t.putCompromise(record)
	return *record, nil
}

// holderOf returns the principal of a credential, also of one that is forgotten since
// and that acted.
//
// Errors: meta.ErrNotFound.
func (t *tx) holderOf(credential string) (string, error) {
	k, err := findCredential(t, credential)
	switch {
	case err == nil:
		return k.Principal, nil
	case !errors.Is(err, meta.ErrNotFound):
		return "", err
	}
	principal, err := t.get(inRespond(ofActing).last(credential))
	if err == nil && principal == nil {
		err = fmt.Errorf("token %s: nobody has it and nobody did anything with it; `shoal token list` names those there are: %w", credential, meta.ErrNotFound)
	}
	return string(principal), err
}

// follow revokes an actor and queues its acts, once.
func (t *tx) follow(c *meta.Compromise, a actor) error {
	if c.Actors >= maxActors {
		return nil
	}
	for _, name := range []string{a.Credential, allCredentials} {
		if a.All && name != allCredentials {
			continue
		}
		if seen, err := t.hasKey(keyVisited(c.ID, a.Principal).last(name)); err != nil || seen {
			return err
		}
	}
	if a.All {
		t.mark(keyVisited(c.ID, a.Principal).last(allCredentials))
	} else {
		t.mark(keyVisited(c.ID, a.Principal).last(a.Credential))
	}
	t.put(keyActor(c.ID, c.Actors), a)
	c.Actors++
	return t.end(c, a)
}

// end takes from an actor what it can act with.
func (t *tx) end(c *meta.Compromise, a actor) error {
	if !a.All {
		k, err := findCredential(t, a.Credential)
		if errors.Is(err, meta.ErrNotFound) {
			return nil // it is over anyway
		}
		if err != nil {
			return err
		}
		if k.Revoked != 0 {
			return nil
		}
		c.Revoked++
		t.revokeCredential(k)
		return nil
	}
	c.Revoked++
	t.revokePrincipal(a.Principal, "compromise "+c.ID)
	return nil
}

// AdvanceCompromise goes on with the work on a compromise: it takes up to Limit acts,
// and about as many changes of links, and does about each what is to be done. The leader
// sends it until the compromise is contained. Result: meta.Compromise.
//
// Errors: meta.ErrNotFound.
type AdvanceCompromise struct {
	ID    string `cbor:"1,keyasint,omitempty"`
	Limit uint32 `cbor:"2,keyasint,omitempty"`
}

// maxAdvance bounds AdvanceCompromise.Limit.
const maxAdvance = 1000

// Type implements Command.
func (AdvanceCompromise) Type() uint16 { return typeAdvanceCompromise }

// Check implements Command.
func (c AdvanceCompromise) Check() error {
	if c.ID == "" || c.Limit == 0 || c.Limit > maxAdvance {
		return fmt.Errorf("advance compromise %q by %d acts, use 1 to %d: %w", c.ID, c.Limit, maxAdvance, meta.ErrInvalid)
	}
	return nil
}

func (c AdvanceCompromise) apply(t *tx) (any, error) {
	record, err := findCompromise(t, c.ID)
	if err != nil {
		return nil, err
	}
	if record.State != meta.CompromiseContaining {
		return *record, nil
	}
	for budget := int(c.Limit); budget > 0 && record.State == meta.CompromiseContaining; {
		if budget, err = t.containActor(record, budget); err != nil {
			return nil, err
		}
	}
	t.putCompromise(record)
	return *record, nil
}

// containActor goes on with the actor whose turn it is, and returns what is left of the
// budget.
func (t *tx) containActor(c *meta.Compromise, budget int) (int, error) {
	a, err := load[actor](t, keyActor(c.ID, c.Actor))
	if err != nil {
		return 0, err
	}
	if a == nil {
		c.State, c.Contained, c.Next = meta.CompromiseChecking, t.now, 0
		return budget, t.skipChecked(c)
	}
	acts, after, err := actsOf(t, *a, c.Until, c.After, budget)
	if err != nil {
		return 0, err
	}
	for i := range acts {
		cost, err := t.contain(c, &acts[i])
		if err != nil {
			return 0, err
		}
		if budget -= 1 + cost; budget <= 0 && i+1 < len(acts) {
			c.After = actPlace(*a, &acts[i])
			return 0, nil
		}
	}
	if c.After = after; after != nil {
		return 0, nil // the page is full, or what it passed over cost the rest
	}
	c.Actor++
	return budget - 1, nil // one of whom there is nothing costs as well
}

// actPlace is where a listing of an actor's acts goes on behind one of them.
func actPlace(a actor, act *meta.Act) []byte {
	return bytes.Clone(keyAct(act)[len(actsPrefix(a)):])
}

func actsPrefix(a actor) key {
	if a.All {
		return inRespond(ofActs).part(a.Principal)
	}
	return keyActs(a.Principal, a.Credential)
}

// actsOf returns up to limit acts of an actor from Since to until, those behind after
// (nil: the first), by credential and in the order in which they were done. next is
// where to go on, nil when there are no more. Acts outside of the window are not read;
// passing over those of a credential costs as much as an act.
func actsOf(r reader, a actor, until meta.Time, after []byte, limit int) (acts []meta.Act, next []byte, err error) {
	prefix := actsPrefix(a)
	s := within(prefix)
	if after != nil {
		s.lower = append(append(slices.Clone(prefix), after...), 0)
	}
	for jumps := 0; ; jumps++ {
		var jump key
		for p, err := range r.scan(s) {
			if err != nil {
				return nil, nil, err
			}
			act, err := parseAct(p.key, p.value)
			if err != nil {
				return nil, nil, err
			}
			if act.At < a.Since {
				jump = keyActs(act.Principal, act.Credential).u64(clock(a.Since))
				break
			}
			if act.At > until {
				jump = keyActs(act.Principal, act.Credential).after()
				break
			}
			acts = append(acts, *act)
			if len(acts) == limit {
				return acts, actPlace(a, act), nil
			}
		}
		if jump == nil || s.upper != nil && bytes.Compare(jump, s.upper) >= 0 {
			return acts, nil, nil
		}
		if jumps+len(acts) >= limit {
			return acts, jump[len(prefix):], nil
		}
		s.lower = jump
	}
}

// contain does about one act what is to be done, and adds it to the findings. It
// returns how many other records it changed.
func (t *tx) contain(c *meta.Compromise, a *meta.Act) (cost int, err error) {
	found := keyFound(c.ID, a)
	if seen, err := t.hasKey(found); err != nil || seen {
		return 0, err
	}
	f := &meta.Finding{Number: c.Findings + 1, Act: *a, Outcome: meta.OutcomeListed}
	if f.Act.Audit, _, err = auditSequence(t, a.Index); err != nil {
		return 0, err
	}
	switch a.Kind {
	case meta.ActPublished, meta.ActExtended:
		cost, err = t.containVersion(c, f)
	case meta.ActDeletedVersion:
		f.Note = "publish it again from its source: the same content comes back under its name"
	case meta.ActMovedAlias, meta.ActDeletedAlias:
		cost, err = t.containAlias(c, f)
	case meta.ActCredential:
		err = t.containCredential(c, f)
	case meta.ActAccount:
		err = t.containAccount(c, f)
	case meta.ActBinding:
		err = t.containBinding(f)
	}
	if err != nil {
		return 0, err
	}
	t.mark(found)
	t.put(keyFinding(c.ID, f.Number), f)
	c.Findings++
	return cost, nil
}

// containVersion puts what the actor published into quarantine, unless it is another's
// by now.
func (t *tx) containVersion(c *meta.Compromise, f *meta.Finding) (cost int, err error) {
	a := &f.Act
	v, err := load[meta.Version](t, keyVersion(a.Repo, a.Package, a.Name))
	switch {
	case err != nil:
		return 0, err
	case v == nil:
		f.Outcome = meta.OutcomeGone
		g, err := load[grave](t, keyGrave(a.Repo, a.Package, a.Name))
		if err != nil {
			return 0, err
		}
		var notes []string
		if g != nil {
			notes = append(notes, fmt.Sprintf("deleted by %s at %s", g.DeletedBy, g.DeletedAt.Std().Format("2006-01-02T15:04:05Z")))
		}
		// What was promoted from it is still there.
		copies, cost, err := t.containCopies(c, f, &meta.Version{Repo: a.Repo, Package: a.Package, Name: a.Name})
		if err != nil {
			return 0, err
		}
		f.Note = clip(strings.Join(append(notes, copies...), "; "))
		return cost, nil
	case a.Kind == meta.ActPublished && (v.PublishTime != a.At || v.CreatedBy != a.Principal):
		f.Outcome = meta.OutcomeReplaced
		f.Note = "deleted and published again by " + v.CreatedBy
		return 0, nil
	case v.Quarantine != nil:
		f.Outcome = meta.OutcomeAlready
		f.Note = v.Quarantine.Reason
	default:
		cost, err = t.quarantine(v, &meta.Quarantine{
			Reason: c.Reason, By: c.OpenedBy, At: t.now, Compromise: c.ID, Finding: f.Number,
		})
		if err != nil {
			return 0, err
		}
		f.Outcome = meta.OutcomeQuarantined
		c.Quarantined++
	}
	copies, copiesCost, err := t.containCopies(c, f, v)
	if err != nil {
		return 0, err
	}
	cost += copiesCost
	aliases, err := aliasesOf(t, v)
	if err != nil {
		return 0, err
	}
	notes := copies
	for _, alias := range aliases {
		if !c.RestoreAliases {
			notes = append(notes, "alias "+alias.Name+" leads to it and is refused")
			continue
		}
		to, err := t.restoreAlias(c, alias.Repo, alias.Package, alias.Name)
		if err != nil {
			return 0, err
		}
		if to == "" {
			notes = append(notes, "alias "+alias.Name+" named nothing before and is refused")
			continue
		}
		notes = append(notes, "alias "+alias.Name+" is back at "+to)
	}
	f.Note = clip(strings.Join(append(slices.DeleteFunc([]string{f.Note}, func(s string) bool { return s == "" }), notes...), "; "))
	return cost + len(aliases), nil
}

// containCopies puts what was promoted from a version into quarantine with it. notes say
// so.
func (t *tx) containCopies(c *meta.Compromise, f *meta.Finding, v *meta.Version) (notes []string, cost int, err error) {
	if t.level < packagesLevel {
		return nil, 0, nil
	}
	copies, err := promotionsOf(t, v)
	if err != nil {
		return nil, 0, err
	}
	for _, v := range copies {
		if v.Quarantine != nil {
			continue
		}
		links, err := t.quarantine(v, &meta.Quarantine{Reason: c.Reason, By: c.OpenedBy, At: t.now, Compromise: c.ID, Finding: f.Number})
		if err != nil {
			return nil, 0, err
		}
		c.Quarantined++
		cost += links
		notes = append(notes, "promoted to "+v.Repo.String()+" and quarantined there, too")
	}
	return notes, cost, nil
}

// clip bounds a note.
func clip(s string) string {
	const most = 1024
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + " ..."
	}
	return s
}

// containAlias takes an alias back to where it was, when that is wanted and nobody has
// moved it since.
func (t *tx) containAlias(c *meta.Compromise, f *meta.Finding) (cost int, err error) {
	a := &f.Act
	back, err := t.get(keyRestored(c.ID, a.Repo, a.Package, a.Name))
	if err != nil {
		return 0, err
	}
	if back != nil {
		f.Outcome, f.Note = meta.OutcomeRestored, "back at "+string(back)
		return 0, nil
	}
	last, err := lastMove(t, a.Repo, a.Package, a.Name)
	if err != nil || last == nil {
		return 0, err
	}
	switch {
	case last.Revision != a.Index && !last.Quarantined:
		f.Note = "moved since, by " + last.MovedBy
		return 1, nil
	case !c.RestoreAliases:
		if f.Note = "it names " + last.Version; last.Deleted {
			f.Note = "it named " + last.Version
		}
		return 1, nil
	}
	to, err := t.restoreAlias(c, a.Repo, a.Package, a.Name)
	if err != nil {
		return 0, err
	}
	if to == "" {
		f.Note = "it named nothing before"
		return 1, nil
	}
	f.Outcome, f.Note = meta.OutcomeRestored, "back at "+to
	return 1, nil
}

// restoreAlias points an alias at the last version that it named by the hand of another
// and that can be read, and returns which that is, "" when there is none: then the alias
// stays. Immutable repositories are no exception, for the name is given back.
func (t *tx) restoreAlias(c *meta.Compromise, ref meta.RepoRef, pkg, name string) (string, error) {
	const most = 1000
	repo, err := findRepository(t, ref)
	if errors.Is(err, meta.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	s := within(keyHistory(ref, pkg, name))
	s.reverse = true
	var moves []meta.Alias
	for p, err := range t.scan(s) {
		if err != nil {
			return "", err
		}
		a, err := decode[meta.Alias](p.key, p.value)
		if err != nil {
			return "", err
		}
		if moves = append(moves, *a); len(moves) == most {
			break
		}
	}
	for _, m := range moves {
		if m.Deleted {
			continue
		}
		v, err := load[meta.Version](t, keyVersion(ref, pkg, m.Version))
		if err != nil {
			return "", err
		}
		if v == nil || v.Quarantine != nil || v.Digest != m.Digest {
			continue
		}
		if mine, err := t.movedBy(c, &m); err != nil {
			return "", err
		} else if mine {
			continue
		}
		free := *repo
		free.Immutable = false
		if _, moved, err := t.moveAlias(&free, name, v); err != nil {
			return "", err
		} else if moved {
			c.Restored++
			t.set(keyRestored(c.ID, ref, pkg, name), []byte(v.Name))
			return v.Name, t.touchPackage(ref, pkg)
		}
		return v.Name, nil
	}
	return "", nil
}

// movedBy reports whether a move was an act of one of the actors of a compromise.
func (t *tx) movedBy(c *meta.Compromise, m *meta.Alias) (bool, error) {
	prefix := keyVisited(c.ID, m.MovedBy)
	for p, err := range t.scan(within(prefix)) {
		if err != nil {
			return false, err
		}
		credential := string(p.key[len(prefix):])
		if credential == allCredentials {
			return m.MovedAt >= c.Since && m.MovedAt <= c.Until, nil
		}
		for _, err := range t.scan(within(keyActs(m.MovedBy, credential).u64(clock(m.MovedAt)).u64(m.Revision))) {
			return err == nil && m.MovedAt <= c.Until, err
		}
	}
	return false, nil
}

// containCredential follows a token that the actor made.
func (t *tx) containCredential(c *meta.Compromise, f *meta.Finding) error {
	f.Note = "over already"
	k, err := findCredential(t, f.Act.Name)
	principal := f.Act.Detail
	if errors.Is(err, meta.ErrNotFound) {
		err = nil
	} else if err == nil {
		principal = k.Principal
		f.Outcome, f.Note = meta.OutcomeRevoked, "of "+principal
	}
	if err != nil || principal == "" {
		return err
	}
	return t.follow(c, actor{Principal: principal, Credential: f.Act.Name})
}

// containAccount closes an account that the actor made, and follows what was done with it.
func (t *tx) containAccount(c *meta.Compromise, f *meta.Finding) error {
	a, err := findAccount(t, f.Act.Name)
	if errors.Is(err, meta.ErrNotFound) {
		f.Outcome = meta.OutcomeGone
		return nil
	}
	if err != nil {
		return err
	}
	if err := t.disableAccount(a.Name); err != nil {
		return err
	}
	f.Outcome = meta.OutcomeDisabled
	return t.follow(c, actor{Principal: a.Name, All: true})
}

// containBinding takes a binding back that the actor made.
func (t *tx) containBinding(f *meta.Finding) error {
	err := t.removeBinding(f.Act.Name)
	if errors.Is(err, meta.ErrNotFound) {
		f.Outcome = meta.OutcomeGone
		return nil
	}
	if err == nil {
		f.Outcome, f.Note = meta.OutcomeRemoved, f.Act.Detail
	}
	return err
}

// CloseCompromise ends the work on a compromise. What is in quarantine stays there until
// it is released. Result: meta.Compromise.
//
// Errors: meta.ErrNotFound; meta.ErrConflict while acts are being gone through, and when
// it is closed.
type CloseCompromise struct {
	ID   string `cbor:"1,keyasint,omitempty"`
	Note string `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (CloseCompromise) Type() uint16 { return typeCloseCompromise }

// Check implements Command.
func (c CloseCompromise) Check() error {
	if c.ID == "" {
		return fmt.Errorf("close a compromise: no id: %w", meta.ErrInvalid)
	}
	return meta.CheckReason(c.Note)
}

func (c CloseCompromise) apply(t *tx) (any, error) {
	record, err := findCompromise(t, c.ID)
	if err != nil {
		return nil, err
	}
	switch record.State {
	case meta.CompromiseContaining:
		return nil, fmt.Errorf("close compromise %s: what was done is still being gone through, wait until it is contained: %w", c.ID, meta.ErrConflict)
	case meta.CompromiseClosed:
		return nil, fmt.Errorf("close compromise %s: it is closed: %w", c.ID, meta.ErrConflict)
	}
	record.State, record.Closed, record.ClosedBy, record.Note = meta.CompromiseClosed, t.now, t.origin.Principal, c.Note
	t.putCompromise(record)
	return *record, nil
}

// ReportRecheck says what reading the bytes of a finding's version again showed. Result:
// meta.Compromise.
//
// Errors: meta.ErrNotFound; meta.ErrConflict when another finding is next.
type ReportRecheck struct {
	ID     string       `cbor:"1,keyasint,omitempty"`
	Number uint64       `cbor:"2,keyasint,omitempty"`
	Result meta.Recheck `cbor:"3,keyasint,omitempty"`
}

// maxBad bounds what a Recheck lists.
const maxBad = 16

// Type implements Command.
func (ReportRecheck) Type() uint16 { return typeReportRecheck }

// Check implements Command.
func (c ReportRecheck) Check() error {
	if c.ID == "" || c.Number == 0 {
		return fmt.Errorf("report a recheck: no finding is named: %w", meta.ErrInvalid)
	}
	for _, list := range [][]string{c.Result.Bad, c.Result.Evidence} {
		if len(list) > maxBad {
			return fmt.Errorf("report a recheck: %d lines, at most %d: %w", len(list), maxBad, meta.ErrInvalid)
		}
		for _, line := range list {
			if err := meta.CheckReason(line); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c ReportRecheck) apply(t *tx) (any, error) {
	record, err := findCompromise(t, c.ID)
	if err != nil {
		return nil, err
	}
	if record.State != meta.CompromiseChecking || record.Next != c.Number {
		return nil, fmt.Errorf("recheck of finding %d of compromise %s: finding %d is next: %w", c.Number, c.ID, record.Next, meta.ErrConflict)
	}
	f, err := find[meta.Finding](t, keyFinding(c.ID, c.Number), "finding", c.Number)
	if err != nil {
		return nil, err
	}
	check := c.Result
	check.At = t.now
	f.Check = &check
	t.put(keyFinding(c.ID, f.Number), f)
	record.Rechecked++
	if len(check.Bad) > 0 {
		record.Bad++
	}
	if err := t.skipChecked(record); err != nil {
		return nil, err
	}
	t.putCompromise(record)
	return *record, nil
}

// skipChecked moves on to the next finding whose bytes are to be read, or ends the check
// when there is none.
func (t *tx) skipChecked(c *meta.Compromise) error {
	prefix := keyFindings(c.ID)
	for p, err := range t.scan(span{lower: slices.Clone(prefix).u64(c.Next + 1), upper: prefix.after()}) {
		if err != nil {
			return err
		}
		f, err := decode[meta.Finding](p.key, p.value)
		if err != nil {
			return err
		}
		if f.Outcome == meta.OutcomeQuarantined {
			c.Next = f.Number
			return nil
		}
	}
	c.State, c.Checked, c.Next = meta.CompromiseContained, t.now, 0
	return nil
}
