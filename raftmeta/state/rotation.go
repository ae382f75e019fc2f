package state

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// The replacement of the cluster's root. The machine keeps who does what when; that the
// certificates are right, whoever uses them checks.

// Bounds of what is kept of it.
const (
	rotationLevel       = 5        // of all commands here
	maxCertificateBytes = 16 << 10 // of one certificate
	maxSealedBytes      = 8 << 10  // of a sealed key
)

// Keys below spaceTrust.
var (
	keyTrust      = key{spaceTrust, 't'} // meta.Trust
	prefixHolders = key{spaceTrust, 'c'} // node -> rootMark: it has a certificate of the next root
)

// Why a replacement does not go on.
var (
	errNoRotation  = errors.New("no root is being replaced, begin with `shoal trust rotate`")
	errUnderWay    = errors.New("a root is being replaced already, see `shoal trust show`")
	errOtherRoot   = errors.New("another root is taking over, see `shoal trust show`")
	errStillToDo   = errors.New("see `shoal trust show`")
	errSealMissing = errors.New("a server has joined meanwhile, begin again")
)

func keyHolder(id meta.NodeID) key { return append(key(nil), prefixHolders...).last(string(id)) }

// BeginRotation begins the replacement of the root: from now on nodes trust both and get
// a certificate of each. Result: meta.Trust.
//
// Errors: meta.ErrConflict while another is under way, or when a server lacks its key.
type BeginRotation struct {
	Next  []byte                 `cbor:"1,keyasint,omitempty"`
	Cross []byte                 `cbor:"2,keyasint,omitempty"`
	Keys  map[meta.NodeID][]byte `cbor:"3,keyasint,omitempty"`
	// Root is the hash of the root that is replaced.
	Root []byte `cbor:"4,keyasint,omitempty"`
}

// Type implements Command.
func (BeginRotation) Type() uint16 { return typeBeginRotation }

// Check implements Command.
func (c BeginRotation) Check() error {
	if len(c.Next) == 0 || len(c.Next) > maxCertificateBytes || len(c.Cross) == 0 || len(c.Cross) > maxCertificateBytes || len(c.Root) != sha256.Size || len(c.Keys) == 0 {
		return fmt.Errorf("begin to replace the root: the next root, its cross certificate and its sealed keys are needed: %w", meta.ErrInvalid)
	}
	for _, id := range slices.Sorted(maps.Keys(c.Keys)) { // In order, so that all refuse with one text.
		if err := checkSealed(id, c.Keys[id]); err != nil {
			return err
		}
	}
	return nil
}

func checkSealed(id meta.NodeID, sealed []byte) error {
	if id == "" || len(id) > maxNodeBytes || len(sealed) == 0 || len(sealed) > maxSealedBytes {
		return fmt.Errorf("seal the next root's key to %s: %d bytes: %w", id, len(sealed), meta.ErrInvalid)
	}
	return nil
}

func (c BeginRotation) apply(t *tx) (any, error) {
	fail := func(err error) error { return fmt.Errorf("begin to replace the root: %w: %w", err, meta.ErrConflict) }
	cluster, err := find[meta.Cluster](t, keyCluster, "cluster", "")
	if err != nil {
		return nil, err
	}
	trust, err := trustOf(t)
	if err != nil {
		return nil, err
	}
	switch {
	case len(trust.Next) > 0:
		return nil, fail(errUnderWay)
	case !bytes.Equal(meta.RootHash(cluster.Root), c.Root):
		return nil, fail(errOtherRoot)
	case bytes.Equal(cluster.Root, c.Next):
		return nil, fmt.Errorf("begin to replace the root: it is the same: %w", meta.ErrInvalid)
	}
	// A server that has no key could issue nothing under the new root.
	for _, id := range slices.Sorted(maps.Keys(cluster.RootKey)) {
		if len(c.Keys[id]) == 0 {
			return nil, fail(fmt.Errorf("%s: %w", id, errSealMissing))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.Keys)) {
		if _, err := findServer(t, id); err != nil {
			return nil, fail(err)
		}
	}
	if err := t.forgetHolders(); err != nil {
		return nil, err
	}
	trust.Next, trust.Cross, trust.Keys, trust.Started = c.Next, c.Cross, c.Keys, t.now
	t.putTrust(trust)
	return *trust, nil
}

// trustOf returns the record, an empty one when there is none.
func trustOf(r reader) (*meta.Trust, error) {
	trust, err := load[meta.Trust](r, keyTrust)
	if err == nil && trust == nil {
		trust = &meta.Trust{}
	}
	return trust, err
}

