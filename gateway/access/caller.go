package access

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

const (
	// maxCallers bounds the callers whose rights are known.
	maxCallers = 4096
	// A token that this node's metadata does not know may be younger than what it has
	// seen: servers are asked for a strong answer, so often a second and at once.
	confirmPerSec = 5
	confirmBurst  = 20
)

// callerKey is what a caller showed.
type callerKey struct {
	principal, credential string
	hash                  [sha256.Size]byte
}

// resolve finds out who a credential, or a principal that a node vouches for, is, and
// what it may: from what is known when that is of the present access revision, else
// from the metadata.
//
// Errors: *CredentialsError; meta.ErrUnavailable.
func (g *Gate) resolve(ctx context.Context, q state.GetCaller) (meta.Principal, error) {
	now := time.Now()
	if q.Credential == "" {
		switch kind, _ := meta.SplitPrincipal(q.Principal); {
		case q.Principal == meta.AdminBootstrap:
			return meta.Principal{Name: q.Principal, Admin: true, Token: "bootstrap", At: meta.TimeOf(now)}, nil
		case q.Principal == meta.Anonymous.Name || kind == meta.KindHost:
			return meta.Principal{Name: q.Principal, At: meta.TimeOf(now)}, nil
		}
	}
	c, err := g.caller(ctx, q)
	if err != nil {
		return meta.Principal{}, err
	}
	who := meta.Principal{Name: c.Principal, Rights: c.Rights, At: meta.TimeOf(now)}
	if c.Credential == nil {
		return who, nil
	}
	if err := c.Credential.Live(now); err != nil {
		return meta.Principal{}, refused(err)
	}
	who.Token = c.Credential.ID
	if g.Used != nil {
		g.Used(who.Token)
	}
	if c.Credential.Limits != nil {
		who = Narrow(who, c.Credential.Limits)
	}
	return who, nil
}

// caller is resolve without what changes with the clock.
func (g *Gate) caller(ctx context.Context, q state.GetCaller) (*state.Caller, error) {
	k := callerKey{principal: q.Principal, credential: q.Credential}
	copy(k.hash[:], q.Hash)
	if g.Head != nil {
		// The head first: what changes after it makes what is known an older one. A later
		// revision than the head's may be of the epoch before, and is not used again either.
		head := g.Head.Revision()
		if c, ok := g.callers.Get(k); ok && c.Revision == head {
			return c, nil
		}
	}
	c, err := g.ask(ctx, q)
	if err != nil {
		return nil, err
	}
	g.callers.Add(k, c)
	return c, nil
}

// ask asks the metadata, and for a strong answer when the first one is of an access
// revision that this node knows to be over.
func (g *Gate) ask(ctx context.Context, q state.GetCaller) (*state.Caller, error) {
	c, err := g.Metadata.Caller(ctx, q, meta.Local)
	behind := err == nil && g.Head != nil && c.Revision < g.Head.Revision()
	unseen := errors.Is(err, meta.ErrNotFound) && g.confirms.Allow()
	if behind || unseen {
		c, err = g.Metadata.Caller(ctx, q, meta.Strong)
	}
	switch {
	case err == nil:
		return &c, nil
	case errors.Is(err, meta.ErrNotFound):
		return nil, &CredentialsError{"the token or its account is unknown, or was removed"}
	case errors.Is(err, meta.ErrDenied):
		return nil, refused(err)
	case errors.Is(err, meta.ErrInvalid):
		return nil, &CredentialsError{"the servers of this cluster know no tokens yet: update them all"}
	}
	return nil, fmt.Errorf("look up the token: %w", err)
}

// refused is a *CredentialsError of a refusal.
func refused(err error) error {
	return &CredentialsError{strings.TrimSuffix(err.Error(), ": "+meta.ErrDenied.Error())}
}

// verifyToken returns the principal of a token of this registry.
//
// Errors: as Authenticate.
func (g *Gate) verifyToken(ctx context.Context, text string) (meta.Principal, error) {
	token, err := credential.Parse(text)
	if err != nil {
		return meta.Principal{}, &CredentialsError{strings.TrimSuffix(err.Error(), ": "+meta.ErrInvalid.Error())}
	}
	return g.resolve(ctx, state.GetCaller{Credential: token.ID, Hash: token.Hash})
}

func newConfirms() *rate.Limiter { return rate.NewLimiter(confirmPerSec, confirmBurst) }
