package state

import (
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// credentialLevel is the cluster level from which credentials are on record.
const credentialLevel = 5

// Numbers of the commands about credentials and issuers.
const (
	typeCreateCredential  = 110
	typeTouchCredentials  = 111
	typeExpireCredentials = 112
	typeRotateCredential  = 113
	typeSetPassword       = 114
	typePutIssuer         = 115
	typeRemoveIssuer      = 116
	typeSetIssuerKeys     = 117
)

// Letters of spaceCredentials.
const (
	byID        = 'i' // [id] -> meta.Credential
	byPrincipal = 'p' // principal [id] -> nothing
	byTenant    = 't' // tenant [id] -> nothing: of robots and jobs of a tenant
	byEnd       = 'e' // expires-u64 [id] -> nothing
	ofCounts    = 'n' // [principal] -> u64: how many it has
)

func keyCredential(id string) key     { return key{spaceCredentials, byID}.last(id) }
func keyCredentialsOf(who string) key { return key{spaceCredentials, byPrincipal}.part(who) }
func keyCredentialCount(w string) key { return key{spaceCredentials, ofCounts}.last(w) }
func keyCredentialsEnding() key       { return key{spaceCredentials, byEnd} }
func keyEnding(c *meta.Credential) key {
	return keyCredentialsEnding().u64(clock(c.Expires)).last(c.ID)
}
func keyTenantCredentials(t meta.TenantName) key {
	return key{spaceCredentials, byTenant}.part(string(t))
}

// findCredential returns the credential of an id, dead or alive.
//
// Errors: meta.ErrNotFound.
func findCredential(r reader, id string) (*meta.Credential, error) {
	return find[meta.Credential](r, keyCredential(id), "token", id)
}

// addCredential stores a new one, and its entries in the indexes.
func (t *tx) addCredential(c *meta.Credential) error {
	n, err := number(t, keyCredentialCount(c.Principal))
	switch {
	case err != nil:
		return err
	case n >= meta.MaxCredentials:
		return fmt.Errorf("%s has %d tokens, as many as one may: revoke those that are not used, they go a day after they end: %w", c.Principal, n, meta.ErrOverQuota)
	}
	t.setNumber(keyCredentialCount(c.Principal), n+1)
	t.mark(keyCredentialsOf(c.Principal).last(c.ID))
	if tenant := c.Tenant(); tenant != "" {
		t.mark(keyTenantCredentials(tenant).last(c.ID))
	}
	t.mark(keyEnding(c))
	t.put(keyCredential(c.ID), c)
	return nil
}

// putCredential stores what changed of a credential that is there, but for its principal
// and its end.
func (t *tx) putCredential(c *meta.Credential) { t.put(keyCredential(c.ID), c) }

// endCredential lets a credential end at another time.
func (t *tx) endCredential(c *meta.Credential, at meta.Time) {
	t.del(keyEnding(c))
	c.Expires = at
	t.mark(keyEnding(c))
	t.putCredential(c)
}

// revokeCredential ends a credential for good, if it was not revoked before.
func (t *tx) revokeCredential(c *meta.Credential) {
	if c.Revoked != 0 {
		return
	}
	c.Revoked, c.RevokedBy = t.now, t.origin.Principal
	t.putCredential(c)
	t.bumpAccess()
}

// dropCredential forgets a credential.
func (t *tx) dropCredential(c *meta.Credential) error {
	n, err := number(t, keyCredentialCount(c.Principal))
	switch {
	case err != nil:
		return err
	case n <= 1:
		t.del(keyCredentialCount(c.Principal))
	default:
		t.setNumber(keyCredentialCount(c.Principal), n-1)
	}
	t.del(keyCredentialsOf(c.Principal).last(c.ID))
	if tenant := c.Tenant(); tenant != "" {
		t.del(keyTenantCredentials(tenant).last(c.ID))
	}
	t.del(keyEnding(c))
	t.del(keyCredential(c.ID))
	return nil
}

// dropCredentials forgets all credentials of a principal: of an account that goes.
func (t *tx) dropCredentials(principal string) error {
	var all []*meta.Credential
	for c, err := range credentialsOf(t, principal) {
		if err != nil {
			return err
		}
		all = append(all, c)
	}
	for _, c := range all {
		if err := t.dropCredential(c); err != nil {
			return err
		}
	}
	return nil
}

// credentialsOf yields the credentials of a principal in order of their ids, at most
// meta.MaxCredentials. Nothing may be written meanwhile.
func credentialsOf(r reader, principal string) iter.Seq2[*meta.Credential, error] {
	return indexed(r, within(keyCredentialsOf(principal)), len(keyCredentialsOf(principal)))
}

// indexed yields the credentials that an index names, whose ids begin at a byte of the key.
func indexed(r reader, s span, at int) iter.Seq2[*meta.Credential, error] {
	return func(yield func(*meta.Credential, error) bool) {
		for p, err := range r.scan(s) {
			var c *meta.Credential
			if err == nil {
				c, err = findCredential(r, string(p.key[at:]))
			}
			if !yield(c, err) || err != nil {
				return
			}
		}
	}
}

// credentialHolds refuses a credential that was revoked, alone or with all of its
// principal or tenant, or whose issuer is gone. Whether it has ended is for whoever has
// a clock (meta.Credential.Live).
//
// Errors: meta.ErrDenied.
func credentialHolds(r reader, c *meta.Credential) error {
	void, err := notBefore(r, c.Principal, c.Tenant())
	switch {
	case err != nil:
		return err
	case c.Revoked != 0 || c.Issued <= void:
		return fmt.Errorf("token %s was revoked: %w", c.ID, meta.ErrDenied)
	}
	if c.Kind != meta.CredentialExchange {
		return nil
	}
	if err := needIssuerOf(r, c); meta.KindOf(err) != "" {
		return fmt.Errorf("token %s: its issuer %s is not of the tenant any more: %w", c.ID, c.Issuer, meta.ErrDenied)
	} else if err != nil {
		return err
	}
	return nil
}

// GetCredential answers a credential by its id, dead or alive, without its hash.
type GetCredential struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

func (GetCredential) serversOnly() {}

// Answer implements Question.
func (q GetCredential) Answer(v *View) (meta.Credential, error) {
	c, err := value(findCredential(v, q.ID))
	c.Hash = nil
	return c, err
}

// ListCredentials lists credentials without their hashes, in order of their ids: those
// of a principal, else of a tenant's robots and jobs, else all. Page.After is an id.
type ListCredentials struct {
	Principal string          `cbor:"1,keyasint,omitempty"`
	Tenant    meta.TenantName `cbor:"2,keyasint,omitempty"`
	Page      Page            `cbor:"3,keyasint,omitempty"`
}

func (ListCredentials) serversOnly() {}

// Answer implements Question.
func (q ListCredentials) Answer(v *View) ([]meta.Credential, error) {
	var prefix key
	switch {
	case q.Principal != "":
		prefix = keyCredentialsOf(q.Principal)
	case q.Tenant != "":
		prefix = keyTenantCredentials(q.Tenant)
	default:
		prefix = key{spaceCredentials, byID}
		return list(v, within(prefix).behind(prefix, q.Page.After), q.Page, func(c *meta.Credential) bool {
			c.Hash = nil
			return true
		})
	}
	limit, err := q.Page.limit()
	if err != nil {
		return nil, err
	}
	var out []meta.Credential
	for c, err := range indexed(v, within(prefix).behind(prefix, q.Page.After), len(prefix)) {
		if err != nil {
			return nil, err
		}
		c.Hash = nil
		if out = append(out, *c); len(out) == limit {
			break
		}
	}
	return out, nil
}

// CredentialsEnded answers whether a credential ended at or before an instant, so that
// ExpireCredentials has something to do.
type CredentialsEnded struct {
	Before meta.Time `cbor:"1,keyasint,omitempty"`
}

func (CredentialsEnded) serversOnly() {}

// Answer implements Question.
func (q CredentialsEnded) Answer(v *View) (bool, error) {
	for p, err := range v.scan(within(keyCredentialsEnding())) {
		return err == nil && endOf(p.key) <= q.Before, err
	}
	return false, nil
}

// endOf returns the end of a credential from its key in the order of ends.
func endOf(k []byte) meta.Time { return meta.Time(binary.BigEndian.Uint64(k[2:])) }
