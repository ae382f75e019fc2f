package chunk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	kib = int64(1 << 10)
	mib = int64(1 << 20)
	gib = int64(1 << 30)
	tib = int64(1 << 40)
)

func TestLengthAt(t *testing.T) {
	for _, c := range []struct{ offset, want int64 }{
		{-1, 256 * kib},
		{0, 256 * kib},
		{64*mib - 256*kib, 256 * kib},
		{64 * mib, 512 * kib},
		{192*mib - 512*kib, 512 * kib},
		{192 * mib, mib},
		{448*mib - mib, mib},
		{448 * mib, 2 * mib},
		{960*mib - 2*mib, 2 * mib},
		{960 * mib, 4 * mib},
		{5 * tib, 4 * mib},
	} {
		if got := LengthAt(c.offset); int64(got) != c.want {
			t.Errorf("LengthAt(%d) = %d, want %d", c.offset, got, c.want)
		}
	}
}

// The closed forms must agree with what LengthAt says step by step.
func TestScheduleClosedForms(t *testing.T) {
	var at int64
	for i := range 4*stepChunks + 50 {
		if got := offsetOf(i); got != at {
			t.Fatalf("offsetOf(%d) = %d, want %d", i, got, at)
		}
		length := int64(LengthAt(at))
		for _, offset := range []int64{at, at + 1, at + length - 1} {
			if got := indexAt(offset); got != i {
				t.Fatalf("indexAt(%d) = %d, want %d", offset, got, i)
			}
		}
		at += length
	}
}

// What a map costs is a promise of the design.
func TestCountFor(t *testing.T) {
	for _, c := range []struct {
		bytes int64
		want  int
	}{
		{0, 0}, {1, 1}, {256 * kib, 1}, {256*kib + 1, 2}, {100 * mib, 256 + 72},
		{gib, 1024 + 16}, {5 * gib, 2064}, {5 * tib, 1_311_504},
	} {
		if got := CountFor(c.bytes); got != c.want {
			t.Errorf("CountFor(%d) = %d, want %d", c.bytes, got, c.want)
		}
	}
	if CountFor(7*tib) > MaxChunks {
		t.Errorf("7 TiB is %d chunks, above MaxChunks", CountFor(7*tib))
	}
}

func content(n int64, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// However the stream is cut into writes, the map is that of the whole.
func TestBuilderIgnoresHowItIsWritten(t *testing.T) {
	data := content(3*256*kib+12345, 1)
	want := Of(data)
	rapid.Check(t, func(t *rapid.T) {
		var b Builder
		for rest := data; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			if wrote, err := b.Write(rest[:n]); wrote != n || err != nil {
				t.Fatalf("Write = %d, %v", wrote, err)
			}
			rest = rest[n:]
			if finished, at := b.Finished(); rapid.Bool().Draw(t, "resume") {
				size := b.Size()
				b.Discard()
				again, err := Resume(finished)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := again.Write(data[at:size]); err != nil {
					t.Fatal(err)
				}
				b = *again
			}
		}
		got, err := b.Map()
		if err != nil {
			t.Fatal(err)
		}
		if got.Root() != want.Root() {
			t.Fatalf("root %s, want %s", got.Root(), want.Root())
		}
	})
	for i, c := range want.Chunks {
		at := want.StoredOffset(i)
		if digest.Sum(data[at:at+int64(c.Stored)]) != c.ID {
			t.Errorf("chunk %d has a wrong ID", i)
		}
	}
}

func TestResumeRefusesOtherLengths(t *testing.T) {
	if _, err := Resume([]Chunk{{Plain: 100, Stored: 100}}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("err = %v", err)
	}
}

