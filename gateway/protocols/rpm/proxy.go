package rpm

import (
	"path"
	"regexp"

	"github.com/shoal-registry/shoal/gateway/upstream"
)

// tree is another repository, as that has it.
var tree = upstream.Tree{
	Name:      foreign,
	IsPackage: regexp.MustCompile(`(?i)\.d?rpm([^a-z0-9]|$)`),
	Form:      "<name>-<version>-<release>.<architecture>.rpm",
}

// foreign says what a path of another repository is: metadata whose name holds its digest,
// and packages, never change, all else may.
func foreign(name string, w *upstream.Want) {
	base := path.Base(name)
	if d, ok := named(base); ok {
		w.Kind, w.Digest = upstream.File, d
		return
	}
	if n, err := parseFile(base); err == nil {
		w.Kind, w.Package, w.Version, w.MaxBytes = upstream.File, n.Name, n.version(), 0
	}
}
