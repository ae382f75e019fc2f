package meta

import (
	"fmt"
	"strings"
)

// A compromise is what is done about a credential, or a principal, that is in the wrong
// hands: `shoal incident`. (An Incident is something else: how a region fared.) What it
// did is an Act, recorded with the act itself from cluster level 5 on; what became of an
// act is a Finding. A version that must not be read has a Quarantine.

// Quarantine is why a version is kept from all readers. Its bytes stay where they are.
type Quarantine struct {
	Reason string `cbor:"1,keyasint,omitempty" json:"reason"`
	By     string `cbor:"2,keyasint,omitempty" json:"by"`
	At     Time   `cbor:"3,keyasint,omitempty" json:"at"`
	// Compromise is the one that it belongs to, "" when a curator asked for it.
	Compromise string `cbor:"4,keyasint,omitempty" json:"compromise,omitempty"`
	// Finding is its number there.
	Finding uint64 `cbor:"5,keyasint,omitempty" json:"finding,omitempty"`
}

// QuarantinedError says that what was asked for is in quarantine.
type QuarantinedError struct {
	What       string // `version 1.2 of acme/app/api`
	Quarantine Quarantine
}

func (e *QuarantinedError) Error() string {
	because := ""
	if e.Quarantine.Compromise != "" {
		because = ", incident " + e.Quarantine.Compromise
	}
	return fmt.Sprintf("%s is in quarantine since %s: %s (by %s%s); only a curator can release it",
		e.What, e.Quarantine.At.Std().Format("2006-01-02T15:04:05Z"), e.Quarantine.Reason, e.Quarantine.By, because)
}

// Unwrap returns ErrDenied.
func (e *QuarantinedError) Unwrap() error { return ErrDenied }

// CheckReason checks what a person gives as a reason.
func CheckReason(s string) error { return checkText("reason", strings.TrimSpace(s), MaxReasonBytes) }

// ActKind is what an act did.
type ActKind string

// Kinds of act. A command that changes something else is an act of its own name.
const (
	ActPublished      ActKind = "published"
	ActExtended       ActKind = "extended" // files were added to an open version
	ActDeletedVersion ActKind = "deleted_version"
	ActMovedAlias     ActKind = "moved_alias"
	ActDeletedAlias   ActKind = "deleted_alias"
	ActLabels         ActKind = "labels"
	ActMarked         ActKind = "marked" // yanked, unlisted, deprecated, or no more
	ActRepository     ActKind = "repository"
	ActTenant         ActKind = "tenant"
	ActCredential     ActKind = "credential" // made a token
	ActAccount        ActKind = "account"
	ActBinding        ActKind = "binding"
	ActOther          ActKind = "other"
)

// Act is a change that somebody made.
type Act struct {
	Kind ActKind `cbor:"1,keyasint,omitempty" json:"kind"`
	Repo RepoRef `cbor:"2,keyasint,omitzero" json:"repo,omitzero"`
	// Package and Name are of the version or alias; Name also of whatever else.
	Package string `cbor:"3,keyasint,omitempty" json:"package,omitempty"`
	Name    string `cbor:"4,keyasint,omitempty" json:"name,omitempty"`
	// Detail is, of an alias, the version that it named after the act; of others what
	// a reader of a report wants to know.
	Detail string `cbor:"5,keyasint,omitempty" json:"detail,omitempty"`
	// Those below are the key of the record, and are not stored in it.
	Principal  string `cbor:"6,keyasint,omitempty" json:"principal"`
	Credential string `cbor:"7,keyasint,omitempty" json:"credential,omitempty"`
	At         Time   `cbor:"8,keyasint,omitempty" json:"at"`
	// Index is of the log entry, Seq counts the acts of one.
	Index uint64 `cbor:"9,keyasint,omitempty" json:"index"`
	Seq   uint32 `cbor:"10,keyasint,omitempty" json:"seq,omitempty"`
	// Elevation is the break-glass elevation under which it was done.
	Elevation string `cbor:"11,keyasint,omitempty" json:"elevation,omitempty"`
	// Audit is the sequence number of its entry in the audit log, 0 when it has none.
	Audit uint64 `cbor:"12,keyasint,omitempty" json:"audit,omitempty"`
}

// Outcome is what became of an act of a compromise.
type Outcome string

// Outcomes. Listed acts are for people to judge.
const (
	OutcomeQuarantined Outcome = "quarantined"
	OutcomeAlready     Outcome = "already_quarantined"
	OutcomeReplaced    Outcome = "published_by_another" // since: left alone
	OutcomeGone        Outcome = "gone"                 // deleted since
	OutcomeRestored    Outcome = "restored"
	OutcomeRevoked     Outcome = "revoked"
	OutcomeDisabled    Outcome = "disabled"
	OutcomeRemoved     Outcome = "removed"
	OutcomeListed      Outcome = "listed"
)

// Finding is an act of a compromise and what became of it.
type Finding struct {
	Number  uint64  `cbor:"1,keyasint,omitempty" json:"number"`
	Act     Act     `cbor:"2,keyasint,omitempty" json:"act"`
	Outcome Outcome `cbor:"3,keyasint,omitempty" json:"outcome"`
	Note    string  `cbor:"4,keyasint,omitempty" json:"note,omitempty"`
	// Check is what reading its bytes again showed, of a version in quarantine.
	Check *Recheck `cbor:"5,keyasint,omitempty" json:"check,omitempty"`
	// Released is when the version was released again, and by whom.
	Released   Time   `cbor:"6,keyasint,omitempty" json:"released,omitempty"`
	ReleasedBy string `cbor:"7,keyasint,omitempty" json:"released_by,omitempty"`
}

