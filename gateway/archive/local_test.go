package archive_test

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// part is an entry of a zip that is made byte by byte. What is nil or 0 is as it should be.
type part struct {
	name, data string
	flags      uint16
	extra      []byte                   // of the header before it
	header     func(h []byte)           // changes that header
	described  []byte                   // stands behind its bytes
	offset     func(offset int) (n int) // where the list says that it is
	unlisted   bool
}

// made is a zip of entries that are stored as they are.
func made(parts ...part) []byte {
	le := binary.LittleEndian
	var b, list []byte
	records := uint16(0)
	for _, p := range parts {
		sum := crc32.ChecksumIEEE([]byte(p.data))
		common := func(b []byte, extra int) []byte {
			b = le.AppendUint16(b, 20)
			b = le.AppendUint16(b, p.flags)
			b = append(b, make([]byte, 6)...) // stored; time
			b = le.AppendUint32(b, sum)
			b = le.AppendUint32(b, uint32(len(p.data)))
			b = le.AppendUint32(b, uint32(len(p.data)))
			b = le.AppendUint16(b, uint16(len(p.name)))
			return le.AppendUint16(b, uint16(extra))
		}
		at := len(b)
		b = common(append(b, "PK\x03\x04"...), len(p.extra))
		if p.header != nil {
			p.header(b[at:])
		}
		b = slices.Concat(b, []byte(p.name), p.extra)
		if p.header != nil {
			p.header(b[at:])
		}
		b = slices.Concat(b, []byte(p.data), p.described)
		if p.unlisted {
			continue
		}
		if p.offset != nil {
			at = p.offset(at)
		}
		records++
		list = common(append(list, "PK\x01\x02\x14\x00"...), 0)
		list = append(list, make([]byte, 10)...) // comment, disk, attributes
		list = le.AppendUint32(list, uint32(at))
		list = append(list, p.name...)
	}
	from := len(b)
	b = append(append(b, list...), "PK\x05\x06\x00\x00\x00\x00"...)
	b = le.AppendUint16(le.AppendUint16(b, records), records)
	b = le.AppendUint32(le.AppendUint32(b, uint32(len(list))), uint32(from))
	return append(b, 0, 0)
}

// put returns what puts a number of two or four bytes into a header.
func put(at int, value any) func([]byte) {
	return func(h []byte) {
		if _, err := binary.Encode(h[at:], binary.LittleEndian, value); err != nil {
			panic(err)
		}
	}
}

// record is a data descriptor of data.
func record(magic bool, width int, data string) []byte {
	var b []byte
	if magic {
		b = append(b, "PK\x07\x08"...)
	}
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE([]byte(data)))
	for range 2 {
		b = append(b, binary.LittleEndian.AppendUint64(nil, uint64(len(data)))[:width]...)
	}
	return b
}

func zeroes(h []byte) { clear(h[14:26]) }

// confused are zips of which two readers see different files.
func confused() map[string][]byte {
	const wrong = "is another"
	// A header, and bytes, inside of the bytes of another entry.
	inside := string(made(part{name: "a", data: "evil"})[:35])
	secondName := append([]byte{0x75, 0x70, 9, 0, 1, 0, 0, 0, 0}, "evil"...)
	return map[string][]byte{
		"another name":            made(part{name: "a", data: wrong, header: func(h []byte) { copy(h[min(len(h), 30):], "x") }}),
		"another entry's name":    made(part{name: "a", data: "1", header: func(h []byte) { copy(h[min(len(h), 30):], "b") }}, part{name: "b", data: "2", header: func(h []byte) { copy(h[min(len(h), 30):], "a") }}),
		"another method":          made(part{name: "a", data: wrong, header: put(8, uint16(8))}),
		"another checksum":        made(part{name: "a", data: wrong, header: put(14, uint32(1))}),
		"less packed":             made(part{name: "a", data: wrong, header: put(18, uint32(2))}),
		"less plain":              made(part{name: "a", data: wrong, header: put(22, uint32(2))}),
		"no sizes":                made(part{name: "a", data: wrong, header: zeroes}),
		"not listed, behind":      made(part{name: "a", data: wrong}, part{name: "b", data: wrong, unlisted: true}),
		"not listed, in front":    made(part{name: "b", data: wrong, unlisted: true}, part{name: "a", data: wrong}),
		"not listed, between":     made(part{name: "a", data: wrong}, part{name: "b", data: wrong, unlisted: true}, part{name: "c"}),
		"not listed, of one name": made(part{name: "a", data: wrong, unlisted: true}, part{name: "a", data: wrong}),
		"bytes between":           made(part{name: "a", data: wrong, described: []byte("x")}, part{name: "b"}),
		"inside of another":       made(part{name: "b", data: inside}, part{name: "a", data: "good", offset: func(int) int { return 31 }}),
		"outside":                 made(part{name: "a", data: wrong, offset: func(int) int { return 1 << 30 }}),
		"at the end":              made(part{name: "a", data: wrong, offset: func(n int) int { return n + 100 }}),
		"described as another":    made(part{name: "a", data: wrong, flags: 8, header: zeroes, described: record(true, 4, "x")}),
		"not described":           made(part{name: "a", data: wrong, flags: 8, header: zeroes}),
		"described twice":         made(part{name: "a", data: wrong, flags: 8, header: zeroes, described: append(record(true, 4, wrong), record(true, 4, wrong)...)}),
		"a second name":           made(part{name: "a", data: wrong, extra: secondName}),
		"cut off within a header": made(part{name: "a", data: wrong, header: put(28, uint16(60_000))}),
	}
}

