package protocol

import (
	"net/http"
	"strconv"
	"strings"
)

// maxAccepts bounds the media ranges that count; clients send about ten.
const maxAccepts = 64

// Accept is what a client takes, of all its Accept header lines: several
// clients send one line a media type.
type Accept []accepted

type accepted struct {
	kind    string // lower case, without parameters
	quality float64
}

// ParseAccept reads the Accept lines of h (RFC 9110 section 12.5.1). Parameters
// other than q do not count; what is malformed is left out.
func ParseAccept(h http.Header) Accept {
	var a Accept
	for _, line := range h.Values("Accept") {
		for part := range strings.SplitSeq(line, ",") {
			if len(a) == maxAccepts {
				return a
			}
			kind, params, _ := strings.Cut(part, ";")
			kind = strings.ToLower(strings.TrimSpace(kind))
			if kind == "" || !strings.Contains(kind, "/") {
				continue
			}
			quality := 1.0
			for param := range strings.SplitSeq(params, ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
				if strings.EqualFold(name, "q") {
					q, err := strconv.ParseFloat(value, 64)
					if err != nil || !(q >= 0 && q <= 1) {
						q = 0
					}
					quality = q
				}
			}
			a = append(a, accepted{kind, quality})
		}
	}
	return a
}

// Quality returns how much the client wants a media type, 0 (not at all) to 1.
// The most specific range counts. Without an Accept header all is 1.
func (a Accept) Quality(mediaType string) float64 {
	if len(a) == 0 {
		return 1
	}
	mediaType, _, _ = strings.Cut(strings.ToLower(mediaType), ";")
	mediaType = strings.TrimSpace(mediaType)
	family, _, _ := strings.Cut(mediaType, "/")
	best, quality := 0, 0.0
	for _, r := range a {
		specific := 0
		switch r.kind {
		case mediaType:
			specific = 3
		case family + "/*":
			specific = 2
		case "*/*":
			specific = 1
		}
		if specific > best || specific == best && specific > 0 && r.quality > quality {
			best, quality = specific, r.quality
		}
	}
	return quality
}

// Allows reports whether the client takes a media type.
func (a Accept) Allows(mediaType string) bool { return a.Quality(mediaType) > 0 }

// Best returns the offer that the client wants most, the earlier of equal ones;
// "" when it takes none.
func (a Accept) Best(offers ...string) string {
	best, quality := "", 0.0
	for _, offer := range offers {
		if q := a.Quality(offer); q > quality {
			best, quality = offer, q
		}
	}
	return best
}
