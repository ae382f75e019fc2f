package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxTouched bounds the uses that one command reports.
const maxTouched = 500

// CredentialUse says when a credential was last used at some node.
type CredentialUse struct {
	ID string    `cbor:"1,keyasint,omitempty"`
	At meta.Time `cbor:"2,keyasint,omitempty"`
}

// TouchCredentials notes when credentials were used, gathered by a node over a minute.
// What is not known any more, or older than what is known, is passed over.
type TouchCredentials struct {
	Uses []CredentialUse `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (TouchCredentials) Type() uint16 { return typeTouchCredentials }

// Check implements Command.
func (c TouchCredentials) Check() error {
	if len(c.Uses) == 0 || len(c.Uses) > maxTouched {
		return fmt.Errorf("%d uses of tokens, report 1 to %d at once: %w", len(c.Uses), maxTouched, meta.ErrInvalid)
	}
	for _, u := range c.Uses {
		if u.ID == "" || len(u.ID) > 64 {
			return fmt.Errorf("use of a token without a proper id: %w", meta.ErrInvalid)
		}
	}
	return nil
}

func (c TouchCredentials) apply(t *tx) (any, error) {
	for _, use := range c.Uses {
		known, err := load[meta.Credential](t, keyCredential(use.ID))
		if err != nil {
			return nil, err
		}
		// A node's clock may be ahead; nothing was used after it was said so.
		at := min(use.At, t.now)
		if known == nil || at <= known.LastUsed {
			continue
		}
		known.LastUsed = at
		t.putCredential(known)
	}
	return nil, nil
}
