// Package publication builds the documents that a repository has as a whole: the
// indexes of apt, dnf and their like, signed, and all of one set of them in place at
// once.
//
// Publishing a package stays one small commit. It is noted in the repository's head
// (meta.Sets.Changed); the Builder of one server, of the repository's home region while
// there is one, follows the changes, takes a lease, reads all versions in pages, writes
// the documents through files on disk into blobs, and puts them in place by one commit a
// set. Changes that come meanwhile are the next build's: a repository is built once a
// second at most. Whoever published may wait for it (Builder.Await).
//
// Start reading at Format, which a protocol implements, Build, which it is handed, and
// Builder. builder.go decides when and who; build.go is one build; key.go makes the
// signing key, which only servers can open (it is sealed to them like the root key, to
// one that joins by one that has it, whether something is to be built or not).
//
// Invariants: a set is never replaced by one of an older state; readers who hold an
// index find what it names for a quarter of an hour more (state.CommitSets keeps what
// was replaced); memory is bounded by pages and buffers, whatever a repository holds. A
// group's set is made of its hosted members, the first that owns a name answering for
// it.
//
// Goroutines: Builder.Run owns one that follows the changes and one for each build, at
// most maxBuilds, and ends them all.
package publication

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Format is what a protocol knows of its documents.
type Format interface {
	// Format is the format of the repositories that have them.
	Format() string
	// Rules is the number of the rules by which documents are made. Raise it when the same
	// versions come out otherwise than before: then all sets are built anew.
	Rules() uint32
	// Signed says that repositories of the format have a signing key.
	Signed() bool
	// Build makes the sets of one repository: reads b.Versions, writes with b.Write, and
	// hands over each set with b.Commit, or b.Keep when it would come out the same. Sets
	// that it names by neither are dropped.
	Build(ctx context.Context, b *Build) error
}

// Times of the builder.
const (
	// buildEvery is how long after a build the next one of a repository begins at the
	// earliest; what changes in between is built together.
	buildEvery = time.Second
	// settle is how long the first change waits for others.
	settle = 50 * time.Millisecond
	// leaseFor is how long a builder that falls silent keeps others from it, renewLease how
	// often it says that it lives.
	leaseFor   = 30 * time.Second
	renewLease = 10 * time.Second
	// standBack is how much later the next in line builds what nobody has built.
	standBack = 2 * time.Second
	// retryEvery is how soon what failed is tried again, and retryMost after many failures.
	retryEvery = 5 * time.Second
	retryMost  = time.Minute
	// lostAfter is how many times the pause between builds it is until somebody looks
	// whether what is lost was a document.
	lostAfter = 5
	// AwaitMost is how long who published waits for the documents to have it.
	AwaitMost = 2 * time.Second
)

// maxBuilds is how many repositories are built at one time.
const maxBuilds = 2

// rank returns the place of self among those who may build a repository's sets: servers
// of its home region first, each group in an order that differs from repository to
// repository. -1 when self is none of them.
func rank(repo meta.RepoRef, self meta.NodeID, home, others []meta.NodeID) int {
	place := 0
	for _, list := range [][]meta.NodeID{home, others} {
		ordered := slices.Clone(list)
		slices.SortFunc(ordered, func(a, b meta.NodeID) int {
			if d := weight(repo, b) - weight(repo, a); d != 0 {
				return d
			}
			return strings.Compare(string(a), string(b))
		})
		for _, id := range ordered {
			if id == self {
				return place
			}
			place++
		}
	}
	return -1
}

// weight is the rendezvous weight of a node for a repository.
func weight(repo meta.RepoRef, id meta.NodeID) int {
	sum := sha256.Sum256([]byte(repo.String() + "\x00" + string(id)))
	return int(binary.BigEndian.Uint32(sum[:4]))
}

// due reports whether sets that stand like s, of a repository in which the last change is
// of index changed, are to be built by the given rules.
func due(s meta.Sets, changed uint64, rules uint32) bool {
	return changed > s.Built || s.Format != rules
}
