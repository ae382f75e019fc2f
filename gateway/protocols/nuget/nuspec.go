package nuget

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net/url"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of a manifest.
const (
	maxManifestBytes = 1 << 20
	maxDependencies  = 10_000
	// maxTextBytes is how much of each long text a summary keeps.
	maxTextBytes = 4000
)

// manifest is what shoal keeps of a .nuspec: the record from which documents are
// rendered. Its JSON is a version's Summary, so its names never change.
type manifest struct {
	ID          string   `json:"id"`
	Version     string   `json:"version"` // full: with the metadata
	Title       string   `json:"title,omitempty"`
	Authors     string   `json:"authors,omitempty"`
	Description string   `json:"description,omitempty"`
	Summary     string   `json:"summary,omitempty"`
	Tags        []string `json:"tags,omitempty"`
	Language    string   `json:"language,omitempty"`
	ProjectURL  string   `json:"projectUrl,omitempty"`
	IconURL     string   `json:"iconUrl,omitempty"`
	LicenseURL  string   `json:"licenseUrl,omitempty"`
	License     string   `json:"license,omitempty"` // an SPDX expression
	Accept      bool     `json:"requireLicenseAcceptance,omitempty"`
	MinClient   string   `json:"minClientVersion,omitempty"`
	Types       []string `json:"packageTypes,omitempty"`
	SemVer2     bool     `json:"semVer2,omitempty"`
	Groups      []group  `json:"dependencyGroups,omitempty"`
	// Long says that the dependencies are too many for a summary: they are in the
	// .nuspec, which is stored beside the package.
	Long bool `json:"long,omitempty"`
}

// group are the dependencies for one target framework, "" for all.
type group struct {
	Framework    string       `json:"targetFramework,omitempty"`
	Dependencies []dependency `json:"dependencies,omitempty"`
}

// dependency is a package and the normalized range of its versions.
type dependency struct {
	ID    string `json:"id"`
	Range string `json:"range"`
}

// nuspec is the XML (learn.microsoft.com/nuget/reference/nuspec), of any of its
// namespaces.
type nuspec struct {
	XMLName xml.Name `xml:"package"`
	// Of what comes twice clients read the first and this decoder the last.
	Metadata []struct {
		MinClient   string   `xml:"minClientVersion,attr"`
		ID          []string `xml:"id"`
		Version     []string `xml:"version"`
		Title       string   `xml:"title"`
		Authors     string   `xml:"authors"`
		Description string   `xml:"description"`
		Summary     string   `xml:"summary"`
		Tags        string   `xml:"tags"`
		Language    string   `xml:"language"`
		ProjectURL  string   `xml:"projectUrl"`
		IconURL     string   `xml:"iconUrl"`
		LicenseURL  string   `xml:"licenseUrl"`
		License     struct {
			Type string `xml:"type,attr"`
			Text string `xml:",chardata"`
		} `xml:"license"`
		Accept string `xml:"requireLicenseAcceptance"`
		Types  struct {
			List []struct {
				Name string `xml:"name,attr"`
			} `xml:"packageType"`
		} `xml:"packageTypes"`
		Dependencies struct {
			Groups []struct {
				Framework    string          `xml:"targetFramework,attr"`
				Dependencies []xmlDependency `xml:"dependency"`
			} `xml:"group"`
			Dependencies []xmlDependency `xml:"dependency"`
		} `xml:"dependencies"`
	} `xml:"metadata"`
}

type xmlDependency struct {
	ID      string `xml:"id,attr"`
	Version string `xml:"version,attr"`
}

// parseManifest reads a .nuspec of at most maxManifestBytes.
//
// Errors: meta.ErrInvalid, saying what is wrong.
func parseManifest(b []byte) (manifest, error) {
	b, err := plainUTF8(b)
	if err != nil {
		return manifest{}, err
	}
	var x nuspec
	d := xml.NewDecoder(bytes.NewReader(b))
	// The bytes are UTF-8 by now, whatever the declaration says.
	d.CharsetReader = func(name string, r io.Reader) (io.Reader, error) {
		switch strings.ToLower(name) {
		case "utf-8", "utf-16", "us-ascii", "ascii", "unicode":
			return r, nil
		}
		return nil, fmt.Errorf("encoding %q, write it in UTF-8", name)
	}
	if err := d.Decode(&x); err != nil {
		return manifest{}, fmt.Errorf("the .nuspec is not its XML: %w: %w", err, meta.ErrInvalid)
	}
	if !ended(d) {
		return manifest{}, fmt.Errorf("the .nuspec has more than one document: %w", meta.ErrInvalid)
	}
	return x.manifest()
}

// ended reports whether nothing but white space and comments is left.
func ended(d *xml.Decoder) bool {
	for {
		t, err := d.Token()
		if err != nil {
			return err == io.EOF
		}
		switch t := t.(type) {
		case xml.StartElement:
			return false
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return false
			}
		}
	}
}

