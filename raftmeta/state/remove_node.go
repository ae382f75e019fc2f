package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RemoveNode takes a node from the roster.
//
// Errors: meta.ErrNotFound; meta.ErrConflict for the last server.
type RemoveNode struct {
	ID meta.NodeID `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (RemoveNode) Type() uint16 { return typeRemoveNode }

// Check implements Command.
func (c RemoveNode) Check() error {
	if c.ID == "" {
		return fmt.Errorf("remove node: no id: %w", meta.ErrInvalid)
	}
	return nil
}
