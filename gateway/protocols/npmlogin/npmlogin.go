// Package npmlogin is what npm, pnpm and yarn do to log in, apart from packages: `npm
// login --auth-type=legacy` (couchdb's user document), `npm whoami`, `npm logout` and
// `npm token` (npm/npm-profile, lib/index.js). Their web login is answered with not
// found, on which they ask for name and password.
//
// A password gives a session; a token of this registry, shown as the password, is
// checked and given back, so that a robot logs in by the same verb. Start at Routes. Protocol
// mounts them below each repository of package npm, as a protocol of its own: who somebody
// is does not depend on the repository, which need not be there.
//
// The package starts no goroutines.
package npmlogin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/gateway/login"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

const (
	userPrefix   = "org.couchdb.user:"
	maxBodyBytes = 16 << 10
	tokensAtOnce = 1000
)

// Desk gives and ends credentials. It is a *login.Desk.
type Desk interface {
	Login(c *protocol.Call, user string, password trust.Secret, note string) (login.Minted, error)
	Verify(c *protocol.Call, user string, password trust.Secret) (string, error)
	Create(c *protocol.Call, w login.Wish) (login.Minted, error)
	Find(c *protocol.Call, id string) (meta.Credential, error)
	Revoke(c *protocol.Call, id string) error
}

// Handler answers. Desk is nil on agents, which send such calls on; Gate and Metadata are
// required.
type Handler struct {
	Desk     Desk
	Gate     *access.Gate
	Metadata raftmeta.Asker
}

// Routes lists the routes below prefix, which ends in `/-/`.
func (h *Handler) Routes(prefix string) []protocol.Route {
	at := func(name, method, pattern string, action access.Action, serve func(*protocol.Call) error) protocol.Route {
		return protocol.Route{Name: "npm_" + name, Method: method, Pattern: prefix + pattern, Action: action, Place: protocol.AnyServer, Serve: serve}
	}
	return []protocol.Route{
		at("login", http.MethodPut, "user/{user}", access.Public, h.login),
		at("logout", http.MethodDelete, "user/token/{token}", access.Login, h.logout),
		at("whoami", http.MethodGet, "whoami", access.Login, h.whoami),
		at("token_list", http.MethodGet, "npm/v1/tokens", access.Login, h.tokens),
		at("token_create", http.MethodPost, "npm/v1/tokens", access.Login, h.createToken),
		at("token_revoke", http.MethodDelete, "npm/v1/tokens/token/{token}", access.Login, h.revokeToken),
	}
}

// readJSON reads a body as npm writes it, with fields of which only some matter.
func readJSON(c *protocol.Call, v any) error {
	body, err := protocol.ReadBody(c.R, maxBodyBytes)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("the body is not the JSON that is expected: %w", meta.ErrInvalid)
	}
	return nil
}

// loggedIn is the answer of couchdb, with the token that npm keeps.
type loggedIn struct {
	OK    string `json:"ok"`
	ID    string `json:"id"`
	Rev   string `json:"rev"`
	Token string `json:"token"`
}

func (h *Handler) login(c *protocol.Call) error {
	name, ok := strings.CutPrefix(c.Params.Get("user"), userPrefix)
	var body struct {
		Name     string `json:"name"`
		Password string `json:"password"`
	}
	if err := readJSON(c, &body); err != nil {
		return err
	}
	if !ok || name == "" || body.Name != name {
		return fmt.Errorf("the document has to be of %sNAME: %w", userPrefix, meta.ErrInvalid)
	}
	token, err := h.tokenFor(c, name, trust.Secret(body.Password))
	if err != nil {
		return h.failed(c, err)
	}
	c.W.Header().Set("Cache-Control", "no-store")
	return protocol.WriteJSON(c.W, http.StatusCreated, loggedIn{
		OK: fmt.Sprintf("you are authenticated as '%s'", c.Who.Name), ID: userPrefix + name, Rev: "1", Token: token.Reveal(),
	})
}

// tokenFor returns what npm is to keep, and sets the call's Who.
func (h *Handler) tokenFor(c *protocol.Call, name string, password trust.Secret) (trust.Secret, error) {
	if credential.Looks(password.Reveal()) {
		who, err := h.Gate.Verify(c.R.Context(), password.Reveal())
		if err != nil {
			return "", err
		}
		c.Who = who
		return password, nil
	}
	made, err := h.Desk.Login(c, name, password, "npm login")
	if err != nil {
		return "", err
	}
	c.Who.Token = made.ID
	return made.Text, nil
}

// failed tells the trail, and a caller why it has no token.
func (h *Handler) failed(c *protocol.Call, err error) error {
	var bad *access.CredentialsError
	if errors.As(err, &bad) {
		c.Refused = err
		challenge(c.W, err.Error())
		return nil
	}
	if errors.Is(err, meta.ErrOverQuota) {
		c.Refused = err
	}
	return err
}

