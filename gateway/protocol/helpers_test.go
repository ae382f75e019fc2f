package protocol

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// onlySeek hides bytes.Reader's WriteTo.
type onlySeek struct{ io.ReadSeeker }

func (onlySeek) Close() error { return nil }

func content(data string, opened *int) Content {
	return Content{
		Size: int64(len(data)), MediaType: "text/x", ETag: `"tag"`, Cache: Revalidate,
		Modified: time.Date(2026, 11, 22, 10, 0, 0, 500, time.UTC),
		Open: func(context.Context) (io.ReadSeekCloser, error) {
			*opened++
			return onlySeek{strings.NewReader(data)}, nil
		},
	}
}

func TestServe(t *testing.T) {
	const data = "0123456789"
	for _, test := range []struct {
		name, method string
		header       map[string]string
		status       int
		body         string
		want         map[string]string
	}{
		{"whole", "GET", nil, 200, data, map[string]string{"Content-Length": "10", "Accept-Ranges": "bytes", "Etag": `"tag"`, "Content-Type": "text/x", "Cache-Control": "private, no-cache"}},
		{"head", "HEAD", nil, 200, "", map[string]string{"Content-Length": "10", "Etag": `"tag"`}},
		{"head ignores range", "HEAD", map[string]string{"Range": "bytes=0-1"}, 200, "", map[string]string{"Content-Length": "10"}},
		{"range", "GET", map[string]string{"Range": "bytes=2-4"}, 206, "234", map[string]string{"Content-Range": "bytes 2-4/10", "Content-Length": "3"}},
		{"open range", "GET", map[string]string{"Range": "bytes=7-"}, 206, "789", map[string]string{"Content-Range": "bytes 7-9/10"}},
		{"last", "GET", map[string]string{"Range": "bytes=-3"}, 206, "789", map[string]string{"Content-Range": "bytes 7-9/10"}},
		{"last of more than all", "GET", map[string]string{"Range": "bytes=-99"}, 206, data, map[string]string{"Content-Range": "bytes 0-9/10"}},
		{"beyond the end", "GET", map[string]string{"Range": "bytes=5-99"}, 206, "56789", nil},
		{"unsatisfiable", "GET", map[string]string{"Range": "bytes=10-"}, 416, "", map[string]string{"Content-Range": "bytes */10"}},
		{"empty suffix", "GET", map[string]string{"Range": "bytes=-0"}, 416, "", nil},
		{"another unit", "GET", map[string]string{"Range": "lines=1-2"}, 200, data, nil},
		{"malformed", "GET", map[string]string{"Range": "bytes=4-2"}, 200, data, nil},
		{"signed", "GET", map[string]string{"Range": "bytes=+1-2"}, 200, data, nil},
		{"huge", "GET", map[string]string{"Range": "bytes=99999999999999999999-"}, 416, "", nil},
		{"overlapping, more than all", "GET", map[string]string{"Range": "bytes=0-9,0-9"}, 200, data, nil},
		{"if-none-match", "GET", map[string]string{"If-None-Match": `"other", W/"tag"`}, 304, "", map[string]string{"Etag": `"tag"`, "Content-Type": ""}},
		{"if-none-match other", "GET", map[string]string{"If-None-Match": `"other"`}, 200, data, nil},
		{"if-none-match any", "GET", map[string]string{"If-None-Match": `*`}, 304, "", nil},
		{"if-match", "GET", map[string]string{"If-Match": `"tag"`}, 200, data, nil},
		{"if-match weak", "GET", map[string]string{"If-Match": `W/"tag"`}, 412, "", nil},
		{"if-modified-since", "GET", map[string]string{"If-Modified-Since": "Sun, 22 Nov 2026 10:00:00 GMT"}, 304, "", nil},
		{"if-modified-since older", "GET", map[string]string{"If-Modified-Since": "Sun, 22 Nov 2026 09:59:59 GMT"}, 200, data, nil},
		{"if-none-match beats if-modified-since", "GET", map[string]string{"If-None-Match": `"x"`, "If-Modified-Since": "Sun, 22 Nov 2026 10:00:00 GMT"}, 200, data, nil},
		{"if-unmodified-since", "GET", map[string]string{"If-Unmodified-Since": "Sun, 22 Nov 2026 09:00:00 GMT"}, 412, "", nil},
		{"if-range same", "GET", map[string]string{"Range": "bytes=0-0", "If-Range": `"tag"`}, 206, "0", nil},
		{"if-range other", "GET", map[string]string{"Range": "bytes=0-0", "If-Range": `"x"`}, 200, data, nil},
		{"if-range date", "GET", map[string]string{"Range": "bytes=0-0", "If-Range": "Sun, 22 Nov 2026 10:00:00 GMT"}, 206, "0", nil},
		{"if-range weak", "GET", map[string]string{"Range": "bytes=0-0", "If-Range": `W/"tag"`}, 200, data, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(test.method, "/x", nil)
			for name, value := range test.header {
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			opened := 0
			if err := Serve(w, r, content(data, &opened)); err != nil {
				w.WriteHeader(Fail(w.Header(), err))
			}
			if w.Code != test.status || w.Body.String() != test.body {
				t.Errorf("%d %q, want %d %q", w.Code, w.Body, test.status, test.body)
			}
			for name, value := range test.want {
				if got := w.Header().Get(name); got != value {
					t.Errorf("%s: %q, want %q", name, got, value)
				}
			}
			if want := min(len(test.body), 1); opened != want {
				t.Errorf("opened %d times, want %d", opened, want)
			}
		})
	}
}

