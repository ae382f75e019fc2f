package core

import "time"

// Peer is the handle by which one Core and its shell name a peer.
type Peer uint32

// Request is a number that the asking side gives to a WANT or PULL, unique in its
// Core.
type Request uint32

// EventKind says what happened.
type EventKind uint8

// Kinds of Event, with the fields that count.
const (
	// Tick: the time that Core.Next named has come.
	Tick EventKind = iota
	// PeerKnown: Peer may be dialled. Server, Key, Near, Zone, Missed.
	PeerKnown
	// PeerForgotten: Peer, not connected, is not a member any more.
	PeerForgotten
	// PeerUp: Peer is connected and its right to the blob, if it asks, is checked.
	// Server, Key, Near, Zone, RTT, Have.
	PeerUp
	// PeerDown: the connection to Peer ended, or dialling it failed.
	PeerDown
	// PeerHas: Peer announced Chunks; Have when it sent its whole set again. Load.
	PeerHas
	// RTTIs: the round trip to Peer was measured. RTT.
	RTTIs
	// Coming: the first bytes of the answer to Request arrived from Peer; it is Chunk.
	Coming
	// Arrived: Chunk was verified and written. Peer, Request.
	Arrived
	// Corrupt: what Peer sent as Chunk is not that. Request.
	Corrupt
	// Failed: Request to Peer ended without an answer.
	Failed
	// Refused: Peer answered Request with BUSY. It is to be left alone for After;
	// with 0 it only has no such chunk.
	Refused
	// Lost: Chunk, which this member had, is gone or damaged.
	Lost
	// ReaderAt: Reader wants [From, To) in order.
	ReaderAt
	// ReaderGone: Reader wants nothing any more.
	ReaderGone
	// Asked: Peer WANTs Chunk. Request is the peer's number.
	Asked
	// Pulled: Peer PULLs: any chunk of class Class modulo Classes, from From on if
	// there is a choice. Request is the peer's number.
	Pulled
	// Cancelled: Peer does not want the answer to its Request any more.
	Cancelled
	// Sent: the answer to Peer's Request left this member, whole or not (OK). The
	// slot is free.
	Sent
	// Shared: this node now serves Serving roots and fetches Fetching roots, which
	// share its slots and what may be asked for.
	Shared
)

// Event is one thing that happened; see EventKind for the fields each uses. Slices
// are only read during Step.
type Event struct {
	Kind    EventKind
	Peer    Peer
	Request Request
	Chunk   int
	Chunks  []uint32
	Have    Bits
	// Load is how many requests wait at the peer for its uplink.
	Load int

	Server bool
	// Key is a stable hash of the peer's id: every member computes the same, so that
	// members agree on an order of peers without talking.
	Key uint64
	// Near ranks a peer by place: 0 same rack, 1 same zone, 2 same region, 3 beyond.
	Near uint8
	// Zone names the peer's zone by a handle that is the same for all peers in it; 0 is
	// unknown.
	Zone uint32
	// Missed says that who last tried to reach the peer, for whatever root, did not.
	Missed bool
	RTT    time.Duration
	After  time.Duration
	OK     bool

	Reader         uint32
	From, To       int
	Class, Classes int
	// Owners, if there are several, are the keys of the servers among which the puller,
	// the first, wants only what it owns.
	Owners []uint64

	Serving, Fetching int
}

// EffectKind says what to do.
type EffectKind uint8

// Kinds of Effect, with the fields that count.
const (
	// Dial: connect to Peer.
	Dial EffectKind = iota
	// Find: ask for more peers.
	Find
	// Want: ask Peer for Chunk under Request.
	Want
	// Pull: ask Peer for a chunk of its choice under Request. From, Class, Classes, Owners.
	Pull
	// Cancel: tell Peer that the answer to Request is not wanted any more.
	Cancel
	// Tell: tell Peer that Chunks are here, and that Load requests wait. Chunks is
	// valid as long as the Effect. With none: all chunks are here.
	Tell
	// Serve: send Chunk to Peer as the answer to its Request; report Sent.
	Serve
	// Stop: stop sending the answer to Peer's Request if it can be; report Sent.
	Stop
	// Busy: refuse Peer's Request for After; Peers may have it instead.
	Busy
	// Ban: drop Peer and keep it away. It sent too many wrong chunks.
	Ban
	// Done: every wanted chunk is here.
	Done
)

// Effect is one thing to do; see EffectKind for the fields each uses. Hedge marks
// a Want that is a second try.
type Effect struct {
	Kind           EffectKind
	Peer           Peer
	Request        Request
	Chunk          int
	From           int
	Class, Classes int
	Owners         []uint64
	After          time.Duration
	Peers          []Peer
	Chunks         []uint32
	Load           int
	Hedge          bool
}
