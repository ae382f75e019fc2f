package quota

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Kind is a limit that the nodes of a cluster share.
type Kind uint8

// Kinds. The numbers travel between nodes.
const (
	PublishBytes Kind = iota
	PublishRequests
	DownloadBytes
	DownloadRequests
	Uploads

	kinds = 5
)

// paced says that a limit is of bytes, which are slowed, not of calls, which are refused.
func (k Kind) paced() bool { return k == PublishBytes || k == DownloadBytes }

const (
	// burstTime is how much of a rate may pass at once after a pause.
	burstTime = 250 * time.Millisecond
	// shareTime is how long a share holds after it was said.
	shareTime = 10 * time.Second
	// minBurst lets a piece of a body pass at once however low the rate.
	minBurst = 64 << 10
)

// meter is this node's share of one limit of a tenant, and how much of it is wanted.
type meter struct {
	kind    Kind
	limiter *rate.Limiter

	mu    sync.Mutex
	rate  float64   // of the cluster
	share float64   // of this node, when said
	until time.Time // until when the share holds
	// Since the last report: what passed, and whether more was wanted.
	passed, refused float64
	pressed         bool
	last            time.Time
	lastWant        time.Time
}

func newMeter(k Kind) *meter {
	return &meter{kind: k, limiter: rate.NewLimiter(rate.Inf, 1), last: time.Now()}
}

// set takes over the cluster's rate, and what this node has of it now.
func (m *meter) set(cluster float64, nodes int, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rate = cluster
	m.apply(nodes, now)
}

// grant takes over a share.
func (m *meter) grant(share float64, nodes int, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.share, m.until = share, now.Add(shareTime)
	m.apply(nodes, now)
}

// here is what this node may use. It holds mu.
func (m *meter) here(nodes int, now time.Time) float64 {
	if now.Before(m.until) {
		return min(m.share, m.rate)
	}
	return fairPart(m.rate, nodes)
}

func (m *meter) apply(nodes int, now time.Time) {
	if m.rate == 0 {
		m.limiter.SetLimitAt(now, rate.Inf)
		return
	}
	here := m.here(nodes, now)
	burst := max(1, here*burstTime.Seconds())
	if m.kind.paced() {
		burst = max(minBurst, burst)
	}
	m.limiter.SetBurstAt(now, int(min(burst, 1<<30)))
	m.limiter.SetLimitAt(now, rate.Limit(here))
}

// want tells how much per second could be used here, since it was last asked; active is
// false when nothing was for a while. Without a rate it is what was used.
func (m *meter) want(nodes int, now time.Time) (want float64, active bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	took := max(now.Sub(m.last), 100*time.Millisecond).Seconds()
	want = (m.passed + m.refused) / took
	if m.pressed && m.rate > 0 {
		// It was slowed by what it has: how much more it could use nobody knows.
		want = max(want, 2*m.here(nodes, now))
	}
	if m.passed+m.refused > 0 {
		m.lastWant = now
	}
	m.passed, m.refused, m.pressed, m.last = 0, 0, false, now
	return want, now.Sub(m.lastWant) < shareTime
}

func (m *meter) limited() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rate > 0
}

func (m *meter) note(passed, refused float64, pressed bool) {
	m.mu.Lock()
	m.passed, m.refused, m.pressed = m.passed+passed, m.refused+refused, m.pressed || pressed
	m.mu.Unlock()
}

// debt is how long something would wait that asks now.
func (m *meter) debt(now time.Time) time.Duration {
	limit := m.limiter.Limit()
	if limit == rate.Inf || limit <= 0 {
		return 0
	}
	if tokens := m.limiter.TokensAt(now); tokens < 0 {
		return time.Duration(-tokens / float64(limit) * float64(time.Second))
	}
	return 0
}

// call lets a call pass, waiting at most most; else it returns how long to wait before
// trying again.
func (m *meter) call(ctx context.Context, most time.Duration) (retry time.Duration, err error) {
	now := time.Now()
	r := m.limiter.ReserveN(now, 1)
	if !r.OK() {
		m.note(0, 1, true)
		return most, nil
	}
	delay := r.DelayFrom(now)
	if delay > most {
		r.CancelAt(now)
		m.note(0, 1, true)
		return delay, nil
	}
	m.note(1, 0, delay > 0)
	return 0, sleep(ctx, delay)
}

// pace notes that n bytes have passed and waits until the next may.
func (m *meter) pace(ctx context.Context, n int) {
	if m.limiter.Limit() == rate.Inf {
		m.note(float64(n), 0, false)
		return
	}
	now, delay := time.Now(), time.Duration(0)
	for left := n; left > 0; {
		piece := min(left, m.limiter.Burst())
		r := m.limiter.ReserveN(now, piece)
		if !r.OK() {
			continue // the burst has just become smaller
		}
		delay = r.DelayFrom(now)
		left -= piece
	}
	m.note(float64(n), 0, delay > 0)
	_ = sleep(ctx, delay) // Who has gone finds out by the next read or write.
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
