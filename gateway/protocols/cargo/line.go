package cargo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// line is a version in the index (the book, «Index Format»), without yanked, which is not
// the version's but a mark on it.
type line struct {
	Name        string              `json:"name"`
	Vers        string              `json:"vers"`
	Deps        []lineDep           `json:"deps"`
	Cksum       string              `json:"cksum"`
	Features    map[string][]string `json:"features"`
	Links       *string             `json:"links"`
	V           int                 `json:"v,omitempty"`
	Features2   map[string][]string `json:"features2,omitempty"`
	RustVersion *string             `json:"rust_version,omitempty"`
}

type lineDep struct {
	Name            string   `json:"name"`
	Req             string   `json:"req"`
	Features        []string `json:"features"`
	Optional        bool     `json:"optional"`
	DefaultFeatures bool     `json:"default_features"`
	Target          *string  `json:"target"`
	Kind            string   `json:"kind"`
	Registry        *string  `json:"registry"`
	Package         *string  `json:"package"`
}

// Bounds of what the index takes of a version.
const (
	maxLineBytes = 1 << 20
	maxDeps      = 2000
	maxFeatures  = 5000
)

// newLine makes the index's line of what cargo said of a crate with a checksum in hex.
//
// Errors: meta.ErrInvalid.
func newLine(m *metadata, cksum string) (line, error) {
	fail := func(format string, args ...any) (line, error) {
		return line{}, fmt.Errorf("crate %s %s: %s: %w", m.Name, m.Vers, fmt.Sprintf(format, args...), meta.ErrInvalid)
	}
	if len(m.Deps) > maxDeps || len(m.Features) > maxFeatures {
		return fail("%d dependencies and %d features are over the limits of %d and %d", len(m.Deps), len(m.Features), maxDeps, maxFeatures)
	}
	l := line{
		Name: m.Name, Vers: m.Vers, Deps: []lineDep{}, Cksum: cksum,
		Features: map[string][]string{}, Links: m.Links, RustVersion: m.RustVersion,
	}
	for _, d := range m.Deps {
		if err := checkName(d.Name); err != nil {
			return fail("dependency: %v", err)
		}
		dep := lineDep{
			Name: d.Name, Req: d.VersionReq, Features: orEmpty(d.Features), Optional: d.Optional, DefaultFeatures: d.DefaultFeatures,
			Target: d.Target, Kind: d.Kind, Registry: d.Registry,
		}
		if dep.Kind == "" {
			dep.Kind = "normal"
		}
		if !slices.Contains([]string{"normal", "dev", "build"}, dep.Kind) {
			return fail("dependency %s of kind %.50q", d.Name, d.Kind)
		}
		if dep.Req == "" || len(dep.Req) > 256 {
			return fail("dependency %s without a version, or with a long one", d.Name)
		}
		if d.ExplicitName != nil && *d.ExplicitName != "" {
			dep.Name, dep.Package = *d.ExplicitName, &d.Name
			if err := checkName(dep.Name); err != nil {
				return fail("dependency: %v", err)
			}
		}
		l.Deps = append(l.Deps, dep)
	}
	for name, values := range m.Features {
		values = orEmpty(values)
		// Older cargo does not know what these say, and must not fail for them (RFC 3143).
		if slices.ContainsFunc(values, func(v string) bool { return strings.HasPrefix(v, "dep:") || strings.Contains(v, "?/") }) {
			if l.Features2 == nil {
				l.Features2, l.V = map[string][]string{}, 2
			}
			l.Features2[name] = values
			continue
		}
		l.Features[name] = values
	}
	return l, nil
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// encode renders a line as it is kept: one JSON object, on one line.
//
// Errors: meta.ErrInvalid when it is over maxLineBytes.
func (l line) encode() ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false) // requirements are full of < and >
	err := e.Encode(l)
	b := bytes.TrimSuffix(out.Bytes(), []byte("\n"))
	if err == nil && len(b) > maxLineBytes {
		err = fmt.Errorf("the index line of %s %s has %d bytes, at most %d: %w", l.Name, l.Vers, len(b), maxLineBytes, meta.ErrInvalid)
	}
	return b, err
}

// withYanked writes a kept line as the index has it.
//
// Errors: meta.ErrCorrupt when it is none.
func withYanked(out *bytes.Buffer, kept []byte, yanked bool) error {
	head, ok := bytes.CutSuffix(kept, []byte("}"))
	if !ok || len(head) < 2 {
		return fmt.Errorf("an index line of %d bytes is no object: %w", len(kept), meta.ErrCorrupt)
	}
	out.Write(head)
	fmt.Fprintf(out, `,"yanked":%t}`+"\n", yanked)
	return nil
}

// check compares what was said of a crate with the Cargo.toml in it: cargo resolves by the
// index and builds by the file, and who reads the one must not be shown another.
//
// Errors: meta.ErrInvalid.
func (m *metadata) check(file *manifest) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("the Cargo.toml in the crate is not what was said of it: %s: %w", fmt.Sprintf(format, args...), meta.ErrInvalid)
	}
	if file.Package.Name != m.Name || file.Package.Version != m.Vers {
		return fail("it is of %.100s %.100s, not %s %s", file.Package.Name, file.Package.Version, m.Name, m.Vers)
	}
	if text(m.Links) != file.Package.Links {
		return fail("it links %.100q, not %.100q", file.Package.Links, text(m.Links))
	}
	said := map[string]bool{}
	for _, d := range m.Deps {
		name, pkg := d.Name, d.Name
		if d.ExplicitName != nil && *d.ExplicitName != "" {
			name = *d.ExplicitName
		}
		said[depKey(d.Kind, text(d.Target), name, pkg, d.VersionReq, d.Optional)] = true
	}
	has := map[string]bool{}
	for _, group := range file.groups() {
		for name, d := range group.deps {
			pkg := name
			if d.Package != "" {
				pkg = d.Package
			}
			// A development dependency without a version is by path, and left out.
			if d.Version == "" && group.kind == "dev" {
				continue
			}
			has[depKey(group.kind, group.target, name, pkg, d.Version, d.Optional)] = true
		}
	}
	if !maps.Equal(said, has) {
		for key := range said {
			if !has[key] {
				return fail("it lacks the dependency %.200s", key)
			}
		}
		for key := range has {
			if !said[key] {
				return fail("it has the dependency %.200s besides", key)
			}
		}
	}
	return nil
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// depKey is a dependency as both sides write it alike: what a requirement means by default
// and blanks are written by one and left out by the other.
func depKey(kind, target, name, pkg, req string, optional bool) string {
	if kind == "" {
		kind = "normal"
	}
	var parts []string
	for part := range strings.SplitSeq(req, ",") {
		part = strings.Join(strings.Fields(part), "")
		part = strings.TrimPrefix(part, "^")
		part = strings.NewReplacer("x", "*", "X", "*").Replace(part)
		parts = append(parts, part)
	}
	slices.Sort(parts)
	if len(parts) == 1 && parts[0] == "" {
		parts[0] = "*"
	}
	key := fmt.Sprintf("%s %s (%s) %s", kind, name, pkg, strings.Join(parts, ","))
	if target != "" {
		key += " for " + strings.Join(strings.Fields(target), "")
	}
	if optional {
		key += " optional"
	}
	return key
}
