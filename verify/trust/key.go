package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/crypto/ssh"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const keyBlock = "PRIVATE KEY" // RFC 7468, section 10

// Key is a node's Ed25519 key. It is immutable and safe for concurrent use.
type Key struct {
	private ed25519.PrivateKey
	id      meta.NodeID
}

// NewKey makes a key.
func NewKey() (*Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a node key: %w", err)
	}
	return keyOf(private), nil
}

func keyOf(private ed25519.PrivateKey) *Key {
	return &Key{private: private, id: NodeIDOf(private.Public().(ed25519.PublicKey))}
}

// LoadOrCreateKey returns the key in the file at path, DATA/node.key; a missing
// one is made first, with mode 0600, complete and durable before it has the name.
// Two processes that begin at once end with the same key.
//
// Errors: meta.ErrCorrupt when the file holds no Ed25519 key, meta.ErrDenied
// when others than its owner may read it; those of the file system.
func LoadOrCreateKey(path string) (*Key, error) {
	k, err := loadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k, err = NewKey(); err != nil {
		return nil, err
	}
	if err := writeKey(path, k); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	// What is on disk counts, also when another process was first.
	return loadKey(path)
}

func loadKey(path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("node key %s may be read by others (mode %04o), say chmod 600: %w",
			path, info.Mode().Perm(), meta.ErrDenied)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != keyBlock || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("node key %s is not one PEM block %q: %w", path, keyBlock, meta.ErrCorrupt)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("node key %s: %w: %w", path, err, meta.ErrCorrupt)
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("node key %s is a %T, not Ed25519: %w", path, parsed, meta.ErrCorrupt)
	}
	return keyOf(private), nil
}

// writeKey makes the file by link, which unlike rename never replaces a key that
// is already there.
func writeKey(path string, k *Key) (err error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return fmt.Errorf("encode the node key: %w", err)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".node-key-*") // 0600 by os.CreateTemp
	if err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	if err := os.Link(f.Name(), path); err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("write the node key: %w", err)
	}
	return nil
}

// ID returns the node id.
func (k *Key) ID() meta.NodeID { return k.id }

// Private returns the key itself, 64 bytes. Keep it in memory.
func (k *Key) Private() ed25519.PrivateKey { return k.private }

// Public returns the public half, 32 bytes.
func (k *Key) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// Libp2p returns the key as libp2p takes it.
func (k *Key) Libp2p() crypto.PrivKey {
	private, err := crypto.UnmarshalEd25519PrivateKey(k.private)
	if err != nil {
		panic(fmt.Sprintf("trust: an Ed25519 key that libp2p refuses: %v", err))
	}
	return private
}

// Recipient returns the OpenSSH public key line, without a comment, that secrets
// are sealed to; meta.Node.Seal holds it.
func (k *Key) Recipient() string {
	public, err := ssh.NewPublicKey(k.Public())
	if err != nil {
		panic(fmt.Sprintf("trust: an Ed25519 key that ssh refuses: %v", err))
	}
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(public)))
}

// NodeIDOf returns the node id of a public key: the text of its libp2p peer id
// (libp2p specs, peer-ids.md; the key itself in an identity multihash).
func NodeIDOf(public ed25519.PublicKey) meta.NodeID {
	key, err := crypto.UnmarshalEd25519PublicKey(public)
	if err != nil {
		panic(fmt.Sprintf("trust: a public key of %d bytes: %v", len(public), err))
	}
	id, err := peer.IDFromPublicKey(key)
	if err != nil {
		panic(fmt.Sprintf("trust: a public key without peer id: %v", err))
	}
	return meta.NodeID(id.String())
}

// PeerID returns id as libp2p takes it. Only the one text that NodeIDOf gives is
// accepted, not a CID form of it.
//
// Errors: meta.ErrInvalid when it is no peer id of an Ed25519 key.
func PeerID(id meta.NodeID) (peer.ID, error) {
	p, err := peer.Decode(string(id))
	if err != nil || p.String() != string(id) {
		return "", fmt.Errorf("node id %q is no peer id: %w", id, meta.ErrInvalid)
	}
	if _, err := publicKey(p); err != nil {
		return "", fmt.Errorf("node id %q: %w", id, err)
	}
	return p, nil
}

// PublicKeyOf returns the public key that a node id contains.
//
// Errors: meta.ErrInvalid when it contains none.
func PublicKeyOf(id meta.NodeID) (ed25519.PublicKey, error) {
	p, err := PeerID(id)
	if err != nil {
		return nil, err
	}
	return publicKey(p)
}

func publicKey(p peer.ID) (ed25519.PublicKey, error) {
	key, err := p.ExtractPublicKey()
	if err != nil || key.Type() != crypto.Ed25519 {
		return nil, fmt.Errorf("the id contains no Ed25519 key: %w", meta.ErrInvalid)
	}
	raw, err := key.Raw()
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("the id contains no Ed25519 key: %w", meta.ErrInvalid)
	}
	return ed25519.PublicKey(raw), nil
}

// Every signature of a node key is over a purpose, so that none can be taken for
// another's.
const (
	purposeJoin  = "shoal join 1\x00"
	purposeGrant = "shoal grant 1\x00"
	purposeHead  = "shoal head 1\x00"
)

// ProvePossession signs a request to join the cluster of the root with that
// hash. request is the whole request as sent, the join token's secret in it, so
// the proof is of no use to anyone who could not have made the request itself.
func (k *Key) ProvePossession(rootHash [32]byte, request []byte) []byte {
	return ed25519.Sign(k.private, possession(rootHash, request))
}

// CheckPossession checks that the node with the id made the request for the
// cluster of the root with that hash.
//
// Errors: meta.ErrDenied, meta.ErrInvalid for an id without a key.
func CheckPossession(id meta.NodeID, rootHash [32]byte, request, proof []byte) error {
	public, err := PublicKeyOf(id)
	if err != nil {
		return err
	}
	if !ed25519.Verify(public, possession(rootHash, request), proof) {
		return fmt.Errorf("node %s does not prove that it holds its key: %w", id, meta.ErrDenied)
	}
	return nil
}

func possession(rootHash [32]byte, request []byte) []byte {
	sum := sha256.Sum256(request)
	return append(append([]byte(purposeJoin), rootHash[:]...), sum[:]...)
}
