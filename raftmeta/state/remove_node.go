package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// RemoveNode takes a node from the roster.
//
// Errors: meta.ErrNotFound; meta.ErrConflict for the last server.
type RemoveNode struct {
	ID meta.NodeID `cbor:"1,keyasint,omitempty"`
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
		if err := t.removeServer(n); err != nil {
			return nil, err
		}
	}
	t.del(keyNode(n.ID))
	t.del(keyMembers(n.Region).last(string(n.ID)))
	t.emit(feed.Change{Kind: feed.KindNode, Node: n.ID, Region: n.Region, Deleted: true})
	return nil, nil
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
