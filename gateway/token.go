package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/gateway/login"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Login gives credentials to who has a password, or the token of an issuer. It is a
// *login.Desk.
type Login interface {
	// Login makes a new session of a user, Session returns the id of one that requests
	// share; Exchange makes a credential of a job of a tenant. They set the call's Who.
	//
	// Errors: *access.CredentialsError; meta.ErrOverQuota for who failed too often.
	Login(c *protocol.Call, user string, password trust.Secret, note string) (login.Minted, error)
	Session(c *protocol.Call, user string, password trust.Secret) (string, error)
	Exchange(c *protocol.Call, token trust.Secret, tenant meta.TenantName) (login.Minted, error)
}

// maxFormBytes bounds the form of POST /token.
const maxFormBytes = 64 << 10

// tokens is docker's token endpoint (distribution docs/content/spec/auth/token.md
// and oauth.md): GET with Basic credentials or none, POST with a form. Without
// credentials the token is for nobody, and still opens public repositories; on
// an agent it is for the host.
//
// An agent issues only the token for its own host, which counts at its own
// gateway; with credentials the request goes to a server.
type tokens struct{ g *Gateway }

// Format implements protocol.Protocol.
func (t *tokens) Format() string { return "" }

// Routes implements protocol.Protocol.
func (t *tokens) Routes() []protocol.Route {
	return []protocol.Route{
		{Name: "token_get", Method: http.MethodGet, Pattern: "/token", Action: access.Public, Serve: t.get},
		{Name: "token_post", Method: http.MethodPost, Pattern: "/token", Action: access.Public, Serve: t.post},
		{Name: "token_exchange", Method: http.MethodPost, Pattern: "/token/exchange", Action: access.Public, Place: protocol.AnyServer, Serve: t.exchange},
	}
}

func (t *tokens) get(c *protocol.Call) error {
	if t.g.Role == meta.RoleAgent && access.HasCredentials(c.R) {
		if err := t.g.Gate.CheckTransport(c.R, c.Loopback); err != nil {
			return t.refuse(c, err)
		}
		return t.g.Forward.Server(c.W, c.R)
	}
	query := c.R.URL.Query()
	asked := request{scopes: query["scope"], offline: query.Get("offline_token") == "true"}
	if user, password, ok := c.R.BasicAuth(); ok {
		asked.user, asked.secret = user, trust.Secret(password)
	}
	return t.issue(c, asked)
}

func (t *tokens) post(c *protocol.Call) error {
	if t.g.Role == meta.RoleAgent {
		if !c.Loopback && c.R.TLS == nil && !t.g.Plain {
			return t.refuse(c, &access.CredentialsError{Reason: "they came over plain HTTP: use https, and replace this credential"})
		}
		return t.g.Forward.Server(c.W, c.R)
	}
	body, err := protocol.ReadBody(c.R, maxFormBytes)
	if err != nil {
		return err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return fmt.Errorf("form of the token request: %v: %w", err, meta.ErrInvalid)
	}
	asked := request{scopes: form["scope"], offline: form.Get("access_type") == "offline"}
	switch grant := form.Get("grant_type"); grant {
	case "password":
		asked.user, asked.secret = form.Get("username"), trust.Secret(form.Get("password"))
	case "refresh_token":
		asked.secret = trust.Secret(form.Get("refresh_token"))
	case "":
		if !access.HasCredentials(c.R) {
			return fmt.Errorf("grant_type is missing: %w", meta.ErrInvalid)
		}
		if user, password, ok := c.R.BasicAuth(); ok {
			asked.user, asked.secret = user, trust.Secret(password)
		}
		return t.issue(c, asked)
	default:
		return fmt.Errorf("grant_type %q is not supported, use password: %w", grant, meta.ErrInvalid)
	}
	if asked.secret == "" {
		return t.refuse(c, &access.CredentialsError{Reason: "the form has no secret"})
	}
	return t.issue(c, asked)
}

