package trust

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Credential is a node's key with its present certificate. TLS configurations
// made from it read it at each handshake. It is safe for concurrent use.
type Credential struct {
	key     *Key
	root    *Root
	current atomic.Pointer[issued]
}

type issued struct {
	chain    [][]byte
	identity Identity
	tls      tls.Certificate
}

// NewCredential checks that chain (DER, leaf first; what Issue returned)
// certifies key under root. An expired chain is accepted here, so that a node
// long offline starts and renews; Expired tells.
//
// Errors: meta.ErrDenied with the reason.
func NewCredential(key *Key, root *Root, chain [][]byte) (*Credential, error) {
	c := &Credential{key: key, root: root}
	return c, c.Set(chain)
}

// Set takes a renewed chain into use.
//
// Errors: meta.ErrDenied when it does not certify this node; the old one stays.
func (c *Credential) Set(chain [][]byte) error {
	if len(chain) == 0 {
		return fmt.Errorf("no certificate: %w", meta.ErrDenied)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return fmt.Errorf("certificate: %w: %w", err, meta.ErrDenied)
	}
	// Judged at its own begin: whether it is still valid is the handshake's question.
	begin := leaf.NotBefore
	if rootBegin := c.root.certificate.NotBefore; rootBegin.After(begin) {
		begin = rootBegin // the issuing server's clock lagged
	}
	identity, err := c.root.Verify(chain, begin)
	if err != nil {
		return err
	}
	if identity.ID != c.key.id {
		return fmt.Errorf("certificate is of node %s, this is %s: %w", identity.ID, c.key.id, meta.ErrDenied)
	}
	c.current.Store(&issued{
		chain:    chain,
		identity: identity,
		// The root goes along, so that a joining node can compare its hash.
		tls: tls.Certificate{Certificate: [][]byte{chain[0], c.root.DER()}, PrivateKey: c.key.private, Leaf: leaf},
	})
	return nil
}

// Key returns the node's key.
func (c *Credential) Key() *Key { return c.key }

// Root returns the cluster's root.
func (c *Credential) Root() *Root { return c.root }

// Chain returns the present chain, DER, leaf first, to be kept on disk.
func (c *Credential) Chain() [][]byte { return c.current.Load().chain }

// Identity returns what the present certificate says.
func (c *Credential) Identity() Identity { return c.current.Load().identity }

// Expired reports whether the certificate has ended at now.
func (c *Credential) Expired(now time.Time) bool { return now.After(c.Identity().NotAfter) }

// RenewAt returns when the certificate is due for renewal.
func (c *Credential) RenewAt() time.Time {
	i := c.Identity()
	return i.NotBefore.Add(ClockSkew + RenewAfter)
}

// Run keeps the certificate fresh until ctx ends: when it is due it calls renew
// for a new chain, and after a failure again, after 1 s at first, at most after
// 5 minutes. Each call of renew has 30 s. renew asks a server, or on a server
// the authority itself; it also keeps the chain on disk if that is wanted.
//
// failed is called with each failure, for the log; it may be nil.
func (c *Credential) Run(ctx context.Context, renew func(context.Context) ([][]byte, error), failed func(error)) error {
	const firstRetry, lastRetry, attempt = time.Second, 5 * time.Minute, 30 * time.Second
	retry := firstRetry
	wait := time.Until(c.RenewAt())
	for {
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if err := c.renewOnce(ctx, renew, attempt); err != nil {
			if failed != nil && ctx.Err() == nil {
				failed(err)
			}
			wait, retry = retry, min(2*retry, lastRetry)
			continue
		}
		retry = firstRetry
		// A certificate that is due already (a clock far ahead) must not spin.
		wait = max(time.Until(c.RenewAt()), time.Minute)
	}
}

func (c *Credential) renewOnce(ctx context.Context, renew func(context.Context) ([][]byte, error), limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	chain, err := renew(ctx)
	if err != nil {
		return fmt.Errorf("renew the node certificate: %w", err)
	}
	if err := c.Set(chain); err != nil {
		return fmt.Errorf("renew the node certificate: %w", err)
	}
	return nil
}
