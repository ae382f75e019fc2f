// Package issuertest is an OpenID Connect issuer in the process of a test: it
// publishes its keys over HTTPS, signs tokens with any claims, rotates its keys and
// can be down.
package issuertest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Issuer is a running issuer. It is safe for concurrent use.
type Issuer struct {
	t      testing.TB
	server *httptest.Server

	mu      sync.Mutex
	keys    []jose.JSONWebKey // private
	down    bool
	fetches int
	name    string // what it calls itself, "" for its URL
}

// New starts an issuer with one RSA key; it ends with the test.
func New(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{t: t}
	i.server = httptest.NewTLSServer(http.HandlerFunc(i.serve))
	t.Cleanup(i.server.Close)
	i.Rotate("RS256")
	return i
}

// URL is the issuer's name.
func (i *Issuer) URL() string { return i.server.URL }

// Roots returns the PEM certificate that its server is trusted by.
func (i *Issuer) Roots() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.server.Certificate().Raw})
}

// Client returns a client that trusts it.
func (i *Issuer) Client() *http.Client { return i.server.Client() }

// Rotate replaces the keys by a new one of an algorithm: RS256, ES256 or EdDSA.
func (i *Issuer) Rotate(algorithm string) {
	i.t.Helper()
	var key any
	var err error
	switch algorithm {
	case "RS256":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ES256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("no algorithm %s", algorithm)
	}
	if err != nil {
		i.t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = []jose.JSONWebKey{{Key: key, KeyID: rand.Text(), Algorithm: algorithm, Use: "sig"}}
}

// Down makes it answer nothing but 503, or answer again.
func (i *Issuer) Down(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// Stop ends it for good: nothing listens there any more.
func (i *Issuer) Stop() { i.server.Close() }

// Call makes it call itself something else in its configuration.
func (i *Issuer) Call(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.name = name
}

// Fetches returns how often its keys were asked for.
func (i *Issuer) Fetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

// Keys returns the public keys that it publishes, as a JSON Web Key Set.
func (i *Issuer) Keys() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	var set jose.JSONWebKeySet
	for _, k := range i.keys {
		set.Keys = append(set.Keys, k.Public())
	}
	raw, err := json.Marshal(set)
	if err != nil {
		i.t.Error(err)
	}
	return raw
}

// PublicKey returns the public half of its key.
func (i *Issuer) PublicKey() crypto.PublicKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[0].Public().Key
}

// KeyID returns the id of its key.
func (i *Issuer) KeyID() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[0].KeyID
}

// Sign makes a token of its own for an audience that lives five minutes; claims add to
// and replace those, and with a nil value take one away.
func (i *Issuer) Sign(audience string, claims map[string]any) string {
	i.t.Helper()
	now := time.Now()
	all := map[string]any{
		"iss": i.URL(), "sub": "job", "aud": audience, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": rand.Text(),
	}
	for name, value := range claims {
		if all[name] = value; value == nil {
			delete(all, name)
		}
	}
	i.mu.Lock()
	key := i.keys[0]
	i.mu.Unlock()
	return SignWith(i.t, jose.SignatureAlgorithm(key.Algorithm), key.Key, key.KeyID, all)
}

// SignWith makes a token with any key and algorithm.
func SignWith(t testing.TB, algorithm jose.SignatureAlgorithm, key any, id string, claims map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType("JWT")
	if id != "" {
		options = options.WithHeader("kid", id)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(raw)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (i *Issuer) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	down, name := i.down, i.name
	if r.URL.Path == "/keys" {
		i.fetches++
	}
	i.mu.Unlock()
	if name == "" {
		name = i.URL()
	}
	switch {
	case down:
		w.WriteHeader(http.StatusServiceUnavailable)
	case r.URL.Path == "/.well-known/openid-configuration":
		fmt.Fprintf(w, `{"issuer": %q, "jwks_uri": %q}`, name, i.URL()+"/keys")
	case r.URL.Path == "/keys":
		w.Write(i.Keys())
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}
