package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// BeginEpoch begins a new epoch of the state with one server. It is applied offline, to
// the state of a server that outlived its quorum or to a restored one, never through a
// running log; nothing of the old epoch can follow it but by joining.
//
// The roster loses all other servers, and with Foreign, which also gives the cluster
// another id and root, all agents. Join tokens and holds of backups end: whether they
// were used since is not known. Everything is settled anew, so copies of lost servers do
// not count and what they alone had is owed. Result: meta.Cluster.
//
// Errors: meta.ErrConflict when the epoch does not rise.
type BeginEpoch struct {
	Epoch uint64 `cbor:"1,keyasint,omitempty"`
	// Node is the one server, and Sealed the root's key sealed to it.
	Node   meta.Node `cbor:"2,keyasint,omitempty"`
	Sealed []byte    `cbor:"3,keyasint,omitempty"`
	// AdminToken replaces the administrator's when it is set.
	AdminToken []byte        `cbor:"4,keyasint,omitempty"`
	Recovery   meta.Recovery `cbor:"5,keyasint,omitempty"`
	// Foreign says that ID and Root are those of another cluster.
	Foreign bool   `cbor:"6,keyasint,omitempty"`
	ID      string `cbor:"7,keyasint,omitempty"`
	Root    []byte `cbor:"8,keyasint,omitempty"`
	// VoidTokens, of level 5, voids all credentials: of a backup it is not known which of
	// them were revoked since it was taken.
	VoidTokens bool `cbor:"9,keyasint,omitempty"`
}

// Type implements Command.
func (BeginEpoch) Type() uint16 { return typeBeginEpoch }

// Check implements Command.
func (c BeginEpoch) Check() error {
	switch {
	case c.Epoch == 0 || len(c.Sealed) == 0 || len(c.Sealed) > 8<<10:
		return fmt.Errorf("begin epoch %d: an epoch and a sealed root key are needed: %w", c.Epoch, meta.ErrInvalid)
	case c.Node.Role != meta.RoleServer:
		return fmt.Errorf("begin epoch %d: node %s is no server: %w", c.Epoch, c.Node.ID, meta.ErrInvalid)
	case c.Foreign != (c.ID != "" && len(c.Root) > 0):
		return fmt.Errorf("begin epoch %d: another cluster has another id and root: %w", c.Epoch, meta.ErrInvalid)
	}
	return checkNode(c.Node)
}

func (c BeginEpoch) apply(t *tx) (any, error) {
	cluster, err := find[meta.Cluster](t, keyCluster, "cluster", "")
	if err != nil {
		return nil, err
	}
	if c.Epoch <= cluster.Epoch {
		return nil, fmt.Errorf("begin epoch %d: the cluster is in epoch %d: %w", c.Epoch, cluster.Epoch, meta.ErrConflict)
	}
	recovery := c.Recovery
	if recovery.Lost, err = t.keepOnly(&c); err != nil {
		return nil, err
	}
	for _, space := range []byte{spaceTokens, spaceBackups} {
		for p, err := range t.scan(within(key{space})) {
			if err != nil {
				return nil, err
			}
			t.del(p.key)
		}
	}
	if err := t.forgetTrust(); err != nil {
		return nil, err
	}
	level, err := levelOf(t)
	if err != nil {
		return nil, err
	}
	if c.VoidTokens && level >= rightsLevel {
		t.void(keyVoidAll, "the cluster was restored from a backup")
	}
	cluster.Epoch, cluster.RootKey, cluster.Recovery = c.Epoch, map[meta.NodeID][]byte{c.Node.ID: c.Sealed}, &recovery
	if c.Foreign {
		cluster.ID, cluster.Root = c.ID, c.Root
	}
	if len(c.AdminToken) > 0 {
		cluster.AdminToken = c.AdminToken
	}
	t.put(keyCluster, cluster)
	t.emit(feed.Change{Kind: feed.KindCluster})
	return *cluster, t.unsettle(meta.RepoRef{}, true)
}

// keepOnly takes all other servers from the roster, and the agents of another cluster.
// It returns the servers that are left behind and may be told so.
func (t *tx) keepOnly(c *BeginEpoch) (lost []meta.LostServer, err error) {
	known, err := load[meta.Node](t, keyNode(c.Node.ID))
	if err != nil {
		return nil, err
	}
	node := c.Node
	node.Draining = nil
	switch {
	case known == nil:
		node.Admitted = t.now
		err = t.addNode(&node)
	case known.Role != node.Role || known.Region != node.Region:
		err = fmt.Errorf("begin epoch %d: node %s is a %s of region %s: %w", c.Epoch, node.ID, known.Role, known.Region, meta.ErrConflict)
	default:
		node.Admitted, node.Bucket = known.Admitted, known.Bucket
		t.putNode(&node)
	}
	if err == nil {
		err = t.keepAll(&node)
	}
	if err != nil {
		return nil, err
	}
	var others []meta.Node
	for p, err := range t.scan(within(key{spaceNodes})) {
		if err != nil {
			return nil, err
		}
		n, err := decode[meta.Node](p.key, p.value)
		if err != nil {
			return nil, err
		}
		if n.ID != node.ID && (n.Role == meta.RoleServer || c.Foreign) {
			others = append(others, *n)
		}
	}
	for _, n := range others {
		if _, err := (RemoveNode{ID: n.ID, Force: true}).apply(t); err != nil {
			return nil, err
		}
		if n.Role == meta.RoleServer && !c.Foreign && len(lost) < meta.MaxRecoveryLost {
			lost = append(lost, meta.LostServer{ID: n.ID, Region: n.Region, Gateway: n.Gateway})
		}
	}
	return lost, nil
}

// keepAll takes back that the one server drains, or that its region is given up.
func (t *tx) keepAll(n *meta.Node) error {
	r, err := find[regionRecord](t, keyRegion(n.Region), "region", n.Region)
	if err != nil || r.Region.Leaving == 0 && !slices.Contains(r.Draining, n.ID) {
		return err
	}
	r.Region.Leaving = 0
	if err := t.stopDraining(r, n); err != nil {
		return err
	}
	t.putRegion(r)
	return nil
}