// logout ends the session whose text the path has, as npm sends it. A token goes on,
// which others may use: npm forgets it, `shoal token revoke` ends it.
func (h *Handler) logout(c *protocol.Call) error {
	token, err := credential.Parse(c.Params.Get("token"))
	if err != nil {
		return err
	}
	if token.ID != c.Who.Token {
		return fmt.Errorf("the token to end is not the one that is shown: %w", meta.ErrDenied)
	}
	found, err := h.Desk.Find(c, token.ID)
	if err != nil {
		return err
	}
	if found.Kind == meta.CredentialSession {
		if err := h.Desk.Revoke(c, found.ID); err != nil {
			return err
		}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, map[string]bool{"ok": true})
}

func (h *Handler) whoami(c *protocol.Call) error {
	return protocol.WriteJSON(c.W, http.StatusOK, map[string]string{"username": strings.TrimPrefix(c.Who.Name, meta.KindUser+":")})
}

// token is a token as `npm token` shows it: never its text.
type token struct {
	Key      string   `json:"key"`
	Token    string   `json:"token"`
	CIDR     []string `json:"cidr_whitelist"`
	ReadOnly bool     `json:"readonly"`
	Created  string   `json:"created"`
	Updated  string   `json:"updated"`
}

func show(c meta.Credential) token {
	return token{
		Key: c.ID, Token: c.ID[:min(6, len(c.ID))], ReadOnly: readOnly(c.Limits),
		Created: c.Issued.Std().Format(time.RFC3339), Updated: c.Issued.Std().Format(time.RFC3339),
	}
}

func readOnly(limits []meta.Right) bool {
	for _, r := range limits {
		for _, a := range r.Actions {
			if a != meta.ActionPull && a != meta.ActionList {
				return false
			}
		}
	}
	return limits != nil
}

func (h *Handler) tokens(c *protocol.Call) error {
	all, asOf, err := raftmeta.Ask(c.R.Context(), h.Metadata, c.Fresh(meta.Bounded), state.ListCredentials{Principal: c.Who.Name, Page: state.Page{Limit: tokensAtOnce}})
	if err != nil {
		return err
	}
	c.AsOf(asOf)
	shown := []token{}
	for _, one := range all {
		if one.Live(time.Now()) == nil {
			shown = append(shown, show(one))
		}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, map[string]any{"objects": shown, "urls": map[string]string{}, "total": len(shown)})
}

func (h *Handler) createToken(c *protocol.Call) error {
	var body struct {
		Password string   `json:"password"`
		ReadOnly bool     `json:"readonly"`
		CIDR     []string `json:"cidr_whitelist"`
	}
	if err := readJSON(c, &body); err != nil {
		return err
	}
	if len(body.CIDR) > 0 {
		return fmt.Errorf("tokens are not bound to networks here, narrow them by repository: `shoal token create --help`: %w", meta.ErrInvalid)
	}
	if account, err := h.Desk.Verify(c, strings.TrimPrefix(c.Who.Name, meta.KindUser+":"), trust.Secret(body.Password)); err != nil {
		return h.failed(c, err)
	} else if account != c.Who.Name {
		return fmt.Errorf("the password is of %s: %w", account, meta.ErrDenied)
	}
	wish := login.Wish{Note: "npm token"}
	if body.ReadOnly {
		wish.Limits = []meta.Right{{Actions: []meta.Action{meta.ActionPull, meta.ActionList}, Repository: "*"}}
	}
	made, err := h.Desk.Create(c, wish)
	if err != nil {
		return err
	}
	answer := show(made.Credential)
	answer.Token = made.Text.Reveal()
	c.W.Header().Set("Cache-Control", "no-store")
	return protocol.WriteJSON(c.W, http.StatusOK, answer)
}

func (h *Handler) revokeToken(c *protocol.Call) error {
	id := c.Params.Get("token")
	if whole, err := credential.Parse(id); err == nil {
		id = whole.ID // npm takes the text as well
	}
	if err := h.Desk.Revoke(c, id); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

// Protocol is Handler on its own, below /npm/TENANT/REPOSITORY/-/.
type Protocol struct{ Handler }

// Format implements protocol.Protocol: there are no packages behind it.
func (p *Protocol) Format() string { return "" }

// Routes implements protocol.Protocol. Who somebody is does not depend on the repository,
// so it is not looked up.
func (p *Protocol) Routes() []protocol.Route { return p.Handler.Routes("/npm/{owner}/{name}/-/") }

// WriteError implements protocol.Protocol.
func (p *Protocol) WriteError(w http.ResponseWriter, _ *http.Request, err error) {
	status := protocol.Fail(w.Header(), err)
	// A client that went away reads no error.
	_ = protocol.WriteJSON(w, status, map[string]string{"error": protocol.Message(err)})
}

// Challenge implements protocol.Protocol.
func (p *Protocol) Challenge(w http.ResponseWriter, _ *http.Request, s protocol.Scope) {
	text := "log in with `npm login --auth-type=legacy`, or set a token"
	if s.Cause != nil {
		text = s.Cause.Error()
	}
	challenge(w, text)
}

func challenge(w http.ResponseWriter, text string) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="shoal"`)
	w.Header().Set("Cache-Control", "no-store")
	_ = protocol.WriteJSON(w, http.StatusUnauthorized, map[string]string{"error": text})
}
