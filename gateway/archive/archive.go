// Package archive opens the zip and tar.gz archives that people upload, as what they
// are: bytes of strangers. An archive is looked over whole before anything in it counts:
// every name stays inside, links too, what it unpacks to is bounded, and so is the memory
// that looking takes, whatever the archive says of itself. What readers take for
// different files is refused too.
//
// Start at Zip, TarGz and Limits. All refusals are meta.ErrInvalid. The package writes no
// file and starts no goroutines. Sources: APPNOTE.TXT 6.3.10 (sections 4.3.7 and 4.3.9, what
// stands around an entry of a zip, 4.3.14 to 4.3.16, its end, 4.6.9, second names), PEP 706
// (which entries leave the folder).
package archive

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Limits bound what an archive may be.
type Limits struct {
	// Entries is how many files and folders it may have.
	Entries int
	// DirectoryBytes bounds a zip's list of entries, which is held in memory at about
	// three times that.
	DirectoryBytes int64
	// PlainBytes is what it may unpack to.
	PlainBytes int64
	// Ratio bounds what it unpacks to as a multiple of its size, once that is over
	// FreeBytes: small archives of zeros are common.
	Ratio, FreeBytes int64
	// NoLinks refuses links in a tar.gz.
	NoLinks bool
}

// Standard suits packages of programs: large, but made of files.
var Standard = Limits{Entries: 100_000, DirectoryBytes: 16 << 20, PlainBytes: 16 << 30, Ratio: 200, FreeBytes: 256 << 20}

func refuse(format string, args ...any) error {
	return fmt.Errorf("archive: %s: %w", fmt.Sprintf(format, args...), meta.ErrInvalid)
}

// of judges the plain bytes of an archive of size bytes; size below 0 is not known.
func (l Limits) of(plain, size int64) error {
	if plain > l.PlainBytes || plain < 0 {
		return refuse("it unpacks to more than %d bytes", l.PlainBytes)
	}
	if size >= 0 && plain > l.FreeBytes && plain/l.Ratio > size {
		return refuse("%d bytes that unpack to %d are a bomb", size, plain)
	}
	return nil
}