// answer is the body of a token response; both names of the token are in use.
type answer struct {
	Token       string `json:"token"`
	AccessToken string `json:"access_token"`
	Scope       string `json:"scope,omitempty"`
	ExpiresIn   int    `json:"expires_in"` // seconds
	IssuedAt    string `json:"issued_at"`
	TokenType   string `json:"token_type"`
	// Refresh is what a client that asked for it keeps in place of a password.
	Refresh string `json:"refresh_token,omitempty"`
}

// request is what a client asks /token for.
type request struct {
	user    string
	secret  trust.Secret // "" takes the Authorization header
	scopes  []string
	offline bool // it wants a refresh token
}

func (t *tokens) issue(c *protocol.Call, asked request) error {
	who, refresh, err := t.login(c, asked)
	if err != nil {
		return t.failed(c, err)
	}
	scopes, err := access.ParseScopes(asked.scopes)
	if err != nil {
		return err
	}
	token, err := t.g.Gate.Issue(c.R.Context(), who, scopes)
	if err != nil {
		return err
	}
	c.Who, c.Minted = who, true
	var granted []string
	for _, s := range token.Granted {
		granted = append(granted, s.String())
	}
	c.W.Header().Set("Cache-Control", "no-store")
	return protocol.WriteJSON(c.W, http.StatusOK, answer{
		Token:       token.Text,
		AccessToken: token.Text,
		Scope:       strings.Join(granted, " "),
		ExpiresIn:   int(token.Life / time.Second),
		IssuedAt:    token.Issued.UTC().Format(time.RFC3339),
		TokenType:   "Bearer",
		Refresh:     refresh.Reveal(),
	})
}

// login finds out who asks: by a token, or a user with a password, whom it logs in.
// refresh is for who asked for one: the token itself, or the session in place of the
// password, which docker then does not keep.
func (t *tokens) login(c *protocol.Call, asked request) (who meta.Principal, refresh trust.Secret, err error) {
	who, err = t.g.Gate.Login(c.R, c.Loopback, asked.secret.Reveal())
	var bad *access.CredentialsError
	switch {
	case err == nil:
		if asked.offline && credential.Looks(asked.secret.Reveal()) {
			refresh = asked.secret
		}
		return who, refresh, nil
	case !errors.As(err, &bad) || t.g.Login == nil || asked.user == "" || !access.MayBePassword(asked.secret.Reveal()):
		return who, "", err
	case t.g.Gate.CheckTransport(c.R, c.Loopback) != nil:
		return who, "", err
	}
	var id string
	if asked.offline {
		session, err := t.g.Login.Login(c, asked.user, asked.secret, "docker login")
		if err != nil {
			return who, "", err
		}
		refresh, id = session.Text, session.ID
	} else if id, err = t.g.Login.Session(c, asked.user, asked.secret); err != nil {
		return who, "", err
	}
	who, err = t.g.Gate.Resolve(c.R.Context(), id)
	return who, refresh, err
}

// failed tells a caller why it gets no token.
func (t *tokens) failed(c *protocol.Call, err error) error {
	var bad *access.CredentialsError
	if errors.As(err, &bad) {
		return t.refuse(c, err)
	}
	if errors.Is(err, meta.ErrOverQuota) {
		c.Refused = err // too many failed logins
	}
	return err
}

// exchanged is the body of an exchange (RFC 8693, 2.2.1).
type exchanged struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int    `json:"expires_in"` // seconds
	// Principal is who the caller is from now on: of our own making.
	Principal string `json:"principal"`
}

// Names of RFC 8693.
const (
	grantExchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	typeIDToken     = "urn:ietf:params:oauth:token-type:id_token"
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"
)