// drawMap draws any valid map, scheduled or not, sealed or not.
func drawMap(t *rapid.T) *Map {
	seal := uint8(rapid.IntRange(0, 2).Draw(t, "seal"))
	n := rapid.IntRange(0, 300).Draw(t, "chunks")
	scheduled := rapid.Bool().Draw(t, "scheduled")
	uniform := rapid.Bool().Draw(t, "uniform")
	chunks := make([]Chunk, n)
	for i := range chunks {
		plain := LengthAt(offsetOf(i))
		if !scheduled || i == n-1 {
			plain = rapid.IntRange(1, plain).Draw(t, "plain")
		}
		over := 0
		if seal != 0 {
			over = 16
			if !uniform {
				over = rapid.IntRange(0, MaxOverhead).Draw(t, "over")
			}
		}
		chunks[i] = Chunk{ID: digest.Sum([]byte{byte(i), byte(i >> 8)}), Plain: uint32(plain), Stored: uint32(plain + over)}
	}
	m, err := New(seal, chunks)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMapProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawMap(t)
		enc := m.Encode()
		back, err := Decode(enc)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(back.Encode(), enc) || back.Root() != m.Root() {
			t.Fatal("decode and encode give another encoding")
		}
		var plain, stored int64
		for i, c := range m.Chunks {
			if back.Chunks[i] != c {
				t.Fatalf("chunk %d is %+v, want %+v", i, back.Chunks[i], c)
			}
			if back.PlainOffset(i) != plain || back.StoredOffset(i) != stored {
				t.Fatalf("chunk %d is at %d/%d, want %d/%d", i, back.PlainOffset(i), back.StoredOffset(i), plain, stored)
			}
			for _, within := range []int64{0, int64(c.Plain) - 1} {
				if k, w := back.Find(plain + within); k != i || w != within {
					t.Fatalf("Find(%d) = %d, %d, want %d, %d", plain+within, k, w, i, within)
				}
			}
			plain += int64(c.Plain)
			stored += int64(c.Stored)
		}
		if back.PlainBytes != plain || back.StoredBytes != stored {
			t.Fatalf("sizes %d/%d, want %d/%d", back.PlainBytes, back.StoredBytes, plain, stored)
		}
		if i, w := back.Find(plain); i != m.Len() || w != 0 {
			t.Fatalf("Find at the end = %d, %d", i, w)
		}
		if back.PlainOffset(m.Len()) != plain || back.StoredOffset(m.Len()) != stored {
			t.Fatal("offsets at the end are not the sizes")
		}
		// Any cut is refused.
		if n := rapid.IntRange(0, len(enc)-1).Draw(t, "cut"); n < len(enc) {
			if _, err := Decode(enc[:n]); !errors.Is(err, meta.ErrInvalid) {
				t.Fatalf("Decode of %d of %d bytes: %v", n, len(enc), err)
			}
		}
	})
}

