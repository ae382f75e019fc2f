package client

import (
	"context"
	"iter"
	"net/http"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// NewToken is the body of POST /api/v1/tokens. Without Repositories, Actions and
// Environment the token may all that its principal may.
type NewToken struct {
	// Principal whose it is to be, `robot:acme/ci`; "" is the caller's own.
	Principal    string        `json:"principal,omitempty"`
	Repositories []string      `json:"repositories,omitempty"` // patterns
	Actions      []meta.Action `json:"actions,omitempty"`
	Environment  string        `json:"environment,omitempty"` // pattern
	TTLSeconds   int64         `json:"ttl_seconds,omitempty"` // 0 is a day
	Note         string        `json:"note,omitempty"`
}

// Token is a credential on record; Text is there once, in the answer that makes it.
type Token struct {
	meta.Credential
	Text string `json:"token,omitempty"`
}

// Rotation is the body of POST /api/v1/tokens/ID/rotation.
type Rotation struct {
	TTLSeconds     int64 `json:"ttl_seconds,omitempty"` // 0 is that of the old one
	OverlapSeconds int64 `json:"overlap_seconds,omitempty"`
}

// NewLogin is the body of POST /api/v1/login.
type NewLogin struct {
	User     string `json:"user"`
	Password string `json:"password"`
}

// NewPassword is the body of PUT /api/v1/users/U/password; an empty one takes it away.
// Current is needed for one's own.
type NewPassword struct {
	Password string `json:"password"`
	Current  string `json:"current,omitempty"`
}

// NewIssuer is the body of PUT /api/v1/tenants/T/issuers/I.
type NewIssuer struct {
	URL      string            `json:"url"`
	Audience string            `json:"audience"`
	Rules    []meta.IssuerRule `json:"rules"`
	// Keys is a JSON Web Key Set that is pinned; without it the issuer is asked.
	Keys []byte `json:"keys,omitempty"`
	// Roots are PEM certificates that its server is trusted by.
	Roots []byte `json:"roots,omitempty"`
}

// TestToken is the body of POST /api/v1/tenants/T/issuers/I/test.
type TestToken struct {
	Token string `json:"token"`
}

// Verdict is what a token of an issuer would be worth.
type Verdict struct {
	Principal string         `json:"principal"`
	Claims    map[string]any `json:"claims"`
	// Rules that hold, and why others could not be evaluated, by their names.
	Rules       []meta.IssuerRule `json:"rules"`
	Failed      map[string]string `json:"failed,omitempty"`
	LifeSeconds int64             `json:"life_seconds"`
}

// CreateToken makes a token.
func (c *Client) CreateToken(ctx context.Context, n NewToken) (t Token, err error) {
	return t, c.call(ctx, http.MethodPost, "tokens", nil, n, &t)
}

// Tokens lists tokens: of a principal, of a tenant's robots and jobs, or all; the
// caller's own when both are "" and everybody is false.
func (c *Client) Tokens(ctx context.Context, principal string, tenant meta.TenantName, everybody bool) iter.Seq2[meta.Credential, error] {
	q := query("principal", principal, "tenant", string(tenant))
	if everybody {
		q.Set("all", "true")
	}
	return all[meta.Credential](ctx, c, "tokens", q)
}

// RevokeToken ends a token.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, join("tokens", id), nil, nil, nil)
}

// RotateToken replaces a token by one that may the same.
func (c *Client) RotateToken(ctx context.Context, id string, r Rotation) (t Token, err error) {
	return t, c.call(ctx, http.MethodPost, join("tokens", id, "rotation"), nil, r, &t)
}

// Login makes a session of a user.
func (c *Client) Login(ctx context.Context, n NewLogin) (t Token, err error) {
	return t, c.call(ctx, http.MethodPost, "login", nil, n, &t)
}

// Logout ends the session that the client shows.
func (c *Client) Logout(ctx context.Context) error {
	return c.call(ctx, http.MethodDelete, "login", nil, nil, nil)
}

// SetPassword gives a user a password.
func (c *Client) SetPassword(ctx context.Context, user string, p NewPassword) error {
	return c.call(ctx, http.MethodPut, join("users", user, "password"), nil, p, nil)
}

// PutIssuer records an issuer of a tenant.
func (c *Client) PutIssuer(ctx context.Context, tenant meta.TenantName, name string, n NewIssuer) (i meta.Issuer, err error) {
	return i, c.call(ctx, http.MethodPut, join("tenants", string(tenant), "issuers", name), nil, n, &i)
}

// Issuers lists the issuers of a tenant.
func (c *Client) Issuers(ctx context.Context, tenant meta.TenantName) iter.Seq2[meta.Issuer, error] {
	return all[meta.Issuer](ctx, c, join("tenants", string(tenant), "issuers"), nil)
}

// Issuer returns one.
func (c *Client) Issuer(ctx context.Context, tenant meta.TenantName, name string) (i meta.Issuer, err error) {
	return i, c.call(ctx, http.MethodGet, join("tenants", string(tenant), "issuers", name), nil, nil, &i)
}

// RemoveIssuer removes one; what its jobs hold is void.
func (c *Client) RemoveIssuer(ctx context.Context, tenant meta.TenantName, name string) error {
	return c.call(ctx, http.MethodDelete, join("tenants", string(tenant), "issuers", name), nil, nil, nil)
}

// TestIssuer says what a token would be worth, and makes nothing of it.
func (c *Client) TestIssuer(ctx context.Context, tenant meta.TenantName, name, token string) (v Verdict, err error) {
	return v, c.call(ctx, http.MethodPost, join("tenants", string(tenant), "issuers", name, "test"), nil, TestToken{token}, &v)
}
