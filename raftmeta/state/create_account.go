package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// CreateAccount makes the account of a user or a robot, without a password. Result:
// meta.Account.
//
// Errors: meta.ErrConflict when there is one; meta.ErrNotFound for a robot of no
// tenant.
type CreateAccount struct {
	Name string `cbor:"1,keyasint,omitempty"` // user:ada, robot:acme/ci
	Note string `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (CreateAccount) Type() uint16 { return typeCreateAccount }

// Check implements Command.
func (c CreateAccount) Check() error {
	if err := meta.CheckAccount(c.Name); err != nil {
		return err
	}
	return checkNote("account "+c.Name, c.Note)
}

func (c CreateAccount) apply(t *tx) (any, error) {
	old, err := load[meta.Account](t, keyAccount(c.Name))
	if err != nil {
		return nil, err
	}
	if old != nil {
		return nil, fmt.Errorf("account %s is there already: %w", c.Name, meta.ErrConflict)
	}
	if tenant := meta.TenantOf(c.Name); tenant != "" {
		if _, err := find[meta.Tenant](t, keyTenant(tenant), "tenant", tenant); err != nil {
			return nil, err
		}
	}
	a := &meta.Account{Name: c.Name, Note: c.Note, Created: t.now, CreatedBy: t.origin.Principal}
	t.putAccount(a)
	return *a, nil
}
