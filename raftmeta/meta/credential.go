package meta

import (
	"fmt"
	"net/url"
	"slices"
	"time"
)

// CredentialKind is how a credential came to be.
type CredentialKind string

// How credentials come to be.
const (
	// CredentialToken is a token that somebody made, for people's scripts and robots.
	CredentialToken CredentialKind = "token"
	// CredentialSession is what logging in with a password gives.
	CredentialSession CredentialKind = "session"
	// CredentialExchange is what a job got for the token of its issuer.
	CredentialExchange CredentialKind = "exchange"
)

// Lives of credentials. What is stolen is worth something for so long.
const (
	// TokenLife is how long a token lives that nobody gave another life, MaxTokenLife
	// how long one may.
	TokenLife    = 24 * time.Hour
	MaxTokenLife = 90 * 24 * time.Hour
	// SessionLife is that of a login with a password: a working day.
	SessionLife = 8 * time.Hour
	// ExchangeLife is that of a job's credential: it can exchange its token again.
	ExchangeLife = 15 * time.Minute
	// KeepExpired is how long the record of a credential outlives it, to be seen.
	KeepExpired = 24 * time.Hour
)

// MaxLife returns how long a credential of this kind may live, 0 for an unknown kind.
func (k CredentialKind) MaxLife() time.Duration {
	switch k {
	case CredentialToken:
		return MaxTokenLife
	case CredentialSession:
		return SessionLife
	case CredentialExchange:
		return ExchangeLife
	}
	return 0
}

// Limits of what is stored of credentials and issuers.
const (
	// MaxCredentials is how many a principal has at most, so that all of them can be
	// ended at once.
	MaxCredentials = 1000
	// MaxNarrowing is how many limits, or grants, one credential has.
	MaxNarrowing  = 32
	MaxNoteBytes  = 256
	MaxRules      = 64
	MaxRuleBytes  = 1024
	MaxKeysBytes  = 24 << 10
	MaxRootsBytes = 16 << 10
	// MaxIssuers is how many a tenant has.
	MaxIssuers = 16
)

// Credential is the stored record of a token; its text is with its holder alone.
type Credential struct {
	ID        string         `cbor:"1,keyasint,omitempty" json:"id"`
	Hash      []byte         `cbor:"2,keyasint,omitempty" json:"-"` // sha256 of the text
	Principal string         `cbor:"3,keyasint,omitempty" json:"principal"`
	Kind      CredentialKind `cbor:"4,keyasint,omitempty" json:"kind"`
	// Limits narrow what the principal may; nil leaves it as it is.
	Limits    []Right `cbor:"5,keyasint,omitempty" json:"limits,omitempty"`
	Issued    Time    `cbor:"6,keyasint,omitempty" json:"issued"`
	Expires   Time    `cbor:"7,keyasint,omitempty" json:"expires"`
	Note      string  `cbor:"8,keyasint,omitempty" json:"note,omitempty"`
	CreatedBy string  `cbor:"9,keyasint,omitempty" json:"created_by"`
	LastUsed  Time    `cbor:"10,keyasint,omitempty" json:"last_used,omitempty"` // to within minutes
	Revoked   Time    `cbor:"11,keyasint,omitempty" json:"revoked,omitempty"`
	RevokedBy string  `cbor:"12,keyasint,omitempty" json:"revoked_by,omitempty"`
	// Grants are rights that the credential brings by itself: what the rules of an
	// issuer give to a job, which has no account.
	Grants []Right `cbor:"13,keyasint,omitempty" json:"grants,omitempty"`
	// Issuer is the `tenant/name` of who vouched for a job, "" for all others.
	Issuer string `cbor:"14,keyasint,omitempty" json:"issuer,omitempty"`
	// Parent is the credential that this one was made with, "" for none on record.
	Parent string `cbor:"15,keyasint,omitempty" json:"parent,omitempty"`
}

// Live refuses a credential that was revoked or has ended. now is the caller's clock.
//
// Errors: ErrDenied.
func (c *Credential) Live(now time.Time) error {
	switch {
	case c.Revoked != 0:
		return fmt.Errorf("token %s was revoked on %s: %w", c.ID, c.Revoked.Std().Format(time.RFC3339), ErrDenied)
	case !now.Before(c.Expires.Std()):
		return fmt.Errorf("token %s has expired on %s, make a new one with `shoal token create` or log in again: %w", c.ID, c.Expires.Std().Format(time.RFC3339), ErrDenied)
	}
	return nil
}

