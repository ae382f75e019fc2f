package pypi

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

var (
	// Letters are those of ASCII: without case, more fold to s and k.
	nameForm  = regexp.MustCompile(`^(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9._-]*[a-zA-Z0-9])$`)
	nameParts = regexp.MustCompile(`[-_.]+`)
)

// normalize returns the name that counts: people write one name in many ways (PEP 503).
//
// Errors: meta.ErrInvalid.
func normalize(name string) (string, error) {
	if len(name) > meta.MaxPackageBytes || !nameForm.MatchString(name) {
		return "", fmt.Errorf("%.100q is no name of a project: letters, digits and . _ - between them: %w", name, meta.ErrInvalid)
	}
	return strings.ToLower(nameParts.ReplaceAllString(name, "-")), nil
}

// versionForm is the pattern of PEP 440, appendix B.
var versionForm = regexp.MustCompile(`(?i)^\s*v?(?:(?P<epoch>[0-9]+)!)?(?P<release>[0-9]+(?:\.[0-9]+)*)` +
	`(?:[-_.]?(?P<pre>alpha|beta|preview|pre|a|b|c|rc)[-_.]?(?P<pre_n>[0-9]*))?` +
	`(?P<post>-(?P<post_n1>[0-9]+)|[-_.]?(?:post|rev|r)[-_.]?(?P<post_n2>[0-9]*))?` +
	`(?P<dev>[-_.]?dev[-_.]?(?P<dev_n>[0-9]*))?` +
	`(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?\s*$`)

var preForms = map[string]string{"alpha": "a", "a": "a", "beta": "b", "b": "b", "c": "rc", "rc": "rc", "pre": "rc", "preview": "rc"}

// version returns a version as PEP 440 normalizes it.
//
// Errors: meta.ErrInvalid.
func version(text string) (string, error) {
	m := versionForm.FindStringSubmatch(text)
	if m == nil || len(text) > meta.MaxVersionBytes || strings.ContainsFunc(text, func(r rune) bool { return r >= 0x80 }) {
		return "", fmt.Errorf("%.100q is no version (PEP 440): %w", text, meta.ErrInvalid)
	}
	part := func(name string) string { return strings.ToLower(m[versionForm.SubexpIndex(name)]) }
	var b strings.Builder
	if epoch := number(part("epoch")); epoch != "0" {
		b.WriteString(epoch + "!")
	}
	for i, n := range strings.Split(part("release"), ".") {
		if i > 0 {
			b.WriteByte('.')
		}
		b.WriteString(number(n))
	}
	if pre := part("pre"); pre != "" {
		b.WriteString(preForms[pre] + number(part("pre_n")))
	}
	if part("post") != "" {
		b.WriteString(".post" + number(part("post_n1")+part("post_n2")))
	}
	if part("dev") != "" {
		b.WriteString(".dev" + number(part("dev_n")))
	}
	if local := part("local"); local != "" {
		b.WriteByte('+')
		for i, n := range nameParts.Split(local, -1) {
			if i > 0 {
				b.WriteByte('.')
			}
			if strings.Trim(n, "0123456789") == "" {
				n = number(n)
			}
			b.WriteString(n)
		}
	}
	return b.String(), nil
}

// number drops leading zeros; nothing is 0.
func number(digits string) string {
	if digits = strings.TrimLeft(digits, "0"); digits == "" {
		return "0"
	}
	return digits
}

// Kinds of files, as the form of an upload calls them.
const (
	wheel = "bdist_wheel"
	sdist = "sdist"
)

// filename is what the name of a file says (PEP 427, PEP 625).
type filename struct {
	kind    string // wheel, sdist
	project string // normalized
	version string // normalized
	stem    string // of the folder in it: NAME-VERSION as the file spells it
}

var (
	wheelName  = regexp.MustCompile(`^[\w.]+$`)
	wheelBuild = regexp.MustCompile(`^[0-9][\w.]*$`)
	wheelTag   = regexp.MustCompile(`^[\w.]+$`)
)

// parseFilename reads a file's name. A name has one meaning, so that what is unique among
// files is unique in its version.
//
// Errors: meta.ErrInvalid.
func parseFilename(name string) (f filename, err error) {
	bad := func(why string) (filename, error) {
		return filename{}, fmt.Errorf("file name %.200q: %s: %w", name, why, meta.ErrInvalid)
	}
	if err := meta.CheckPath(name); err != nil || strings.ContainsAny(name, "/ ") {
		return bad("it is not a plain file name")
	}
	var project, number string
	switch base, isWheel := strings.CutSuffix(name, ".whl"); {
	case isWheel:
		parts := strings.Split(base, "-")
		if len(parts) != 5 && len(parts) != 6 {
			return bad("a wheel is NAME-VERSION[-BUILD]-PYTHON-ABI-PLATFORM.whl")
		}
		if len(parts) == 6 && !wheelBuild.MatchString(parts[2]) {
			return bad("the build number does not begin with a digit")
		}
		for _, tag := range parts[len(parts)-3:] {
			if !wheelTag.MatchString(tag) {
				return bad("a tag of the wheel is malformed")
			}
		}
		if project, number = parts[0], parts[1]; !wheelName.MatchString(project) {
			return bad("the project's name in it is malformed")
		}
		f.kind = wheel
	case strings.HasSuffix(name, ".tar.gz"), strings.HasSuffix(name, ".zip"):
		f.kind = sdist
		base = strings.TrimSuffix(strings.TrimSuffix(name, ".zip"), ".tar.gz")
		cut := strings.LastIndexByte(base, '-')
		if cut < 0 {
			return bad("a source distribution is NAME-VERSION.tar.gz")
		}
		project, number = base[:cut], base[cut+1:]
	default:
		return bad("use a wheel (.whl) or a source distribution (.tar.gz)")
	}
	if f.project, err = normalize(project); err != nil {
		return bad(err.Error())
	}
	if f.version, err = version(number); err != nil {
		return bad(err.Error())
	}
	f.stem = project + "-" + number
	return f, nil
}
