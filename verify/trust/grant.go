package trust

import (
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	// GrantLife is how long a grant lasts at most; it is renewed on the stream.
	GrantLife = 60 * time.Second
	// GrantSkew is by how much the clocks of issuer and checker may differ. It is
	// generous, since no grant is how a right is taken back: a removed node loses
	// its connections, and the revocation head ends grants.
	GrantSkew = 30 * time.Second
	// MaxGrantBytes bounds an encoded grant.
	MaxGrantBytes = 1024

	maxContextBytes = 255
)

// Grant lets Peer have the blob Root, sealed for Context, until Expires.
type Grant struct {
	Peer    meta.NodeID `cbor:"1,keyasint,omitempty"`
	Context string      `cbor:"2,keyasint,omitempty"`
	Root    digest.CID  `cbor:"3,keyasint,omitempty"`
	Expires meta.Time   `cbor:"4,keyasint,omitempty"`
	// Issuer is the server that signs; SignGrant sets it.
	Issuer meta.NodeID `cbor:"5,keyasint,omitempty"`
	// Public says that the peer may have the blob because everybody may, although it may
	// have nothing else of Context.
	Public bool `cbor:"6,keyasint,omitempty"`
	// Revision is the access revision under which the grant was issued.
	Revision uint64 `cbor:"7,keyasint,omitempty"`
}

// Reasons why a grant does not count; they label metrics.
const (
	GrantMissing   = "missing"
	GrantMalformed = "malformed"
	GrantForged    = "forged"
	GrantPeer      = "peer"   // of another peer
	GrantRoot      = "root"   // for another blob
	GrantIssuer    = "issuer" // of no server
	GrantExpired   = "expired"
	GrantAhead     = "ahead"   // ends later than any server would say
	GrantTenant    = "tenant"  // of a tenant of which the peer may have nothing
	GrantRevoked   = "revoked" // from before rights were taken back
)

// GrantReasons lists them all.
var GrantReasons = []string{
	GrantMissing, GrantMalformed, GrantForged, GrantPeer, GrantRoot, GrantIssuer, GrantExpired, GrantAhead, GrantTenant, GrantRevoked,
}

// GrantError says why a grant does not count. It is meta.ErrDenied.
type GrantError struct {
	Reason string // of GrantReasons
	text   string
}

func (e *GrantError) Error() string { return "grant " + e.text }

// Unwrap returns meta.ErrDenied.
func (e *GrantError) Unwrap() error { return meta.ErrDenied }

// Label is Reason, as a metric has it.
func (e *GrantError) Label() string { return e.Reason }

func denyGrant(reason, format string, args ...any) error {
	return &GrantError{Reason: reason, text: fmt.Sprintf(format, args...)}
}

// signedGrant is a grant as it travels. The signature covers purposeGrant, the
// cluster id, a zero byte and Body, so no grant of one cluster counts in another.
type signedGrant struct {
	Body      []byte `cbor:"1,keyasint,omitempty"`
	Signature []byte `cbor:"2,keyasint,omitempty"`
}

func grantText(cluster string, body []byte) []byte {
	text := append([]byte(purposeGrant), cluster...)
	return append(append(text, 0), body...)
}

// SignGrant returns g, with this node as its issuer, encoded and signed.
//
// Errors: meta.ErrInvalid for a grant without peer, root or expiry, or with a
// context over 255 bytes.
func (k *Key) SignGrant(cluster string, g Grant) ([]byte, error) {
	g.Issuer = k.id
	if err := g.check(); err != nil {
		return nil, fmt.Errorf("sign a grant: %w", err)
	}
	body := codec.Encode(g)
	return codec.Encode(signedGrant{Body: body, Signature: ed25519.Sign(k.private, grantText(cluster, body))}), nil
}

func (g Grant) check() error {
	if _, err := PeerID(g.Peer); err != nil {
		return err
	}
	if g.Root.IsZero() || g.Expires <= 0 || len(g.Context) > maxContextBytes {
		return fmt.Errorf("grant without root or expiry, or with a long context: %w", meta.ErrInvalid)
	}
	return nil
}