// sound are zips as writers make them.
func sound(t testing.TB) map[string][]byte {
	t.Helper()
	const data = "hello"
	large := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64([]byte{1, 0, 16, 0}, 5), 5)
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, h := range []zip.FileHeader{{Name: "dir/"}, {Name: "stored"}, {Name: "packed", Method: zip.Deflate, Extra: []byte{0x55, 0x54, 1, 0, 0}}} {
		f, err := w.CreateHeader(&h)
		if err == nil && !strings.HasSuffix(h.Name, "/") {
			_, err = io.WriteString(f, data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"archive/zip":           b.Bytes(),
		"nothing":               made(),
		"two":                   made(part{name: "a", data: data}, part{name: "b"}),
		"described":             made(part{name: "a", data: data, flags: 8, header: zeroes, described: record(true, 4, data)}, part{name: "b"}),
		"described and sized":   made(part{name: "a", data: data, flags: 8, described: record(true, 4, data)}),
		"described, no magic":   made(part{name: "a", data: data, flags: 8, header: zeroes, described: record(false, 4, data)}, part{name: "b"}),
		"described, long":       made(part{name: "a", data: data, flags: 8, header: zeroes, described: record(true, 8, data)}, part{name: "b"}),
		"described, long, bare": made(part{name: "a", data: data, flags: 8, header: zeroes, described: record(false, 8, data)}),
		"described, of nothing": made(part{name: "a", flags: 8, header: zeroes, described: record(true, 8, "")}, part{name: "b", flags: 8, described: record(false, 4, "")}),
		"zip64 sizes":           made(part{name: "a", data: data, extra: large, header: func(h []byte) { copy(h[18:26], "\xff\xff\xff\xff\xff\xff\xff\xff") }}),
		"other fields":          made(part{name: "a", data: data, extra: append([]byte{0x55, 0x54, 5, 0, 1, 2, 3, 4, 5}, bytes.Repeat([]byte{0}, 2000)...)}),
		"the same second name":  made(part{name: "a", data: data, extra: append([]byte{0x75, 0x70, 6, 0, 1, 0, 0, 0, 0}, "a"...)}),
	}
}

func TestZipHeaders(t *testing.T) {
	for name, b := range sound(t) {
		if _, err := open(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range confused() {
		if _, err := zip.NewReader(bytes.NewReader(b), int64(len(b))); err != nil {
			t.Errorf("%s: it is refused by archive/zip already: %v", name, err)
		}
		if _, err := open(b); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Some readers follow a zip64 end only where the short one refers to it, others always: it
// may be there, and say the same, but not hide in a comment and say something else.
func TestZip64End(t *testing.T) {
	le := binary.LittleEndian
	b := made(part{name: "a", data: "hello"})
	end := len(b) - 22
	from, length := uint64(le.Uint32(b[end+16:])), uint64(le.Uint32(b[end+12:]))
	long := func(records, bytes, offset uint64, place int) []byte {
		l := append([]byte("PK\x06\x06"), make([]byte, 52)...)
		le.PutUint64(l[4:], 44)
		le.PutUint64(l[24:], records)
		le.PutUint64(l[32:], records)
		le.PutUint64(l[40:], bytes)
		le.PutUint64(l[48:], offset)
		l = append(append(l, "PK\x06\x07\x00\x00\x00\x00"...), make([]byte, 12)...)
		le.PutUint64(l[64:], uint64(place))
		le.PutUint32(l[72:], 1)
		return l
	}
	if _, err := open(slices.Concat(b[:end], long(1, length, from, end), b[end:])); err != nil {
		t.Errorf("two ends that say the same: %v", err)
	}
	// The last entry of the list has a comment, and in it an end for readers of the other kind.
	hidden := slices.Concat(b[:end], long(0, 0, 0, end), b[end:])
	le.PutUint16(hidden[from+32:], 76)
	le.PutUint32(hidden[len(hidden)-10:], uint32(length+76))
	if z, err := zip.NewReader(strings.NewReader(string(hidden)), int64(len(hidden))); err != nil || len(z.File) != 1 {
		t.Fatalf("archive/zip is not one of the first kind: %v", err)
	}
	if _, err := open(hidden); !errors.Is(err, meta.ErrInvalid) || !strings.Contains(err.Error(), "two ends") {
		t.Errorf("two ends that differ: %v", err)
	}
}

// An end may have a comment, in which there is no other end for readers that look for the last.
func TestZipComment(t *testing.T) {
	b := made(part{name: "a", data: "hello"})
	with := func(comment string, says int) []byte {
		b := append(bytes.Clone(b), comment...)
		binary.LittleEndian.PutUint16(b[len(b)-len(comment)-2:], uint16(says))
		return b
	}
	if _, err := open(with("hello", 5)); err != nil {
		t.Error(err)
	}
	other := "PK\x05\x06" + strings.Repeat("\x00", 16) + "\xff\xff"
	for name, b := range map[string][]byte{"another end": with(other, len(other)), "more than the comment": with("hello", 4)} {
		if _, err := open(b); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A disk that fails is not the archive's fault.
func TestZipHeadersSource(t *testing.T) {
	b := made(part{name: "a", data: "hello"})
	for _, from := range []int{0, 1} {
		r := &failsLater{r: bytes.NewReader(b), good: from}
		if _, err := archive.Zip(r, int64(len(b)), small); !errors.Is(err, meta.ErrUnavailable) || errors.Is(err, meta.ErrInvalid) {
			t.Errorf("after %d reads of headers: %v", from, err)
		}
	}
}

// failsLater fails reads at the front of a zip, after some.
type failsLater struct {
	r    io.ReaderAt
	good int
}

func (f *failsLater) ReadAt(p []byte, off int64) (int, error) {
	if off == 0 && len(p) < 60 {
		if f.good--; f.good < 0 {
			return 0, meta.ErrUnavailable
		}
	}
	return f.r.ReadAt(p, off)
}
