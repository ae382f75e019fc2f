package trust

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// MaxRecipients bounds whom a backup is sealed to.
const MaxRecipients = 16

// SealTo encrypts secret to people: age recipients (age1...) or OpenSSH public keys
// (ssh-ed25519, ssh-rsa), of which any one opens it with OpenWith.
//
// Errors: meta.ErrInvalid for a recipient that is none of them, or none at all.
func SealTo(secret []byte, recipients []string) ([]byte, error) {
	if len(recipients) == 0 || len(recipients) > MaxRecipients {
		return nil, fmt.Errorf("seal: 1 to %d recipients, not %d: %w", MaxRecipients, len(recipients), meta.ErrInvalid)
	}
	parsed := make([]age.Recipient, len(recipients))
	for i, text := range recipients {
		var err error
		if text = strings.TrimSpace(text); strings.HasPrefix(text, "ssh-") {
			parsed[i], err = agessh.ParseRecipient(text)
		} else {
			parsed[i], err = age.ParseX25519Recipient(text)
		}
		if err != nil {
			return nil, fmt.Errorf("recipient %.20q... is neither an age recipient (age1...) nor an OpenSSH public key: %w", text, meta.ErrInvalid)
		}
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, parsed...)
	if err == nil {
		_, err = w.Write(secret)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("seal: %w: %w", err, meta.ErrInvalid)
	}
	return sealed.Bytes(), nil
}

// OpenWith opens what SealTo sealed. identity is the content of an age identity file
// (age-keygen) or of an OpenSSH private key without a passphrase.
//
// Errors: meta.ErrInvalid for an identity that cannot be read, meta.ErrDenied for one
// that it was not sealed to.
func OpenWith(sealed, identity []byte) ([]byte, error) {
	if len(sealed) > MaxSealedBytes {
		return nil, fmt.Errorf("open a sealed secret of %d bytes: %w", len(sealed), meta.ErrDenied)
	}
	var identities []age.Identity
	if bytes.Contains(identity, []byte("PRIVATE KEY-----")) {
		key, err := agessh.ParseIdentity(identity)
		if err != nil {
			return nil, fmt.Errorf("the private key cannot be used (it must have no passphrase): %w: %w", err, meta.ErrInvalid)
		}
		identities = []age.Identity{key}
	} else {
		keys, err := age.ParseIdentities(bytes.NewReader(identity))
		if err != nil {
			return nil, fmt.Errorf("the identity is neither an age identity file nor an OpenSSH private key: %w", meta.ErrInvalid)
		}
		identities = keys
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), identities...)
	if err != nil {
		return nil, fmt.Errorf("open a sealed secret: %w: %w", err, meta.ErrDenied)
	}
	secret, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("open a sealed secret: %w: %w", err, meta.ErrDenied)
	}
	return secret, nil
}
