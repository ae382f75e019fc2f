package apt

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of what is read of a .deb. Debian's largest control archive has 1.5 MB, of
// checksums; its control files stay below 100 KB.
const (
	maxControlArchive = 16 << 20  // as stored
	maxControlPlain   = 64 << 20  // unpacked
	maxControl        = 256 << 10 // the file `control`
	maxControlEntries = 10_000
	maxDictionary     = 64 << 20 // of xz and zstd: xz -9
)

func refuse(format string, args ...any) error {
	return fmt.Errorf("deb: %s: %w", fmt.Sprintf(format, args...), meta.ErrInvalid)
}

// readDeb returns the control file of a Debian binary package (deb(5), format 2.0) of
// size bytes. It reads the members before the data, and of the data that they are there.
//
// Errors: meta.ErrInvalid; of r.
func readDeb(r io.ReadSeeker, size int64) ([]byte, error) {
	var magic [8]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil || string(magic[:]) != "!<arch>\n" {
		return nil, broken(err, "it is no ar archive, so no .deb")
	}
	at := int64(len(magic))
	name, length, err := nextMember(r, &at, size)
	if err != nil {
		return nil, err
	}
	if name != "debian-binary" || length < 4 || length > 64 {
		return nil, refuse("it does not begin with debian-binary")
	}
	version := make([]byte, length)
	if _, err := io.ReadFull(r, version); err != nil {
		return nil, broken(err, "it ends in debian-binary")
	}
	if !bytes.HasPrefix(version, []byte("2.")) {
		return nil, refuse("it is of format %q, 2.0 is known", bytes.TrimSpace(version))
	}
	if err := leave(r, &at, length, length); err != nil {
		return nil, err
	}
	if name, length, err = nextMember(r, &at, size); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(name, "control.tar") || length > maxControlArchive {
		return nil, refuse("behind debian-binary comes %q of %d bytes, not control.tar of at most %d", name, length, maxControlArchive)
	}
	control, err := readControlArchive(name, io.LimitReader(r, length))
	if err != nil {
		return nil, err
	}
	if _, err := r.Seek(at, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read a .deb: %w", err)
	}
	if err := leave(r, &at, length, 0); err != nil {
		return nil, err
	}
	for {
		if name, length, err = nextMember(r, &at, size); err != nil {
			return nil, err
		}
		if strings.HasPrefix(name, "data.tar") {
			return control, nil
		}
		if !strings.HasPrefix(name, "_") { // those are to be skipped
			return nil, refuse("behind control.tar comes %q, not data.tar", name)
		}
		if err := leave(r, &at, length, 0); err != nil {
			return nil, err
		}
	}
}

// broken is a refusal for what ended early, and else the error of the reader.
func broken(err error, what string) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return refuse("%s", what)
	}
	return fmt.Errorf("read a .deb: %w", err)
}

// nextMember reads the header of an ar member at at, which must lie within size bytes.
func nextMember(r io.Reader, at *int64, size int64) (name string, length int64, err error) {
	var h [60]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return "", 0, broken(err, "it has no data.tar")
	}
	*at += int64(len(h))
	if h[58] != '`' || h[59] != '\n' {
		return "", 0, refuse("a member's header at byte %d is none", *at-60)
	}
	length, err = strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
	if err != nil || length < 0 || length > size-*at {
		return "", 0, refuse("a member at byte %d says that it has %q bytes, the file has %d", *at-60, bytes.TrimSpace(h[48:58]), size)
	}
	return strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/"), length, nil
}

// leave goes from where a member's content begins, or read bytes into it, to the next
// header.
func leave(r io.Seeker, at *int64, length, read int64) error {
	*at += length + length%2
	if read == length && length%2 == 0 {
		return nil
	}
	if _, err := r.Seek(*at, io.SeekStart); err != nil {
		return fmt.Errorf("read a .deb: %w", err)
	}
	return nil
}

