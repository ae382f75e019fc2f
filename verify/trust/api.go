// Package trust holds who a node is and how others can tell.
package trust

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

var errSoon = errors.New("trust: not there yet")

// Key is a node's Ed25519 key.
type Key struct{ private ed25519.PrivateKey }

func NewKey() (*Key, error)                                             { return nil, errSoon }
func LoadOrCreateKey(path string) (*Key, error)                         { return nil, errSoon } // DATA/node.key, 0600
func (k *Key) ID() meta.NodeID                                          { return "" }
func (k *Key) Private() ed25519.PrivateKey                              { return k.private }
func (k *Key) Public() ed25519.PublicKey                                { return nil }
func (k *Key) Libp2p() crypto.PrivKey                                   { return nil }
func (k *Key) Recipient() string                                        { return "" } // OpenSSH line for meta.Node.Seal
func (k *Key) Open(sealed []byte) ([]byte, error)                       { return nil, errSoon }
func (k *Key) ProvePossession(rootHash [32]byte, request []byte) []byte { return nil }
func (k *Key) SignGrant(cluster string, g Grant) ([]byte, error)        { return nil, errSoon }

func CheckPossession(id meta.NodeID, rootHash [32]byte, request, proof []byte) error { return errSoon }
func NodeIDOf(pub ed25519.PublicKey) meta.NodeID                                     { return "" }
func PublicKeyOf(id meta.NodeID) (ed25519.PublicKey, error)                          { return nil, errSoon }
func PeerID(id meta.NodeID) (peer.ID, error)                                         { return "", errSoon }
func ParseRecipient(line string) (ed25519.PublicKey, error)                          { return nil, errSoon }
func Seal(secret []byte, to ...ed25519.PublicKey) ([]byte, error)                    { return nil, errSoon }

// Root is the cluster's root certificate.
type Root struct{}

func ParseRoot(der []byte) (*Root, error) { return nil, errSoon }
func (r *Root) DER() []byte               { return nil }
func (r *Root) PEM() []byte               { return nil }
func (r *Root) Cluster() string           { return "" }
func (r *Root) Hash() [32]byte            { return [32]byte{} } // sha256 of DER
// Verify checks a chain as TLS presents it, leaf first.
func (r *Root) Verify(chain [][]byte, now time.Time) (Identity, error) { return Identity{}, errSoon }

// Identity is what a node certificate says.
type Identity struct {
	Cluster  string
	ID       meta.NodeID
	Role     meta.Role
	Region   meta.RegionName
	NotAfter time.Time
}

// Authority issues node certificates.
type Authority struct{}

func NewAuthority(cluster string, now time.Time) (*Authority, error) { return nil, errSoon }
func LoadAuthority(rootDER, keyDER []byte) (*Authority, error)       { return nil, errSoon }
func (a *Authority) Root() *Root                                     { return nil }
func (a *Authority) KeyDER() ([]byte, error)                         { return nil, errSoon } // PKCS #8, to Seal
// Issue returns the chain, leaf first then root. hosts are DNS names and IPs a server's gateway answers to
// (an agent's certificate names loopback only, whatever hosts says).
func (a *Authority) Issue(node meta.Node, hosts []string, now time.Time) ([][]byte, error) {
	return nil, errSoon
}

// Credential is a node's key with its present chain; TLS configs read it at each handshake.
type Credential struct{}

func NewCredential(key *Key, root *Root, chain [][]byte) (*Credential, error) { return nil, errSoon }
func (c *Credential) Set(chain [][]byte) error                                { return errSoon }
func (c *Credential) Chain() [][]byte                                         { return nil }
func (c *Credential) Identity() Identity                                      { return Identity{} }

// Run renews the chain by renew when it is due (24 h after issue, of 7 days), retrying, until ctx ends.
func (c *Credential) Run(ctx context.Context, renew func(context.Context) ([][]byte, error)) error {
	return errSoon
}

// ServerTLS serves the credential; client certificates are optional, those given must be of the cluster.
func ServerTLS(c *Credential) *tls.Config { return nil }

// ClientTLS is node to node: TLS 1.3, the other must be a server of the cluster; names do not matter.
func ClientTLS(c *Credential) *tls.Config { return nil }

// JoinTLS trusts the chain whose root has the hash; RootOf then returns that root.
func JoinTLS(rootHash [32]byte) *tls.Config            { return nil }
func RootOf(state *tls.ConnectionState) (*Root, error) { return nil, errSoon }

// PeerOf returns who the other side proved to be; ok is false for a client without a certificate.
func PeerOf(root *Root, state *tls.ConnectionState) (id Identity, ok bool, err error) {
	return Identity{}, false, errSoon
}

// JoinToken is `shoal1.<secret>.<root hash>`.
type JoinToken struct {
	Secret   Secret
	RootHash [32]byte
}

func NewJoinToken(root *Root) JoinToken             { return JoinToken{} }
func ParseJoinToken(text string) (JoinToken, error) { return JoinToken{}, errSoon }
func (t JoinToken) Text() string                    { return "" } // the secret text; String prints ***
func (t JoinToken) String() string                  { return "***" }
func (t JoinToken) SecretHash() string              { return "" } // meta.JoinToken.ID: hex sha256

// Secret prints ***.
type Secret string

func (s Secret) Reveal() string { return string(s) }
func (s Secret) String() string { return "***" }

func NewAdminToken() Secret                     { return "" }
func HashToken(token Secret) []byte             { return nil } // sha256, meta.Cluster.AdminToken
func CheckToken(given Secret, hash []byte) bool { return false }

// Grant lets Peer have the blob Root until Expires.
type Grant struct {
	Peer    meta.NodeID `cbor:"1,keyasint,omitempty"`
	Context string      `cbor:"2,keyasint,omitempty"`
	Root    digest.CID  `cbor:"3,keyasint,omitempty"`
	Expires meta.Time   `cbor:"4,keyasint,omitempty"`
	Issuer  meta.NodeID `cbor:"5,keyasint,omitempty"` // set by SignGrant
}

const GrantLife = 60 * time.Second

// Checker checks grants offline; it is the swarm's Authorizer.
type Checker struct {
	Cluster  string
	IsServer func(meta.NodeID) bool
	// Grace is how long past its expiry a grant still counts now; nil is none.
	// Returns degraded_read_max while no server is reachable.
	Grace func() time.Duration
}

func (c Checker) Check(grant []byte, peer meta.NodeID, root digest.CID, now time.Time) error {
	return errSoon
}
