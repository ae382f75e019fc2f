package meta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Kinds of error. Every room wraps one of these with the act and the thing; a
// protocol maps them to its own codes in one function.
var (
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists with other content")
	ErrInvalid     = errors.New("invalid")
	ErrDenied      = errors.New("denied")
	ErrOverQuota   = errors.New("over quota")
	ErrUnavailable = errors.New("unavailable")
	ErrCorrupt     = errors.New("corrupt")
	ErrConflict    = errors.New("conflicts with the present state")
	ErrNoSpace     = errors.New("no space left for new content")
	ErrTooLarge    = errors.New("too large")
)

// Kinds lists all kinds under the short words that carry them between nodes.
var Kinds = map[string]error{
	"not_found": ErrNotFound, "exists": ErrExists, "invalid": ErrInvalid, "denied": ErrDenied,
	"over_quota": ErrOverQuota, "unavailable": ErrUnavailable, "corrupt": ErrCorrupt,
	"conflict": ErrConflict, "no_space": ErrNoSpace, "too_large": ErrTooLarge,
}

// words are those of Kinds, sorted.
var words = slices.Sorted(maps.Keys(Kinds))

// KindOf returns the short word of err's kind, or "" when it has none. Of several
// kinds it is always the same: it decides what servers write down.
func KindOf(err error) string {
	for _, word := range words {
		if errors.Is(err, Kinds[word]) {
			return word
		}
	}
	return ""
}

// WireError is an error as one node tells another: the kind and the sentence.
type WireError struct {
	Kind    string `cbor:"1,keyasint,omitempty"`
	Message string `cbor:"2,keyasint,omitempty"`
}

// ToWire flattens err for another node; nil stays nil. What this node did not do to its
// end, with no other kind, says nothing of what was asked: it is unavailable.
func ToWire(err error) *WireError {
	if err == nil {
		return nil
	}
	kind := KindOf(err)
	if kind == "" && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		kind = KindOf(ErrUnavailable)
	}
	return &WireError{Kind: kind, Message: err.Error()}
}

func (e *WireError) Error() string { return e.Message }

// Unwrap returns the kind, so that errors.Is works across nodes.
func (e *WireError) Unwrap() error { return Kinds[e.Kind] }

// Err returns e as an error; nil stays nil.
func (e *WireError) Err() error {
	if e == nil {
		return nil
	}
	return e
}

// UnavailableError is ErrUnavailable with what a client needs to try again.
type UnavailableError struct {
	Reason     string // a word: no_quorum, no_server, busy, starting, read_only
	RetryAfter time.Duration
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("unavailable (%s), try again in %v", e.Reason, e.RetryAfter)
}

// Unwrap returns ErrUnavailable.
func (e *UnavailableError) Unwrap() error { return ErrUnavailable }

// NotLeaderError says that this server does not lead; Leader is "" when unknown.
// The command was not applied.
type NotLeaderError struct{ Leader NodeID }

func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return "not the leader, and no leader is known"
	}
	return fmt.Sprintf("not the leader, %s is", e.Leader)
}

// Unwrap returns ErrUnavailable.
func (e *NotLeaderError) Unwrap() error { return ErrUnavailable }

// UnknownOutcomeError says that a command may or may not have been applied;
// the same request id makes the retry safe.
type UnknownOutcomeError struct{ Cause error }

func (e *UnknownOutcomeError) Error() string {
	return fmt.Sprintf("outcome unknown, retry: %v", e.Cause)
}

// Unwrap returns ErrUnavailable and the cause.
func (e *UnknownOutcomeError) Unwrap() []error { return []error{ErrUnavailable, e.Cause} }
