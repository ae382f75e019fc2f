package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/gateway/federation"
	"github.com/shoal-registry/shoal/gateway/login"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Logins makes and ends credentials. It is a *login.Desk.
type Logins interface {
	Create(c *protocol.Call, w login.Wish) (login.Minted, error)
	Rotate(c *protocol.Call, id string, life, overlap time.Duration) (login.Minted, error)
	Revoke(c *protocol.Call, id string) error
	Find(c *protocol.Call, id string) (meta.Credential, error)
	Login(c *protocol.Call, user string, password trust.Secret, note string) (login.Minted, error)
	SetPassword(c *protocol.Call, user string, password, current trust.Secret, own bool) error
	PutIssuer(c *protocol.Call, i meta.Issuer) (meta.Issuer, error)
	Test(ctx context.Context, tenant meta.TenantName, name string, token trust.Secret) (*federation.Verdict, error)
}

// loginRoutes are about credentials: tokens are for whose they are and for whom may
// manage those (login.MayMake, login.MayManage); issuers for whom may manage the tenant.
// All are answered by servers.
func (a *API) loginRoutes() []protocol.Route {
	at := func(name, method, pattern string, action access.Action, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "admin_" + name, Method: method, Pattern: base + pattern, Action: action, Place: protocol.AnyServer, Serve: serve}
	}
	const issuers = "tenants/{tenant}/issuers"
	return []protocol.Route{
		at("login", http.MethodPost, "login", access.Public, a.login),
		at("logout", http.MethodDelete, "login", access.Login, a.logout),
		at("password_set", http.MethodPut, "users/{user}/password", access.Login, a.setPassword),

		at("token_list", http.MethodGet, "tokens", access.Login, a.tokens),
		at("token_create", http.MethodPost, "tokens", access.Login, a.createToken),
		at("token_get", http.MethodGet, "tokens/{token}", access.Login, a.token),
		at("token_revoke", http.MethodDelete, "tokens/{token}", access.Login, a.revokeToken),
		at("token_rotate", http.MethodPost, "tokens/{token}/rotation", access.Login, a.rotateToken),

		at("issuer_list", http.MethodGet, issuers, access.Manage, a.issuers),
		at("issuer_get", http.MethodGet, issuers+"/{issuer}", access.Manage, a.issuer),
		at("issuer_put", http.MethodPut, issuers+"/{issuer}", access.Manage, a.putIssuer),
		at("issuer_remove", http.MethodDelete, issuers+"/{issuer}", access.Manage, a.removeIssuer),
		at("issuer_test", http.MethodPost, issuers+"/{issuer}/test", access.Manage, a.testIssuer),
	}
}

// writeMinted answers with a token's text, once.
func writeMinted(c *protocol.Call, m login.Minted) error {
	c.W.Header().Set("Cache-Control", "no-store")
	return protocol.WriteJSON(c.W, http.StatusCreated, client.Token{Credential: m.Credential, Text: m.Text.Reveal()})
}

// seconds reads a duration of a body.
func seconds(n int64) (time.Duration, error) {
	const most = int64(10 * 365 * 24 * time.Hour / time.Second)
	if n < 0 || n > most {
		return 0, fmt.Errorf("%d seconds: %w", n, meta.ErrInvalid)
	}
	return time.Duration(n) * time.Second, nil
}

func (a *API) login(c *protocol.Call) error {
	var body client.NewLogin
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	made, err := a.Logins.Login(c, body.User, trust.Secret(body.Password), "shoal login")
	if err != nil {
		return a.failedLogin(c, err)
	}
	c.Who.Token = made.ID
	return writeMinted(c, made)
}

// failedLogin tells the trail, and a caller why.
func (a *API) failedLogin(c *protocol.Call, err error) error {
	var bad *access.CredentialsError
	if errors.As(err, &bad) {
		c.Refused = err
		a.Challenge(c.W, c.R, protocol.Scope{Action: access.Public, Cause: err})
		return nil
	}
	if errors.Is(err, meta.ErrOverQuota) {
		c.Refused = err
	}
	return err
}

