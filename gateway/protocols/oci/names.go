package oci

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// rootPackage is the package of a name without an image part. No image part can
// be called so: the grammar wants a letter or digit first.
const rootPackage = "_"

// maxNameBytes bounds a whole name (spec.md: many clients stop at 255 with the
// host).
const maxNameBytes = 255

// checkName checks the parts of a name. Tenant and repository are stricter than
// the specification's grammar, the image part is that grammar.
func checkName(repo meta.RepoRef, image string) error {
	if err := repo.Check(); err != nil {
		return &problem{code: codeNameInvalid, status: http.StatusBadRequest, err: err}
	}
	if image == "" {
		return nil
	}
	if len(repo.Tenant)+len(repo.Name)+len(image)+2 > maxNameBytes {
		return &problem{code: codeNameInvalid, status: http.StatusBadRequest,
			err: fmt.Errorf("name is over the limit of %d bytes: %w", maxNameBytes, meta.ErrInvalid)}
	}
	for part := range strings.SplitSeq(image, "/") {
		if !validComponent(part) {
			return &problem{code: codeNameInvalid, status: http.StatusBadRequest,
				err: fmt.Errorf("name part %q: use a-z and 0-9, between them one of . _ __ or hyphens: %w", part, meta.ErrInvalid)}
		}
	}
	return nil
}

// validComponent is [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)* (spec.md, Pulling Manifests).
func validComponent(s string) bool {
	alnum := func(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
	if s == "" || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if alnum(s[i]) {
			i++
			continue
		}
		from := i
		for !alnum(s[i]) { // ends: the last byte is alphanumeric
			i++
		}
		switch sep := s[from:i]; {
		case sep == "." || sep == "_" || sep == "__":
		case strings.Trim(sep, "-") == "":
		default:
			return false
		}
	}
	return true
}

// validTag is [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}.
func validTag(s string) bool {
	if s == "" || len(s) > meta.MaxAliasBytes || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '.', c == '-':
		default:
			return false
		}
	}
	return true
}

// reference is a tag or a digest; exactly one is set.
type reference struct {
	tag    string
	digest digest.Digest
}

func (r reference) String() string {
	if r.tag != "" {
		return r.tag
	}
	return string(r.digest)
}

// parseReference reads the last part of a manifest's path.
func parseReference(s string) (reference, error) {
	if strings.Contains(s, ":") {
		d, err := parseDigest(s)
		return reference{digest: d}, err
	}
	if !validTag(s) {
		return reference{}, &problem{code: codeTagInvalid, status: http.StatusBadRequest,
			err: fmt.Errorf("tag %q: use 1 to 128 of letters, digits, _ . and -, not . or - first: %w", s, meta.ErrInvalid)}
	}
	return reference{tag: s}, nil
}

func parseDigest(s string) (digest.Digest, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return "", &problem{code: codeDigestInvalid, status: http.StatusBadRequest,
			err: fmt.Errorf("digest %w: %w", err, meta.ErrInvalid)}
	}
	return d, nil
}

// splitName parts a name as it is written in `from=` and `last=`.
func splitName(name string) (repo meta.RepoRef, image string, err error) {
	tenant, rest, _ := strings.Cut(name, "/")
	repository, image, parted := strings.Cut(rest, "/")
	repo = meta.RepoRef{Tenant: meta.TenantName(tenant), Name: repository}
	if parted && image == "" {
		return repo, image, &problem{code: codeNameInvalid, status: http.StatusBadRequest,
			err: fmt.Errorf("name %q ends in a slash: %w", name, meta.ErrInvalid)}
	}
	return repo, image, checkName(repo, image)
}
