package meta

import "crypto/sha256"

// Trust is how the cluster's root is being replaced, and what came before it. The root
// itself is Cluster.Root; in a cluster that never replaced it all is empty.
type Trust struct {
	// Next is the root that takes over, DER; empty when none is under way. Cross is the
	// word of Cluster.Root for it, a certificate of Next's key.
	Next  []byte `cbor:"1,keyasint,omitempty"`
	Cross []byte `cbor:"2,keyasint,omitempty"`
	// Keys is the private key of Next (PKCS #8 DER) sealed to each server.
	Keys    map[NodeID][]byte `cbor:"3,keyasint,omitempty"`
	Started Time              `cbor:"4,keyasint,omitempty"`
	// Former is the root that was replaced last, FormerCross its word for Cluster.Root.
	// No certificate of Former counts any more; a node that knows only Former is led on.
	Former      []byte `cbor:"5,keyasint,omitempty"`
	FormerCross []byte `cbor:"6,keyasint,omitempty"`
	Finished    Time   `cbor:"7,keyasint,omitempty"`
	Revision    uint64 `cbor:"8,keyasint,omitempty"`
}

// RootHash is the sha256 of a root certificate, by which it is named.
func RootHash(der []byte) []byte {
	sum := sha256.Sum256(der)
	return sum[:]
}