// CheckName says whether a name stays inside the folder that an archive is unpacked
// into, on any system.
//
// Errors: meta.ErrInvalid.
func CheckName(name string) error {
	slashed := strings.ReplaceAll(name, `\`, "/")
	if name == "" || len(name) > 4096 || strings.ContainsRune(name, 0) || strings.HasPrefix(slashed, "/") || len(name) > 1 && name[1] == ':' {
		return refuse("the name %.80q is not a relative path", name)
	}
	for part := range strings.SplitSeq(slashed, "/") {
		if part == ".." {
			return refuse("the name %.80q leaves the folder", name)
		}
	}
	return nil
}

// ReaderAt reads from offsets of r, by one goroutine at a time.
func ReaderAt(r io.ReadSeeker) io.ReaderAt { return &readerAt{r: r, at: -1} }

type readerAt struct {
	r  io.ReadSeeker
	at int64 // where r stands, -1 for unknown
}

// ReadAt implements io.ReaderAt.
func (r *readerAt) ReadAt(p []byte, off int64) (int, error) {
	if r.at != off {
		if _, err := r.r.Seek(off, io.SeekStart); err != nil {
			r.at = -1
			return 0, fmt.Errorf("seek to %d: %w", off, err)
		}
	}
	n, err := io.ReadFull(r.r, p)
	r.at = off + int64(n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// Zip opens a zip archive of size bytes. Its list of entries and the header before each of
// them are read and judged, its files are not: read them with Read, or Copy what they have.
//
// Errors: meta.ErrInvalid; of r.
func Zip(r io.ReaderAt, size int64, l Limits) (*zip.Reader, error) {
	list, err := findList(r, size, l)
	if err != nil {
		return nil, err
	}
	// The list is read for as long as it goes on, whatever its end says of it.
	b := &budget{r: r, size: size, left: list.bytes + endReads}
	z, err := zip.NewReader(b, size)
	b.left = -1
	if errors.Is(err, zip.ErrFormat) || errors.Is(err, zip.ErrInsecurePath) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, refuse("it is not a whole zip")
	}
	if err != nil {
		return nil, fmt.Errorf("read the directory of a zip: %w", err)
	}
	if len(z.File) > l.Entries {
		return nil, refuse("%d entries are over the limit of %d", len(z.File), l.Entries)
	}
	// Some readers go by the number of entries, others by the length of their list.
	if uint64(len(z.File)) != list.records {
		return nil, refuse("it has %d entries, and says that it has %d", len(z.File), list.records)
	}
	plain, seen := int64(0), make(map[string]*zip.File, len(z.File))
	for _, f := range z.File {
		if err := CheckName(f.Name); err != nil {
			return nil, err
		}
		if seen[f.Name] != nil {
			return nil, refuse("the name %.80q comes twice", f.Name)
		}
		seen[f.Name] = f
		if f.UncompressedSize64 > uint64(l.PlainBytes) {
			return nil, refuse("it unpacks to more than %d bytes", l.PlainBytes)
		}
		plain += int64(f.UncompressedSize64)
		if err := l.of(plain, size); err != nil {
			return nil, err
		}
	}
	if err := checkHeaders(r, list.from, seen); err != nil {
		return nil, err
	}
	return z, nil
}

// endReads is what is read of a zip besides its list of entries, to find that.
const endReads = 256 << 10

// budget ends what reads more than it may, or where a zip of its size has nothing; below 0
// left is no bound.
type budget struct {
	r          io.ReaderAt
	size, left int64
}

// ReadAt implements io.ReaderAt.
func (b *budget) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= b.size {
		return 0, io.EOF
	}
	if b.left >= 0 {
		if int64(len(p)) > b.left {
			return 0, refuse("its directory is longer than it says")
		}
		b.left -= int64(len(p))
	}
	return b.r.ReadAt(p, off)
}

// The records at the end of a zip.
const (
	endMagic, endBytes         = 0x06054b50, 22
	locatorMagic, locatorBytes = 0x07064b50, 20
	end64Magic, end64Bytes     = 0x06064b50, 56
	maxComment                 = 1<<16 - 1
)

// DirectoryBytes judges what the end of a zip says of its list of entries, before memory
// is set aside for it, and returns how long that is. Zip does so by itself; who wants to
// reserve the memory asks first.
//
// Errors: meta.ErrInvalid; of r.
func DirectoryBytes(r io.ReaderAt, size int64, l Limits) (int64, error) {
	list, err := findList(r, size, l)
	return list.bytes, err
}

// listing is where a zip's list of entries lies, and what its end says of it.
type listing struct {
	from, bytes int64
	records     uint64
}

func findList(r io.ReaderAt, size int64, l Limits) (listing, error) {
	tail := make([]byte, min(size, endBytes+maxComment+locatorBytes))
	from := size - int64(len(tail))
	if n, err := r.ReadAt(tail, from); n < len(tail) {
		return listing{}, fmt.Errorf("read the end of a zip: %w", err)
	}
	at := -1
	for i := len(tail) - endBytes; i >= 0; i-- {
		if binary.LittleEndian.Uint32(tail[i:]) == endMagic && i+endBytes+int(binary.LittleEndian.Uint16(tail[i+20:])) <= len(tail) {
			at = i
			break
		}
	}
	if at < 0 {
		return listing{}, refuse("it is not a zip")
	}
	// Some readers take the last end in the file, whether its comment fits or not.
	if at+endBytes+int(binary.LittleEndian.Uint16(tail[at+20:])) != len(tail) || strings.Contains(string(tail[at+4:]), "PK\x05\x06") {
		return listing{}, refuse("something follows its end, or looks like another")
	}
	records := uint64(binary.LittleEndian.Uint16(tail[at+10:]))
	bytes := uint64(binary.LittleEndian.Uint32(tail[at+12:]))
	offset := uint64(binary.LittleEndian.Uint32(tail[at+16:]))
	behind := uint64(from) + uint64(at) // what the list of entries should lie before
	// Some readers believe a zip64 end wherever there is one, others where this end refers to it.
	if locator := at - locatorBytes; locator >= 0 && binary.LittleEndian.Uint32(tail[locator:]) == locatorMagic {
		place := binary.LittleEndian.Uint64(tail[locator+8:])
		end := make([]byte, end64Bytes)
		if size < end64Bytes || place > uint64(size-end64Bytes) {
			return listing{}, refuse("its end lies outside")
		}
		if n, err := r.ReadAt(end, int64(place)); n < len(end) {
			return listing{}, fmt.Errorf("read the end of a zip: %w", err)
		}
		length := binary.LittleEndian.Uint64(end[4:])
		if binary.LittleEndian.Uint32(end) != end64Magic || length > uint64(size) || place+12+length != uint64(from)+uint64(locator) {
			return listing{}, refuse("its end is not where it says")
		}
		short := [3]uint64{records, bytes, offset}
		records, bytes, offset = binary.LittleEndian.Uint64(end[32:]), binary.LittleEndian.Uint64(end[40:]), binary.LittleEndian.Uint64(end[48:])
		for i, long := range [3]uint64{records, bytes, offset} {
			if short[i] != long && short[i] != [3]uint64{0xffff, 0xffffffff, 0xffffffff}[i] {
				return listing{}, refuse("it has two ends that differ")
			}
		}
		behind = place
	}
	if records > uint64(l.Entries) || bytes > uint64(l.DirectoryBytes) {
		return listing{}, refuse("a directory of %d entries in %d bytes is over the limits of %d and %d", records, bytes, l.Entries, l.DirectoryBytes)
	}
	// Some readers take the list at the offset, others the one before the end.
	if bytes > behind || offset != behind-bytes {
		return listing{}, refuse("its directory does not lie before its end")
	}
	return listing{from: int64(offset), bytes: int64(bytes), records: records}, nil
}

// Read returns a file of a zip, of at most maxBytes, its checksum checked.
//
// Errors: meta.ErrInvalid.
func Read(f *zip.File, maxBytes int64) ([]byte, error) {
	if f.UncompressedSize64 > uint64(maxBytes) {
		return nil, refuse("%.80q is over the limit of %d bytes", f.Name, maxBytes)
	}
	r, err := f.Open()
	if err != nil {
		return nil, refuse("open %.80q: %v", f.Name, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxBytes+1))
	if err != nil {
		return nil, refuse("read %.80q: %v", f.Name, err)
	}
	if int64(len(b)) > maxBytes {
		return nil, refuse("%.80q is over the limit of %d bytes", f.Name, maxBytes)
	}
	return b, nil
}

// TarGz reads a gzipped tar of size bytes (-1: not known) to its end and calls visit for
// each regular file; r has its bytes and ends with visit. Names that come twice are
// refused when visit has read one of them.
//
// Errors: meta.ErrInvalid; of visit; of the source, when reading it fails otherwise than by its end.
func TarGz(source io.Reader, size int64, l Limits, visit func(h *tar.Header, r io.Reader) error) error {
	raw := &watched{r: source}
	broken := func(err error) error {
		if raw.err != nil {
			return fmt.Errorf("read an archive: %w", raw.err)
		}
		if errors.Is(err, meta.ErrInvalid) {
			return err
		}
		return refuse("it is not a whole tar.gz: %v", err)
	}
	z, err := gzip.NewReader(bufio.NewReader(raw))
	if err != nil {
		return broken(err)
	}
	plain := &counted{r: z, limits: l, size: size}
	t := tar.NewReader(plain)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return broken(err)
		}
		if n == l.Entries {
			return refuse("more than %d entries", l.Entries)
		}
		if err := checkEntry(h); err != nil {
			return err
		}
		if l.NoLinks && (h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink) {
			return refuse("the entry %.80q is a link", h.Name)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := visit(h, t); err != nil {
			if raw.err != nil || plain.err != nil {
				return broken(err)
			}
			return err
		}
	}
	// What follows the end of the tar is padding; the checksum of the whole stands behind it.
	if _, err := io.Copy(padding{}, plain); err != nil {
		return broken(err)
	}
	return nil
}

// padding takes zeros only: some readers go on behind the end of a tar, and would find
// other files than were looked at.
type padding struct{}

// Write implements io.Writer.
func (padding) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != 0 {
			return 0, refuse("something follows the end of the tar")
		}
	}
	return len(p), nil
}

// checkEntry refuses what leaves the folder, what is neither file, folder nor link, and
// what readers take for different files: sparse ones, which few know of, and global headers
// that change those behind them, which archive/tar passes over.
func checkEntry(h *tar.Header) error {
	for name := range h.PAXRecords {
		if strings.HasPrefix(name, "GNU.sparse.") {
			return refuse("the entry %.80q is a sparse file", h.Name)
		}
	}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		for _, name := range []string{"path", "linkpath", "size"} {
			if h.PAXRecords[name] != "" {
				return refuse("a global header changes the %s of what follows", name)
			}
		}
		return nil
	case tar.TypeReg, tar.TypeDir:
		return CheckName(h.Name)
	case tar.TypeSymlink, tar.TypeLink:
		if err := CheckName(h.Name); err != nil {
			return err
		}
		target := strings.ReplaceAll(h.Linkname, `\`, "/")
		if h.Typeflag == tar.TypeSymlink {
			if strings.HasPrefix(target, "/") || len(target) > 1 && target[1] == ':' {
				return refuse("the link %.80q leaves the folder", h.Name)
			}
			target = path.Join(path.Dir(path.Clean(h.Name)), target)
		}
		if target == ".." || strings.HasPrefix(target, "../") {
			return refuse("the link %.80q leaves the folder", h.Name)
		}
		return CheckName(target)
	}
	return refuse("the entry %.80q is neither a file, a folder nor a link", h.Name)
}

// watched remembers how reading failed, which is not the archive's fault.
type watched struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (s *watched) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// counted ends what unpacks to too much.
type counted struct {
	r      io.Reader
	limits Limits
	size   int64
	n      int64
	err    error
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if over := c.limits.of(c.n, c.size); over != nil {
		c.err = over
		return 0, over
	}
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}
