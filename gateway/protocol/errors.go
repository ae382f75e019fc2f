package protocol

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// ErrNoRoute says that no route has the path. It is a meta.ErrNotFound.
var ErrNoRoute = fmt.Errorf("no such endpoint: %w", meta.ErrNotFound)

// MethodError says that the path exists, but not with this method.
type MethodError struct {
	Method string
	Allow  []string // sorted
}

func (e *MethodError) Error() string {
	return fmt.Sprintf("method %s is not allowed here, use %s", e.Method, strings.Join(e.Allow, ", "))
}

// RangeError says that a range cannot be served: of content of Size bytes, or,
// for an upload, that the session has Size bytes.
type RangeError struct {
	Size   int64
	Reason string
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("range not satisfiable, have %d bytes: %s", e.Size, e.Reason)
}

// Unwrap returns meta.ErrInvalid.
func (e *RangeError) Unwrap() error { return meta.ErrInvalid }

// ErrPrecondition says that If-Match, If-None-Match or their like did not hold.
var ErrPrecondition = fmt.Errorf("precondition of the request does not hold: %w", meta.ErrConflict)

// ErrUpstream says that a foreign registry answered with what cannot be used: other
// bytes than were promised, a refusal of its own.
var ErrUpstream = errors.New("the upstream's answer cannot be used")

// Status returns the HTTP status that an error has unless a protocol says
// otherwise.
func Status(err error) int {
	var method *MethodError
	var ranges *RangeError
	var mismatch *digest.MismatchError
	var tooLarge *http.MaxBytesError
	var readOnly *meta.ReadOnlyError
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &method), errors.As(err, &readOnly):
		return http.StatusMethodNotAllowed
	case errors.As(err, &ranges):
		return http.StatusRequestedRangeNotSatisfiable
	case errors.Is(err, ErrPrecondition):
		return http.StatusPreconditionFailed
	case errors.Is(err, ErrUpstream):
		return http.StatusBadGateway
	case errors.As(err, &mismatch), errors.Is(err, digest.ErrUnsupported):
		return http.StatusBadRequest
	case errors.As(err, &tooLarge), errors.Is(err, meta.ErrTooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, meta.ErrUnavailable):
		return http.StatusServiceUnavailable
	case errors.Is(err, meta.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, meta.ErrExists), errors.Is(err, meta.ErrConflict):
		return http.StatusConflict
	case errors.Is(err, meta.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, meta.ErrDenied):
		return http.StatusForbidden
	case errors.Is(err, meta.ErrOverQuota):
		return http.StatusTooManyRequests
	case errors.Is(err, meta.ErrNoSpace):
		return http.StatusInsufficientStorage
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.Canceled):
		// What was ended before it was done says nothing of the request. A client that has
		// left does not read it, one that is there asks again.
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// maxRetryAfter bounds what a client is told to wait for a rate.
const maxRetryAfter = time.Minute

// Fail sets the headers that an error implies (Allow, Content-Range,
// Retry-After), takes away those of the answer that is not given, and returns
// Status(err). A WriteError calls it first.
func Fail(h http.Header, err error) int {
	for _, name := range []string{"Etag", "Last-Modified", "Content-Length", "Content-Encoding", "Accept-Ranges", "Docker-Content-Digest"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	var method *MethodError
	if errors.As(err, &method) {
		h.Set("Allow", strings.Join(method.Allow, ", "))
	}
	if status := Status(err); status == http.StatusMethodNotAllowed && method == nil {
		h.Set("Allow", "GET, HEAD") // RFC 9110 section 15.5.6: the repository is read only
	}
	var ranges *RangeError
	if errors.As(err, &ranges) {
		h.Set("Content-Range", "bytes */"+strconv.FormatInt(ranges.Size, 10))
	}
	status := Status(err)
	var unavailable *meta.UnavailableError
	var behind *meta.BacklogError
	var quota *meta.QuotaError
	var later interface{ RetryIn() time.Duration }
	switch {
	case errors.As(err, &later):
		h.Set("Retry-After", strconv.FormatInt(int64((later.RetryIn()+time.Second-1)/time.Second), 10))
	case errors.As(err, &quota) && quota.RetryAfter > 0:
		// pip and curl sleep as long as they are told to.
		h.Set("Retry-After", strconv.FormatInt(int64((min(quota.RetryAfter, maxRetryAfter)+time.Second-1)/time.Second), 10))
	case errors.As(err, &unavailable) && unavailable.RetryAfter > 0:
		seconds := (unavailable.RetryAfter + time.Second - 1) / time.Second
		h.Set("Retry-After", strconv.FormatInt(int64(seconds), 10))
	case errors.As(err, &behind):
		h.Set("Retry-After", "5") // Copies take a while.
	case status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests:
		h.Set("Retry-After", "1")
	}
	return status
}

// Message returns what a client may read of err. Of an internal error that is
// only that it was one: the sentence is in the log under the request id. What is
// unavailable leaves out the causes joined to it, which name the nodes that were
// asked.
func Message(err error) string {
	switch Status(err) {
	case http.StatusInternalServerError:
		return "internal error, the server's log has more under the request id"
	case http.StatusServiceUnavailable:
		sentence, _, _ := strings.Cut(err.Error(), "\n")
		return sentence
	}
	return err.Error()
}