// exchange gives a job a credential for the token of its issuer (RFC 8693): audience
// names the tenant.
func (t *tokens) exchange(c *protocol.Call) error {
	if t.g.Login == nil {
		return fmt.Errorf("this node exchanges no tokens: %w", meta.ErrUnavailable)
	}
	body, err := protocol.ReadBody(c.R, maxFormBytes)
	if err != nil {
		return err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return fmt.Errorf("form of the exchange: it is not application/x-www-form-urlencoded: %w", meta.ErrInvalid)
	}
	if grant := form.Get("grant_type"); grant != grantExchange {
		return fmt.Errorf("grant_type %.100q is not supported, use %s: %w", grant, grantExchange, meta.ErrInvalid)
	}
	switch kind := form.Get("subject_token_type"); kind {
	case typeIDToken, typeJWT:
	default:
		return fmt.Errorf("subject_token_type %.100q is not supported, use %s: %w", kind, typeIDToken, meta.ErrInvalid)
	}
	if kind := form.Get("requested_token_type"); kind != "" && kind != typeAccessToken {
		return fmt.Errorf("requested_token_type %.100q is not supported, use %s: %w", kind, typeAccessToken, meta.ErrInvalid)
	}
	if form.Get("actor_token") != "" || form.Get("subject_token") == "" || len(form["audience"]) > 1 {
		return fmt.Errorf("the exchange takes one subject_token, no actor_token, and as audience at most one tenant: %w", meta.ErrInvalid)
	}
	made, err := t.g.Login.Exchange(c, trust.Secret(form.Get("subject_token")), meta.TenantName(form.Get("audience")))
	var bad *access.CredentialsError
	switch {
	case errors.As(err, &bad):
		// What is wrong is the grant, not who asks: no 401 (RFC 6749, 5.2).
		c.Refused = err
		writeRefusal(c.W, http.StatusBadRequest, err.Error())
		return nil
	case err != nil:
		return t.failed(c, err)
	}
	c.Who.Token = made.ID
	c.W.Header().Set("Cache-Control", "no-store")
	return protocol.WriteJSON(c.W, http.StatusOK, exchanged{
		AccessToken: made.Text.Reveal(), IssuedTokenType: typeAccessToken, TokenType: "Bearer",
		ExpiresIn: int(made.Expires.Std().Sub(made.Issued.Std()) / time.Second), Principal: made.Principal,
	})
}

func (t *tokens) refuse(c *protocol.Call, cause error) error {
	c.Refused = cause
	t.Challenge(c.W, c.R, protocol.Scope{Action: access.Public, Cause: cause})
	return nil
}

// tokenError is the body of a refusal: OAuth 2 (RFC 6749, 5.2) and OCI in one,
// because clients of both kinds come here.
type tokenError struct {
	Error       string          `json:"error"`
	Description string          `json:"error_description"`
	Errors      []tokenOCIError `json:"errors"`
}

type tokenOCIError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// WriteError implements protocol.Protocol.
func (t *tokens) WriteError(w http.ResponseWriter, r *http.Request, err error) {
	status := protocol.Fail(w.Header(), err)
	code, oci := "server_error", "UNKNOWN"
	switch {
	case status == http.StatusServiceUnavailable:
		code, oci = "temporarily_unavailable", "UNAVAILABLE"
	case strings.Contains(err.Error(), "grant_type"):
		code, oci = "unsupported_grant_type", "UNSUPPORTED"
	case status < 500:
		code, oci = "invalid_request", "UNSUPPORTED"
	}
	// A client that went away reads no error.
	_ = protocol.WriteJSON(w, status, tokenError{code, protocol.Message(err), []tokenOCIError{{oci, protocol.Message(err)}}})
}

// Challenge implements protocol.Protocol.
func (t *tokens) Challenge(w http.ResponseWriter, r *http.Request, s protocol.Scope) {
	w.Header().Set("WWW-Authenticate", `Basic realm="shoal"`)
	writeRefusal(w, http.StatusUnauthorized, challengeText(s))
}

// writeRefusal says that a grant is worth nothing.
func writeRefusal(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Cache-Control", "no-store")
	// A client that went away reads no error.
	_ = protocol.WriteJSON(w, status, tokenError{"invalid_grant", text, []tokenOCIError{{"UNAUTHORIZED", text}}})
}
