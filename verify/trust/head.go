package trust

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	// HeadNonceBytes is the length of what an asker makes up for each head.
	HeadNonceBytes = 16
	// MaxHeadBytes bounds an encoded head.
	MaxHeadBytes = 1024
)

// Head is a server's word on how far the revocation of rights has come: all that was
// acknowledged Age before the head was made is in Access.Revision. It answers one
// request: who kept an older one cannot pass it off as news.
type Head struct {
	Access meta.AccessHead `cbor:"1,keyasint,omitempty"`
	Age    time.Duration   `cbor:"2,keyasint,omitempty"`
	// Nonce is the asker's, HeadNonceBytes long.
	Nonce []byte `cbor:"3,keyasint,omitempty"`
	// Issuer is the server that signs; SignHead sets it.
	Issuer meta.NodeID `cbor:"4,keyasint,omitempty"`
}

// signedHead is a head as it travels. The signature covers purposeHead, the cluster
// id, a zero byte and Body.
type signedHead struct {
	Body      []byte `cbor:"1,keyasint,omitempty"`
	Signature []byte `cbor:"2,keyasint,omitempty"`
}

func headText(cluster string, body []byte) []byte {
	text := append([]byte(purposeHead), cluster...)
	return append(append(text, 0), body...)
}

// SignHead returns h, with this node as its issuer, encoded and signed.
//
// Errors: meta.ErrInvalid for a head without index or nonce, or with a negative age.
func (k *Key) SignHead(cluster string, h Head) ([]byte, error) {
	h.Issuer = k.id
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("sign a head: %w", err)
	}
	body := codec.Encode(h)
	return codec.Encode(signedHead{Body: body, Signature: ed25519.Sign(k.private, headText(cluster, body))}), nil
}

func (h Head) check() error {
	if h.Access.Index == 0 || h.Access.Revision > h.Access.Index || h.Age < 0 || len(h.Nonce) != HeadNonceBytes {
		return fmt.Errorf("head without index or nonce, or of the future: %w", meta.ErrInvalid)
	}
	return nil
}

// OpenHead decodes a head, checks the signature of the issuer that it names, and that
// it answers the request with nonce. Whether the issuer is a server is for the caller
// to check, and that the head is no older than those before.
//
// Errors: meta.ErrDenied.
func OpenHead(cluster string, b, nonce []byte) (Head, error) {
	deny := func(err error) (Head, error) { return Head{}, fmt.Errorf("head: %w: %w", err, meta.ErrDenied) }
	if len(b) > MaxHeadBytes {
		return deny(fmt.Errorf("%d bytes", len(b)))
	}
	var s signedHead
	var h Head
	if err := codec.Unmarshal(b, &s); err != nil {
		return deny(err)
	}
	if err := codec.Unmarshal(s.Body, &h); err != nil {
		return deny(err)
	}
	if err := h.check(); err != nil {
		return deny(err)
	}
	issuer, err := PublicKeyOf(h.Issuer)
	if err != nil {
		return deny(err)
	}
	if !ed25519.Verify(issuer, headText(cluster, s.Body), s.Signature) {
		return deny(fmt.Errorf("it is not signed by %s for cluster %s", h.Issuer, cluster))
	}
	if !bytes.Equal(h.Nonce, nonce) {
		return deny(fmt.Errorf("it answers another request"))
	}
	return h, nil
}
