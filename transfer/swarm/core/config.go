package core

import "time"

// Config tunes a Core. Chunks, Server and Seed describe it; every other zero field
// takes the default it names. The defaults were chosen in the simulator of this
// package's tests; transfer/DESIGN.md has the figures.
type Config struct {
	// Chunks holds the stored length of each chunk, in bytes.
	Chunks []uint32
	// Server says that this member is a regional server: it is pulled from.
	Server bool
	// Seed makes choices by chance repeatable.
	Seed uint64
	// Key is a stable hash of this member's id, the same on all that know it, and Zone
	// its zone; see Event.
	Key  uint64
	Zone uint32

	// Degree is how many peers this member connects to by itself; default 24.
	Degree int
	// Dials is how many connections are begun at once, and Eager how many there are
	// before each further one waits DialEvery, unless hardly anything comes: handshakes
	// cost processors what the first chunks need. Default 6, 12 and 100 ms.
	Dials, Eager int
	DialEvery    time.Duration
	// SmallBytes is the length of blobs of which a seed gives FewPeers copies at once:
	// to wait for them to come from others would take longer. Default 1 MiB.
	SmallBytes int64
	// Members bounds all peers, with those that came by themselves, and Asked those
	// that are asked; default 64.
	Members, Asked int
	// Slots is how many chunks are sent at once; default 6.
	Slots int
	// Stuck is how many sends there may be with those that take too long, whose slots
	// went to others; default 64.
	Stuck int
	// Queue bounds the requests that wait for a slot, QueuePerPeer those of one
	// peer; default 8, on a server 512, and 16. More are answered with BUSY: who asks
	// finds an uplink with less to do.
	Queue, QueuePerPeer int
	// Depth is how many requests one peer has at least, and DepthMax at most;
	// between them the bandwidth-delay product decides. With fewer than FewPeers to
	// ask, each may have one more. Default 1, 64 and 4.
	Depth, DepthMax, FewPeers int
	// Outstanding is how many chunks are asked of all peers together, beyond the
	// bandwidth-delay product; default 12.
	Outstanding int
	// WindowChunks and WindowBytes are the least size of a reader's window; default
	// 32 and 8 MiB.
	WindowChunks int
	WindowBytes  int64
	// Stray is the share of choices made outside of the window, in percent;
	// default 10.
	Stray int
	// Backlog is up to how many requests, waiting or being answered, more demand is
	// looked for: a peer that lacks what is here is told of it at once; default 6.
	Backlog int
	// Offers is how many peers are told at once of a chunk that nobody around has,
	// whatever the backlog; default 3.
	Offers int
	// FarCost is how many waiting requests a peer of another zone is worse than one of
	// the own; default 2.
	FarCost int
	// Gather is how many chunks come, on the average, before the peers that were not
	// told at once are told of all of them; GatherMin and GatherMax bound the time.
	// Default 12, 2 ms and 250 ms.
	Gather               int
	GatherMin, GatherMax time.Duration
	// TimeoutMin and TimeoutTimes bound a request: it is late after max(TimeoutMin,
	// mean + TimeoutTimes x mean deviation of the answers so far); default 250 ms and 4.
	TimeoutMin   time.Duration
	TimeoutTimes int
	// GiveUp is when a request of which nothing has come is forgotten and its peer
	// asked anew; it doubles each time in a row; default 5 s.
	GiveUp time.Duration
	// TailChunks and TailPercent say how many of the last chunks are asked of two
	// peers: the larger of both; default 8 and 2.
	TailChunks, TailPercent int
	// BadChunks is how many wrong chunks end a peer; default 2.
	BadChunks int
	// Patience is how long a reader waits for the others to get its next chunk from
	// a seed before it asks the seed for just that, and how long a seed waits for the
	// peer it gave a chunk to before it gives it to another; default 250 ms.
	Patience time.Duration
	// OwnerSilence is after what time without anything new from a server of the region
	// the others fetch its share from beyond; default 2 s.
	OwnerSilence time.Duration
	// Referrals is how many peers a BUSY names; default 4.
	Referrals int
}

func orDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

func (c Config) withDefaults() Config {
	orDefault(&c.Degree, 24)
	orDefault(&c.Dials, 6)
	orDefault(&c.Eager, 12)
	orDefault(&c.DialEvery, 100*time.Millisecond)
	orDefault(&c.SmallBytes, 1<<20)
	orDefault(&c.Members, 64)
	orDefault(&c.Asked, 64)
	orDefault(&c.Slots, 6)
	orDefault(&c.Stuck, 64)
	if c.Server {
		orDefault(&c.Queue, 512)
	}
	orDefault(&c.Queue, 8)
	orDefault(&c.QueuePerPeer, 16)
	orDefault(&c.Depth, 1)
	orDefault(&c.FewPeers, 4)
	orDefault(&c.DepthMax, 64)
	orDefault(&c.Outstanding, 12)
	orDefault(&c.WindowChunks, 32)
	orDefault(&c.WindowBytes, 8<<20)
	orDefault(&c.Stray, 10)
	orDefault(&c.Backlog, 6)
	orDefault(&c.Offers, 3)
	orDefault(&c.FarCost, 2)
	orDefault(&c.Gather, 12)
	orDefault(&c.GatherMin, 2*time.Millisecond)
	orDefault(&c.GatherMax, 250*time.Millisecond)
	orDefault(&c.TimeoutMin, 250*time.Millisecond)
	orDefault(&c.TimeoutTimes, 4)
	orDefault(&c.GiveUp, 5*time.Second)
	orDefault(&c.TailChunks, 8)
	orDefault(&c.TailPercent, 2)
	orDefault(&c.BadChunks, 2)
	orDefault(&c.Patience, 250*time.Millisecond)
	orDefault(&c.OwnerSilence, 2*time.Second)
	orDefault(&c.Referrals, 4)
	return c
}
