package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	// Service is the audience of tokens and the service of challenges.
	Service = "shoal"
	// TokenLife is how long a token of /token lives; docker asks for 60 s at least.
	TokenLife = 300 * time.Second

	// clockLeeway is how far the clocks of two nodes may differ.
	clockLeeway = 30 * time.Second
	// tokenType keeps a token from passing for anything else that a node key signs.
	tokenType     = "shoal-access+jwt"
	maxTokenBytes = 16 << 10
	maxScopes     = 64
)

// Scope is one right as docker names it: `repository:acme/app/api:pull,push`.
type Scope struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// ParseScopes reads scope parameters; each may hold several, parted by spaces.
//
// Errors: meta.ErrInvalid for what is not TYPE:NAME:ACTIONS, or more than 64.
func ParseScopes(params []string) ([]Scope, error) {
	var scopes []Scope
	for _, param := range params {
		for text := range strings.FieldsSeq(param) {
			kind, rest, ok := strings.Cut(text, ":")
			// The name may have a colon (a host with a port), the actions have none.
			at := strings.LastIndexByte(rest, ':')
			if !ok || at < 0 || kind == "" || rest[:at] == "" {
				return nil, fmt.Errorf("scope %q is not TYPE:NAME:ACTIONS: %w", text, meta.ErrInvalid)
			}
			if len(scopes) == maxScopes {
				return nil, fmt.Errorf("more than %d scopes: %w", maxScopes, meta.ErrInvalid)
			}
			// repository(class):name:actions is docker's plug-in form.
			kind, _, _ = strings.Cut(kind, "(")
			scopes = append(scopes, Scope{Type: kind, Name: rest[:at], Actions: strings.Split(rest[at+1:], ",")})
		}
	}
	return scopes, nil
}

func (s Scope) String() string { return s.Type + ":" + s.Name + ":" + strings.Join(s.Actions, ",") }

// claims are what a token says.
type claims struct {
	jwt.RegisteredClaims
	Access []Scope `json:"access,omitempty"`
	// Credential is the id of the credential that the token was asked with: what ends
	// that ends the token. Who has none on record is named by the subject alone.
	Credential string `json:"cid,omitempty"`
	// Epoch is the cluster's when the token was issued. What was taken back after a
	// backup or a survivor's last word is not known in the next one.
	Epoch uint64 `json:"epo,omitempty"`
}

// Token is an issued one.
type Token struct {
	Text    string
	Issued  time.Time
	Life    time.Duration
	Granted []Scope
}

// Issue signs a token for who, with those of the asked rights that who has; a
// subset, or nothing, is no error (distribution, token.md). It says which
// repositories it is for, so what it can do is never more than who could do.
// Rights to public repositories need no grant.
//
// Errors: meta.ErrUnavailable.
func (g *Gate) Issue(ctx context.Context, who meta.Principal, asked []Scope) (Token, error) {
	epoch, err := g.Metadata.Epoch(ctx)
	if err != nil {
		return Token{}, fmt.Errorf("issue a token: %w", err)
	}
	now := time.Now()
	t := Token{Issued: now, Life: TokenLife, Granted: grant(who, asked)}
	c := claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer:    string(g.Self),
			Subject:   who.Name,
			Audience:  jwt.ClaimStrings{Service},
			IssuedAt:  jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(TokenLife)),
			ID:        rand.Text(),
		},
		Access: t.Granted,
		Epoch:  epoch,
	}
	if credential.CheckID(who.Token) == nil {
		c.Credential = who.Token
	}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
	token.Header["kid"] = string(g.Self)
	token.Header["typ"] = tokenType
	text, err := token.SignedString(g.Key)
	if err != nil {
		return Token{}, fmt.Errorf("sign token: %w", err)
	}
	t.Text = text
	return t, nil
}

// grant returns the part of asked that who has.
func grant(who meta.Principal, asked []Scope) []Scope {
	var granted []Scope
	for _, s := range asked {
		if s.Type == "registry" && s.Name == "catalog" && Credentialed(who) {
			granted = append(granted, Scope{s.Type, s.Name, s.Actions})
			continue
		}
		ref, ok := refOf(s)
		if !ok {
			continue
		}
		may := func(action Action) bool { return Might(who, action, ref) }
		var actions []string
		for _, action := range s.Actions {
			switch action {
			case "*":
				if !may(Pull) || !may(Push) || !may(Delete) {
					continue
				}
			case "pull", "push", "delete":
				if !may(Action(action)) {
					continue
				}
			default:
				continue
			}
			actions = append(actions, action)
		}
		if len(actions) > 0 {
			granted = append(granted, Scope{s.Type, s.Name, actions})
		}
	}
	return granted
}

