package dht

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/zeebo/blake3"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// score is the rendezvous hash of a root and a node (Thaler, Ravishankar 1998),
// uniform over 64 bits. All nodes compute the same, so all who look for a root
// turn to the same server first and meet there.
func score(root digest.CID, id meta.NodeID) uint64 {
	var b [32 + 64]byte
	sum := blake3.Sum256(append(append(b[:0], root[:]...), id...))
	return binary.BigEndian.Uint64(sum[:])
}

// rank sorts nodes by score, highest first; the argument is left as it is.
func rank(root digest.CID, nodes []meta.Node) []meta.Node {
	type scored struct {
		node  meta.Node
		score uint64
	}
	list := make([]scored, len(nodes))
	for i, n := range nodes {
		list[i] = scored{n, score(root, n.ID)}
	}
	slices.SortFunc(list, func(a, b scored) int { return cmp.Compare(b.score, a.score) })
	out := make([]meta.Node, len(list))
	for i, s := range list {
		out[i] = s.node
	}
	return out
}

// provides reports whether the node is one of about 64 of a swarm of that size
// that announce the root in the DHT: with probability min(1, 64/members), drawn
// once for all time by the score, so that the same nodes announce again. An
// unknown size counts as small.
func provides(root digest.CID, id meta.NodeID, members int) bool {
	const providers = 64
	if members <= providers {
		return true
	}
	return score(root, id) < ^uint64(0)/uint64(members)*providers
}
