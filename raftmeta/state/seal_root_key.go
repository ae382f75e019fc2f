package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// SealRootKey stores the CA key sealed to a server.
//
// Errors: meta.ErrNotFound when the node is no server of the roster.
type SealRootKey struct {
	Node   meta.NodeID `cbor:"1,keyasint,omitempty"`
	Sealed []byte      `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (SealRootKey) Type() uint16 { return typeSealRootKey }

// Check implements Command.
func (c SealRootKey) Check() error {
	if len(c.Sealed) == 0 || len(c.Sealed) > 8<<10 {
		return fmt.Errorf("seal root key to %s: %d bytes: %w", c.Node, len(c.Sealed), meta.ErrInvalid)
	}
	return nil
}
