package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	// RootLife is how long a root certifies; rotation is the operator's act.
	RootLife = 10 * 365 * 24 * time.Hour
	// CertificateLife is how long a node certificate is valid. It is no means of
	// removal: the roster decides on every connection. A node that cannot renew for
	// a week has no server to talk to either.
	CertificateLife = 7 * 24 * time.Hour
	// RenewAfter is the age at which a node renews its certificate.
	RenewAfter = 24 * time.Hour
	// ClockSkew is how far a certificate is dated back, for clocks that lag.
	ClockSkew = 5 * time.Minute
	// MaxHosts bounds the host names of a certificate.
	MaxHosts = 64

	maxChain            = 4
	maxCertificateBytes = 16 << 10
	scheme              = "shoal"
)

// Authority is a cluster's certificate authority: the root with its key. It is
// immutable and safe for concurrent use.
type Authority struct {
	root *Root
	key  ed25519.PrivateKey
}

// NewAuthority makes the root of a new cluster.
//
// cluster is the cluster's id, 1 to 63 of a-z, 0-9 and inner hyphens.
// Errors: meta.ErrInvalid for another id.
func NewAuthority(cluster string, now time.Time) (*Authority, error) {
	if err := checkCluster(cluster); err != nil {
		return nil, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the root key: %w", err)
	}
	return newAuthority(cluster, "shoal root "+cluster, public, private, now)
}

// LoadAuthority returns the authority of a root certificate (DER) and its key
// (PKCS #8 DER, what KeyDER gave).
//
// Errors: meta.ErrCorrupt when either does not parse or they do not belong together.
func LoadAuthority(rootDER, keyDER []byte) (*Authority, error) {
	root, err := ParseRoot(rootDER)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return nil, fmt.Errorf("key of the root: %w: %w", err, meta.ErrCorrupt)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok || !key.Public().(ed25519.PublicKey).Equal(root.certificate.PublicKey) {
		return nil, fmt.Errorf("the key is not the root's: %w", meta.ErrCorrupt)
	}
	return &Authority{root: root, key: key}, nil
}

// Root returns the public half.
func (a *Authority) Root() *Root { return a.root }

// KeyDER returns the root's private key, PKCS #8; Seal it before it goes anywhere.
func (a *Authority) KeyDER() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("encode the key of the root: %w", err)
	}
	return der, nil
}

// Issue certifies the key of node until CertificateLife after now and returns
// the chain in DER, leaf first, then the root.
//
// Of node its id, role and region count. hosts are the DNS names and addresses
// that clients reach its gateway by, without ports, at most MaxHosts. Loopback
// names are always added. An agent's certificate names nothing else, whatever
// hosts says: clients trust the root, so a name in an agent's hands is a server
// that it can impersonate.
//
// Errors: meta.ErrInvalid for a bad node or host name.
func (a *Authority) Issue(node meta.Node, hosts []string, now time.Time) ([][]byte, error) {
	public, err := PublicKeyOf(node.ID)
	if err != nil {
		return nil, fmt.Errorf("certify: %w", err)
	}
	identity := Identity{Cluster: a.root.cluster, ID: node.ID, Role: node.Role, Region: node.Region}
	if err := identity.check(); err != nil {
		return nil, fmt.Errorf("certify node %s: %w", node.ID, err)
	}
	if len(hosts) > MaxHosts {
		return nil, fmt.Errorf("certify node %s: %d host names, at most %d: %w", node.ID, len(hosts), MaxHosts, meta.ErrInvalid)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(CertificateLife)
	if end := a.root.certificate.NotAfter; notAfter.After(end) {
		notAfter = end
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: fmt.Sprintf("shoal %s %s", node.Role, shortID(node.ID))},
		NotBefore:             now.Add(-ClockSkew),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{identity.url()},
	}
	names := []string{"localhost", "127.0.0.1", "::1"}
	if node.Role == meta.RoleServer {
		names = append(names, hosts...)
	}
	if err := addNames(template, names); err != nil {
		return nil, fmt.Errorf("certify node %s: %w", node.ID, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root.certificate, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("certify node %s: %w", node.ID, err)
	}
	return [][]byte{der, a.root.DER()}, nil
}

func addNames(c *x509.Certificate, names []string) error {
	seen := map[string]bool{}
	for _, name := range names {
		name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
		if seen[name] {
			continue
		}
		seen[name] = true
		if ip, err := netip.ParseAddr(name); err == nil {
			// A wildcard listen address is no name that anyone can use.
			if !ip.IsUnspecified() {
				c.IPAddresses = append(c.IPAddresses, ip.Unmap().WithZone("").AsSlice())
			}
			continue
		}
		if !validDNSName(name) {
			return fmt.Errorf("host %q is neither an address nor a DNS name (without port): %w", name, meta.ErrInvalid)
		}
		c.DNSNames = append(c.DNSNames, name)
	}
	return nil
}

// validDNSName accepts host names (RFC 1123) and underscores within, no wildcards.
func validDNSName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_') {
				return false
			}
		}
	}
	return true
}