func TestServeParts(t *testing.T) {
	r := httptest.NewRequest("GET", "/x", nil)
	r.Header.Set("Range", "bytes=7-8, 0-1,-1")
	w := httptest.NewRecorder()
	opened := 0
	if err := Serve(w, r, content("0123456789", &opened)); err != nil {
		t.Fatal(err)
	}
	if w.Code != http.StatusPartialContent || w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
		t.Fatalf("%d, length %s of %d", w.Code, w.Header().Get("Content-Length"), w.Body.Len())
	}
	kind, params, err := mime.ParseMediaType(w.Header().Get("Content-Type"))
	if err != nil || kind != "multipart/byteranges" {
		t.Fatalf("%s: %v", kind, err)
	}
	parts := multipart.NewReader(w.Body, params["boundary"])
	for _, want := range []string{"bytes 7-8/10 78", "bytes 0-1/10 01", "bytes 9-9/10 9"} {
		p, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(p)
		if got := p.Header.Get("Content-Range") + " " + string(b); got != want {
			t.Errorf("part %q, want %q", got, want)
		}
	}
}

// A reader that ends early is an error of the answer, not a short one.
func TestServeShortReader(t *testing.T) {
	for _, reader := range []io.ReadSeekCloser{onlySeek{strings.NewReader("01")}, nopCloser{bytes.NewReader([]byte("01"))}} {
		w := httptest.NewRecorder()
		err := Serve(w, httptest.NewRequest("GET", "/x", nil), Content{Size: 10, Open: func(context.Context) (io.ReadSeekCloser, error) { return reader, nil }})
		if err == nil {
			t.Errorf("%T: no error after %q", reader, w.Body)
		}
	}
}

// noted is a reader that notes when its memory is handed out.
type noted struct {
	nopCloser
	handed *bool
}

func (n noted) WriteTo(w io.Writer) (int64, error) {
	*n.handed = true
	return n.nopCloser.WriteTo(w)
}

// A Write to a stream of HTTP/2 returns when the client resets it, although its bytes
// may still be read: they must not be those of a reader, which are unmapped then.
func TestServeKeepsAReadersMemoryFromHTTP2(t *testing.T) {
	for major, want := range map[int]bool{1: true, 2: false} {
		handed := false
		r, w := httptest.NewRequest("GET", "/x", nil), httptest.NewRecorder()
		r.ProtoMajor = major
		err := Serve(w, r, Content{Size: 3, Open: func(context.Context) (io.ReadSeekCloser, error) {
			return noted{nopCloser{bytes.NewReader([]byte("abc"))}, &handed}, nil
		}})
		if err != nil || handed != want || w.Body.String() != "abc" {
			t.Errorf("HTTP/%d: memory handed out %v, body %q, %v", major, handed, w.Body, err)
		}
	}
}

func TestServeBytes(t *testing.T) {
	w := httptest.NewRecorder()
	if err := ServeBytes(w, httptest.NewRequest("GET", "/x", nil), []byte("{}"), Content{MediaType: "application/json", Cache: Immutable, Public: true}); err != nil {
		t.Fatal(err)
	}
	if got := w.Header().Get("Etag"); got != ETag(digest.FromBytes([]byte("{}"))) {
		t.Errorf("etag %s", got)
	}
	if got := w.Header().Get("Cache-Control"); got != "public, max-age=31536000, immutable" {
		t.Errorf("cache %s", got)
	}
}

