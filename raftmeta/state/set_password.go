package state

import (
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// SetPassword gives a user a local password, as its Argon2id hash in PHC form, or
// takes it away. The sessions that the one before has opened end. Result:
// meta.Account, without the hash.
//
// Errors: meta.ErrNotFound.
type SetPassword struct {
	Name     string `cbor:"1,keyasint,omitempty"` // user:NAME
	Password []byte `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (SetPassword) Type() uint16 { return typeSetPassword }

// Check implements Command.
func (c SetPassword) Check() error {
	if err := meta.CheckAccount(c.Name); err != nil {
		return err
	}
	if kind, _ := meta.SplitPrincipal(c.Name); kind != meta.KindUser {
		return fmt.Errorf("%s has no password, only users have: make a token with `shoal token create`: %w", c.Name, meta.ErrInvalid)
	}
	if len(c.Password) > 0 && (len(c.Password) > 256 || !strings.HasPrefix(string(c.Password), "$argon2id$")) {
		return fmt.Errorf("the hash of a password is Argon2id in PHC form: %w", meta.ErrInvalid)
	}
	return nil
}

func (c SetPassword) apply(t *tx) (any, error) {
	account, err := findAccount(t, c.Name)
	if err != nil {
		return nil, err
	}
	var sessions []*meta.Credential
	for held, err := range credentialsOf(t, c.Name) {
		if err != nil {
			return nil, err
		}
		if held.Kind == meta.CredentialSession {
			sessions = append(sessions, held)
		}
	}
	for _, session := range sessions {
		t.revokeCredential(session)
	}
	account.Password = c.Password
	t.putAccount(account)
	account.Password = nil
	return *account, nil
}

// PasswordOf answers the hash of a user's password, empty without one and without the
// user. It is not among Questions: servers ask their own state, and no node can ask
// another.
type PasswordOf struct {
	Name string `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q PasswordOf) Answer(v *View) ([]byte, error) {
	a, err := load[meta.Account](v, keyAccount(q.Name))
	if err != nil || a == nil || a.Disabled {
		return nil, err
	}
	return a.Password, nil
}