func (x *nuspec) manifest() (manifest, error) {
	if len(x.Metadata) != 1 || len(x.Metadata[0].ID) != 1 || len(x.Metadata[0].Version) != 1 {
		return manifest{}, fmt.Errorf("the .nuspec has not one metadata with one id and one version: %w", meta.ErrInvalid)
	}
	in := &x.Metadata[0]
	id := strings.TrimSpace(in.ID[0])
	if _, err := parseID(id); err != nil {
		return manifest{}, fmt.Errorf("the .nuspec: %w", err)
	}
	v, err := parseVersion(strings.TrimSpace(in.Version[0]))
	if err != nil {
		return manifest{}, fmt.Errorf("the .nuspec of %s: %w", id, err)
	}
	m := manifest{
		ID: id, Version: v.full(), SemVer2: v.semVer2(),
		Title: clean(in.Title), Authors: clean(in.Authors), Description: clean(in.Description), Summary: clean(in.Summary),
		Language: clean(in.Language), ProjectURL: link(in.ProjectURL), IconURL: link(in.IconURL), LicenseURL: link(in.LicenseURL),
		Accept: strings.EqualFold(strings.TrimSpace(in.Accept), "true"), MinClient: clean(in.MinClient),
	}
	if in.License.Type == "expression" {
		m.License = clean(in.License.Text)
	}
	for tag := range strings.FieldsFuncSeq(in.Tags, func(r rune) bool { return r == ' ' || r == ',' || r == ';' || r == '\n' || r == '\t' || r == '\r' }) {
		if len(m.Tags) < 100 {
			m.Tags = append(m.Tags, clean(tag))
		}
	}
	for _, t := range in.Types.List {
		if len(m.Types) < 16 {
			m.Types = append(m.Types, clean(t.Name))
		}
	}
	total := 0
	add := func(framework string, list []xmlDependency) error {
		g := group{Framework: clean(framework)}
		for _, d := range list {
			if total++; total > maxDependencies {
				return fmt.Errorf("the .nuspec of %s has more than %d dependencies: %w", id, maxDependencies, meta.ErrInvalid)
			}
			name := strings.TrimSpace(d.ID)
			if _, err := parseID(name); err != nil {
				return fmt.Errorf("a dependency of %s: %w", id, err)
			}
			r, err := parseSpan(d.Version)
			if err != nil {
				return fmt.Errorf("dependency %s of %s: %w", name, id, err)
			}
			m.SemVer2 = m.SemVer2 || r.semVer2()
			g.Dependencies = append(g.Dependencies, dependency{ID: name, Range: r.String()})
		}
		m.Groups = append(m.Groups, g)
		return nil
	}
	if len(in.Dependencies.Groups) > maxDependencies {
		return manifest{}, fmt.Errorf("the .nuspec of %s has more than %d groups: %w", id, maxDependencies, meta.ErrInvalid)
	}
	for _, g := range in.Dependencies.Groups {
		if err := add(g.Framework, g.Dependencies); err != nil {
			return manifest{}, err
		}
	}
	if len(in.Dependencies.Dependencies) > 0 {
		if err := add("", in.Dependencies.Dependencies); err != nil {
			return manifest{}, err
		}
	}
	return m, nil
}

// clean bounds a text and takes what no document can hold out of it.
func clean(s string) string {
	s = strings.TrimSpace(strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) > maxTextBytes {
		s = s[:maxTextBytes]
		for len(s) > 0 && !utf8.ValidString(s[max(0, len(s)-utf8.UTFMax):]) {
			s = s[:len(s)-1]
		}
	}
	return s
}

// link keeps an address that a person may follow: a package must not put a script
// into the page of whoever looks at it.
func link(s string) string {
	s = clean(s)
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return ""
	}
	return s
}

// plainUTF8 takes the byte order mark off, and UTF-16 apart.
func plainUTF8(b []byte) ([]byte, error) {
	var order func(hi, lo byte) uint16
	switch {
	case bytes.HasPrefix(b, []byte{0xEF, 0xBB, 0xBF}):
		return b[3:], nil
	case bytes.HasPrefix(b, []byte{0xFF, 0xFE}):
		order = func(first, second byte) uint16 { return uint16(second)<<8 | uint16(first) }
	case bytes.HasPrefix(b, []byte{0xFE, 0xFF}):
		order = func(first, second byte) uint16 { return uint16(first)<<8 | uint16(second) }
	default:
		return b, nil
	}
	if len(b)%2 != 0 {
		return nil, fmt.Errorf("the .nuspec is UTF-16 of an odd number of bytes: %w", meta.ErrInvalid)
	}
	units := make([]uint16, 0, len(b)/2)
	for i := 2; i < len(b); i += 2 {
		units = append(units, order(b[i], b[i+1]))
	}
	return []byte(string(utf16.Decode(units))), nil
}
