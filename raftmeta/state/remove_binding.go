package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RemoveBinding takes back what a binding gave, or the deny that it was.
//
// Errors: meta.ErrNotFound.
type RemoveBinding struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (RemoveBinding) Type() uint16 { return typeRemoveBinding }

// Check implements Command.
func (c RemoveBinding) Check() error {
	if c.ID == "" || len(c.ID) > 64 {
		return fmt.Errorf("remove binding %.64q: name one by its id: %w", c.ID, meta.ErrInvalid)
	}
	return nil
}

func (c RemoveBinding) apply(t *tx) (any, error) { return nil, t.removeBinding(c.ID) }
