// Package wire holds the messages that members of a swarm exchange.
//
// Two peers share one control stream for all blobs and up to four data streams
// each way. On the control stream each frame is a uvarint length and one Message
// (raftmeta/codec) of at most 1 MiB, of which exactly one field is set. On a data
// stream, which only its opener writes to, each chunk is a 32-byte Header and
// the raw stored bytes. transfer/DESIGN.md, Swarm wire, is the specification.
//
// A node gives each root that it is a member of a channel number and tells it in
// JOIN; whatever a peer sends about that root afterwards carries the number of the
// one it is sent to. Start reading at Message.
//
// The package is pure: what comes from a peer is bounded by Check before use. It
// starts no goroutines.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Version is the version of the protocol in HELLO and in a chunk's header.
const Version = 1

// Bounds of what a message holds; Check refuses more.
const (
	// MaxChunkBytes bounds the bytes after a Header.
	MaxChunkBytes = 4<<20 + 4<<10
	// MapPartBytes is the length of all parts of a map but the last.
	MapPartBytes = 512 << 10
	// MaxMapBytes bounds a chunk map in transit.
	MaxMapBytes = 65 << 20
	// MaxPeers bounds the peers in PEX and in a BUSY's referrals.
	MaxPeers = 32
	// MaxOwners bounds the keys in PULL.
	MaxOwners = 16
	// MaxBatch bounds the chunks in one HAVE and the requests in one WANT.
	MaxBatch = 16 << 10

	maxNameBytes = 128
	maxGrant     = 4 << 10
	maxBitmap    = 512 << 10
	maxReason    = 256
)

// ControlProtocol and ChunkProtocol are the libp2p protocol ids of a cluster.
func ControlProtocol(cluster string) string { return "/shoal/" + cluster + "/swarm/1" }

// ChunkProtocol is the id of data streams.
func ChunkProtocol(cluster string) string { return "/shoal/" + cluster + "/chunks/1" }

// Message is one frame of the control stream; exactly one field is set. One in
// which none is, is of a later version and to be skipped.
type Message struct {
	Hello  *Hello   `cbor:"1,keyasint,omitempty"`
	Join   *Join    `cbor:"2,keyasint,omitempty"`
	Have   *Have    `cbor:"3,keyasint,omitempty"`
	Want   *Want    `cbor:"4,keyasint,omitempty"`
	Pull   *Pull    `cbor:"5,keyasint,omitempty"`
	Busy   *Busy    `cbor:"6,keyasint,omitempty"`
	Cancel *Cancel  `cbor:"7,keyasint,omitempty"`
	Pex    *Pex     `cbor:"8,keyasint,omitempty"`
	Leave  *Leave   `cbor:"9,keyasint,omitempty"`
	MapAsk *MapAsk  `cbor:"10,keyasint,omitempty"`
	Map    *MapPart `cbor:"11,keyasint,omitempty"`
	Ping   *Ping    `cbor:"12,keyasint,omitempty"`
}

// Hello is the first message in each direction of a control stream.
type Hello struct {
	Version uint64 `cbor:"1,keyasint,omitempty"`
	// Seq grows with each Hello a node sends, also over its restarts: of two
	// streams between a pair, the one with the later Hello is the living one.
	Seq    uint64          `cbor:"2,keyasint,omitempty"`
	Region meta.RegionName `cbor:"3,keyasint,omitempty"`
	Zone   string          `cbor:"4,keyasint,omitempty"`
	Rack   string          `cbor:"5,keyasint,omitempty"`
	Server bool            `cbor:"6,keyasint,omitempty"`
}

