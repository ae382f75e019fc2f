package archive_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/gateway/archive/archivetest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func tgzOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range headers {
		if h.Name == "" && h.Typeflag == 0 { // one tar ends, another begins
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			w = tar.NewWriter(z)
			continue
		}
		if h.Typeflag != tar.TypeXGlobalHeader {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var small = archive.Limits{Entries: 4, DirectoryBytes: 1 << 10, PlainBytes: 1 << 20, Ratio: 10, FreeBytes: 4 << 10}

func open(b []byte) (*zip.Reader, error) {
	return archive.Zip(archive.ReaderAt(bytes.NewReader(b)), int64(len(b)), small)
}

func TestZip(t *testing.T) {
	z, err := open(archivetest.Zip(t, "a/b.txt", "hello", "c", ""))
	if err != nil || len(z.File) != 2 {
		t.Fatal(z, err)
	}
	if b, err := archive.Read(z.File[0], 5); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := archive.Read(z.File[0], 4); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("over the limit: %v", err)
	}
}

func TestZipRefused(t *testing.T) {
	whole := archivetest.Zip(t, "a", "hello")
	claims := bytes.Clone(whole)
	binary.LittleEndian.PutUint16(claims[len(claims)-12:], 60_000) // entries
	for name, b := range map[string][]byte{
		"empty":             {},
		"no zip":            []byte(strings.Repeat("x", 100)),
		"cut off":           whole[:len(whole)-1],
		"up":                archivetest.Zip(t, "a/../../b", ""),
		"up, Windows":       archivetest.Zip(t, `a\..\..\b`, ""),
		"absolute":          archivetest.Zip(t, "/etc/passwd", ""),
		"drive":             archivetest.Zip(t, "C:x", ""),
		"twice":             archivetest.Zip(t, "a", "1", "a", "2"),
		"too many":          archivetest.Zip(t, "1", "", "2", "", "3", "", "4", "", "5", ""),
		"claims too many":   claims,
		"bomb":              archivetest.Zip(t, "a", strings.Repeat("\x00", 1<<19)),
		"too large":         archivetest.Zip(t, "a", strings.Repeat("\x00", 1<<20+1)),
		"a large directory": archivetest.Zip(t, strings.Repeat("n", 2000), ""),
	} {
		if _, err := open(b); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Readers find the list of entries by its offset, or right before the end: a zip with
// another list at either place is two archives. The list is not read further than its end
// says it is.
func TestZipUnderstates(t *testing.T) {
	var files []string
	for i := range 2000 {
		files = append(files, strings.Repeat("n", 200+i), "")
	}
	b := archivetest.Zip(t, files...)
	end := len(b) - 22
	binary.LittleEndian.PutUint16(b[end+8:], 0)
	binary.LittleEndian.PutUint16(b[end+10:], 0)
	binary.LittleEndian.PutUint32(b[end+12:], 46)
	_, err := archive.Zip(archive.ReaderAt(bytes.NewReader(b)), int64(len(b)), archive.Standard)
	if !errors.Is(err, meta.ErrInvalid) || !strings.Contains(err.Error(), "does not lie before its end") {
		t.Error(err)
	}
	// One list is at the offset, another before the end.
	one, other := archivetest.Zip(t, "a", "1"), archivetest.Zip(t, "b", "22")
	at := len(other) - 22
	size := binary.LittleEndian.Uint32(other[at+12:])
	offset := binary.LittleEndian.Uint32(other[at+16:])
	two := slices.Concat(one[:len(one)-22], []byte{0}, other[offset:])
	copy(two[len(two)-22+16:], one[len(one)-22+16:len(one)-22+20])
	if binary.LittleEndian.Uint32(two[len(two)-10:]) != size {
		t.Fatal("the size of the list is not where it is thought to be")
	}
	for name, b := range map[string][]byte{"two lists": two, "data in front": slices.Concat([]byte("#!/bin/sh\n"), one)} {
		if _, err := open(b); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A zip that says it has 2^62 entries in its zip64 end must not be believed.
func TestZip64Claims(t *testing.T) {
	end64 := make([]byte, 56)
	binary.LittleEndian.PutUint32(end64, 0x06064b50)
	binary.LittleEndian.PutUint64(end64[4:], 44)
	binary.LittleEndian.PutUint64(end64[24:], 1<<62)
	binary.LittleEndian.PutUint64(end64[32:], 1<<62)
	locator := make([]byte, 20)
	binary.LittleEndian.PutUint32(locator, 0x07064b50)
	binary.LittleEndian.PutUint32(locator[16:], 1)
	end := make([]byte, 22)
	binary.LittleEndian.PutUint32(end, 0x06054b50)
	for i := 8; i < 20; i++ {
		end[i] = 0xff
	}
	b := append(append(end64, locator...), end...)
	if _, err := open(b); !errors.Is(err, meta.ErrInvalid) {
		t.Error(err)
	}
}

// archive/zip takes a directory of 0xffff bytes for one whose size the zip64 end says, and
// sets memory aside for as many entries as that claims.
func TestZip64Half(t *testing.T) {
	end64 := make([]byte, 56)
	binary.LittleEndian.PutUint32(end64, 0x06064b50)
	binary.LittleEndian.PutUint64(end64[4:], 44)
	binary.LittleEndian.PutUint64(end64[24:], 1000)
	binary.LittleEndian.PutUint64(end64[32:], 1000)
	locator := make([]byte, 20)
	binary.LittleEndian.PutUint32(locator, 0x07064b50)
	binary.LittleEndian.PutUint64(locator[8:], 64<<10)
	binary.LittleEndian.PutUint32(locator[16:], 1)
	end := make([]byte, 22)
	binary.LittleEndian.PutUint32(end, 0x06054b50)
	binary.LittleEndian.PutUint32(end[12:], 0xffff)
	b := slices.Concat(make([]byte, 64<<10), end64, locator, end)
	if n, err := archive.DirectoryBytes(bytes.NewReader(b), int64(len(b)), archive.Limits{Entries: 999, DirectoryBytes: 1 << 20}); !errors.Is(err, meta.ErrInvalid) {
		t.Error(n, err)
	}
}

func read(b []byte, size int64) (names []string, err error) {
	err = archive.TarGz(bytes.NewReader(b), size, small, func(h *tar.Header, r io.Reader) error {
		names = append(names, h.Name)
		n, err := io.Copy(io.Discard, r)
		if err == nil && n != h.Size {
			err = errors.New("another size")
		}
		return err
	})
	return names, err
}

func TestTarGz(t *testing.T) {
	b := tgzOf(t, tar.Header{Name: "a/", Typeflag: tar.TypeDir}, tar.Header{Name: "a/b", Size: 100},
		tar.Header{Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "../c"})
	if names, err := read(b, int64(len(b))); err != nil || len(names) != 1 || names[0] != "a/b" {
		t.Errorf("%q, %v", names, err)
	}
	for name, b := range map[string][]byte{
		"empty":         {},
		"no gzip":       []byte("hello, world"),
		"cut off":       b[:len(b)-1],
		"wrong sum":     append(bytes.Clone(b[:len(b)-8]), make([]byte, 8)...),
		"up":            tgzOf(t, tar.Header{Name: "../a"}),
		"absolute":      tgzOf(t, tar.Header{Name: "/a"}),
		"link up":       tgzOf(t, tar.Header{Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "../../c"}),
		"link absolute": tgzOf(t, tar.Header{Name: "a/l", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}),
		"hard link up":  tgzOf(t, tar.Header{Name: "a/l", Typeflag: tar.TypeLink, Linkname: "../c"}),
		"device":        tgzOf(t, tar.Header{Name: "a", Typeflag: tar.TypeChar}),
		"too many":      tgzOf(t, tar.Header{Name: "1"}, tar.Header{Name: "2"}, tar.Header{Name: "3"}, tar.Header{Name: "4"}, tar.Header{Name: "5"}),
		"bomb":          tgzOf(t, tar.Header{Name: "a", Size: 1 << 19}),
		"too large":     tgzOf(t, tar.Header{Name: "a", Size: 1<<20 + 1}),
		// What other readers take for other entries than archive/tar does.
		"two tars":    tgzOf(t, tar.Header{Name: "a"}, tar.Header{}, tar.Header{Name: "b"}),
		"sparse":      sparse(t, "package/a", "package/package.json"),
		"global size": tgzOf(t, tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"size": "0"}}),
		"global path": tgzOf(t, tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "a"}}),
	} {
		if _, err := read(b, int64(len(b))); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The archives of git begin with a comment.
	b = tgzOf(t, tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "1234"}}, tar.Header{Name: "a"})
	if names, err := read(b, int64(len(b))); err != nil || len(names) != 1 {
		t.Errorf("%q, %v", names, err)
	}
}

