package access

import (
	"fmt"
	"math"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Head is how recently this node knows that no right was taken back: on servers its
// last confirmed read round, on agents the last signed revocation head. It is a
// raftmeta.StoreHead or a *raftmeta.Lease, and safe for concurrent use.
type Head interface {
	// Revision is the access revision that this node knows: it changes whenever a
	// right was taken back, and only then (state.GetAccessHead). What was resolved
	// under another revision is to be resolved anew.
	Revision() uint64
	// Age bounds how long ago the node knew so, meta.UnknownAge without a bound. It is
	// counted on a clock that nobody sets.
	Age() time.Duration
	// Reachable reports whether a server that has a quorum answers: then nothing but
	// a fresh head will do.
	Reachable() bool
}

// Bounds of the age of the head (security.md, Revocation): what is taken back stops
// within them on every node that reaches a server.
const (
	WriteLease = 5 * time.Second
	ReadLease  = 15 * time.Second
	// DegradedReadMax is how long private reads go on where no server is reachable,
	// unless the repository says otherwise.
	DegradedReadMax = 15 * time.Minute
)

// Freshness is what the age of the head says of a call.
type Freshness uint8

// Kinds of Freshness.
const (
	// Fresh calls are judged by rights that held within the bounds.
	Fresh Freshness = iota
	// Degraded reads are served without a server; the answer says so.
	Degraded
	// Lapsed calls are refused.
	Lapsed
)

// LeaseError refuses a call because rights may have been taken back since this node
// last heard of them. It is meta.ErrUnavailable.
type LeaseError struct {
	Age   time.Duration // of the head, meta.UnknownAge without a bound
	Limit time.Duration
}

func (e *LeaseError) Error() string {
	age := "an unknown time"
	if e.Age != meta.UnknownAge {
		age = e.Age.Round(time.Second).String()
	}
	return fmt.Sprintf("this node has not heard for %s whether rights were taken back (the limit is %s): see whether it reaches a server that has a quorum, or use another node", age, e.Limit)
}

// Unwrap returns a *meta.UnavailableError.
func (e *LeaseError) Unwrap() error {
	return &meta.UnavailableError{Reason: "lease", RetryAfter: time.Second}
}

// Judge says whether a call may rest on rights that held age ago. writes is set for what
// changes anything; private for what not everybody may read; degraded is the
// repository's limit (DegradedOf), for private reads. Judge is pure.
//
// The error is a *LeaseError exactly when the result is Lapsed.
func Judge(age time.Duration, reachable, writes, private bool, degraded time.Duration) (Freshness, error) {
	limit := time.Duration(math.MaxInt64)
	switch {
	case writes:
		limit = WriteLease
	case private:
		limit = ReadLease
	}
	if age < limit || !writes && !private {
		return Fresh, nil
	}
	if !writes && !reachable {
		if age < degraded {
			return Degraded, nil
		}
		limit = max(limit, degraded)
	}
	return Lapsed, &LeaseError{Age: age, Limit: limit}
}

// DegradedOf returns a repository's degraded_read_max.
func DegradedOf(r *meta.Repository) time.Duration {
	if r == nil || r.DegradedReadMax == nil {
		return DegradedReadMax
	}
	return *r.DegradedReadMax
}
