package codec_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/codec"
)

type record struct {
	Name  string            `cbor:"1,keyasint,omitempty"`
	Count uint64            `cbor:"2,keyasint,omitempty"`
	Tags  map[string]string `cbor:"3,keyasint,omitempty"`
	Parts [][]byte          `cbor:"4,keyasint,omitempty"`
}

// One value has one encoding, however its maps were filled, and reads back.
func TestEncodingIsDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := record{
			Name:  rapid.String().Draw(t, "name"),
			Count: rapid.Uint64().Draw(t, "count"),
			Tags:  rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "tags"),
			Parts: rapid.SliceOf(rapid.SliceOf(rapid.Byte())).Draw(t, "parts"),
		}
		first, err := codec.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var back record
		if err := codec.Unmarshal(first, &back); err != nil {
			t.Fatal(err)
		}
		if second := codec.Encode(back); !bytes.Equal(first, second) {
			t.Fatalf("%x came back as %x", first, second)
		}
	})
}

// A field that an older build does not know is skipped.
func TestUnknownFieldsAreSkipped(t *testing.T) {
	type older struct {
		Name string `cbor:"1,keyasint,omitempty"`
	}
	var o older
	if err := codec.Unmarshal(codec.Encode(record{Name: "a", Count: 7}), &o); err != nil || o.Name != "a" {
		t.Errorf("got %+v, %v", o, err)
	}
}

func TestHostileInputIsRefused(t *testing.T) {
	deep := append(bytes.Repeat([]byte{0x81}, 64), 0x00) // arrays in arrays
	for name, b := range map[string][]byte{
		"nothing":         {},
		"cut off":         {0xa1, 0x01, 0x63, 'a'},
		"trailing bytes":  {0xa0, 0x00},
		"a key twice":     {0xa2, 0x01, 0x61, 'a', 0x01, 0x61, 'b'},
		"indefinite":      {0xbf, 0xff},
		"a tag":           {0xc0, 0x60},
		"not UTF-8":       {0xa1, 0x01, 0x61, 0xff},
		"too deep":        deep,
		"a huge array":    {0x9a, 0xff, 0xff, 0xff, 0xff},
		"a huge map":      {0xba, 0xff, 0xff, 0xff, 0xff},
		"a huge string":   {0x7b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"of another type": {0x01},
	} {
		var r record
		if err := codec.Unmarshal(b, &r); err == nil {
			t.Errorf("%s: %x reads as %+v", name, b, r)
		}
	}
}

func TestFrames(t *testing.T) {
	var stream bytes.Buffer
	for _, name := range []string{"first", "", strings.Repeat("x", 100_000)} {
		if err := codec.WriteMessage(&stream, record{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	whole := bytes.Clone(stream.Bytes())
	for _, name := range []string{"first", "", strings.Repeat("x", 100_000)} {
		var r record
		if err := codec.ReadMessage(&stream, &r); err != nil || r.Name != name {
			t.Fatalf("got %.20q, %v; want %.20q", r.Name, err, name)
		}
	}
	var r record
	if err := codec.ReadMessage(&stream, &r); err != io.EOF {
		t.Errorf("after the last frame: %v", err)
	}
	if err := codec.ReadMessage(bytes.NewReader(whole[:3]), &r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("within a frame: %v", err)
	}
	if _, err := codec.ReadFrame(bytes.NewReader(codec.AppendFrame(nil, make([]byte, 11))), 10); err == nil {
		t.Error("a frame above the limit is read")
	}
	if err := codec.WriteMessage(io.Discard, record{Name: strings.Repeat("x", codec.MaxFrameBytes)}); err == nil {
		t.Error("a message above the limit is written")
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add(codec.Encode(record{Name: "a", Count: 1, Tags: map[string]string{"k": "v"}, Parts: [][]byte{{1}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r record
		if codec.Unmarshal(b, &r) != nil {
			return
		}
		// What reads can be written, and then reads the same.
		again := codec.Encode(r)
		var back record
		if err := codec.Unmarshal(again, &back); err != nil || !bytes.Equal(codec.Encode(back), again) {
			t.Fatalf("%x was written as %x, which reads as %+v, %v", b, again, back, err)
		}
	})
}
