package trust

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	joinPrefix     = "shoal1"
	joinSecretSize = 32
)

// strict base64url without padding: one token has exactly one text.
var base64url = base64.RawURLEncoding.Strict()

// JoinToken lets a node join: the secret admits it, the hash tells it which
// cluster is the right one. As text it is
// shoal1.<secret, 32 bytes>.<sha256 of the root certificate>, both base64url.
type JoinToken struct {
	// Secret holds the base64url text of 32 random bytes.
	Secret   Secret
	RootHash [32]byte
}

// NewJoinToken makes a token for root's cluster. The metadata gets SecretHash
// only.
func NewJoinToken(root *Root) JoinToken {
	return JoinToken{Secret: randomSecret(joinSecretSize), RootHash: root.hash}
}

// ParseJoinToken reads what Text returned, surrounding space aside.
//
// Errors: meta.ErrInvalid; the text is not part of them.
func ParseJoinToken(text string) (JoinToken, error) {
	text = strings.TrimSpace(text)
	parts := strings.Split(text, ".")
	if len(parts) != 3 || parts[0] != joinPrefix {
		return JoinToken{}, fmt.Errorf("join token: it has the form %s.SECRET.ROOT, copy it whole: %w", joinPrefix, meta.ErrInvalid)
	}
	secret, err := base64url.DecodeString(parts[1])
	if err != nil || len(secret) != joinSecretSize {
		return JoinToken{}, fmt.Errorf("join token: its secret is damaged, copy it whole: %w", meta.ErrInvalid)
	}
	hash, err := base64url.DecodeString(parts[2])
	if err != nil || len(hash) != sha256.Size {
		return JoinToken{}, fmt.Errorf("join token: its root hash is damaged, copy it whole: %w", meta.ErrInvalid)
	}
	token := JoinToken{Secret: Secret(parts[1]), RootHash: [32]byte(hash)}
	if token.Text() != text || strings.ContainsAny(text, "\r\n") { // which base64 skips
		return JoinToken{}, fmt.Errorf("join token: it is broken over lines, copy it whole: %w", meta.ErrInvalid)
	}
	return token, nil
}

// Text returns the token as the operator hands it on.
func (t JoinToken) Text() string {
	return joinPrefix + "." + t.Secret.Reveal() + "." + base64url.EncodeToString(t.RootHash[:])
}

// String hides the secret.
func (t JoinToken) String() string {
	return joinPrefix + "." + t.Secret.String() + "." + base64url.EncodeToString(t.RootHash[:])
}

// SecretHash returns the id under which the metadata knows the token: the sha256
// of the secret's text in hex.
func (t JoinToken) SecretHash() string { return SecretHash(t.Secret) }

// SecretHash is the id of a join token by its secret alone, as a server gets it.
func SecretHash(secret Secret) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func randomSecret(size int) Secret {
	b := make([]byte, size)
	rand.Read(b) // never fails (crypto/rand)
	return Secret(base64url.EncodeToString(b))
}