// Recheck is what a server saw that read all files of a version again.
type Recheck struct {
	At    Time   `cbor:"1,keyasint,omitempty" json:"at"`
	Node  NodeID `cbor:"2,keyasint,omitempty" json:"node"`
	Files uint64 `cbor:"3,keyasint,omitempty" json:"files"`
	Bytes int64  `cbor:"4,keyasint,omitempty" json:"bytes"`
	// Bad are the digests of files, up to 16, whose bytes are others or cannot be read,
	// with the reason.
	Bad []string `cbor:"5,keyasint,omitempty" json:"bad,omitempty"`
	// Evidence is what checks beyond the digests found: signatures, provenance.
	Evidence []string `cbor:"6,keyasint,omitempty" json:"evidence,omitempty"`
}

// CompromiseState is how far the work on a compromise is.
type CompromiseState string

// States of a compromise. It is open until it is closed.
const (
	CompromiseContaining CompromiseState = "containing" // acts are being gone through
	CompromiseChecking   CompromiseState = "checking"   // bytes are being read again
	CompromiseContained  CompromiseState = "contained"
	CompromiseClosed     CompromiseState = "closed"
)

// Compromise is a credential or principal in the wrong hands.
type Compromise struct {
	ID string `cbor:"1,keyasint,omitempty" json:"id"`
	// Principal is whose acts are gone through: those with Credential, or all when it
	// is empty.
	Principal  string `cbor:"2,keyasint,omitempty" json:"principal"`
	Credential string `cbor:"3,keyasint,omitempty" json:"credential,omitempty"`
	// Since and Until bound the acts; Until is when the compromise was opened, unless
	// it was said to be earlier.
	Since  Time   `cbor:"4,keyasint,omitempty" json:"since,omitempty"`
	Until  Time   `cbor:"5,keyasint,omitempty" json:"until"`
	Reason string `cbor:"6,keyasint,omitempty" json:"reason"`
	// RestoreAliases says that aliases go back to what they named before.
	RestoreAliases bool            `cbor:"7,keyasint,omitempty" json:"restore_aliases,omitempty"`
	State          CompromiseState `cbor:"8,keyasint,omitempty" json:"state"`
	Opened         Time            `cbor:"9,keyasint,omitempty" json:"opened"`
	OpenedBy       string          `cbor:"10,keyasint,omitempty" json:"opened_by"`
	Contained      Time            `cbor:"11,keyasint,omitempty" json:"contained,omitempty"`
	Checked        Time            `cbor:"12,keyasint,omitempty" json:"checked,omitempty"`
	Closed         Time            `cbor:"13,keyasint,omitempty" json:"closed,omitempty"`
	ClosedBy       string          `cbor:"14,keyasint,omitempty" json:"closed_by,omitempty"`
	Note           string          `cbor:"15,keyasint,omitempty" json:"note,omitempty"`
	// Recorded is since when acts are recorded: of those before it nothing is known.
	Recorded Time `cbor:"16,keyasint,omitempty" json:"recorded_since"`
	// Findings counts them all; those below are among them.
	Findings    uint64 `cbor:"17,keyasint,omitempty" json:"findings"`
	Quarantined uint64 `cbor:"18,keyasint,omitempty" json:"quarantined"`
	Released    uint64 `cbor:"19,keyasint,omitempty" json:"released"`
	Restored    uint64 `cbor:"20,keyasint,omitempty" json:"restored"`
	Revoked     uint64 `cbor:"21,keyasint,omitempty" json:"revoked"` // credentials, the first too
	Rechecked   uint64 `cbor:"22,keyasint,omitempty" json:"rechecked"`
	Bad         uint64 `cbor:"23,keyasint,omitempty" json:"bad"` // versions with bytes that are others
	// Actors is how many were found: the first, and what it made and those made.
	Actors   uint64 `cbor:"24,keyasint,omitempty" json:"actors"`
	Revision uint64 `cbor:"25,keyasint,omitempty" json:"revision"`
	// Actor and After are where the work goes on: the actor, and behind which of its acts.
	Actor uint64 `cbor:"26,keyasint,omitempty" json:"-"`
	After []byte `cbor:"27,keyasint,omitempty" json:"-"`
	// Next is the finding from which on bytes are to be read again.
	Next uint64 `cbor:"28,keyasint,omitempty" json:"-"`
}

// Working reports whether the leader has work to do for it.
func (c *Compromise) Working() bool {
	return c.State == CompromiseContaining || c.State == CompromiseChecking
}

// VersionRef names a version.
type VersionRef struct {
	Repo    RepoRef `cbor:"1,keyasint,omitempty" json:"repo"`
	Package string  `cbor:"2,keyasint,omitempty" json:"package"`
	Version string  `cbor:"3,keyasint,omitempty" json:"version"`
}

func (r VersionRef) String() string { return r.Repo.String() + "/" + r.Package + " " + r.Version }
