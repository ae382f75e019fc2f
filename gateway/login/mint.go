package login

import (
	"fmt"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/credential"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Wish is a token as somebody asks for it.
type Wish struct {
	// Principal whose it is to be; "" is the caller's own.
	Principal string
	// Limits narrow it; none leave it all that the principal may.
	Limits []meta.Right
	// Life is meta.TokenLife when 0.
	Life time.Duration
	Note string
}

// Create makes a token.
//
// Errors: meta.ErrDenied when the caller may not; those of state.CreateCredential.
func (d *Desk) Create(c *protocol.Call, w Wish) (Minted, error) {
	if w.Principal == "" {
		w.Principal = c.Who.Name
	}
	if err := MayMake(&c.Who, w.Principal); err != nil {
		return Minted{}, err
	}
	if w.Life == 0 {
		w.Life = meta.TokenLife
	}
	made := meta.Credential{Principal: w.Principal, Kind: meta.CredentialToken, Limits: w.Limits, Note: w.Note}
	if credential.CheckID(c.Who.Token) == nil {
		made.Parent = c.Who.Token
	}
	return d.mint(c, made, w.Life)
}

// MayMake judges who may make tokens of a principal: users their own, unless what they
// show is narrowed itself; of robots whom manages their tenant, of users an
// administrator. An elevation that this rests on is noted in who.
//
// Errors: meta.ErrDenied.
func MayMake(who *meta.Principal, of string) error {
	kind, _ := meta.SplitPrincipal(of)
	switch {
	case kind == meta.KindBootstrap:
		return fmt.Errorf("%s has the admin token and no others: make an account with `shoal user create`, and a token with --for: %w", of, meta.ErrInvalid)
	case kind == meta.KindCI:
		return fmt.Errorf("%s is a job, which exchanges the token of its issuer: %w", of, meta.ErrInvalid)
	case of == who.Name && len(who.Limits) > 0:
		return fmt.Errorf("a narrowed token makes no others, it can be rotated with `shoal token rotate`: %w", meta.ErrDenied)
	case of == who.Name && kind == meta.KindRobot:
		return fmt.Errorf("a robot's token makes no others, it can be rotated with `shoal token rotate`: %w", meta.ErrDenied)
	case of == who.Name:
		return nil
	}
	return MayManage(who, of)
}

// MayManage judges who may see and end what a principal has: itself, whom manages its
// tenant, an administrator. An elevation that this rests on is noted in who.
//
// Errors: meta.ErrDenied.
func MayManage(who *meta.Principal, of string) error {
	if of == who.Name {
		return nil
	}
	may := func(action access.Action, on access.Target) bool {
		d := access.Explain(access.Policy{}, *who, action, on)
		if id := d.Elevation(); id != "" {
			who.Elevation = id // what the call does is marked
		}
		return d.Allowed
	}
	if tenant := meta.TenantOf(of); tenant != "" && may(access.Manage, access.Target{Tenant: tenant}) || may(access.Admin, access.Target{}) {
		return nil
	}
	return fmt.Errorf("%s may not manage the tokens of %s: %w", who.Name, of, meta.ErrDenied)
}

// Rotate replaces a token by one that may the same.
//
// Errors: meta.ErrNotFound, also for one that the caller must not know of; those of
// state.RotateCredential.
func (d *Desk) Rotate(c *protocol.Call, id string, life, overlap time.Duration) (Minted, error) {
	old, err := d.Find(c, id)
	if err != nil {
		return Minted{}, err
	}
	if err := mayRotate(c.Who, &old); err != nil {
		return Minted{}, err
	}
	if life == 0 {
		life = min(old.Expires.Std().Sub(old.Issued.Std()), meta.MaxTokenLife)
	}
	text, token := credential.Mint()
	value, err := d.do(c, state.RotateCredential{ID: id, NewID: token.ID, NewHash: token.Hash, Life: life, Overlap: overlap})
	if err != nil {
		return Minted{}, err
	}
	made, ok := value.(meta.Credential)
	if !ok {
		return Minted{}, fmt.Errorf("a rotated token's record is a %T", value)
	}
	return Minted{Text: text, Credential: made}, nil
}

// mayRotate judges who has the text of a token's successor, of whom may see the token:
// it may all that the token may, so nobody that may less.
//
// Errors: meta.ErrDenied.
func mayRotate(who meta.Principal, old *meta.Credential) error {
	if old.Principal != who.Name {
		return nil // MayManage has judged, within the limits of who
	}
	kind, _ := meta.SplitPrincipal(who.Name)
	limits := 0
	if old.Limits != nil {
		limits = 1
	}
	switch itself := who.Token == old.ID; {
	case !itself && len(who.Limits) > 0:
		return fmt.Errorf("a narrowed token rotates itself and no other: %w", meta.ErrDenied)
	case !itself && kind == meta.KindRobot:
		return fmt.Errorf("a robot's token rotates itself and no other: %w", meta.ErrDenied)
	case itself && len(who.Limits) > limits:
		return fmt.Errorf("a token of /token is narrower than the one that it was asked with, show that one: %w", meta.ErrDenied)
	}
	return nil
}

// Revoke ends a token for good. A narrowed one ends itself and no other of its
// principal's.
//
// Errors: of Find; meta.ErrDenied.
func (d *Desk) Revoke(c *protocol.Call, id string) error {
	old, err := d.Find(c, id)
	if err != nil {
		return err
	}
	if old.Principal == c.Who.Name && len(c.Who.Limits) > 0 && c.Who.Token != id {
		return fmt.Errorf("a narrowed token ends itself and no other: %w", meta.ErrDenied)
	}
	_, err = d.do(c, state.RevokeCredential{ID: id})
	return err
}

// Find returns the record of a token that the caller may see.
//
// Errors: meta.ErrNotFound, also for one that it may not.
func (d *Desk) Find(c *protocol.Call, id string) (meta.Credential, error) {
	if err := credential.CheckID(id); err != nil {
		return meta.Credential{}, err
	}
	found, err := ask(c.R.Context(), d, state.GetCredential{ID: id})
	if err == nil && MayManage(&c.Who, found.Principal) != nil {
		err = fmt.Errorf("token %s: %w", id, meta.ErrNotFound)
	}
	return found, err
}

// Limits makes what narrows a token of what people write: on each pattern the actions,
// all when none are named, in the environments of a pattern. Without any of the three
// it is nil, and nothing is narrowed.
//
// Errors: meta.ErrInvalid.
func Limits(repositories []string, actions []meta.Action, environment string) ([]meta.Right, error) {
	if len(repositories) == 0 && len(actions) == 0 && environment == "" {
		return nil, nil
	}
	if len(repositories) == 0 {
		repositories = []string{"*"}
	}
	if len(actions) == 0 {
		actions = meta.GrantedActions
	}
	if len(repositories) > meta.MaxNarrowing {
		return nil, fmt.Errorf("a token is narrowed to at most %d patterns: %w", meta.MaxNarrowing, meta.ErrInvalid)
	}
	var limits []meta.Right
	for _, pattern := range repositories {
		r := meta.Right{Actions: slices.Clone(actions), Repository: pattern, Environment: environment}
		if err := r.Check(); err != nil {
			return nil, err
		}
		limits = append(limits, r)
	}
	return limits, nil
}
