package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Timing is how patient Raft is. Heartbeat <= Election, Lease <= Heartbeat.
type Timing struct {
	// Heartbeat without word from the leader, a follower stands for election;
	// Election is how long it waits for votes.
	Heartbeat, Election time.Duration
	// Lease without a majority, a leader steps down.
	Lease time.Duration
	// Commit is how long after the last entry the followers learn at the latest
	// that it is committed, give or take its double.
	Commit time.Duration
	// Members is how often the leader looks at who should vote, Stable how long a
	// server must be well before it may.
	Members, Stable time.Duration
	// Lost is how long a voter must be unwell before another takes its place.
	Lost time.Duration
}

// Profiles of Timing by the name they have in the configuration. Idle, a leader
// sends each follower one small message every Commit to 2 x Commit.
var Profiles = map[string]Timing{
	"site": {
		Heartbeat: time.Second, Election: time.Second, Lease: 500 * time.Millisecond, Commit: 10 * time.Millisecond,
		Members: 500 * time.Millisecond, Stable: 2 * time.Second, Lost: time.Minute,
	},
	"wan": {
		Heartbeat: 5 * time.Second, Election: 5 * time.Second, Lease: 2500 * time.Millisecond, Commit: 50 * time.Millisecond,
		Members: 2 * time.Second, Stable: 10 * time.Second, Lost: 5 * time.Minute,
	},
}

// Snapshots say how much of the log is kept. Zero fields take the default named
// beside them.
type Snapshots struct {
	Every    time.Duration // looks whether one is due this often, to its double; 15 s
	Entries  uint64        // new ones that make it due; 32,768
	Trailing uint64        // entries that stay in the log behind it; 262,144
	// SegmentBytes is the size of a file of the log; 64 MiB. Space comes back by whole
	// files, and entries of the last one are still sent to those who lack them.
	SegmentBytes int
}

// Roster is who belongs to the cluster.
type Roster interface {
	// Servers lists the server nodes, in any order.
	Servers() []meta.Node
}

// Config is what a Node needs. Zero fields take the default named beside them.
type Config struct {
	Dir     string      // holds wal/ and snapshots/; created
	Self    meta.NodeID // the peer id of Host
	Cluster string      // in the protocol ids
	Host    host.Host   // the raft host; its address book knows the servers
	Machine Machine
	Roster  Roster
	// Seeds are servers that may connect until the first read round has succeeded,
	// while this server replays a past in which they were not there yet.
	Seeds  []meta.Node
	Timing Timing // Profiles["site"]

	// Level is the newest cluster level that this build knows; the others are told.
	Level uint32

	// Commit is how long a command may wait for a quorum; 5 s.
	Commit time.Duration
	// Stall is how long the log's disk may take over one write before Fatal; 10 s.
	Stall time.Duration
	// Room, when set, says how much room the disk of the log has. It is asked before each
	// write and must be quick.
	Room func() Room
	// Fatal is told what this process cannot go on with: a hung disk (which blocks
	// failover while the process lives), an entry that fails its checksum, a machine
	// that cannot apply. It should end the process. Default: print and exit 70.
	Fatal func(error)
	// Learned, when set, is told of servers that a peer knows and the roster does
	// not, which happens after a long absence; the node lets them connect.
	Learned func([]meta.Node)

	Snapshots Snapshots

	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: none

	entries func(entryStore) entryStore // a test's disk
}

// Bounds that are not configuration.
const (
	maxAppendEntries  = 1024     // of one message; hashicorp's ceiling
	logCacheEntries   = 1024     // recent entries in memory, for the followers
	maxProposalBytes  = 32 << 20 // of commands waiting for their commit on the leader
	applyStalls       = 3        // Config.Stall: a state that tidies up is slower than a log
	keptResults       = 4096     // results by index, for the server that forwarded
	maxStreamsPerPeer = 256      // accepted, a protocol
	idleStream        = 30 * time.Second
	roundAgain        = 250 * time.Millisecond
	roundLimit        = 2 * time.Second
	// A background round keeps the state's age low, so that bounded reads do not wait.
	freshEvery = 200 * time.Millisecond
	quietEvery = time.Second // whom no round asks is asked whether it lives
	// ownWithin is the age up to which a state has seen whatever was acknowledged after
	// waiting out visibleLimit: the round began before that wait was over.
	ownWithin          = visibleLimit - 100*time.Millisecond
	heardWithin        = 5 * time.Second
	visibleLimit       = 500 * time.Millisecond
	transportTimeout   = 10 * time.Second
	noQuorumRetryAfter = 2 * time.Second
)

func (c *Config) setDefaults() error {
	switch {
	case c.Dir == "" || c.Self == "" || c.Cluster == "" || c.Host == nil || c.Machine == nil || c.Roster == nil:
		return errors.New("consensus: Dir, Self, Cluster, Host, Machine and Roster are required")
	case string(c.Self) != c.Host.ID().String():
		return fmt.Errorf("consensus: this node is %s, its raft host %s", c.Self, c.Host.ID())
	}
	setDefault(&c.Timing, Profiles["site"])
	setDefault(&c.Commit, 5*time.Second)
	setDefault(&c.Stall, 10*time.Second)
	setDefault(&c.Snapshots.Every, 15*time.Second)
	setDefault(&c.Snapshots.Entries, 32_768)
	setDefault(&c.Snapshots.Trailing, 262_144)
	setDefault(&c.Snapshots.SegmentBytes, 64<<20)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Fatal == nil {
		log := c.Log
		c.Fatal = func(err error) {
			log.Error("raft cannot go on, ending the process", "error", err)
			os.Exit(70)
		}
	}
	return nil
}

func setDefault[V comparable](v *V, def V) {
	var zero V
	if *v == zero {
		*v = def
	}
}

// ended says why ctx did: out of time is a lack of quorum to who waits for one.
func ended(ctx context.Context) error {
	err := context.Cause(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", noQuorum(), err)
	}
	return err
}

func noQuorum() error {
	return &meta.UnavailableError{Reason: "no_quorum", RetryAfter: noQuorumRetryAfter}
}
