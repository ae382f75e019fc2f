package nuget

import (
	"archive/zip"
	"encoding/xml"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"strings"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// limits of a package's archive.
var limits = archive.Limits{Entries: 50_000, DirectoryBytes: 8 << 20, PlainBytes: 8 << 30, Ratio: 100, FreeBytes: 64 << 20}

// opened is what a package's archive says.
type opened struct {
	manifest manifest
	nuspec   []byte // its bytes in the archive
}

// openPackage reads the archive of a package of size bytes and checks all of it:
// names, sums and sizes of every entry, and that it has one manifest, which is the
// one that its relationships name.
//
// Memory is the archive's directory and the manifest; the rest streams.
// Errors: meta.ErrInvalid, saying what is wrong; else those of r.
func openPackage(r io.ReaderAt, size int64) (opened, error) {
	in := &failing{ReaderAt: r}
	// An archive may name bytes before its begin or behind its end.
	o, err := readPackage(io.NewSectionReader(in, 0, size), size)
	if err != nil && in.err != nil {
		return opened{}, fmt.Errorf("read the package: %w", in.err)
	}
	return o, err
}

func readPackage(r io.ReaderAt, size int64) (o opened, err error) {
	z, err := archive.Zip(r, size, limits)
	if err != nil {
		return o, err
	}
	var nuspec, relations *zip.File
	packed := uint64(0)
	seen := make(map[string]bool, len(z.File))
	for _, f := range z.File {
		name, err := entryName(f)
		if err != nil {
			return o, err
		}
		// Two names of one part are one name (ECMA-376 part 2, 9.1.1.1), also on disk.
		if folded := strings.ToLower(name); seen[folded] {
			return o, refuse("entry %q is there twice", f.Name)
		} else {
			seen[folded] = true
		}
		// Entries that share their bytes add up to more than the archive has.
		packed += f.CompressedSize64
		if f.CompressedSize64 > uint64(size) || packed > uint64(size) {
			return o, refuse("its entries overlap")
		}
		switch {
		case !strings.Contains(name, "/") && strings.EqualFold(path.Ext(name), ".nuspec"):
			if nuspec != nil {
				return o, refuse("it has two manifests, %s and %s", nuspec.Name, f.Name)
			}
			nuspec = f
		case strings.EqualFold(name, "_rels/.rels"):
			relations = f
		}
	}
	if nuspec == nil {
		return o, refuse("it has no .nuspec at its root: make it with `nuget pack` or `dotnet pack`")
	}
	if o.nuspec, err = archive.Read(nuspec, maxManifestBytes); err != nil {
		return o, err
	}
	if o.manifest, err = parseManifest(o.nuspec); err != nil {
		return o, err
	}
	if want := o.manifest.ID + ".nuspec"; !strings.EqualFold(nuspec.Name, want) {
		return o, refuse("its manifest is called %s, but is of %s", nuspec.Name, o.manifest.ID)
	}
	if relations != nil {
		if err := checkRelations(relations, nuspec.Name); err != nil {
			return o, err
		}
	}
	for _, f := range z.File {
		if err := checkEntry(f); err != nil {
			return o, err
		}
	}
	return o, nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("the package is refused: %s: %w", fmt.Sprintf(format, args...), meta.ErrInvalid)
}

// failing remembers a failure of the reader, which is no fault of the archive.
type failing struct {
	io.ReaderAt
	err error
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.ReaderAt.ReadAt(p, off)
	if err != nil && err != io.EOF && f.err == nil {
		f.err = err
	}
	return n, err
}

// entryName returns the path that an entry unpacks to once its %XX are taken apart, as
// the package format has them (ECMA-376 part 2, 9.1.1), and refuses one that leaves the
// package then, or is a link.
func entryName(f *zip.File) (string, error) {
	name, err := url.PathUnescape(f.Name)
	if err != nil {
		name = f.Name // a plain zip with a percent sign
	}
	if err := archive.CheckName(name); err != nil {
		return "", err
	}
	if mode := f.Mode(); mode&fs.ModeType != 0 && !mode.IsDir() {
		return "", refuse("entry %q is neither a file nor a folder", f.Name)
	}
	name = strings.TrimSuffix(strings.ReplaceAll(name, `\`, "/"), "/")
	if path.Clean(name) != name {
		// It would unpack onto another entry's place.
		return "", refuse("entry %q is not where its name says", f.Name)
	}
	return name, nil
}

// checkEntry unpacks an entry to nowhere: its size and sum must be those that it has
// declared, which is what the bounds were judged by.
func checkEntry(f *zip.File) error {
	r, err := f.Open()
	if err != nil {
		return refuse("entry %s: %v", f.Name, err)
	}
	defer r.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(r, int64(f.UncompressedSize64)+1))
	if err != nil {
		return refuse("entry %s: %v", f.Name, err)
	}
	if n != int64(f.UncompressedSize64) {
		return refuse("entry %s is not of the size that it declares", f.Name)
	}
	return nil
}

// manifestRelation is the type of the relationship that names the manifest.
const manifestRelation = "http://schemas.microsoft.com/packaging/2010/07/manifest"

// checkRelations refuses an archive whose relationships name another manifest: readers
// that follow them would see another package.
func checkRelations(f *zip.File, nuspec string) error {
	b, err := archive.Read(f, maxManifestBytes)
	if err != nil {
		return err
	}
	var x struct {
		Relations []struct {
			Type   string `xml:"Type,attr"`
			Target string `xml:"Target,attr"`
		} `xml:"Relationship"`
	}
	if b, err = plainUTF8(b); err == nil {
		err = xml.Unmarshal(b, &x)
	}
	if err != nil {
		return refuse("its relationships are not their XML: %v", err)
	}
	for _, r := range x.Relations {
		if r.Type == manifestRelation && !strings.EqualFold(strings.TrimPrefix(r.Target, "/"), nuspec) {
			return refuse("its relationships name the manifest %s, not %s", r.Target, nuspec)
		}
	}
	return nil
}
