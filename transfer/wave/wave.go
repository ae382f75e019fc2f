// Package wave brings planned content to many hosts before it is needed.
//
// A wave is a record in the metadata (meta.Wave), and the state machine there is
// its arbiter: who may begin, who is done, when too many have failed. This package
// is what happens around it. Agent, on a host, learns what waves it has a part in,
// waits until it is admitted, fetches what the wave closes over, pins it and says
// how it went. Desk, on each server, takes what hosts say, gathers it into commands
// and answers what the metadata then says. Any server will do for any host at any
// time: a desk keeps nothing but what it heard lately, for the live view, and a host
// that loses its server says the same to the next one. Start reading at decide.go,
// the pure decisions of both sides, then desk.go and agent.go.
//
// What holds: a host fetches only while the metadata says so, and with a bound on
// hosts in parallel only while its lease lasts by its own clock; what a host keeps
// for a wave is pinned as `wave/<id>` until the wave expires or is over.
//
// Run of either owns all of its goroutines; the calls of Desk.Sync are the servers'.
package wave

import (
	"context"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Plans is what the metadata says of waves, as a server reads it.
type Plans interface {
	// Reach waits until what is read is as of a log index or later.
	Reach(ctx context.Context, index uint64) error
	// Open lists the waves that are not over, and the index as of which they are.
	Open(ctx context.Context) (waves []meta.Wave, index uint64, err error)
	// Hosts returns a wave and what it has of hosts, in their order; of one that was
	// never admitted only Node is set. Errors: meta.ErrNotFound.
	Hosts(ctx context.Context, wave string, hosts []meta.NodeID) (meta.Wave, []meta.WaveHost, error)
	// Took lists hosts that took part in a wave by id, behind after.
	Took(ctx context.Context, wave string, after meta.NodeID, limit int) ([]meta.WaveHost, error)
	// Watch calls changed, which does not block, whenever waves were planned, done or
	// over, until ctx ends or the watch breaks; then it is called again.
	Watch(ctx context.Context, changed func()) error
}

// Arbiter decides, in the order of the log. The commands may be repeated.
//
// Errors: meta.ErrConflict for what the wave does not allow now; meta.ErrUnavailable.
type Arbiter interface {
	// Admit lets hosts begin as far as there is room.
	Admit(ctx context.Context, wave string, hosts []meta.NodeID) error
	// Report records the word of hosts: Node, State, Bytes and Reason.
	Report(ctx context.Context, wave string, hosts []meta.WaveHost) error
	// End makes a wave done, or closes one that has expired.
	End(ctx context.Context, wave string) error
	// Forget drops waves that were over before an instant.
	Forget(ctx context.Context, before time.Time) error
}

// Servers is any server, as a host reaches it.
type Servers interface {
	// Sync says what the host knows and returns what it is to do; the server may hold
	// the answer back for wait.
	Sync(ctx context.Context, said meta.WaveWord, wait time.Duration) (meta.WaveOrders, error)
}

// Expander knows what a reference closes over.
type Expander interface {
	// Expand returns the blobs, each once, that a host of platform os/arch[/variant]
	// needs of ref; none when nothing of it is for that platform. It acts as the host.
	//
	// Errors: meta.ErrDenied, meta.ErrNotFound; meta.ErrUnavailable.
	Expand(ctx context.Context, ref meta.WaveRef, platform string) ([]meta.Blob, error)
}

// Content keeps bytes on the host.
type Content interface {
	// Ensure brings a whole blob here, checked.
	Ensure(ctx context.Context, b meta.Blob) error
	// Held returns how many of a blob's stored bytes are here.
	Held(ctx context.Context, root digest.CID) int64
	Pins
}

// Pins keep blobs from eviction.
type Pins interface {
	Pin(root digest.CID, owner string) error
	Unpin(root digest.CID, owner string) error
	// Owned lists what is pinned by owners whose name begins with prefix.
	Owned(prefix string) map[string][]digest.CID
}

// pinPrefix is what the owners of a wave's pins begin with; its id follows.
const pinPrefix = "wave/"
