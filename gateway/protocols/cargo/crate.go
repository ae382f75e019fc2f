package cargo

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// limits of a crate: crates.io unpacks up to 512 MiB, and takes no links either.
var limits = archive.Limits{Entries: 100_000, PlainBytes: 4 << 30, Ratio: 200, FreeBytes: 256 << 20, NoLinks: true}

// Bounds of a Cargo.toml.
const (
	maxManifestBytes = 1 << 20
	// maxNesting bounds the tables around a value: the parser keeps the whole name of each
	// key and of each table around it, and calls itself for each array in an array.
	maxNesting = 32
)

// manifest is what matters of the Cargo.toml that cargo writes into a crate: without what
// a workspace would add, and with the dependencies of all kinds in tables.
type manifest struct {
	Package struct {
		Name    string `toml:"name"`
		Version string `toml:"version"`
		Links   string `toml:"links"`
	} `toml:"package"`
	tables
	Target map[string]tables `toml:"target"`
}

type tables struct {
	Dependencies      map[string]manifestDep `toml:"dependencies"`
	DevDependencies   map[string]manifestDep `toml:"dev-dependencies"`
	BuildDependencies map[string]manifestDep `toml:"build-dependencies"`
	// Cargo writes these in old editions.
	DevDependencies2   map[string]manifestDep `toml:"dev_dependencies"`
	BuildDependencies2 map[string]manifestDep `toml:"build_dependencies"`
}

// manifestDep is a dependency: a table, or a version alone.
type manifestDep struct {
	Version  string `toml:"version"`
	Package  string `toml:"package"`
	Optional bool   `toml:"optional"`
}

// UnmarshalTOML implements toml.Unmarshaler.
func (d *manifestDep) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case string:
		d.Version = v
	case map[string]any:
		d.Version, _ = v["version"].(string)
		d.Package, _ = v["package"].(string)
		d.Optional, _ = v["optional"].(bool)
	default:
		return fmt.Errorf("a dependency is a version or a table, not %T", v)
	}
	return nil
}

// group are the dependencies of one kind for one target.
type group struct {
	kind, target string
	deps         map[string]manifestDep
}

func (m *manifest) groups() []group {
	var all []group
	add := func(target string, t tables) {
		all = append(all,
			group{"normal", target, t.Dependencies},
			group{"dev", target, t.DevDependencies}, group{"dev", target, t.DevDependencies2},
			group{"build", target, t.BuildDependencies}, group{"build", target, t.BuildDependencies2})
	}
	add("", m.tables)
	for target, t := range m.Target {
		add(target, t)
	}
	return all
}

// parseManifest reads a Cargo.toml.
//
// Errors: meta.ErrInvalid.
func parseManifest(b []byte) (*manifest, error) {
	if nesting(b) > maxNesting {
		return nil, fmt.Errorf("the Cargo.toml in the crate has tables or arrays in over %d others: %w", maxNesting, meta.ErrInvalid)
	}
	m := &manifest{}
	if _, err := toml.Decode(string(b), m); err != nil {
		return nil, fmt.Errorf("the Cargo.toml in the crate: %.300v: %w", err, meta.ErrInvalid)
	}
	return m, nil
}

// nesting returns how many tables and arrays lie around a value at most: by its brackets,
// and by the dots in a key, which cannot go on in the next line. A table's header counts for
// itself. What is in texts and comments does not count.
func nesting(b []byte) (most int) {
	var open []int // the parts of the keys whose values the brackets are
	around, parts := 0, 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"', '\'':
			i = endOfText(b, i) - 1
		case '#':
			for i+1 < len(b) && b[i+1] != '\n' {
				i++
			}
		case '.':
			parts++
		case '\n', ',':
			parts = 0
		case '[', '{':
			open = append(open, parts+1)
			around, parts = around+parts+1, 0
		case ']', '}':
			if last := len(open) - 1; last >= 0 {
				around, open = around-open[last], open[:last]
			}
			parts = 0
		}
		most = max(most, around+parts)
	}
	return most
}

// endOfText returns where a text that begins at b[i] is over: behind its closing quotes, or
// where a line ends for one that may not go on in the next (toml.io/en/v1.0.0#string).
func endOfText(b []byte, i int) int {
	quote := b[i]
	long := bytes.HasPrefix(b[i:], []byte{quote, quote, quote})
	if long {
		i += 2
	}
	for i++; i < len(b); i++ {
		switch {
		case b[i] == '\\' && quote == '"':
			i++
		case b[i] == '\n' && !long:
			return i
		case b[i] == quote && !long:
			return i + 1
		case bytes.HasPrefix(b[i:], []byte{quote, quote, quote}):
			i += 3
			// Up to two quotes in front of the closing ones are the text's.
			for n := 0; n < 2 && i < len(b) && b[i] == quote; n++ {
				i++
			}
			return i
		}
	}
	return len(b)
}

// checkCrate reads a crate, a .tar.gz of size bytes, to its end, and returns its manifest.
// All its files lie below NAME-VERSION/, once each.
//
// Errors: meta.ErrInvalid; those of r.
func checkCrate(name, version string, r io.Reader, size int64) (*manifest, error) {
	folder := name + "-" + version + "/"
	var found *manifest
	seen := map[[sha256.Size]byte]bool{} // of their names, which may be long
	err := archive.TarGz(r, size, limits, func(h *tar.Header, r io.Reader) error {
		if !strings.HasPrefix(h.Name, folder) {
			return fmt.Errorf("the crate has %.200q, all its files lie below %s: %w", h.Name, folder, meta.ErrInvalid)
		}
		// Who unpacks it must find each file under the name that was looked at.
		if path.Clean(h.Name) != h.Name || strings.ContainsRune(h.Name, '\\') || sparse(h) {
			return fmt.Errorf("the crate has %.200q, which unpacks to another name: %w", h.Name, meta.ErrInvalid)
		}
		// On some systems names that differ by case are one file.
		key := sha256.Sum256([]byte(strings.ToLower(h.Name)))
		if seen[key] {
			return fmt.Errorf("the crate has %.200q twice: %w", h.Name, meta.ErrInvalid)
		}
		seen[key] = true
		if !strings.EqualFold(h.Name, folder+"Cargo.toml") {
			return nil
		}
		if h.Name != folder+"Cargo.toml" {
			return fmt.Errorf("the crate has %.200q, its name is Cargo.toml: %w", h.Name, meta.ErrInvalid)
		}
		if h.Size > maxManifestBytes {
			return fmt.Errorf("the Cargo.toml has %d bytes, at most %d: %w", h.Size, maxManifestBytes, meta.ErrInvalid)
		}
		b, err := io.ReadAll(io.LimitReader(r, maxManifestBytes))
		if err != nil {
			return err
		}
		found, err = parseManifest(b)
		return err
	})
	if err == nil && found == nil {
		err = fmt.Errorf("the crate has no %sCargo.toml: %w", folder, meta.ErrInvalid)
	}
	return found, err
}

// sparse reports whether a file is one with holes, which some readers know by another name.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}
