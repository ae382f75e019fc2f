package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// AddBinding gives a principal a role, or with Deny takes the role's actions from it.
// The id of the binding is made from the log; one that says the same is left as it is.
// What has expired of the principal's bindings goes. Result: meta.Binding.
//
// Errors: meta.ErrNotFound for an unknown account, role or tenant; meta.ErrOverQuota
// above meta.MaxBindings.
type AddBinding struct {
	Binding meta.Binding `cbor:"1,keyasint,omitempty"` // without ID, Created, CreatedBy
}

// Type implements Command.
func (AddBinding) Type() uint16 { return typeAddBinding }

// Check implements Command.
func (c AddBinding) Check() error {
	b := c.Binding
	if err := meta.CheckPrincipal(b.Principal); err != nil {
		return err
	}
	if err := meta.CheckPattern(b.Repository); err != nil {
		return err
	}
	if err := meta.CheckEnvironmentPattern(b.Environment); err != nil {
		return err
	}
	if len(b.Reason) > meta.MaxReasonBytes {
		return fmt.Errorf("binding of %s: a reason has at most %d bytes: %w", b.Principal, meta.MaxReasonBytes, meta.ErrInvalid)
	}
	if _, builtIn := meta.BuiltInRole(b.Role); !builtIn {
		if err := meta.CheckRoleName(b.Role); err != nil {
			return err
		}
	}
	within := meta.PatternTenant(b.Repository)
	if b.Tenant != "" && b.Tenant != within {
		return fmt.Errorf("binding of %s: it belongs to tenant %s and reaches %s: %w", b.Principal, b.Tenant, b.Repository, meta.ErrInvalid)
	}
	if owner := meta.RoleTenant(b.Role); owner != "" && owner != within {
		return fmt.Errorf("binding of %s: role %s is for what belongs to tenant %s, not for %s: %w", b.Principal, b.Role, owner, b.Repository, meta.ErrInvalid)
	}
	return checkReason("binding of "+b.Principal, b.Reason)
}

func (c AddBinding) apply(t *tx) (any, error) {
	b := c.Binding
	if b.Expires != 0 && b.Expires <= t.now {
		return nil, fmt.Errorf("binding of %s: it would have ended at %s already: %w", b.Principal, b.Expires.Std(), meta.ErrInvalid)
	}
	if kind, _ := meta.SplitPrincipal(b.Principal); kind != meta.KindCI {
		if _, err := findAccount(t, b.Principal); err != nil {
			return nil, fmt.Errorf("binding of %s: %w", b.Principal, err)
		}
	}
	if _, err := findRole(t, b.Role); err != nil {
		return nil, fmt.Errorf("binding of %s: %w", b.Principal, err)
	}
	for _, tenant := range []meta.TenantName{meta.PatternTenant(b.Repository), meta.TenantOf(b.Principal)} {
		if tenant == "" {
			continue
		}
		if _, err := find[meta.Tenant](t, keyTenant(tenant), "tenant", tenant); err != nil {
			return nil, fmt.Errorf("binding of %s: %w", b.Principal, err)
		}
	}
	left, same := 0, (*meta.Binding)(nil)
	for old, err := range bindingsOf(t, b.Principal) {
		if err != nil {
			return nil, err
		}
		if ended(old, t.now) {
			continue
		}
		left++
		alike := *old
		alike.ID, alike.Reason, alike.Created, alike.CreatedBy = b.ID, b.Reason, b.Created, b.CreatedBy
		if alike == b {
			same = old
		}
	}
	if same != nil {
		return *same, nil
	}
	if err := t.dropBindings(b.Principal, func(old *meta.Binding) bool { return ended(old, t.now) }); err != nil {
		return nil, err
	}
	if left >= meta.MaxBindings {
		return nil, fmt.Errorf("%s has %d bindings, as many as one may: remove some, or bind wider patterns: %w", b.Principal, left, meta.ErrOverQuota)
	}
	b.ID, b.Created, b.CreatedBy = fmt.Sprintf("b%d", t.index), t.now, t.origin.Principal
	t.putBinding(&b)
	t.bumpAccess()
	return b, nil
}

func ended(b *meta.Binding, now meta.Time) bool { return b.Expires != 0 && b.Expires <= now }
