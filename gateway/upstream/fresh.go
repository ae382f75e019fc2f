package upstream

import (
	"cmp"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Standards where a repository says nothing else.
const (
	DocumentTTL = 5 * time.Minute
	NegativeTTL = time.Minute
)

// verdict is what is to be done about an address.
type verdict uint8

const (
	// ask the upstream: nothing is known, or what is known is gone.
	askAnew verdict = iota
	// serve what is known.
	serveKnown
	// sayAbsent without asking.
	sayAbsent
	// revalidate: the time of what is known is over; should the upstream not answer, it
	// still serves.
	revalidate
)

// judge decides whether what is known of an address, nil for nothing, answers w at now.
func judge(known *state.FetchedAnswer, w *Want, rules *meta.Upstream, now time.Time) verdict {
	switch {
	case known == nil, known.Lost && !known.Fetched.Absent():
		return askAnew
	case known.Fetched.Absent():
		if age(&known.Fetched, now) < cmp.Or(rules.NegativeTTL, NegativeTTL) {
			return sayAbsent
		}
		return revalidate
	case w.Digest != "" && w.Digest != known.Blob.Digest && w.Digest != known.Blob.SHA512:
		// It was kept under another promise. With a sha512 that nobody computed then it
		// is fetched once more, which computes it.
		return askAnew
	case otherSums(w.Sums, &known.Blob):
		return askAnew
	case w.Kind == File:
		return serveKnown
	case age(&known.Fetched, now) < cmp.Or(rules.DocumentTTL, w.TTL, DocumentTTL):
		return serveKnown
	}
	return revalidate
}

// otherSums reports whether checksums are of other bytes than b, as far as it is known
// without reading them.
func otherSums(sums map[string]string, b *meta.Blob) bool {
	other := func(algorithm string, d digest.Digest) bool {
		want := sums[algorithm]
		return want != "" && d != "" && !strings.EqualFold(want, d.Encoded())
	}
	return other("sha256", b.Digest) || other("sha512", b.SHA512)
}

// age is how long ago the upstream said so; a clock that is ahead makes nothing older.
func age(f *meta.Fetched, now time.Time) time.Duration {
	return max(0, now.Sub(f.Checked.Std()))
}

// outcome is what an upstream's answer means.
type outcome uint8

const (
	hasBytes  outcome = iota
	unchanged         // what is known is still so
	hasNone           // there is nothing there
	refuses           // it wants credentials, or other ones
	withholds         // it may not give it to anybody
	failing           // it cannot answer now
	unusable          // nothing that can be made sense of
)

// meaning reads the status of an answer. conditional says that the request asked only
// for what changed, mute that the upstream says 401 of what is not there, too.
//
// What is refused may be there: to take that for an absence would have a group take the
// name from its next member, where it may be somebody else's.
func meaning(status int, conditional, mute bool) outcome {
	switch {
	case status == http.StatusOK:
		return hasBytes
	case status == http.StatusNotModified && conditional:
		return unchanged
	case status == http.StatusNotFound, status == http.StatusGone:
		return hasNone
	case status == http.StatusUnavailableForLegalReasons:
		return withholds
	case mute && (status == http.StatusUnauthorized || status == http.StatusForbidden):
		return hasNone
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return refuses
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500:
		return failing
	}
	return unusable
}

// Retries of one fetch.
const (
	maxAttempts = 4
	// firstPause doubles from attempt to attempt.
	firstPause = 200 * time.Millisecond
	// maxPause is the longest that a fetch waits because the upstream says so; when it
	// wants more, its caller is told.
	maxPause = 10 * time.Second
)

// pause says how long to wait before an attempt, counted from 1, and whether there is to
// be one. asked is what the upstream wants to be waited, 0 when it does not say.
func pause(attempt int, asked time.Duration) (time.Duration, bool) {
	if attempt >= maxAttempts || asked > maxPause {
		return 0, false
	}
	return max(asked, firstPause<<(attempt-1)), true
}

// retryAfter reads Retry-After (RFC 9110, 10.2.3); 0 when there is none that counts.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if text == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(text, 10, 32); err == nil {
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return max(0, at.Sub(now))
}

// stale reports whether an error of asking lets what is known serve: the upstream, or
// whoever is to ask it, cannot answer now.
func stale(err error) bool {
	return errors.Is(err, meta.ErrUnavailable) || errors.Is(err, errRefused)
}