func (t *tx) putTrust(trust *meta.Trust) {
	trust.Revision = t.index
	t.put(keyTrust, trust)
	t.emit(feed.Change{Kind: feed.KindCluster})
}

// forgetHolders takes away the marks of an earlier replacement: as many as the roster
// has nodes.
func (t *tx) forgetHolders() error {
	for p, err := range t.scan(within(prefixHolders)) {
		if err != nil {
			return err
		}
		t.del(p.key)
	}
	return nil
}

// SealNextKey seals the key of the next root to a server that came during the overlap.
//
// Errors: meta.ErrConflict when no such root is taking over.
type SealNextKey struct {
	Node   meta.NodeID `cbor:"1,keyasint,omitempty"`
	Sealed []byte      `cbor:"2,keyasint,omitempty"`
	// Root is the hash of the next root.
	Root []byte `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (SealNextKey) Type() uint16 { return typeSealNextKey }

// Check implements Command.
func (c SealNextKey) Check() error { return checkSealed(c.Node, c.Sealed) }

func (c SealNextKey) apply(t *tx) (any, error) {
	if _, err := findServer(t, c.Node); err != nil {
		return nil, err
	}
	trust, err := rotating(t, c.Root)
	if err != nil {
		return nil, fmt.Errorf("seal the next root's key to %s: %w", c.Node, err)
	}
	if trust.Keys == nil { // the last server that had one has left
		trust.Keys = map[meta.NodeID][]byte{}
	}
	trust.Keys[c.Node] = c.Sealed
	t.putTrust(trust)
	return nil, nil
}

// rotating returns the record while the root with that hash is taking over.
func rotating(t *tx, root []byte) (*meta.Trust, error) {
	trust, err := trustOf(t)
	switch {
	case err != nil:
		return nil, err
	case len(trust.Next) == 0:
		return nil, fmt.Errorf("%w: %w", errNoRotation, meta.ErrConflict)
	case !bytes.Equal(meta.RootHash(trust.Next), root):
		return nil, fmt.Errorf("%w: %w", errOtherRoot, meta.ErrConflict)
	}
	return trust, nil
}

// ConfirmRoot is a node's word that it has a certificate of the next root and trusts it.
// When no such root is taking over any more it does nothing.
//
// Errors: meta.ErrNotFound when the node is not in the roster.
type ConfirmRoot struct {
	Node meta.NodeID `cbor:"1,keyasint,omitempty"`
	// Root is the hash of the root.
	Root []byte `cbor:"2,keyasint,omitempty"`
}

// Type implements Command.
func (ConfirmRoot) Type() uint16 { return typeConfirmRoot }

// Check implements Command.
func (c ConfirmRoot) Check() error {
	if c.Node == "" || len(c.Node) > maxNodeBytes || len(c.Root) != sha256.Size {
		return fmt.Errorf("confirm the root of %q: a node and the hash of a root are needed: %w", c.Node, meta.ErrInvalid)
	}
	return nil
}

func (c ConfirmRoot) apply(t *tx) (any, error) {
	if _, err := findNode(t, c.Node); err != nil {
		return nil, err
	}
	trust, err := trustOf(t)
	if err != nil {
		return nil, err
	}
	if len(trust.Next) > 0 && bytes.Equal(meta.RootHash(trust.Next), c.Root) {
		t.put(keyHolder(c.Node), rootMark{c.Root})
	}
	return nil, nil
}

// rootMark names a root.
type rootMark struct {
	Root []byte `cbor:"1,keyasint,omitempty"`
}

// FinishRotation drops the old root: the next one is the cluster's. Certificates of the
// old one count nowhere any more. Result: meta.Cluster.
//
// Errors: meta.ErrConflict when no such root is taking over, or a server of the roster
// has no certificate of it yet. Whether agents have is for the proposer to see
// (ListHolders): they are many, and one that was away is led on when it returns.
type FinishRotation struct {
	// Root is the hash of the next root.
	Root []byte `cbor:"1,keyasint,omitempty"`
	// Statement is the next root's word on the present epoch, when it has one.
	Statement []byte `cbor:"2,keyasint,omitempty"`
	// Force leaves servers behind that have no certificate yet.
	Force bool `cbor:"3,keyasint,omitempty"`
}

// Type implements Command.
func (FinishRotation) Type() uint16 { return typeFinishRotation }

// Check implements Command.
func (c FinishRotation) Check() error {
	if len(c.Root) != sha256.Size || len(c.Statement) > 1024 {
		return fmt.Errorf("drop the old root: the hash of the next root is needed: %w", meta.ErrInvalid)
	}
	return nil
}

func (c FinishRotation) apply(t *tx) (any, error) {
	trust, err := rotating(t, c.Root)
	if err != nil {
		return nil, fmt.Errorf("drop the old root: %w", err)
	}
	cluster, err := find[meta.Cluster](t, keyCluster, "cluster", "")
	if err != nil {
		return nil, err
	}
	if !c.Force {
		for region, err := range regions(t) {
			if err != nil {
				return nil, err
			}
			for _, id := range region.Servers {
				mark, err := load[rootMark](t, keyHolder(id))
				if err != nil {
					return nil, err
				}
				if mark == nil {
					return nil, fmt.Errorf("drop the old root: server %s has no certificate of the next yet: %w: %w", id, errStillToDo, meta.ErrConflict)
				}
			}
		}
	}
	if cluster.Recovery != nil && len(cluster.Recovery.Statement) > 0 {
		if len(c.Statement) == 0 {
			return nil, fmt.Errorf("drop the old root: the next root has to sign the epoch: %w", meta.ErrInvalid)
		}
		recovery := *cluster.Recovery
		recovery.Statement = c.Statement
		cluster.Recovery = &recovery
	}
	former := cluster.Root
	cluster.Root, cluster.RootKey = trust.Next, trust.Keys
	t.put(keyCluster, cluster)
	if err := t.forgetHolders(); err != nil {
		return nil, err
	}
	t.putTrust(&meta.Trust{Former: former, FormerCross: trust.Cross, Started: trust.Started, Finished: t.now})
	return *cluster, nil
}

// forgetTrust gives a replacement up, as a new epoch does: its keys were sealed to
// servers that are gone. Nodes that have its certificates go on, as the root that stays
// vouches for it.
func (t *tx) forgetTrust() error {
	trust, err := load[meta.Trust](t, keyTrust)
	if err != nil || trust == nil {
		return err
	}
	t.del(keyTrust)
	return t.forgetHolders()
}

// leftTrust forgets a node that left the roster.
func (t *tx) leftTrust(id meta.NodeID) error {
	mark, err := load[rootMark](t, keyHolder(id))
	if err != nil {
		return err
	}
	if mark != nil {
		t.del(keyHolder(id))
	}
	trust, err := load[meta.Trust](t, keyTrust)
	if err != nil || trust == nil {
		return err
	}
	if _, has := trust.Keys[id]; has {
		delete(trust.Keys, id)
		t.putTrust(trust)
	}
	return nil
}

// RevokeJoinToken ends a join token before its time. One that is not there any more is
// no error.
type RevokeJoinToken struct {
	ID string `cbor:"1,keyasint,omitempty"`
}

// Type implements Command.
func (RevokeJoinToken) Type() uint16 { return typeRevokeJoinToken }

// Check implements Command.
func (c RevokeJoinToken) Check() error {
	if c.ID == "" || len(c.ID) > maxNodeBytes {
		return fmt.Errorf("revoke a join token: name it by its id, from `shoal token join --list`: %w", meta.ErrInvalid)
	}
	return nil
}

func (c RevokeJoinToken) apply(t *tx) (any, error) {
	t.del(keyToken(c.ID))
	return nil, nil
}

// GetTrust answers how the root is being replaced.
type GetTrust struct{}

// Answer implements Question.
func (GetTrust) Answer(v *View) (meta.Trust, error) {
	trust, err := trustOf(v)
	if err != nil {
		return meta.Trust{}, err
	}
	return *trust, nil
}

// RootHolder is a node of the roster, and whether it has a certificate of the next root.
type RootHolder struct {
	Node meta.Node `cbor:"1,keyasint,omitempty"`
	Has  bool      `cbor:"2,keyasint,omitempty"`
}

// ListHolders lists the roster by id.
type ListHolders struct {
	Page Page `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListHolders) Answer(v *View) ([]RootHolder, error) {
	nodes, err := ListNodes{Page: q.Page}.Answer(v)
	if err != nil {
		return nil, err
	}
	holdings := make([]RootHolder, len(nodes))
	for i, n := range nodes {
		mark, err := load[rootMark](v, keyHolder(n.ID))
		if err != nil {
			return nil, err
		}
		holdings[i] = RootHolder{Node: n, Has: mark != nil}
	}
	return holdings, nil
}

// ListJoinTokens lists join tokens by id, those that have ended too while they are kept.
type ListJoinTokens struct {
	Page Page `cbor:"1,keyasint,omitempty"`
}

// Answer implements Question.
func (q ListJoinTokens) Answer(v *View) ([]meta.JoinToken, error) {
	prefix := key{spaceTokens}
	return list[meta.JoinToken](v, within(prefix).behind(prefix, q.Page.After), q.Page, nil)
}
