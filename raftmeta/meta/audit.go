package meta

import (
	"fmt"

	"github.com/shoal-registry/shoal/verify/digest"
)

// Audit is what a server says of the bytes that it keeps, and what it was asked to
// look at.
type Audit struct {
	Server NodeID `cbor:"1,keyasint,omitempty" json:"server"`
	// Wanted is the last request; 0 in its ID is none.
	Wanted AuditRequest `cbor:"2,keyasint,omitzero" json:"wanted,omitzero"`
	Report AuditReport  `cbor:"3,keyasint,omitzero" json:"report"`
}

// AuditRequest asks servers to look at what they keep, now.
type AuditRequest struct {
	// ID is the log index of the request.
	ID uint64 `cbor:"1,keyasint,omitempty" json:"id"`
	At Time   `cbor:"2,keyasint,omitempty" json:"at"`
	// Full asks for every byte to be read; else only what is there is compared with
	// what should be. Roots names up to 100 blobs that are read; none is all.
	Full  bool         `cbor:"3,keyasint,omitempty" json:"full,omitempty"`
	Roots []digest.CID `cbor:"4,keyasint,omitempty" json:"roots,omitempty"`
}

// MaxAuditRoots bounds the blobs that a request names.
const MaxAuditRoots = 100

// Check reports what a request cannot say.
//
// Errors: ErrInvalid.
func (r AuditRequest) Check() error {
	if len(r.Roots) > MaxAuditRoots {
		return fmt.Errorf("a scrub of %d blobs by name, at most %d, or all: %w", len(r.Roots), MaxAuditRoots, ErrInvalid)
	}
	for _, root := range r.Roots {
		if root.IsZero() {
			return fmt.Errorf("a scrub of a blob without a root: %w", ErrInvalid)
		}
	}
	return nil
}

// AuditReport is how far a server is and what it has found.
type AuditReport struct {
	// Answered is the ID of the last request that is done.
	Answered uint64 `cbor:"1,keyasint,omitempty" json:"answered,omitempty"`
	At       Time   `cbor:"2,keyasint,omitempty" json:"at"`
	// Existence compares files with records, daily; Full reads every byte, over 14 days.
	Existence AuditPass `cbor:"3,keyasint,omitzero" json:"existence"`
	Full      AuditPass `cbor:"4,keyasint,omitzero" json:"full"`
	// Since the process started: chunks found damaged by whoever read them, copies
	// found failed, and those of them that are whole again.
	DamagedChunks uint64 `cbor:"5,keyasint,omitempty" json:"damaged_chunks"`
	FailedCopies  uint64 `cbor:"6,keyasint,omitempty" json:"failed_copies"`
	Repaired      uint64 `cbor:"7,keyasint,omitempty" json:"repaired"`
	// Open are failed copies that are not whole again, as far as they are watched.
	Open uint64 `cbor:"8,keyasint,omitempty" json:"open"`
	// SetAside are damaged pieces kept for inspection, Bytes what they take.
	SetAside      uint64 `cbor:"9,keyasint,omitempty" json:"set_aside"`
	SetAsideBytes int64  `cbor:"10,keyasint,omitempty" json:"set_aside_bytes"`
}

// AuditPass is one walk over all that a server keeps: the one under way, else the last.
type AuditPass struct {
	Started  Time `cbor:"1,keyasint,omitempty" json:"started,omitempty"`
	Finished Time `cbor:"2,keyasint,omitempty" json:"finished,omitempty"` // 0 while it is under way
	// Last is when the last whole pass ended.
	Last Time `cbor:"3,keyasint,omitempty" json:"last,omitempty"`
	// PerMille is how far it is.
	PerMille uint32 `cbor:"4,keyasint,omitempty" json:"per_mille"`
	Blobs    uint64 `cbor:"5,keyasint,omitempty" json:"blobs"`
	Bytes    int64  `cbor:"6,keyasint,omitempty" json:"bytes"`
	// Damaged are copies of which some or all was missing or wrong.
	Damaged uint64 `cbor:"7,keyasint,omitempty" json:"damaged"`
}

// LostBlob is a blob that a repository links and no server has a verified copy of.
type LostBlob struct {
	Root        digest.CID    `cbor:"1,keyasint,omitempty" json:"root"`
	Context     string        `cbor:"2,keyasint,omitempty" json:"context"`
	Digest      digest.Digest `cbor:"3,keyasint,omitempty" json:"digest"`
	StoredBytes int64         `cbor:"4,keyasint,omitempty" json:"stored_bytes"`
	Since       Time          `cbor:"5,keyasint,omitempty" json:"since"`
	// Reason is what the server said whose copy was the last.
	Reason string `cbor:"6,keyasint,omitempty" json:"reason,omitempty"`
}

// Use is a file or reference of a version that is a blob.
type Use struct {
	Repo    RepoRef `cbor:"1,keyasint,omitempty" json:"repo"`
	Package string  `cbor:"2,keyasint,omitempty" json:"package"`
	Version string  `cbor:"3,keyasint,omitempty" json:"version"`
	// Path is of a file; "" for a reference, or the version's own document.
	Path string `cbor:"4,keyasint,omitempty" json:"path,omitempty"`
}

func (u Use) String() string {
	name := u.Repo.String() + " " + u.Package + " " + u.Version
	if u.Path != "" {
		name += " " + u.Path
	}
	return name
}
