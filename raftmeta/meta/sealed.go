package meta

import (
	"fmt"
	"strings"
)

// Sealed is a secret that the cluster's servers use for a repository, and nobody reads:
// an upstream's credentials, a signing key. It is sealed to each server, as the root key
// is. From cluster level 6.
type Sealed struct {
	Repo RepoRef `cbor:"1,keyasint,omitempty" json:"repo"`
	// Name says what it is for: SealedUpstream, or what a format calls its keys.
	Name string `cbor:"2,keyasint,omitempty" json:"name"`
	// Seals holds the secret sealed to the servers that can open it.
	Seals map[NodeID][]byte `cbor:"3,keyasint,omitempty" json:"-"`
	// Public is what everybody may know of it: a user's name, a public key.
	Public []byte `cbor:"4,keyasint,omitempty" json:"public,omitempty"`
	// Set and SetBy are of the last change of the secret, stamped by the command;
	// Version counts the changes, from 1.
	Set     Time   `cbor:"5,keyasint,omitempty" json:"set"`
	SetBy   string `cbor:"6,keyasint,omitempty" json:"set_by"`
	Version uint64 `cbor:"7,keyasint,omitempty" json:"version"`
}

// SealedUpstream is the name of a proxy's credentials for its upstream.
const SealedUpstream = "upstream"

// Bounds of a Sealed.
const (
	MaxSealedName   = 63
	MaxSealedPublic = 16 << 10
	// MaxSealBytes bounds a secret sealed to one server.
	MaxSealBytes = 16 << 10
)

// CheckSealedName checks the name of a secret: lower-case letters, digits and dashes.
//
// Errors: ErrInvalid.
func CheckSealedName(name string) error {
	if name == "" || len(name) > MaxSealedName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("secret name %.80q: 1 to %d of a-z, 0-9 and -: %w", name, MaxSealedName, ErrInvalid)
	}
	return nil
}
