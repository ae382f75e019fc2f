package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// PutRole makes a role, or gives it other actions: at once for all who are bound to
// it. A tenant's role holds no action that is about the cluster only. Result:
// meta.AccessRole.
//
// Errors: meta.ErrNotFound for a role of no tenant.
type PutRole struct {
	Name    string        `cbor:"1,keyasint,omitempty"` // deployer, acme/deployer
	Actions []meta.Action `cbor:"2,keyasint,omitempty"`
	Note    string        `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (PutRole) Type() uint16 { return typePutRole }

// Check implements Command.
func (c PutRole) Check() error {
	if err := meta.CheckRoleName(c.Name); err != nil {
		return err
	}
	if err := (meta.Right{Actions: c.Actions, Repository: "*"}).Check(); err != nil {
		return fmt.Errorf("role %s: %w", c.Name, err)
	}
	if meta.RoleTenant(c.Name) != "" {
		for _, a := range c.Actions {
			if a.OfCluster() {
				return fmt.Errorf("role %s: %s is about the cluster, a role of the cluster may hold it: %w", c.Name, a, meta.ErrInvalid)
			}
		}
	}
	return checkNote("role "+c.Name, c.Note)
}

func (c PutRole) apply(t *tx) (any, error) {
	if tenant := meta.RoleTenant(c.Name); tenant != "" {
		if _, err := find[meta.Tenant](t, keyTenant(tenant), "tenant", tenant); err != nil {
			return nil, err
		}
	}
	actions := inOrder(c.Actions)
	role, err := load[meta.AccessRole](t, keyRole(c.Name))
	switch {
	case err != nil:
		return nil, err
	case role == nil:
		role = &meta.AccessRole{Name: c.Name, Created: t.now, CreatedBy: t.origin.Principal}
	case !slices.Equal(role.Actions, actions):
		t.bumpAccess()
	}
	role.Actions, role.Note, role.Revision = actions, c.Note, t.index
	t.put(keyRole(c.Name), role)
	return *role, nil
}
