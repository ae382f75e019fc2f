package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/outbound"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	// maxFileBytes bounds a File of which the format says nothing.
	maxFileBytes = 256 << 30
	// stall ends a connection to an upstream on which no byte moves for so long;
	// staleAfter is how long the beginning of an answer is awaited when what is known can
	// serve instead.
	stall      = 30 * time.Second
	staleAfter = 5 * time.Second
	userAgent  = "shoal"
)

// errRefused says that the upstream wants other credentials.
var errRefused = fmt.Errorf("the upstream wants credentials, or other ones than the proxy has: %w", protocol.ErrUpstream)

// newClient returns the client for upstreams: a rule for addresses, none for the length
// of an answer, which each download has its own bound for.
func newClient(rules outbound.Rules) *http.Client {
	rules.Plain = true // an operator names the upstream, with its scheme
	rules.MaxBytes = 1 << 60
	rules.Timeout, rules.Stall = -1, stall
	client := outbound.Client(rules)
	follow := client.CheckRedirect
	client.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if !sameOrigin(r.URL, via[0].URL) {
			// net/http would tell them to hosts below the first one.
			r.Header.Del("Authorization")
		}
		return follow(r, via)
	}
	return client
}

// get is a flight: it looks again at what is known, and asks the upstream.
func (e *Engine) get(ctx context.Context, repo *meta.Repository, w *Want, key flightKey, into *arrival) (*Found, error) {
	e.metrics.flying.Inc()
	defer e.metrics.flying.Dec()
	known, asOf, err := e.known(ctx, catalog.Caller{Who: e.principal()}, repo, w)
	if err != nil {
		return nil, err
	}
	switch judge(known, w, repo.Upstream, e.cfg.Now()) {
	case serveKnown:
		return found(known, asOf), nil
	case sayAbsent:
		return nil, absent(repo.Ref, w)
	case askAnew:
		known = nil // it is not to be compared with
	}
	if until, ok := e.absences.Get(key); ok {
		if e.cfg.Now().Before(until) {
			return nil, absent(repo.Ref, w)
		}
		e.absences.Remove(key)
	}
	target, own, err := address(baseURL(repo), w.Path)
	if err != nil {
		return nil, err
	}
	if until, ok := e.down.Get(downKey{repo.Ref, target.Host}); ok && known != nil && e.cfg.Now().Before(until) {
		return nil, fmt.Errorf("upstream %s did not answer a moment ago: %w", target.Host, &meta.UnavailableError{Reason: "upstream_down", RetryAfter: downFor})
	}
	leave, err := e.place(ctx, repo.Ref.Tenant)
	if err != nil {
		return nil, err
	}
	defer leave()
	d := &download{engine: e, repo: repo, want: w, key: key, known: known, target: target, own: own, by: catalog.Caller{Who: e.principal()}, into: into}
	defer d.finish()
	if own && repo.Upstream.Credential != "" && e.cfg.Secrets != nil {
		if d.credential, err = e.cfg.Secrets(ctx, repo); err != nil {
			return nil, fmt.Errorf("credentials for the upstream of %s: %w", repo.Ref, err)
		}
	}
	return d.run(ctx)
}

// principal is who keeps what comes: the node itself.
func (e *Engine) principal() meta.Principal {
	return meta.Principal{Name: meta.KindNode + ":" + string(e.cfg.Self), Node: e.cfg.Self, Role: meta.RoleServer}
}

// address returns where a path is, and whether that is the upstream's own host.
func address(base, path string) (target *url.URL, own bool, err error) {
	root, err := url.Parse(base)
	if err != nil {
		return nil, false, fmt.Errorf("the upstream's URL: %w", meta.ErrInvalid)
	}
	if !absolute(path) {
		path = strings.TrimSuffix(base, "/") + "/" + strings.TrimPrefix(path, "/")
	}
	if target, err = url.Parse(path); err != nil {
		return nil, false, fmt.Errorf("upstream path %.200q: %w", path, meta.ErrInvalid)
	}
	return target, sameOrigin(target, root), nil
}

// sameOrigin reports whether two addresses are on one host: a redirect may have led to
// another one, which is told nothing.
func sameOrigin(a, b *url.URL) bool { return a.Host == b.Host && a.Scheme == b.Scheme }

