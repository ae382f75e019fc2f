// Package feed is the ordered record of what changed in the metadata, written by
// the state machine in the same batch as the change and resumable by index.
//
// Start reading at Change and Follow. A change says where to look, not what is
// there now: the follower asks for what it needs. The exceptions are the
// roster and the health of regions, whose changes carry the record, because every
// agent follows them and must not ask all at once.
//
// The package is a leaf of raftmeta: it imports only the nouns. It starts no
// goroutines.
package feed

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Kind is what changed.
type Kind uint8

// Kinds of change. The numbers are in the feed and on the wire: none is reused,
// and a follower skips those it does not know.
const (
	// KindProgress changes nothing: it says that all changes up to Index were
	// delivered, so that a follower can resume from there.
	KindProgress   Kind = 1
	KindCluster    Kind = 2
	KindTenant     Kind = 3  // Name
	KindRepository Kind = 4  // Repo
	KindPackage    Kind = 5  // Repo, Package: its labels
	KindVersion    Kind = 6  // Repo, Package, Name
	KindAlias      Kind = 7  // Repo, Package, Name
	KindNode       Kind = 8  // Node, Region, Record
	KindRegion     Kind = 9  // Region
	KindDemand     Kind = 10 // Region has new pending replicas
	KindReplica    Kind = 11 // Root is settled in Region by Node's report; Deleted: is owed again
	KindBlob       Kind = 12 // Repo, Digest: unlinked
	KindWave       Kind = 13 // Name: of a wave that was planned, or is done; Deleted: is over
	KindHealth     Kind = 14 // Region, Health
	KindAccess     Kind = 23 // rights were taken back: the access revision is Index
	KindAudit      Kind = 24 // a checkpoint of the audit log was signed
	KindRespond    Kind = 25 // Repo, Package, Name: of a version that came out of quarantine; Deleted: went in. Without Repo: Name of a compromise or elevation
	KindQuota      Kind = 26 // Name: a tenant passed a threshold of a quota, in either direction
	KindSets       Kind = 31 // Repo, Name: a publication; without Name how all stand. From level 6
	KindSource     Kind = 29 // Repo, Package, Name: the member that a group takes the package from; Deleted: none is remembered
	KindFetched    Kind = 30 // Repo, Name: the record of an address of an upstream (state.FetchedKey) has other bytes; Deleted: is forgotten
	KindLost       Kind = 20 // Root, which is linked, has no verified copy any more; Deleted: has one again
)

var kindNames = map[Kind]string{
	KindProgress: "progress", KindCluster: "cluster", KindTenant: "tenant", KindRepository: "repository",
	KindSource: "source", KindPackage: "package", KindVersion: "version", KindAlias: "alias", KindNode: "node",
	KindRegion: "region", KindDemand: "demand", KindReplica: "replica", KindBlob: "blob", KindRespond: "respond",
	KindFetched: "fetched", KindWave: "wave", KindLost: "lost", KindHealth: "health", KindQuota: "quota", KindAccess: "access", KindAudit: "audit", KindSets: "sets",
}

func (k Kind) String() string {
	if name, ok := kindNames[k]; ok {
		return name
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Change is one change; which fields are set depends on Kind.
type Change struct {
	// Index is the log index, Seq counts the changes of one index from 0.
	Index   uint64          `cbor:"1,keyasint,omitempty"`
	Seq     uint32          `cbor:"2,keyasint,omitempty"`
	Kind    Kind            `cbor:"3,keyasint,omitempty"`
	Repo    meta.RepoRef    `cbor:"4,keyasint,omitzero"`
	Package string          `cbor:"5,keyasint,omitempty"`
	Name    string          `cbor:"6,keyasint,omitempty"` // of the version, alias or tenant
	Region  meta.RegionName `cbor:"7,keyasint,omitempty"`
	Root    digest.CID      `cbor:"8,keyasint,omitzero"`
	Node    meta.NodeID     `cbor:"9,keyasint,omitempty"`
	// Deleted says that the thing is gone.
	Deleted bool `cbor:"10,keyasint,omitempty"`
	// Record is the node as it is now, of KindNode unless Deleted.
	Record *meta.Node    `cbor:"11,keyasint,omitempty"`
	Digest digest.Digest `cbor:"12,keyasint,omitempty"`
	// Health is how Region fares now, of KindHealth unless Deleted.
	Health *meta.RegionHealth `cbor:"13,keyasint,omitempty"`
}

// ErrCompacted says that changes right after the wanted index are no longer
// kept: list anew, then follow from the index of that listing.
var ErrCompacted = errors.New("the feed no longer has the changes after this index")

// Filter says which changes a follower wants. The zero Filter wants all;
// KindProgress always passes.
type Filter struct {
	// Kinds, when not empty, lists the kinds that pass.
	Kinds []Kind `cbor:"1,keyasint,omitempty"`
	// Repos, when not empty, lets changes below a repository pass only for these.
	Repos []meta.RepoRef `cbor:"2,keyasint,omitempty"`
	// Region, when not empty, lets agents pass only of this region. Servers of all
	// regions pass, and removals, which do not say what was removed.
	Region meta.RegionName `cbor:"3,keyasint,omitempty"`
}

// Match reports whether c passes.
func (f *Filter) Match(c Change) bool {
	switch {
	case c.Kind == KindProgress:
		return true
	case len(f.Kinds) > 0 && !slices.Contains(f.Kinds, c.Kind):
		return false
	case len(f.Repos) > 0 && c.Repo != (meta.RepoRef{}) && !slices.Contains(f.Repos, c.Repo):
		return false
	case f.Region != "" && c.Record != nil && c.Record.Role == meta.RoleAgent:
		return c.Region == f.Region
	}
	return true
}

// Source is what Follow reads: the state machine.
type Source interface {
	// Changes returns changes with an index above after, in order, and the index up
	// to which they are complete. It stops near limit, never within an index.
	//
	// Errors: ErrCompacted.
	Changes(after uint64, limit int) (changes []Change, upTo uint64, err error)
	// Wait blocks until index is applied.
	Wait(ctx context.Context, index uint64) error
}

// Follow yields the changes after an index as they are applied, and KindProgress
// whenever it has caught up, at the latest before it first waits. It ends with ctx, by the reader's break, or at the
// first error, which it yields.
//
// Errors: ErrCompacted; what src returns; of ctx.
func Follow(ctx context.Context, src Source, after uint64) iter.Seq2[Change, error] {
	const readAtOnce = 512
	return func(yield func(Change, error) bool) {
		for said := false; ; {
			changes, upTo, err := src.Changes(after, readAtOnce)
			if err != nil {
				yield(Change{}, fmt.Errorf("follow the feed after %d: %w", after, err))
				return
			}
			for _, c := range changes {
				if !yield(c, nil) {
					return
				}
			}
			caughtUp := len(changes) < readAtOnce
			if caughtUp && (upTo > after || !said) {
				said = true
				if !yield(Change{Kind: KindProgress, Index: upTo}, nil) {
					return
				}
			}
			if upTo > after {
				after = upTo
				continue
			}
			if err := src.Wait(ctx, after+1); err != nil {
				yield(Change{}, fmt.Errorf("follow the feed after %d: %w", after, err))
				return
			}
		}
	}
}
