package state

import (
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RemoveAccount removes an account with its bindings, its credentials and its elevations:
// one that is made again under the name has none of them.
//
// Errors: meta.ErrNotFound.
type RemoveAccount struct {
	Name string `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (RemoveAccount) Type() uint16 { return typeRemoveAccount }

// Check implements Command.
func (c RemoveAccount) Check() error { return meta.CheckAccount(c.Name) }

func (c RemoveAccount) apply(t *tx) (any, error) {
	if _, err := findAccount(t, c.Name); err != nil {
		return nil, err
	}
	if err := t.dropBindings(c.Name, func(*meta.Binding) bool { return true }); err != nil {
		return nil, err
	}
	if err := t.dropCredentials(c.Name); err != nil {
		return nil, err
	}
	if err := t.endElevations(c.Name); err != nil {
		return nil, err
	}
	t.del(keyAccount(c.Name))
	// What its credentials still bring is refused, though they are not there any more.
	t.revokePrincipal(c.Name, "account removed")
	return nil, nil
}