// Join makes the sender a member of Root's swarm in the eyes of the receiver, who
// answers with a Join of its own, a Leave or a Busy. A second Join renews the grant.
type Join struct {
	Root digest.CID `cbor:"1,keyasint,omitempty"`
	// Channel is how the sender is to be addressed about Root, from 1.
	Channel uint32 `cbor:"2,keyasint,omitempty"`
	// Answer says that this Join answers one.
	Answer bool `cbor:"3,keyasint,omitempty"`
	// Grant is the sender's right to the bytes; empty when it asks for none.
	Grant []byte `cbor:"4,keyasint,omitempty"`
	// Have is the sender's chunk bitmap; empty when it has none or does not tell.
	Have []byte `cbor:"5,keyasint,omitempty"`
	// HasMap says that the sender can answer MapAsk.
	HasMap bool `cbor:"6,keyasint,omitempty"`
}

// Have announces verified chunks that the receiver lacks.
type Have struct {
	Channel uint32   `cbor:"1,keyasint,omitempty"`
	Chunks  []uint32 `cbor:"2,keyasint,omitempty"`
	// Bits is the whole bitmap instead, sent once to a peer whose right was not
	// known when it joined.
	Bits []byte `cbor:"3,keyasint,omitempty"`
	// Load is how many requests wait for the sender's uplink: a hint whom to ask.
	Load uint32 `cbor:"4,keyasint,omitempty"`
}

// Want asks for chunks; each is answered by a chunk or by Busy. One without Items only
// tells Purpose.
type Want struct {
	Channel uint32     `cbor:"1,keyasint,omitempty"`
	Items   []WantItem `cbor:"2,keyasint,omitempty"`
	// Purpose is what the sender wants the root for at present: 0 for a reader, 1 for
	// a copy that is owed, 2 before anybody asks (limit.Class). It holds for all its
	// requests until the next Want or Pull, as Credit does.
	Purpose uint8 `cbor:"3,keyasint,omitempty"`
	// Credit asks that the chunks be sent as the receiver grants it; see Header.
	Credit bool `cbor:"4,keyasint,omitempty"`
}

// WantItem is one chunk asked for under a number of the asker.
type WantItem struct {
	_       struct{} `cbor:",toarray"`
	Request uint32
	Chunk   uint32
}

// Pull asks a seed for one chunk of its choice.
type Pull struct {
	Channel uint32 `cbor:"1,keyasint,omitempty"`
	Request uint32 `cbor:"2,keyasint,omitempty"`
	// From is where the puller reads: the seed prefers chunks from there on.
	From uint32 `cbor:"3,keyasint,omitempty"`
	// Class and Classes restrict the choice to chunk % Classes == Class, so that
	// several seeds do not choose alike; Classes 0 or 1 is no restriction.
	Class   uint32 `cbor:"4,keyasint,omitempty"`
	Classes uint32 `cbor:"5,keyasint,omitempty"`
	// Purpose and Credit are as in Want.
	Purpose uint8 `cbor:"6,keyasint,omitempty"`
	Credit  bool  `cbor:"7,keyasint,omitempty"`
	// Owners are keys of servers of one region, the puller's first: it wants only chunks
	// that it owns among them (transfer/swarm/core).
	Owners []uint64 `cbor:"8,keyasint,omitempty"`
}

// Busy refuses a request, or a Join when Request is 0.
type Busy struct {
	Channel uint32 `cbor:"1,keyasint,omitempty"`
	Request uint32 `cbor:"2,keyasint,omitempty"`
	// After is how long to leave the sender alone; 0 says that it has no such chunk.
	After time.Duration `cbor:"3,keyasint,omitempty"`
	// Peers may have it instead.
	Peers []Peer `cbor:"4,keyasint,omitempty"`
}

// Cancel takes a request back. The chunk may come nevertheless.
type Cancel struct {
	Channel uint32 `cbor:"1,keyasint,omitempty"`
	Request uint32 `cbor:"2,keyasint,omitempty"`
}

// Peer is a member as another tells of it. It has no addresses: those come from the
// roster, never from a peer.
type Peer struct {
	ID     meta.NodeID     `cbor:"1,keyasint,omitempty"`
	Region meta.RegionName `cbor:"2,keyasint,omitempty"`
	Zone   string          `cbor:"3,keyasint,omitempty"`
	Rack   string          `cbor:"4,keyasint,omitempty"`
	Server bool            `cbor:"5,keyasint,omitempty"`
}

