package state

import (
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Letters of spaceIssuers.
const (
	issuersOf    = 't' // tenant [name] -> meta.Issuer
	issuersByURL = 'u' // url tenant [name] -> nothing
)

func keyIssuers(t meta.TenantName) key { return key{spaceIssuers, issuersOf}.part(string(t)) }
func keyIssuer(t meta.TenantName, name string) key {
	return keyIssuers(t).last(name)
}
func keyIssuerURL(url string) key { return key{spaceIssuers, issuersByURL}.part(url) }

// keyIssuerOfURL is an issuer's place in the index of URLs.
func keyIssuerOfURL(i *meta.Issuer) key {
	return keyIssuerURL(i.URL).part(string(i.Tenant)).last(i.Name)
}

// findIssuer returns an issuer of a tenant.
//
// Errors: meta.ErrNotFound.
func findIssuer(r reader, t meta.TenantName, name string) (*meta.Issuer, error) {
	return find[meta.Issuer](r, keyIssuer(t, name), "issuer", string(t)+"/"+name)
}

// GetIssuer answers an issuer.
type GetIssuer struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Name   string          `cbor:"2,keyasint,omitempty"`
}

func (GetIssuer) serversOnly() {}

// Answer implements Question.
func (q GetIssuer) Answer(v *View) (meta.Issuer, error) {
	return value(findIssuer(v, q.Tenant, q.Name))
}

// ListIssuers lists the issuers of a tenant, or of all in order of tenants and names.
// Page.After is a name, of all `tenant/name`.
type ListIssuers struct {
	Tenant meta.TenantName `cbor:"1,keyasint,omitempty"`
	Page   Page            `cbor:"2,keyasint,omitempty"`
}

func (ListIssuers) serversOnly() {}

// Answer implements Question.
func (q ListIssuers) Answer(v *View) ([]meta.Issuer, error) {
	if q.Tenant != "" {
		prefix := keyIssuers(q.Tenant)
		return list[meta.Issuer](v, within(prefix).behind(prefix, q.Page.After), q.Page, nil)
	}
	s := within(key{spaceIssuers, issuersOf})
	if tenant, name, ok := strings.Cut(q.Page.After, "/"); ok {
		s = s.behind(keyIssuers(meta.TenantName(tenant)), name)
	}
	return list[meta.Issuer](v, s, q.Page, nil)
}

// IssuersAt answers the issuers of a URL, of the tenant that is named or of all, at
// most two when none is: a token that two tenants may mean has to say which.
type IssuersAt struct {
	URL    string          `cbor:"1,keyasint,omitempty"`
	Tenant meta.TenantName `cbor:"2,keyasint,omitempty"`
}

func (IssuersAt) serversOnly() {}

// Answer implements Question.
func (q IssuersAt) Answer(v *View) ([]meta.Issuer, error) {
	prefix, limit := keyIssuerURL(q.URL), 2
	if q.Tenant != "" {
		prefix, limit = prefix.part(string(q.Tenant)), meta.MaxIssuers
	}
	var out []meta.Issuer
	for p, err := range v.scan(within(prefix)) {
		if err != nil {
			return nil, err
		}
		tenant, name := string(q.Tenant), p.key[len(prefix):]
		if q.Tenant == "" {
			tenant, name, _ = cutPart(name)
		}
		issuer, err := findIssuer(v, meta.TenantName(tenant), string(name))
		if err != nil {
			return nil, err
		}
		if out = append(out, *issuer); len(out) == limit {
			break
		}
	}
	return out, nil
}

// needIssuerOf refuses a job whose issuer is not, or no more, one of its tenant.
func needIssuerOf(r reader, c *meta.Credential) error {
	tenant, name, ok := strings.Cut(c.Issuer, "/")
	if !ok || meta.TenantName(tenant) != c.Tenant() || !strings.HasPrefix(c.Principal, meta.KindCI+":"+c.Issuer+"/") {
		return fmt.Errorf("%s is no job of issuer %s: %w", c.Principal, c.Issuer, meta.ErrInvalid)
	}
	_, err := findIssuer(r, meta.TenantName(tenant), name)
	return err
}