// sparse is an archive whose only entry is called name by readers that know of sparse
// files, which archive/tar does not write.
func sparse(t *testing.T, plain, name string) []byte {
	t.Helper()
	var pax strings.Builder
	for _, record := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=" + name, "GNU.sparse.realsize=1"} {
		n := len(record) + 3 // a space, a line's end, one digit
		if n > 9 {
			n++
		}
		fmt.Fprintf(&pax, "%d %s\n", n, record)
	}
	raw := archivetest.Tar(t, "pax", pax.String(), plain, "1\n0\n1\n"+strings.Repeat("\x00", 506)+"x")
	raw[156] = tar.TypeXHeader
	sum := 0 // the header's own, its place taken for spaces
	for i, c := range raw[:512] {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int(c)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

type failing struct{ io.Reader }

func (f failing) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err == io.EOF {
		err = meta.ErrUnavailable
	}
	return n, err
}

// A disk that fails is not the archive's fault.
func TestTarGzSource(t *testing.T) {
	b := tgzOf(t, tar.Header{Name: "a", Size: 100})
	err := archive.TarGz(failing{bytes.NewReader(b[:20])}, -1, small, func(*tar.Header, io.Reader) error { return nil })
	if !errors.Is(err, meta.ErrUnavailable) || errors.Is(err, meta.ErrInvalid) {
		t.Error(err)
	}
	wrong := errors.New("no such thing")
	if err := archive.TarGz(bytes.NewReader(b), -1, small, func(*tar.Header, io.Reader) error { return wrong }); !errors.Is(err, wrong) {
		t.Error(err)
	}
}

func FuzzZip(f *testing.F) {
	f.Add(archivetest.Zip(f, "a/b", "hello"))
	f.Add([]byte("PK\x05\x06" + strings.Repeat("\x00", 18)))
	for _, zips := range []map[string][]byte{sound(f), confused()} {
		for _, b := range zips {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		z, err := open(b)
		if err != nil {
			return
		}
		for _, file := range z.File {
			if p, err := archive.Read(file, 1000); err == nil && len(p) > 1000 {
				t.Error("more than asked for")
			}
		}
	})
}

func FuzzTarGz(f *testing.F) {
	f.Add(tgzOf(f, tar.Header{Name: "a", Size: 10}))
	f.Fuzz(func(t *testing.T, b []byte) {
		read(b, int64(len(b)))
	})
}
