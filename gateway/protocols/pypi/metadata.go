package pypi

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"path"
	"strings"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxMetadata bounds a METADATA or PKG-INFO, the description included, in bytes.
const maxMetadata = 2 << 20

// core is what the core metadata of a distribution say.
type core struct {
	metadataVersion, name, version, requiresPython string
}

// inspect opens a distribution of size bytes and returns its core metadata and the file
// that they stand in.
//
// Errors: meta.ErrInvalid; of r.
func inspect(r io.ReadSeeker, size int64, f filename, name string) (core, []byte, error) {
	var raw []byte
	var err error
	switch {
	case f.kind == wheel:
		raw, err = inspectWheel(r, size, f)
	case strings.HasSuffix(name, ".zip"):
		raw, err = inspectZip(r, size)
	default:
		raw, err = inspectTar(r, size)
	}
	if err != nil {
		return core{}, nil, fmt.Errorf("%s: %w", name, err)
	}
	c, err := parseCore(raw)
	if err != nil {
		return c, nil, fmt.Errorf("%s: %w", name, err)
	}
	if project, err := normalize(c.name); err != nil || project != f.project {
		return c, nil, fmt.Errorf("%s: its metadata say that it is %.100q: %w", name, c.name, meta.ErrInvalid)
	}
	if v, err := version(c.version); err != nil || v != f.version {
		return c, nil, fmt.Errorf("%s: its metadata say that it is version %.100q: %w", name, c.version, meta.ErrInvalid)
	}
	return c, raw, nil
}

// inspectWheel finds NAME-VERSION.dist-info/METADATA (PEP 427), and that it is a wheel.
func inspectWheel(r io.ReadSeeker, size int64, f filename) ([]byte, error) {
	z, err := archive.Zip(archive.ReaderAt(r), size, archive.Standard)
	if err != nil {
		return nil, err
	}
	var info, mark *zip.File
	for _, e := range z.File {
		dir, base := path.Split(e.Name)
		dir, isInfo := strings.CutSuffix(dir, ".dist-info/")
		if !isInfo || strings.Contains(dir, "/") || !sameStem(dir, f) {
			continue
		}
		switch base {
		case "METADATA":
			if info != nil {
				return nil, fmt.Errorf("it has more than one METADATA: %w", meta.ErrInvalid)
			}
			info = e
		case "WHEEL":
			mark = e
		}
	}
	if info == nil || mark == nil {
		return nil, fmt.Errorf("it has no METADATA and WHEEL in %s.dist-info: %w", f.stem, meta.ErrInvalid)
	}
	return archive.Read(info, maxMetadata)
}

// sameStem compares the folder NAME-VERSION with the file's: tools spell them in
// different ways.
func sameStem(dir string, f filename) bool {
	cut := strings.LastIndexByte(dir, '-')
	if cut < 0 {
		return false
	}
	project, err := normalize(dir[:cut])
	if err != nil || project != f.project {
		return false
	}
	v, err := version(dir[cut+1:])
	return err == nil && v == f.version
}

// topInfo says whether a path is the PKG-INFO of the one folder at the top of a source
// distribution.
func topInfo(name string) bool {
	name = strings.TrimPrefix(name, "./")
	return strings.Count(name, "/") == 1 && path.Base(name) == "PKG-INFO"
}

func inspectZip(r io.ReadSeeker, size int64) ([]byte, error) {
	z, err := archive.Zip(archive.ReaderAt(r), size, archive.Standard)
	if err != nil {
		return nil, err
	}
	for _, e := range z.File {
		if topInfo(e.Name) {
			return archive.Read(e, maxMetadata)
		}
	}
	return nil, errNoInfo
}

var errNoInfo = fmt.Errorf("it has no PKG-INFO in its top folder: %w", meta.ErrInvalid)

func inspectTar(r io.Reader, size int64) ([]byte, error) {
	var info []byte
	err := archive.TarGz(r, size, archive.Standard, func(h *tar.Header, r io.Reader) error {
		if !topInfo(h.Name) {
			return nil
		}
		if info != nil || h.Size > maxMetadata {
			return fmt.Errorf("its PKG-INFO comes twice or is over %d bytes: %w", maxMetadata, meta.ErrInvalid)
		}
		b, err := io.ReadAll(r)
		info = b
		return err
	})
	if err == nil && info == nil {
		err = errNoInfo
	}
	return info, err
}

// parseCore reads the head of a METADATA file: fields as mail has them.
//
// Errors: meta.ErrInvalid.
func parseCore(raw []byte) (core, error) {
	// The description stands behind an empty line, which a file without one lacks.
	head, err := textproto.NewReader(bufio.NewReader(io.MultiReader(bytes.NewReader(raw), strings.NewReader("\n\n")))).ReadMIMEHeader()
	if err != nil && !errors.Is(err, io.EOF) {
		return core{}, fmt.Errorf("its metadata are malformed: %v: %w", err, meta.ErrInvalid)
	}
	one := func(field string) string {
		if len(head[field]) == 1 {
			return strings.TrimSpace(head[field][0])
		}
		return ""
	}
	c := core{one("Metadata-Version"), one("Name"), one("Version"), one("Requires-Python")}
	if c.metadataVersion == "" || c.name == "" || c.version == "" {
		return c, fmt.Errorf("its metadata lack one Metadata-Version, Name and Version: %w", meta.ErrInvalid)
	}
	if err := checkRequires(c.requiresPython); err != nil {
		return c, err
	}
	return c, nil
}

// checkRequires bounds what the index says in a line of its own.
func checkRequires(s string) error {
	if len(s) > 1024 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("Requires-Python is over 1,024 characters or has some that are none: %w", meta.ErrInvalid)
	}
	return nil
}
