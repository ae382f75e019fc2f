package federation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"github.com/coreos/go-oidc/v3/oidc"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	// maxToken bounds a token of an issuer, in bytes.
	maxToken = 16 << 10
	// maxPrepared bounds the issuers whose keys and rules are kept ready.
	maxPrepared = 256
	// maxAge is how old a token may be, whatever its issuer says of its end: one that
	// was written to a log is worth nothing the day after.
	maxAge = 24 * time.Hour
	// skew is how far an issuer's clock may be ahead.
	skew = time.Minute
)

// TokenError says why a token is worth nothing. It is meta.ErrDenied.
type TokenError struct{ Reason string }

func (e *TokenError) Error() string { return "the issuer's token is refused: " + e.Reason }

// Unwrap returns meta.ErrDenied.
func (e *TokenError) Unwrap() error { return meta.ErrDenied }

// Claims are what a verified token says.
type Claims struct {
	Subject  string
	Audience []string
	Issued   time.Time
	Expires  time.Time
	// All are all claims, as JSON has them.
	All map[string]any
}

// Verdict is what a token is worth.
type Verdict struct {
	Claims *Claims
	// Principal is who the job is: `ci:tenant/issuer/subject`.
	Principal string
	// Rules are those that hold; of the others Failed says which could not be
	// evaluated, and why.
	Rules  []meta.IssuerRule
	Failed map[string]string
	// Life is how long a credential may live, the shortest of Rules.
	Life time.Duration
}

// Judge judges tokens. It is safe for concurrent use.
type Judge struct {
	prepared *lru.Cache[string, *prepared]
}

// prepared is an issuer with its keys read and its rules compiled.
type prepared struct {
	revision uint64
	keysAt   meta.Time
	keys     keySet
	programs []cel.Program
}

// NewJudge makes a Judge.
func NewJudge() *Judge {
	c, err := lru.New[string, *prepared](maxPrepared)
	if err != nil {
		panic(err) // only for a size that is not positive
	}
	return &Judge{prepared: c}
}

// Check refuses an issuer whose rules, keys or roots do not hold: before it is put on
// record.
//
// Errors: meta.ErrInvalid.
func Check(i *meta.Issuer) error {
	if err := i.Check(); err != nil {
		return err
	}
	for _, r := range i.Rules {
		if _, err := compile(r.When); err != nil {
			return fmt.Errorf("rule %s: %w", r.Name, err)
		}
	}
	if len(i.Keys) > 0 {
		if _, err := CleanKeys(i.Keys); err != nil {
			return fmt.Errorf("keys of issuer %s: %w", i.Name, err)
		}
	}
	_, err := Roots(i.Roots)
	return err
}

func (j *Judge) prepare(i *meta.Issuer) (*prepared, error) {
	if p, ok := j.prepared.Get(i.ID()); ok && p.revision == i.Revision && p.keysAt == i.KeysAt {
		return p, nil
	}
	p := &prepared{revision: i.Revision, keysAt: i.KeysAt}
	var err error
	if len(i.Keys) > 0 {
		if p.keys, err = readKeys(i.Keys); err != nil {
			return nil, err
		}
	}
	for _, r := range i.Rules {
		program, err := compile(r.When)
		if err != nil {
			return nil, fmt.Errorf("rule %s of issuer %s: %w", r.Name, i.ID(), err)
		}
		p.programs = append(p.programs, program)
	}
	j.prepared.Add(i.ID(), p)
	return p, nil
}

// Judge verifies a token against an issuer's record and evaluates its rules. now is
// the caller's clock.
//
// Errors: *TokenError; ErrUnknownKey within one when the issuer may have a new key.
func (j *Judge) Judge(ctx context.Context, i *meta.Issuer, token string, now time.Time) (*Verdict, error) {
	p, err := j.prepare(i)
	if err != nil {
		return nil, err
	}
	c, err := verify(ctx, i, p.keys, token, now)
	if err != nil {
		return nil, err
	}
	v := &Verdict{Claims: c, Principal: principalOf(i, c.Subject), Failed: map[string]string{}, Life: meta.ExchangeLife}
	for n, r := range i.Rules {
		switch is, err := holds(ctx, p.programs[n], c); {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			v.Failed[r.Name] = err.Error()
		case is:
			v.Rules = append(v.Rules, r)
			if r.Life > 0 {
				v.Life = min(v.Life, r.Life)
			}
		}
	}
	return v, nil
}

func verify(ctx context.Context, i *meta.Issuer, keys keySet, token string, now time.Time) (*Claims, error) {
	if len(token) > maxToken {
		return nil, &TokenError{fmt.Sprintf("it has %d bytes, at most %d", len(token), maxToken)}
	}
	signature := &attempt{keys: keys}
	verifier := oidc.NewVerifier(i.URL, signature, &oidc.Config{
		ClientID: i.Audience, SupportedSigningAlgs: algorithms, Now: func() time.Time { return now },
	})
	id, err := verifier.Verify(ctx, token)
	var expired *oidc.TokenExpiredError
	switch {
	case err != nil && signature.unknown:
		return nil, &unknownKeyError{}
	case errors.As(err, &expired):
		return nil, &TokenError{"it has expired at " + expired.Expiry.UTC().Format(time.RFC3339)}
	case err != nil:
		return nil, &TokenError{strings.TrimPrefix(strings.TrimPrefix(err.Error(), "oidc: "), "failed to verify signature: ")}
	}
	switch {
	case id.Subject == "":
		return nil, &TokenError{"it has no subject"}
	case id.IssuedAt.After(now.Add(skew)):
		return nil, &TokenError{"it was issued in the future, look at the clocks"}
	case id.IssuedAt.Before(now.Add(-maxAge)):
		return nil, &TokenError{fmt.Sprintf("it was issued more than %v ago, or does not say when", maxAge)}
	}
	c := &Claims{Subject: id.Subject, Audience: id.Audience, Issued: id.IssuedAt, Expires: id.Expiry}
	if err := id.Claims(&c.All); err != nil {
		return nil, &TokenError{"its claims are no JSON object"}
	}
	return c, nil
}

// unknownKeyError is a *TokenError that another look at the issuer's keys may resolve.
type unknownKeyError struct{}

func (*unknownKeyError) Error() string { return (&TokenError{ErrUnknownKey.Error()}).Error() }

// Unwrap makes it both.
func (*unknownKeyError) Unwrap() []error {
	return []error{&TokenError{ErrUnknownKey.Error()}, ErrUnknownKey}
}

// principalOf names a job. A subject that is no name, or too long for one, stands by
// its sha256.
func principalOf(i *meta.Issuer, subject string) string {
	name := meta.KindCI + ":" + i.ID() + "/" + subject
	if len(name) > meta.MaxPrincipalBytes || meta.CheckPrincipal(name) != nil {
		sum := sha256.Sum256([]byte(subject))
		name = meta.KindCI + ":" + i.ID() + "/sha256:" + hex.EncodeToString(sum[:])
	}
	return name
}