// readControlArchive returns the file `control` of a control.tar, compressed as its name
// says.
func readControlArchive(name string, r io.Reader) ([]byte, error) {
	switch suffix := strings.TrimPrefix(name, "control.tar"); suffix {
	case "":
	case ".gz":
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, refuse("%s: %v", name, err)
		}
		defer z.Close()
		r = z
	case ".xz":
		z, err := xz.NewReader(r, maxDictionary)
		if err != nil {
			return nil, refuse("%s: %v", name, err)
		}
		r = z
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxDictionary), zstd.WithDecoderMaxMemory(maxControlPlain))
		if err != nil {
			return nil, refuse("%s: %v", name, err)
		}
		defer z.Close()
		r = z
	default:
		return nil, refuse("%s is compressed in a way that is not known; use gzip, xz or zstd", name)
	}
	var control []byte
	t := tar.NewReader(io.LimitReader(r, maxControlPlain))
	for range maxControlEntries {
		h, err := t.Next()
		switch {
		case errors.Is(err, io.EOF) && control == nil:
			return nil, refuse("%s has no file control", name)
		case errors.Is(err, io.EOF):
			return control, nil
		case err != nil:
			return nil, refuse("%s: %v", name, err)
		case path.Clean("/"+h.Name) != "/control":
			continue
		case control != nil || h.Typeflag != tar.TypeReg:
			// dpkg unpacks all entries, so that the last one counts there.
			return nil, refuse("%s has control twice, or not as a file", name)
		case h.Size > maxControl:
			return nil, refuse("the control file has %d bytes, at most %d", h.Size, maxControl)
		}
		if control, err = io.ReadAll(t); err != nil {
			return nil, refuse("%s: %v", name, err)
		}
	}
	return nil, refuse("%s has more than %d entries", name, maxControlEntries)
}

// control is a package as its control file describes it.
type control struct {
	Package, Version, Architecture string
	// stanza is the file as Packages shows it: without the fields that the archive
	// writes, with a final newline and no empty line.
	stanza string
}

var (
	packageName  = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	version      = regexp.MustCompile(`^([0-9]{1,9}:)?[0-9A-Za-z][0-9A-Za-z.+~-]*$`)
	architecture = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
	fieldName    = regexp.MustCompile(`^[!-,./-9;-~][!-9;-~]*$`) // no colon, nor # or - in front
)

// ours are the fields of a stanza in Packages that the archive writes.
var ours = map[string]bool{
	"filename": true, "size": true, "md5sum": true, "sha1": true, "sha256": true, "sha512": true,
	"status": true, "conffiles": true, "msdos-filename": true,
}

// parseControl reads a control file: one paragraph of deb822(5).
//
// Errors: meta.ErrInvalid.
func parseControl(b []byte) (control, error) {
	var c control
	if !utf8.Valid(b) {
		return c, refuse("the control file is not UTF-8")
	}
	text := strings.Trim(string(b), "\n")
	var out strings.Builder
	seen := map[string]bool{}
	drop := false
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimRight(line, " \t\r")
		if strings.ContainsFunc(line, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }) {
			return c, refuse("the control file has control characters")
		}
		switch {
		case line == "":
			return c, refuse("the control file has an empty line: it is one paragraph")
		case line[0] == ' ' || line[0] == '\t':
			if len(seen) == 0 {
				return c, refuse("the control file begins with a continuation")
			}
			if !drop {
				out.WriteString(line + "\n")
			}
			continue
		case line[0] == '#':
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !fieldName.MatchString(name) {
			return c, refuse("the control file has a line that is no field: %.80q", line)
		}
		lower := strings.ToLower(name)
		if seen[lower] {
			return c, refuse("the control file has the field %s twice", name)
		}
		seen[lower], drop = true, ours[lower]
		value = strings.TrimSpace(value)
		switch lower {
		case "package":
			c.Package = value
		case "version":
			c.Version = value
		case "architecture":
			c.Architecture = value
		}
		if !drop {
			out.WriteString(name + ": " + value + "\n")
		}
	}
	switch {
	case !packageName.MatchString(c.Package):
		return c, refuse("package name %.80q: use lower-case letters, digits, + - and .", c.Package)
	case !version.MatchString(c.Version):
		return c, refuse("version %.80q is none of Debian's", c.Version)
	case !architecture.MatchString(c.Architecture) || c.Architecture == "source":
		return c, refuse("architecture %.80q is none of a binary package", c.Architecture)
	}
	c.stanza = out.String()
	return c, nil
}

// plainVersion is the version without its epoch, as file names have it.
func (c control) plainVersion() string {
	if _, after, ok := strings.Cut(c.Version, ":"); ok {
		return after
	}
	return c.Version
}

// fileName is the name that the package's file has in a pool.
func (c control) fileName() string {
	return c.Package + "_" + c.plainVersion() + "_" + c.Architecture + ".deb"
}