// download gets one address, in several attempts when it must. What came of a body that
// broke off is kept for the next one.
type download struct {
	engine *Engine
	repo   *meta.Repository
	want   *Want
	key    flightKey
	known  *state.FetchedAnswer // what it is compared with, nil for nothing
	target *url.URL
	own    bool // the target is on the upstream's own host
	by     catalog.Caller

	credential Credential
	challenged bool // the upstream asked for a token, and one was got

	upload    *catalog.Upload
	sums      *sums
	into      *arrival   // nil when nobody reads while it arrives
	cut       *segmenter // of it
	validator string     // strong ETag of the bytes in upload
	total     int64      // of all, -1 when unknown
	head      meta.Fetched
}

// finish ends what the download has begun.
func (d *download) finish() {
	d.close()
	if d.cut != nil {
		d.cut.end()
	}
}

func (d *download) close() {
	if d.upload == nil {
		return
	}
	// Its client is this engine, which does not come back to it.
	ctx := context.WithoutCancel(d.engine.base)
	if err := errors.Join(d.upload.Cancel(ctx), d.upload.Close()); err != nil {
		d.engine.log.Debug("an upload of a download is left to expire", "repository", d.repo.Ref.String(), "error", err)
	}
	d.upload = nil
}

// downKey names a host that did not answer, as one repository asks it: what another
// tenant asks of it, and how it is refused, is no reason to believe old documents here.
type downKey struct {
	repo meta.RepoRef
	host string
}

// laterError says that the upstream cannot answer now.
type laterError struct {
	host  string
	why   string
	after time.Duration
	cause error
	ours  bool // the upstream did answer
}

func (e *laterError) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("upstream %s: %s: %v", e.host, e.why, e.cause)
	}
	return fmt.Sprintf("upstream %s: %s", e.host, e.why)
}

// Unwrap returns meta.ErrUnavailable.
func (e *laterError) Unwrap() error { return meta.ErrUnavailable }

// RetryIn is what a client is told to wait.
func (e *laterError) RetryIn() time.Duration { return max(e.after, time.Second) }

func (d *download) later(why string, after time.Duration, cause error) *laterError {
	return &laterError{host: d.target.Host, why: why, after: after, cause: cause}
}

func (d *download) run(ctx context.Context) (*Found, error) {
	for attempt := 1; ; attempt++ {
		f, err := d.try(ctx)
		var later *laterError
		if err != nil && ctx.Err() != nil {
			return nil, fmt.Errorf("download %.200q of the upstream of %s: %w", d.want.Path, d.repo.Ref, context.Cause(ctx))
		}
		if !errors.As(err, &later) {
			return f, err
		}
		d.engine.metrics.requests.WithLabelValues("failed").Inc()
		wait, again := pause(attempt, later.after)
		if (d.known != nil || !again) && later.ours {
			return nil, err
		}
		if d.known != nil || !again {
			d.engine.down.Add(downKey{d.repo.Ref, d.target.Host}, d.engine.cfg.Now().Add(max(downFor, min(later.after, time.Minute))))
			return nil, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("wait to ask upstream %s again: %w", d.target.Host, context.Cause(ctx))
		}
	}
}

// request makes the request of an attempt.
func (d *download) request(ctx context.Context) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, d.target.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("request to upstream %s: %w", d.target.Host, meta.ErrInvalid)
	}
	h := r.Header
	h.Set("User-Agent", userAgent)
	h.Set("Accept", cmp.Or(d.want.Accept, "*/*"))
	if d.want.Kind == File || d.want.Raw {
		h.Set("Accept-Encoding", "identity") // a checksum is of the file as it lies there
	}
	switch {
	case d.upload != nil && d.upload.Offset() > 0:
		h.Set("Accept-Encoding", "identity")
		h.Set("Range", "bytes="+strconv.FormatInt(d.upload.Offset(), 10)+"-")
		h.Set("If-Range", d.validator)
	case d.known != nil && !d.known.Fetched.Absent():
		if etag := d.known.Fetched.ETag; etag != "" {
			h.Set("If-None-Match", etag)
		}
		if modified := d.known.Fetched.LastModified; modified != "" {
			h.Set("If-Modified-Since", modified)
		}
	}
	d.authorize(r)
	return r, nil
}

