package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"net/url"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// A cluster's root is replaced in two steps. During the overlap there are two: all
// nodes trust both and hold a certificate of each, servers show package clients the
// one of the old root and other nodes the one of the new. Then the old one is
// dropped. The cross certificate, the old root's word for the new, goes along with
// what nodes show one another, so that a node that missed the overlap, and knows the
// old root only, follows; it counts for CrossLife.

// CrossLife is how long after the new root was made a node that knows the old one
// only is led to it. Later it joins with a new token.
const CrossLife = 90 * 24 * time.Hour

// Succeed makes the authority that shall take over the cluster, and the cross
// certificate: this root's word for the other, DER.
func (a *Authority) Succeed(now time.Time) (next *Authority, cross []byte, err error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the next root key: %w", err)
	}
	// Another name than the old root's, as some stores of clients go by it.
	name := "shoal root " + a.root.cluster + " " + hex.EncodeToString(public[:4])
	if next, err = newAuthority(a.root.cluster, name, public, private, now); err != nil {
		return nil, nil, err
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, nil, err
	}
	notAfter := now.Add(CrossLife)
	if end := a.root.certificate.NotAfter; notAfter.After(end) {
		notAfter = end
	}
	cross, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               next.root.certificate.Subject,
		URIs:                  []*url.URL{{Scheme: scheme, Host: a.root.cluster}},
		NotBefore:             now.Add(-ClockSkew),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, a.root.certificate, public, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("certify the next root of cluster %s: %w", a.root.cluster, err)
	}
	return next, cross, nil
}

func newAuthority(cluster, name string, public ed25519.PublicKey, private ed25519.PrivateKey, now time.Time) (*Authority, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name, Organization: []string{"shoal"}},
		URIs:                  []*url.URL{{Scheme: scheme, Host: cluster}},
		NotBefore:             now.Add(-ClockSkew),
		NotAfter:              now.Add(RootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, fmt.Errorf("make the root of cluster %s: %w", cluster, err)
	}
	root, err := ParseRoot(der)
	if err != nil {
		return nil, err
	}
	return &Authority{root: root, key: private}, nil
}

// CheckCross checks that cross (DER) is this root's word for next, at now, and
// returns until when it counts.
//
// Errors: meta.ErrDenied with the reason.
func (r *Root) CheckCross(cross []byte, next *Root, now time.Time) (until time.Time, err error) {
	if len(cross) > maxCertificateBytes {
		return until, fmt.Errorf("cross certificate of %d bytes: %w", len(cross), meta.ErrDenied)
	}
	c, err := x509.ParseCertificate(cross)
	if err != nil {
		return until, fmt.Errorf("cross certificate: %w: %w", err, meta.ErrDenied)
	}
	if !r.vouchesFor(c, now) || !bytes.Equal(c.RawSubjectPublicKeyInfo, next.certificate.RawSubjectPublicKeyInfo) || next.cluster != r.cluster {
		return until, fmt.Errorf("the certificate is not this root's word for the next at %s: %w", now.UTC().Format(time.RFC3339), meta.ErrDenied)
	}
	return c.NotAfter, nil
}

// vouchesFor says whether c is a cross certificate of this root that counts at now.
func (r *Root) vouchesFor(c *x509.Certificate, now time.Time) bool {
	return c.IsCA && c.BasicConstraintsValid && len(c.URIs) == 1 && c.URIs[0].Scheme == scheme && c.URIs[0].Path == "" &&
		c.URIs[0].Host == r.cluster && !now.Before(c.NotBefore) && !now.After(c.NotAfter) &&
		!bytes.Equal(c.Raw, r.certificate.Raw) && c.CheckSignatureFrom(r.certificate) == nil
}

// Papers are what a cluster gives a node to prove itself with; all are DER.
type Papers struct {
	// Root is the cluster's root and Chain this node's certificate under it, leaf first.
	Root  []byte   `cbor:"1,keyasint,omitempty"`
	Chain [][]byte `cbor:"2,keyasint,omitempty"`
	// Next is the root that takes over, and NextChain the certificate under it: during
	// the overlap only.
	Next      []byte   `cbor:"3,keyasint,omitempty"`
	NextChain [][]byte `cbor:"4,keyasint,omitempty"`
	// Cross is the word of the older root for the newer: of Root for Next, or after the
	// overlap of Former for Root.
	Cross  []byte `cbor:"5,keyasint,omitempty"`
	Former []byte `cbor:"6,keyasint,omitempty"`
}

// Newest returns the root that will stay.
func (p Papers) Newest() []byte {
	if len(p.Next) > 0 {
		return p.Next
	}
	return p.Root
}
