package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

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
	}
}

func (t *tokens) get(c *protocol.Call) error {
	if t.g.Role == meta.RoleAgent && access.HasCredentials(c.R) {
		if err := t.g.Gate.CheckTransport(c.R, c.Loopback); err != nil {
			return t.refuse(c, err)
		}
		return t.g.Forward.Server(c.W, c.R)
	}
	return t.issue(c, "", c.R.URL.Query()["scope"])
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
	secret := ""
	switch grant := form.Get("grant_type"); grant {
	case "password":
		secret = form.Get("password")
	case "refresh_token":
		// We issue none, but a client may keep its token as one (an identity token).
		secret = form.Get("refresh_token")
	case "":
		if !access.HasCredentials(c.R) {
			return fmt.Errorf("grant_type is missing: %w", meta.ErrInvalid)
		}
		return t.issue(c, "", form["scope"])
	default:
		return fmt.Errorf("grant_type %q is not supported, use password: %w", grant, meta.ErrInvalid)
	}
	if secret == "" {
		return t.refuse(c, &access.CredentialsError{Reason: "the form has no secret"})
	}
	return t.issue(c, secret, form["scope"])
}

// answer is the body of a token response; both names of the token are in use.
type answer struct {
	Token       string `json:"token"`
	AccessToken string `json:"access_token"`
	Scope       string `json:"scope,omitempty"`
	ExpiresIn   int    `json:"expires_in"` // seconds
	IssuedAt    string `json:"issued_at"`
	TokenType   string `json:"token_type"`
}

func (t *tokens) issue(c *protocol.Call, secret string, scopes []string) error {
	who, err := t.g.Gate.Login(c.R, c.Loopback, secret)
	var bad *access.CredentialsError
	if errors.As(err, &bad) {
		return t.refuse(c, err)
	}
	if err != nil {
		return err
	}
	asked, err := access.ParseScopes(scopes)
	if err != nil {
		return err
	}
	token, err := t.g.Gate.Issue(who, asked)
	if err != nil {
		return err
	}
	c.Who, c.Minted = who, true
	var granted []string
	for _, s := range token.Granted {
		granted = append(granted, s.String())
	}
	return protocol.WriteJSON(c.W, http.StatusOK, answer{
		Token:       token.Text,
		AccessToken: token.Text,
		Scope:       strings.Join(granted, " "),
		ExpiresIn:   int(token.Life / time.Second),
		IssuedAt:    token.Issued.UTC().Format(time.RFC3339),
		TokenType:   "Bearer",
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
	w.Header().Set("Cache-Control", "no-store")
	text := challengeText(s)
	_ = protocol.WriteJSON(w, http.StatusUnauthorized, tokenError{"invalid_grant", text, []tokenOCIError{{"UNAUTHORIZED", text}}})
}
