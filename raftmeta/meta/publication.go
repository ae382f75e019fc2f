package meta

// Sets is how a repository whose documents are built as a whole stands: apt, rpm and
// the like. From cluster level 6.
type Sets struct {
	Repo RepoRef `cbor:"1,keyasint,omitempty" json:"repo"`
	// Opened is the log index from which changes are noted here.
	Opened uint64 `cbor:"2,keyasint,omitempty" json:"opened"`
	// Changed is the log index of the last change to a version of the repository.
	Changed uint64 `cbor:"3,keyasint,omitempty" json:"changed"`
	// Built says that the publications contain all changes up to it, Format with what
	// rules they were made; a builder of another format builds them anew.
	Built  uint64 `cbor:"4,keyasint,omitempty" json:"built"`
	Format uint32 `cbor:"5,keyasint,omitempty" json:"format,omitempty"`
	// Builder is the server that builds them until Until.
	Builder NodeID `cbor:"6,keyasint,omitempty" json:"builder,omitempty"`
	Until   Time   `cbor:"7,keyasint,omitempty" json:"until,omitempty"`
	// Key is what they are signed with, nil when they are not.
	Key *SigningKey `cbor:"8,keyasint,omitempty" json:"key,omitempty"`
}

// SigningKey is the key of a repository.
type SigningKey struct {
	// Public is the armored OpenPGP public key, Fingerprint its name in upper-case hex.
	Public      string `cbor:"1,keyasint,omitempty" json:"public"`
	Fingerprint string `cbor:"2,keyasint,omitempty" json:"fingerprint"`
	// Sealed is the private key for the servers To, whom only it is for.
	Sealed []byte   `cbor:"3,keyasint,omitempty" json:"-"`
	To     []NodeID `cbor:"4,keyasint,omitempty" json:"to,omitempty"`
}

// Bounds of publications. A set is one command, and so is a key with its recipients.
const (
	MaxSetFiles    = 256
	MaxSetName     = 128
	MaxSetSum      = 128
	MaxSealedTo    = 128
	MaxSealedKey   = 48 << 10
	MaxPublicKey   = 8 << 10
	MaxFingerprint = 64
)

// Publication is a set of documents that were made together and change together, like
// all documents of a distribution: one commit puts another in its place.
type Publication struct {
	Repo RepoRef `cbor:"1,keyasint,omitempty" json:"repo"`
	Name string  `cbor:"2,keyasint,omitempty" json:"name"` // of a distribution; `repodata`
	// From is the log index of the state that it was made from.
	From uint64 `cbor:"3,keyasint,omitempty" json:"from"`
	// Sum is of what it was made from, in the builder's words: it tells a set that would
	// come out the same.
	Sum string `cbor:"4,keyasint,omitempty" json:"sum,omitempty"`
	// Files are its documents by path, in byte order.
	Files []File `cbor:"5,keyasint,omitempty" json:"files"`
	// Created and By are stamped by the command.
	Created Time   `cbor:"6,keyasint,omitempty" json:"created"`
	By      NodeID `cbor:"7,keyasint,omitempty" json:"by"`
	// Revision is the log index of its commit.
	Revision uint64 `cbor:"8,keyasint,omitempty" json:"revision"`
	// Replaced is when another took its place.
	Replaced Time `cbor:"9,keyasint,omitempty" json:"replaced,omitempty"`
}
