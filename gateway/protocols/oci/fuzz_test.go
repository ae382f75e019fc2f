package oci

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func FuzzManifest(f *testing.F) {
	const d = `"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2`
	for _, seed := range []string{
		`{"schemaVersion":2,"config":{"mediaType":"a/b",` + d + `},"layers":[{"mediaType":"a/b",` + d + `}]}`,
		`{"schemaVersion":2,"mediaType":"` + typeIndex + `","manifests":[{"mediaType":"` + typeImage + `",` + d + `}],"subject":{"mediaType":"a/b",` + d + `}}`,
		`{"mediaType":"` + typeArtifact + `","blobs":[],"annotations":{"a":"b"}}`,
		`{"schemaVersion":1,"fsLayers":[]}`, `[]`, `{`, ``, "\xff", `{"a":"\"}{"}`, strings.Repeat("[", 100),
	} {
		f.Add([]byte(seed), typeImage)
		f.Add([]byte(seed), "")
	}
	f.Fuzz(func(t *testing.T, b []byte, contentType string) {
		m, err := parseManifest(b, contentType)
		if err != nil {
			if m != nil {
				t.Error("a manifest beside an error")
			}
			return
		}
		// What is admitted is one of our types and names only well-formed content.
		if !isManifestType(m.mediaType) {
			t.Errorf("media type %q", m.mediaType)
		}
		if !json.Valid(b) {
			t.Error("not JSON")
		}
		for _, list := range [][]meta.Reference{m.references, m.elsewhere} {
			for _, r := range list {
				if _, err := digest.Parse(string(r.Digest)); err != nil || r.Size < 0 || r.MediaType == "" {
					t.Errorf("reference %+v: %v", r, err)
				}
			}
		}
		if m.subject == "" && m.annotations != nil {
			t.Error("annotations kept without a subject")
		}
		size := 0
		for k, v := range m.kept() {
			size += len(k) + len(v)
		}
		if size > maxKeptAnnotations {
			t.Errorf("%d bytes of annotations for the metadata", size)
		}
	})
}

// The grammars of the specification, as it writes them.
var (
	nameGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

func FuzzName(f *testing.F) {
	for _, seed := range []string{"api", "a/b", "a..b", "a__b", "a___b", "a---b", "a-_b", "-a", "a-", "A", "a//b", "a/", "é", "latest", ".x", "_x", strings.Repeat("a", 200)} {
		f.Add(seed)
	}
	repo := meta.RepoRef{Tenant: "acme", Name: "app"}
	f.Fuzz(func(t *testing.T, s string) {
		want := nameGrammar.MatchString(s) && len(repo.String())+1+len(s) <= maxNameBytes
		if err := checkName(repo, s); s != "" && (err == nil) != want {
			t.Errorf("name %q: %v, the grammar says %v", s, err, want)
		}
		if got, want := validTag(s), tagGrammar.MatchString(s); got != want {
			t.Errorf("tag %q: %v, the grammar says %v", s, got, want)
		}
		if ref, err := parseReference(s); err == nil && (ref.tag == "") == (ref.digest == "") {
			t.Errorf("reference %q is %+v", s, ref)
		}
		if r, image, err := splitName(s); err == nil {
			back := r.String()
			if image != "" {
				back += "/" + image
			}
			if back != s {
				t.Errorf("name %q parts into %s and %q", s, r, image)
			}
		}
	})
}

func FuzzWarning(f *testing.F) {
	f.Add("plain")
	f.Add("\"\\\r\nX: y\x00é")
	f.Fuzz(func(t *testing.T, s string) {
		h := map[string][]string{}
		warn(h, s)
		warn(h, s)
		total := 0
		for _, v := range h["Warning"] {
			total += len(v)
			if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("warning %q", v)
			}
		}
		if total > maxWarningBytes {
			t.Errorf("%d bytes of warnings", total)
		}
	})
}
