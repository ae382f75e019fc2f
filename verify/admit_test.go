package verify

import (
	"strings"
	"testing"

	godigest "github.com/opencontainers/go-digest"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

var (
	body  = []byte(`{"a manifest":true}`)
	layer = digest.FromBytes([]byte("layer"))
	other = digest.FromBytes([]byte("another image"))
)

// good is a draft that is admitted.
func good() Draft {
	d := digest.FromBytes(body)
	return Draft{
		Version: meta.Version{
			Repo: meta.RepoRef{Tenant: "acme", Name: "app"}, Package: "api", Name: string(d), Digest: d, Size: int64(len(body)),
			MediaType: "application/vnd.oci.image.manifest.v1+json", State: meta.StateClosed,
			References: []meta.Reference{{Digest: layer, Size: 5, MediaType: "application/vnd.oci.image.layer.v1.tar+gzip"}, {Digest: other, Size: 13, Version: true}},
		},
		Files:     []meta.File{{Path: "manifest.json", Digest: d, Size: int64(len(body))}},
		Documents: []Document{{Path: "manifest.json", Digest: d, Body: body}},
		Aliases:   []string{"1.0", "latest"},
		Held: func(d digest.Digest, version bool) (int64, bool) {
			switch {
			case d == layer && !version:
				return 5, true
			case d == other && version:
				return 13, true
			}
			return 0, false
		},
	}
}

func TestAdmit(t *testing.T) {
	verdict, findings := Admit(good())
	if verdict.Decision != DecisionPassed || verdict.Policy != PolicyWellFormed || len(verdict.Reasons) != 0 || len(findings) != 0 {
		t.Errorf("a good draft: %+v, %v", verdict, findings)
	}
	for _, test := range []struct {
		name string
		edit func(*Draft)
		want Rule
		says string
	}{
		{"other bytes", func(d *Draft) { d.Documents[0].Body = []byte("other") }, RuleDigest, "not " + string(digest.FromBytes(body))},
		{"a malformed digest", func(d *Draft) { d.Documents[0].Digest = "sha256:no" }, RuleDigest, "sha256:no"},
		{"an algorithm we do not have", func(d *Draft) {
			d.Version.References[0].Digest = "sha384:" + digest.Digest(strings.Repeat("a", 96))
		}, RuleDigest, "not supported"},
		{"another size", func(d *Draft) { d.Files[0].Size++ }, RuleSize, "as declared"},
		{"a version that is none of its files", func(d *Draft) { d.Version.Digest = layer }, RuleDigest, "no file of the version"},
		{"content that is not there", func(d *Draft) { d.Held = nil }, RuleReference, "does not hold " + string(layer)},
		{"a version that is a blob", func(d *Draft) { d.Version.References[1].Version = false }, RuleReference, string(other)},
		{"a blob of another size", func(d *Draft) { d.Version.References[0].Size = 6 }, RuleSize, "5 bytes, not 6"},
		{"a reference twice", func(d *Draft) {
			d.Version.References = append(d.Version.References, d.Version.References[0])
		}, RuleReference, "twice"},
		{"a file of nothing", func(d *Draft) {
			d.Files = append(d.Files, meta.File{Path: "x", Digest: digest.FromBytes([]byte("x")), Size: 1})
		}, RuleReference, "content of x"},
		{"a path twice", func(d *Draft) { d.Files = append(d.Files, d.Files[0]) }, RuleName, "occurs twice"},
		{"a path that climbs", func(d *Draft) { d.Files[0].Path = "../x" }, RuleName, ".."},
		{"a repository's name", func(d *Draft) { d.Version.Repo.Tenant = "Acme" }, RuleName, "Acme"},
		{"an alias's name", func(d *Draft) { d.Aliases[0] = strings.Repeat("a", 200) }, RuleName, "200 bytes"},
		{"no package", func(d *Draft) { d.Version.Package = "" }, RuleName, "package is empty"},
		{"a media type", func(d *Draft) { d.Version.MediaType = "tar" }, RuleMediaType, `"tar"`},
		{"a long media type", func(d *Draft) { d.Files[0].MediaType = "a/" + strings.Repeat("b", 300) }, RuleMediaType, "302 bytes"},
		{"a tombstone", func(d *Draft) { d.Version.State = meta.StateDeleted }, RuleBound, "deleted"},
		{"many aliases", func(d *Draft) { d.Aliases = make([]string, MaxAliases+1) }, RuleBound, "65 aliases"},
		{"much annotation", func(d *Draft) {
			d.Version.Annotations = map[string]string{"k": strings.Repeat("v", maxAnnotationBytes)}
		}, RuleBound, "annotations"},
		{"a large document", func(d *Draft) {
			d.Documents[0].Body = make([]byte, MaxDocumentBytes+1)
		}, RuleBound, "bytes of documents"},
		{"a malformed subject", func(d *Draft) { d.Version.Subject = "sha256:xyz" }, RuleDigest, "xyz"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := good()
			test.edit(&d)
			verdict, findings := Admit(d)
			if verdict.Decision != DecisionFailed || len(verdict.Reasons) == 0 {
				t.Fatalf("the verdict is %+v", verdict)
			}
			for _, f := range findings {
				if f.Rule == test.want && strings.Contains(f.Message, test.says) {
					return
				}
			}
			t.Errorf("no finding of %s says %q: %+v", test.want, test.says, findings)
		})
	}
}

// A subject may come after what refers to it, a document may be named by sha512,
// and a verdict keeps few reasons of many findings.
func TestAdmitAllows(t *testing.T) {
	d := good()
	d.Version.Subject = digest.FromBytes([]byte("not there yet"))
	d.Documents[0].Digest = godigest.SHA512.FromBytes(body)
	if verdict, findings := Admit(d); verdict.Decision != DecisionPassed {
		t.Errorf("refused: %v", findings)
	}
	d.Version.References = nil
	for i := range 1000 {
		d.Version.References = append(d.Version.References, meta.Reference{Digest: digest.FromBytes([]byte{byte(i), byte(i >> 8)})})
	}
	verdict, findings := Admit(d)
	if len(verdict.Reasons) != maxReasons || len(findings) != maxFindings {
		t.Errorf("%d reasons and %d findings", len(verdict.Reasons), len(findings))
	}
}

// Admit is pure: the same draft gets the same verdict, and is not changed.
func TestAdmitIsPure(t *testing.T) {
	d := good()
	d.Version.References[0].Size = 7
	first, f1 := Admit(d)
	second, f2 := Admit(d)
	if first.Reasons[0] != second.Reasons[0] || len(f1) != len(f2) {
		t.Errorf("%v and %v", f1, f2)
	}
}
