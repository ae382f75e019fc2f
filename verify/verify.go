// Package verify admits publications: it looks at what a protocol wants to make
// visible and gives the verdict that is kept with the version.
//
// Start reading at Draft and Admit. Admit is a pure function of its draft: it
// reads no clock, no disk and no metadata, so the same draft gets the same
// verdict on every node and in every test. Who calls it (gateway/catalog)
// gathers the facts: the bytes of the documents and what the repository holds
// of the content that they refer to. It checks
//
//   - that every document's bytes have the digest and size they are named by,
//   - that the version is described by one of its own files, unless it is open: then it
//     has no digest,
//   - that all referenced content is held, with the size that is declared,
//   - that media types, digests and sizes are well formed, and the draft bounded.
//
// Signatures, provenance, SBOMs, vulnerabilities and policy join as packages
// below this one (verify/signature ...); their outcomes become further findings
// of the same verdict. The package starts no goroutines.
package verify

import (
	"fmt"
	"mime"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Bounds of a draft. What they bound sits in memory while the draft is checked
// and, but for documents and references, in one command of the log.
const (
	MaxDocumentBytes   = 4 << 20 // all documents of a draft together
	MaxReferences      = 65536
	MaxFiles           = 256
	MaxAliases         = 64
	MaxMediaTypeBytes  = 255
	maxReasons         = 16 // reasons kept with the verdict; findings hold them all
	maxFindings        = 256
	DecisionPassed     = "passed"
	DecisionFailed     = "failed"
	PolicyWellFormed   = "well-formed" // the policy of a repository without one of its own
	maxAnnotationBytes = 24 << 10
)

// Draft is a version that somebody wants to publish, with all that is needed to
// judge it.
type Draft struct {
	Version meta.Version
	Files   []meta.File // each bound to a document of the draft or to held content
	// Documents are the bytes that the publish itself brings.
	Documents []Document
	Aliases   []string
	// Held answers for content that the repository has: its size in plain bytes,
	// or false. version selects the package's versions instead of its blobs. Nil
	// holds nothing.
	Held func(d digest.Digest, version bool) (size int64, ok bool)
}

// Document is a small file that is read as well as stored: an OCI manifest, a POM.
type Document struct {
	Path string
	// Digest is the name that the document is to have, sha256 or sha512.
	Digest digest.Digest
	Body   []byte
}

// Rule names what a finding breaks; a protocol maps it to its own error code.
type Rule string

// Rules of Admit.
const (
	RuleDigest    Rule = "digest"    // bytes that are not what their name says
	RuleSize      Rule = "size"      // a size that is not the content's, or over a bound
	RuleReference Rule = "reference" // content that the repository does not hold
	RuleMediaType Rule = "media-type"
	RuleName      Rule = "name" // a package, version, alias or path that may not be called so
	RuleBound     Rule = "bound"
)

// Finding is one broken rule. Digest is set where the finding is about content.
type Finding struct {
	Rule    Rule
	Digest  digest.Digest
	Message string
}

// Admit judges d.
//
// The verdict's Decision is passed when there is no finding, else failed with up
// to 16 reasons; its time is left to the log. Findings come in the order of the
// draft, at most 256 of them.
func Admit(d Draft) (meta.Verdict, []Finding) {
	c := check{draft: d}
	c.names()
	c.bounds()
	c.documents()
	c.files()
	c.references()
	verdict := meta.Verdict{Decision: DecisionPassed, Policy: PolicyWellFormed}
	for i, f := range c.findings {
		verdict.Decision = DecisionFailed
		if i < maxReasons {
			verdict.Reasons = append(verdict.Reasons, f.Message)
		}
	}
	return verdict, c.findings
}

// check is one run of Admit.
type check struct {
	draft    Draft
	findings []Finding
}

func (c *check) find(rule Rule, d digest.Digest, format string, args ...any) {
	if len(c.findings) < maxFindings {
		c.findings = append(c.findings, Finding{Rule: rule, Digest: d, Message: fmt.Sprintf(format, args...)})
	}
}

func (c *check) name(err error) {
	if err != nil {
		c.find(RuleName, "", "%v", err)
	}
}

func (c *check) names() {
	v := c.draft.Version
	c.name(v.Repo.Check())
	c.name(meta.CheckPackage(v.Package))
	c.name(meta.CheckVersion(v.Name))
	for _, a := range c.draft.Aliases {
		c.name(meta.CheckAlias(a))
	}
	c.name(v.Labels.Check())
	c.mediaType("the version", v.MediaType)
	c.mediaType("the artifact type", v.ArtifactType)
}

func (c *check) bounds() {
	d := c.draft
	total := 0
	for _, doc := range d.Documents {
		total += len(doc.Body)
	}
	annotations := 0
	for k, v := range d.Version.Annotations {
		annotations += len(k) + len(v)
	}
	for _, b := range []struct {
		what       string
		have, most int
	}{
		{"bytes of documents", total, MaxDocumentBytes},
		{"references", len(d.Version.References), MaxReferences},
		{"files", len(d.Files), MaxFiles},
		{"aliases", len(d.Aliases), MaxAliases},
		{"bytes of annotations", annotations, maxAnnotationBytes},
	} {
		if b.have > b.most {
			c.find(RuleBound, "", "%d %s are over the limit of %d", b.have, b.what, b.most)
		}
	}
	switch d.Version.State {
	case meta.StateStaged, meta.StateOpen, meta.StateClosed:
	default:
		c.find(RuleBound, "", "a version cannot be published as %q", d.Version.State)
	}
}

func (c *check) documents() {
	for _, doc := range c.draft.Documents {
		if !c.wellFormed(doc.Digest) {
			continue
		}
		if got := doc.Digest.Algorithm().FromBytes(doc.Body); got != doc.Digest {
			c.find(RuleDigest, doc.Digest, "%v", &digest.MismatchError{Want: doc.Digest, Got: got})
		}
	}
}

// files checks that each path has its content, and that one is the version's own.
func (c *check) files() {
	v := c.draft.Version
	described := false
	seen := make(map[string]bool, len(c.draft.Files))
	for _, f := range c.draft.Files {
		c.name(meta.CheckPath(f.Path))
		if seen[f.Path] {
			c.find(RuleName, f.Digest, "path %q occurs twice", f.Path)
		}
		seen[f.Path] = true
		c.mediaType(f.Path, f.MediaType)
		if !c.wellFormed(f.Digest) {
			continue
		}
		size, held := c.held(f.Digest)
		switch {
		case !held:
			c.find(RuleReference, f.Digest, "the repository does not hold %s, the content of %s", f.Digest, f.Path)
		case size != f.Size:
			c.find(RuleSize, f.Digest, "%s has %d bytes, not %d as declared", f.Path, size, f.Size)
		}
		described = described || f.Digest == v.Digest && f.Size == v.Size
	}
	if !described && (v.Digest != "" || v.State != meta.StateOpen) {
		c.find(RuleDigest, v.Digest, "no file of the version is %s with %d bytes", v.Digest, v.Size)
	}
}

// held looks among the draft's own documents first.
func (c *check) held(d digest.Digest) (int64, bool) {
	for _, doc := range c.draft.Documents {
		if doc.Digest == d || d.Algorithm().FromBytes(doc.Body) == d {
			return int64(len(doc.Body)), true
		}
	}
	if c.draft.Held == nil {
		return 0, false
	}
	return c.draft.Held(d, false)
}

func (c *check) references() {
	seen := make(map[digest.Digest]bool, len(c.draft.Version.References))
	for _, r := range c.draft.Version.References {
		if !c.wellFormed(r.Digest) {
			continue
		}
		c.mediaType(r.Digest.String(), r.MediaType)
		if seen[r.Digest] {
			c.find(RuleReference, r.Digest, "%s is referenced twice", r.Digest)
			continue
		}
		seen[r.Digest] = true
		var size int64
		var held bool
		if c.draft.Held != nil {
			size, held = c.draft.Held(r.Digest, r.Version)
		}
		switch {
		case !held:
			c.find(RuleReference, r.Digest, "the repository does not hold %s", r.Digest)
		case size != r.Size:
			c.find(RuleSize, r.Digest, "%s has %d bytes, not %d as declared", r.Digest, size, r.Size)
		}
	}
	if s := c.draft.Version.Subject; s != "" {
		c.wellFormed(s) // it need not exist yet
	}
}

func (c *check) wellFormed(d digest.Digest) bool {
	if _, err := digest.Parse(string(d)); err != nil {
		c.find(RuleDigest, d, "digest %v", err)
		return false
	}
	return true
}

// mediaType checks the form of RFC 6838, section 4.2; none is allowed.
func (c *check) mediaType(of, t string) {
	if t == "" {
		return
	}
	if len(t) > MaxMediaTypeBytes {
		c.find(RuleMediaType, "", "media type of %s has %d bytes, the limit is %d", of, len(t), MaxMediaTypeBytes)
		return
	}
	base, _, err := mime.ParseMediaType(t)
	if err != nil || strings.Count(base, "/") != 1 {
		c.find(RuleMediaType, "", "media type %q of %s is not type/subtype", t, of)
	}
}
