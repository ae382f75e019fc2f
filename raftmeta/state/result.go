package state

import (
	"fmt"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Result is what an entry did.
type Result struct {
	// Index is where the command took effect: for a repeated request id, the first
	// time.
	Index uint64
	Type  uint16
	// Value is the result that the command documents, nil when it has none.
	Value any
	// Err is the refusal, a *meta.WireError, the same on every replica.
	Err error
}

// resultRecord is a Result as it is stored and sent.
type resultRecord struct {
	Index uint64          `cbor:"1,keyasint,omitempty"`
	Type  uint16          `cbor:"2,keyasint,omitempty"`
	Value []byte          `cbor:"3,keyasint,omitempty"` // of codec
	Err   *meta.WireError `cbor:"4,keyasint,omitempty"`
}

// Encode returns the result for another node, or for the same request later.
func (r Result) Encode() []byte {
	record := resultRecord{Index: r.Index, Type: r.Type, Err: meta.ToWire(r.Err)}
	if r.Value != nil {
		record.Value = codec.Encode(r.Value)
	}
	return codec.Encode(record)
}

// DecodeResult reads what Encode wrote; Value has the command's result type.
func DecodeResult(b []byte) (Result, error) {
	var record resultRecord
	if err := codec.Unmarshal(b, &record); err != nil {
		return Result{}, err
	}
	r := Result{Index: record.Index, Type: record.Type, Err: record.Err.Err()}
	if len(record.Value) == 0 {
		return r, nil
	}
	k, ok := kinds[record.Type]
	if !ok {
		return Result{}, fmt.Errorf("result of unknown command type %d: %w", record.Type, meta.ErrInvalid)
	}
	var err error
	r.Value, err = k.result(record.Value)
	return r, err
}
