package trust

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Credential is a node's key with its present papers: the roots that it trusts and
// its certificates under them. TLS configurations made from it read it at each
// handshake. It is safe for concurrent use.
type Credential struct {
	key     *Key
	setting sync.Mutex // one writer at a time
	current atomic.Pointer[held]
	early   chan struct{}
}

// held is what a credential is at a time.
type held struct {
	papers     Papers
	root, next *Root // next is nil but in an overlap
	// pool has the roots, for the list of names that servers send to clients.
	pool    *x509.CertPool
	clients *issued // shown to package clients: under the root that they have
	nodes   *issued // shown to nodes: under the newest, with the older's word for it
}

type issued struct {
	identity Identity
	tls      tls.Certificate
}

// NewCredential checks that chain (DER, leaf first; what Issue returned)
// certifies key under root. An expired chain is accepted here, so that a node
// long offline starts and renews; Expired tells.
//
// Errors: meta.ErrDenied with the reason.
func NewCredential(key *Key, root *Root, chain [][]byte) (*Credential, error) {
	return OpenCredential(key, Papers{Root: root.DER(), Chain: chain})
}

// OpenCredential is NewCredential of papers that the node kept.
//
// Errors: meta.ErrDenied, meta.ErrCorrupt with the reason.
func OpenCredential(key *Key, papers Papers) (*Credential, error) {
	c := &Credential{key: key, early: make(chan struct{}, 1)}
	next, err := c.read(papers)
	if err != nil {
		return nil, err
	}
	c.current.Store(next)
	return c, nil
}

// Set takes a renewed chain under the present root into use.
//
// Errors: meta.ErrDenied when it does not certify this node; the old one stays.
func (c *Credential) Set(chain [][]byte) error {
	papers := c.Papers()
	papers.Chain = chain
	return c.Adopt(papers)
}

// Adopt takes new papers into use: renewed certificates, and roots that the present
// ones vouch for.
//
// Errors: meta.ErrDenied when they do not certify this node, or a root is nobody's
// that this node knows; the old ones stay.
func (c *Credential) Adopt(papers Papers) error {
	c.setting.Lock()
	defer c.setting.Unlock()
	next, err := c.read(papers)
	if err != nil {
		return err
	}
	if err := c.current.Load().follows(next); err != nil {
		return err
	}
	c.current.Store(next)
	return nil
}

// follows checks that each root of next is known here or vouched for by one that is.
func (h *held) follows(next *held) error {
	known := func(r *Root) bool {
		return r == nil || r.hash == h.root.hash || h.next != nil && r.hash == h.next.hash
	}
	for _, r := range []*Root{next.root, next.next} {
		if known(r) {
			continue
		}
		if _, err := h.root.CheckCross(next.papers.Cross, r, time.Now()); err != nil {
			return fmt.Errorf("papers under root %x, which this node does not know: %w", r.hash, err)
		}
	}
	return nil
}

// read checks papers by themselves.
func (c *Credential) read(p Papers) (*held, error) {
	h := &held{papers: p, pool: x509.NewCertPool()}
	var err error
	if h.root, err = ParseRoot(p.Root); err != nil {
		return nil, err
	}
	h.pool.AddCert(h.root.certificate)
	if h.clients, err = c.certified(h.root, p.Chain); err != nil {
		return nil, err
	}
	h.nodes = h.clients
	older, newer := [][]byte(nil), h.root
	if len(p.Next) > 0 {
		if h.next, err = ParseRoot(p.Next); err != nil {
			return nil, err
		}
		if h.next.cluster != h.root.cluster {
			return nil, fmt.Errorf("the next root is of cluster %s: %w", h.next.cluster, meta.ErrDenied)
		}
		h.pool.AddCert(h.next.certificate)
		nodes, err := c.certified(h.next, p.NextChain)
		if err != nil {
			return nil, err
		}
		h.nodes, newer = nodes, h.next
		older = [][]byte{p.Cross, h.root.DER()}
	} else if len(p.Former) > 0 {
		older = [][]byte{p.Cross, p.Former}
	}
	if len(older) > 0 {
		// Verified by who follows it; a broken one misleads nobody.
		nodes := *h.nodes
		nodes.tls.Certificate = append([][]byte{nodes.tls.Certificate[0], newer.DER()}, older...)
		h.nodes = &nodes
	}
	return h, nil
}

