package remote

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// LeaseConfig configures a Lease; all but Clock, Log and Metrics are required.
type LeaseConfig struct {
	Client  *Client
	Cluster string
	// IsServer says whether a node is a server of the roster: only their heads count.
	IsServer func(meta.NodeID) bool
	// File keeps the last head over restarts.
	File string
	// Clock is a clock that nobody sets and that a host's sleep does not stop; nil is
	// the time since the machine was started.
	Clock func() time.Duration
	// Changed is called, by Run, after the access revision has changed; nil is not.
	Changed func()
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Lease is an agent's hold on the revocation head: what the newest one says, and how
// long ago that was so, counted from this host's own request for it. It is an
// access.Head, safe for concurrent use; Run keeps it current.
type Lease struct {
	cfg     LeaseConfig
	metrics leaseMetrics

	mu        sync.Mutex
	head      meta.AccessHead
	at        time.Duration // by Clock: all that was acknowledged by then is in head
	known     bool          // at means something
	reachable bool
	saved     time.Duration // by Clock, when it was written down
	tried     chan struct{}
}

type leaseMetrics struct {
	refused *prometheus.CounterVec
}

// savedHead is a head on disk: by the clock of a boot, and by the wall clock, for when
// the machine was started anew since.
type savedHead struct {
	Head meta.AccessHead `cbor:"1,keyasint,omitempty"`
	Boot string          `cbor:"2,keyasint,omitempty"`
	At   time.Duration   `cbor:"3,keyasint,omitempty"`
	Wall meta.Time       `cbor:"4,keyasint,omitempty"`
}

// saveHeadEvery bounds how often a head that says nothing new is written down.
const saveHeadEvery = 10 * time.Second

// OpenLease returns a Lease with what it knew when it was written down.
//
// Errors: of reading the file. One that is damaged is as good as none.
func OpenLease(c LeaseConfig) (*Lease, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = sinceBoot
	}
	l := &Lease{cfg: c, tried: make(chan struct{})}
	f := promauto.With(c.Metrics)
	l.metrics.refused = f.NewCounterVec(prometheus.CounterOpts{
		Name: "shoal_head_refused_total", Help: "Revocation heads that this agent did not believe, by reason.",
	}, []string{"reason"})
	for _, reason := range []string{reasonOlder, reasonForged, reasonIssuer} {
		l.metrics.refused.WithLabelValues(reason)
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_head_age_seconds", Help: "How long ago this agent knew that no right was taken back; -1 when it never did.",
	}, func() float64 {
		if age := l.Age(); age != meta.UnknownAge {
			return age.Seconds()
		}
		return -1
	})
	b, err := os.ReadFile(c.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, nil
	case err != nil:
		return nil, fmt.Errorf("read the last revocation head: %w", err)
	}
	var s savedHead
	if err := codec.Unmarshal(b, &s); err != nil {
		c.Log.Warn("the last revocation head is damaged, a server is asked", "file", c.File, "error", err)
		return l, nil
	}
	l.head, l.saved = s.Head, c.Clock()
	switch gone := time.Since(s.Wall.Std()); {
	case s.Boot == bootID() && s.Boot != "" && s.At <= c.Clock():
		l.at, l.known = s.At, true
	case s.Boot != bootID() && gone >= 0:
		// Another boot: there is only the wall clock. Whoever can set it owns the host.
		l.at, l.known = c.Clock()-gone, true
	}
	return l, nil
}

// sinceBoot is CLOCK_BOOTTIME: unlike Go's monotonic clock it goes on while the
// machine sleeps, and across restarts of the process.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("no clock: %v", err)) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}

// bootID tells this run of the machine from others, "" where it cannot be told.
var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})

// Revision implements access.Head.
func (l *Lease) Revision() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head.Revision
}

// Age implements access.Head.
func (l *Lease) Age() time.Duration {
	now := l.cfg.Clock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.known {
		return meta.UnknownAge
	}
	return max(0, now-l.at)
}

// Reachable implements access.Head: a server told a head the last time, or refused
// this node, which is an answer too.
func (l *Lease) Reachable() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reachable
}

// Reasons why a head is not believed.
const (
	reasonForged = "forged" // or another request's
	reasonIssuer = "issuer"
	reasonOlder  = "older"
)

