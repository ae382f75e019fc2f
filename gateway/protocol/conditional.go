package protocol

import (
	"net/http"
	"strings"
	"time"
)

// Preconditions judges If-Match, If-Unmodified-Since, If-None-Match and
// If-Modified-Since in the order of RFC 9110 section 13.2.2. etag is the present
// strong tag, "" when nothing is there; modified may be zero. notModified is
// for GET and HEAD only.
//
// Errors: ErrPrecondition.
func Preconditions(r *http.Request, etag string, modified time.Time) (notModified bool, err error) {
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	modified = modified.Truncate(time.Second)
	if tags := r.Header.Values("If-Match"); len(tags) > 0 {
		if !matches(tags, etag, false) {
			return false, ErrPrecondition
		}
	} else if t, ok := since(r, "If-Unmodified-Since"); ok && !modified.IsZero() && modified.After(t) {
		return false, ErrPrecondition
	}
	if tags := r.Header.Values("If-None-Match"); len(tags) > 0 {
		if matches(tags, etag, true) {
			if read {
				return true, nil
			}
			return false, ErrPrecondition
		}
	} else if t, ok := since(r, "If-Modified-Since"); ok && read && !modified.IsZero() && !modified.After(t) {
		return true, nil
	}
	return false, nil
}

func since(r *http.Request, name string) (time.Time, bool) {
	v := r.Header.Get(name)
	if v == "" {
		return time.Time{}, false
	}
	t, err := http.ParseTime(v)
	return t, err == nil
}

// matches reports whether one of the listed tags is etag; `*` is any that is
// there. Weak comparison ignores the W/.
func matches(lines []string, etag string, weak bool) bool {
	if etag == "" {
		return false
	}
	for _, line := range lines {
		for rest := line; ; {
			rest = strings.TrimLeft(rest, " \t,")
			if rest == "" {
				break
			}
			if rest[0] == '*' {
				return true
			}
			tag := rest
			isWeak := strings.HasPrefix(tag, "W/")
			if isWeak {
				tag = tag[2:]
			}
			if tag == "" || tag[0] != '"' {
				break // not a tag: the rest of the line says nothing
			}
			end := strings.IndexByte(tag[1:], '"')
			if end < 0 {
				break
			}
			tag, rest = tag[:end+2], tag[end+2:]
			if tag == etag && (weak || !isWeak) {
				return true
			}
		}
	}
	return false
}
