package npm

import (
	"fmt"
	"net/url"
	"strings"

	"golang.org/x/mod/semver"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxNameBytes is npm's own limit (validate-npm-package-name).
const maxNameBytes = 214

// reserved are names that mean something else: in a project's folder, or in a URL.
var reserved = map[string]bool{"node_modules": true, "favicon.ico": true, "-": true}

// checkName checks the name of a package that is to be published: the rules for new
// packages of validate-npm-package-name.
//
// Errors: meta.ErrInvalid.
func checkName(name string) error {
	bad := func(why string) error {
		return fmt.Errorf("package name %q %s: %w", name, why, meta.ErrInvalid)
	}
	scope, base, scoped := cutScope(name)
	switch {
	case name == "":
		return bad("is empty")
	case len(name) > maxNameBytes:
		return bad(fmt.Sprintf("is over %d bytes", maxNameBytes))
	case name != strings.ToLower(name):
		return bad("has capital letters: new packages have lower-case names")
	case strings.HasPrefix(name, "@") && (!scoped || scope == "" || base == ""):
		return bad("has a scope and is not @scope/name")
	case strings.ContainsAny(name, "~'!()*"):
		return bad("has one of ~'!()*")
	case strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || strings.HasPrefix(scope, ".") || strings.HasPrefix(scope, "_"):
		return bad("begins with . or _")
	case reserved[base] || reserved[scope]:
		return bad("is reserved")
	}
	for _, part := range []string{scope, base} {
		if url.PathEscape(part) != part || strings.ContainsAny(part, "@:&=+$/\\") {
			return bad("has characters that are not for URLs")
		}
	}
	return nil
}

// cutScope parts `@scope/base`; without a scope all is base.
func cutScope(name string) (scope, base string, scoped bool) {
	if rest, ok := strings.CutPrefix(name, "@"); ok {
		if scope, base, ok := strings.Cut(rest, "/"); ok && !strings.Contains(base, "/") {
			return scope, base, true
		}
	}
	return "", name, false
}

// keyOf returns the name that a package is kept under: two names that differ in case
// or separators only are one, so that nobody publishes the twin of another's package.
// The first publisher's writing is the package's spelling.
func keyOf(name string) string {
	var b strings.Builder
	separated := false
	for _, c := range strings.ToLower(name) {
		switch c {
		case '-', '_', '.':
			separated = true
			continue
		case '/':
			separated = false
		}
		if separated {
			b.WriteByte('-')
			separated = false
		}
		b.WriteRune(c)
	}
	if separated {
		b.WriteByte('-')
	}
	return b.String()
}

// checkVersion checks that a version is one of semver 2, written as npm writes it:
// without v before it or build metadata behind it.
//
// Errors: meta.ErrInvalid.
func checkVersion(version string) error {
	if !isVersion(version) || semver.Build("v"+version) != "" {
		return fmt.Errorf("version %q is not one of semantic versioning, like 1.2.3 or 1.2.3-beta.1: %w", version, meta.ErrInvalid)
	}
	return meta.CheckVersion(version)
}

// isVersion reports whether s is a whole semver version, with build metadata or not.
func isVersion(s string) bool {
	v := "v" + s
	return semver.IsValid(v) && strings.HasPrefix(v, semver.Canonical(v))
}

// cleanVersion brings a version as package.json may have it into npm's form
// (semver.clean): ` =v1.2.3+build` is 1.2.3.
func cleanVersion(version string) string {
	version = strings.TrimLeft(strings.TrimSpace(version), "=v")
	version, _, _ = strings.Cut(version, "+")
	return version
}

// checkTag checks a dist-tag: it must not look like a version or a range of versions,
// or `npm install name@tag` would mean something else.
//
// Errors: meta.ErrInvalid.
func checkTag(tag string) error {
	if err := meta.CheckAlias(tag); err != nil {
		return err
	}
	looks := strings.TrimLeft(tag, "=v^~<> ")
	if looks == "" || looks[0] >= '0' && looks[0] <= '9' || strings.ContainsAny(tag, " *|/\\") || tag == "x" || tag == "X" {
		return fmt.Errorf("tag %q reads like a version or a range: take a word: %w", tag, meta.ErrInvalid)
	}
	return nil
}

// fileOf returns the file name of a version's tarball.
func fileOf(name, version string) string {
	_, base, _ := cutScope(name)
	return base + "-" + version + ".tgz"
}

// versionOf reads the version out of the file name of a tarball of a package.
func versionOf(name, file string) (string, bool) {
	_, base, _ := cutScope(name)
	rest, ok := strings.CutPrefix(file, base+"-")
	version, isBall := strings.CutSuffix(rest, ".tgz")
	return version, ok && isBall && version != ""
}

// target is what a path below a repository names.
type target struct {
	name string
	// file is the name of a tarball; version a version or a tag. Without both the
	// target is the package's document.
	file, version string
}

// parsePath reads the unescaped path below a repository. Clients escape the slash of a
// scoped name or do not, and the URL of a tarball may have the scope in both places:
//
//	demo                 @acme/demo
//	demo/1.0.0           @acme/demo/latest
//	demo/-/demo-1.0.tgz  @acme/demo/-/@acme/demo-1.0.tgz
//
// Errors: meta.ErrNotFound.
func parsePath(path string) (t target, _ error) {
	none := fmt.Errorf("%q is no package of npm, nor of its files: %w", path, meta.ErrNotFound)
	rest := path
	if strings.HasPrefix(path, "@") {
		scope, after, _ := strings.Cut(path, "/")
		base, more, found := strings.Cut(after, "/")
		t.name, rest = scope+"/"+base, more
		if len(scope) < 2 || base == "" || found && more == "" {
			return t, none
		}
	} else {
		base, more, found := strings.Cut(path, "/")
		t.name, rest = base, more
		if base == "" || base == "-" || found && more == "" {
			return t, none
		}
	}
	if meta.CheckPackage(t.name) != nil {
		return t, none
	}
	if rest == "" {
		return t, nil
	}
	file, isFile := strings.CutPrefix(rest, "-/")
	if !isFile {
		if strings.Contains(rest, "/") {
			return t, none
		}
		t.version = rest
		return t, nil
	}
	if scope, base, ok := strings.Cut(file, "/"); ok && strings.HasPrefix(t.name, scope+"/") {
		file = base
	}
	if file == "" || strings.Contains(file, "/") {
		return t, none
	}
	t.file = file
	return t, nil
}

// pathOf is the way back: the path of a package's document below a repository.
func pathOf(name string) string {
	if scope, base, scoped := cutScope(name); scoped {
		return "@" + url.PathEscape(scope) + "/" + url.PathEscape(base)
	}
	return url.PathEscape(name)
}
