package apt

import (
	"path"
	"regexp"
	"strings"

	"github.com/shoal-registry/shoal/gateway/upstream"
)

// tree is another archive, as that has it.
var tree = upstream.Tree{
	Name:      foreign,
	IsPackage: regexp.MustCompile(`(?i)\.[ud]?deb([^a-z0-9]|$)`),
	Form:      "<package>_<version>_<architecture>.deb",
}

// foreign says what a path of another archive is. What is below dists/ may change, but for
// what a hash names; a file of the pool never does, and is of a package.
func foreign(name string, w *upstream.Want) {
	if d, ok := byHash(name); ok {
		w.Kind, w.Digest = upstream.File, d
		return
	}
	if pkg, version, err := parseFile(path.Base(name)); err == nil {
		w.Kind, w.Package, w.Version, w.MaxBytes = upstream.File, pkg, version, 0
		return
	}
	if top, _, _ := strings.Cut(name, "/"); top == "pool" { // sources, and files of installers
		w.Kind, w.MaxBytes = upstream.File, 0
	}
}
