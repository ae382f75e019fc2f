package meta

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Limits of names, in bytes.
const (
	MaxPackageBytes = 255
	MaxVersionBytes = 255
	MaxAliasBytes   = 128
	MaxPathBytes    = 1024
	MaxLabels       = 64
)

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func checkName(what, s string) error {
	if !namePattern.MatchString(s) {
		return fmt.Errorf("%s %q: use 1 to 63 of a-z, 0-9 and inner hyphens: %w", what, s, ErrInvalid)
	}
	return nil
}

// CheckTenant checks the name of a tenant.
func CheckTenant(t TenantName) error { return checkName("tenant", string(t)) }

// CheckRegion checks the name of a region.
func CheckRegion(r RegionName) error { return checkName("region", string(r)) }

// Check checks both parts of the name of a repository.
func (r RepoRef) Check() error {
	if err := CheckTenant(r.Tenant); err != nil {
		return err
	}
	return checkName("repository", r.Name)
}

// ParseRepoRef reads `tenant/repository`.
func ParseRepoRef(s string) (RepoRef, error) {
	tenant, name, ok := strings.Cut(s, "/")
	if !ok {
		return RepoRef{}, fmt.Errorf("repository %q: write tenant/repository: %w", s, ErrInvalid)
	}
	r := RepoRef{Tenant: TenantName(tenant), Name: name}
	return r, r.Check()
}

func checkText(what, s string, maxBytes int) error {
	switch {
	case s == "":
		return fmt.Errorf("%s is empty: %w", what, ErrInvalid)
	case len(s) > maxBytes:
		return fmt.Errorf("%s of %d bytes is over the limit of %d: %w", what, len(s), maxBytes, ErrInvalid)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s %q is not UTF-8: %w", what, s, ErrInvalid)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%s %q has a control character: %w", what, s, ErrInvalid)
	}
	return nil
}

// CheckPackage, CheckVersion and CheckAlias check what every format agrees on;
// a protocol may be stricter.
func CheckPackage(s string) error { return checkText("package", s, MaxPackageBytes) }

// CheckVersion checks a version's name.
func CheckVersion(s string) error { return checkText("version", s, MaxVersionBytes) }

// CheckAlias checks an alias's name.
func CheckAlias(s string) error { return checkText("alias", s, MaxAliasBytes) }

// CheckPath checks the path of a file in a version: relative, clean, no dot segments.
func CheckPath(s string) error {
	if err := checkText("path", s, MaxPathBytes); err != nil {
		return err
	}
	if strings.ContainsRune(s, '\\') {
		return fmt.Errorf("path %q has a backslash: %w", s, ErrInvalid)
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("path %q: empty, . and .. parts are not allowed: %w", s, ErrInvalid)
		}
	}
	return nil
}

// Check bounds labels.
func (l Labels) Check() error {
	if len(l) > MaxLabels {
		return fmt.Errorf("%d labels are over the limit of %d: %w", len(l), MaxLabels, ErrInvalid)
	}
	for k, v := range l {
		if err := checkText("label", k, 63); err != nil {
			return err
		}
		if len(v) > 255 || !utf8.ValidString(v) {
			return fmt.Errorf("label %s: the value must be UTF-8 of at most 255 bytes: %w", k, ErrInvalid)
		}
	}
	return nil
}

// Match reports whether ref matches one of the patterns `tenant/repository`,
// where either part may end in *, and `*` alone matches all.
func Match(patterns []string, ref RepoRef) bool {
	for _, p := range patterns {
		if MatchPattern(p, ref) {
			return true
		}
	}
	return false
}

// MatchPattern is Match of one pattern.
func MatchPattern(p string, ref RepoRef) bool {
	if p == "*" {
		return true
	}
	tenant, name, ok := strings.Cut(p, "/")
	return ok && matchPart(tenant, string(ref.Tenant)) && matchPart(name, ref.Name)
}

// MatchTenant reports whether a pattern may match something of a tenant, CoversTenant
// whether it matches all of it.
func MatchTenant(p string, t TenantName) bool {
	tenant, _, ok := strings.Cut(p, "/")
	return p == "*" || ok && matchPart(tenant, string(t))
}

// CoversTenant is MatchTenant for all of a tenant.
func CoversTenant(p string, t TenantName) bool {
	return p == "*" || MatchTenant(p, t) && strings.HasSuffix(p, "/*")
}

func matchPart(pattern, s string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(s, prefix)
	}
	return pattern == s
}

// CheckPattern checks a read or write pattern.
func CheckPattern(p string) error {
	if p == "*" {
		return nil
	}
	tenant, name, ok := strings.Cut(p, "/")
	if !ok {
		return fmt.Errorf("pattern %q: write tenant/repository, either part may end in *: %w", p, ErrInvalid)
	}
	for _, part := range []string{tenant, name} {
		if prefix := strings.TrimSuffix(part, "*"); prefix == "" && part == "*" {
			continue
		} else if err := checkName("pattern part", strings.TrimSuffix(prefix, "-")); err != nil {
			return err
		}
	}
	return nil
}