// try asks once. What may be tried again is a *laterError.
func (d *download) try(ctx context.Context) (*Found, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slow := func() bool { return false }
	if d.known != nil {
		timer := time.AfterFunc(staleAfter, cancel)
		slow = func() bool { return !timer.Stop() }
		defer timer.Stop()
	}
	request, err := d.request(ctx)
	if err != nil {
		return nil, err
	}
	response, err := d.engine.client.Do(request)
	if err != nil {
		return nil, d.unanswered(err)
	}
	defer response.Body.Close()
	if slow() {
		return nil, d.later("no answer in time", 0, nil)
	}
	conditional := request.Header.Get("If-None-Match") != "" || request.Header.Get("If-Modified-Since") != ""
	if response.StatusCode == http.StatusPartialContent && request.Header.Get("Range") != "" {
		return d.resume(ctx, response)
	}
	if response.StatusCode == http.StatusRequestedRangeNotSatisfiable && request.Header.Get("Range") != "" {
		d.close() // it is another by now: from the beginning
		return nil, d.later("it has other bytes than a moment ago", 0, nil)
	}
	if response.StatusCode == http.StatusUnauthorized && !d.challenged && sameOrigin(response.Request.URL, d.target) {
		d.challenged, err = d.answerChallenge(ctx, response)
		if err != nil {
			return nil, err
		}
		if d.challenged {
			return d.try(ctx)
		}
	}
	switch meaning(response.StatusCode, conditional, d.mute(response)) {
	case hasBytes:
		d.engine.down.Remove(downKey{d.repo.Ref, d.target.Host})
		d.close()
		return d.receive(ctx, response)
	case unchanged:
		d.engine.down.Remove(downKey{d.repo.Ref, d.target.Host})
		d.engine.metrics.requests.WithLabelValues("unchanged").Inc()
		return d.keep(ctx, renewed(d.known.Fetched, response.Header), nil)
	case hasNone:
		d.engine.metrics.requests.WithLabelValues("absent").Inc()
		return nil, d.nothing(ctx, response.StatusCode)
	case refuses:
		d.engine.metrics.requests.WithLabelValues("refused").Inc()
		return nil, fmt.Errorf("%s answers %d to %.200q, which is no word on whether it is there: set its credentials with `shoal repo set %s --upstream-user --upstream-token-file`, or say with --allow which packages it has, or with --block which it has not: %w",
			d.target.Host, response.StatusCode, d.want.Path, d.repo.Ref, errRefused)
	case withholds:
		d.engine.metrics.requests.WithLabelValues("refused").Inc()
		return nil, fmt.Errorf("%s answers %d to %.200q: it may not give that out for legal reasons: %w", d.target.Host, response.StatusCode, d.want.Path, protocol.ErrUpstream)
	case failing:
		return nil, d.later(fmt.Sprintf("it answers %d", response.StatusCode), retryAfter(response.Header, d.engine.cfg.Now()), nil)
	}
	d.engine.metrics.requests.WithLabelValues("unusable").Inc()
	return nil, fmt.Errorf("upstream %s answers %d to %.200q: %w", d.target.Host, response.StatusCode, d.want.Path, protocol.ErrUpstream)
}

// mute reports whether a 401 says no more than that nothing is there: image registries
// offer a token (Bearer) to strangers, and say 401 to that token, too, of any image that
// is not public, be it there or not. Whoever has credentials of the registry is told. Of
// object stores that say 403 so, only those of trees of files are believed: no group looks
// further than a proxy of these.
func (d *download) mute(response *http.Response) bool {
	switch {
	case d.credential.Secret != "":
		return false
	case d.repo.Format == "apt" || d.repo.Format == "rpm":
		return response.StatusCode == http.StatusForbidden && (d.known == nil || d.known.Fetched.Absent())
	}
	return d.repo.Format == "oci" && response.StatusCode == http.StatusUnauthorized && parseChallenge(response.Header.Values("WWW-Authenticate"))["realm"] != ""
}

