package state

import (
	"fmt"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// AdmitNode consumes one use of a join token and adds the node to the roster with
// the token's role, region and read patterns. The first server of an unknown
// region creates the region, as primary. A node that is in the roster already
// joins again without a use. Result: meta.Node.
//
// Errors: meta.ErrDenied for a token that is unknown, expired, used up, or of
// another role or region.
type AdmitNode struct {
	// TokenSecretHash is the hex sha256 of the secret: meta.JoinToken.ID.
	TokenSecretHash string    `cbor:"1,keyasint,omitempty"`
	Node            meta.Node `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (AdmitNode) Type() uint16 { return typeAdmitNode }

// Check implements Command.
func (c AdmitNode) Check() error {
	if c.TokenSecretHash == "" {
		return fmt.Errorf("admit node %s: no token: %w", c.Node.ID, meta.ErrInvalid)
	}
	return checkNode(c.Node)
}

// Bounds of a node record: every agent keeps those of its region.
const (
	maxNodeBytes = 128 // of one text
	maxNodeAddrs = 16
	maxPatterns  = 64
)

func checkNode(n meta.Node) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("node %s: %s: %w", n.ID, fmt.Sprintf(format, args...), meta.ErrInvalid)
	}
	if n.ID == "" || len(n.ID) > maxNodeBytes {
		return fail("an id has 1 to %d bytes", maxNodeBytes)
	}
	if n.Role != meta.RoleServer && n.Role != meta.RoleAgent {
		return fail("role %q: use server or agent", n.Role)
	}
	if err := meta.CheckRegion(n.Region); err != nil {
		return err
	}
	if len(n.Swarm) > maxNodeAddrs || len(n.Raft) > maxNodeAddrs || len(n.Read) > maxPatterns {
		return fail("at most %d addresses a host and %d patterns", maxNodeAddrs, maxPatterns)
	}
	for _, texts := range [][]string{n.Swarm, n.Raft, {n.Zone, n.Rack}} {
		for _, s := range texts {
			if len(s) > maxNodeBytes {
				return fail("%q is over %d bytes", s, maxNodeBytes)
			}
		}
	}
	if len(n.Gateway) > 260 || len(n.Seal) > 1024 {
		return fail("gateway or seal is too long")
	}
	for _, p := range n.Read {
		if err := meta.CheckPattern(p); err != nil {
			return err
		}
	}
	return checkTenants(n.Tenants)
}

func (c AdmitNode) apply(t *tx) (any, error) {
	token, err := load[meta.JoinToken](t, keyToken(c.TokenSecretHash))
	if err != nil {
		return nil, err
	}
	deny := func(why string) error {
		return fmt.Errorf("admit node %s: %s; make a token with `shoal token join`: %w", c.Node.ID, why, meta.ErrDenied)
	}
	switch {
	case token == nil:
		return nil, deny("the join token is unknown")
	case token.Expires < t.now:
		return nil, deny("the join token has expired")
	case token.Role != c.Node.Role || token.Region != c.Node.Region:
		return nil, deny(fmt.Sprintf("the join token is for a %s of region %s", token.Role, token.Region))
	}
	old, err := load[meta.Node](t, keyNode(c.Node.ID))
	if err != nil {
		return nil, err
	}
	region, err := t.region(c.Node.Region)
	if err != nil {
		return nil, err
	}
	if old == nil && region != nil && region.Region.Leaving != 0 {
		return nil, fmt.Errorf("admit node %s: region %s is being removed, it takes no new nodes: %w", c.Node.ID, c.Node.Region, meta.ErrConflict)
	}
	node := c.Node
	node.Read, node.Tenants, node.Admitted, node.Draining = token.Read, token.Tenants, t.now, nil
	node.Bucket = "" // that is AttachBucket's
	switch {
	case old == nil && token.Uses == 0:
		return nil, deny("the join token is used up")
	case old == nil:
		token.Uses--
		t.put(keyToken(token.ID), token)
		if err := t.addNode(&node); err != nil {
			return nil, err
		}
	case old.Role != node.Role || old.Region != node.Region:
		return nil, fmt.Errorf("admit node %s: it is a %s of region %s; remove it first: %w", node.ID, old.Role, old.Region, meta.ErrConflict)
	default:
		node.Admitted, node.Draining, node.Bucket = old.Admitted, old.Draining, old.Bucket
		t.putNode(&node)
	}
	return node, nil
}

// addNode adds a node to the roster, a server to its region too.
func (t *tx) addNode(n *meta.Node) error {
	t.putNode(n)
	t.mark(keyMembers(n.Region).last(string(n.ID)))
	if n.Role != meta.RoleServer {
		return nil
	}
	r, err := t.region(n.Region)
	if err != nil {
		return err
	}
	isNew := r == nil
	if isNew {
		r = &regionRecord{Region: meta.Region{Name: n.Region, Primary: true, Created: t.now}}
	}
	at, _ := slices.BinarySearch(r.Servers, n.ID)
	r.Servers = slices.Insert(r.Servers, at, n.ID)
	t.putRegion(r)
	if isNew || len(r.holders()) <= regionCopies { // More copies are due than before.
		return t.unsettle(meta.RepoRef{}, isNew)
	}
	return nil
}

func (t *tx) putNode(n *meta.Node) {
	n.Revision = t.index
	t.put(keyNode(n.ID), n)
	record := *n
	t.emit(feed.Change{Kind: feed.KindNode, Node: n.ID, Region: n.Region, Record: &record})
}

func findNode(r reader, id meta.NodeID) (*meta.Node, error) {
	return find[meta.Node](r, keyNode(id), "node", id)
}

// findServer finds a node that must be a server.
func findServer(r reader, id meta.NodeID) (*meta.Node, error) {
	n, err := findNode(r, id)
	if err == nil && n.Role != meta.RoleServer {
		err = fmt.Errorf("node %s is no server: %w", id, meta.ErrInvalid)
	}
	return n, err
}
