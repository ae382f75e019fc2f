// Package codec is the one encoding of what shoal's nodes write and send:
// commands, records, control messages.
//
// It is CBOR (RFC 8949) in the core deterministic form of its section 4.2: one
// value has exactly one encoding, so records hash alike on every replica and
// golden logs stay true; protobuf promises neither. Structs carry
// `cbor:"N,keyasint,omitempty"` tags: a number is never reused, an unknown one
// is skipped. Decoding is bounded in depth and in elements, and by the caller
// in bytes. Frames are uvarint length + payload.
//
// The package is a leaf: every room may import it, it imports no room. It
// starts no goroutines.
package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"
)

// MaxFrameBytes bounds a control frame.
const MaxFrameBytes = 1 << 20

var (
	encMode = must(cbor.EncOptions{
		Sort:          cbor.SortCoreDeterministic,
		ShortestFloat: cbor.ShortestFloat16,
		NaNConvert:    cbor.NaNConvert7e00,
		InfConvert:    cbor.InfConvertFloat16,
		IndefLength:   cbor.IndefLengthForbidden,
		Time:          cbor.TimeUnixDynamic,
		TagsMd:        cbor.TagsForbidden,
		NilContainers: cbor.NilContainerAsEmpty,
	}.EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  16,
		MaxArrayElements: 1 << 17,
		MaxMapPairs:      1 << 16,
		UTF8:             cbor.UTF8RejectInvalid,
	}.DecMode())
)

func must[M any](m M, err error) M {
	if err != nil {
		panic(err)
	}
	return m
}

// Marshal encodes v. It fails only on a type that CBOR cannot hold.
func Marshal(v any) ([]byte, error) {
	b, err := encMode.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return b, nil
}

// Encode is Marshal for our own record types, of which failure is a bug.
func Encode(v any) []byte {
	b, err := Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// ErrFormat says that bytes are not what their reader takes, whatever brought them.
var ErrFormat = errors.New("malformed")

// Unmarshal decodes all of b into v. Trailing bytes are an error.
//
// Errors: ErrFormat.
func Unmarshal(b []byte, v any) error {
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: decode %T: %w", ErrFormat, v, err)
	}
	return nil
}

// ByteReader is what a frame is read from: a bufio.Reader, a bytes.Reader.
type ByteReader interface {
	io.Reader
	io.ByteReader
}

// AppendFrame appends payload as a frame to dst.
func AppendFrame(dst, payload []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(payload))), payload...)
}

// WriteMessage writes v as one frame with one Write.
//
// Errors: of w; a payload above MaxFrameBytes.
func WriteMessage(w io.Writer, v any) error {
	payload, err := Marshal(v)
	if err != nil {
		return err
	}
	if len(payload) > MaxFrameBytes {
		return fmt.Errorf("%T is %d bytes, a frame holds %d", v, len(payload), MaxFrameBytes)
	}
	_, err = w.Write(AppendFrame(make([]byte, 0, len(payload)+4), payload))
	return err
}

// ReadFrame reads one frame of at most maxBytes.
//
// Errors: io.EOF when r ends before a frame, io.ErrUnexpectedEOF within one; ErrFormat.
func ReadFrame(r ByteReader, maxBytes int) ([]byte, error) {
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if size > uint64(maxBytes) {
		return nil, fmt.Errorf("%w: %d bytes are above the limit of %d", ErrFormat, size, maxBytes)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

// ReadMessage reads one frame of at most MaxFrameBytes into v.
func ReadMessage(r ByteReader, v any) error {
	b, err := ReadFrame(r, MaxFrameBytes)
	if err != nil {
		return err
	}
	return Unmarshal(b, v)
}