func TestAccept(t *testing.T) {
	h := http.Header{"Accept": {"application/vnd.oci.image.manifest.v1+json, text/*;q=0.5", "application/json;q=0.3;charset=utf-8, */*;q=0.1", "broken, text/html;q=x, text/plain; q=0"}}
	a := ParseAccept(h)
	for mediaType, want := range map[string]float64{
		"application/vnd.oci.image.manifest.v1+json": 1, "Application/JSON; charset=x": 0.3, "text/css": 0.5, "text/plain": 0, "text/html": 0, "image/png": 0.1,
	} {
		if got := a.Quality(mediaType); got != want {
			t.Errorf("%s: %v, want %v", mediaType, got, want)
		}
	}
	if got := a.Best("text/plain", "image/png", "text/css"); got != "text/css" {
		t.Errorf("best is %q", got)
	}
	if got := ParseAccept(http.Header{}).Best("a/b", "c/d"); got != "a/b" {
		t.Errorf("without Accept: %q", got)
	}
	if got := ParseAccept(http.Header{"Accept": {"x/y"}}).Best("a/b"); got != "" {
		t.Errorf("nothing acceptable: %q", got)
	}
	many := ParseAccept(http.Header{"Accept": {strings.Repeat("a/b,", 10000)}})
	if len(many) != maxAccepts {
		t.Errorf("%d ranges kept", len(many))
	}
}

func TestReadBody(t *testing.T) {
	post := func(body io.Reader) *http.Request { return httptest.NewRequest("POST", "/x", body) }
	if b, err := ReadBody(post(strings.NewReader("1234")), 4); err != nil || string(b) != "1234" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := ReadBody(post(strings.NewReader("12345")), 4); !errors.Is(err, meta.ErrTooLarge) {
		t.Errorf("declared: %v", err)
	}
	if _, err := ReadBody(post(io.MultiReader(strings.NewReader("123"), strings.NewReader("45"))), 4); !errors.Is(err, meta.ErrTooLarge) {
		t.Errorf("streamed: %v", err)
	}
	var v struct{ A int }
	for body, want := range map[string]error{`{"A":1}`: nil, `{"A":1}{}`: meta.ErrInvalid, `{"B":1}`: meta.ErrInvalid, ``: meta.ErrInvalid, `{"A":"x"}`: meta.ErrInvalid} {
		if err := ReadJSON(post(strings.NewReader(body)), 100, &v); !errors.Is(err, want) {
			t.Errorf("%s: %v", body, err)
		}
	}
}

func TestPages(t *testing.T) {
	for query, want := range map[string]string{
		"": "{ 100 false}", "n=5&last=b": "{b 5 true}", "n=0": "{ 0 true}", "n=99999": "{ 1000 true}", "n=-1": "invalid", "n=x": "invalid",
	} {
		q, _ := url.ParseQuery(query)
		p, err := ParsePage(q, "n", "last", 100, 1000)
		got := fmt.Sprint(p)
		if errors.Is(err, meta.ErrInvalid) {
			got = "invalid"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", query, got, want)
		}
	}
	w := httptest.NewRecorder()
	LinkNext(w, httptest.NewRequest("GET", "/v2/a/b%2Fc/tags/list?n=2&last=a", nil), url.Values{"last": {"z>"}})
	if got, want := w.Header().Get("Link"), `</v2/a/b%2Fc/tags/list?last=z%3E&n=2>; rel="next"`; got != want {
		t.Errorf("link %s, want %s", got, want)
	}
}

