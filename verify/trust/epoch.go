package trust

import (
	"crypto/ed25519"
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// purposeEpoch sets the root's signature over an epoch apart from those over certificates.
const purposeEpoch = "shoal epoch 1\x00"

// MaxEpochBytes bounds a statement of an epoch.
const MaxEpochBytes = 1024

// Epoch is the root's word that its cluster goes on in a new epoch, begun by the server
// First. A server of an older epoch that sees it must stop, whoever shows it.
type Epoch struct {
	Cluster string      `cbor:"1,keyasint,omitempty"`
	Number  uint64      `cbor:"2,keyasint,omitempty"`
	First   meta.NodeID `cbor:"3,keyasint,omitempty"`
	At      meta.Time   `cbor:"4,keyasint,omitempty"`
}

// signedEpoch is an Epoch as it travels; the signature covers purposeEpoch and Body.
type signedEpoch struct {
	Body      []byte `cbor:"1,keyasint,omitempty"`
	Signature []byte `cbor:"2,keyasint,omitempty"`
}

// SignEpoch states e; the authority's cluster is filled in.
func (a *Authority) SignEpoch(e Epoch) []byte {
	e.Cluster = a.root.cluster
	body := codec.Encode(e)
	return codec.Encode(signedEpoch{Body: body, Signature: ed25519.Sign(a.key, append([]byte(purposeEpoch), body...))})
}

// CheckEpoch reads what SignEpoch wrote.
//
// Errors: meta.ErrDenied for anything that the root did not sign.
func (r *Root) CheckEpoch(statement []byte) (Epoch, error) {
	var s signedEpoch
	var e Epoch
	if len(statement) > MaxEpochBytes {
		return e, fmt.Errorf("statement of an epoch of %d bytes: %w", len(statement), meta.ErrDenied)
	}
	if err := codec.Unmarshal(statement, &s); err != nil {
		return e, fmt.Errorf("statement of an epoch: %w: %w", err, meta.ErrDenied)
	}
	key, ok := r.certificate.PublicKey.(ed25519.PublicKey)
	if !ok || !ed25519.Verify(key, append([]byte(purposeEpoch), s.Body...), s.Signature) {
		return e, fmt.Errorf("statement of an epoch: the root did not sign it: %w", meta.ErrDenied)
	}
	if err := codec.Unmarshal(s.Body, &e); err != nil || e.Cluster != r.cluster {
		return Epoch{}, fmt.Errorf("statement of an epoch: it is not of cluster %s: %w", r.cluster, meta.ErrDenied)
	}
	return e, nil
}
