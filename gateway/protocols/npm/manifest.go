package npm

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// fields is a JSON object of which most is passed on as it is.
type fields map[string]json.RawMessage

func (f fields) set(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	f[name] = raw
	return nil
}

// text returns a field that is a string, "" otherwise.
func (f fields) text(name string) string {
	var s string
	if json.Unmarshal(f[name], &s) != nil {
		return ""
	}
	return s
}

func parseFields(raw []byte) (fields, error) {
	var f fields
	if err := json.Unmarshal(raw, &f); err != nil || f == nil {
		return nil, fmt.Errorf("it is no JSON object: %w", meta.ErrInvalid)
	}
	return f, nil
}

// sums are what a tarball hashes to.
type sums struct {
	sha1   string // hex
	sha512 digest.Digest
}

func (s sums) integrity() string {
	if s.sha512 == "" {
		return ""
	}
	raw, err := hex.DecodeString(s.sha512.Encoded())
	if err != nil {
		return ""
	}
	return "sha512-" + base64.StdEncoding.EncodeToString(raw)
}

// dist is what a manifest says of the tarball. What clients may have added beside it
// (signatures of a registry that they got it from) is of no account here.
type dist struct {
	Shasum    string `json:"shasum,omitempty"`
	Integrity string `json:"integrity,omitempty"`
	Tarball   string `json:"tarball,omitempty"`
	Files     int    `json:"fileCount,omitempty"`
	Bytes     int64  `json:"unpackedSize,omitempty"`
}

// check compares what a client says of its tarball with what came.
//
// Errors: *digest.MismatchError; meta.ErrInvalid.
func (d dist) check(got sums) error {
	if d.Shasum != "" && !strings.EqualFold(d.Shasum, got.sha1) {
		return fmt.Errorf("dist.shasum is %q and the tarball's sha1 is %s: %w", d.Shasum, got.sha1, meta.ErrInvalid)
	}
	for _, one := range strings.Fields(d.Integrity) {
		if strings.HasPrefix(one, "sha512-") && one != got.integrity() {
			return fmt.Errorf("dist.integrity is %s and the tarball's is %s: %w", one, got.integrity(), meta.ErrInvalid)
		}
	}
	return nil
}

// installed are the fields that decide what is installed: the tarball's own package.json
// has the word, not what the client says of it beside it.
var installed = []string{
	"dependencies", "devDependencies", "optionalDependencies", "peerDependencies", "peerDependenciesMeta",
	"bundleDependencies", "bundledDependencies", "engines", "os", "cpu", "libc", "bin", "directories",
}

// folderOfPrograms reports whether a package.json links all of a folder as programs: of
// that clients make the list of bin when they publish.
func (f fields) folderOfPrograms() bool {
	var directories struct {
		Bin string `json:"bin"`
	}
	return f["bin"] == nil && json.Unmarshal(f["directories"], &directories) == nil && directories.Bin != ""
}

// notKept are fields of a manifest that the registry says, or that clients read out of
// the tarball.
var notKept = []string{"readme", "readmeFilename", "deprecated", "_npmUser", "_attachments", "_rev", "_revisions", "hasInstallScript"}

// compose makes the manifest that is kept of a version: what the client says of it, the
// fields that decide what is installed from the tarball's package.json, and what was
// found out of the tarball.
//
// Errors: meta.ErrInvalid when manifest or package.json are malformed or are of another
// package or version.
func compose(name, version string, manifest []byte, c contents, s sums) ([]byte, error) {
	m, err := parseFields(manifest)
	if err != nil {
		return nil, fmt.Errorf("the manifest of %s: %w", version, err)
	}
	inside, err := parseFields(bytes.TrimPrefix(c.manifest, []byte("\xef\xbb\xbf")))
	if err != nil {
		return nil, fmt.Errorf("the tarball's package.json: %w", err)
	}
	for what, f := range map[string]fields{"the manifest": m, "the tarball's package.json": inside} {
		if got := f.text("name"); got != name {
			return nil, fmt.Errorf("%s is of package %q, not of %q: %w", what, got, name, meta.ErrInvalid)
		}
		if got := f.text("version"); cleanVersion(got) != version {
			return nil, fmt.Errorf("%s is of version %q, not of %q: %w", what, got, version, meta.ErrInvalid)
		}
	}
	var said struct {
		Dist dist `json:"dist"`
	}
	if err := json.Unmarshal(manifest, &said); err != nil {
		return nil, fmt.Errorf("the manifest of %s: dist: %v: %w", version, err, meta.ErrInvalid)
	}
	if err := said.Dist.check(s); err != nil {
		return nil, err
	}
	for _, field := range notKept {
		delete(m, field)
	}
	for _, field := range installed {
		if field == "bin" && inside.folderOfPrograms() {
			continue
		}
		delete(m, field)
		if raw, ok := inside[field]; ok {
			m[field] = raw
		}
	}
	scripts := map[string]json.RawMessage{}
	// Scripts that are no object run nowhere.
	_ = json.Unmarshal(inside["scripts"], &scripts)
	runs := c.gyp
	for _, hook := range []string{"preinstall", "install", "postinstall"} {
		runs = runs || scripts[hook] != nil
	}
	delete(m, "scripts")
	if len(scripts) > 0 {
		m["scripts"] = inside["scripts"]
	}
	if runs {
		m["hasInstallScript"] = json.RawMessage("true")
	}
	for field, v := range map[string]any{
		"name": name, "version": version, "_id": name + "@" + version,
		"dist": dist{Shasum: s.sha1, Integrity: s.integrity(), Files: c.files, Bytes: c.bytes},
	} {
		if err := m.set(field, v); err != nil {
			return nil, err
		}
	}
	return json.Marshal(m) // sorted and compact: the same bytes for the same content
}

// abbreviated are the fields of a version that installing needs (npm's registry
// documentation, package-metadata, abbreviated version object).
var abbreviated = []string{
	"name", "version", "deprecated", "dependencies", "optionalDependencies", "devDependencies", "bundleDependencies",
	"bundledDependencies", "peerDependencies", "peerDependenciesMeta", "acceptDependencies", "bin", "directories", "dist",
	"engines", "cpu", "os", "libc", "funding", "hasInstallScript", "_hasShrinkwrap",
}

// shorten keeps what an abbreviated document has of a version.
func (f fields) shorten() fields {
	short := make(fields, len(abbreviated))
	for _, name := range abbreviated {
		if raw, ok := f[name]; ok {
			short[name] = raw
		}
	}
	return short
}
