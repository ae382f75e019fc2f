package oci

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Codes of spec.md, Error Codes; TAG_INVALID and UNAVAILABLE are docker's.
const (
	codeBlobUnknown         = "BLOB_UNKNOWN"
	codeBlobUploadInvalid   = "BLOB_UPLOAD_INVALID"
	codeBlobUploadUnknown   = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     = "MANIFEST_INVALID"
	codeManifestUnknown     = "MANIFEST_UNKNOWN"
	codeNameInvalid         = "NAME_INVALID"
	codeNameUnknown         = "NAME_UNKNOWN"
	codeSizeInvalid         = "SIZE_INVALID"
	codeTagInvalid          = "TAG_INVALID"
	codeUnauthorized        = "UNAUTHORIZED"
	codeDenied              = "DENIED"
	codeUnsupported         = "UNSUPPORTED"
	codeTooManyRequests     = "TOOMANYREQUESTS"
	codeUnavailable         = "UNAVAILABLE"
	codeUnknown             = "UNKNOWN"
)

// problem is an error that knows its code. The status is that of its kind unless
// one is set.
type problem struct {
	code   string
	status int
	detail any
	err    error
}

func (p *problem) Error() string { return p.err.Error() }
func (p *problem) Unwrap() error { return p.err }

// coded gives err a code when it is of a kind; other errors keep theirs.
func coded(err, kind error, code string, detail any) error {
	var p *problem
	if err == nil || !errors.Is(err, kind) || errors.As(err, &p) {
		return err
	}
	return &problem{code: code, detail: detail, err: err}
}

func invalid(code, format string, args ...any) error {
	return &problem{code: code, status: http.StatusBadRequest, err: fmt.Errorf(format+": %w", append(args, meta.ErrInvalid)...)}
}

func nameUnknown(name string) error {
	return &problem{code: codeNameUnknown, detail: map[string]string{"name": name},
		err: fmt.Errorf("repository name %s is not known to the registry: %w", name, meta.ErrNotFound)}
}

// body is the document of an error answer (spec.md, Error Codes).
type body struct {
	Errors []item `json:"errors"`
}

type item struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

// WriteError implements protocol.Protocol.
func (p *Protocol) WriteError(w http.ResponseWriter, r *http.Request, err error) {
	h := w.Header()
	h[versionHeader] = versionValue
	if isReferrers(r) && errors.Is(err, meta.ErrNotFound) {
		// Referrers are never 404 (spec.md, Listing Referrers): nothing that the
		// caller may see refers to it.
		_ = writeReferrers(w, r, emptyReferrers)
		return
	}
	status := protocol.Fail(h, err)
	items, own := describe(r, err, status)
	if own != 0 {
		status = own
	}
	// The answer is an error already; that its client has gone changes nothing.
	_ = protocol.WriteJSON(w, status, body{Errors: items})
}

// maxItems bounds the errors of one answer.
const maxItems = 32

// describe renders err; status is what its kind has, own what it says itself.
func describe(r *http.Request, err error, status int) (items []item, own int) {
	var refused *catalog.RefusedError
	if errors.As(err, &refused) {
		for _, f := range refused.Findings[:min(len(refused.Findings), maxItems)] {
			items = append(items, finding(f))
		}
		return items, http.StatusBadRequest
	}
	one := item{Message: sentence(err)}
	var p *problem
	if errors.As(err, &p) {
		one.Code, one.Detail = p.code, p.detail
		return []item{one}, p.status
	}
	var mismatch *digest.MismatchError
	switch {
	case errors.As(err, &mismatch):
		one.Code, one.Message = codeDigestInvalid, mismatch.Error()
		one.Detail = map[string]string{"expected": string(mismatch.Want), "actual": string(mismatch.Got)}
	case errors.Is(err, digest.ErrUnsupported):
		one.Code = codeDigestInvalid
	case errors.Is(err, protocol.ErrNoRoute):
		one.Code, one.Message, one.Detail = noRoute(r)
	case status == http.StatusMethodNotAllowed, status == http.StatusRequestedRangeNotSatisfiable:
		one.Code = codeUnsupported
	case errors.Is(err, meta.ErrUnavailable), errors.Is(err, meta.ErrNoSpace), status == http.StatusServiceUnavailable:
		one.Code = codeUnavailable
	case errors.Is(err, meta.ErrNotFound):
		return notFound(r, one)
	case errors.Is(err, meta.ErrDenied):
		one.Code = codeDenied
	case errors.Is(err, meta.ErrOverQuota):
		one.Code = codeTooManyRequests
	case errors.Is(err, meta.ErrTooLarge):
		one.Code = codeSizeInvalid
	case errors.Is(err, meta.ErrExists), errors.Is(err, meta.ErrConflict):
		one.Code = codeDenied
	case errors.Is(err, meta.ErrInvalid):
		// Our handlers say which document is invalid; what is left is the gate's word
		// on the name.
		one.Code, one.Detail = codeNameInvalid, nameDetail(r)
	default:
		one.Code = codeUnknown
	}
	return []item{one}, 0
}