// Pex tells of other members.
type Pex struct {
	Channel uint32 `cbor:"1,keyasint,omitempty"`
	Peers   []Peer `cbor:"2,keyasint,omitempty"`
}

// Leave ends the membership, or refuses a Join.
type Leave struct {
	Channel uint32 `cbor:"1,keyasint,omitempty"`
	// Reason is a word: done, unknown (no right, or nothing known of the root: the
	// two look the same), absent (the right is fine, the blob is not here).
	Reason string `cbor:"2,keyasint,omitempty"`
	// After is when to try again; 0 is never by itself.
	After time.Duration `cbor:"3,keyasint,omitempty"`
	// From is the channel of the sender that ends, 0 when there is none. A Leave of
	// another channel than the one last joined with is late and to be ignored.
	From uint32 `cbor:"4,keyasint,omitempty"`
}

// MapAsk asks for the part of the chunk map at Offset.
type MapAsk struct {
	Channel uint32 `cbor:"1,keyasint,omitempty"`
	Offset  uint64 `cbor:"2,keyasint,omitempty"`
}

// MapPart is a part of the encoded chunk map, whose CID is the root.
type MapPart struct {
	Channel uint32 `cbor:"1,keyasint,omitempty"`
	Offset  uint64 `cbor:"2,keyasint,omitempty"`
	Total   uint64 `cbor:"3,keyasint,omitempty"`
	Data    []byte `cbor:"4,keyasint,omitempty"`
}

// Ping measures the round trip; the answer repeats Nonce with Answer set.
type Ping struct {
	Nonce  uint64 `cbor:"1,keyasint,omitempty"`
	Answer bool   `cbor:"2,keyasint,omitempty"`
}

// Check bounds what a peer sent.
//
// Errors: meta.ErrInvalid.
func (m *Message) Check() error {
	set := 0
	var err error
	check := func(present bool, what string, f func() bool) {
		if !present {
			return
		}
		set++
		if err == nil && !f() {
			err = fmt.Errorf("swarm message %s is out of bounds: %w", what, meta.ErrInvalid)
		}
	}
	check(m.Hello != nil, "hello", func() bool {
		h := m.Hello
		return named(string(h.Region), h.Zone, h.Rack)
	})
	check(m.Join != nil, "join", func() bool {
		j := m.Join
		return !j.Root.IsZero() && j.Channel > 0 && len(j.Grant) <= maxGrant && len(j.Have) <= maxBitmap
	})
	check(m.Have != nil, "have", func() bool { return len(m.Have.Chunks) <= MaxBatch && len(m.Have.Bits) <= maxBitmap })
	check(m.Want != nil, "want", func() bool { return len(m.Want.Items) <= MaxBatch })
	check(m.Pull != nil, "pull", func() bool {
		return (m.Pull.Classes == 0 || m.Pull.Class < m.Pull.Classes) && len(m.Pull.Owners) <= MaxOwners
	})
	check(m.Busy != nil, "busy", func() bool { return m.Busy.After >= 0 && peers(m.Busy.Peers) })
	check(m.Cancel != nil, "cancel", func() bool { return true })
	check(m.Pex != nil, "pex", func() bool { return peers(m.Pex.Peers) })
	check(m.Leave != nil, "leave", func() bool { return m.Leave.After >= 0 && len(m.Leave.Reason) <= maxReason })
	check(m.MapAsk != nil, "map ask", func() bool { return m.MapAsk.Offset < MaxMapBytes && m.MapAsk.Offset%MapPartBytes == 0 })
	check(m.Map != nil, "map", func() bool {
		p := m.Map
		return p.Total <= MaxMapBytes && p.Offset < p.Total && p.Offset%MapPartBytes == 0 &&
			uint64(len(p.Data)) == min(MapPartBytes, p.Total-p.Offset)
	})
	check(m.Ping != nil, "ping", func() bool { return true })
	if err == nil && set > 1 {
		err = fmt.Errorf("swarm message of %d kinds at once: %w", set, meta.ErrInvalid)
	}
	return err
}

