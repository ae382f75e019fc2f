package meta

import "time"

// ElevationState is how far a request to break the glass has come.
type ElevationState string

// States of an elevation. Only an active one gives rights.
const (
	ElevationRequested ElevationState = "requested"
	ElevationActive    ElevationState = "active"
	ElevationRefused   ElevationState = "refused"
	ElevationLapsed    ElevationState = "lapsed"  // nobody approved it in time
	ElevationEnded     ElevationState = "ended"   // by somebody, before its time
	ElevationExpired   ElevationState = "expired" // by itself
)

// MaxElevation is the longest life of an elevation, and how long a request waits.
const MaxElevation = time.Hour

// MaxApprovers bounds how many must approve an elevation beside who asked.
const MaxApprovers = 8

// Elevation is break-glass: a role for a while, with a reason, that others approve and
// all see. What its holder does with it is marked with its ID.
type Elevation struct {
	ID        string `cbor:"1,keyasint,omitempty" json:"id"`
	Principal string `cbor:"2,keyasint,omitempty" json:"principal"`
	Role      string `cbor:"3,keyasint,omitempty" json:"role"`
	// Scope is a repository pattern, Environment one of environments ("" is all).
	Scope       string         `cbor:"4,keyasint,omitempty" json:"scope"`
	Environment string         `cbor:"5,keyasint,omitempty" json:"environment,omitempty"`
	Reason      string         `cbor:"6,keyasint,omitempty" json:"reason"`
	TTL         time.Duration  `cbor:"7,keyasint,omitempty" json:"ttl"`
	State       ElevationState `cbor:"8,keyasint,omitempty" json:"state"`
	Requested   Time           `cbor:"9,keyasint,omitempty" json:"requested"`
	// Credential is what it was asked with.
	Credential string `cbor:"10,keyasint,omitempty" json:"credential,omitempty"`
	// Need is how many approvals it takes.
	Need      uint32     `cbor:"11,keyasint,omitempty" json:"need"`
	Approvals []Approval `cbor:"12,keyasint,omitempty" json:"approvals,omitempty"`
	Began     Time       `cbor:"13,keyasint,omitempty" json:"began,omitempty"`
	// Expires is when it ends by itself; of a request when it lapses.
	Expires Time      `cbor:"14,keyasint,omitempty" json:"expires"`
	Ended   Time      `cbor:"15,keyasint,omitempty" json:"ended,omitempty"`
	EndedBy string    `cbor:"16,keyasint,omitempty" json:"ended_by,omitempty"`
	Review  *Approval `cbor:"17,keyasint,omitempty" json:"review,omitempty"`
	// Acts counts the changes that were made under it.
	Acts     uint64 `cbor:"18,keyasint,omitempty" json:"acts"`
	Revision uint64 `cbor:"19,keyasint,omitempty" json:"revision"`
}

// Approval is a person's word on an elevation.
type Approval struct {
	By   string `cbor:"1,keyasint,omitempty" json:"by"`
	At   Time   `cbor:"2,keyasint,omitempty" json:"at"`
	Note string `cbor:"3,keyasint,omitempty" json:"note,omitempty"`
}

// Unreviewed reports whether somebody still has to look at what was done under it.
func (e *Elevation) Unreviewed() bool {
	return e.Began != 0 && e.State != ElevationActive && e.Review == nil
}

// ElevationPolicy is what the cluster wants of elevations.
type ElevationPolicy struct {
	// Approvers is how many must approve beside who asks, 1 to MaxApprovers; 0 is 1.
	Approvers uint32 `cbor:"1,keyasint,omitempty" json:"approvers"`
	// MaxTTL is the longest that may be asked for; 0 is MaxElevation.
	MaxTTL time.Duration `cbor:"2,keyasint,omitempty" json:"max_ttl"`
}