// Tenant returns the tenant whose principal c is of, "" for one of the cluster.
func (c *Credential) Tenant() TenantName { return TenantOf(c.Principal) }

// Check checks what does not need the state.
//
// Errors: ErrInvalid.
func (c *Credential) Check() error {
	if c.ID == "" || len(c.ID) > 64 || len(c.Hash) != 32 {
		return fmt.Errorf("credential: it needs an id and the sha256 of its text: %w", ErrInvalid)
	}
	life := c.Kind.MaxLife()
	if life == 0 {
		return fmt.Errorf("credential: kind %q is unknown: %w", c.Kind, ErrInvalid)
	}
	check := CheckAccount
	if c.Kind == CredentialExchange {
		check = CheckPrincipal
	}
	if err := check(c.Principal); err != nil {
		return err
	}
	if kind, _ := SplitPrincipal(c.Principal); (c.Kind == CredentialExchange) != (kind == KindCI) || (c.Kind == CredentialExchange) != (c.Issuer != "") {
		return fmt.Errorf("credential: a job's comes by exchange from its issuer, and nobody else's does: %w", ErrInvalid)
	}
	if len(c.Note) > MaxNoteBytes {
		return fmt.Errorf("note of %d bytes, at most %d: %w", len(c.Note), MaxNoteBytes, ErrInvalid)
	}
	if c.Note != "" {
		if err := checkText("note", c.Note, MaxNoteBytes); err != nil {
			return err
		}
	}
	if len(c.Limits) > MaxNarrowing || len(c.Grants) > MaxNarrowing {
		return fmt.Errorf("credential: at most %d repositories a token: %w", MaxNarrowing, ErrInvalid)
	}
	for _, r := range slices.Concat(c.Limits, c.Grants) {
		if err := r.Check(); err != nil {
			return err
		}
		if r.Deny {
			return fmt.Errorf("credential: what narrows a token says what it may, not what it may not: %w", ErrInvalid)
		}
	}
	if len(c.Grants) > 0 && c.Kind != CredentialExchange {
		return fmt.Errorf("credential: only a job's brings rights: %w", ErrInvalid)
	}
	tenant := c.Tenant()
	for _, r := range c.Grants {
		if PatternTenant(r.Repository) != tenant || slices.ContainsFunc(r.Actions, Action.OfCluster) {
			return fmt.Errorf("credential: rights of tenant %s on %s: %w", tenant, r.Repository, ErrInvalid)
		}
	}
	return nil
}

// Issuer is who vouches for jobs of a tenant: an OpenID Connect provider, and what
// its tokens are worth here.
type Issuer struct {
	Tenant TenantName `cbor:"1,keyasint,omitempty" json:"tenant"`
	Name   string     `cbor:"2,keyasint,omitempty" json:"name"`
	// URL is the `iss` of its tokens, Audience the `aud` that they must be for.
	URL      string `cbor:"3,keyasint,omitempty" json:"url"`
	Audience string `cbor:"4,keyasint,omitempty" json:"audience"`
	// Rules say who may what; a token that no rule is true for is worth nothing.
	Rules []IssuerRule `cbor:"5,keyasint,omitempty" json:"rules"`
	// Pinned keys were given by hand and are never fetched.
	Pinned bool `cbor:"6,keyasint,omitempty" json:"pinned,omitempty"`
	// Keys is the JSON Web Key Set (RFC 7517), of public keys only, KeysAt when it was
	// fetched or given. They stay when the issuer cannot be reached.
	Keys   []byte `cbor:"7,keyasint,omitempty" json:"keys,omitempty"`
	KeysAt Time   `cbor:"8,keyasint,omitempty" json:"keys_at,omitempty"`
	// Roots are PEM certificates that its HTTPS server is trusted by, empty for the
	// system's.
	Roots     []byte `cbor:"9,keyasint,omitempty" json:"roots,omitempty"`
	Created   Time   `cbor:"10,keyasint,omitempty" json:"created"`
	CreatedBy string `cbor:"11,keyasint,omitempty" json:"created_by"`
	// Revision is the log index of the last change but of keys.
	Revision uint64 `cbor:"12,keyasint,omitempty" json:"revision"`
}