// OpenGrant decodes a grant and checks the signature of the issuer that it names.
// Who that is, whom it is for and until when is for the caller to check: Checker does.
//
// Errors: *GrantError.
func OpenGrant(cluster string, b []byte) (Grant, error) {
	if len(b) == 0 {
		return Grant{}, denyGrant(GrantMissing, "is missing")
	}
	if len(b) > MaxGrantBytes {
		return Grant{}, denyGrant(GrantMalformed, "of %d bytes", len(b))
	}
	var s signedGrant
	var g Grant
	if err := codec.Unmarshal(b, &s); err != nil {
		return Grant{}, denyGrant(GrantMalformed, "is none: %v", err)
	}
	if err := codec.Unmarshal(s.Body, &g); err != nil {
		return Grant{}, denyGrant(GrantMalformed, "is none: %v", err)
	}
	if err := g.check(); err != nil {
		return Grant{}, denyGrant(GrantMalformed, "is none: %v", err)
	}
	issuer, err := PublicKeyOf(g.Issuer)
	if err != nil {
		return Grant{}, denyGrant(GrantMalformed, "is none: %v", err)
	}
	if !ed25519.Verify(issuer, grantText(cluster, s.Body), s.Signature) {
		return Grant{}, denyGrant(GrantForged, "is not signed by %s for cluster %s", g.Issuer, cluster)
	}
	return g, nil
}

// ContextOf returns the context of a grant that was checked before, "" when b is none.
func ContextOf(b []byte) string {
	var s signedGrant
	var g Grant
	if codec.Unmarshal(b, &s) != nil || codec.Unmarshal(s.Body, &g) != nil {
		return ""
	}
	return g.Context
}

// Checker checks grants offline. It is safe for concurrent use when its functions are.
type Checker struct {
	// Cluster is the cluster's id.
	Cluster string
	// IsServer says whether a node is a server of the roster: only they issue.
	IsServer func(meta.NodeID) bool
	// MayHold says whether a node may have what belongs to a tenant, by the roster as it
	// is now: a node that was narrowed keeps no grant. nil is yes.
	MayHold func(peer meta.NodeID, tenant meta.TenantName) bool
	// Revised is an access revision under which, or a later one, grants that rest on a
	// blob's being public must have been issued: that may have ended since. nil is any.
	Revised func() uint64
	// Grace is how long past its expiry a grant counts at this moment: 0 while a
	// server is reachable, degraded_read_max while none is. nil is 0.
	Grace func() time.Duration
}

// Check returns nil when grant lets peer, the authenticated other side of the
// stream that it came on, have the blob root at now.
//
// Clocks may differ by GrantSkew: a grant counts that much longer, and one that
// expires more than GrantLife+GrantSkew from now is refused, since no server
// issues it.
// Errors: *GrantError.
func (c Checker) Check(grant []byte, peer meta.NodeID, root digest.CID, now time.Time) error {
	g, err := OpenGrant(c.Cluster, grant)
	if err != nil {
		return err
	}
	expires := g.Expires.Std()
	patience := GrantSkew
	if now.After(expires.Add(patience)) && c.Grace != nil {
		patience += c.Grace()
	}
	switch {
	case g.Peer != peer:
		return denyGrant(GrantPeer, "is for %s, not %s", g.Peer, peer)
	case g.Root != root:
		return denyGrant(GrantRoot, "is for another blob than %s", root)
	case !c.IsServer(g.Issuer):
		return denyGrant(GrantIssuer, "is of %s, which is no server", g.Issuer)
	case now.After(expires.Add(patience)):
		return denyGrant(GrantExpired, "ended at %s", expires.Format(time.RFC3339))
	case expires.After(now.Add(GrantLife + GrantSkew)):
		return denyGrant(GrantAhead, "ends at %s, too far ahead: compare the clocks", expires.Format(time.RFC3339))
	case g.Context == meta.PublicContext:
	case !g.Public && c.MayHold != nil && !c.MayHold(peer, meta.TenantName(g.Context)):
		return denyGrant(GrantTenant, "is for tenant %s, of which %s may have nothing", g.Context, peer)
	case g.Public && c.Revised != nil && g.Revision < c.Revised():
		return denyGrant(GrantRevoked, "is of access revision %d, rights were taken back since", g.Revision)
	}
	return nil
}
