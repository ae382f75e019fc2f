package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// DeleteVersion removes a version with its files and aliases, releases what it
// claimed and leaves a tombstone: only the same digest comes back under the name.
//
// Errors: meta.ErrNotFound.
type DeleteVersion struct {
	Repo    meta.RepoRef `cbor:"1,keyasint,omitempty"`
	Package string       `cbor:"2,keyasint,omitempty"`
	Version string       `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (DeleteVersion) Type() uint16 { return typeDeleteVersion }

// Check implements Command.
func (c DeleteVersion) Check() error { return checkVersion(c.Repo, c.Package, c.Version) }
