package rpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"unicode/utf8"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of what is read of an .rpm. The largest header of a distribution, that of its
// firmware or its fonts, has a few MB.
const (
	maxHeader    = 32 << 20
	maxSignature = 1 << 20
	maxTags      = 0xffff
	maxFiles     = 500_000
	maxRelations = 100_000
	leadBytes    = 96
)

func refuse(format string, args ...any) error {
	return fmt.Errorf("rpm: %s: %w", fmt.Sprintf(format, args...), meta.ErrInvalid)
}

// Tags of the header (rpmtag.h).
const (
	tagName        = 1000
	tagVersion     = 1001
	tagRelease     = 1002
	tagEpoch       = 1003
	tagSummary     = 1004
	tagDescription = 1005
	tagBuildTime   = 1006
	tagBuildHost   = 1007
	tagSize        = 1009
	tagVendor      = 1011
	tagLicense     = 1014
	tagPackager    = 1015
	tagGroup       = 1016
	tagURL         = 1020
	tagArch        = 1022
	tagOldFiles    = 1027
	tagFileModes   = 1030
	tagFileFlags   = 1037
	tagSourceRPM   = 1044
	tagArchiveSize = 1046
	tagLogTime     = 1080
	tagLogName     = 1081
	tagLogText     = 1082
	tagDirIndexes  = 1116
	tagBaseNames   = 1117
	tagDirNames    = 1118
	tagLongArchive = 271
	tagLongSize    = 5009

	sigPayloadSize = 1007
)

// Types of values.
const (
	typeChar   = 1
	typeInt8   = 2
	typeInt16  = 3
	typeInt32  = 4
	typeInt64  = 5
	typeString = 6
	typeBinary = 7
	typeArray  = 8
	typeI18N   = 9
)

// header is a header of an .rpm: an index of tags, each with a value in the store.
type header struct {
	tags  map[uint32]entry
	store []byte
	// start and end are where it lies in the file.
	start, end int64
}

type entry struct{ kind, offset, count uint32 }

// file is what is read of an .rpm: its header, its size, and that of what it unpacks to.
type file struct {
	header
	size    int64
	payload uint64
}

// readRPM reads the headers of an .rpm of size bytes (RPM v3 and v4 files). reserve takes
// a budget of memory before that much is read.
//
// Errors: meta.ErrInvalid; of r and reserve.
func readRPM(r io.Reader, size int64, reserve func(bytes int64) error) (*file, error) {
	var lead [leadBytes]byte
	if _, err := io.ReadFull(r, lead[:]); err != nil || string(lead[:4]) != "\xed\xab\xee\xdb" {
		return nil, broken(err, "it has no lead, so it is no .rpm")
	}
	f := &file{size: size}
	at := int64(leadBytes)
	sig, err := readHeader(r, &at, size, maxSignature, nil)
	if err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	f.payload, _ = sig.number(sigPayloadSize)
	if pad := (8 - at%8) % 8; pad > 0 {
		if _, err := io.CopyN(io.Discard, r, pad); err != nil {
			return nil, broken(err, "it ends behind the signature")
		}
		at += pad
	}
	h, err := readHeader(r, &at, size, maxHeader, reserve)
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if at >= size {
		return nil, refuse("it has no payload")
	}
	f.header = *h
	return f, nil
}

// broken is a refusal for what ended early, and else the error of the reader.
func broken(err error, what string) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refuse("%s", what)
	}
	return fmt.Errorf("read an .rpm: %w", err)
}

// readHeader reads a header that begins at at, and moves at behind it.
func readHeader(r io.Reader, at *int64, size, most int64, reserve func(int64) error) (*header, error) {
	var intro [16]byte
	if _, err := io.ReadFull(r, intro[:]); err != nil {
		return nil, broken(err, "it ends where a header begins")
	}
	if string(intro[:4]) != "\x8e\xad\xe8\x01" {
		return nil, refuse("at byte %d is no header", *at)
	}
	count, length := int64(binary.BigEndian.Uint32(intro[8:])), int64(binary.BigEndian.Uint32(intro[12:]))
	if count > maxTags || count*16+length > most || *at+16+count*16+length > size {
		return nil, refuse("a header of %d tags and %d bytes in a file of %d", count, length, size)
	}
	if reserve != nil {
		if err := reserve(count*16 + length); err != nil {
			return nil, err
		}
	}
	body := make([]byte, count*16+length)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, broken(err, "it ends in a header")
	}
	h := &header{tags: make(map[uint32]entry, count), store: body[count*16:], start: *at}
	*at += 16 + int64(len(body))
	h.end = *at
	for i := range count {
		b := body[i*16:]
		h.tags[binary.BigEndian.Uint32(b)] = entry{
			kind: binary.BigEndian.Uint32(b[4:]), offset: binary.BigEndian.Uint32(b[8:]), count: binary.BigEndian.Uint32(b[12:]),
		}
	}
	return h, nil
}

