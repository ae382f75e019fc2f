// Package repair brings a region's copies into being.
//
// A Loop runs on each server. It learns which blobs its region owes, in a lane for each
// class and tenant (Demands), lets place decide which of them this server keeps and
// whose turn it is (Question.Due, Fair), fetches and checks those (Content), and
// reports the outcome in batches (Reporter). Nothing is remembered that the metadata
// does not say, but for whose turn it is: a restart lists the demands anew and finds in
// the store what has already arrived. Start reading at Loop.
//
// Run owns all goroutines.
package repair

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/place"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Demands is what the metadata says a region owes.
type Demands interface {
	// Lanes lists the classes and tenants to whom the region owes something.
	Lanes(ctx context.Context, region meta.RegionName) ([]place.Lane, error)
	// Pending returns at most limit demands of the region (replicas without a Server)
	// and lane that are not verified, oldest first, behind after, which may be verified
	// or gone meanwhile; nil is the start. An empty page is the end.
	Pending(ctx context.Context, region meta.RegionName, lane place.Lane, after *meta.Replica, limit int) ([]meta.Replica, error)
	// Copies returns all that is known of root's copies, of all regions.
	Copies(ctx context.Context, root digest.CID) ([]meta.Replica, error)
	// Watch calls changed whenever the region's demands may have changed, and before
	// that failed when it is because Self's copy of root does not count any more, until
	// ctx ends or the watch breaks; then it is called again, and calls changed once it
	// hears again. Neither blocks.
	Watch(ctx context.Context, region meta.RegionName, changed func(), failed func(root digest.CID)) error
}

// Reporter tells the metadata of this server's copies.
type Reporter interface {
	// Report records 1 to 1,000 replicas, of which Root, Server, State, Reason and Seen are set.
	Report(ctx context.Context, replicas []meta.Replica) error
}

// Content brings a blob here, whole and checked against its digest; it is a
// *transfer.Content. Of the blob, Context, Digest, Root and StoredBytes are set.
type Content interface {
	Ensure(ctx context.Context, b meta.Blob) error
}

// Config is what a Loop needs; Self to Servers are required.
type Config struct {
	Self     meta.NodeID
	Region   meta.RegionName
	Demands  Demands
	Reporter Reporter
	Content  Content
	// Servers lists the servers of the region, this one among them.
	Servers func() []meta.NodeID
	// Mine says whether a copy is this server's to make, where several servers share
	// what Self names, a bucket; nil is all.
	Mine func(root digest.CID) bool
	// Copies is how many servers of a region keep a blob; 0 is 2.
	Copies int
	// Workers is how many blobs are fetched at once; 0 is 4.
	Workers int
	// StandIn is how long a holder may take before the next server fetches in its
	// stead; 0 is 2 minutes.
	StandIn time.Duration
	// Incident says since when, if at all, a region or its blobs are out: for
	// IncidentPause from then on only critical copies are begun. It does not block. Nil
	// knows of none.
	Incident func() (since time.Time, severe bool)
	// Log is silent when nil, Metrics unregistered when nil.
	Log     *slog.Logger
	Metrics prometheus.Registerer
}
