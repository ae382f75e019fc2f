// Package login is where people and jobs get credentials: a password becomes a
// session (password.go), the token of a job's issuer becomes a credential of the job
// (exchange.go), a right to do so becomes a token (mint.go). It runs on servers; agents
// forward there what logs in.
//
// Start at Desk. What HTTP makes of it is elsewhere: docker's /token and /token/exchange
// (package gateway), the admin API, npm's login (gateway/protocols/npmlogin).
//
// Invariants: a credential that is minted is a command in the log, so it is on record
// before its holder has it, can be revoked, and is in the audit log; a password is good
// for logging in and for nothing else; whether an account exists is told neither by the
// answer nor by its time; attempts are slowed by source and account.
//
// Run owns one goroutine: it reports uses, sweeps what has ended and looks at issuers'
// keys (upkeep.go).
package login

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/gateway/federation"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Config is what a Desk is made of. All fields are required but Leads.
type Config struct {
	Metadata raftmeta.Asker
	Doer     raftmeta.Doer
	// Client makes clients for issuers, by the roots that their servers are trusted
	// by; nil for the system's. It must refuse addresses that people must not reach
	// through us.
	Client func(roots *x509.CertPool) *http.Client
	// Leads reports whether this server is to sweep and to look at issuers' keys; nil
	// never does.
	Leads func() bool
	Log   *slog.Logger
}

// Desk makes credentials. It is safe for concurrent use.
type Desk struct {
	Config
	hasher   *credential.Hasher
	throttle *credential.Throttle
	judge    *federation.Judge
	uses     *Uses

	mu sync.Mutex
	// sessions are those that clients without a memory share: of an account and the
	// hash of its password, the id and its end.
	sessions *lru.Cache[[2]string, session]
	looks    map[string]time.Time // when issuers were asked for their keys, by their ids
}

type session struct {
	id    string
	until time.Time
}

// maxSessions bounds the sessions that are shared.
const maxSessions = 1024

// New builds a Desk.
//
// Errors: meta.ErrInvalid for a Config without a required field.
func New(c Config) (*Desk, error) {
	if c.Metadata == nil || c.Doer == nil || c.Client == nil || c.Log == nil {
		return nil, fmt.Errorf("login: Metadata, Doer, Client and Log are required: %w", meta.ErrInvalid)
	}
	sessions, err := lru.New[[2]string, session](maxSessions)
	if err != nil {
		return nil, fmt.Errorf("login: %w", err)
	}
	return &Desk{
		Config: c, hasher: credential.NewHasher(), throttle: credential.NewThrottle(), judge: federation.NewJudge(),
		uses: NewUses(), sessions: sessions, looks: map[string]time.Time{},
	}, nil
}

// Used notes that a credential was used at this server.
func (d *Desk) Used(id string) { d.uses.Used(id) }

// Report takes over what a node noted.
func (d *Desk) Report(uses []state.CredentialUse) { d.uses.Merge(uses) }

// Minted is a new credential with its text, which is nowhere else.
type Minted struct {
	Text trust.Secret
	meta.Credential
}

// mint makes a credential in the name of the call's Who.
func (d *Desk) mint(c *protocol.Call, made meta.Credential, life time.Duration) (Minted, error) {
	text, token := credential.Mint()
	made.ID, made.Hash = token.ID, token.Hash
	receipt, err := d.do(c, state.CreateCredential{Credential: made, Life: life})
	if err != nil {
		return Minted{}, err
	}
	recorded, ok := receipt.(meta.Credential)
	if !ok {
		return Minted{}, fmt.Errorf("a new token's record is a %T", receipt)
	}
	return Minted{Text: text, Credential: recorded}, nil
}

// do commits a command of the call.
func (d *Desk) do(c *protocol.Call, command state.Command) (any, error) {
	if err := command.Check(); err != nil {
		return nil, err
	}
	receipt, err := d.Doer.Do(c.R.Context(), c.Origin(), command)
	if err != nil {
		return nil, err
	}
	c.Committed(receipt.Token)
	return receipt.Value, nil
}

// sourceOf names where an attempt comes from: the address as the gateway believes it,
// of IPv6 the network that one subscriber has, and the node that forwarded, since every
// host has a 127.0.0.1.
func sourceOf(c *protocol.Call) string {
	host, _, err := net.SplitHostPort(c.R.RemoteAddr)
	if err != nil {
		host = c.R.RemoteAddr
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip = ip.Unmap().WithZone(""); ip.Is6() {
			if network, err := ip.Prefix(64); err == nil {
				host = network.String()
			}
		} else {
			host = ip.String()
		}
	}
	return string(c.Via) + " " + host
}