// refOf returns the repository that a scope is about: the first two parts of
// `tenant/repository/image...`.
func refOf(s Scope) (meta.RepoRef, bool) {
	if s.Type != "repository" {
		return meta.RepoRef{}, false
	}
	parts := strings.SplitN(s.Name, "/", 3)
	if len(parts) < 2 {
		return meta.RepoRef{}, false
	}
	ref := meta.RepoRef{Tenant: meta.TenantName(parts[0]), Name: parts[1]}
	return ref, ref.Check() == nil
}

// MayBePassword reports whether a secret has the shape of no token: a token that does
// not hold must not be tried as somebody's password, nor slow them down.
func MayBePassword(secret string) bool {
	return secret != "" && !credential.Looks(secret) && !looksSigned(secret)
}

// looksSigned tells a JWT from an opaque token: it has two dots and begins as
// base64 of `{"`.
func looksSigned(secret string) bool {
	return strings.HasPrefix(secret, "eyJ") && strings.Count(secret, ".") == 2
}

// verifySigned checks a token that some node issued. The signature is checked
// once; that it lives, and that its issuer is still of the roster, each time.
// A server's word counts everywhere, an agent's only with itself: a host that
// was taken over must not mint rights for others.
func (g *Gate) verifySigned(ctx context.Context, text string) (*claims, error) {
	sum := sha256.Sum256([]byte(text))
	c, known := g.verified.Get(sum)
	if !known {
		c = &claims{}
		parser := jwt.NewParser(
			jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
			jwt.WithAudience(Service), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(clockLeeway))
		_, err := parser.ParseWithClaims(text, c, func(t *jwt.Token) (any, error) {
			if t.Header["typ"] != tokenType {
				return nil, errors.New("another type of token")
			}
			kid, _ := t.Header["kid"].(string)
			if kid == "" || kid != c.Issuer {
				return nil, errors.New("no issuer")
			}
			if err := g.checkIssuer(ctx, meta.NodeID(kid)); err != nil {
				return nil, err
			}
			return g.KeyOf(meta.NodeID(kid))
		})
		var bad *CredentialsError
		switch {
		case errors.Is(err, meta.ErrUnavailable):
			return nil, fmt.Errorf("verify token: %w", err)
		case errors.As(err, &bad):
			return nil, bad // without the library's wrapping
		case errors.Is(err, jwt.ErrTokenExpired):
			return nil, &CredentialsError{"the token has expired"}
		case err != nil:
			return nil, &CredentialsError{"the token does not hold: " + err.Error()}
		}
		g.verified.Add(sum, c)
	} else {
		if time.Now().After(c.ExpiresAt.Add(clockLeeway)) {
			g.verified.Remove(sum)
			return nil, &CredentialsError{"the token has expired"}
		}
		if err := g.checkIssuer(ctx, meta.NodeID(c.Issuer)); err != nil {
			return nil, fmt.Errorf("verify token: %w", err)
		}
	}
	switch epoch, err := g.Metadata.Epoch(ctx); {
	case err != nil:
		return nil, fmt.Errorf("verify token: %w", err)
	case epoch != c.Epoch:
		return nil, &CredentialsError{"the token is of another epoch of the cluster, ask for a new one"}
	}
	if strings.HasPrefix(c.Subject, hostPrefix) && c.Issuer != string(g.Self) {
		return nil, &CredentialsError{"a host's token is for its own gateway"}
	}
	return c, nil
}

// checkIssuer returns a *CredentialsError for one whose word does not count here.
func (g *Gate) checkIssuer(ctx context.Context, id meta.NodeID) error {
	if id == g.Self {
		return nil
	}
	node, err := g.Metadata.Node(ctx, id)
	switch {
	case errors.Is(err, meta.ErrNotFound):
		return &CredentialsError{"the issuer of the token is not of the cluster"}
	case err != nil:
		return err
	case node.Role != meta.RoleServer:
		// A client without credentials that pushes at an agent has the agent's token.
		return &CredentialsError{"a host's token reads at its own gateway only, log in to write"}
	}
	return nil
}

// scopeRights are what the scopes of a token let through of what its principal may.
func scopeRights(scopes []Scope) []meta.Right {
	rights := []meta.Right{}
	for _, s := range scopes {
		if s.Type == "registry" {
			rights = append(rights, meta.Right{Actions: []Action{List}, Repository: "*"})
			continue
		}
		ref, ok := refOf(s)
		if !ok {
			continue
		}
		var actions []Action
		for _, action := range s.Actions {
			switch action {
			case "*":
				actions = append(actions, Pull, List, Push, Delete)
			case "pull":
				actions = append(actions, Pull, List)
			default:
				actions = append(actions, Action(action))
			}
		}
		rights = append(rights, meta.Right{Actions: actions, Repository: ref.String()})
	}
	return rights
}
