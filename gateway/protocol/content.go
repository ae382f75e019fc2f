package protocol

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// maxRanges bounds the parts of one answer; a request for more gets everything.
const maxRanges = 16

// Cache says how long others may keep an answer.
type Cache uint8

// Ways to cache. NoStore is for what must not outlive the answer, Immutable for
// what is named by its digest, Revalidate for what can move: it is kept, and
// asked for again with its ETag each time.
const (
	NoStore Cache = iota
	Immutable
	Revalidate
)

// Header returns the Cache-Control. Only what anybody may read is public: a
// shared cache in front must not hand private content around.
func (c Cache) Header(public bool) string {
	scope := "private"
	if public {
		scope = "public"
	}
	switch c {
	case Immutable:
		return scope + ", max-age=31536000, immutable"
	case Revalidate:
		return scope + ", no-cache"
	}
	return "no-store"
}

// Content is bytes of known size to be sent by Serve.
type Content struct {
	Size int64
	// MediaType is the Content-Type; "" is application/octet-stream.
	MediaType string
	// ETag is strong and quoted, as ETag returns it; "" for none.
	ETag string
	// Modified is the Last-Modified; zero for none.
	Modified time.Time
	Cache    Cache
	// Public says that anybody may read it.
	Public bool
	// Open returns the bytes from offset 0. It is called only when bytes are to be
	// sent, once, with the request's context.
	Open func(context.Context) (io.ReadSeekCloser, error)
}

// ETag returns the strong entity tag of a digest.
func ETag(d digest.Digest) string { return `"` + string(d) + `"` }

// ServeBytes sends a document held in memory; Size and Open of c are filled in,
// and its ETag, when empty, is the digest of b.
func ServeBytes(w http.ResponseWriter, r *http.Request, b []byte, c Content) error {
	c.Size = int64(len(b))
	if c.ETag == "" {
		c.ETag = ETag(digest.FromBytes(b))
	}
	c.Open = func(context.Context) (io.ReadSeekCloser, error) {
		return nopCloser{bytes.NewReader(b)}, nil
	}
	return Serve(w, r, c)
}

type nopCloser struct{ *bytes.Reader }

func (nopCloser) Close() error { return nil }

