package state

import (
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// SetAccount changes what may change of an account but its password; nil leaves as it
// is. One that is disabled acts no more: its credentials are refused until it is
// enabled again. Result: meta.Account, without the password.
//
// Errors: meta.ErrNotFound.
type SetAccount struct {
	Name     string  `cbor:"1,keyasint,omitempty"`
	Disabled *bool   `cbor:"2,keyasint,omitempty"`
	Note     *string `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (SetAccount) Type() uint16 { return typeSetAccount }

// Check implements Command.
func (c SetAccount) Check() error {
	if c.Note != nil {
		if err := checkNote("account "+c.Name, *c.Note); err != nil {
			return err
		}
	}
	return meta.CheckAccount(c.Name)
}

func (c SetAccount) apply(t *tx) (any, error) {
	a, err := findAccount(t, c.Name)
	if err != nil {
		return nil, err
	}
	disabled, note := a.Disabled, a.Note
	change(&a.Disabled, c.Disabled)
	change(&a.Note, c.Note)
	if a.Disabled != disabled || a.Note != note {
		t.putAccount(a)
	}
	if a.Disabled != disabled {
		t.bumpAccess()
	}
	a.Password = nil
	return *a, nil
}
