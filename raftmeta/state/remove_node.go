package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RemoveNode takes a node from the roster. From level 4 a server goes only when it
// was drained and nothing remains at it, unless Force says that what only it has may
// be lost.
//
// Errors: meta.ErrNotFound; meta.ErrConflict for the last server, and for one that is
// still needed.
type RemoveNode struct {
	ID meta.NodeID `cbor:"1,keyasint,omitempty"`
	// Force is without meaning below level 4, where all removals are forced.
	Force bool `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (RemoveNode) Type() uint16 { return typeRemoveNode }

// Check implements Command.
func (c RemoveNode) Check() error {
	if c.ID == "" {
		return fmt.Errorf("remove node: no id: %w", meta.ErrInvalid)
	}
	return nil
}

func (c RemoveNode) apply(t *tx) (any, error) {
	n, err := findNode(t, c.ID)
	if err != nil {
		return nil, err
	}
	if n.Role == meta.RoleServer {
		level, err := levelOf(t)
		if err != nil {
			return nil, err
		}
		if level >= drainLevel && !c.Force {
			if err := t.needEmpty(n); err != nil {
				return nil, fmt.Errorf("remove node %s: %w", n.ID, err)
			}
		}
		if err := t.removeServer(n); err != nil {
			return nil, err
		}
	}
	t.dropNode(n)
	if err := t.leftTrust(n.ID); err != nil {
		return nil, err
	}
	t.bumpAccess()
	return nil, nil
}

// dropNode deletes the record of a node.
func (t *tx) dropNode(n *meta.Node) {
	t.del(keyNode(n.ID))
	t.del(keyMembers(n.Region).last(string(n.ID)))
	t.emit(feed.Change{Kind: feed.KindNode, Node: n.ID, Region: n.Region, Deleted: true})
}

// removeServer takes a server from its region and its copy of the root key.
func (t *tx) removeServer(n *meta.Node) error {
	servers := 0
	for r, err := range regions(t) {
		if err != nil {
			return err
		}
		servers += len(r.Servers)
	}
	if servers == 1 {
		return fmt.Errorf("remove node %s: it is the last server: %w", n.ID, meta.ErrConflict)
	}
	r, err := find[regionRecord](t, keyRegion(n.Region), "region", n.Region)
	if err != nil {
		return err
	}
	if at, found := slices.BinarySearch(r.Servers, n.ID); found {
		r.Servers = slices.Delete(r.Servers, at, at+1)
	}
	if n.Draining != nil {
		if err := t.stopDraining(r, n); err != nil {
			return err
		}
	}
	if err := t.detach(r, n); err != nil {
		return err
	}
	t.putRegion(r)
	t.del(keyAudit(n.ID))
	if err := t.unsettle(meta.RepoRef{}, false); err != nil {
		return err
	}
	cluster, err := find[meta.Cluster](t, keyCluster, "cluster", "")
	if err != nil {
		return err
	}
	if _, ok := cluster.RootKey[n.ID]; ok {
		delete(cluster.RootKey, n.ID)
		t.put(keyCluster, cluster)
		t.emit(feed.Change{Kind: feed.KindCluster})
	}
	return nil
}
