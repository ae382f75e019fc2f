package audit

import (
	"fmt"
	"math/bits"

	"github.com/transparency-dev/merkle/compact"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Tree is the end of the log: how many leaves it has, and a compact range of them, at
// most 64 hashes. It is all that is needed to append and to know the root.
type Tree struct {
	Size   uint64   `cbor:"1,keyasint,omitempty"`
	Hashes [][]byte `cbor:"2,keyasint,omitempty"`
}

// Node names an inner node of the tree: the root of the leaves from Index<<Level on,
// 1<<Level of them.
type Node struct {
	Level uint
	Index uint64
}

var factory = compact.RangeFactory{Hash: func(left, right []byte) []byte {
	h := tlog.NodeHash(tlog.Hash(left), tlog.Hash(right))
	return h[:]
}}

// Append appends leaves. completed, when set, is told of each inner node that is
// complete now.
//
// Errors: meta.ErrCorrupt for a Tree that is none.
func (t *Tree) Append(leaves []tlog.Hash, completed func(Node, tlog.Hash)) error {
	if err := t.check(); err != nil {
		return err
	}
	r, err := factory.NewRange(0, t.Size, t.Hashes)
	if err != nil {
		return fmt.Errorf("the tree of the audit log: %w: %w", err, meta.ErrCorrupt)
	}
	var visit compact.VisitFn
	if completed != nil {
		visit = func(id compact.NodeID, hash []byte) { completed(Node{id.Level, id.Index}, tlog.Hash(hash)) }
	}
	for _, leaf := range leaves {
		// The range keeps what it is given, and the caller's leaves are the caller's.
		if err := r.Append(leaf[:], visit); err != nil {
			return fmt.Errorf("the tree of the audit log: %w: %w", err, meta.ErrCorrupt)
		}
	}
	t.Size, t.Hashes = r.End(), r.Hashes()
	return nil
}

func (t *Tree) check() error {
	if len(t.Hashes) != bits.OnesCount64(t.Size) {
		return fmt.Errorf("the tree of the audit log has %d leaves and %d hashes: %w", t.Size, len(t.Hashes), meta.ErrCorrupt)
	}
	for _, h := range t.Hashes {
		if len(h) != tlog.HashSize {
			return fmt.Errorf("the tree of the audit log has a hash of %d bytes: %w", len(h), meta.ErrCorrupt)
		}
	}
	return nil
}

// Root returns the root: that of RFC 6962, for no leaves the hash of nothing.
//
// Errors: meta.ErrCorrupt.
func (t *Tree) Root() (tlog.Hash, error) {
	if err := t.check(); err != nil {
		return tlog.Hash{}, err
	}
	if t.Size == 0 {
		return tlog.TreeHash(0, nil)
	}
	root := tlog.Hash(t.Hashes[len(t.Hashes)-1])
	for i := len(t.Hashes) - 2; i >= 0; i-- {
		root = tlog.NodeHash(tlog.Hash(t.Hashes[i]), root)
	}
	return root, nil
}

// TileLeaves is how many leaf hashes are kept together.
const (
	TileLevel  = 8
	TileLeaves = 1 << TileLevel
)

// Source is where the hashes of a log are kept.
type Source interface {
	// Leaves returns the hashes of the leaves from tile*TileLeaves on, TileLeaves of
	// them or, of the last tile, as many as there are.
	Leaves(tile uint64) ([]tlog.Hash, error)
	// Inner returns a complete node whose level is a multiple of TileLevel and not 0.
	Inner(Node) (tlog.Hash, error)
}

// Hashes reads the nodes of a log of which Source keeps some. It is a
// tlog.HashReader. One is for one goroutine.
type Hashes struct {
	Source Source
	tile   uint64
	leaves []tlog.Hash // of tile, when not nil
}

// ReadHashes implements tlog.HashReader.
func (h *Hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		var err error
		if hashes[i], err = h.node(Node{uint(level), uint64(n)}); err != nil {
			return nil, err
		}
	}
	return hashes, nil
}

// node combines a node from what is kept: below a tile's root at most 256 leaves, above
// it at most 128 nodes of the next kept level.
func (h *Hashes) node(n Node) (tlog.Hash, error) {
	kept := n.Level / TileLevel * TileLevel
	if kept == n.Level && kept > 0 {
		return h.Source.Inner(n)
	}
	first, count := n.Index<<(n.Level-kept), uint64(1)<<(n.Level-kept)
	hashes := make([]tlog.Hash, 0, count)
	if kept > 0 {
		for i := range count {
			in, err := h.Source.Inner(Node{kept, first + i})
			if err != nil {
				return tlog.Hash{}, err
			}
			hashes = append(hashes, in)
		}
	} else {
		tile := first / TileLeaves
		if h.leaves == nil || h.tile != tile {
			leaves, err := h.Source.Leaves(tile)
			if err != nil {
				return tlog.Hash{}, err
			}
			h.tile, h.leaves = tile, leaves
		}
		at := first % TileLeaves
		if at+count > uint64(len(h.leaves)) {
			return tlog.Hash{}, fmt.Errorf("the audit log has no leaf %d: %w", first+count-1, meta.ErrNotFound)
		}
		hashes = append(hashes, h.leaves[at:at+count]...)
	}
	for len(hashes) > 1 {
		for i := range len(hashes) / 2 {
			hashes[i] = tlog.NodeHash(hashes[2*i], hashes[2*i+1])
		}
		hashes = hashes[:len(hashes)/2]
	}
	return hashes[0], nil
}
