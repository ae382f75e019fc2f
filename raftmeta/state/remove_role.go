package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RemoveRole removes a role that nobody is bound to any more: a deny would end with it.
//
// Errors: meta.ErrNotFound; meta.ErrConflict while a binding names it.
type RemoveRole struct {
	Name string `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (RemoveRole) Type() uint16 { return typeRemoveRole }

// Check implements Command.
func (c RemoveRole) Check() error { return meta.CheckRoleName(c.Name) }

func (c RemoveRole) apply(t *tx) (any, error) {
	if _, err := findRole(t, c.Name); err != nil {
		return nil, err
	}
	prefix := keyBindingsTo(c.Name)
	for p, err := range t.scan(within(prefix)) {
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("remove role %s: %s has it by binding %s, remove that first: %w", c.Name, p.value, p.key[len(prefix):], meta.ErrConflict)
	}
	t.del(keyRole(c.Name))
	t.bumpAccess()
	return nil, nil
}
