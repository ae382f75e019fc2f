package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Secret is text that must not be seen: it prints, logs and marshals as ***.
type Secret string

const hidden = "***"

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

// String hides the text.
func (s Secret) String() string { return hidden }

// Format hides the text under every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, hidden) }

// LogValue hides the text from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the text from JSON, YAML and the like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// adminPrefix lets people and secret scanners see what it is.
const adminPrefix = "shoal_admin_"

// NewAdminToken makes the credential of a cluster's first administrator, 32
// random bytes in base64url behind a prefix.
func NewAdminToken() Secret { return adminPrefix + randomSecret(32) }

// HashToken returns the sha256 under which a token is kept; the token itself has
// 256 bits of randomness, so no slow hash is needed.
func HashToken(token Secret) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// CheckToken reports whether given is the token with that hash, in time that does
// not depend on how much of it is right. No token has an empty hash.
func CheckToken(given Secret, hash []byte) bool {
	return len(hash) == sha256.Size && subtle.ConstantTimeCompare(HashToken(given), hash) == 1
}

// MaxSealedBytes bounds what Open reads.
const MaxSealedBytes = 1 << 20

// Seal encrypts secret so that the key of each recipient, and no other, can Open it.
//
// Errors: meta.ErrInvalid without a recipient.
func Seal(secret []byte, to ...ed25519.PublicKey) ([]byte, error) {
	recipients := make([]age.Recipient, 0, len(to))
	for _, public := range to {
		if len(public) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("seal: a public key of %d bytes: %w", len(public), meta.ErrInvalid)
		}
		key, err := ssh.NewPublicKey(public)
		if err != nil {
			return nil, fmt.Errorf("seal: %w: %w", err, meta.ErrInvalid)
		}
		r, err := agessh.NewEd25519Recipient(key)
		if err != nil {
			return nil, fmt.Errorf("seal: %w: %w", err, meta.ErrInvalid)
		}
		recipients = append(recipients, r)
	}
	if len(recipients) == 0 {
		return nil, fmt.Errorf("seal: to nobody: %w", meta.ErrInvalid)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipients...)
	if err != nil {
		return nil, fmt.Errorf("seal: %w: %w", err, meta.ErrInvalid)
	}
	if _, err := w.Write(secret); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return sealed.Bytes(), nil
}

// Open decrypts what was sealed to this key.
//
// Errors: meta.ErrDenied when it was not, or when it was changed since.
func (k *Key) Open(sealed []byte) ([]byte, error) {
	if len(sealed) > MaxSealedBytes {
		return nil, fmt.Errorf("open a sealed secret of %d bytes: %w", len(sealed), meta.ErrDenied)
	}
	identity, err := agessh.NewEd25519Identity(k.private)
	if err != nil {
		return nil, fmt.Errorf("open a sealed secret: %w", err)
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), identity)
	if err != nil {
		return nil, fmt.Errorf("open a sealed secret: %w: %w", err, meta.ErrDenied)
	}
	secret, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("open a sealed secret: %w: %w", err, meta.ErrDenied)
	}
	return secret, nil
}

// ParseRecipient reads what Key.Recipient returned.
//
// Errors: meta.ErrInvalid for anything but an OpenSSH line of an Ed25519 key.
func ParseRecipient(line string) (ed25519.PublicKey, error) {
	key, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("recipient is no single OpenSSH public key: %w", meta.ErrInvalid)
	}
	if c, ok := key.(ssh.CryptoPublicKey); ok {
		if public, ok := c.CryptoPublicKey().(ed25519.PublicKey); ok && len(public) == ed25519.PublicKeySize {
			return public, nil
		}
	}
	return nil, fmt.Errorf("recipient is a %s key, not ssh-ed25519: %w", key.Type(), meta.ErrInvalid)
}
