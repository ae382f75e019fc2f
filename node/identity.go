package node

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/trust"
)

// identity is what DATA/identity keeps of a node's place in its cluster. It is
// written when the node joins and again when its certificate, addresses or
// servers change, so that a node starts without asking anybody.
type identity struct {
	Cluster string    `cbor:"1,keyasint,omitempty"`
	Root    []byte    `cbor:"2,keyasint,omitempty"` // DER
	Chain   [][]byte  `cbor:"3,keyasint,omitempty"` // leaf first
	Node    meta.Node `cbor:"4,keyasint,omitempty"`
	// Servers are those known last: whom to ask first.
	Servers []meta.Node `cbor:"5,keyasint,omitempty"`
	// Begin is the cluster's first command, until it is committed.
	Begin *state.Bootstrap `cbor:"6,keyasint,omitempty"`
	// Epoch is the cluster's that the node belongs to, Statement the root's word on it;
	// the first has none.
	Epoch     uint64 `cbor:"7,keyasint,omitempty"`
	Statement []byte `cbor:"8,keyasint,omitempty"`
	// Next to Former are of a root that is being replaced, or was: trust.Papers.
	Next      []byte   `cbor:"9,keyasint,omitempty"`
	NextChain [][]byte `cbor:"10,keyasint,omitempty"`
	Cross     []byte   `cbor:"11,keyasint,omitempty"`
	Former    []byte   `cbor:"12,keyasint,omitempty"`
}

func (id *identity) papers() trust.Papers {
	return trust.Papers{Root: id.Root, Chain: id.Chain, Next: id.Next, NextChain: id.NextChain, Cross: id.Cross, Former: id.Former}
}

func (id *identity) hold(p trust.Papers) {
	id.Root, id.Chain, id.Next, id.NextChain, id.Cross, id.Former = p.Root, p.Chain, p.Next, p.NextChain, p.Cross, p.Former
}

// plane is the cluster's name in the protocol ids of Raft: servers of two epochs cannot
// even speak to one another.
func (id *identity) plane() string {
	if id.Epoch == 0 {
		return id.Cluster
	}
	return fmt.Sprintf("%s/%d", id.Cluster, id.Epoch)
}

const identityFile = "identity"

// loadIdentity returns the identity in dir, nil when there is none.
func loadIdentity(dir string) (*identity, error) {
	name := filepath.Join(dir, identityFile)
	raw, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var id identity
	if err := codec.Unmarshal(raw, &id); err != nil {
		return nil, fmt.Errorf("%s: %w", name, errors.Join(err, meta.ErrCorrupt))
	}
	return &id, nil
}

func (id *identity) save(dir string) error {
	return WriteFileAtomic(filepath.Join(dir, identityFile), codec.Encode(id), 0o600)
}

// Joined reports whether the node of a data directory belongs to a cluster.
func Joined(dir string) (bool, error) {
	id, err := loadIdentity(dir)
	return id != nil, err
}

// newClusterID returns 16 random hex digits.
func newClusterID() string {
	b := make([]byte, 8)
	rand.Read(b) //nolint:errcheck // never fails
	return hex.EncodeToString(b)
}
