package meta

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Mode is how fresh a read must be.
type Mode string

// Modes of read. Local is zero-cost and says its age; Bounded is at most
// Freshness.MaxAge old; Strong has seen all that was acknowledged before it began.
const (
	ModeLocal   Mode = "local"
	ModeBounded Mode = "bounded"
	ModeStrong  Mode = "strong"
)

// Freshness is what a reader asks for.
type Freshness struct {
	Mode   Mode          `cbor:"1,keyasint,omitempty"`
	MaxAge time.Duration `cbor:"2,keyasint,omitempty"` // of Bounded
	// After makes the read wait until the state includes this token.
	After Token `cbor:"3,keyasint,omitempty"`
	// Exact says that the reader named the mode: what cannot be had so is an error, and
	// no last known answer takes its place.
	Exact bool `cbor:"4,keyasint,omitempty"`
	// Own says that the reader may have written through another gateway a moment ago:
	// a bounded answer then is, wherever a round can be had, of a state that has seen
	// all that was acknowledged before the call (raftmeta/DESIGN.md, Read your writes).
	Own bool `cbor:"5,keyasint,omitempty"`
}

// ParseFreshness reads what a client asks for: `strong`, `local`, `bounded` (2 s) or
// `bounded=DURATION`. The mode is Exact.
//
// Errors: ErrInvalid.
func ParseFreshness(s string) (Freshness, error) {
	mode, limit, bounded := strings.Cut(s, "=")
	f := Freshness{Mode: Mode(mode), Exact: true}
	switch {
	case f.Mode == ModeBounded && !bounded:
		f.MaxAge = Bounded.MaxAge
		return f, nil
	case f.Mode == ModeBounded:
		d, err := time.ParseDuration(limit)
		if err != nil || d <= 0 {
			return Freshness{}, fmt.Errorf("read mode %q: the bound is a duration above 0, like 500ms or 2s: %w", s, ErrInvalid)
		}
		f.MaxAge = d
		return f, nil
	case (f.Mode == ModeStrong || f.Mode == ModeLocal) && !bounded:
		return f, nil
	}
	return Freshness{}, fmt.Errorf("read mode %q: use strong, bounded, bounded=DURATION or local: %w", s, ErrInvalid)
}

// Freshness values in common use.
var (
	Strong  = Freshness{Mode: ModeStrong}
	Bounded = Freshness{Mode: ModeBounded, MaxAge: 2 * time.Second}
	Local   = Freshness{Mode: ModeLocal}
)

// AsOf is what a read was: every answer carries it.
type AsOf struct {
	Epoch uint64 `cbor:"1,keyasint,omitempty" json:"epoch"`
	Index uint64 `cbor:"2,keyasint,omitempty" json:"index"`
	// Age bounds how far the answer may lie behind what was acknowledged; the
	// largest value says that no bound is known.
	Age  time.Duration `cbor:"3,keyasint,omitempty" json:"age"`
	Mode Mode          `cbor:"4,keyasint,omitempty" json:"mode"`
	// Stale labels a last known answer, served because no server is reachable.
	Stale bool `cbor:"5,keyasint,omitempty" json:"stale,omitempty"`
}

// UnknownAge is the Age of an answer of which no bound is known.
const UnknownAge = time.Duration(1<<63 - 1)

// Token is a point in the log; a read after it sees the write that returned it.
type Token struct {
	Epoch uint64 `cbor:"1,keyasint,omitempty"`
	Index uint64 `cbor:"2,keyasint,omitempty"`
}

// Before reports whether u lies behind t.
func (t Token) Before(u Token) bool {
	return t.Epoch < u.Epoch || t.Epoch == u.Epoch && t.Index < u.Index
}

// String returns `epoch.index`, the form of the Shoal-Token header.
func (t Token) String() string { return fmt.Sprintf("%d.%d", t.Epoch, t.Index) }

// ParseToken reads what String printed; "" is the zero token.
func ParseToken(s string) (Token, error) {
	if s == "" {
		return Token{}, nil
	}
	epoch, index, ok := strings.Cut(s, ".")
	e, err1 := strconv.ParseUint(epoch, 10, 64)
	i, err2 := strconv.ParseUint(index, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return Token{}, fmt.Errorf("token %q is not EPOCH.INDEX: %w", s, ErrInvalid)
	}
	return Token{Epoch: e, Index: i}, nil
}
