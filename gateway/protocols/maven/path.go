package maven

import (
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const (
	metadataFile   = "maven-metadata.xml"
	snapshotSuffix = "-SNAPSHOT"
	maxFileBytes   = 512 // of a file's name
)

// algorithms of checksums by the suffix of their files.
var algorithms = map[string]string{".md5": "md5", ".sha1": "sha1", ".sha256": "sha256", ".sha512": "sha512"}

// target is what a path names.
type target struct {
	// dir holds the parts of the folder, file the last part without the suffix of a checksum.
	dir  []string
	file string
	// sum is the algorithm when the path is the checksum of file: md5, sha1, sha256, sha512.
	sum string
	// gav says whose file it is; nil for metadata.
	gav *gav
}

// gav is one file of a version by its coordinates.
type gav struct {
	group, artifact string
	// base is the version of the folder, 1.0 or 1.1-SNAPSHOT; version the one of the file,
	// 1.0 or 1.1-20261122.133443-1, "" for the newest build of the base.
	base, version         string
	classifier, extension string
}

// pkg returns the name of the package: `group:artifact`.
func (g *gav) pkg() string { return packageName(g.group, g.artifact) }

func packageName(group, artifact string) string { return group + ":" + artifact }

// snapshot reports whether the folder is that of a snapshot.
func (g *gav) snapshot() bool { return strings.HasSuffix(g.base, snapshotSuffix) }

// fileOf returns the name that g has as a file of version, another build of its base.
func (g *gav) fileOf(version string) string {
	name := g.artifact + "-" + version
	if g.classifier != "" {
		name += "-" + g.classifier
	}
	return name + "." + g.extension
}

// metadata reports whether the target is a maven-metadata.xml, or its checksum.
func (t *target) metadata() bool { return t.gav == nil }

// snapshotOf returns the package and the base when the target is the metadata of a
// snapshot.
func (t *target) snapshotOf() (pkg, base string, ok bool) {
	n := len(t.dir)
	if n < 3 || !strings.HasSuffix(t.dir[n-1], snapshotSuffix) {
		return "", "", false
	}
	return packageName(strings.Join(t.dir[:n-2], "."), t.dir[n-2]), t.dir[n-1], true
}

// artifactOf returns the group and artifact when the target can be the metadata of an
// artifact; that of a group of plugins looks alike.
func (t *target) artifactOf() (group, artifact string, ok bool) {
	n := len(t.dir)
	if n < 2 {
		return "", "", false
	}
	return strings.Join(t.dir[:n-1], "."), t.dir[n-1], true
}

// groupOf returns the group when the target is the metadata of a group of plugins.
func (t *target) groupOf() string { return strings.Join(t.dir, ".") }

// parsePath reads a path of the Maven 2 layout, unescaped and relative to the repository:
//
//	org/example/demo/1.0/demo-1.0[-classifier].extension[.sha1]
//	org/example/demo/1.1-SNAPSHOT/demo-1.1-20261122.133443-1.jar
//	org/example[/demo[/1.1-SNAPSHOT]]/maven-metadata.xml[.sha1]
//
// Errors: meta.ErrInvalid for everything else.
func parsePath(path string) (*target, error) {
	if err := meta.CheckPath(path); err != nil {
		return nil, err
	}
	fail := func(format string, args ...any) (*target, error) {
		return nil, fmt.Errorf("%s: %s: %w", path, fmt.Sprintf(format, args...), meta.ErrInvalid)
	}
	parts := strings.Split(path, "/")
	t := &target{dir: parts[:len(parts)-1], file: parts[len(parts)-1]}
	if dot := strings.LastIndexByte(t.file, '.'); dot > 0 {
		if sum := algorithms[t.file[dot:]]; sum != "" {
			t.file, t.sum = t.file[:dot], sum
		}
	}
	if len(t.file) > maxFileBytes {
		return fail("the file's name has more than %d bytes", maxFileBytes)
	}
	n := len(t.dir)
	if t.file == metadataFile {
		if n == 0 {
			return fail("metadata belongs to a group, an artifact or a snapshot")
		}
		snapshot := strings.HasSuffix(t.dir[n-1], snapshotSuffix) && n >= 3
		for i, part := range t.dir {
			switch {
			case snapshot && i == n-1:
				if !isVersion(part) {
					return fail("%q is no version", part)
				}
			case i == n-1 || snapshot && i == n-2:
				if !isArtifact(part) {
					return fail("%q is no artifact", part)
				}
			case !isGroupPart(part):
				return fail("%q is no part of a group", part)
			}
		}
		return t, nil
	}
	if n < 3 {
		return fail("files lie at group/artifact/version/artifact-version.extension")
	}
	g := &gav{artifact: t.dir[n-2], base: t.dir[n-1]}
	for _, part := range t.dir[:n-2] {
		if !isGroupPart(part) {
			return fail("%q is no part of a group", part)
		}
	}
	g.group = strings.Join(t.dir[:n-2], ".")
	switch {
	case !isArtifact(g.artifact):
		return fail("%q is no artifact", g.artifact)
	case !isVersion(g.base):
		return fail("%q is no version", g.base)
	case isBuild(g.base):
		return fail("a build of a snapshot lies in the folder of the snapshot")
	}
	if err := meta.CheckPackage(g.pkg()); err != nil {
		return nil, err
	}
	rest, ok := strings.CutPrefix(t.file, g.artifact+"-")
	if !ok {
		return fail("the file's name does not begin with %s-", g.artifact)
	}
	tail, ok := cutVersion(rest, g.base)
	g.version = g.base
	if g.snapshot() {
		// Its own folder's name stands for the newest build.
		if g.version = ""; !ok {
			g.version, tail, ok = cutBuild(rest, strings.TrimSuffix(g.base, snapshotSuffix))
		}
	}
	if !ok {
		return fail("the file's name is not of version %s", g.base)
	}
	if g.classifier, g.extension, ok = splitTail(tail); !ok {
		return fail("%q is not [-classifier].extension", tail)
	}
	t.gav = g
	return t, nil
}

// cutVersion takes a version off s, behind which something else begins.
func cutVersion(s, version string) (tail string, ok bool) {
	tail, ok = strings.CutPrefix(s, version)
	return tail, ok && tail != "" && (tail[0] == '-' || tail[0] == '.')
}

// cutBuild takes a build of base off s: base-yyyymmdd.hhmmss-number.
func cutBuild(s, base string) (version, tail string, ok bool) {
	rest, ok := strings.CutPrefix(s, base+"-")
	if !ok {
		return "", "", false
	}
	n := stampBytes(rest)
	if n == 0 {
		return "", "", false
	}
	version = s[:len(s)-len(rest)+n]
	tail, ok = cutVersion(s, version)
	return version, tail, ok
}

// stampBytes returns the length of the `yyyymmdd.hhmmss-number` that s begins with, 0
// when it does not.
func stampBytes(s string) int {
	const stamp = len("20261122.133443-")
	if len(s) <= stamp || s[8] != '.' || s[stamp-1] != '-' || !digits(s[:8]) || !digits(s[9:stamp-1]) {
		return 0
	}
	n := stamp
	for n < len(s) && n < stamp+9 && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	if n == stamp || s[stamp] == '0' {
		return 0
	}
	return n
}

// baseOf returns the snapshot that a version is a build of, and the build's stamp,
// `yyyymmdd.hhmmss-number`; ok is false for a release.
func baseOf(version string) (base, stamp string, ok bool) {
	// Twice back over a hyphen: that of the number, and that of the stamp.
	i := strings.LastIndexByte(version, '-')
	if i < 0 {
		return "", "", false
	}
	if i = strings.LastIndexByte(version[:i], '-'); i <= 0 {
		return "", "", false
	}
	stamp = version[i+1:]
	if n := stampBytes(stamp); n == 0 || n != len(stamp) {
		return "", "", false
	}
	return version[:i] + snapshotSuffix, stamp, true
}

func isBuild(version string) bool {
	_, _, ok := baseOf(version)
	return ok
}

// splitTail reads `[-classifier].extension`. What stands before the last dot may have
// dots of its own; a signature and a packed archive have two parts.
func splitTail(tail string) (classifier, extension string, ok bool) {
	bare, signed := strings.CutSuffix(tail, ".asc")
	dot := strings.LastIndexByte(bare, '.')
	if dot < 0 {
		// An extension asc of its own.
		bare, signed = tail, false
		if dot = strings.LastIndexByte(bare, '.'); dot < 0 {
			return "", "", false
		}
	}
	if packed := strings.LastIndex(bare[:dot], ".tar"); packed >= 0 && packed+len(".tar") == dot {
		dot = packed
	}
	if tail[0] == '.' {
		dot = 0 // no classifier: all of it is the extension
	}
	extension = bare[dot+1:]
	if signed {
		extension += ".asc"
	}
	classifier = bare[:dot]
	if classifier != "" {
		classifier = classifier[1:]
		if classifier == "" {
			return "", "", false
		}
	}
	return classifier, extension, isTail(classifier) && isTail(extension) && extension != "" && extension[0] != '.'
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func isAlnum(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func only(s string, others string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return !isAlnum(c) && !strings.ContainsRune(others, c) }) < 0
}

// isGroupPart and isArtifact are Maven's own rule for ids (DefaultModelValidator); the
// dots of a group are its slashes.
func isGroupPart(s string) bool { return s != "" && only(s, "_-") }

func isArtifact(s string) bool { return s != "" && s[0] != '.' && only(s, "_.-") }

// isVersion takes what Maven takes, of printable ASCII.
func isVersion(s string) bool {
	if s == "" || len(s) > meta.MaxVersionBytes || s[0] == '.' || s[0] == '-' {
		return false
	}
	return strings.IndexFunc(s, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`\/:"<>|?*[](){},%&#;'`+"`", c)
	}) < 0
}

func isTail(s string) bool { return only(s, "_.-+~") }