func serialNumber() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n, nil
}

// shortID returns the end of a node id, which unlike its start differs from others'.
func shortID(id meta.NodeID) string {
	return string(id[max(0, len(id)-12):])
}

// Root is the certificate that a cluster's nodes pin. It is immutable and safe
// for concurrent use.
type Root struct {
	certificate *x509.Certificate
	cluster     string
	pool        *x509.CertPool
	hash        [32]byte
}

// ParseRoot reads a root certificate (DER).
//
// Errors: meta.ErrCorrupt when it is no root that NewAuthority makes.
func ParseRoot(der []byte) (*Root, error) {
	if len(der) > maxCertificateBytes {
		return nil, fmt.Errorf("root certificate of %d bytes: %w", len(der), meta.ErrCorrupt)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w: %w", err, meta.ErrCorrupt)
	}
	if _, ok := c.PublicKey.(ed25519.PublicKey); !ok || !c.IsCA || !c.BasicConstraintsValid ||
		len(c.URIs) != 1 || c.URIs[0].Scheme != scheme || c.URIs[0].Path != "" {
		return nil, fmt.Errorf("the certificate %q is no shoal root: %w", c.Subject.CommonName, meta.ErrCorrupt)
	}
	if err := checkCluster(c.URIs[0].Host); err != nil {
		return nil, fmt.Errorf("root certificate: %w: %w", err, meta.ErrCorrupt)
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		return nil, fmt.Errorf("the root does not certify itself: %w: %w", err, meta.ErrCorrupt)
	}
	r := &Root{certificate: c, cluster: c.URIs[0].Host, pool: x509.NewCertPool(), hash: sha256.Sum256(der)}
	r.pool.AddCert(c)
	return r, nil
}

// DER returns the certificate.
func (r *Root) DER() []byte { return bytes.Clone(r.certificate.Raw) }

// PEM returns the certificate as clients install it.
func (r *Root) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.certificate.Raw})
}

// Cluster returns the id of the cluster.
func (r *Root) Cluster() string { return r.cluster }

// Hash returns the sha256 of the DER, the pin in a join token.
func (r *Root) Hash() [32]byte { return r.hash }

// NotAfter returns when the root ends.
func (r *Root) NotAfter() time.Time { return r.certificate.NotAfter }

// Verify checks a chain as TLS presents it, DER, leaf first, and returns who the
// leaf certifies: of this cluster, valid at now, its key the one in its node id.
//
// It says nothing about the roster: a removed node's certificate stays valid
// until it ends.
// Errors: meta.ErrDenied with the reason.
func (r *Root) Verify(chain [][]byte, now time.Time) (Identity, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return Identity{}, fmt.Errorf("a chain of %d certificates: %w", len(chain), meta.ErrDenied)
	}
	parsed := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		if len(der) > maxCertificateBytes {
			return Identity{}, fmt.Errorf("a certificate of %d bytes: %w", len(der), meta.ErrDenied)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return Identity{}, fmt.Errorf("certificate %d: %w: %w", i, err, meta.ErrDenied)
		}
		parsed[i] = c
	}
	return r.verify(parsed, now)
}

