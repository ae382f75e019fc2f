package wire_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/wire"
	"github.com/shoal-registry/shoal/verify/digest"
)

// samples has one message of each kind.
func samples() []wire.Message {
	peer := wire.Peer{ID: "12D3KooW", Region: "eu", Zone: "a", Rack: "r1", Server: true}
	return []wire.Message{
		{Hello: &wire.Hello{Version: 1, Seq: 1 << 60, Region: "eu", Zone: "a", Rack: "r1", Server: true}},
		{Join: &wire.Join{Root: digest.Sum([]byte("m")), Channel: 7, Answer: true, Grant: []byte("g"), Have: []byte{3}, HasMap: true}},
		{Have: &wire.Have{Channel: 7, Chunks: []uint32{0, 5, 1 << 20}}},
		{Have: &wire.Have{Channel: 7, Bits: []byte{1, 2}}},
		{Want: &wire.Want{Channel: 7, Items: []wire.WantItem{{Request: 1, Chunk: 2}, {Request: 2, Chunk: 9}}}},
		{Pull: &wire.Pull{Channel: 7, Request: 3, From: 4, Class: 1, Classes: 2}},
		{Pull: &wire.Pull{Channel: 7, Request: 4, Owners: []uint64{1 << 63, 5}}},
		{Busy: &wire.Busy{Channel: 7, Request: 3, After: time.Second, Peers: []wire.Peer{peer}}},
		{Cancel: &wire.Cancel{Channel: 7, Request: 3}},
		{Pex: &wire.Pex{Channel: 7, Peers: []wire.Peer{peer, {ID: "x"}}}},
		{Leave: &wire.Leave{Channel: 7, Reason: "done", After: time.Second, From: 8}},
		{MapAsk: &wire.MapAsk{Channel: 7, Offset: wire.MapPartBytes}},
		{Map: &wire.MapPart{Channel: 7, Total: 3, Data: []byte("map")}},
		{Ping: &wire.Ping{Nonce: 9, Answer: true}},
	}
}

func TestEveryMessageSurvivesTheWire(t *testing.T) {
	var buf bytes.Buffer
	for _, m := range samples() {
		if err := wire.Write(&buf, m); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range samples() {
		got, err := wire.Read(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if _, err := wire.Read(&buf); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestOversizedMessagesAreRefused(t *testing.T) {
	long := strings.Repeat("x", 1000)
	root := digest.Sum(nil)
	for name, m := range map[string]wire.Message{
		"two kinds":        {Ping: &wire.Ping{}, Cancel: &wire.Cancel{}},
		"long region":      {Hello: &wire.Hello{Region: meta.RegionName(long)}},
		"no root":          {Join: &wire.Join{Channel: 1}},
		"no channel":       {Join: &wire.Join{Root: root}},
		"large grant":      {Join: &wire.Join{Root: root, Channel: 1, Grant: make([]byte, 5000)}},
		"large bitmap":     {Have: &wire.Have{Bits: make([]byte, 600<<10)}},
		"many chunks":      {Have: &wire.Have{Chunks: make([]uint32, wire.MaxBatch+1)}},
		"many wants":       {Want: &wire.Want{Items: make([]wire.WantItem, wire.MaxBatch+1)}},
		"class":            {Pull: &wire.Pull{Class: 2, Classes: 2}},
		"many owners":      {Pull: &wire.Pull{Owners: make([]uint64, wire.MaxOwners+1)}},
		"negative wait":    {Busy: &wire.Busy{After: -1}},
		"many peers":       {Pex: &wire.Pex{Peers: make([]wire.Peer, wire.MaxPeers+1)}},
		"long peer id":     {Pex: &wire.Pex{Peers: []wire.Peer{{ID: meta.NodeID(long)}}}},
		"long reason":      {Leave: &wire.Leave{Reason: long}},
		"odd map offset":   {MapAsk: &wire.MapAsk{Offset: 5}},
		"huge map":         {Map: &wire.MapPart{Total: wire.MaxMapBytes + 1}},
		"short map part":   {Map: &wire.MapPart{Total: 10, Data: []byte("x")}},
		"map part too far": {Map: &wire.MapPart{Total: 10, Offset: wire.MapPartBytes}},
	} {
		var buf bytes.Buffer
		if err := wire.Write(&buf, m); err != nil {
			t.Fatal(name, err)
		}
		if _, err := wire.Read(&buf); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	frame := codec.AppendFrame(nil, make([]byte, codec.MaxFrameBytes+1))
	if _, err := wire.Read(bytes.NewReader(frame)); err == nil {
		t.Error("a frame above 1 MiB was read")
	}
}

func TestAMessageOfALaterVersionIsSkipped(t *testing.T) {
	frame := codec.AppendFrame(nil, codec.Encode(map[int]any{99: map[int]any{1: "x"}}))
	m, err := wire.Read(bytes.NewReader(frame))
	if err != nil || !reflect.DeepEqual(m, wire.Message{}) {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestHeader(t *testing.T) {
	want := wire.Header{Channel: 1, Request: 2, Chunk: 3, Bytes: 256 << 10}
	var b [wire.HeaderBytes]byte
	want.Put(&b)
	golden := [wire.HeaderBytes]byte{0x5c, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 4}
	if b != golden {
		t.Errorf("header is %x", b)
	}
	if got, err := wire.ParseHeader(&b); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	want.Confirm = true
	want.Put(&b)
	if got, err := wire.ParseHeader(&b); err != nil || got != want || b[2] != 1 {
		t.Errorf("to be confirmed: %x, %+v, %v", b, got, err)
	}
	want.Credit = true
	want.Put(&b)
	if got, err := wire.ParseHeader(&b); err != nil || got != want || b[2] != 3 {
		t.Errorf("to be granted: %x, %+v, %v", b, got, err)
	}
	for i, v := range map[int]byte{0: 1, 1: 2, 2: 4, 3: 1, 16: 0xff} {
		bad := golden
		bad[i] = v
		if _, err := wire.ParseHeader(&bad); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("byte %d = %d: %v", i, v, err)
		}
	}
	empty := golden
	empty[17] = 0
	if _, err := wire.ParseHeader(&empty); err == nil {
		t.Error("a chunk of 0 bytes was accepted")
	}
}

// FuzzRead: whatever a peer sends, reading ends, and what is read encodes to what
// reads the same.
func FuzzRead(f *testing.F) {
	for _, m := range samples() {
		var buf bytes.Buffer
		_ = wire.Write(&buf, m)
		f.Add(buf.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := wire.Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		var buf bytes.Buffer
		if err := wire.Write(&buf, m); err != nil {
			t.Fatal(err)
		}
		encoded := bytes.Clone(buf.Bytes())
		again, err := wire.Read(&buf)
		if err != nil {
			t.Fatal(err)
		}
		_ = wire.Write(&buf, again)
		if !bytes.Equal(encoded, buf.Bytes()) {
			t.Fatalf("%x became %x", encoded, buf.Bytes())
		}
	})
}

// FuzzHeader: a header that is accepted is the one that Put writes.
func FuzzHeader(f *testing.F) {
	var b [wire.HeaderBytes]byte
	wire.Header{Channel: 1, Request: 2, Chunk: 3, Bytes: 4}.Put(&b)
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) != wire.HeaderBytes {
			return
		}
		b := [wire.HeaderBytes]byte(in)
		h, err := wire.ParseHeader(&b)
		if err != nil {
			return
		}
		var again [wire.HeaderBytes]byte
		if h.Put(&again); again != b {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
