package credential

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// The text of a token, 81 bytes that survive a double click, a URL and a header:
//
//	shoal_ ID(16) _ base32(secret(32) | crc32c(4))(58)
//
// The checksum is over all that comes before it, so that a mistyped token is told
// from a foreign one without a look-up, and scanners for leaked secrets find ours
// and nothing else.
const (
	prefix      = "shoal_"
	idBytes     = 10
	idLength    = 16
	secretBytes = 32
	tailLength  = 58
	// Length is how long the text of every token is, in bytes.
	Length = len(prefix) + idLength + 1 + tailLength
)

var (
	letters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
	crc     = crc32.MakeTable(crc32.Castagnoli)
)

// Token is a token taken apart: the id under which it is on record, and the sha256
// of its text, which is all of it that is kept.
type Token struct {
	ID   string
	Hash []byte
}

// Mint makes a new token. The text is shown once, to whom it is made for.
func Mint() (text trust.Secret, token Token) {
	raw := make([]byte, idBytes+secretBytes)
	// It ends the process when the system has no randomness.
	_, _ = rand.Read(raw)
	text = compose(letters.EncodeToString(raw[:idBytes]), raw[idBytes:])
	return text, Token{ID: letters.EncodeToString(raw[:idBytes]), Hash: trust.HashToken(text)}
}

func compose(id string, secret []byte) trust.Secret {
	tail := append(append(make([]byte, 0, secretBytes+4), secret...), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(tail[secretBytes:], checksum(id, secret))
	return trust.Secret(prefix + id + "_" + letters.EncodeToString(tail))
}

func checksum(id string, secret []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(prefix+id), crc), crc, secret)
}

// Looks reports whether text has the shape of a token, whatever is in it. An id has no
// underscore; the administrator's token has one there, and any letters behind it.
func Looks(text string) bool {
	return len(text) > len(prefix)+idLength && strings.HasPrefix(text, prefix) && strings.IndexByte(text[len(prefix):], '_') == idLength
}

// Parse takes a token apart. That it is well formed says nothing about its right.
//
// Errors: meta.ErrInvalid, without any part of the text.
func Parse(text string) (Token, error) {
	if !Looks(text) {
		return Token{}, fmt.Errorf("it is no token of this registry: %w", meta.ErrInvalid)
	}
	if len(text) != Length {
		return Token{}, fmt.Errorf("the token has %d characters, a whole one has %d: %w", len(text), Length, meta.ErrInvalid)
	}
	id := text[len(prefix) : len(prefix)+idLength]
	raw, err := letters.DecodeString(text[len(prefix)+idLength+1:])
	if err == nil {
		err = CheckID(id)
	}
	// Two texts must not be one token: bits that the letters carry and nobody reads are refused.
	if err != nil || len(raw) != secretBytes+4 || string(compose(id, raw[:secretBytes])) != text {
		return Token{}, fmt.Errorf("the token is mistyped or damaged: %w", meta.ErrInvalid)
	}
	return Token{ID: id, Hash: trust.HashToken(trust.Secret(text))}, nil
}

// CheckID refuses what is no id of a token; of a whole token the error does not tell the
// secret.
//
// Errors: meta.ErrInvalid.
func CheckID(id string) error {
	raw, err := letters.DecodeString(id)
	if err != nil || len(raw) != idBytes || len(id) != idLength || letters.EncodeToString(raw) != id {
		return fmt.Errorf("token id %.40q: it has %d of the letters a to z and 2 to 7, see `shoal token list`: %w", Hide(id), idLength, meta.ErrInvalid)
	}
	return nil
}

// Hide takes the secret parts of tokens out of a text that is to be logged: npm writes
// one into the path of its logout.
func Hide(text string) string {
	for from := 0; ; {
		at := strings.Index(text[from:], prefix)
		if at < 0 {
			return text
		}
		begin := from + at + len(prefix)
		from = begin
		secret := begin + idLength + 1
		if secret >= len(text) || text[secret-1] != '_' {
			continue
		}
		end := secret
		for end < len(text) && (text[end] >= 'a' && text[end] <= 'z' || text[end] >= '2' && text[end] <= '7') {
			end++
		}
		text = text[:secret] + "***" + text[end:]
	}
}