// ask reads what servers know, as local as it gets: who logs in must not make the
// cluster work.
func ask[A any](ctx context.Context, d *Desk, q state.Question[A]) (A, error) {
	a, _, err := raftmeta.Ask(ctx, d.Metadata, meta.Local, q)
	return a, err
}

// errWrong is all that a failed login learns.
var errWrong = &access.CredentialsError{Reason: "the user or the password is wrong"}

// Verify returns the account of a user and a password, `user:ada`.
//
// Errors: *access.CredentialsError, the same for a user that is not there;
// *credential.SlowError; meta.ErrUnavailable.
func (d *Desk) Verify(c *protocol.Call, user string, password trust.Secret) (string, error) {
	account := accountOf(user)
	if err := meta.CheckAccount(account); err != nil || len(password.Reveal()) > credential.MaxPassword {
		return "", errWrong
	}
	hash, err := d.passwordOf(c.R.Context(), account)
	if err != nil {
		return "", fmt.Errorf("look up %s: %w", account, err)
	}
	if d.hasher.Remembered(account, hash, password) {
		return account, nil
	}
	source := sourceOf(c)
	if err := d.throttle.Begin(time.Now(), source, account); err != nil {
		return "", err
	}
	right, err := d.hasher.Check(c.R.Context(), account, hash, password)
	switch {
	case err != nil:
		return "", err
	case !right:
		return "", errWrong
	}
	d.throttle.Succeed(time.Now(), source, account)
	return account, nil
}

// accountOf reads a user as people write it.
func accountOf(user string) string {
	return meta.KindUser + ":" + strings.TrimPrefix(user, meta.KindUser+":")
}

func (d *Desk) passwordOf(ctx context.Context, account string) ([]byte, error) {
	return ask(ctx, d, state.PasswordOf{Name: account})
}

// Login makes a new session of a user.
//
// Errors: of Verify; meta.ErrOverQuota with too many.
func (d *Desk) Login(c *protocol.Call, user string, password trust.Secret, note string) (Minted, error) {
	account, err := d.Verify(c, user, password)
	if err != nil {
		return Minted{}, err
	}
	c.Who = meta.Principal{Name: account}
	return d.mint(c, meta.Credential{Principal: account, Kind: meta.CredentialSession, Note: note}, meta.SessionLife)
}

// Session returns the id of a session of a user, for a client that logs in anew with
// each request for a token: one that it began here earlier, or a new one.
//
// Errors: of Login.
func (d *Desk) Session(c *protocol.Call, user string, password trust.Secret) (string, error) {
	account, err := d.Verify(c, user, password)
	if err != nil {
		return "", err
	}
	hash, err := d.passwordOf(c.R.Context(), account)
	if err != nil {
		return "", err
	}
	k := [2]string{account, string(hash)}
	d.mu.Lock()
	known, ok := d.sessions.Get(k)
	d.mu.Unlock()
	if ok && time.Now().Before(known.until) && d.holds(c.R.Context(), known.id) {
		return known.id, nil
	}
	c.Who = meta.Principal{Name: account}
	made, err := d.mint(c, meta.Credential{Principal: account, Kind: meta.CredentialSession, Note: "docker token"}, meta.SessionLife)
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	// A token that is made from it must not end with it.
	d.sessions.Add(k, session{made.ID, made.Expires.Std().Add(-2 * access.TokenLife)})
	d.mu.Unlock()
	return made.ID, nil
}

// holds reports whether a credential was not revoked.
func (d *Desk) holds(ctx context.Context, id string) bool {
	_, err := ask(ctx, d, state.GetCaller{Credential: id})
	return err == nil
}

// SetPassword gives a user a password, or with "" takes it away. Who changes their own
// shows the present one.
//
// Errors: of Verify; meta.ErrInvalid; meta.ErrNotFound.
func (d *Desk) SetPassword(c *protocol.Call, user string, password, current trust.Secret, own bool) error {
	account := accountOf(user)
	if err := meta.CheckAccount(account); err != nil {
		return err
	}
	if own {
		hash, err := d.passwordOf(c.R.Context(), account)
		if err != nil {
			return err
		}
		if len(hash) > 0 {
			if _, err := d.Verify(c, user, current); errors.Is(err, meta.ErrDenied) {
				return fmt.Errorf("the present password is not right: %w", meta.ErrDenied)
			} else if err != nil {
				return err
			}
		}
	}
	var hash []byte
	if password != "" {
		var err error
		if hash, err = d.hasher.Hash(c.R.Context(), password); err != nil {
			return err
		}
	}
	_, err := d.do(c, state.SetPassword{Name: account, Password: hash})
	return err
}
