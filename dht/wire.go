package dht

import (
	"bufio"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Bounds of the registrar's messages.
const (
	// MaxInlineBytes is the largest blob that rides in a reply.
	MaxInlineBytes = 16 << 10
	// MaxMapBytes is the largest chunk map that does, about 12,000 chunks; a larger
	// one is asked of a peer in parts (the swarm's MAP message).
	MaxMapBytes = 512 << 10

	maxRequestBytes = 512
	maxReplyBytes   = codec.MaxFrameBytes
)

// RegistrarProtocol is the protocol id of a cluster's registrars.
func RegistrarProtocol(cluster string) protocol.ID {
	return protocol.ID("/shoal/" + cluster + "/registrar/1")
}

// request is a frame from a node to a registrar. A stream carries any number of
// them, each answered by one reply before the next is read.
type request struct {
	Root     digest.CID `cbor:"1,keyasint,omitempty"`
	Have     uint64     `cbor:"2,keyasint,omitempty"` // verified chunks, 0 is none
	Complete bool       `cbor:"3,keyasint,omitempty"`
	Leave    bool       `cbor:"4,keyasint,omitempty"` // the reply is empty
	// HasMap spares the registrar the map and the content: renewals set it.
	HasMap bool `cbor:"5,keyasint,omitempty"`
	// Look asks for a grant and how many whole copies there are; it begins no
	// membership.
	Look bool `cbor:"6,keyasint,omitempty"`
	// Accused sent Chunk of Root wrongly; the reply is empty. Judged, which counts
	// from servers only, says that two nodes have reported it.
	Accused meta.NodeID `cbor:"7,keyasint,omitempty"`
	Chunk   uint64      `cbor:"8,keyasint,omitempty"`
	Judged  bool        `cbor:"9,keyasint,omitempty"`
	// Guest is of an agent whose own region has no server that answers: it becomes a
	// member of its region's swarm, here.
	Guest bool `cbor:"10,keyasint,omitempty"`
}

func (r request) check() error {
	if r.Root.IsZero() {
		return fmt.Errorf("request without a root: %w", meta.ErrInvalid)
	}
	return nil
}

// reply is a frame from a registrar. Peers are told by id alone: the asker knows
// the rest from its own roster.
type reply struct {
	Error        *meta.WireError `cbor:"1,keyasint,omitempty"`
	RetryMillis  uint32          `cbor:"2,keyasint,omitempty"` // of Error: when to ask again
	Map          []byte          `cbor:"3,keyasint,omitempty"`
	Inline       []byte          `cbor:"4,keyasint,omitempty"`
	Grant        []byte          `cbor:"5,keyasint,omitempty"`
	GrantExpires meta.Time       `cbor:"6,keyasint,omitempty"`
	Peers        []referral      `cbor:"7,keyasint,omitempty"`
	AgainMillis  uint32          `cbor:"8,keyasint,omitempty"`
	Members      uint32          `cbor:"9,keyasint,omitempty"`
	// Copies answers Look: the whole copies known in the region besides the asker's.
	Copies uint32 `cbor:"10,keyasint,omitempty"`
	// Away are peers that sent wrong chunks to two nodes: to be kept away.
	Away []meta.NodeID `cbor:"11,keyasint,omitempty"`
	// Lost goes with Error: this server has lost its blobs, and is as good as silent.
	Lost bool `cbor:"12,keyasint,omitempty"`
}

type referral struct {
	ID       meta.NodeID `cbor:"1,keyasint,omitempty"`
	Complete bool        `cbor:"2,keyasint,omitempty"`
}

// maxTold bounds the peers that a node takes from one reply.
const maxTold = 64

func (r reply) check() error {
	switch {
	case len(r.Peers) > maxTold:
		return fmt.Errorf("reply with %d peers: %w", len(r.Peers), meta.ErrInvalid)
	case len(r.Away) > maxTold:
		return fmt.Errorf("reply with %d peers to keep away: %w", len(r.Away), meta.ErrInvalid)
	case len(r.Inline) > MaxInlineBytes:
		return fmt.Errorf("reply with %d bytes of content: %w", len(r.Inline), meta.ErrInvalid)
	}
	return nil
}

// again returns when to renew, within what any registrar would say.
func (r reply) again() time.Duration {
	return min(max(time.Duration(r.AgainMillis)*time.Millisecond, time.Second), time.Minute)
}

func readRequest(r *bufio.Reader) (request, error) {
	var req request
	frame, err := codec.ReadFrame(r, maxRequestBytes)
	if err != nil {
		return req, err
	}
	if err := codec.Unmarshal(frame, &req); err != nil {
		return req, fmt.Errorf("%w: %w", err, meta.ErrInvalid)
	}
	return req, req.check()
}

func readReply(r *bufio.Reader) (reply, error) {
	var rep reply
	frame, err := codec.ReadFrame(r, maxReplyBytes)
	if err != nil {
		return rep, err
	}
	if err := codec.Unmarshal(frame, &rep); err != nil {
		return rep, fmt.Errorf("%w: %w", err, meta.ErrInvalid)
	}
	return rep, rep.check()
}
