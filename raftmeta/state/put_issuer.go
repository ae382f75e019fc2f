package state

import (
	"errors"
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// PutIssuer makes or replaces an issuer of a tenant. Its keys stay while its URL does,
// unless others are given. Result: meta.Issuer.
//
// Errors: meta.ErrNotFound for the tenant, meta.ErrInvalid for a rule with a role that
// is not there, meta.ErrOverQuota for one too many.
type PutIssuer struct {
	Issuer meta.Issuer `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (PutIssuer) Type() uint16 { return typePutIssuer }

// Check implements Command.
func (c PutIssuer) Check() error { return c.Issuer.Check() }

func (c PutIssuer) apply(t *tx) (any, error) {
	made := c.Issuer
	if _, err := find[meta.Tenant](t, keyTenant(made.Tenant), "tenant", made.Tenant); err != nil {
		return nil, err
	}
	for _, r := range made.Rules {
		role, err := findRole(t, r.Role)
		if errors.Is(err, meta.ErrNotFound) {
			return nil, fmt.Errorf("rule %s: role %s is not there, see `shoal role list`: %w", r.Name, r.Role, meta.ErrInvalid)
		}
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(role.Actions, meta.Action.OfCluster) {
			return nil, fmt.Errorf("rule %s: role %s is about the cluster, a job's is about its tenant: %w", r.Name, r.Role, meta.ErrInvalid)
		}
	}
	old, err := load[meta.Issuer](t, keyIssuer(made.Tenant, made.Name))
	if err != nil {
		return nil, err
	}
	made.Created, made.CreatedBy, made.Revision, made.KeysAt = t.now, t.origin.Principal, t.index, 0
	if len(made.Keys) > 0 {
		made.KeysAt = t.now
	}
	if old != nil {
		made.Created, made.CreatedBy = old.Created, old.CreatedBy
		if old.URL == made.URL && len(made.Keys) == 0 {
			made.Keys, made.KeysAt = old.Keys, old.KeysAt
		}
		t.del(keyIssuerOfURL(old))
	} else {
		n := 0
		for _, err := range t.scan(within(keyIssuers(made.Tenant))) {
			if err != nil {
				return nil, err
			}
			n++
		}
		if n >= meta.MaxIssuers {
			return nil, fmt.Errorf("tenant %s has %d issuers, as many as one may: %w", made.Tenant, n, meta.ErrOverQuota)
		}
	}
	t.put(keyIssuer(made.Tenant, made.Name), made)
	t.mark(keyIssuerOfURL(&made))
	return made, nil
}