// verify checks the leaf under this root, or under one that this root vouches for by
// a cross certificate in the chain: the root has been replaced since it was pinned.
func (r *Root) verify(chain []*x509.Certificate, now time.Time) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, fmt.Errorf("no certificate: %w", meta.ErrDenied)
	}
	identity, err := r.verifyLeaf(chain[0], r.pool, now)
	if err == nil || len(chain) > maxChain {
		return identity, err
	}
	for _, c := range chain[1:] {
		if !r.vouchesFor(c, now) {
			continue
		}
		pool := x509.NewCertPool()
		pool.AddCert(c)
		if identity, crossed := r.verifyLeaf(chain[0], pool, now); crossed == nil {
			return identity, nil
		}
	}
	return Identity{}, err
}

// verifyLeaf checks a leaf under the roots in pool, which are of r's cluster.
func (r *Root) verifyLeaf(leaf *x509.Certificate, pool *x509.CertPool, now time.Time) (Identity, error) {
	// Roots sign leaves only, so intermediates from the wire are never needed.
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:       pool,
		CurrentTime: now,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return Identity{}, fmt.Errorf("certificate valid %s to %s, the clock here says %s: %w",
				leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339),
				now.UTC().Format(time.RFC3339), meta.ErrDenied)
		}
		return Identity{}, fmt.Errorf("certificate: %w: %w", err, meta.ErrDenied)
	}
	if leaf.IsCA || len(leaf.URIs) != 1 {
		return Identity{}, fmt.Errorf("certificate names no node: %w", meta.ErrDenied)
	}
	identity, err := parseIdentity(leaf.URIs[0])
	if err != nil {
		return Identity{}, fmt.Errorf("certificate: %w: %w", err, meta.ErrDenied)
	}
	if identity.Cluster != r.cluster {
		return Identity{}, fmt.Errorf("certificate is of cluster %s, not %s: %w", identity.Cluster, r.cluster, meta.ErrDenied)
	}
	public, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok || NodeIDOf(public) != identity.ID {
		return Identity{}, fmt.Errorf("certificate of node %s is for another key: %w", identity.ID, meta.ErrDenied)
	}
	identity.NotBefore, identity.NotAfter = leaf.NotBefore, leaf.NotAfter
	return identity, nil
}

// Identity is what a node certificate says.
type Identity struct {
	Cluster string
	ID      meta.NodeID
	Role    meta.Role
	Region  meta.RegionName
	// NotBefore and NotAfter bound the certificate.
	NotBefore, NotAfter time.Time
}

func (i Identity) url() *url.URL {
	return &url.URL{Scheme: scheme, Host: i.Cluster, Path: fmt.Sprintf("/%s/%s/%s", i.Role, i.Region, i.ID)}
}

// String returns the URI form.
func (i Identity) String() string { return i.url().String() }

func (i Identity) check() error {
	if err := checkCluster(i.Cluster); err != nil {
		return err
	}
	if i.Role != meta.RoleServer && i.Role != meta.RoleAgent {
		return fmt.Errorf("role %q is neither server nor agent: %w", i.Role, meta.ErrInvalid)
	}
	if err := meta.CheckRegion(i.Region); err != nil {
		return err
	}
	_, err := PublicKeyOf(i.ID)
	return err
}

func parseIdentity(u *url.URL) (Identity, error) {
	parts := strings.Split(u.Path, "/")
	if u.Scheme != scheme || len(parts) != 4 || parts[0] != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return Identity{}, fmt.Errorf("%q names no node: %w", u, meta.ErrInvalid)
	}
	i := Identity{Cluster: u.Host, Role: meta.Role(parts[1]), Region: meta.RegionName(parts[2]), ID: meta.NodeID(parts[3])}
	return i, i.check()
}

// checkCluster keeps a cluster id usable in URIs and protocol ids; it has the
// form of a region's name.
func checkCluster(id string) error {
	if meta.CheckRegion(meta.RegionName(id)) != nil {
		return fmt.Errorf("cluster id %q: use 1 to 63 of a-z, 0-9 and inner hyphens: %w", id, meta.ErrInvalid)
	}
	return nil
}
