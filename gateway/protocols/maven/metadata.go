package maven

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxMetadataBytes bounds the maven-metadata.xml that a client sends, with room for
// 100,000 versions of long names.
const maxMetadataBytes = 16 << 20

// stampLayout is how Maven writes instants, in UTC.
const stampLayout = "20060102150405"

// named is what a client's metadata says that it has deployed.
type named struct {
	group, artifact string
	// base is the version of the document itself, a snapshot's.
	base string
	// releases are candidates for what was just deployed: what the document calls the
	// release, the latest, and the last of its list.
	releases []string
	// timestamp and build are of the snapshot's newest build.
	timestamp, build string
}

// parseMetadata reads what a client sends as maven-metadata.xml, in bounded memory.
//
// Errors: meta.ErrInvalid.
func parseMetadata(r io.Reader) (*named, error) {
	var n named
	var latest, release, last, root string
	err := walkXML(r, func(path, text string) error {
		switch path {
		case "metadata/groupId":
			n.group = text
		case "metadata/artifactId":
			n.artifact = text
		case "metadata/version":
			n.base = text
		case "metadata/versioning/latest":
			latest = text
		case "metadata/versioning/release":
			release = text
		case "metadata/versioning/versions/version":
			last = text
		case "metadata/versioning/snapshot/timestamp":
			n.timestamp = text
		case "metadata/versioning/snapshot/buildNumber":
			n.build = text
		}
		root, _, _ = strings.Cut(path, "/")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", metadataFile, err)
	}
	if root != "metadata" {
		return nil, fmt.Errorf("%s: the document is a %s: %w", metadataFile, root, meta.ErrInvalid)
	}
	for _, v := range []string{last, release, latest} {
		if v != "" && isVersion(v) && !slices.Contains(n.releases, v) {
			n.releases = append(n.releases, v)
		}
	}
	return &n, nil
}

// deployed returns the versions that the document says are complete; dir is the folder's
// base when it is the metadata of a snapshot, else "".
func (n *named) deployed(base string) []string {
	if base == "" {
		return n.releases
	}
	build := strings.TrimSuffix(base, snapshotSuffix) + "-" + n.timestamp + "-" + n.build
	if !isBuild(build) {
		return nil
	}
	return []string{build}
}

// artifactDocument is the metadata of an artifact and of a group of plugins, which may
// lie at one path.
type artifactDocument struct {
	group, artifact string // artifact "" when there is none of that name
	versions        []string
	plugins         []plugin
	updated         meta.Time
}

// plugin is what a group's metadata says of one of its plugins.
type plugin struct{ name, prefix, artifact string }

// write renders the document. versions are what readers choose from, in Maven's order:
// the builds of a snapshot are the snapshot.
func (d *artifactDocument) write(w io.Writer) error {
	x := newXMLWriter(w)
	x.open("metadata")
	if d.artifact != "" {
		slices.SortFunc(d.versions, func(a, b string) int {
			if c := compareVersions(a, b); c != 0 {
				return c
			}
			return strings.Compare(a, b)
		})
		x.text("groupId", d.group)
		x.text("artifactId", d.artifact)
		x.open("versioning")
		if n := len(d.versions); n > 0 {
			x.text("latest", d.versions[n-1])
		}
		for _, v := range slices.Backward(d.versions) {
			if !strings.HasSuffix(v, snapshotSuffix) {
				x.text("release", v)
				break
			}
		}
		x.open("versions")
		for _, v := range d.versions {
			x.text("version", v)
		}
		x.close("versions")
		x.text("lastUpdated", stamp(d.updated))
		x.close("versioning")
	}
	if len(d.plugins) > 0 {
		x.open("plugins")
		for _, p := range d.plugins {
			x.open("plugin")
			x.text("name", p.name)
			x.text("prefix", p.prefix)
			x.text("artifactId", p.artifact)
			x.close("plugin")
		}
		x.close("plugins")
	}
	x.close("metadata")
	return x.flush()
}

// snapshotDocument is the metadata of a snapshot: its newest build.
type snapshotDocument struct {
	group, artifact, base string
	build                 string // the version's name
	files                 []*gav
	updated               meta.Time
}

func (d *snapshotDocument) write(w io.Writer) error {
	_, at, _ := baseOf(d.build)
	timestamp, number, _ := strings.Cut(at, "-")
	x := newXMLWriter(w)
	x.openWith("metadata", `modelVersion="1.1.0"`)
	x.text("groupId", d.group)
	x.text("artifactId", d.artifact)
	x.text("version", d.base)
	x.open("versioning")
	x.open("snapshot")
	x.text("timestamp", timestamp)
	x.text("buildNumber", number)
	x.close("snapshot")
	x.text("lastUpdated", stamp(d.updated))
	x.open("snapshotVersions")
	for _, f := range d.files {
		x.open("snapshotVersion")
		if f.classifier != "" {
			x.text("classifier", f.classifier)
		}
		x.text("extension", f.extension)
		x.text("value", d.build)
		x.text("updated", stamp(d.updated))
		x.close("snapshotVersion")
	}
	x.close("snapshotVersions")
	x.close("versioning")
	x.close("metadata")
	return x.flush()
}

func stamp(t meta.Time) string { return t.Std().UTC().Truncate(time.Second).Format(stampLayout) }

// newerBuild orders the builds of one snapshot: by time, then by number.
func newerBuild(a, b string) int {
	_, at, _ := baseOf(a)
	_, bt, _ := baseOf(b)
	return compareBuilds(at, bt)
}

// compareBuilds orders `yyyymmdd.hhmmss-number`.
func compareBuilds(a, b string) int {
	at, an, _ := strings.Cut(a, "-")
	bt, bn, _ := strings.Cut(b, "-")
	if c := strings.Compare(at, bt); c != 0 {
		return c
	}
	if len(an) != len(bn) {
		return len(an) - len(bn) // no zeroes stand before a number
	}
	return strings.Compare(an, bn)
}

// xmlWriter writes elements, indented by two spaces; the first error stays.
type xmlWriter struct {
	w     *bufio.Writer
	depth int
}

func newXMLWriter(w io.Writer) *xmlWriter {
	x := &xmlWriter{w: bufio.NewWriter(w)}
	x.put(`<?xml version="1.0" encoding="UTF-8"?>`, "\n")
	return x
}

// put keeps its error in the bufio.Writer, which returns it from Flush.
func (x *xmlWriter) put(parts ...string) {
	for _, p := range parts {
		_, _ = x.w.WriteString(p)
	}
}

func (x *xmlWriter) indent() { x.put(strings.Repeat("  ", x.depth)) }

func (x *xmlWriter) open(name string) { x.openWith(name, "") }

func (x *xmlWriter) openWith(name, attribute string) {
	x.indent()
	x.put("<", name)
	if attribute != "" {
		x.put(" ", attribute)
	}
	x.put(">\n")
	x.depth++
}

func (x *xmlWriter) close(name string) {
	x.depth--
	x.indent()
	x.put("</", name, ">\n")
}

func (x *xmlWriter) text(name, value string) {
	x.indent()
	x.put("<", name, ">")
	_ = xml.EscapeText(x.w, []byte(value))
	x.put("</", name, ">\n")
}

func (x *xmlWriter) flush() error { return x.w.Flush() }
