package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Media types of manifests (image-spec media-types.md; distribution
// docs/content/spec/manifest-v2-2.md).
const (
	typeImage       = "application/vnd.oci.image.manifest.v1+json"
	typeIndex       = "application/vnd.oci.image.index.v1+json"
	typeArtifact    = "application/vnd.oci.artifact.manifest.v1+json" // withdrawn, still pushed by old clients
	typeDockerImage = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList  = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDockerV1    = "application/vnd.docker.distribution.manifest.v1+json"
	typeDockerV1JWS = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// Bounds of a manifest beyond its size. A reader that recurses must not be led
// deeper than this; no known document goes past 8.
const (
	maxDepth           = 64
	maxKeptAnnotations = 8 << 10 // bytes of annotations that go into the metadata
)

// descriptor is image-spec descriptor.md, as far as the registry reads it.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       digest.Digest     `json:"digest"`
	Size         int64             `json:"size"`
	URLs         []string          `json:"urls,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
}

// document is any manifest as it is written; fields that we do not know are let
// be, since the bytes are kept as they came.
type document struct {
	SchemaVersion *int              `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *descriptor       `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Manifests     []descriptor      `json:"manifests"`
	Blobs         []descriptor      `json:"blobs"`
	Subject       *descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
	FSLayers      json.RawMessage   `json:"fsLayers"`
}

// manifest is what the registry needs to know of a document.
type manifest struct {
	mediaType string
	// references must exist in the repository, elsewhere may live anywhere.
	references, elsewhere []meta.Reference
	subject               digest.Digest
	artifactType          string
	annotations           map[string]string
	warnings              []string
}

// manifestTypes are the media types that name a manifest of a package; other
// content is a blob.
func isManifestType(t string) bool {
	switch t {
	case typeImage, typeIndex, typeArtifact, typeDockerImage, typeDockerList:
		return true
	}
	return false
}

// parseManifest reads a pushed manifest. contentType is the request's, "" when
// it has none.
//
// Errors: *problem with MANIFEST_INVALID; 415 for a media type that no manifest of
// ours has.
func parseManifest(b []byte, contentType string) (*manifest, error) {
	bad := func(format string, args ...any) error {
		return invalid(codeManifestInvalid, "manifest: "+format, args...)
	}
	if !utf8.Valid(b) {
		return nil, bad("it is not UTF-8")
	}
	if depth(b) > maxDepth {
		return nil, bad("it nests deeper than %d", maxDepth)
	}
	if trimmed := bytes.TrimLeft(b, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '{' {
		return nil, bad("it is not a JSON object")
	}
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, bad("%v", err)
	}
	declared := baseType(contentType)
	if declared == "application/json" || declared == "application/octet-stream" {
		declared = "" // what tools send that know no better
	}
	if declared != "" && d.MediaType != "" && declared != d.MediaType {
		return nil, bad("it says mediaType %q, its Content-Type is %q", d.MediaType, declared)
	}
	m := &manifest{mediaType: declared}
	if m.mediaType == "" {
		m.mediaType = d.MediaType
	}
	if m.mediaType == "" {
		m.mediaType = guess(&d)
	}
	if err := m.read(&d, bad); err != nil {
		return nil, err
	}
	return m, nil
}

// guess names the type of a document that nobody named.
func guess(d *document) string {
	switch {
	case d.FSLayers != nil || d.SchemaVersion != nil && *d.SchemaVersion == 1:
		return typeDockerV1
	case d.Manifests != nil && d.Config == nil:
		return typeIndex
	}
	return typeImage
}

func baseType(contentType string) string {
	base, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		base, _, _ = strings.Cut(contentType, ";")
		base = strings.ToLower(strings.TrimSpace(base))
	}
	return base
}

func (m *manifest) read(d *document, bad func(string, ...any) error) error {
	switch m.mediaType {
	case typeImage, typeDockerImage:
		if d.Config == nil {
			return bad("an image manifest needs a config")
		}
		if d.Manifests != nil || d.Blobs != nil {
			// Read as another type it would name other content (CVE-2021-41190).
			return bad("an image manifest has no manifests and no blobs")
		}
		if err := m.blobs(bad, "config", *d.Config); err != nil {
			return err
		}
		if err := m.blobs(bad, "layer", d.Layers...); err != nil {
			return err
		}
		if m.artifactType = d.ArtifactType; m.artifactType == "" {
			m.artifactType = d.Config.MediaType
		}
	case typeIndex, typeDockerList:
		if d.Config != nil || d.Layers != nil || d.Blobs != nil {
			return bad("an index has no config, no layers and no blobs")
		}
		for _, e := range d.Manifests {
			if err := check(e, "entry", bad); err != nil {
				return err
			}
			// An index may also list blobs (build caches do).
			m.references = append(m.references, meta.Reference{
				Digest: e.Digest, Size: e.Size, MediaType: e.MediaType, Version: isManifestType(e.MediaType),
			})
		}
		m.artifactType = d.ArtifactType
	case typeArtifact:
		if d.Config != nil || d.Layers != nil || d.Manifests != nil {
			return bad("an artifact manifest has no config, no layers and no manifests")
		}
		if err := m.blobs(bad, "blob", d.Blobs...); err != nil {
			return err
		}
		m.artifactType = d.ArtifactType
	case typeDockerV1, typeDockerV1JWS:
		return bad("docker's schema 1 is not accepted, push the image with a client of the last eight years (schema 2 or OCI)")
	default:
		return &problem{code: codeManifestInvalid, status: http.StatusUnsupportedMediaType,
			err: fmt.Errorf("%q is no media type of a manifest; push other content as a blob of an artifact: %w", m.mediaType, meta.ErrInvalid)}
	}
	if m.mediaType != typeArtifact && (d.SchemaVersion == nil || *d.SchemaVersion != 2) {
		return bad("schemaVersion must be 2")
	}
	return m.refers(d, bad)
}

// refers reads subject and annotations.
func (m *manifest) refers(d *document, bad func(string, ...any) error) error {
	if d.Subject == nil {
		return nil
	}
	if m.mediaType == typeDockerImage || m.mediaType == typeDockerList {
		m.warnings = append(m.warnings, "the subject was ignored: manifests of docker's media types have none, push the OCI type")
		return nil
	}
	if err := check(*d.Subject, "subject", bad); err != nil {
		return err
	}
	m.subject, m.annotations = d.Subject.Digest, d.Annotations
	return nil
}

// blobs adds blobs of one role.
func (m *manifest) blobs(bad func(string, ...any) error, role string, ds ...descriptor) error {
	for _, d := range ds {
		if err := check(d, role, bad); err != nil {
			return err
		}
		r := meta.Reference{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}
		if nonDistributable(d.MediaType) {
			m.elsewhere = append(m.elsewhere, r)
		} else {
			m.references = append(m.references, r)
		}
	}
	return nil
}

func check(d descriptor, role string, bad func(string, ...any) error) error {
	if _, err := digest.Parse(string(d.Digest)); err != nil {
		return bad("the digest of a %s: %v", role, err)
	}
	switch {
	case d.Size < 0:
		return bad("%s %s has size %d", role, d.Digest, d.Size)
	case d.MediaType == "":
		return bad("%s %s has no mediaType", role, d.Digest)
	}
	return nil
}

// nonDistributable reports layers that a registry need not have (image-spec
// layer.md, Non-Distributable Layers, and docker's foreign layers).
func nonDistributable(t string) bool {
	return strings.HasPrefix(t, "application/vnd.oci.image.layer.nondistributable.") ||
		strings.HasPrefix(t, "application/vnd.docker.image.rootfs.foreign.")
}

// kept returns the annotations that go into the metadata, so that referrers can
// be listed without opening them. A long set stays in the document only; then
// inDocument stands for it.
func (m *manifest) kept() map[string]string {
	bytes := 0
	for k, v := range m.annotations {
		bytes += len(k) + len(v)
	}
	if bytes > maxKeptAnnotations {
		return map[string]string{inDocument: ""}
	}
	return m.annotations
}

// inDocument is the only key of annotations that were too long to keep; no
// annotation is called so (image-spec annotations.md: keys are not empty).
const inDocument = ""

// depth returns how deep the JSON in b nests. Malformed input gives some number.
func depth(b []byte) int {
	now, most, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			now++
			most = max(most, now)
		case c == '}' || c == ']':
			now--
		}
	}
	return most
}