// certified reads a chain under root.
func (c *Credential) certified(root *Root, chain [][]byte) (*issued, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("no certificate: %w", meta.ErrDenied)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("certificate: %w: %w", err, meta.ErrDenied)
	}
	// Judged at its own begin: whether it is still valid is the handshake's question.
	begin := leaf.NotBefore
	if rootBegin := root.certificate.NotBefore; rootBegin.After(begin) {
		begin = rootBegin // the issuing server's clock lagged
	}
	identity, err := root.Verify(chain[:1], begin)
	if err != nil {
		return nil, err
	}
	if identity.ID != c.key.id {
		return nil, fmt.Errorf("certificate is of node %s, this is %s: %w", identity.ID, c.key.id, meta.ErrDenied)
	}
	return &issued{
		identity: identity,
		// The root goes along, so that a joining node can compare its hash.
		tls: tls.Certificate{Certificate: [][]byte{chain[0], root.DER()}, PrivateKey: c.key.private, Leaf: leaf},
	}, nil
}

// Key returns the node's key.
func (c *Credential) Key() *Key { return c.key }

// Root returns the cluster's root: until the overlap ends, the old one.
func (c *Credential) Root() *Root { return c.current.Load().root }

// Newest returns the root that will stay: Root, or in an overlap the next.
func (c *Credential) Newest() *Root {
	h := c.current.Load()
	if h.next != nil {
		return h.next
	}
	return h.root
}

// Papers returns what is to be kept on disk.
func (c *Credential) Papers() Papers { return c.current.Load().papers }

// Chain returns the present chain under Root, DER, leaf first.
func (c *Credential) Chain() [][]byte { return c.current.Load().papers.Chain }

// Identity returns what the present certificate says.
func (c *Credential) Identity() Identity { return c.current.Load().clients.identity }

// Expired reports whether a certificate has ended at now.
func (c *Credential) Expired(now time.Time) bool {
	h := c.current.Load()
	return now.After(h.clients.identity.NotAfter) || now.After(h.nodes.identity.NotAfter)
}

// RenewAt returns when the certificates are due for renewal.
func (c *Credential) RenewAt() time.Time {
	h := c.current.Load()
	due := h.clients.identity.NotBefore
	if n := h.nodes.identity.NotBefore; n.Before(due) {
		due = n
	}
	return due.Add(ClockSkew + RenewAfter)
}

// PeerOf returns who the other side of a connection proved to be under the roots of
// this moment; see the function PeerOf.
func (c *Credential) PeerOf(state *tls.ConnectionState) (Identity, bool, error) {
	if state == nil {
		return Identity{}, false, nil
	}
	return c.current.Load().peerAt(state, time.Now())
}

func (h *held) peerAt(state *tls.ConnectionState, now time.Time) (Identity, bool, error) {
	identity, ok, err := peerAt(h.root, state, now)
	if err != nil && h.next != nil {
		if identity, ok, other := peerAt(h.next, state, now); other == nil {
			return identity, ok, nil
		}
	}
	return identity, ok, err
}

func (h *held) verifyServer(state *tls.ConnectionState, now time.Time) error {
	err := verifyServer(h.root, state, now)
	if err != nil && h.next != nil && verifyServer(h.next, state, now) == nil {
		return nil
	}
	return err
}

// CheckEpoch reads a statement of an epoch that one of the roots signed.
//
// Errors: meta.ErrDenied.
func (c *Credential) CheckEpoch(statement []byte) (Epoch, error) {
	h := c.current.Load()
	e, err := h.root.CheckEpoch(statement)
	if err != nil && h.next != nil {
		if other, crossed := h.next.CheckEpoch(statement); crossed == nil {
			return other, nil
		}
	}
	return e, err
}

// RenewEarly has Run renew now, because the cluster's roots have changed.
func (c *Credential) RenewEarly() {
	select {
	case c.early <- struct{}{}:
	default:
	}
}

// Run keeps the papers fresh until ctx ends: when they are due, or RenewEarly was
// called, it calls renew for new ones, and after a failure again, after 1 s at first,
// at most after 5 minutes. Each call of renew has 30 s. renew asks a server, or on a
// server the authority itself; kept is called with what was taken into use, to write
// it down.
//
// failed is called with each failure, for the log; it may be nil.
func (c *Credential) Run(ctx context.Context, renew func(context.Context) (Papers, error), kept func(Papers) error, failed func(error)) error {
	const firstRetry, lastRetry, attempt = time.Second, 5 * time.Minute, 30 * time.Second
	retry := firstRetry
	wait := time.Until(c.RenewAt())
	for {
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-c.early:
			timer.Stop()
		case <-timer.C:
		}
		if err := c.renewOnce(ctx, renew, kept, attempt); err != nil {
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

func (c *Credential) renewOnce(ctx context.Context, renew func(context.Context) (Papers, error), kept func(Papers) error, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	papers, err := renew(ctx)
	if err == nil {
		err = c.Adopt(papers)
	}
	if err == nil && kept != nil {
		err = kept(papers)
	}
	if err != nil {
		return fmt.Errorf("renew the node certificate: %w", err)
	}
	return nil
}
