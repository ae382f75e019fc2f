package state

import (
	"fmt"
	"iter"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// accessLevel is the cluster level from which accounts, roles and bindings are on
// record.
const accessLevel = 5

// Numbers of the commands about accounts, roles and bindings.
const (
	typeCreateAccount = 100
	typeSetAccount    = 101
	typeRemoveAccount = 102
	typePutRole       = 103
	typeRemoveRole    = 104
	typeAddBinding    = 105
	typeRemoveBinding = 106
)

// Letters of spaceAccess.
const (
	ofAccounts     = 'a' // [principal] -> meta.Account
	ofRoles        = 'r' // tenant [role] -> meta.AccessRole; built-in roles are not stored
	ofBindings     = 'b' // principal [id] -> meta.Binding: all of a principal are one range
	bindingByID    = 'i' // [id] -> principal
	bindingsTenant = 't' // tenant [id] -> principal
	bindingsRole   = 'u' // role [id] -> principal, of roles that are not built in
)

func keyAccount(principal string) key { return key{spaceAccess, ofAccounts}.last(principal) }
func keyRoles(tenant meta.TenantName) key {
	return key{spaceAccess, ofRoles}.part(string(tenant))
}
func keyRole(name string) key          { return keyRoles(meta.RoleTenant(name)).last(name) }
func keyBindings(principal string) key { return key{spaceAccess, ofBindings}.part(principal) }
func keyBindingID(id string) key       { return key{spaceAccess, bindingByID}.last(id) }
func keyBindingsIn(tenant meta.TenantName) key {
	return key{spaceAccess, bindingsTenant}.part(string(tenant))
}
func keyBindingsTo(role string) key { return key{spaceAccess, bindingsRole}.part(role) }

// findAccount returns the account of a principal.
//
// Errors: meta.ErrNotFound.
func findAccount(r reader, name string) (*meta.Account, error) {
	return find[meta.Account](r, keyAccount(name), "account", name)
}

// putAccount stores what changed of an account. Whether that took something back is
// for the caller to say, by bumpAccess.
func (t *tx) putAccount(a *meta.Account) {
	a.Revision = t.index
	t.put(keyAccount(a.Name), a)
}

// disableAccount stops an account, if there is one.
func (t *tx) disableAccount(name string) error {
	a, err := load[meta.Account](t, keyAccount(name))
	if err != nil || a == nil || a.Disabled {
		return err
	}
	a.Disabled = true
	t.putAccount(a)
	t.bumpAccess()
	return nil
}

// findRole returns a role, built in or stored.
//
// Errors: meta.ErrNotFound.
func findRole(r reader, name string) (*meta.AccessRole, error) {
	if role, ok := meta.BuiltInRole(name); ok {
		return &role, nil
	}
	return find[meta.AccessRole](r, keyRole(name), "role", name)
}

// roleActions returns what a role holds; none when there is no such role any more.
func roleActions(r reader, name string) ([]meta.Action, error) {
	role, err := findRole(r, name)
	if meta.KindOf(err) != "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return role.Actions, nil
}

// bindingsOf yields the bindings of a principal, at most meta.MaxBindings, in order
// of their ids. Nothing may be written meanwhile.
func bindingsOf(r reader, principal string) iter.Seq2[*meta.Binding, error] {
	return func(yield func(*meta.Binding, error) bool) {
		for p, err := range r.scan(within(keyBindings(principal))) {
			var b *meta.Binding
			if err == nil {
				b, err = decode[meta.Binding](p.key, p.value)
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

func (t *tx) putBinding(b *meta.Binding) {
	t.put(keyBindings(b.Principal).last(b.ID), b)
	for _, k := range indexesOf(b) {
		t.set(k, []byte(b.Principal))
	}
}

// dropBinding forgets a binding.
func (t *tx) dropBinding(b *meta.Binding) {
	t.del(keyBindings(b.Principal).last(b.ID))
	for _, k := range indexesOf(b) {
		t.del(k)
	}
}

// indexesOf lists the keys that name a binding's principal.
func indexesOf(b *meta.Binding) []key {
	keys := []key{keyBindingID(b.ID)}
	if b.Tenant != "" {
		keys = append(keys, keyBindingsIn(b.Tenant).last(b.ID))
	}
	if _, builtIn := meta.BuiltInRole(b.Role); !builtIn {
		keys = append(keys, keyBindingsTo(b.Role).last(b.ID))
	}
	return keys
}

// findBinding returns the binding of an id.
//
// Errors: meta.ErrNotFound.
func findBinding(r reader, id string) (*meta.Binding, error) {
	principal, err := r.get(keyBindingID(id))
	if err != nil {
		return nil, err
	}
	if principal == nil {
		return nil, fmt.Errorf("binding %s: %w", id, meta.ErrNotFound)
	}
	return find[meta.Binding](r, keyBindings(string(principal)).last(id), "binding", id)
}

// removeBinding ends a binding.
//
// Errors: meta.ErrNotFound.
func (t *tx) removeBinding(id string) error {
	b, err := findBinding(t, id)
	if err != nil {
		return err
	}
	t.dropBinding(b)
	t.bumpAccess()
	return nil
}

// dropBindings forgets the bindings of a principal that which picks.
func (t *tx) dropBindings(principal string, which func(*meta.Binding) bool) error {
	var gone []*meta.Binding
	for b, err := range bindingsOf(t, principal) {
		if err != nil {
			return err
		}
		if which(b) {
			gone = append(gone, b)
		}
	}
	for _, b := range gone {
		t.dropBinding(b)
	}
	return nil
}

// rightsOf resolves the bindings of a principal, in order of their ids: one range of
// keys, and the roles that they name.
func rightsOf(r reader, principal string) ([]meta.Right, error) {
	var rights []meta.Right
	roles := map[string][]meta.Action{}
	for b, err := range bindingsOf(r, principal) {
		if err != nil {
			return nil, err
		}
		actions, known := roles[b.Role]
		if !known {
			if actions, err = roleActions(r, b.Role); err != nil {
				return nil, err
			}
			roles[b.Role] = actions
		}
		rights = append(rights, b.Right(actions))
	}
	elevated, err := elevationsOf(r, principal)
	return append(rights, elevated...), err
}

// inOrder returns actions in the order of meta.GrantedActions, each once.
func inOrder(actions []meta.Action) []meta.Action {
	var out []meta.Action
	for _, a := range meta.GrantedActions {
		if slices.Contains(actions, a) {
			out = append(out, a)
		}
	}
	return out
}

func checkNote(what, note string) error {
	if len(note) > meta.MaxNoteBytes {
		return fmt.Errorf("%s: a note has at most %d bytes: %w", what, meta.MaxNoteBytes, meta.ErrInvalid)
	}
	return checkReason(what, note)
}