func named(names ...string) bool {
	for _, n := range names {
		if len(n) > maxNameBytes {
			return false
		}
	}
	return true
}

func peers(ps []Peer) bool {
	if len(ps) > MaxPeers {
		return false
	}
	for _, p := range ps {
		if !named(string(p.ID), string(p.Region), p.Zone, p.Rack) {
			return false
		}
	}
	return true
}

// Read reads and checks one message.
//
// Errors: of r; of the codec; meta.ErrInvalid.
func Read(r codec.ByteReader) (Message, error) {
	var m Message
	if err := codec.ReadMessage(r, &m); errors.Is(err, codec.ErrFormat) {
		return Message{}, fmt.Errorf("%w: %w", err, meta.ErrInvalid)
	} else if err != nil {
		return Message{}, err
	}
	return m, m.Check()
}

// Write writes one message as one frame with one Write.
func Write(w io.Writer, m Message) error { return codec.WriteMessage(w, m) }

// HeaderBytes is the length of a Header.
const HeaderBytes = 20

// Header precedes a chunk on a data stream.
type Header struct {
	// Channel is the receiver's, Request the number of its WANT or PULL.
	Channel, Request uint32
	// Chunk is its number in the map, Bytes its stored length, which follows.
	Chunk, Bytes uint32
	// Confirm asks the receiver to write Confirmed to the stream when it has read
	// the chunk. So the sender knows that it has left its buffers and the link.
	Confirm bool
	// Credit says that the sender waits with the bytes until the receiver has written
	// to the stream how many may come next, in CreditBytes big-endian, again and again:
	// so a receiver with a budget has no more on its link than that.
	Credit bool
}

// CreditBytes is the length of a credit, of 1 byte of the chunk or more.
const CreditBytes = 4

// Confirmed is the byte that answers a chunk.
const Confirmed = 0x06

// headerMagic starts each header; the flags are the fields of Header.
const (
	headerMagic = 0x5C
	flagConfirm = 1
	flagCredit  = 2
)

// Put writes h, big-endian: u8 0x5C, u8 version, u8 flags, u8 0, u32 channel,
// u32 request, u32 chunk, u32 bytes.
func (h Header) Put(b *[HeaderBytes]byte) {
	*b = [HeaderBytes]byte{headerMagic, Version}
	if h.Confirm {
		b[2] = flagConfirm
	}
	if h.Credit {
		b[2] |= flagCredit
	}
	binary.BigEndian.PutUint32(b[4:], h.Channel)
	binary.BigEndian.PutUint32(b[8:], h.Request)
	binary.BigEndian.PutUint32(b[12:], h.Chunk)
	binary.BigEndian.PutUint32(b[16:], h.Bytes)
}

// ParseHeader reads what Put wrote.
//
// Errors: meta.ErrInvalid for another magic or version, flags or a reserved byte
// that are not known, a length of 0 or above MaxChunkBytes.
func ParseHeader(b *[HeaderBytes]byte) (Header, error) {
	h := Header{
		Channel: binary.BigEndian.Uint32(b[4:]),
		Request: binary.BigEndian.Uint32(b[8:]),
		Chunk:   binary.BigEndian.Uint32(b[12:]),
		Bytes:   binary.BigEndian.Uint32(b[16:]),
		Confirm: b[2]&flagConfirm != 0,
		Credit:  b[2]&flagCredit != 0,
	}
	want := [HeaderBytes]byte{}
	h.Put(&want)
	if want != *b || h.Bytes == 0 || h.Bytes > MaxChunkBytes {
		return Header{}, fmt.Errorf("chunk header %x: %w", *b, meta.ErrInvalid)
	}
	return h, nil
}