// Serve answers a GET or HEAD with c, honouring conditions (RFC 9110 section
// 13), Range and If-Range (section 14, up to 16 parts). The headers that the
// caller has set before stay.
//
// Errors: ErrPrecondition, *RangeError and those of Open before anything is
// written; of the reader or the client after, and then the answer is cut off.
func Serve(w http.ResponseWriter, r *http.Request, c Content) error {
	h := w.Header()
	if c.MediaType == "" {
		c.MediaType = "application/octet-stream"
	}
	h.Set("Content-Type", c.MediaType)
	h.Set("Cache-Control", c.Cache.Header(c.Public))
	h.Set("X-Content-Type-Options", "nosniff")
	if c.ETag != "" {
		h.Set("Etag", c.ETag)
	}
	if !c.Modified.IsZero() {
		h.Set("Last-Modified", c.Modified.UTC().Format(http.TimeFormat))
	}
	notModified, err := Preconditions(r, c.ETag, c.Modified)
	if err != nil {
		return err
	}
	if notModified {
		h.Del("Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Accept-Ranges", "bytes")
	if r.Method == http.MethodHead { // a Range is for GET only (RFC 9110, 14.2)
		h.Set("Content-Length", strconv.FormatInt(c.Size, 10))
		w.WriteHeader(http.StatusOK)
		return nil
	}
	ranges, err := requestedRanges(r, c)
	if err != nil {
		return err
	}
	body, err := c.Open(r.Context())
	if err != nil {
		return err
	}
	defer body.Close()
	switch len(ranges) {
	case 0:
		h.Set("Content-Length", strconv.FormatInt(c.Size, 10))
		w.WriteHeader(http.StatusOK)
		if c.Size == 0 {
			return nil
		}
		return send(w, r, body, span{0, c.Size}, c.Size)
	case 1:
		h.Set("Content-Range", ranges[0].contentRange(c.Size))
		h.Set("Content-Length", strconv.FormatInt(ranges[0].length, 10))
		w.WriteHeader(http.StatusPartialContent)
		return send(w, r, body, ranges[0], c.Size)
	}
	return sendParts(w, body, ranges, c)
}

// span is a range of bytes.
type span struct{ start, length int64 }

func (s span) contentRange(size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", s.start, s.start+s.length-1, size)
}

// send copies one span. A whole body goes by the reader's own WriteTo, which
// knows best how to read ahead. Not in HTTP/2: there a Write returns as soon as the
// client has reset the stream, when another goroutine may still read its bytes, and
// those of the reader are unmapped memory soon after.
func send(w io.Writer, r *http.Request, body io.ReadSeeker, s span, size int64) error {
	var n int64
	var err error
	if wt, ok := body.(io.WriterTo); ok && s.start == 0 && s.length == size && r.ProtoMajor < 2 {
		n, err = wt.WriteTo(w)
	} else {
		if s.start != 0 {
			if _, err := body.Seek(s.start, io.SeekStart); err != nil {
				return fmt.Errorf("seek to %d: %w", s.start, err)
			}
		}
		n, err = io.CopyN(w, body, s.length)
	}
	if err == nil && n != s.length {
		err = fmt.Errorf("%w: the reader has another size", meta.ErrCorrupt)
	}
	if err != nil {
		return fmt.Errorf("send bytes from %d, %d of %d sent: %w", s.start, n, s.length, err)
	}
	return nil
}

// sendParts answers several ranges as multipart/byteranges. Each part seeks for
// itself, so the ranges may overlap and go backwards.
func sendParts(w http.ResponseWriter, body io.ReadSeeker, ranges []span, c Content) error {
	part := func(s span) textproto.MIMEHeader {
		return textproto.MIMEHeader{"Content-Type": {c.MediaType}, "Content-Range": {s.contentRange(c.Size)}}
	}
	// The envelope's length is known before a byte is sent, by writing it empty.
	var envelope counter
	mw := multipart.NewWriter(&envelope)
	boundary := mw.Boundary()
	total := int64(0)
	for _, s := range ranges {
		if _, err := mw.CreatePart(part(s)); err != nil {
			return fmt.Errorf("range envelope: %w", err)
		}
		total += s.length
	}
	if err := mw.Close(); err != nil {
		return fmt.Errorf("range envelope: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "multipart/byteranges; boundary="+boundary)
	h.Set("Content-Length", strconv.FormatInt(total+int64(envelope), 10))
	w.WriteHeader(http.StatusPartialContent)
	mw = multipart.NewWriter(w)
	if err := mw.SetBoundary(boundary); err != nil {
		return fmt.Errorf("range envelope: %w", err)
	}
	for _, s := range ranges {
		pw, err := mw.CreatePart(part(s))
		if err != nil {
			return fmt.Errorf("send part: %w", err)
		}
		if _, err := body.Seek(s.start, io.SeekStart); err != nil {
			return fmt.Errorf("seek to %d: %w", s.start, err)
		}
		if n, err := io.CopyN(pw, body, s.length); err != nil {
			return fmt.Errorf("send bytes from %d, %d of %d sent: %w", s.start, n, s.length, err)
		}
	}
	return mw.Close()
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// requestedRanges returns the ranges to send; none means everything.
func requestedRanges(r *http.Request, c Content) ([]span, error) {
	header := r.Header.Get("Range")
	if header == "" || !ifRange(r, c) {
		return nil, nil
	}
	spec, ok := strings.CutPrefix(header, "bytes=")
	if !ok {
		return nil, nil // another unit: the header is ignored
	}
	ranges, err := parseRanges(spec, c.Size)
	if errors.Is(err, errRangeSyntax) {
		return nil, nil // invalid ones are ignored (RFC 9110, 14.2)
	}
	if err != nil {
		return nil, err
	}
	sum := int64(0)
	for _, s := range ranges {
		sum += s.length
	}
	if len(ranges) > maxRanges || len(ranges) > 1 && sum > c.Size {
		return nil, nil // more work than the whole
	}
	return ranges, nil
}

var errRangeSyntax = fmt.Errorf("range header is malformed: %w", meta.ErrInvalid)

// parseRanges reads the list after `bytes=`.
//
// Errors: errRangeSyntax; *RangeError when none of the ranges can be served.
func parseRanges(spec string, size int64) ([]span, error) {
	var ranges []span
	unsatisfiable := false
	for part := range strings.SplitSeq(spec, ",") {
		part = strings.Trim(part, " \t")
		if part == "" {
			continue
		}
		from, to, ok := strings.Cut(part, "-")
		if !ok {
			return nil, errRangeSyntax
		}
		if from == "" { // the last bytes
			n, err := parsePosition(to)
			if err != nil {
				return nil, err
			}
			n = min(n, size)
			if n == 0 {
				unsatisfiable = true
				continue
			}
			ranges = append(ranges, span{size - n, n})
			continue
		}
		start, err := parsePosition(from)
		if err != nil {
			return nil, err
		}
		end := size - 1
		if to != "" {
			if end, err = parsePosition(to); err != nil || end < start {
				return nil, errRangeSyntax
			}
			end = min(end, size-1)
		}
		if start >= size {
			unsatisfiable = true
			continue
		}
		ranges = append(ranges, span{start, end - start + 1})
	}
	switch {
	case len(ranges) > 0:
		return ranges, nil
	case unsatisfiable:
		return nil, &RangeError{Size: size, Reason: "bytes=" + spec}
	}
	return nil, errRangeSyntax
}

// parsePosition reads digits only: no sign, no spaces. What does not fit is
// beyond any end.
func parsePosition(s string) (int64, error) {
	if s == "" {
		return 0, errRangeSyntax
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, errRangeSyntax
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1, nil
	}
	return n, nil
}

// ifRange reports whether the Range counts: the client's part is of this content.
func ifRange(r *http.Request, c Content) bool {
	condition := r.Header.Get("If-Range")
	switch {
	case condition == "":
		return true
	case strings.HasPrefix(condition, `"`):
		return c.ETag != "" && condition == c.ETag
	case strings.HasPrefix(condition, "W/"):
		return false // only a strong tag proves the same bytes
	}
	t, err := http.ParseTime(condition)
	return err == nil && !c.Modified.IsZero() && c.Modified.Truncate(time.Second).Equal(t)
}
