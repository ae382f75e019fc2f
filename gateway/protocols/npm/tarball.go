package npm

import (
	"archive/tar"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Limits of tarballs.
const (
	maxTarballBytes = 2 << 30 // as they are sent
	maxPackageJSON  = 1 << 20
)

// unpacks bounds what a tarball may unpack to: code packs to a tenth, zeros to a
// thousandth. When its size is not known beforehand the plain bytes alone bound it.
var unpacks = archive.Limits{Entries: 500_000, PlainBytes: 16 << 30, Ratio: 200, FreeBytes: 256 << 20}

// contents is what was found in a tarball.
type contents struct {
	manifest []byte // the package.json
	files    int
	bytes    int64 // of all files, unpacked
	gyp      bool  // a binding.gyp, for which npm compiles
}

// scanTarball reads the tarball of a package to its end, keeping only its package.json:
// the one file of that name in the folder that all files share, whatever that is called.
// size bounds the tarball's bytes, -1 when nothing does.
//
// Errors: meta.ErrInvalid for what is no tarball, has paths that lead out of its folder,
// has no or several package.json, or unpacks to too much; of r.
func scanTarball(r io.Reader, size int64) (c contents, _ error) {
	err := archive.TarGz(r, size, unpacks, func(h *tar.Header, r io.Reader) error {
		c.files++
		c.bytes += h.Size
		// Clients unpack without the first part of a path; for some of them a backslash
		// parts a path too, and letters of either case name one file.
		_, name, _ := strings.Cut(path.Clean(strings.ReplaceAll(h.Name, `\`, "/")), "/")
		switch name = strings.ToLower(name); {
		case name == "binding.gyp":
			c.gyp = true
		case name != "package.json":
		case c.manifest != nil:
			return fmt.Errorf("the tarball has two package.json: %w", meta.ErrInvalid)
		case h.Size > maxPackageJSON:
			return fmt.Errorf("the tarball's package.json is over %d bytes: %w", maxPackageJSON, meta.ErrInvalid)
		default:
			var err error
			c.manifest, err = io.ReadAll(io.LimitReader(r, maxPackageJSON))
			return err
		}
		return nil
	})
	if err != nil {
		return c, fmt.Errorf("the tarball: %w", err)
	}
	if c.manifest == nil {
		return c, fmt.Errorf("the tarball has no package.json in its folder: %w", meta.ErrInvalid)
	}
	return c, nil
}
