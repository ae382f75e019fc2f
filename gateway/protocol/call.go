package protocol

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// Headers of shoal's own. Every read answers with what it is; a write answers
// with the token that a later read may ask to include.
const (
	HeaderIndex = "Shoal-Index" // log index that the answer is of
	HeaderEpoch = "Shoal-Epoch" // epoch of that log: it changes when a cluster is recovered
	HeaderAge   = "Shoal-Age"   // seconds that it may lie behind, or "unknown"
	// HeaderMode is what the answer was: strong, bounded, local; on a read's request
	// what it has to be, see meta.ParseFreshness.
	HeaderMode  = "Shoal-Mode"
	HeaderStale = "Shoal-Stale" // "1": last known answer, no server was reachable
	HeaderToken = "Shoal-Token" // EPOCH.INDEX
	// HeaderElevation names the break-glass elevation that an answer rests on.
	HeaderElevation = "Shoal-Elevation"
	// HeaderRequestID is unique to the request; logs carry it.
	HeaderRequestID = "Shoal-Request-Id"
)

// AsOf writes what the answer is: Shoal-Index, -Epoch, -Age, -Mode and, when so, -Stale.
// Call it before the status is written. Of several reads in one call the
// oldest is what the answer is; the last call wins.
func (c *Call) AsOf(a meta.AsOf) {
	a.Stale = a.Stale || c.Degraded
	WriteAsOf(c.W.Header(), a)
}

// Absent returns what writes what the answer of a read is that finds nothing; nil for
// a write, which answers otherwise.
func (c *Call) Absent() func(meta.AsOf) {
	if c.R.Method != http.MethodGet && c.R.Method != http.MethodHead {
		return nil
	}
	return c.AsOf
}

// WriteAsOf is AsOf for code without a Call.
func WriteAsOf(h http.Header, a meta.AsOf) {
	h.Set(HeaderIndex, strconv.FormatUint(a.Index, 10))
	h.Set(HeaderEpoch, strconv.FormatUint(a.Epoch, 10))
	h.Set(HeaderMode, string(a.Mode))
	if a.Age == meta.UnknownAge {
		h.Set(HeaderAge, "unknown")
	} else {
		// Rounded up: an age must not look younger than it is.
		ms := int64(math.Ceil(float64(a.Age) / float64(time.Millisecond)))
		h.Set(HeaderAge, strconv.FormatFloat(float64(ms)/1000, 'f', 3, 64))
	}
	if a.Stale {
		h.Set(HeaderStale, "1")
	} else {
		h.Del(HeaderStale)
	}
}

// Committed writes the token of a write, and the index it is of.
func (c *Call) Committed(t meta.Token) {
	h := c.W.Header()
	h.Set(HeaderToken, t.String())
	h.Set(HeaderIndex, strconv.FormatUint(t.Index, 10))
	h.Set(HeaderEpoch, strconv.FormatUint(t.Epoch, 10))
	h.Set(HeaderAge, "0.000")
	h.Set(HeaderMode, string(meta.ModeStrong))
}

// Fresh returns how fresh the answer has to be: as the client asked, else f, and
// including the point that it named.
func (c *Call) Fresh(f meta.Freshness) meta.Freshness {
	if c.Asked.Mode != "" {
		f = c.Asked
	} else if f.Mode == meta.ModeBounded {
		f.Own = c.Who.MayHaveWritten()
	}
	f.After = c.After
	return f
}

// Origin says where the call's commands come from. Node and Time are filled in
// by who proposes. A call that sends several commands must make their request
// ids differ: append to RequestID.
func (c *Call) Origin() state.Origin {
	return state.Origin{
		RequestID: c.RequestID,
		Principal: c.Who.Name,
		TokenID:   c.Who.Token,
		Source:    c.R.RemoteAddr,
		Trace:     c.Trace,
		Elevation: c.Who.Elevation,
	}
}

// BaseURL returns `scheme://host[:port]` as the client sees the gateway, also
// when an agent or a trusted proxy forwarded the request. Only challenges need
// it: Locations and Links are relative.
func BaseURL(r *http.Request) string {
	scheme := r.URL.Scheme
	if scheme == "" {
		scheme = "http"
		if r.TLS != nil {
			scheme = "https"
		}
	}
	// The host goes into quoted header values; a client that sends such bytes
	// gets a useless URL rather than a header of its own making.
	host := strings.Map(func(c rune) rune {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '/' {
			return -1
		}
		return c
	}, r.Host)
	return scheme + "://" + host
}
