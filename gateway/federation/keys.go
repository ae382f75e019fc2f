package federation

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// algorithms that a token may be signed with: only by who has the private key. HMAC
// would let a public key pass for a shared one, and none is none.
var algorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512,
	oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
}

func joseAlgorithms() []jose.SignatureAlgorithm {
	out := make([]jose.SignatureAlgorithm, len(algorithms))
	for i, a := range algorithms {
		out[i] = jose.SignatureAlgorithm(a)
	}
	return out
}

const (
	maxKeys     = 64
	minRSABits  = 2048
	maxDocument = 256 << 10 // bytes of what an issuer answers
)

// ErrUnknownKey says that a token is signed with a key that is not known of its issuer:
// it may have a new one.
var ErrUnknownKey = errors.New("its key is not known of the issuer")

// keySet are the keys of an issuer on record.
type keySet []jose.JSONWebKey

// attempt is a go-oidc KeySet for one token, which remembers whether its key was known:
// the verifier passes errors on as text.
type attempt struct {
	keys    keySet
	unknown bool
}

// VerifySignature implements oidc.KeySet: the verifier has checked the algorithm.
func (s *attempt) VerifySignature(_ context.Context, token string) ([]byte, error) {
	jws, err := jose.ParseSignedCompact(token, joseAlgorithms())
	if err != nil || len(jws.Signatures) != 1 {
		return nil, errors.New("it is no signed token")
	}
	header := jws.Signatures[0].Header
	known := false
	for _, k := range s.keys {
		if header.KeyID != "" && k.KeyID != header.KeyID || k.Algorithm != "" && k.Algorithm != header.Algorithm || !fits(k.Key, header.Algorithm) {
			continue
		}
		known = true
		if payload, err := jws.Verify(k.Key); err == nil {
			return payload, nil
		}
	}
	if s.unknown = !known || header.KeyID == ""; s.unknown {
		return nil, ErrUnknownKey
	}
	return nil, errors.New("its signature is wrong")
}

// fits reports whether a public key is of the family of an algorithm.
func fits(key any, algorithm string) bool {
	switch key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(algorithm, "RS") || strings.HasPrefix(algorithm, "PS")
	case *ecdsa.PublicKey:
		return strings.HasPrefix(algorithm, "ES")
	case ed25519.PublicKey:
		return algorithm == oidc.EdDSA
	}
	return false
}

// CleanKeys reads a JSON Web Key Set and returns it with nothing in it but the public
// keys that sign tokens: what is kept of an issuer. Keys of other kinds and uses, which
// issuers publish beside them, are left out.
//
// Errors: meta.ErrInvalid when none is left; meta.ErrTooLarge.
func CleanKeys(raw []byte) ([]byte, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, fmt.Errorf("it is no JSON Web Key Set, {\"keys\": [...]}: %w", meta.ErrInvalid)
	}
	var clean jose.JSONWebKeySet
	for _, text := range set.Keys {
		var k jose.JSONWebKey
		if json.Unmarshal(text, &k) != nil || k.Use != "" && k.Use != "sig" {
			continue
		}
		if key, ok := public(k.Key); ok && len(clean.Keys) < maxKeys && len(k.KeyID) <= 256 && len(k.Algorithm) <= 16 {
			clean.Keys = append(clean.Keys, jose.JSONWebKey{Key: key, KeyID: k.KeyID, Algorithm: k.Algorithm, Use: "sig"})
		}
	}
	if len(clean.Keys) == 0 {
		return nil, fmt.Errorf("it has no public key to check signatures with (RSA of %d bits and more, ECDSA or Ed25519): %w", minRSABits, meta.ErrInvalid)
	}
	out, err := json.Marshal(clean)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%v: %w", err, meta.ErrInvalid)
	case len(out) > meta.MaxKeysBytes:
		return nil, fmt.Errorf("%d bytes of keys, at most %d: %w", len(out), meta.MaxKeysBytes, meta.ErrTooLarge)
	}
	return out, nil
}

// public returns a key that may be kept: never a private or a shared one.
func public(key any) (crypto.PublicKey, bool) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return k, k.N.BitLen() >= minRSABits && k.N.BitLen() <= 8192 && k.E > 1
	case *ecdsa.PublicKey:
		_, err := k.ECDH() // on its curve
		return k, err == nil
	case ed25519.PublicKey:
		return k, len(k) == ed25519.PublicKeySize
	}
	return nil, false
}

func readKeys(raw []byte) (keySet, error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, fmt.Errorf("the keys on record are damaged: %w", meta.ErrCorrupt)
	}
	return set.Keys, nil
}

// Roots reads the PEM certificates by which an issuer's server is trusted; nil for
// none, which means the system's.
//
// Errors: meta.ErrInvalid.
func Roots(pem []byte) (*x509.CertPool, error) {
	if len(pem) == 0 {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the roots are no PEM certificates: %w", meta.ErrInvalid)
	}
	return pool, nil
}

// Fetch asks an issuer for its keys, as CleanKeys leaves them.
//
// Errors: meta.ErrUnavailable when it does not answer as an issuer does.
func Fetch(ctx context.Context, client *http.Client, issuer string) ([]byte, error) {
	var discovery struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	raw, err := get(ctx, client, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &discovery); err != nil {
		return nil, unavailable("its openid-configuration is no JSON document")
	}
	if discovery.Issuer != issuer {
		return nil, unavailable(fmt.Sprintf("it calls itself %.200q, the issuer on record is %q", discovery.Issuer, issuer))
	}
	if u, err := url.Parse(discovery.Keys); err != nil || u.Scheme != "https" {
		return nil, unavailable("its jwks_uri is no https URL")
	}
	if raw, err = get(ctx, client, discovery.Keys); err != nil {
		return nil, err
	}
	keys, err := CleanKeys(raw)
	if err != nil {
		return nil, unavailable("its keys: " + err.Error())
	}
	return keys, nil
}

func unavailable(why string) error { return fmt.Errorf("the issuer: %s: %w", why, meta.ErrUnavailable) }

func get(ctx context.Context, client *http.Client, address string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, unavailable("its address does not hold")
	}
	request.Header.Set("Accept", "application/json")
	answer, err := client.Do(request)
	if err != nil {
		var refused interface{ Unwrap() error }
		if errors.As(err, &refused) {
			err = refused.Unwrap() // without the URL
		}
		return nil, fmt.Errorf("the issuer does not answer: %w: %w", err, meta.ErrUnavailable)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(answer.Body, maxDocument+1))
	switch {
	case err != nil:
		return nil, unavailable("its answer broke off")
	case answer.StatusCode != http.StatusOK:
		return nil, unavailable("it answers " + answer.Status)
	case len(raw) > maxDocument:
		return nil, unavailable(fmt.Sprintf("its answer has more than %d bytes", maxDocument))
	}
	return raw, nil
}

// Peek returns the issuer that a token names, without believing it: it says whose
// record to look for.
//
// Errors: *TokenError.
func Peek(token string) (issuer string, err error) {
	if len(token) > maxToken {
		return "", &TokenError{fmt.Sprintf("it has %d bytes, at most %d", len(token), maxToken)}
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", &TokenError{"it is no signed JSON Web Token"}
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Issuer string `json:"iss"`
	}
	if err != nil || json.Unmarshal(raw, &claims) != nil || claims.Issuer == "" || len(claims.Issuer) > 512 {
		return "", &TokenError{"it names no issuer"}
	}
	return claims.Issuer, nil
}