// value returns the bytes from where a tag's value begins.
func (h *header) value(tag uint32) (entry, []byte) {
	e, ok := h.tags[tag]
	if !ok || int64(e.offset) > int64(len(h.store)) {
		return entry{}, nil
	}
	return e, h.store[e.offset:]
}

// texts returns up to most strings of a tag; what is not UTF-8 is made so.
//
// Errors: meta.ErrInvalid when there are more, or they do not end.
func (h *header) texts(tag uint32, most int) ([]string, error) {
	e, b := h.value(tag)
	if e.kind != typeString && e.kind != typeArray && e.kind != typeI18N {
		return nil, nil
	}
	if int64(e.count) > int64(most) {
		return nil, refuse("tag %d has %d values, at most %d", tag, e.count, most)
	}
	out := make([]string, 0, min(int(e.count), len(b)))
	for range e.count {
		end := 0
		for end < len(b) && b[end] != 0 {
			end++
		}
		if end == len(b) {
			return nil, refuse("tag %d does not end", tag)
		}
		s := string(b[:end])
		if !utf8.ValidString(s) { // Latin-1 in old packages
			runes := make([]rune, end)
			for i, c := range b[:end] {
				runes[i] = rune(c)
			}
			s = string(runes)
		}
		out, b = append(out, s), b[end+1:]
	}
	return out, nil
}

// text returns the first string of a tag, "" when there is none.
func (h *header) text(tag uint32) string {
	e, _ := h.value(tag)
	if e.count == 0 {
		return ""
	}
	// The first of translations is that of the C locale.
	first := header{tags: map[uint32]entry{tag: {e.kind, e.offset, 1}}, store: h.store}
	all, err := first.texts(tag, 1)
	if err != nil || len(all) == 0 {
		return ""
	}
	return all[0]
}

// numbers returns up to most numbers of a tag.
//
// Errors: meta.ErrInvalid when there are more, or the store ends before.
func (h *header) numbers(tag uint32, most int) ([]uint64, error) {
	e, b := h.value(tag)
	width := map[uint32]int{typeChar: 1, typeInt8: 1, typeInt16: 2, typeInt32: 4, typeInt64: 8}[e.kind]
	if width == 0 {
		return nil, nil
	}
	if int64(e.count) > int64(most) || int64(e.count)*int64(width) > int64(len(b)) {
		return nil, refuse("tag %d has %d values, at most %d", tag, e.count, most)
	}
	out := make([]uint64, e.count)
	for i := range out {
		switch v := b[i*width:]; width {
		case 1:
			out[i] = uint64(v[0])
		case 2:
			out[i] = uint64(binary.BigEndian.Uint16(v))
		case 4:
			out[i] = uint64(binary.BigEndian.Uint32(v))
		case 8:
			out[i] = binary.BigEndian.Uint64(v)
		}
	}
	return out, nil
}

// number returns the first number of a tag.
func (h *header) number(tag uint32) (uint64, bool) {
	e, _ := h.value(tag)
	if e.count == 0 {
		return 0, false
	}
	first := header{tags: map[uint32]entry{tag: {e.kind, e.offset, 1}}, store: h.store}
	all, err := first.numbers(tag, 1)
	if err != nil || len(all) == 0 {
		return 0, false
	}
	return all[0], true
}

// nevra is what a package is called.
type nevra struct {
	Name, Version, Release, Arch string
	Epoch                        uint64
}

var (
	nameSyntax = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}$`)
	partSyntax = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~^]{0,127}$`)
	archSyntax = regexp.MustCompile(`^[a-z0-9_]{1,32}$`)
)

// names returns what the package is called.
//
// Errors: meta.ErrInvalid.
func (f *file) names() (nevra, error) {
	n := nevra{Name: f.text(tagName), Version: f.text(tagVersion), Release: f.text(tagRelease), Arch: f.text(tagArch)}
	n.Epoch, _ = f.number(tagEpoch)
	if _, binary := f.tags[tagSourceRPM]; !binary {
		n.Arch = "src"
	}
	return n, n.check()
}

func (n nevra) check() error {
	if !nameSyntax.MatchString(n.Name) || !partSyntax.MatchString(n.Version) || !partSyntax.MatchString(n.Release) || !archSyntax.MatchString(n.Arch) {
		return refuse("name %.80q, version %.80q, release %.80q or architecture %.80q is none", n.Name, n.Version, n.Release, n.Arch)
	}
	return nil
}

// version is the name of the version: without the epoch, as file names have it.
func (n nevra) version() string { return n.Version + "-" + n.Release + "." + n.Arch }

func (n nevra) fileName() string { return n.Name + "-" + n.version() + ".rpm" }
