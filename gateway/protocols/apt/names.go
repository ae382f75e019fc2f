package apt

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// place is where in the archive a package is: the distribution and component that a
// source line names.
type place struct{ Dist, Component string }

var placeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}$`)

func (p place) check() error {
	fail := func(what, s string) error {
		return fmt.Errorf("%s %.80q: put to pool/<distribution>/<component>/<file>.deb, or say ?dist=stable&component=main: %w", what, s, meta.ErrInvalid)
	}
	if !placeName.MatchString(p.Dist) || p.Dist == "by-hash" {
		return fail("distribution", p.Dist)
	}
	if !placeName.MatchString(p.Component) || p.Component == "by-hash" {
		return fail("component", p.Component)
	}
	return nil
}

// pool is the path of a file in the archive.
func (p place) pool(file string) string { return "pool/" + p.Dist + "/" + p.Component + "/" + file }

// parsePool reads `<dist>/<component>/<file>`, what is below pool/.
func parsePool(s string) (place, string, error) {
	parts := strings.Split(s, "/")
	if len(parts) != 3 {
		return place{}, "", fmt.Errorf("path pool/%.200s: it is pool/<distribution>/<component>/<file>.deb: %w", s, meta.ErrInvalid)
	}
	p := place{parts[0], parts[1]}
	return p, parts[2], p.check()
}

// parseFile returns the package and the version's name that a file's name says:
// `hello_2.10-3_amd64.deb` is version `2.10-3_amd64` of hello.
func parseFile(file string) (pkg, version string, err error) {
	base, isDeb := strings.CutSuffix(file, ".deb")
	parts := strings.Split(base, "_")
	if !isDeb || len(parts) != 3 || !packageName.MatchString(parts[0]) || !architecture.MatchString(parts[2]) || strings.Contains(parts[1], ":") {
		return "", "", fmt.Errorf("file %.200q: a package's file is <package>_<version>_<architecture>.deb: %w", file, meta.ErrInvalid)
	}
	return parts[0], parts[1] + "_" + parts[2], nil
}
