package login

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/federation"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

const (
	// A look at an issuer takes so long at most, and is not repeated sooner than
	// lookEvery: tokens with unknown keys cost nothing to make.
	lookFor   = 10 * time.Second
	lookEvery = 30 * time.Second
	maxLooks  = 1024
)

// Exchange makes a credential of a job for the token of its issuer (RFC 8693). tenant
// may be "" when only one tenant has that issuer.
//
// Errors: *access.CredentialsError with the reason; *credential.SlowError;
// meta.ErrUnavailable.
func (d *Desk) Exchange(c *protocol.Call, token trust.Secret, tenant meta.TenantName) (Minted, error) {
	source := sourceOf(c)
	// Signatures cost less than passwords; what is slowed is who tries many.
	if err := d.throttle.Begin(time.Now(), source, "exchange "+source); err != nil {
		return Minted{}, err
	}
	issuer, v, err := d.judgeToken(c.R.Context(), token.Reveal(), tenant)
	if err != nil {
		return Minted{}, refusal(err)
	}
	d.throttle.Succeed(time.Now(), source, "exchange "+source)
	if len(v.Rules) == 0 {
		return Minted{}, &access.CredentialsError{Reason: fmt.Sprintf("no rule of issuer %s is true for %s; `shoal oidc test` shows why", issuer.ID(), v.Principal)}
	}
	rights, err := d.rightsOf(c.R.Context(), v.Rules)
	if err != nil {
		return Minted{}, err
	}
	c.Who = meta.Principal{Name: v.Principal}
	return d.mint(c, meta.Credential{
		Principal: v.Principal, Kind: meta.CredentialExchange, Issuer: issuer.ID(), Grants: rights,
	}, v.Life)
}

// refusal is what a caller with a token of no worth is told.
func refusal(err error) error {
	var bad *federation.TokenError
	if errors.As(err, &bad) {
		return &access.CredentialsError{Reason: bad.Error()}
	}
	return err
}

// rightsOf resolves the roles of rules, as they are now.
func (d *Desk) rightsOf(ctx context.Context, rules []meta.IssuerRule) ([]meta.Right, error) {
	if len(rules) > meta.MaxNarrowing {
		return nil, &access.CredentialsError{Reason: fmt.Sprintf("%d rules are true for it, at most %d may be", len(rules), meta.MaxNarrowing)}
	}
	var rights []meta.Right
	for _, r := range rules {
		role, err := ask(ctx, d, state.GetRole{Name: r.Role})
		if errors.Is(err, meta.ErrNotFound) {
			continue // removed since; it gives nothing
		}
		if err != nil {
			return nil, err
		}
		rights = append(rights, meta.Right{Actions: role.Actions, Repository: r.Repository, Environment: r.Environment, Role: r.Role, Binding: "rule:" + r.Name})
	}
	return rights, nil
}

