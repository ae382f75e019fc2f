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
