package publication

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Signer signs documents with a repository's key. It is safe for concurrent use.
type Signer struct {
	entity              *openpgp.Entity
	fingerprint, public string
}

// signConfig is how documents are signed: RSA, which every apt and rpm in use verifies,
// over SHA-512.
func signConfig() *packet.Config {
	return &packet.Config{Algorithm: packet.PubKeyAlgoRSA, DefaultHash: crypto.SHA512}
}

// newKey makes the key of a repository and seals it to servers.
func newKey(repo meta.RepoRef, servers []meta.Node, now time.Time, bits int) (*meta.SigningKey, error) {
	config := signConfig()
	config.RSABits = bits
	// A little earlier, so that a client whose clock is behind takes it.
	config.Time = func() time.Time { return now.Add(-time.Hour) }
	entity, err := openpgp.NewEntity("shoal repository "+repo.String(), "", "", config)
	if err != nil {
		return nil, fmt.Errorf("signing key of %s: %w", repo, err)
	}
	entity.Subkeys = nil // Nobody encrypts to it.
	var public, private bytes.Buffer
	w, err := armor.Encode(&public, openpgp.PublicKeyType, nil)
	if err == nil {
		err = entity.Serialize(w)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = entity.SerializePrivateWithoutSigning(&private, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("signing key of %s: %w", repo, err)
	}
	public.WriteByte('\n')
	sealed, to, err := seal(private.Bytes(), servers)
	clear(private.Bytes())
	if err != nil {
		return nil, fmt.Errorf("signing key of %s: %w", repo, err)
	}
	return &meta.SigningKey{
		Public: public.String(), Fingerprint: strings.ToUpper(hex.EncodeToString(entity.PrimaryKey.Fingerprint)), Sealed: sealed, To: to,
	}, nil
}

// seal seals a secret to all of the servers, whose ids it returns in order.
func seal(secret []byte, servers []meta.Node) ([]byte, []meta.NodeID, error) {
	var recipients []ed25519.PublicKey
	var to []meta.NodeID
	for _, s := range servers {
		if len(to) == meta.MaxSealedTo {
			break
		}
		recipient, err := trust.ParseRecipient(s.Seal)
		if err != nil {
			return nil, nil, fmt.Errorf("seal to %s: %w", s.ID, err)
		}
		recipients, to = append(recipients, recipient), append(to, s.ID)
	}
	slices.Sort(to)
	sealed, err := trust.Seal(secret, recipients...)
	return sealed, to, err
}

// openKey returns the signer of what was sealed.
func openKey(key meta.SigningKey, secret []byte) (*Signer, error) {
	entities, err := openpgp.ReadKeyRing(bytes.NewReader(secret))
	if err != nil || len(entities) != 1 {
		return nil, fmt.Errorf("the signing key does not parse: %w", meta.ErrCorrupt)
	}
	s := &Signer{entity: entities[0], public: key.Public, fingerprint: strings.ToUpper(hex.EncodeToString(entities[0].PrimaryKey.Fingerprint))}
	if s.fingerprint != key.Fingerprint {
		return nil, fmt.Errorf("the signing key is %s, not %s: %w", s.fingerprint, key.Fingerprint, meta.ErrCorrupt)
	}
	return s, nil
}

// Fingerprint returns the key's in upper-case hex.
func (s *Signer) Fingerprint() string { return s.fingerprint }

// Public returns the armored public key.
func (s *Signer) Public() string { return s.public }

// Detached writes an armored signature of message to w.
func (s *Signer) Detached(w io.Writer, message io.Reader) error {
	if err := openpgp.ArmoredDetachSign(w, s.entity, message, signConfig()); err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// Clear writes message with its signature around it to w.
func (s *Signer) Clear(w io.Writer, message []byte) error {
	out, err := clearsign.Encode(w, s.entity.PrivateKey, signConfig())
	if err == nil {
		_, err = out.Write(message)
	}
	if err == nil {
		err = out.Close()
	}
	if err == nil {
		_, err = io.WriteString(w, "\n")
	}
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	return nil
}
