package cargo

import (
	"fmt"
	"strings"

	"golang.org/x/mod/semver"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxNameBytes is how long the name of a crate may be, as on crates.io.
const maxNameBytes = 64

// normalize returns what names have in common that cargo and people take for one another:
// small letters, `-` for `_`. It is a package's name.
func normalize(name string) string {
	return strings.ReplaceAll(strings.ToLower(name), "_", "-")
}

// checkName checks the name of a crate as it is published (RFC 2141: a letter, then
// letters, digits, - and _).
//
// Errors: meta.ErrInvalid.
func checkName(name string) error {
	if len(name) > maxNameBytes {
		return fmt.Errorf("crate name of %d bytes, at most %d: %w", len(name), maxNameBytes, meta.ErrInvalid)
	}
	for i, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case i > 0 && ('0' <= c && c <= '9' || c == '-' || c == '_'):
		default:
			return fmt.Errorf("crate name %.100q: use a letter, then letters, digits, - and _: %w", name, meta.ErrInvalid)
		}
	}
	if name == "" {
		return fmt.Errorf("the crate has no name: %w", meta.ErrInvalid)
	}
	if reserved[strings.ToLower(name)] {
		return fmt.Errorf("crate name %q is of a file that Windows keeps for itself: %w", name, meta.ErrInvalid)
	}
	return nil
}

// reserved names cannot be unpacked on Windows.
var reserved = func() map[string]bool {
	m := map[string]bool{}
	for _, name := range []string{"con", "prn", "aux", "nul"} {
		m[name] = true
	}
	for i := range 10 {
		m[fmt.Sprintf("com%d", i)], m[fmt.Sprintf("lpt%d", i)] = true, true
	}
	return m
}()

// indexPath returns where the index has a crate (the book, «Index Files»): of a name as it
// is spelt, in small letters.
func indexPath(name string) string {
	name = strings.ToLower(name)
	switch len(name) {
	case 0:
		return ""
	case 1, 2:
		return fmt.Sprintf("%d/%s", len(name), name)
	case 3:
		return "3/" + name[:1] + "/" + name
	}
	return name[:2] + "/" + name[2:4] + "/" + name
}

// versionName returns a version's name in the catalogue: without build metadata, by which
// versions do not differ.
//
// Errors: meta.ErrInvalid when s is no version (semver.org 2.0.0).
func versionName(s string) (string, error) {
	v := "v" + s
	// The go command's versions may leave parts out, those of crates have all three.
	if !semver.IsValid(v) || semver.Canonical(v)+semver.Build(v) != v || len(s) > meta.MaxVersionBytes {
		return "", fmt.Errorf("version %.100q is not MAJOR.MINOR.PATCH: %w", s, meta.ErrInvalid)
	}
	return semver.Canonical(v)[1:], nil
}

// higher reports whether version a is above b, "" being none; a release is above any
// pre-release.
func higher(a, b string) bool {
	if b == "" {
		return true
	}
	a, b = "v"+a, "v"+b
	if x, y := semver.Prerelease(a) == "", semver.Prerelease(b) == ""; x != y {
		return x
	}
	return semver.Compare(a, b) > 0
}