// unanswered says why there was no answer. The URL is left out: its query may be long,
// and net/http repeats it.
func (d *download) unanswered(err error) error {
	var refused *outbound.RefusedError
	if errors.As(err, &refused) {
		// Not a failure that passes: clients would only try again.
		return fmt.Errorf("upstream of %s: %w", d.repo.Ref, refused)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if n, ok := errors.AsType[net.Error](err); ok && n.Timeout() || errors.Is(err, context.Canceled) {
		return d.later("no answer in time", 0, nil)
	}
	return d.later("it cannot be reached", 0, err)
}

// renewed is what is known, with the validators of an answer that it is still so.
func renewed(f meta.Fetched, h http.Header) meta.Fetched {
	f.ETag = cmp.Or(text(h.Get("ETag")), f.ETag)
	f.LastModified = cmp.Or(text(h.Get("Last-Modified")), f.LastModified)
	return f
}

// text returns a header's value, "" when it cannot be kept.
func text(v string) string {
	if len(v) > 1024 || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return ""
	}
	return v
}

// nothing remembers that nothing is there, and says so.
func (d *download) nothing(ctx context.Context, status int) error {
	e := d.engine
	e.absences.Add(d.key, e.cfg.Now().Add(cmp.Or(d.repo.Upstream.NegativeTTL, NegativeTTL)))
	if status != http.StatusNotFound && status != http.StatusGone {
		// A refusal that may be about us, not about what is there: it is not kept.
		return absent(d.repo.Ref, d.want)
	}
	if d.known == nil && !e.durable.Allow() {
		return absent(d.repo.Ref, d.want)
	}
	f := d.record()
	f.Status = status
	if _, _, err := e.cfg.Catalog.KeepFetched(ctx, d.by, f, nil); err != nil {
		e.log.Debug("what an upstream does not have is not kept", "repository", d.repo.Ref.String(), "path", d.want.Path, "error", err)
	}
	return absent(d.repo.Ref, d.want)
}

// record begins the record of what is wanted.
func (d *download) record() meta.Fetched {
	path, accept := d.want.record()
	return meta.Fetched{Repo: d.repo.Ref, Path: path, Accept: accept, Package: text(d.want.Package), Version: text(d.want.Version), Upstream: d.want.upstream(d.repo)}
}

// receive takes the whole body of an answer.
func (d *download) receive(ctx context.Context, response *http.Response) (*Found, error) {
	h := response.Header
	d.head = d.record()
	d.head.MediaType, d.head.ETag, d.head.LastModified = mediaType(h.Get("Content-Type")), text(h.Get("ETag")), text(h.Get("Last-Modified"))
	d.head.Link, d.head.Immutable = text(h.Get("Link")), d.want.Kind == File
	if encoding := h.Get("Content-Encoding"); encoding != "" && encoding != "identity" && d.want.Kind == Document && !d.want.Raw {
		return nil, fmt.Errorf("upstream %s encodes %.200q as %q, unasked: %w", d.target.Host, d.want.Path, encoding, protocol.ErrUpstream)
	}
	d.validator, d.total = "", response.ContentLength
	if etag := d.head.ETag; strings.HasPrefix(etag, `"`) && h.Get("Accept-Ranges") == "bytes" && d.want.Kind == File {
		d.validator = etag
	}
	var err error
	if d.upload, err = d.engine.cfg.Catalog.Begin(ctx, d.by, d.repo.Ref, d.want.Digest != "" && d.want.Digest.Algorithm() == "sha512"); err != nil {
		return nil, err
	}
	d.sums = newSums(d.want.Sums)
	switch {
	case d.cut != nil:
		d.cut.off = true // it had other bytes, perhaps
	case d.into != nil && (d.total < 0 || d.total >= minArriving) && d.engine.roomTwice(ctx, d.repo.Ref.Tenant, d.total):
		d.cut = d.engine.segment(ctx, d.repo.Ref, d.head, d.total, d.into)
	}
	return d.copy(ctx, response.Body)
}

// roomTwice reports whether a tenant has room for a file and its segments, of which nobody
// may know how large they become: they must not take what its quota has left for the file.
func (e *Engine) roomTwice(ctx context.Context, tenant meta.TenantName, size int64) bool {
	a, _, err := raftmeta.Ask(ctx, e.cfg.Metadata, meta.Local, state.GetUsage{Tenant: tenant})
	quota := a.Tenant.Limits.StorageBytes
	if err != nil || quota == 0 {
		return true
	}
	return size >= 0 && size <= (quota-a.Bytes-a.Reserved)/2
}

// resume goes on with a body that broke off.
func (d *download) resume(ctx context.Context, response *http.Response) (*Found, error) {
	at := d.upload.Offset()
	var first, last, total int64
	if n, err := fmt.Sscanf(response.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &total); err != nil || n != 3 || first != at || total <= last || d.total >= 0 && total != d.total {
		d.close()
		return nil, d.later("it goes on somewhere else", 0, nil)
	}
	d.total = total
	return d.copy(ctx, response.Body)
}

