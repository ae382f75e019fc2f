package gomod

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// limits of a module's zip: golang.org/x/mod/zip bounds what it unpacks to, and the largest
// modules that are published have some 30,000 files in a directory of 6 MiB.
var limits = archive.Limits{Entries: 100_000, DirectoryBytes: 16 << 20, PlainBytes: modzip.MaxZipFile, Ratio: 1 << 20, FreeBytes: modzip.MaxZipFile}

// maxModBytes bounds the go.mod of what is published. The go command takes 16 MiB, of which
// its parser makes 3 GB; those of the largest modules have 100 KB.
const maxModBytes = 512 << 10

// contents is what a module's zip says.
type contents struct {
	// mod are the bytes of its go.mod; one without is `module PATH`, as the go command
	// makes it up (go.dev/ref/mod#module-proxy).
	mod []byte
	// sum is its h1, as a go.sum has it.
	sum string
}

// checkZip reads the zip of m, of size bytes, and checks that the go command would have
// made and would take it: names and sizes by golang.org/x/mod/zip, that its go.mod is of
// the module, and that every file unpacks to what the directory says.
//
// Memory is bounded by the directory (limits) and maxModBytes, work by the 500 MiB that a
// module may have.
//
// Errors: meta.ErrInvalid, meta.ErrTooLarge; those of r.
func checkZip(m module.Version, r io.ReadSeeker, size int64) (*contents, error) {
	if size > modzip.MaxZipFile {
		return nil, fmt.Errorf("the zip has %d bytes, at most %d: %w", size, modzip.MaxZipFile, meta.ErrTooLarge)
	}
	source := &watched{ReaderAt: archive.ReaderAt(r)}
	z, err := archive.Zip(source, size, limits)
	if err != nil {
		return nil, source.bad("the zip", err)
	}
	prefix := m.Path + "@" + m.Version + "/"
	var files []modzip.File
	var names []string
	byName := make(map[string]*zip.File, len(z.File))
	for _, f := range z.File {
		name, ok := strings.CutPrefix(f.Name, prefix)
		if !ok {
			return nil, fmt.Errorf("the zip has %.200q, all its names begin with %s: %w", f.Name, prefix, meta.ErrInvalid)
		}
		if name == "" || strings.HasSuffix(name, "/") {
			return nil, fmt.Errorf("the zip has a directory %.200q, the zip of a module has files only: %w", f.Name, meta.ErrInvalid)
		}
		byName[f.Name] = f
		names = append(names, f.Name)
		files = append(files, member{f, name})
	}
	checked, err := modzip.CheckFiles(files)
	if source.err != nil {
		return nil, source.err
	}
	if err != nil {
		return nil, fmt.Errorf("the zip is no module's: %.500v: %w", err, meta.ErrInvalid)
	}
	if len(checked.Omitted) > 0 {
		return nil, fmt.Errorf("the zip has %.200q, which the go command leaves out (%v): make it with `go mod` tools: %w",
			checked.Omitted[0].Path, checked.Omitted[0].Err, meta.ErrInvalid)
	}
	a := &contents{}
	if f := byName[prefix+"go.mod"]; f == nil {
		a.mod = []byte("module " + modfile.AutoQuote(m.Path) + "\n")
	} else if a.mod, err = archive.Read(f, maxModBytes); err != nil {
		return nil, source.bad(f.Name, err)
	}
	if err := checkMod(m, a.mod); err != nil {
		return nil, err
	}
	slices.Sort(names)
	a.sum, err = dirhash.Hash1(names, func(name string) (io.ReadCloser, error) { return byName[name].Open() })
	if err != nil {
		return nil, source.bad("the zip", err)
	}
	return a, nil
}

// checkMod checks that a go.mod is of the module.
//
// Errors: meta.ErrInvalid.
func checkMod(m module.Version, mod []byte) error {
	f, err := modfile.ParseLax("go.mod", mod, nil)
	if err != nil {
		return fmt.Errorf("%.500v: %w", err, meta.ErrInvalid)
	}
	if f.Module == nil || f.Module.Mod.Path != m.Path {
		path := ""
		if f.Module != nil {
			path = f.Module.Mod.Path
		}
		return fmt.Errorf("go.mod has module path %.200q, the address has %q: %w", path, m.Path, meta.ErrInvalid)
	}
	return nil
}

// member is a file of a zip as golang.org/x/mod/zip asks for it.
type member struct {
	file *zip.File
	path string
}

func (m member) Path() string                { return m.path }
func (m member) Lstat() (fs.FileInfo, error) { return m.file.FileInfo(), nil }

// Open is asked for the go.mod only.
func (m member) Open() (io.ReadCloser, error) {
	body, err := archive.Read(m.file, maxModBytes)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(body)), nil
}

// watched remembers how reading what was uploaded failed, which is not the archive's fault.
type watched struct {
	io.ReaderAt
	err error
}

// ReadAt implements io.ReaderAt.
func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 { // where an archive says that a file is
		return 0, zip.ErrFormat
	}
	n, err := w.ReaderAt.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = fmt.Errorf("read what was uploaded: %w", err)
	}
	return n, err
}

// bad tells an archive that is malformed from one that cannot be read.
func (w *watched) bad(what string, err error) error {
	if w.err != nil {
		return w.err
	}
	if errors.Is(err, meta.ErrInvalid) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %.500v: %w", what, err, meta.ErrInvalid)
}
