package protocol

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// ErrBroken says that a request's body ended before it was whole. It is meta.ErrInvalid.
var ErrBroken = fmt.Errorf("the body broke off: %w", meta.ErrInvalid)

// Body returns a request's body whose errors are ErrBroken, to tell a client that goes
// away from a disk that fails.
func Body(r *http.Request) io.Reader { return body{r.Body} }

// Part is Body for a part of a form.
func Part(r io.Reader) io.Reader { return body{r} }

type body struct{ io.Reader }

func (b body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return n, err
}

// ParseContentRange reads `<start>-<end>`, inclusive (OCI distribution spec, Pushing a blob
// in chunks), also in HTTP's form `bytes <start>-<end>/<size>`.
//
// Errors: meta.ErrInvalid.
func ParseContentRange(s string) (start, end int64, err error) {
	bad := func() (int64, int64, error) {
		return 0, 0, fmt.Errorf("Content-Range %q: write START-END, the end inclusive: %w", s, meta.ErrInvalid) //nolint:staticcheck // a header's name
	}
	spec := strings.TrimSpace(strings.TrimPrefix(s, "bytes"))
	spec = strings.TrimLeft(spec, "= ")
	spec, _, _ = strings.Cut(spec, "/")
	from, to, ok := strings.Cut(spec, "-")
	if !ok || !digits(from) || !digits(to) {
		return bad()
	}
	start, err1 := strconv.ParseInt(from, 10, 64)
	end, err2 := strconv.ParseInt(to, 10, 64)
	if err1 != nil || err2 != nil || end < start || end == 1<<63-1 {
		return bad()
	}
	return start, end, nil
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
