package access

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Metadata is what the gate asks of the metadata.
type Metadata interface {
	// AdminTokenHash returns the sha256 of the cluster's admin token; empty when
	// there is none.
	AdminTokenHash(context.Context) ([]byte, error)
	// Node returns a node of the roster, or meta.ErrNotFound.
	Node(context.Context, meta.NodeID) (meta.Node, error)
	// Caller resolves a credential, or a principal, to what it may: meta.ErrNotFound for
	// an unknown one, meta.ErrDenied for one that is revoked or disabled.
	Caller(context.Context, state.GetCaller, meta.Freshness) (state.Caller, error)
	// Epoch returns the cluster's epoch.
	Epoch(context.Context) (uint64, error)
	// Repository returns a repository's record, or meta.ErrNotFound.
	Repository(context.Context, meta.RepoRef, meta.Freshness) (meta.Repository, error)
}

// Config is what a Gate is made of. All fields but Identify, Policy, Head and Plain
// are required.
type Config struct {
	// Self is this node, Key its key: tokens are signed with it.
	Self meta.NodeID
	Key  ed25519.PrivateKey
	// KeyOf returns the public key that a node id stands for.
	KeyOf func(meta.NodeID) (ed25519.PublicKey, error)
	// Identify returns which node the peer of a TLS connection proved to be, "" for
	// a client without a node certificate. Nil on a node without TLS.
	Identify func(*tls.ConnectionState) (meta.NodeID, error)
	Metadata Metadata
	Policy   Policy
	// Head says how far the taking back of rights has come: what is known of a caller is
	// used again until it moves. Nil looks callers up each time.
	Head Head
	// Used is told of each use of a credential on record, and must not wait; nil is not.
	Used func(credential string)
	// Plain takes credentials over plain HTTP from everywhere, for a gateway
	// behind a proxy that ends TLS. Otherwise only loopback may send them so.
	Plain bool
}

// Gate finds out who calls and may let them pass. It is safe for concurrent use.
type Gate struct {
	Config
	verified *lru.Cache[[sha256.Size]byte, *claims]
	callers  *lru.Cache[callerKey, *state.Caller]
	confirms *rate.Limiter
}

// maxVerified bounds the tokens whose signature is known to be good.
const maxVerified = 8192

// New builds a Gate.
//
// Errors: meta.ErrInvalid for a Config without a required field.
func New(c Config) (*Gate, error) {
	if c.Self == "" || len(c.Key) != ed25519.PrivateKeySize || c.KeyOf == nil || c.Metadata == nil {
		return nil, fmt.Errorf("access: Self, Key, KeyOf and Metadata are required: %w", meta.ErrInvalid)
	}
	verified, err := lru.New[[sha256.Size]byte, *claims](maxVerified)
	if err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	callers, err := lru.New[callerKey, *state.Caller](maxCallers)
	if err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	return &Gate{Config: c, verified: verified, callers: callers, confirms: newConfirms()}, nil
}

// CredentialsError says what is wrong with the credentials of a call. It is
// meta.ErrDenied; the gateway answers it with a challenge.
type CredentialsError struct{ Reason string }

func (e *CredentialsError) Error() string { return "credentials refused: " + e.Reason }

// Unwrap returns meta.ErrDenied.
func (e *CredentialsError) Unwrap() error { return meta.ErrDenied }

// HasCredentials reports whether a request shows something to be judged.
func HasCredentials(r *http.Request) bool {
	return r.Header.Get("Authorization") != "" || r.Header.Get(headerNuGet) != ""
}

// headerNuGet is where NuGet has its token when it pushes.
const headerNuGet = "X-NuGet-ApiKey"

// Authenticate returns who calls a route that is not NodeOnly. loopback says
// that the connection itself, not a forwarded client, is from this machine.
// Without credentials that is the host (on agents, loopback) or anonymous;
// shown credentials are never ignored: bad ones are an error, also where none
// would do.
//
// Errors: *CredentialsError; meta.ErrUnavailable when the metadata that a
// judgement needs is out of reach.
func (g *Gate) Authenticate(r *http.Request, loopback bool) (meta.Principal, error) {
	if !HasCredentials(r) {
		return g.withoutCredentials(r, loopback), nil
	}
	if err := g.CheckTransport(r, loopback); err != nil {
		return meta.Principal{}, err
	}
	secret, err := secretOf(r.Header)
	if err != nil {
		return meta.Principal{}, err
	}
	who, err := g.Verify(r.Context(), secret)
	if err != nil {
		return meta.Principal{}, err
	}
	if who.Name == meta.Anonymous.Name || strings.HasPrefix(who.Name, hostPrefix) {
		// A token of /token for nobody is no more than no token.
		token := who.Token
		who = g.withoutCredentials(r, loopback)
		who.Token = token
	}
	return who, nil
}

// CheckTransport refuses credentials that came in the clear from elsewhere.
//
// Errors: *CredentialsError.
func (g *Gate) CheckTransport(r *http.Request, loopback bool) error {
	if g.safe(r, loopback) || !HasCredentials(r) {
		return nil
	}
	return errClear
}

var errClear = &CredentialsError{"they came over plain HTTP and may have been read on the way: use https, and replace this credential"}

func (g *Gate) safe(r *http.Request, loopback bool) bool { return r.TLS != nil || loopback || g.Plain }

// Resolve returns who a credential on record stands for: of somebody who has just
// logged in.
//
// Errors: as Authenticate.
func (g *Gate) Resolve(ctx context.Context, credential string) (meta.Principal, error) {
	who, err := g.resolve(ctx, state.GetCaller{Credential: credential})
	if err != nil {
		return who, err
	}
	return g.opened(who), nil
}

