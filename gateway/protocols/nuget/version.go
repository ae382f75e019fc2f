package nuget

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxIDBytes and maxVersionBytes are the bounds of nuget.org.
const (
	maxIDBytes      = 100
	maxVersionBytes = 64
)

// idPattern is nuget.org's, but for letters beyond ASCII: clients disagree about
// which of those are the same in lower case.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*$`)

// parseID returns the key of a package: its id in lower case.
//
// Errors: meta.ErrInvalid.
func parseID(id string) (string, error) {
	if len(id) > maxIDBytes || !idPattern.MatchString(id) {
		return "", fmt.Errorf("package id %q: use at most %d of A-Z, a-z, 0-9 and _, parted by single . or -: %w", id, maxIDBytes, meta.ErrInvalid)
	}
	return strings.ToLower(id), nil
}

// version is a NuGet version: SemVer 2.0.0 with an optional fourth number, fewer
// numbers than three allowed, and letters of either case the same
// (learn.microsoft.com/nuget/concepts/package-versioning).
type version struct {
	numbers  [4]uint32
	labels   []string // of the prerelease
	metadata string   // behind the +; says nothing about order or identity
}

// parseVersion reads a version as people write it: 1.0, 1.2.3.4, 1.0.0-Beta.1+build.
//
// Errors: meta.ErrInvalid.
func parseVersion(s string) (version, error) {
	v, ok := scanVersion(s)
	if !ok {
		return version{}, fmt.Errorf("version %q: write major.minor.patch[.revision][-prerelease][+metadata], at most %d bytes: %w", s, maxVersionBytes, meta.ErrInvalid)
	}
	return v, nil
}

func scanVersion(s string) (v version, ok bool) {
	if len(s) > maxVersionBytes {
		return v, false
	}
	s, metadata, has := strings.Cut(s, "+")
	if has {
		if !identifiers(metadata) {
			return v, false
		}
		v.metadata = metadata
	}
	s, prerelease, has := strings.Cut(s, "-")
	if has {
		if !identifiers(prerelease) {
			return v, false
		}
		v.labels = strings.Split(prerelease, ".")
	}
	parts := strings.Split(s, ".")
	if len(parts) > len(v.numbers) {
		return v, false
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 31) // clients hold them in an int32
		if err != nil || part[0] == '+' {
			return v, false
		}
		v.numbers[i] = uint32(n)
	}
	return v, true
}

// identifiers reports whether s is SemVer's dot-parted identifiers, none empty.
func identifiers(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || strings.ContainsFunc(part, func(r rune) bool {
			return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-')
		}) {
			return false
		}
	}
	return true
}

// normal is the normalized version as its publisher spelled it: at least three
// numbers, the fourth only when it is not 0, no leading zeros, no metadata.
func (v version) normal() string {
	b := make([]byte, 0, 16)
	for i, n := range v.numbers {
		if i == 3 && n == 0 {
			break
		}
		if i > 0 {
			b = append(b, '.')
		}
		b = strconv.AppendUint(b, uint64(n), 10)
	}
	if len(v.labels) > 0 {
		b = append(append(b, '-'), strings.Join(v.labels, ".")...)
	}
	return string(b)
}

// full is normal with the metadata.
func (v version) full() string {
	if v.metadata == "" {
		return v.normal()
	}
	return v.normal() + "+" + v.metadata
}

// key is what names the version here: normal in lower case.
func (v version) key() string { return strings.ToLower(v.normal()) }

func (v version) prerelease() bool { return len(v.labels) > 0 }

// semVer2 reports whether clients older than SemVer 2.0.0 cannot read it.
func (v version) semVer2() bool { return len(v.labels) > 1 || v.metadata != "" }

