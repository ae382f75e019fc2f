package join

import (
	"net/http"
	"net/netip"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Limits of callers that have proved nothing yet. A source is an IPv4 address or an
// IPv6 /64. A rack of hosts behind one address starts within its burst; a flood from
// one costs the map look-up, and a flood from many no more than all.
const (
	sourceBurst  = 128
	sourcePerSec = 8
	allBurst     = 512
	allPerSec    = 128
	atOnce       = 32
	maxSources   = 4096
)

// Limit holds callers back before their message is read, let alone a signature checked
// or the cluster asked. It is safe for concurrent use.
type Limit struct {
	sources *lru.Cache[netip.Prefix, *rate.Limiter]
	all     *rate.Limiter
	slots   chan struct{}
	// held is told of each caller that was held back.
	held func()
}

// NewLimit returns a Limit; held, which may be nil, is called for each refusal.
func NewLimit(held func()) *Limit {
	sources, err := lru.New[netip.Prefix, *rate.Limiter](maxSources)
	if err != nil {
		panic(err) // only for a size below 1
	}
	if held == nil {
		held = func() {}
	}
	return &Limit{sources: sources, all: rate.NewLimiter(allPerSec, allBurst), slots: make(chan struct{}, atOnce), held: held}
}

// enter takes a place, which done gives back.
//
// Errors: *meta.UnavailableError that says when to come again.
func (l *Limit) enter(r *http.Request, now time.Time) (done func(), err error) {
	if l == nil {
		return func() {}, nil
	}
	busy := func(wait time.Duration) error {
		l.held()
		return &meta.UnavailableError{Reason: "busy", RetryAfter: max(wait, time.Second)}
	}
	source := sourceOf(r.RemoteAddr)
	bucket, ok := l.sources.Get(source)
	if !ok {
		bucket = rate.NewLimiter(sourcePerSec, sourceBurst)
		if known, had, _ := l.sources.PeekOrAdd(source, bucket); had {
			bucket = known
		}
	}
	// The source first: who floods does not use up what all share.
	for _, b := range []*rate.Limiter{bucket, l.all} {
		if !b.AllowN(now, 1) {
			return nil, busy(time.Duration(float64(time.Second) / float64(b.Limit())))
		}
	}
	select {
	case l.slots <- struct{}{}:
		return func() { <-l.slots }, nil
	default:
		return nil, busy(time.Second)
	}
}

// sourceOf is whom an address belongs to, as far as that can be told.
func sourceOf(remote string) netip.Prefix {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{} // all of these share one
	}
	addr := at.Addr().WithZone("").Unmap()
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
