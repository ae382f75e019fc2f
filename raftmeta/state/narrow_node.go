package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// NarrowNode changes of which tenants an agent may have what is not public; no
// patterns are all tenants. Result: meta.Node.
//
// Errors: meta.ErrNotFound; meta.ErrInvalid for a server, which holds all.
type NarrowNode struct {
	ID      meta.NodeID `cbor:"1,keyasint,omitempty"`
	Tenants []string    `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (NarrowNode) Type() uint16 { return typeNarrowNode }

// Check implements Command.
func (c NarrowNode) Check() error {
	if c.ID == "" {
		return fmt.Errorf("narrow node: no id: %w", meta.ErrInvalid)
	}
	return checkTenants(c.Tenants)
}

func checkTenants(patterns []string) error {
	if len(patterns) > meta.MaxNodeTenants {
		return fmt.Errorf("%d patterns of tenants, at most %d: %w", len(patterns), meta.MaxNodeTenants, meta.ErrInvalid)
	}
	for _, p := range patterns {
		if err := meta.CheckTenantPattern(p); err != nil {
			return err
		}
	}
	return nil
}

func (c NarrowNode) apply(t *tx) (any, error) {
	n, err := findNode(t, c.ID)
	if err != nil {
		return nil, err
	}
	if n.Role == meta.RoleServer {
		return nil, fmt.Errorf("narrow node %s: a server holds the records of all tenants: %w", c.ID, meta.ErrInvalid)
	}
	if slices.Equal(n.Tenants, c.Tenants) {
		return *n, nil
	}
	n.Tenants = c.Tenants
	t.putNode(n)
	t.bumpAccess()
	return *n, nil
}