// The encoding is frozen: roots in the metadata depend on it.
func TestGoldenEncoding(t *testing.T) {
	for _, c := range []struct {
		name string
		m    *Map
		head []byte
		root string
	}{
		{"empty", Of(nil), []byte{1, 0, 0, 0, 0, 0}, "4fcb0e9e3c278d8048422e5f0a79527b505294c13a6292a8c2dac7f7366bd0cf"},
		{"hello", Of([]byte("hello")), []byte{1, 0, 0, 5, 1, 0}, "76a4119bb61d9aee4294dcd3fa11d2027939715b4a3f7b4c743f3e800b4bb765"},
		{"two chunks", Of(make([]byte, 256*kib+1)), []byte{1, 0, 0, 0x81, 0x80, 0x10, 2, 0}, "2fc2551023e1b4b455d2d1a0de6a83da84168fb50ee410669944a337ecf036b8"},
	} {
		enc := c.m.Encode()
		if !bytes.HasPrefix(enc, c.head) || len(enc) != len(c.head)+32*c.m.Len() {
			t.Errorf("%s: encoding starts %x, want %x", c.name, enc[:min(len(enc), 16)], c.head)
		}
		if c.m.Root().Hex() != c.root {
			t.Errorf("%s: root %s, want %s", c.name, c.m.Root().Hex(), c.root)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	id := make([]byte, 32)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, b := range map[string][]byte{
		"nothing":                  {},
		"unknown version":          {2, 0, 0, 0, 0, 0},
		"trailing bytes":           {1, 0, 0, 0, 0, 0, 0},
		"unknown flag":             {1, 0, 4, 0, 0, 0},
		"long uvarint":             join([]byte{1, 0, 0, 0x85, 0x00, 1, 0}, id),
		"plain listed needlessly":  join([]byte{1, 0, 1, 5, 1, 0, 5}, id),
		"stored listed needlessly": join([]byte{1, 0, 2, 5, 1, 5}, id),
		"overhead without a seal":  join([]byte{1, 0, 0, 5, 1, 16}, id),
		"overhead of no chunk":     {1, 1, 0, 0, 0, 16},
		"more plain than chunks":   join([]byte{1, 0, 0, 0x81, 0x80, 0x10, 1, 0}, id),
		"more chunks than plain":   join([]byte{1, 0, 0, 5, 2, 0}, id, id),
		"huge count":               {1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0},
		"huge count times 32":      {1, 0, 0, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x08, 0},
		"stored above plain":       join([]byte{1, 0, 2, 5, 1, 6}, id),
	} {
		if _, err := Decode(b); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: err = %v, want invalid", name, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]Chunk{
		"no bytes":       {Plain: 0, Stored: 0},
		"too long":       {Plain: MaxBytes + 1, Stored: MaxBytes + 1},
		"stored shorter": {Plain: 10, Stored: 9},
		"unsealed extra": {Plain: 10, Stored: 11},
	} {
		if _, err := New(0, []Chunk{c}); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: err = %v", name, err)
		}
	}
	if _, err := New(0, make([]Chunk, MaxChunks+1)); !errors.Is(err, meta.ErrTooLarge) {
		t.Errorf("too many chunks: err = %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Of(nil).Encode())
	f.Add(Of([]byte("hello")).Encode())
	f.Add(Of(make([]byte, 600<<10)).Encode())
	sealed, err := New(1, []Chunk{{Plain: 5, Stored: 21}, {Plain: 7, Stored: 30}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		if !bytes.Equal(m.Encode(), b) {
			t.Fatal("two encodings of one map")
		}
		for i := range m.Chunks {
			if k, within := m.Find(m.PlainOffset(i)); k != i || within != 0 {
				t.Fatalf("chunk %d is found as %d, %d", i, k, within)
			}
		}
	})
}

func TestBitmap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 70).Draw(t, "n")
		b, model := NewBitmap(n), make([]bool, n)
		for range rapid.IntRange(0, 100).Draw(t, "steps") {
			if n == 0 {
				break
			}
			i := rapid.IntRange(0, n-1).Draw(t, "i")
			if model[i] = rapid.Bool().Draw(t, "set"); model[i] {
				b.Set(i)
			} else {
				b.Clear(i)
			}
		}
		count, first := 0, n
		for i := n - 1; i >= 0; i-- {
			if b.Has(i) != model[i] {
				t.Fatalf("Has(%d) = %v", i, b.Has(i))
			}
			if model[i] {
				count++
			} else {
				first = i
			}
			if got := b.NextMissing(i); got != first {
				t.Fatalf("NextMissing(%d) = %d, want %d", i, got, first)
			}
		}
		if b.Count() != count || b.Full() != (count == n) || b.Has(-1) || b.Has(n) {
			t.Fatalf("count %d, full %v of %d/%d", b.Count(), b.Full(), count, n)
		}
		back, err := ParseBitmap(n, b.Bytes())
		if err != nil || !bytes.Equal(back.Bytes(), b.Bytes()) {
			t.Fatalf("parse: %v", err)
		}
		if n%8 != 0 {
			bad := append([]byte(nil), b.Bytes()...)
			bad[len(bad)-1] |= 0x80
			if _, err := ParseBitmap(n, bad); !errors.Is(err, meta.ErrInvalid) {
				t.Fatalf("spare bit: %v", err)
			}
		}
		if full := FullBitmap(n); !full.Full() || full.Count() != n {
			t.Fatalf("full has %d of %d", full.Count(), n)
		}
	})
	if _, err := ParseBitmap(9, []byte{0}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("short: %v", err)
	}
}

// BenchmarkEncode shows what the map of a blob costs: 5 GiB, and the limit's 5 TiB.
func BenchmarkEncode(b *testing.B) {
	for _, c := range []struct {
		name  string
		bytes int64
	}{{"5GiB", 5 * gib}, {"5TiB", 5 * tib}} {
		chunks := make([]Chunk, CountFor(c.bytes))
		for i := range chunks {
			length := uint32(LengthAt(offsetOf(i)))
			chunks[i] = Chunk{Plain: length, Stored: length}
		}
		m, err := New(0, chunks)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("Encode/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.SetBytes(int64(len(m.Encode())))
			}
		})
		enc := m.Encode()
		b.Run("Decode/"+c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(enc)))
			for b.Loop() {
				if _, err := Decode(enc); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBuilder shows that slicing a stream costs BLAKE3 and nothing else.
func BenchmarkBuilder(b *testing.B) {
	block := content(mib, 3)
	b.SetBytes(64 * mib)
	b.ReportAllocs()
	for b.Loop() {
		var bl Builder
		for range 64 {
			if _, err := bl.Write(block); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := bl.Map(); err != nil {
			b.Fatal(err)
		}
	}
}
