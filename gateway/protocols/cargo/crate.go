package cargo

import (
	"archive/tar"
	"fmt"
	"io"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// limits of a crate: crates.io unpacks up to 512 MiB.
var limits = archive.Limits{Entries: 100_000, PlainBytes: 4 << 30, Ratio: 200, FreeBytes: 256 << 20}

// Bounds of a Cargo.toml.
const (
	maxManifestBytes = 1 << 20
	maxDepth         = 1000
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
	depth := 0
	for _, c := range b {
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		}
		// The parser calls itself for each array in an array. Brackets in texts count too,
		// of which no manifest leaves that many open.
		if depth > maxDepth {
			return nil, fmt.Errorf("the Cargo.toml in the crate has over %d open brackets: %w", maxDepth, meta.ErrInvalid)
		}
	}
	m := &manifest{}
	if _, err := toml.Decode(string(b), m); err != nil {
		return nil, fmt.Errorf("the Cargo.toml in the crate: %.300v: %w", err, meta.ErrInvalid)
	}
	return m, nil
}

// checkCrate reads a crate, a .tar.gz of size bytes, to its end, and returns its manifest.
// All its files lie below NAME-VERSION/, once each.
//
// Errors: meta.ErrInvalid; those of r.
func checkCrate(name, version string, r io.Reader, size int64) (*manifest, error) {
	folder := name + "-" + version + "/"
	var found *manifest
	seen := map[string]bool{}
	err := archive.TarGz(r, size, limits, func(h *tar.Header, r io.Reader) error {
		if !strings.HasPrefix(h.Name, folder) {
			return fmt.Errorf("the crate has %.200q, all its files lie below %s: %w", h.Name, folder, meta.ErrInvalid)
		}
		// On some systems names that differ by case are one file.
		key := strings.ToLower(h.Name)
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
