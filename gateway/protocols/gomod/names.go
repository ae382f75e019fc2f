package gomod

import (
	"fmt"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// What a file of `@v/` is.
const (
	extInfo = ".info"
	extMod  = ".mod"
	extZip  = ".zip"
)

// modulePath reads a module's path as an address has it, capitals as `!` and a small
// letter (go.dev/ref/mod#goproxy-protocol).
//
// Errors: meta.ErrInvalid; of a read that is absent.
func modulePath(escaped string) (string, error) {
	path, err := module.UnescapePath(escaped)
	if err == nil {
		err = meta.CheckPackage(path)
	}
	if err != nil {
		return "", fmt.Errorf("module %.300q: %v: %w", escaped, err, meta.ErrInvalid)
	}
	return path, nil
}

// versionFile parts the last segment of an address behind `@v/`: a version, or what the go
// command asks in its place (a branch, a part of a version), and the kind of file.
//
// Errors: meta.ErrInvalid; of a read that is absent.
func versionFile(name string) (version, ext string, _ error) {
	for _, ext := range []string{extInfo, extMod, extZip} {
		escaped, ok := strings.CutSuffix(name, ext)
		if !ok {
			continue
		}
		version, err := module.UnescapeVersion(escaped)
		if err == nil {
			err = meta.CheckVersion(version)
		}
		if err != nil {
			return "", "", fmt.Errorf("version %.300q: %v: %w", escaped, err, meta.ErrInvalid)
		}
		return version, ext, nil
	}
	return "", "", fmt.Errorf("%.300q: use list, VERSION.info, VERSION.mod or VERSION.zip: %w", name, meta.ErrInvalid)
}

// absent is the answer to a read of what cannot be there: with any other the go command
// does not go on to the next proxy of its list.
func absent(err error) error { return fmt.Errorf("%w: %v", meta.ErrNotFound, err) }

// canonical reports whether v names one version for ever: vX.Y.Z, with a pre-release,
// a pseudo-version, or +incompatible.
func canonical(v string) bool { return v != "" && module.CanonicalVersion(v) == v }

// checkVersion checks what a version is published as.
//
// Errors: meta.ErrInvalid with what to write.
func checkVersion(m module.Version) error {
	if !canonical(m.Version) {
		return fmt.Errorf("version %.300q is not canonical, write vMAJOR.MINOR.PATCH: %w", m.Version, meta.ErrInvalid)
	}
	if err := module.Check(m.Path, m.Version); err != nil {
		return fmt.Errorf("%.500v: %w", err, meta.ErrInvalid)
	}
	return nil
}

// later reports whether version a is what `@latest` is rather than b, "" being none: a
// release before a pre-release before a pseudo-version, then the higher one.
func later(a, b string) bool {
	if b == "" {
		return true
	}
	if x, y := rank(a), rank(b); x != y {
		return x > y
	}
	if c := semver.Compare(a, b); c != 0 {
		return c > 0
	}
	return a > b
}

func rank(v string) int {
	switch {
	case module.IsPseudoVersion(v):
		return 0
	case semver.Prerelease(v) != "":
		return 1
	}
	return 2
}
