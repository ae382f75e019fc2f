package state

import (
	"bytes"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/codec"
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

// maxDraftReferences bounds the work of the publish that takes the draft; a
// manifest of 4 MiB has fewer.
const maxDraftReferences = 40_000

func (c StageReferences) apply(t *tx) (any, error) {
	if _, err := findRepository(t, c.Repo); err != nil {
		return nil, err
	}
	k := keyDraft(c.Repo, c.Draft)
	head, err := load[draftRecord](t, k)
	if err != nil {
		return nil, err
	}
	if head == nil {
		head = &draftRecord{Since: t.now}
		t.mark(upload{Since: head.Since, Repo: c.Repo, Draft: c.Draft}.key())
	}
	part := keyDraft(c.Repo, c.Draft).u32(c.Part)
	content := codec.Encode(c.References)
	switch {
	case head.Taken:
		return nil, fmt.Errorf("draft %s: a version has it: %w", c.Draft, meta.ErrConflict)
	case c.Part < head.Parts:
		old, err := t.get(part)
		if err == nil && !bytes.Equal(old, content) {
			err = fmt.Errorf("draft %s: part %d is there and differs: %w", c.Draft, c.Part, meta.ErrExists)
		}
		return nil, err
	case c.Part > head.Parts:
		return nil, fmt.Errorf("draft %s: part %d comes before part %d: %w", c.Draft, c.Part, head.Parts, meta.ErrConflict)
	}
	if head.References += uint32(len(c.References)); head.References > maxDraftReferences {
		return nil, fmt.Errorf("draft %s: over %d references: %w", c.Draft, maxDraftReferences, meta.ErrTooLarge)
	}
	head.Parts++
	t.put(k, head)
	t.set(part, content)
	return nil, c.renew(t)
}

// renew keeps what the draft refers to from expiring before the publish that takes it:
// from level 4 on its unclaimed links begin their time anew.
func (c StageReferences) renew(t *tx) error {
	if on, err := t.collects(); err != nil || !on {
		return err
	}
	for _, ref := range c.References {
		if ref.Version {
			continue
		}
		l, err := findLink(t, c.Repo, ref.Digest)
		if err != nil {
			return err
		}
		if l != nil {
			if err := t.renew(c.Repo, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropDraft removes a draft with its parts.
func (t *tx) dropDraft(repo meta.RepoRef, draft string) error {
	k := keyDraft(repo, draft)
	head, err := load[draftRecord](t, k)
	if err != nil || head == nil {
		return err
	}
	t.del(k)
	for part := range head.Parts {
		t.del(keyDraft(repo, draft).u32(part))
	}
	t.del(upload{Since: head.Since, Repo: repo, Draft: draft}.key())
	return nil
}