// bodyError is an error of the upstream's body, not of what keeps it.
type bodyError struct{ cause error }

func (e *bodyError) Error() string { return e.cause.Error() }
func (e *bodyError) Unwrap() error { return e.cause }

// errTooLong is in a bodyError when the answer is over its bound.
var errTooLong = errors.New("the answer is over its bound")

// body reads an upstream's body, hashes and counts it.
type body struct {
	download *download
	r        io.Reader
	left     int64
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	if int64(n) > b.left {
		return 0, &bodyError{errTooLong}
	}
	b.left -= int64(n)
	_, _ = b.download.sums.Write(p[:n])
	if cut := b.download.cut; cut != nil {
		_, _ = cut.Write(p[:n])
	}
	b.download.engine.metrics.bytes.Add(float64(n))
	if err != nil && err != io.EOF {
		err = &bodyError{err}
	}
	return n, err
}

// copy is the one place where an upstream's bytes pass: into the upload, behind those
// that are there. Then they are checked, and kept.
func (d *download) copy(ctx context.Context, r io.Reader) (*Found, error) {
	limit := d.want.MaxBytes
	switch {
	case limit == 0 && d.want.Kind == Document:
		limit = MaxDocumentBytes
	case limit == 0:
		limit = maxFileBytes
	}
	tooLong := fmt.Errorf("upstream %s: %.200q is over the bound of %d bytes: %w", d.target.Host, d.want.Path, limit, meta.ErrTooLarge)
	if d.total > limit {
		return nil, tooLong
	}
	_, err := d.upload.Append(ctx, &body{download: d, r: r, left: limit - d.upload.Offset()})
	if broke, ok := errors.AsType[*bodyError](err); ok {
		if errors.Is(broke, errTooLong) {
			return nil, tooLong
		}
		if d.validator == "" || d.sums.size != d.upload.Offset() {
			d.close() // nothing says that it would go on with the same bytes
		}
		return nil, d.later("its answer broke off", 0, broke.cause)
	}
	if err != nil {
		return nil, err
	}
	if at := d.upload.Offset(); d.total >= 0 && at != d.total {
		// A server may send less than the range that it was asked for (RFC 9110, 15.3.7).
		if d.validator == "" || at > d.total {
			d.close()
		}
		return nil, d.later("its answer broke off", 0, nil)
	}
	if mismatch := d.sums.check(); mismatch != nil {
		return nil, d.mismatched(mismatch)
	}
	stored, err := d.upload.Store(ctx, d.want.Digest)
	if mismatch, ok := errors.AsType[*digest.MismatchError](err); ok {
		return nil, d.mismatched(mismatch)
	}
	if err != nil {
		return nil, err
	}
	d.engine.metrics.requests.WithLabelValues("bytes").Inc()
	return d.keep(ctx, d.head, &stored)
}

func (d *download) mismatched(m *digest.MismatchError) error {
	d.engine.metrics.requests.WithLabelValues("mismatch").Inc()
	d.engine.log.Warn("an upstream sent other bytes than were promised, they were not kept",
		"repository", d.repo.Ref.String(), "upstream", d.target.Host, "path", d.want.Path, "want", m.Want, "got", m.Got)
	return &IntegrityError{Path: d.want.Path, Mismatch: m}
}

// keep records what came, and answers with it.
func (d *download) keep(ctx context.Context, f meta.Fetched, stored *catalog.Stored) (*Found, error) {
	a, asOf, err := d.engine.cfg.Catalog.KeepFetched(ctx, d.by, f, stored)
	if d.want.Passing && (err == nil && a.Fetched.Upstream != f.Upstream || errors.Is(err, meta.ErrInvalid)) {
		d.known = nil // if it was compared with that, it is gone
		later := d.later("another answer took the place of what it said, as there are many such questions", 0, nil)
		later.ours = true
		return nil, later
	}
	if err != nil {
		return nil, err
	}
	return found(&a, asOf), nil
}

func mediaType(contentType string) string {
	t, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return ""
	}
	return text(mime.FormatMediaType(t, params))
}

func isCanceled(err error) bool { return errors.Is(err, context.Canceled) }
