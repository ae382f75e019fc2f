package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// DemandBlobs demands blobs where the repository's versions are owed now, before a
// version uses them: a repository with CopiesBeforeAck 2 has to have their second
// copies first. They are demanded no weaker than standard, since a client waits. What
// no version comes to use is taken back with its link.
//
// Errors: meta.ErrNotFound for the repository; meta.ErrInvalid, with the digest, for
// a blob that it does not link.
type DemandBlobs struct {
	Repo  meta.RepoRef    `cbor:"1,keyasint,omitempty"`
	Blobs []digest.Digest `cbor:"2,keyasint,omitempty"` // 1 to MaxDemandedBlobs
}

// MaxDemandedBlobs bounds one DemandBlobs.
const MaxDemandedBlobs = 500

// Type implements Command.
func (DemandBlobs) Type() uint16 { return typeDemandBlobs }

// Check implements Command.
func (c DemandBlobs) Check() error {
	if n := len(c.Blobs); n == 0 || n > MaxDemandedBlobs {
		return fmt.Errorf("demand of %d blobs, use 1 to %d: %w", n, MaxDemandedBlobs, meta.ErrInvalid)
	}
	for _, d := range c.Blobs {
		if err := checkDigest(d); err != nil {
			return err
		}
	}
	return c.Repo.Check()
}

func (c DemandBlobs) apply(t *tx) (any, error) {
	repo, err := findRepository(t, c.Repo)
	if err != nil {
		return nil, err
	}
	owing, err := t.owedNow(repo)
	if err != nil {
		return nil, err
	}
	class := repo.Class
	if strength(class) < strength(meta.ClassStandard) {
		class = meta.ClassStandard
	}
	for _, d := range c.Blobs {
		l, err := findLink(t, c.Repo, d)
		if err != nil {
			return nil, err
		}
		if l == nil {
			return nil, fmt.Errorf("demand blobs: %s is not in %s; upload it first: %w", d, c.Repo, meta.ErrInvalid)
		}
		record, err := blobOf(t, l)
		if err != nil {
			return nil, err
		}
		for _, region := range owing {
			if r, err := t.region(region); err != nil {
				return nil, err
			} else if r == nil {
				continue // It was given up; the settlement is under way.
			}
			if _, err := t.demand(&record.Blob, region, class); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}