// IssuerRule gives a role to the jobs that When is true for.
type IssuerRule struct {
	Name string `cbor:"1,keyasint,omitempty" json:"name"`
	// When is a CEL expression over `claims`, with result bool.
	When string `cbor:"2,keyasint,omitempty" json:"when"`
	Role string `cbor:"3,keyasint,omitempty" json:"role"`
	// Repository and Environment are patterns, as of Right; the repository is of the
	// issuer's tenant.
	Repository  string `cbor:"4,keyasint,omitempty" json:"repository"`
	Environment string `cbor:"5,keyasint,omitempty" json:"environment,omitempty"`
	// Life of the credential, 0 for ExchangeLife. Of several rules that hold the
	// shortest counts.
	Life time.Duration `cbor:"6,keyasint,omitempty" json:"life,omitempty"`
}

// ID returns `tenant/name`.
func (i *Issuer) ID() string { return string(i.Tenant) + "/" + i.Name }

// Check checks what does not need the state. That rules compile is for who proposes.
//
// Errors: ErrInvalid.
func (i *Issuer) Check() error {
	if err := CheckTenant(i.Tenant); err != nil {
		return err
	}
	if err := checkName("issuer", i.Name); err != nil {
		return err
	}
	if u, err := url.Parse(i.URL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(i.URL) > 512 {
		return fmt.Errorf("issuer %s: url %q: it is the https URL that its tokens have as iss: %w", i.Name, i.URL, ErrInvalid)
	}
	if err := checkText("audience", i.Audience, 255); err != nil {
		return err
	}
	if len(i.Keys) > MaxKeysBytes || len(i.Roots) > MaxRootsBytes {
		return fmt.Errorf("issuer %s: %d bytes of keys and %d of roots, at most %d and %d: %w", i.Name, len(i.Keys), len(i.Roots), MaxKeysBytes, MaxRootsBytes, ErrInvalid)
	}
	if i.Pinned && len(i.Keys) == 0 {
		return fmt.Errorf("issuer %s: pinned keys have to be given: %w", i.Name, ErrInvalid)
	}
	if len(i.Rules) == 0 || len(i.Rules) > MaxRules {
		return fmt.Errorf("issuer %s: it has %d rules, write 1 to %d: %w", i.Name, len(i.Rules), MaxRules, ErrInvalid)
	}
	total := 0
	for n, r := range i.Rules {
		if err := i.checkRule(r); err != nil {
			return err
		}
		if slices.ContainsFunc(i.Rules[:n], func(o IssuerRule) bool { return o.Name == r.Name }) {
			return fmt.Errorf("issuer %s: two rules are named %s: %w", i.Name, r.Name, ErrInvalid)
		}
		total += len(r.When)
	}
	if total > 8*MaxRuleBytes {
		return fmt.Errorf("issuer %s: rules of %d bytes, at most %d: %w", i.Name, total, 8*MaxRuleBytes, ErrInvalid)
	}
	return nil
}

func (i *Issuer) checkRule(r IssuerRule) error {
	if err := checkName("rule", r.Name); err != nil {
		return err
	}
	if r.When == "" || len(r.When) > MaxRuleBytes {
		return fmt.Errorf("rule %s: when has %d bytes, write 1 to %d: %w", r.Name, len(r.When), MaxRuleBytes, ErrInvalid)
	}
	if r.Role == "" || len(r.Role) > 127 {
		return fmt.Errorf("rule %s: name a role: %w", r.Name, ErrInvalid)
	}
	if t := RoleTenant(r.Role); t != "" && t != i.Tenant {
		return fmt.Errorf("rule %s: role %s is another tenant's: %w", r.Name, r.Role, ErrInvalid)
	}
	if err := CheckPattern(r.Repository); err != nil {
		return err
	}
	if PatternTenant(r.Repository) != i.Tenant {
		return fmt.Errorf("rule %s: repository %s is not of tenant %s, write %s/...: %w", r.Name, r.Repository, i.Tenant, i.Tenant, ErrInvalid)
	}
	if r.Life < 0 || r.Life > ExchangeLife {
		return fmt.Errorf("rule %s: a life of %v, at most %v: a job can exchange its token again: %w", r.Name, r.Life, ExchangeLife, ErrInvalid)
	}
	return CheckEnvironmentPattern(r.Environment)
}