// offer takes a head that answers a request begun at a moment of Clock.
//
// Errors: meta.ErrDenied.
func (l *Lease) offer(b, nonce []byte, began time.Duration) error {
	h, err := trust.OpenHead(l.cfg.Cluster, b, nonce)
	reason := reasonForged
	if err == nil && !l.cfg.IsServer(h.Issuer) {
		reason, err = reasonIssuer, fmt.Errorf("head of %s, which is no server: %w", h.Issuer, meta.ErrDenied)
	}
	changed := false
	if err == nil {
		reason = reasonOlder
		changed, err = l.take(h.Access, began-h.Age)
	}
	if err != nil {
		l.metrics.refused.WithLabelValues(reason).Inc()
		l.cfg.Log.Warn("a revocation head is not believed", "reason", reason, "error", err)
		return err
	}
	l.save(changed)
	if changed && l.cfg.Changed != nil {
		l.cfg.Changed()
	}
	return nil
}

// take is offer of a head that was checked: all acknowledged by at is in it.
func (l *Lease) take(h meta.AccessHead, at time.Duration) (changed bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.Before(l.head) || h.Epoch == l.head.Epoch && h.Revision < l.head.Revision {
		return false, fmt.Errorf("head %d.%d is older than %d.%d, which this node has seen: %w", h.Epoch, h.Index, l.head.Epoch, l.head.Index, meta.ErrDenied)
	}
	changed = h.Revision != l.head.Revision || h.Epoch != l.head.Epoch
	l.head = h
	if !l.known || at > l.at {
		l.at = at
	}
	l.known, l.reachable = true, true
	return changed, nil
}

// save writes the head down, seldom when it says nothing new.
func (l *Lease) save(changed bool) {
	now := l.cfg.Clock()
	l.mu.Lock()
	if !changed && l.saved != 0 && now-l.saved < saveHeadEvery {
		l.mu.Unlock()
		return
	}
	l.saved = now
	s := savedHead{Head: l.head, Boot: bootID(), At: l.at, Wall: meta.TimeOf(time.Now().Add(l.at - now))}
	l.mu.Unlock()
	// A cache: what a crash loses is asked for again.
	tmp := l.cfg.File + ".new"
	err := os.WriteFile(tmp, codec.Encode(s), 0o600)
	if err == nil {
		err = os.Rename(tmp, l.cfg.File)
	}
	if err != nil {
		l.cfg.Log.Warn("the revocation head is not kept over a restart", "error", err)
	}
}

// Tried is closed once Run has asked for the first time, with or without success.
func (l *Lease) Tried() <-chan struct{} { return l.tried }

// Run asks for heads until ctx ends. It is called once.
func (l *Lease) Run(ctx context.Context) error {
	const least, most = 200 * time.Millisecond, 2 * time.Second
	pause := least
	tried := sync.OnceFunc(func() { close(l.tried) })
	for now := true; ; {
		err := l.ask(ctx, now)
		tried()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			pause, now = least, false
			continue // the server holds the next one back
		}
		// Who was cut off wants to know at once when that is over.
		now = true
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, most)
	}
}

// ask asks once.
func (l *Lease) ask(ctx context.Context, now bool) error {
	l.mu.Lock()
	seen := l.head
	l.mu.Unlock()
	began := l.cfg.Clock()
	err := l.cfg.Client.head(ctx, seen, now, func() ([]byte, func([]byte) error) {
		// What one server let pass in silence is no age of the next one's head; nor may that
		// be the head of the first, so the nonce is another.
		nonce := make([]byte, trust.HeadNonceBytes)
		_, _ = rand.Read(nonce) // it never fails
		asked := l.cfg.Clock()
		return nonce, func(b []byte) error { return l.offer(b, nonce, asked) }
	})
	if err == nil || ctx.Err() != nil {
		return err
	}
	if errors.Is(err, errLegacy) {
		// Nothing but nodes can be revoked there, and that goes by the roster.
		l.mu.Lock()
		l.at, l.known, l.reachable = began, true, true
		l.mu.Unlock()
		return err
	}
	l.mu.Lock()
	was := l.reachable
	l.reachable = errors.Is(err, errExpelled) || errors.Is(err, meta.ErrDenied)
	lost := was && !l.reachable
	l.mu.Unlock()
	if lost {
		l.cfg.Log.Warn("no server tells whether rights were taken back; private reads go on for as long as their repositories allow", "error", err)
	}
	return err
}