// notFound explains what the gate or the forwarding did not find.
func notFound(r *http.Request, one item) ([]item, int) {
	one.Code, one.Detail = codeNameUnknown, nameDetail(r)
	if _, upload, ok := strings.Cut(r.URL.Path, "/blobs/uploads/"); ok && upload != "" {
		one.Code = codeBlobUploadUnknown
	}
	if _, _, err := splitName(nameOf(r)); err != nil {
		// It is not there because it cannot be.
		return []item{{Code: codeNameInvalid, Message: sentence(err), Detail: one.Detail}}, http.StatusBadRequest
	}
	return []item{one}, 0
}

// sentence is what err says to people: that it is invalid they see by the code.
func sentence(err error) string {
	return strings.TrimSuffix(protocol.Message(err), ": "+meta.ErrInvalid.Error())
}

func finding(f verify.Finding) item {
	it := item{Code: codeManifestInvalid, Message: f.Message}
	if f.Digest != "" {
		it.Detail = map[string]string{"digest": string(f.Digest)}
	}
	switch f.Rule {
	case verify.RuleReference:
		it.Code = codeManifestBlobUnknown
	case verify.RuleDigest:
		it.Code = codeDigestInvalid
	case verify.RuleName:
		it.Code = codeNameInvalid
	}
	return it
}

// nameOf returns the name in the path of a request, "" when it has none.
func nameOf(r *http.Request) string {
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		return ""
	}
	for _, end := range []string{"/manifests/", "/blobs/", "/tags/", "/referrers/"} {
		if i := strings.LastIndex(rest, end); i >= 0 {
			name := rest[:i]
			return strings.TrimSuffix(name, "/blobs") // .../blobs/uploads/...
		}
	}
	return ""
}

func nameDetail(r *http.Request) any {
	if name := nameOf(r); name != "" {
		return map[string]string{"name": name}
	}
	return nil
}

// noRoute explains a path that nothing serves; mostly it is a name of one part,
// as docker writes for its Hub.
func noRoute(r *http.Request) (code, message string, detail any) {
	if name := nameOf(r); name != "" && !strings.Contains(name, "/") {
		return codeNameUnknown, fmt.Sprintf(
			"the name %q has one part; names here are tenant/repository or tenant/repository/image, as in acme/%s", name, name), nameDetail(r)
	}
	return codeUnsupported, "no such endpoint", nil
}

// Challenge implements protocol.Protocol: Bearer, by the docker token
// specification (distribution docs/content/spec/auth/token.md).
func (p *Protocol) Challenge(w http.ResponseWriter, r *http.Request, s protocol.Scope) {
	base := protocol.BaseURL(r)
	_, host, _ := strings.Cut(base, "://")
	value := fmt.Sprintf(`Bearer realm="%s/token",service="%s"`, base, host)
	if scope := scopeOf(s); scope != "" {
		value += fmt.Sprintf(`,scope="%s"`, scope)
	}
	message := "authentication required"
	if s.Cause != nil {
		value += `,error="invalid_token"`
		message = "the credentials are not valid: " + s.Cause.Error()
	}
	h := w.Header()
	h[versionHeader] = versionValue
	h.Set("Www-Authenticate", value)
	h.Set("Cache-Control", "no-store")
	_ = protocol.WriteJSON(w, http.StatusUnauthorized, body{Errors: []item{{Code: codeUnauthorized, Message: message}}})
}

// scopeOf writes a scope as clients ask for it at the token endpoint.
func scopeOf(s protocol.Scope) string {
	if s.Repo == (meta.RepoRef{}) {
		if s.Action == access.List {
			return "registry:catalog:*"
		}
		return ""
	}
	image := s.Params.Get("image")
	if checkName(s.Repo, image) != nil {
		return "" // it goes into a quoted header value
	}
	name := s.Repo.String()
	if image != "" {
		name += "/" + image
	}
	actions := "pull"
	switch s.Action {
	case access.Push:
		actions = "pull,push"
	case access.Delete:
		actions = "pull,delete"
	}
	return "repository:" + name + ":" + actions
}

// warn adds a Warning (spec.md, Warnings): text that clients show to people. All
// of an answer have 4096 bytes together; what no longer fits is left out.
func warn(h http.Header, text string) {
	var b strings.Builder
	b.WriteString(`299 - "`)
	for _, c := range text {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(byte(c))
		case c < ' ' || c > '~':
			b.WriteByte('?')
		default:
			b.WriteByte(byte(c))
		}
	}
	b.WriteByte('"')
	total := b.Len()
	for _, v := range h.Values("Warning") {
		total += len(v)
	}
	if total <= maxWarningBytes {
		h.Add("Warning", b.String())
	}
}

const maxWarningBytes = 4096
