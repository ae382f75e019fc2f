package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// SealRootKey stores the CA key sealed to a server.
//
// Errors: meta.ErrNotFound when the node is no server of the roster.
type SealRootKey struct {
	Node   meta.NodeID `cbor:"1,keyasint,omitempty"`
	Sealed []byte      `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (SealRootKey) Type() uint16 { return typeSealRootKey }

// Check implements Command.
func (c SealRootKey) Check() error {
	if len(c.Sealed) == 0 || len(c.Sealed) > 8<<10 {
		return fmt.Errorf("seal root key to %s: %d bytes: %w", c.Node, len(c.Sealed), meta.ErrInvalid)
	}
	return nil
}

func (c SealRootKey) apply(t *tx) (any, error) {
	if _, err := findServer(t, c.Node); err != nil {
		return nil, err
	}
	cluster, err := find[meta.Cluster](t, keyCluster, "cluster", "")
	if err != nil {
		return nil, err
	}
	if cluster.RootKey == nil {
		cluster.RootKey = make(map[meta.NodeID][]byte)
	}
	cluster.RootKey[c.Node] = c.Sealed
	t.put(keyCluster, cluster)
	t.emit(feed.Change{Kind: feed.KindCluster})
	return nil, nil
}
