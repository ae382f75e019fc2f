package state

import "github.com/shoal-registry/shoal/raftmeta/meta"

// UpdateNode is a node's own word on its addresses, zone and rack. Role, region,
// read patterns and seal stay as admitted. Result: meta.Node.
//
// Errors: meta.ErrNotFound when it is not in the roster.
type UpdateNode struct {
	Node meta.Node `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (UpdateNode) Type() uint16 { return typeUpdateNode }

// Check implements Command.
func (c UpdateNode) Check() error { return checkNode(c.Node) }

func (c UpdateNode) apply(t *tx) (any, error) {
	n, err := findNode(t, c.Node.ID)
	if err != nil {
		return nil, err
	}
	n.Zone, n.Rack = c.Node.Zone, c.Node.Rack
	n.Swarm, n.Raft, n.Gateway = c.Node.Swarm, c.Node.Raft, c.Node.Gateway
	t.putNode(n)
	return *n, nil
}
