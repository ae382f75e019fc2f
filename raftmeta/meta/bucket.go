package meta

import (
	"fmt"
	"regexp"
)

// Bucket is where the servers of a region keep one copy of each blob together. It holds
// copies as a server does: replicas and orders name its ID where they would name a
// server's.
type Bucket struct {
	ID     NodeID     `cbor:"1,keyasint,omitempty" json:"id"`
	Region RegionName `cbor:"2,keyasint,omitempty" json:"region"`
	// Location is for people: the bucket's name, prefix and service.
	Location string `cbor:"3,keyasint,omitempty" json:"location"`
	// Servers are those that use it, sorted.
	Servers  []NodeID `cbor:"4,keyasint,omitempty" json:"servers"`
	Attached Time     `cbor:"5,keyasint,omitempty" json:"attached"`
}

var bucketID = regexp.MustCompile(`^bucket-[0-9a-f]{16}$`)

// IsBucket says whether an id is a bucket's, and not a node's.
func (id NodeID) IsBucket() bool { return bucketID.MatchString(string(id)) }

// Check refuses a bucket that cannot be.
func (b Bucket) Check() error {
	if !b.ID.IsBucket() {
		return fmt.Errorf("bucket %q: an id is bucket- and 16 hex digits: %w", b.ID, ErrInvalid)
	}
	if len(b.Location) > 512 {
		return fmt.Errorf("bucket %s: a location of %d bytes, at most 512: %w", b.ID, len(b.Location), ErrInvalid)
	}
	return nil
}

// Holder is who holds what a server keeps: its bucket, or itself.
func (n Node) Holder() NodeID {
	if n.Bucket != "" {
		return n.Bucket
	}
	return n.ID
}
