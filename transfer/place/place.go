// Package place decides which servers keep which blobs.
//
// Within a region the holders of a blob are the first servers of Rank: rendezvous
// hashing, so that all servers agree without talking and a change of servers moves
// no more than it must. Question.Due says which of what a region owes a server copies
// itself, and when; Fair orders those copies so that classes and tenants get their
// parts; Sources orders the regions that they can come from.
//
// The package is pure: no clock, no network, no goroutines.
package place

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// DefaultCopies is how many servers of a region keep a blob, when it has as many.
const DefaultCopies = 2

// weight is how much server is a holder of root: BLAKE3(root, server), the highest
// random weight of Thaler and Ravishankar. buf is scratch memory.
func weight(root digest.CID, server meta.NodeID, buf *[]byte) digest.CID {
	*buf = append(append((*buf)[:0], root[:]...), server...)
	return digest.Sum(*buf)
}

// Rank orders a region's servers by how much they are root's holders, most first.
// Their order in the argument does not matter; a name given twice counts once.
func Rank(root digest.CID, servers []meta.NodeID) []meta.NodeID {
	type weighed struct {
		server meta.NodeID
		weight digest.CID
	}
	all := make([]weighed, len(servers))
	var buf []byte
	for i, s := range servers {
		all[i] = weighed{s, weight(root, s, &buf)}
	}
	slices.SortFunc(all, func(x, y weighed) int {
		return cmp.Or(bytes.Compare(y.weight[:], x.weight[:]), cmp.Compare(x.server, y.server))
	})
	out := make([]meta.NodeID, len(all))
	for i, w := range all {
		out[i] = w.server
	}
	return slices.Compact(out)
}

// rankOf returns the place of self in Rank, or -1. servers are sorted and distinct.
func rankOf(self meta.NodeID, root digest.CID, servers []meta.NodeID, buf *[]byte) int {
	if _, in := slices.BinarySearch(servers, self); !in {
		return -1
	}
	own := weight(root, self, buf)
	rank := 0
	for _, s := range servers {
		w := weight(root, s, buf)
		if c := bytes.Compare(w[:], own[:]); c > 0 || c == 0 && s < self {
			rank++
		}
	}
	return rank
}

// Holders returns the servers that keep root: the first copies of Rank, or all when
// there are fewer.
func Holders(root digest.CID, servers []meta.NodeID, copies int) []meta.NodeID {
	ranked := Rank(root, servers)
	return ranked[:min(max(copies, 0), len(ranked))]
}

// Question is what Due is asked.
type Question struct {
	Self meta.NodeID
	// Servers are those of Self's region, sorted and each once.
	Servers []meta.NodeID
	// Copies is how many of them keep a blob; 0 is DefaultCopies.
	Copies int
	Now    time.Time
	// StandIn is how long the holders may take: after it, and again after each
	// further StandIn, one more server of the ranking makes a copy too. 0 is never.
	StandIn time.Duration

	buf []byte // scratch memory
}

// Copy is a copy for Self to make.
type Copy struct {
	Demand meta.Replica
	// Rank is Self's place among the servers; from Copies on it stands in.
	Rank int
	// Lane is whose turn it is.
	Lane Lane
}

// Due says whether Self makes a copy of d now. If not, wake is when it may become
// Self's, zero when it never does.
func (q *Question) Due(d meta.Replica) (c Copy, due bool, wake time.Time) {
	want := q.Copies
	if want == 0 {
		want = DefaultCopies
	}
	rank := rankOf(q.Self, d.Root, q.Servers, &q.buf)
	switch {
	case rank < 0 || rank >= want && q.StandIn <= 0:
		return c, false, wake
	case rank >= want:
		from := d.Demand.Std().Add(time.Duration(rank-want+1) * q.StandIn)
		if q.Now.Before(from) {
			return c, false, from
		}
	}
	return Copy{Demand: d, Rank: rank}, true, wake
}

// Sources returns the regions with a verified copy in the order to ask them: self
// first, then by ascending round-trip time, those without one last, by name.
//
// copies is all that is known of one root; region demands among them are skipped.
func Sources(self meta.RegionName, copies []meta.Replica, rtt map[meta.RegionName]time.Duration) []meta.RegionName {
	var out []meta.RegionName
	for _, r := range copies {
		if r.Server != "" && r.State == meta.ReplicaVerified && !slices.Contains(out, r.Region) {
			out = append(out, r.Region)
		}
	}
	distance := func(r meta.RegionName) time.Duration {
		if r == self {
			return -1
		}
		if d, ok := rtt[r]; ok {
			return d
		}
		return 1<<63 - 1
	}
	slices.SortFunc(out, func(a, b meta.RegionName) int {
		return cmp.Or(cmp.Compare(distance(a), distance(b)), cmp.Compare(a, b))
	})
	return out
}