func TestStatusAndFail(t *testing.T) {
	for _, test := range []struct {
		err    error
		status int
		header string
	}{
		{fmt.Errorf("x: %w", meta.ErrNotFound), 404, ""},
		{&MethodError{Method: "X", Allow: []string{"GET", "HEAD"}}, 405, "Allow: GET, HEAD"},
		{&RangeError{Size: 7}, 416, "Content-Range: bytes */7"},
		{&meta.UnavailableError{Reason: "no_quorum", RetryAfter: 1500 * time.Millisecond}, 503, "Retry-After: 2"},
		{&digest.MismatchError{}, 400, ""},
		{ErrPrecondition, 412, ""},
		{meta.ErrExists, 409, ""}, {meta.ErrDenied, 403, ""}, {meta.ErrNoSpace, 507, ""}, {meta.ErrTooLarge, 413, ""}, {meta.ErrOverQuota, 429, "Retry-After: 1"},
		{&http.MaxBytesError{}, 413, ""},
		{fmt.Errorf("x: %w", context.Canceled), 503, "Retry-After: 1"},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), 503, "Retry-After: 1"},
		{fmt.Errorf("x: %w", os.ErrDeadlineExceeded), 503, "Retry-After: 1"},
		{errors.New("a secret path"), 500, ""},
		{meta.ErrCorrupt, 500, ""},
	} {
		h := http.Header{"Etag": {`"x"`}, "Content-Length": {"7"}}
		if got := Fail(h, test.err); got != test.status {
			t.Errorf("%v: %d, want %d", test.err, got, test.status)
		}
		if name, value, ok := strings.Cut(test.header, ": "); ok && h.Get(name) != value {
			t.Errorf("%v: %s is %q, want %q", test.err, name, h.Get(name), value)
		}
		if h.Get("Etag") != "" || h.Get("Content-Length") != "" {
			t.Errorf("%v: headers of the answer stayed", test.err)
		}
	}
	asked := errors.Join(&meta.UnavailableError{Reason: "no_server"}, errors.New("dial tcp 10.0.0.7:5000: connection refused"))
	if got := Message(fmt.Errorf("resolve acme/app: %w", asked)); strings.Contains(got, "10.0.0.7") || !strings.Contains(got, "no_server") {
		t.Errorf("unavailable: %q", got)
	}
	if got := Message(errors.New("a secret path")); strings.Contains(got, "secret") {
		t.Errorf("internal error shown: %s", got)
	}
}

func TestAsOf(t *testing.T) {
	w := httptest.NewRecorder()
	c := &Call{W: w, R: httptest.NewRequest("GET", "/x", nil), After: meta.Token{Epoch: 1, Index: 2}}
	c.AsOf(meta.AsOf{Index: 42, Age: 1500*time.Millisecond + 1, Mode: meta.ModeLocal, Stale: true})
	h := w.Header()
	if h.Get(HeaderIndex) != "42" || h.Get(HeaderAge) != "1.501" || h.Get(HeaderMode) != "local" || h.Get(HeaderStale) != "1" {
		t.Errorf("%v", h)
	}
	c.AsOf(meta.AsOf{Age: meta.UnknownAge, Mode: meta.ModeLocal})
	if h.Get(HeaderAge) != "unknown" || h.Get(HeaderStale) != "" {
		t.Errorf("%v", h)
	}
	c.Committed(meta.Token{Epoch: 3, Index: 44})
	if h.Get(HeaderToken) != "3.44" || h.Get(HeaderIndex) != "44" {
		t.Errorf("%v", h)
	}
	if f := c.Fresh(meta.Bounded); f.After.Index != 2 || f.Mode != meta.ModeBounded {
		t.Errorf("%+v", f)
	}
}

func TestBaseURL(t *testing.T) {
	r := httptest.NewRequest("GET", "http://host:5000/x", nil)
	r.URL.Scheme = ""
	if got := BaseURL(r); got != "http://host:5000" {
		t.Error(got)
	}
	r.URL.Scheme = "https"
	r.Host = "a\"b,\r\nx: y"
	if got := BaseURL(r); got != "https://ab,x:y" {
		t.Error(got)
	}
}

func FuzzRanges(f *testing.F) {
	f.Add("0-1,5-,-3", int64(10))
	f.Add("-", int64(0))
	f.Fuzz(func(t *testing.T, spec string, size int64) {
		if size < 0 {
			return
		}
		ranges, err := parseRanges(spec, size)
		if err != nil {
			return
		}
		for _, s := range ranges {
			if s.start < 0 || s.length <= 0 || s.start+s.length > size {
				t.Fatalf("%q of %d: %+v", spec, size, s)
			}
		}
	})
}

func FuzzAccept(f *testing.F) {
	f.Add("text/html;q=0.5, */*")
	f.Fuzz(func(t *testing.T, line string) {
		if q := ParseAccept(http.Header{"Accept": {line}}).Quality("text/html"); !(q >= 0 && q <= 1) {
			t.Fatalf("%q: %v", line, q)
		}
	})
}

func FuzzETags(f *testing.F) {
	f.Add(`W/"a", "b"`)
	f.Fuzz(func(t *testing.T, line string) {
		matches([]string{line}, `"b"`, true)
	})
}