// compare orders versions as clients do: numbers, then prereleases below their release.
func (v version) compare(o version) int {
	for i := range v.numbers {
		if c := cmp.Compare(v.numbers[i], o.numbers[i]); c != 0 {
			return c
		}
	}
	switch {
	case len(v.labels) == 0 && len(o.labels) == 0:
		return 0
	case len(v.labels) == 0:
		return 1
	case len(o.labels) == 0:
		return -1
	}
	for i := range min(len(v.labels), len(o.labels)) {
		if c := compareLabels(v.labels[i], o.labels[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(v.labels), len(o.labels))
}

func compareLabels(a, b string) int {
	n, aIs := numeric(a)
	m, bIs := numeric(b)
	switch {
	case aIs && bIs:
		return cmp.Compare(n, m)
	case aIs:
		return -1
	case bIs:
		return 1
	}
	return strings.Compare(strings.ToLower(a), strings.ToLower(b))
}

// numeric returns the value of a label that clients compare as an int32.
func numeric(label string) (uint64, bool) {
	n, err := strconv.ParseUint(label, 10, 31)
	return n, err == nil && label[0] != '+'
}

// span is a range of versions that a dependency takes.
type span struct {
	low, high     *version
	lowIn, highIn bool
	floating      string // of a floating version, as it was written
}

// parseSpan reads a range in NuGet's notation: `1.0` is 1.0 or later, `[1.0,2.0)`
// an interval, empty all; a floating version is kept as it is.
//
// Errors: meta.ErrInvalid.
func parseSpan(s string) (span, error) {
	bad := func() (span, error) {
		return span{}, fmt.Errorf("version range %q: write 1.0, [1.0] or [1.0,2.0): %w", s, meta.ErrInvalid)
	}
	t := strings.TrimSpace(s)
	if t == "" {
		return span{}, nil
	}
	if len(t) > 2*maxVersionBytes+4 {
		return bad()
	}
	r := span{lowIn: true}
	low, high, pair := t, "", false
	if t[0] == '[' || t[0] == '(' {
		last := t[len(t)-1]
		if len(t) < 3 || last != ']' && last != ')' {
			return bad()
		}
		r.lowIn, r.highIn = t[0] == '[', last == ']'
		low, high, pair = strings.Cut(t[1:len(t)-1], ",")
		low, high = strings.TrimSpace(low), strings.TrimSpace(high)
		if !pair {
			if !r.lowIn || !r.highIn || low == "" {
				return bad()
			}
			high = low
		}
	}
	if strings.HasSuffix(low, "*") {
		if !floating(low) {
			return bad()
		}
		r.floating = t
		return r, nil
	}
	for _, end := range []struct {
		text string
		into **version
	}{{low, &r.low}, {high, &r.high}} {
		if end.text == "" {
			continue
		}
		v, ok := scanVersion(end.text)
		if !ok {
			return bad()
		}
		*end.into = &v
	}
	if r.low != nil && r.high != nil {
		if c := r.low.compare(*r.high); c > 0 || c == 0 && !(r.lowIn && r.highIn) {
			return bad()
		}
	}
	return r, nil
}

// floating reports whether s is a floating version: 1.*, 1.0.0-*, *.
func floating(s string) bool {
	s = strings.TrimSuffix(s, "*")
	for _, r := range s {
		if !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '.' || r == '*') {
			return false
		}
	}
	return true
}

// String is the normalized range, as registrations have it.
func (r span) String() string {
	if r.floating != "" {
		return r.floating
	}
	var b strings.Builder
	if r.lowIn && r.low != nil {
		b.WriteByte('[')
	} else {
		b.WriteByte('(')
	}
	if r.low != nil {
		b.WriteString(r.low.full())
	}
	b.WriteString(", ")
	if r.high != nil {
		b.WriteString(r.high.full())
	}
	if r.highIn && r.high != nil {
		b.WriteByte(']')
	} else {
		b.WriteByte(')')
	}
	return b.String()
}

// semVer2 reports whether an end of the range is.
func (r span) semVer2() bool {
	return r.low != nil && r.low.semVer2() || r.high != nil && r.high.semVer2()
}
