package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ExpireUploads drops links that no version claims and drafts that no version
// took, when they have been so since before Before; the oldest first, at most
// Limit. Result: ExpireResult.
type ExpireUploads struct {
	Before meta.Time `cbor:"1,keyasint,omitempty"`
	Limit  uint32    `cbor:"2,keyasint,omitempty"` // 1 to 1,000
}

// ExpireResult counts what went.
type ExpireResult struct {
	Links  uint32 `cbor:"1,keyasint,omitempty"`
	Drafts uint32 `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (ExpireUploads) Type() uint16 { return typeExpireUploads }

// Check implements Command.
func (c ExpireUploads) Check() error {
	if c.Limit == 0 || c.Limit > 1000 {
		return fmt.Errorf("expire uploads: limit %d, use 1 to 1000: %w", c.Limit, meta.ErrInvalid)
	}
	return nil
}

func (c ExpireUploads) apply(t *tx) (any, error) {
	var result ExpireResult
	oldest := span{lower: key{spaceUploads}, upper: key{spaceUploads}.u64(clock(c.Before))}
	for p, err := range t.scan(oldest) {
		if err != nil {
			return nil, err
		}
		if result.Links+result.Drafts == c.Limit {
			break
		}
		u, err := parseUpload(p.key)
		if err != nil {
			return nil, &StorageError{Cause: err}
		}
		if u.Draft != "" {
			err = t.dropDraft(u.Repo, u.Draft)
			result.Drafts++
		} else {
			err = t.expireLink(u)
			result.Links++
		}
		if err != nil {
			return nil, err
		}
	}
	return result, nil
}

func (t *tx) expireLink(u upload) error {
	l, err := load[linkRecord](t, keyLink(u.Repo, u.Link))
	if err != nil {
		return err
	}
	if l == nil || l.Link.Claims > 0 {
		return &StorageError{Cause: fmt.Errorf("%s in %s waits to expire but is not unclaimed", u.Link, u.Repo)}
	}
	return t.unlink(u.Repo, l, u.Since, "")
}
