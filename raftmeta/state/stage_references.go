package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// StageReferences writes part of a long reference list ahead of its publish, which
// names the draft. Parts count from 0 and come in order; a repeated part must be
// equal. Draft ids are the proposer's, unique.
//
// Errors: meta.ErrNotFound for the repository; meta.ErrConflict for a gap or a
// draft that a version took; meta.ErrExists for a different part.
type StageReferences struct {
	Repo       meta.RepoRef     `cbor:"1,keyasint,omitempty"`
	Draft      string           `cbor:"2,keyasint,omitempty"`
	Part       uint32           `cbor:"3,keyasint,omitempty"`
	References []meta.Reference `cbor:"4,keyasint,omitempty"`
}

// Bounds of a draft: 256 parts of at most one command each hold any manifest of
// 4 MiB several times over.
const (
	maxDraftBytes = 128
	maxDraftParts = 256
)

// Type implements Command.
func (StageReferences) Type() uint16 { return typeStageReferences }

// Check implements Command.
func (c StageReferences) Check() error {
	if err := c.Repo.Check(); err != nil {
		return err
	}
	if err := checkDraft(c.Draft); err != nil {
		return err
	}
	if c.Part >= maxDraftParts || len(c.References) == 0 {
		return fmt.Errorf("draft %s: part %d with %d references: %w", c.Draft, c.Part, len(c.References), meta.ErrInvalid)
	}
	return checkReferences(c.References)
}

func checkDraft(id string) error {
	if id == "" || len(id) > maxDraftBytes {
		return fmt.Errorf("draft id of %d bytes, use 1 to %d: %w", len(id), maxDraftBytes, meta.ErrInvalid)
	}
	return nil
}

func checkReferences(refs []meta.Reference) error {
	for _, r := range refs {
		if err := checkDigest(r.Digest); err != nil {
			return fmt.Errorf("reference: %w", err)
		}
	}
	return nil
}
