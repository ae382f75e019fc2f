package state

import (
	"errors"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// CreateCredential records a token that somebody was just given, by the hash of its
// text. Its time of issue and who made it are those of the entry. Result:
// meta.Credential, without the hash.
//
// Errors: meta.ErrNotFound without an account, or for a job without its issuer;
// meta.ErrDenied for a disabled account; meta.ErrInvalid for a life that is too long;
// meta.ErrOverQuota for one token too many; meta.ErrExists.
type CreateCredential struct {
	Credential meta.Credential `cbor:"1,keyasint,omitempty"`
	// Life is from the leader's time on, in place of Credential.Expires.
	Life time.Duration `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (CreateCredential) Type() uint16 { return typeCreateCredential }

// Check implements Command.
func (c CreateCredential) Check() error {
	if err := c.Credential.Check(); err != nil {
		return err
	}
	return checkLife(c.Credential.Kind, c.Life)
}

func checkLife(k meta.CredentialKind, life time.Duration) error {
	if life < time.Second || life > k.MaxLife() {
		return fmt.Errorf("a %s lives 1s to %v, not %v: %w", k, k.MaxLife(), life, meta.ErrInvalid)
	}
	return nil
}

func (c CreateCredential) apply(t *tx) (any, error) {
	made := c.Credential
	if err := t.mayHold(&made); err != nil {
		return nil, err
	}
	return t.issue(made, c.Life)
}

// mayHold refuses a credential of somebody who is not there.
func (t *tx) mayHold(c *meta.Credential) error {
	if tenant := c.Tenant(); tenant != "" {
		if _, err := find[meta.Tenant](t, keyTenant(tenant), "tenant", tenant); err != nil {
			return err
		}
	}
	if c.Kind == meta.CredentialExchange {
		return needIssuerOf(t, c)
	}
	account, err := findAccount(t, c.Principal)
	switch {
	case err != nil:
		return err
	case account.Disabled:
		return fmt.Errorf("%s is disabled: %w", c.Principal, meta.ErrDenied)
	}
	return nil
}

// issue stores a new credential, with the time and the maker of the entry.
func (t *tx) issue(c meta.Credential, life time.Duration) (any, error) {
	if old, err := findCredential(t, c.ID); err == nil {
		return nil, fmt.Errorf("token %s is there already: %w", old.ID, meta.ErrExists)
	} else if !errors.Is(err, meta.ErrNotFound) {
		return nil, err
	}
	c.Issued, c.Expires = t.now, t.now+meta.Time(life)
	c.CreatedBy, c.LastUsed, c.Revoked, c.RevokedBy = t.origin.Principal, 0, 0, ""
	if err := t.addCredential(&c); err != nil {
		return nil, err
	}
	c.Hash = nil
	return c, nil
}