// logout ends the session that the caller shows; a token goes on, which others may use.
func (a *API) logout(c *protocol.Call) error {
	if credential.CheckID(c.Who.Token) != nil {
		c.W.WriteHeader(http.StatusNoContent)
		return nil
	}
	shown, err := a.Logins.Find(c, c.Who.Token)
	if err != nil {
		return err
	}
	if shown.Kind != meta.CredentialToken {
		if err := a.Logins.Revoke(c, shown.ID); err != nil {
			return err
		}
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) setPassword(c *protocol.Call) error {
	var body client.NewPassword
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	user := c.Params.Get("user")
	own := c.Who.Name == meta.KindUser+":"+user
	switch {
	case !own:
		if err := a.judge(c, access.Admin, access.Target{}); err != nil {
			return err
		}
	case len(c.Who.Limits) > 0:
		return fmt.Errorf("a narrowed token sets no password, log in: %w", meta.ErrDenied)
	}
	if err := a.Logins.SetPassword(c, user, trust.Secret(body.Password), trust.Secret(body.Current), own); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// tokens lists the caller's own, or those of a principal, of a tenant or of all, for whom
// may manage them or audits.
func (a *API) tokens(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	query := c.R.URL.Query()
	q := state.ListCredentials{Principal: query.Get("principal"), Tenant: meta.TenantName(query.Get("tenant")), Page: p}
	audits := access.May(c.Who, access.Audit, access.Target{Tenant: q.Tenant})
	switch {
	case q.Principal == "" && q.Tenant == "" && query.Get("all") == "":
		q.Principal = c.Who.Name
	case q.Principal != "":
		if err := login.MayManage(&c.Who, q.Principal); err != nil && !access.May(c.Who, access.Audit, access.Target{Tenant: meta.TenantOf(q.Principal)}) {
			return err
		}
	case q.Tenant != "":
		if err := meta.CheckTenant(q.Tenant); err != nil {
			return err
		}
		if !audits {
			if err := a.judge(c, access.Manage, access.Target{Tenant: q.Tenant}); err != nil {
				return err
			}
		}
	case !audits:
		if err := a.judge(c, access.Admin, access.Target{}); err != nil {
			return err
		}
	}
	found, err := ask(a, c, q)
	if err != nil {
		return err
	}
	return writePage(c, p, found, func(c meta.Credential) string { return c.ID })
}

func (a *API) createToken(c *protocol.Call) error {
	var body client.NewToken
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	limits, err := login.Limits(body.Repositories, body.Actions, body.Environment)
	if err != nil {
		return err
	}
	life, err := seconds(body.TTLSeconds)
	if err != nil {
		return err
	}
	made, err := a.Logins.Create(c, login.Wish{Principal: body.Principal, Limits: limits, Life: life, Note: body.Note})
	if err != nil {
		return err
	}
	return writeMinted(c, made)
}

func (a *API) token(c *protocol.Call) error {
	found, err := a.Logins.Find(c, c.Params.Get("token"))
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, found)
}

func (a *API) revokeToken(c *protocol.Call) error {
	if err := a.Logins.Revoke(c, c.Params.Get("token")); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) rotateToken(c *protocol.Call) error {
	var body client.Rotation
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	life, err1 := seconds(body.TTLSeconds)
	overlap, err2 := seconds(body.OverlapSeconds)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	made, err := a.Logins.Rotate(c, c.Params.Get("token"), life, overlap)
	if err != nil {
		return err
	}
	return writeMinted(c, made)
}

func (a *API) issuers(c *protocol.Call) error {
	p, err := pageOf(c)
	if err != nil {
		return err
	}
	found, err := ask(a, c, state.ListIssuers{Tenant: tenantOf(c), Page: p})
	if err != nil {
		return err
	}
	return writePage(c, p, found, func(i meta.Issuer) string { return i.Name })
}

func (a *API) issuer(c *protocol.Call) error {
	found, err := ask(a, c, state.GetIssuer{Tenant: tenantOf(c), Name: c.Params.Get("issuer")})
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, found)
}

func (a *API) putIssuer(c *protocol.Call) error {
	var body client.NewIssuer
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	made, err := a.Logins.PutIssuer(c, meta.Issuer{
		Tenant: tenantOf(c), Name: c.Params.Get("issuer"), URL: body.URL, Audience: body.Audience, Rules: body.Rules, Keys: body.Keys, Roots: body.Roots,
	})
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, made)
}

func (a *API) removeIssuer(c *protocol.Call) error {
	if _, err := a.do(c, 0, state.RemoveIssuer{Tenant: tenantOf(c), Name: c.Params.Get("issuer")}); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) testIssuer(c *protocol.Call) error {
	var body client.TestToken
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return err
	}
	v, err := a.Logins.Test(c.R.Context(), tenantOf(c), c.Params.Get("issuer"), trust.Secret(body.Token))
	if err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusOK, client.Verdict{
		Principal: v.Principal, Claims: v.Claims.All, Rules: v.Rules, Failed: v.Failed, LifeSeconds: int64(v.Life / time.Second),
	})
}