// judgeToken finds the issuer that a token names and judges it, after another look at
// the issuer's keys when it has a new one.
func (d *Desk) judgeToken(ctx context.Context, token string, tenant meta.TenantName) (*meta.Issuer, *federation.Verdict, error) {
	url, err := federation.Peek(token)
	if err != nil {
		return nil, nil, err
	}
	if tenant != "" {
		if err := meta.CheckTenant(tenant); err != nil {
			return nil, nil, err
		}
	}
	issuers, err := ask(ctx, d, state.IssuersAt{URL: url, Tenant: tenant})
	if err != nil {
		return nil, nil, fmt.Errorf("look up the issuer: %w", err)
	}
	switch {
	case len(issuers) == 0:
		return nil, nil, &federation.TokenError{Reason: fmt.Sprintf("no tenant that you named trusts the issuer %.200q", url)}
	case tenant == "" && len(issuers) > 1:
		return nil, nil, &federation.TokenError{Reason: "more than one tenant trusts its issuer, say which one you mean with audience=TENANT"}
	}
	// A tenant may have one issuer twice, with other audiences.
	var first error
	for i := range issuers {
		v, err := d.judgeBy(ctx, &issuers[i], token)
		if err == nil {
			return &issuers[i], v, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, nil, first
}

func (d *Desk) judgeBy(ctx context.Context, issuer *meta.Issuer, token string) (*federation.Verdict, error) {
	v, err := d.judge.Judge(ctx, issuer, token, time.Now())
	if !errors.Is(err, federation.ErrUnknownKey) || issuer.Pinned {
		return v, err
	}
	fresh, lookErr := d.Look(ctx, issuer)
	if lookErr != nil {
		d.Log.Debug("the keys of an issuer are those that were known", "issuer", issuer.ID(), "error", lookErr)
		return nil, err
	}
	return d.judge.Judge(ctx, fresh, token, time.Now())
}

// Test judges a token against an issuer's record as it is, and makes nothing of it.
//
// Errors: meta.ErrNotFound for the issuer; *federation.TokenError.
func (d *Desk) Test(ctx context.Context, tenant meta.TenantName, name string, token trust.Secret) (*federation.Verdict, error) {
	issuer, err := ask(ctx, d, state.GetIssuer{Tenant: tenant, Name: name})
	if err != nil {
		return nil, err
	}
	return d.judgeBy(ctx, &issuer, token.Reveal())
}

// PutIssuer records an issuer, with its keys when they are not given: it has to answer
// once.
//
// Errors: meta.ErrInvalid; meta.ErrUnavailable when it does not answer.
func (d *Desk) PutIssuer(c *protocol.Call, i meta.Issuer) (meta.Issuer, error) {
	if len(i.Keys) > 0 {
		clean, err := federation.CleanKeys(i.Keys)
		if err != nil {
			return meta.Issuer{}, fmt.Errorf("keys: %w", err)
		}
		i.Keys, i.Pinned = clean, true
	}
	if err := federation.Check(&i); err != nil {
		return meta.Issuer{}, err
	}
	if !i.Pinned {
		keys, err := d.fetch(c.R.Context(), &i)
		if err != nil {
			return meta.Issuer{}, fmt.Errorf("issuer %s: %w; without a way to it give its keys with --jwks FILE", i.Name, err)
		}
		i.Keys = keys
	}
	value, err := d.do(c, state.PutIssuer{Issuer: i})
	if err != nil {
		return meta.Issuer{}, err
	}
	made, ok := value.(meta.Issuer)
	if !ok {
		return meta.Issuer{}, fmt.Errorf("an issuer's record is a %T", value)
	}
	return made, nil
}

func (d *Desk) fetch(ctx context.Context, i *meta.Issuer) ([]byte, error) {
	roots, err := federation.Roots(i.Roots)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	client := d.Client(roots)
	defer client.CloseIdleConnections()
	return federation.Fetch(ctx, client, i.URL)
}

// Look asks an issuer for its keys and puts them on record, unless that was done a
// moment ago. It returns the issuer with them.
//
// Errors: meta.ErrUnavailable when it does not answer; then what was known stays.
func (d *Desk) Look(ctx context.Context, i *meta.Issuer) (*meta.Issuer, error) {
	if err := d.mayLook(i.ID()); err != nil {
		return nil, err
	}
	keys, err := d.fetch(ctx, i)
	if err != nil {
		return nil, err
	}
	fresh := *i
	fresh.Keys = keys
	_, err = d.Doer.Do(ctx, state.Origin{Principal: "system:issuers"}, state.SetIssuerKeys{Tenant: i.Tenant, Name: i.Name, URL: i.URL, Keys: keys})
	if err != nil {
		// Without a quorum the token is judged by what was just seen all the same.
		d.Log.Warn("the keys of an issuer could not be put on record", "issuer", i.ID(), "error", err)
		fresh.KeysAt = meta.TimeOf(time.Now())
		return &fresh, nil
	}
	if recorded, err := ask(ctx, d, state.GetIssuer{Tenant: i.Tenant, Name: i.Name}); err == nil {
		return &recorded, nil
	}
	fresh.KeysAt = meta.TimeOf(time.Now())
	return &fresh, nil
}

// mayLook refuses a look that comes too soon after the last.
func (d *Desk) mayLook(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if last, ok := d.looks[id]; ok && now.Sub(last) < lookEvery {
		return fmt.Errorf("issuer %s was asked a moment ago: %w", id, meta.ErrUnavailable)
	}
	if len(d.looks) >= maxLooks {
		clear(d.looks)
	}
	d.looks[id] = now
	return nil
}
