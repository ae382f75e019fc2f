// Package remote is how agents ask servers: questions with their freshness, and
// the feed. It is connect over HTTPS with the one encoding of shoal, on plain
// structs.
//
// Handler is the server's half, over a Store; Client is the agent's, which is a
// raftmeta.Asker and Upstream itself. The gateway mounts the handler for node
// certificates only. A Client starts no goroutines; a Watch call on the server has
// one that ends with the call.
//
// Wire: POST /shoal.raftmeta.v1.Metadata/{Ask,Watch}, connect protocol
// (connectrpc.com/docs/protocol), content type application/cbor and
// application/connect+cbor. Answers up to 32 MiB, questions up to 128 KiB. What the
// question refused travels inside the answer, with the index at which it was so;
// connect errors are of the call.
package remote

import (
	"errors"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/feed"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	service        = "/shoal.raftmeta.v1.Metadata/"
	askProcedure   = service + "Ask"
	watchProcedure = service + "Watch"

	maxQuestionBytes = 128 << 10
	maxAnswerBytes   = 32 << 20

	// heartbeat is how often a silent Watch says that it lives; a client that hears
	// nothing for silence gives the stream up.
	heartbeat = time.Second
	silence   = 5 * time.Second
)

// askRequest is a question of state.Questions.
type askRequest struct {
	Name      string         `cbor:"1,keyasint,omitempty"`
	Args      []byte         `cbor:"2,keyasint,omitempty"` // of codec
	Freshness meta.Freshness `cbor:"3,keyasint,omitempty"`
}

type askResponse struct {
	Answer  []byte    `cbor:"1,keyasint,omitempty"` // of codec
	AsOf    meta.AsOf `cbor:"2,keyasint,omitempty"`
	Failure *failure  `cbor:"3,keyasint,omitempty"`
}

type watchRequest struct {
	After  uint64      `cbor:"1,keyasint,omitempty"`
	Filter feed.Filter `cbor:"2,keyasint,omitempty"`
}

// watchFrame has changes; or Index, up to which all were sent; or a last Failure.
type watchFrame struct {
	Changes []feed.Change `cbor:"1,keyasint,omitempty"`
	Index   uint64        `cbor:"2,keyasint,omitempty"`
	Failure *failure      `cbor:"3,keyasint,omitempty"`
}

// failure is an error as it travels.
type failure struct {
	Error meta.WireError `cbor:"1,keyasint,omitempty"`
	// Reason and RetryAfter are of a *meta.UnavailableError.
	Reason     string        `cbor:"2,keyasint,omitempty"`
	RetryAfter time.Duration `cbor:"3,keyasint,omitempty"`
	// Compacted is feed.ErrCompacted.
	Compacted bool `cbor:"4,keyasint,omitempty"`
}

func failureOf(err error) *failure {
	f := &failure{Error: *meta.ToWire(err), Compacted: errors.Is(err, feed.ErrCompacted)}
	if u, ok := errors.AsType[*meta.UnavailableError](err); ok {
		f.Reason, f.RetryAfter = u.Reason, u.RetryAfter
	}
	return f
}

func (f *failure) err() error {
	switch {
	case f == nil:
		return nil
	case f.Compacted:
		return feed.ErrCompacted
	case f.Reason != "":
		return &meta.UnavailableError{Reason: f.Reason, RetryAfter: f.RetryAfter}
	}
	return &f.Error
}

// cborCodec is codec as connect wants it.
type cborCodec struct{}

func (cborCodec) Name() string                        { return "cbor" }
func (cborCodec) Marshal(v any) ([]byte, error)       { return codec.Marshal(v) }
func (cborCodec) Unmarshal(b []byte, v any) error     { return codec.Unmarshal(b, v) }
func (cborCodec) MarshalStable(v any) ([]byte, error) { return codec.Marshal(v) }
func (cborCodec) IsBinary() bool                      { return true }
