package archive

import (
	"archive/zip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The header before each entry of a zip, and what may stand behind its bytes.
const (
	localMagic, localBytes = 0x04034b50, 30
	describedMagic         = 0x08074b50
	maxDescribed           = 24
	describedLater         = 1 << 3 // the flag that says so
	zip64Field, pathField  = 0x0001, 0x7075
)

// headerReads is what is read at once of a header: most names and fields are shorter.
const headerReads = 512

// local is the header before an entry.
type local struct {
	name          string
	flags, method uint16
	crc           uint32
	packed, plain uint64
	data          int64 // where the bytes begin
}

// checkHeaders compares the header before each entry with the list of entries, which begins
// at the offset from: some readers go by the one, those that unpack while they download by
// the other, and a zip in which they differ is two archives. So the entries stand one behind
// the other, from the first byte to the list, and nothing between them.
//
// Memory is that of one header, up to 128 KiB.
//
// Errors: meta.ErrInvalid; of r.
func checkHeaders(r io.ReaderAt, from int64, entries map[string]*zip.File) error {
	at, buf := int64(0), make([]byte, headerReads)
	for range entries {
		h, err := readHeader(r, at, from, &buf)
		if err != nil {
			return err
		}
		f := entries[h.name]
		if f == nil {
			return refuse("it has %.80q, which is not in its list of entries", h.name)
		}
		data, err := f.DataOffset()
		if err != nil && !errors.Is(err, zip.ErrFormat) && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the header of a zip's entry: %w", err)
		}
		if err != nil || data != h.data {
			return refuse("%.80q is not where its list of entries says", f.Name)
		}
		if err := h.compare(f); err != nil {
			return err
		}
		if f.CompressedSize64 > uint64(from-data) {
			return refuse("the bytes of %.80q reach into its list of entries", f.Name)
		}
		at = data + int64(f.CompressedSize64)
		if h.flags&describedLater != 0 {
			n, err := described(r, at, from, f)
			if err != nil {
				return err
			}
			at += n
		}
	}
	if at != from {
		return refuse("there is something that is not in its list of entries")
	}
	return nil
}

// readHeader reads the header at an offset; buf is made longer where it has to be.
func readHeader(r io.ReaderAt, at, from int64, buf *[]byte) (h local, err error) {
	read := func(n int64) ([]byte, error) {
		if n > from-at {
			return nil, refuse("something stands where an entry should, at byte %d", at)
		}
		if n > int64(len(*buf)) {
			*buf = make([]byte, n)
		}
		b := (*buf)[:n]
		if got, err := r.ReadAt(b, at); got < len(b) {
			return nil, fmt.Errorf("read the header of a zip's entry: %w", err)
		}
		return b, nil
	}
	b, err := read(max(localBytes, min(headerReads, from-at)))
	if err != nil {
		return h, err
	}
	le := binary.LittleEndian
	if le.Uint32(b) != localMagic {
		return h, refuse("something stands where an entry should, at byte %d", at)
	}
	names, fields := int64(le.Uint16(b[26:])), int64(le.Uint16(b[28:]))
	if whole := localBytes + names + fields; whole > int64(len(b)) {
		if b, err = read(whole); err != nil {
			return h, err
		}
	}
	h = local{
		name: string(b[localBytes : localBytes+names]), flags: le.Uint16(b[6:]), method: le.Uint16(b[8:]), crc: le.Uint32(b[14:]),
		packed: uint64(le.Uint32(b[18:])), plain: uint64(le.Uint32(b[22:])), data: at + localBytes + names + fields,
	}
	extra := b[localBytes+names:][:fields]
	if large := field(extra, zip64Field); large != nil {
		for _, size := range []*uint64{&h.plain, &h.packed} {
			if *size == 0xffffffff && len(large) >= 8 {
				*size, large = le.Uint64(large), large[8:]
			}
		}
	}
	return h, renames(extra, h.name)
}

// compare says whether a header says the same as the list. What is said behind the bytes
// only may be left out of it.
func (h local) compare(f *zip.File) error {
	later := h.flags&describedLater != 0
	same := func(here, listed uint64) bool { return here == listed || later && here == 0 }
	if h.method != f.Method || !same(uint64(h.crc), uint64(f.CRC32)) || !same(h.packed, f.CompressedSize64) || !same(h.plain, f.UncompressedSize64) {
		return refuse("the header of %.80q has another method, size or checksum than its list of entries", f.Name)
	}
	return renames(f.Extra, f.Name)
}

// described returns how long the record is that says, behind the bytes of an entry, what
// they are; writers leave out its magic, or have longer sizes.
func described(r io.ReaderAt, at, from int64, f *zip.File) (int64, error) {
	b := make([]byte, min(maxDescribed+4, from-at))
	if n, err := r.ReadAt(b, at); n < len(b) {
		return 0, fmt.Errorf("read what follows a zip's entry: %w", err)
	}
	le := binary.LittleEndian
	for _, form := range []struct{ magic, size int }{{4, 4}, {4, 8}, {0, 4}, {0, 8}} {
		n := form.magic + 4 + 2*form.size
		if len(b) < n || form.magic > 0 && le.Uint32(b) != describedMagic {
			continue
		}
		sizes := b[form.magic+4:]
		packed, plain := uint64(le.Uint32(sizes)), uint64(le.Uint32(sizes[4:]))
		if form.size == 8 {
			packed, plain = le.Uint64(sizes), le.Uint64(sizes[8:])
		}
		// What follows tells short sizes of which one is 0 from long ones.
		next := int64(n) == from-at || len(b) >= n+4 && le.Uint32(b[n:]) == localMagic
		if next && le.Uint32(b[form.magic:]) == f.CRC32 && packed == f.CompressedSize64 && plain == f.UncompressedSize64 {
			return int64(n), nil
		}
	}
	return 0, refuse("what follows the bytes of %.80q has another size or checksum than its list of entries", f.Name)
}

// renames refuses a second name of an entry among its extra fields (Info-ZIP's Unicode
// path), by which only some readers go.
func renames(extra []byte, name string) error {
	if second := field(extra, pathField); second != nil && (len(second) < 5 || string(second[5:]) != name) {
		return refuse("the entry %.80q has a second name", name)
	}
	return nil
}

// field returns the first extra field with an id, nil when there is none.
func field(extra []byte, id uint16) []byte {
	for len(extra) >= 4 {
		n := int(binary.LittleEndian.Uint16(extra[2:]))
		if n > len(extra)-4 {
			return nil
		}
		if binary.LittleEndian.Uint16(extra) == id {
			return extra[4 : 4+n]
		}
		extra = extra[4+n:]
	}
	return nil
}
