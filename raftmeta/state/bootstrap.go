package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bootstrap is the first command of a cluster: the trust root, the first server
// and its region. It sets level 1. Repeated with the same cluster id it is
// idempotent. Result: meta.Cluster.
//
// Errors: meta.ErrExists for another cluster.
type Bootstrap struct {
	Cluster meta.Cluster `cbor:"1,keyasint,omitempty"`
	Node    meta.Node    `cbor:"2,keyasint,omitempty"`
	Region  meta.Region  `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (Bootstrap) Type() uint16 { return typeBootstrap }

// Check implements Command.
func (c Bootstrap) Check() error {
	if c.Cluster.ID == "" {
		return fmt.Errorf("bootstrap: the cluster has no id: %w", meta.ErrInvalid)
	}
	if c.Node.Role != meta.RoleServer || c.Node.Region != c.Region.Name {
		return fmt.Errorf("bootstrap: the first node must be a server of region %q: %w", c.Region.Name, meta.ErrInvalid)
	}
	if err := checkNode(c.Node); err != nil {
		return err
	}
	return meta.CheckRegion(c.Region.Name)
}

func (c Bootstrap) apply(t *tx) (any, error) {
	old, err := load[meta.Cluster](t, keyCluster)
	if err != nil {
		return nil, err
	}
	if old != nil && old.ID == c.Cluster.ID {
		return *old, nil
	}
	if old != nil {
		return nil, fmt.Errorf("bootstrap cluster %s: this is cluster %s: %w", c.Cluster.ID, old.ID, meta.ErrExists)
	}
	cluster := c.Cluster
	cluster.Level = max(cluster.Level, 1)
	t.put(keyCluster, cluster)
	t.setNumber(keyLevel, uint64(cluster.Level))
	t.emit(feed.Change{Kind: feed.KindCluster})
	if err := t.allCounted(); err != nil { // There are none yet.
		return nil, err
	}
	region := c.Region
	region.Created = t.now
	t.putRegion(&regionRecord{Region: region})
	node := c.Node
	node.Admitted, node.Draining = t.now, nil
	if err := t.addNode(&node); err != nil {
		return nil, err
	}
	return cluster, nil
}
