package state

import (
	"crypto/subtle"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Caller is all that says what a principal may: judged by it, a call needs no further
// question until the access revision moves.
type Caller struct {
	Principal string `cbor:"1,keyasint,omitempty"`
	// Rights are its bindings, resolved, and what its credential grants.
	Rights []meta.Right `cbor:"2,keyasint,omitempty"`
	// Credential is the one that was asked for, without its hash; nil when none was.
	Credential *meta.Credential `cbor:"3,keyasint,omitempty"`
	// Revision is the access revision that all of this is of.
	Revision uint64 `cbor:"4,keyasint,omitempty"`
}

// GetCaller answers who a credential stands for, or what a principal may when
// Credential is "". With a Hash the credential must have it. What has an end is in the
// answer until it is removed: whoever has a clock looks at it.
//
// Errors: meta.ErrNotFound for an unknown credential or account; meta.ErrDenied for a
// credential that was revoked and an account that is disabled.
type GetCaller struct {
	Principal  string `cbor:"1,keyasint,omitempty"`
	Credential string `cbor:"2,keyasint,omitempty"`
	Hash       []byte `cbor:"3,keyasint,omitempty"`
}

// OfCredential reports whether the question is about a credential that somebody showed:
// agents may ask no other.
func (q GetCaller) OfCredential() bool { return q.Credential != "" }

// Answer implements Question.
func (q GetCaller) Answer(v *View) (c Caller, err error) {
	if c.Revision, err = number(v, keyRevision); err != nil {
		return c, err
	}
	c.Principal = q.Principal
	if q.Credential != "" {
		if c.Credential, err = findCredential(v, q.Credential); err != nil {
			return c, err
		}
		if q.Hash != nil && subtle.ConstantTimeCompare(q.Hash, c.Credential.Hash) != 1 {
			return c, fmt.Errorf("token %s: %w", q.Credential, meta.ErrNotFound)
		}
		if q.Principal != "" && q.Principal != c.Credential.Principal {
			return c, fmt.Errorf("token %s is not of %s: %w", q.Credential, q.Principal, meta.ErrNotFound)
		}
		if err := credentialHolds(v, c.Credential); err != nil {
			return c, err
		}
		c.Principal, c.Credential.Hash = c.Credential.Principal, nil
	}
	if kind, _ := meta.SplitPrincipal(c.Principal); kind != meta.KindCI {
		account, err := findAccount(v, c.Principal)
		if err != nil {
			return c, err
		}
		if account.Disabled {
			return c, fmt.Errorf("account %s is disabled: %w", c.Principal, meta.ErrDenied)
		}
	}
	if c.Rights, err = rightsOf(v, c.Principal); err != nil {
		return c, err
	}
	if c.Credential != nil {
		c.Rights = append(c.Rights, c.Credential.Grants...)
	}
	return c, nil
}

// GetAccount answers an account, without its password.
type GetAccount struct {
	Name string `cbor:"1,keyasint,omitempty"`
}

func (GetAccount) serversOnly() {}

// Answer implements Question.
func (q GetAccount) Answer(v *View) (meta.Account, error) {
	a, err := value(findAccount(v, q.Name))
	a.Password = nil
	return a, err
}

// ListAccounts lists accounts without their passwords, in order of their names: of a
// kind, of a tenant's robots, or all. Page.After is a name.
type ListAccounts struct {
	Kind   string          `cbor:"1,keyasint,omitempty"` // meta.KindUser, meta.KindRobot
	Tenant meta.TenantName `cbor:"2,keyasint,omitempty"`
	Page   Page            `cbor:"3,keyasint,omitempty"`
}

func (ListAccounts) serversOnly() {}

// Answer implements Question.
func (q ListAccounts) Answer(v *View) ([]meta.Account, error) {
	begin := ""
	switch {
	case q.Tenant != "":
		begin = meta.KindRobot + ":" + string(q.Tenant) + "/"
	case q.Kind != "":
		begin = q.Kind + ":"
	}
	return list(v, within(keyAccount(begin)).behind(keyAccount(""), q.Page.After), q.Page, func(a *meta.Account) bool {
		a.Password = nil
		return true
	})
}

// GetRole answers a role, built in or stored.
type GetRole struct {
	Name string `cbor:"1,keyasint,omitempty"`
}

func (GetRole) serversOnly() {}

// Answer implements Question.
func (q GetRole) Answer(v *View) (meta.AccessRole, error) { return value(findRole(v, q.Name)) }

// ListRoles lists the stored roles of a tenant, or of the cluster; the built-in ones
// are meta.BuiltInRoles. Page.After is a name.
type ListRoles struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Page   Page            `cbor:"2,keyasint,omitempty"`
}

func (ListRoles) serversOnly() {}

// Answer implements Question.
func (q ListRoles) Answer(v *View) ([]meta.AccessRole, error) {
	prefix := keyRoles(q.Tenant)
	return list(v, within(prefix).behind(prefix, q.Page.After), q.Page, func(*meta.AccessRole) bool { return true })
}

// GetBinding answers a binding.
type GetBinding struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

func (GetBinding) serversOnly() {}

// Answer implements Question.
func (q GetBinding) Answer(v *View) (meta.Binding, error) { return value(findBinding(v, q.ID)) }

// ListBindings lists bindings in order of their ids: of a principal, else those that
// belong to a tenant, else all. Page.After is an id.
type ListBindings struct {
	Principal string          `cbor:"1,keyasint,omitempty"`
	Tenant    meta.TenantName `cbor:"2,keyasint,omitempty"`
	Page      Page            `cbor:"3,keyasint,omitempty"`
}

func (ListBindings) serversOnly() {}

// Answer implements Question.
func (q ListBindings) Answer(v *View) ([]meta.Binding, error) {
	if q.Principal != "" {
		prefix := keyBindings(q.Principal)
		return list(v, within(prefix).behind(prefix, q.Page.After), q.Page, func(*meta.Binding) bool { return true })
	}
	prefix := keyBindingID("")
	if q.Tenant != "" {
		prefix = keyBindingsIn(q.Tenant)
	}
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	var out []meta.Binding
	for p, err := range v.scan(within(prefix).behind(prefix, q.Page.After)) {
		if err != nil {
			return nil, err
		}
		id := string(p.key[len(prefix):])
		b, err := find[meta.Binding](v, keyBindings(string(p.value)).last(id), "binding", id)
		if err != nil {
			return nil, err
		}
		if out = append(out, *b); len(out) == limit {
			break
		}
	}
	return out, nil
}
