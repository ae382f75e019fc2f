package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// UnlinkBlob takes a blob, with both its names, from a repository.
//
// Errors: meta.ErrNotFound; meta.ErrConflict while a version claims it.
type UnlinkBlob struct {
	Repo   meta.RepoRef  `cbor:"1,keyasint,omitempty"`
	Digest digest.Digest `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (UnlinkBlob) Type() uint16 { return typeUnlinkBlob }

// Check implements Command.
func (c UnlinkBlob) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	return checkDigest(c.Digest)
}

func (c UnlinkBlob) apply(t *tx) (any, error) {
	l, err := findLink(t, c.Repo, c.Digest)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, fmt.Errorf("unlink blob %s from %s: %w", c.Digest, c.Repo, meta.ErrNotFound)
	}
	if l.Link.Claims > 0 {
		return nil, fmt.Errorf("unlink blob %s from %s: versions use it, delete them first: %w", c.Digest, c.Repo, meta.ErrConflict)
	}
	return nil, t.unlink(c.Repo, l, t.now, t.origin.Principal)
}