// Login returns who may be issued a token: of the Authorization header, or of
// secret when that is not empty. A token of /token is refused: it must not
// prolong itself.
//
// Errors: as Authenticate.
func (g *Gate) Login(r *http.Request, loopback bool, secret string) (meta.Principal, error) {
	if secret == "" && !HasCredentials(r) {
		return g.withoutCredentials(r, loopback), nil
	}
	if !g.safe(r, loopback) {
		return meta.Principal{}, errClear
	}
	if secret == "" {
		var err error
		if secret, err = secretOf(r.Header); err != nil {
			return meta.Principal{}, err
		}
	}
	if looksSigned(secret) {
		return meta.Principal{}, &CredentialsError{"a token of /token cannot ask for another"}
	}
	return g.Verify(r.Context(), secret)
}

// withoutCredentials returns who a caller is that shows nothing.
func (g *Gate) withoutCredentials(r *http.Request, loopback bool) meta.Principal {
	if !localName(r.Host) {
		return meta.Anonymous
	}
	who := meta.Anonymous
	if g.Policy.Host != nil && loopback {
		who = *g.Policy.Host
	}
	return g.opened(who)
}

// opened gives what the policy gives everybody.
func (g *Gate) opened(who meta.Principal) meta.Principal {
	if g.Policy.AllowAnonymous {
		who.Admin, who.Rights, who.Limits = false, working, nil
	}
	return who
}

// localName reports whether a Host header names this machine's loopback. A web
// page whose own name was made to resolve to 127.0.0.1 has its name there, and
// must not read with the host's rights, nor push to `shoal dev`.
func localName(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// secretOf takes the secret out of an Authorization header: Bearer, Basic
// (the password, whoever the user), Token, or no scheme at all (cargo); without one
// out of X-NuGet-ApiKey.
func secretOf(h http.Header) (string, error) {
	header := h.Get("Authorization")
	if header == "" {
		return h.Get(headerNuGet), nil
	}
	scheme, rest, ok := strings.Cut(header, " ")
	if !ok {
		return header, nil
	}
	rest = strings.TrimSpace(rest)
	switch strings.ToLower(scheme) {
	case "bearer", "token":
		if rest == "" {
			return "", &CredentialsError{"the token is empty"}
		}
		return rest, nil
	case "basic":
		_, password, ok := (&http.Request{Header: h}).BasicAuth()
		if !ok || password == "" {
			return "", &CredentialsError{"the Basic credentials have no password; the password is the token"}
		}
		return password, nil
	}
	return "", &CredentialsError{"the scheme is neither Bearer nor Basic"}
}

// Verify returns the principal of a secret: a token of the registry, the admin token
// or a token of /token.
//
// Errors: as Authenticate.
func (g *Gate) Verify(ctx context.Context, secret string) (meta.Principal, error) {
	if len(secret) > maxTokenBytes {
		return meta.Principal{}, &CredentialsError{"the token is too long"}
	}
	if looksSigned(secret) {
		c, err := g.verifySigned(ctx, secret)
		if err != nil {
			return meta.Principal{}, err
		}
		kind, _ := meta.SplitPrincipal(c.Subject)
		if c.Credential == "" && (kind == meta.KindUser || kind == meta.KindRobot || kind == meta.KindCI) {
			return meta.Principal{}, &CredentialsError{"the token does not say which credential it was asked with, ask for a new one"}
		}
		who, err := g.resolve(ctx, state.GetCaller{Principal: c.Subject, Credential: c.Credential})
		if err != nil {
			return meta.Principal{}, err
		}
		if c.Credential == "" {
			who.Token = c.ID
		}
		return g.opened(Narrow(who, scopeRights(c.Access))), nil
	}
	if credential.Looks(secret) {
		return g.verifyToken(ctx, secret)
	}
	hash, err := g.Metadata.AdminTokenHash(ctx)
	if err != nil && !errors.Is(err, meta.ErrNotFound) {
		return meta.Principal{}, fmt.Errorf("look up the admin token: %w", err)
	}
	sum := sha256.Sum256([]byte(secret))
	if len(hash) != len(sum) || subtle.ConstantTimeCompare(sum[:], hash) != 1 {
		return meta.Principal{}, &CredentialsError{"the token is unknown"}
	}
	return g.resolve(ctx, state.GetCaller{Principal: meta.AdminBootstrap})
}

// Peer returns the node at the other end of r's connection: it has shown a
// certificate of the cluster and is in the roster. ok is false for all others.
//
// Errors: of the metadata; a certificate that does not hold.
func (g *Gate) Peer(r *http.Request) (node meta.Node, ok bool, err error) {
	if g.Identify == nil || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return meta.Node{}, false, nil
	}
	id, err := g.Identify(r.TLS)
	if err != nil {
		return meta.Node{}, false, &CredentialsError{err.Error()}
	}
	if id == "" {
		return meta.Node{}, false, nil
	}
	node, err = g.Metadata.Node(r.Context(), id)
	switch {
	case errors.Is(err, meta.ErrNotFound):
		return meta.Node{}, false, nil // removed: the certificate counts no longer
	case err != nil:
		return meta.Node{}, false, fmt.Errorf("look up node %s: %w", id, err)
	}
	return node, true, nil
}

// NodePrincipal is who a node acts as on NodeOnly routes.
func NodePrincipal(n meta.Node) meta.Principal {
	who := meta.Principal{Name: nodePrefix + string(n.ID), Node: n.ID, Role: n.Role, Rights: readRights(n.Read), Token: string(n.ID)}
	if n.Role == meta.RoleServer {
		who.Rights = readRights([]string{"*"}) // a server holds all metadata already
	}
	return who
}
