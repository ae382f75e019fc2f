package quota

import (
	"context"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// holdMax is how long a turn counts: who takes longer waits for a client, a disk or the
// log, not for a processor.
const holdMax = 5 * time.Millisecond

// presence is how long a tenant keeps its part after its last turn.
const presence = time.Second

// turnCore decides whose work goes on. A turn is a piece of work of a tenant: the
// beginning of a call, or what follows a piece of a body. While no more than slots turns
// are taken everybody works. Beyond that each tenant that is present has its part of the
// slots by weight, at least one; a tenant within its part never waits, and one that is
// over waits for its own turns to end, or for slots that nobody takes. It is not safe for
// concurrent use. Time is the duration since any fixed moment.
type turnCore struct {
	slots   int
	tenants map[meta.TenantName]*line
	taken   int // turns that count
	oldest  *turn
	newest  *turn // the list of turns that count, in the order of their beginning
	virtual float64
	waiting int
}

// line is a tenant at a turnCore.
type line struct {
	name   meta.TenantName
	weight int
	taken  int
	seen   time.Duration
	tag    float64 // seconds of turns by weight
	queue  []*turn
	open   int // calls under way
}

// turn is one piece of work.
type turn struct {
	line       *line
	began      time.Duration
	counts     bool
	prev, next *turn
	granted    chan struct{}
}

func newTurnCore(slots int) *turnCore {
	return &turnCore{slots: slots, tenants: map[meta.TenantName]*line{}}
}

// open returns the line of a tenant that begins a call.
func (c *turnCore) open(now time.Duration, name meta.TenantName, weight int) *line {
	l := c.tenants[name]
	if l == nil {
		c.sweep(now)
		l = &line{name: name}
		c.tenants[name] = l
	}
	l.weight, l.seen = weight, now
	l.open++
	return l
}

func (c *turnCore) close(l *line) { l.open-- }

// sweep forgets tenants that are gone.
func (c *turnCore) sweep(now time.Duration) {
	for name, l := range c.tenants {
		if l.open == 0 && l.taken == 0 && now-l.seen > presence {
			delete(c.tenants, name)
		}
	}
}

// part is how many slots a tenant has while others are present.
func (c *turnCore) part(now time.Duration, of *line) int {
	sum, present := 0, 0
	for _, l := range c.tenants {
		if l == of || l.taken > 0 || len(l.queue) > 0 || now-l.seen <= presence {
			sum += l.weight
			present++
		}
	}
	if present <= 1 {
		return 1 << 30
	}
	return max(1, c.slots*of.weight/sum)
}

// take begins a turn, or puts it in line; it reports which.
func (c *turnCore) take(now time.Duration, t *turn) bool {
	l := t.line
	l.seen = now
	c.expire(now)
	if l.taken == 0 && len(l.queue) == 0 {
		l.tag = max(l.tag, c.virtual) // Who did nothing does not catch up for it.
	}
	if len(l.queue) == 0 && (l.taken < c.part(now, l) || c.taken < c.slots && c.waiting == 0) {
		c.begin(now, t)
		return true
	}
	l.queue = append(l.queue, t)
	c.waiting++
	return false
}

func (c *turnCore) begin(now time.Duration, t *turn) {
	t.began, t.counts = now, true
	t.prev, t.next = c.newest, nil
	if c.newest != nil {
		c.newest.next = t
	} else {
		c.oldest = t
	}
	c.newest = t
	c.taken++
	t.line.taken++
	c.virtual = max(c.virtual, t.line.tag)
}

// end takes a turn back; one that no longer counts is left alone.
func (c *turnCore) end(now time.Duration, t *turn) {
	if !t.counts {
		return
	}
	t.counts = false
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		c.oldest = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	} else {
		c.newest = t.prev
	}
	t.prev, t.next = nil, nil
	c.taken--
	l := t.line
	l.taken--
	l.seen = now
	l.tag += min(now-t.began, holdMax).Seconds() / float64(l.weight)
}

// expire ends the turns that have lasted too long to count.
func (c *turnCore) expire(now time.Duration) {
	for c.oldest != nil && now-c.oldest.began >= holdMax {
		c.end(now, c.oldest)
	}
}

// leave takes a turn that waits out of line.
func (c *turnCore) leave(t *turn) {
	for i, other := range t.line.queue {
		if other == t {
			t.line.queue = append(t.line.queue[:i], t.line.queue[i+1:]...)
			c.waiting--
			return
		}
	}
}

// next begins what may begin and calls granted for each. It returns when to be called
// again, false when nobody waits.
func (c *turnCore) next(now time.Duration, granted func(*turn)) (again time.Duration, waits bool) {
	c.expire(now)
	for c.waiting > 0 {
		var best *line
		bestOver := false
		for _, l := range c.tenants {
			if len(l.queue) == 0 {
				continue
			}
			over := l.taken >= c.part(now, l)
			switch {
			case over && c.taken >= c.slots:
				continue
			case best == nil, bestOver && !over:
			case over != bestOver, l.tag > best.tag, l.tag == best.tag && l.name > best.name:
				continue
			}
			best, bestOver = l, over
		}
		if best == nil {
			break
		}
		t := best.queue[0]
		best.queue = best.queue[1:]
		c.waiting--
		c.begin(now, t)
		granted(t)
	}
	if c.waiting == 0 || c.oldest == nil {
		return 0, false
	}
	return c.oldest.began + holdMax, true
}

// turns is a turnCore with a clock and waiters. A waiter waits in its caller's
// goroutine; one timer, armed only while somebody waits, ends turns that no longer count.
type turns struct {
	began time.Time

	mu    sync.Mutex
	core  *turnCore
	timer *time.Timer
}

func newTurns(slots int) *turns {
	t := &turns{began: time.Now(), core: newTurnCore(slots)}
	t.timer = time.AfterFunc(time.Hour, t.tick)
	t.timer.Stop()
	return t
}

func (t *turns) now() time.Duration { return time.Since(t.began) }

func (t *turns) tick() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.serve()
}

// serve grants what can be granted. It holds mu.
func (t *turns) serve() {
	if t.core.waiting == 0 {
		return
	}
	now := t.now()
	if again, waits := t.core.next(now, func(r *turn) { close(r.granted) }); waits {
		t.timer.Reset(max(100*time.Microsecond, again-now))
	}
}

func (t *turns) open(name meta.TenantName, weight int) *line {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.core.open(t.now(), name, weight)
}

func (t *turns) close(l *line) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.core.close(l)
}

// take waits for a turn.
//
// Errors: of ctx.
func (t *turns) take(ctx context.Context, l *line) (*turn, error) {
	r := &turn{line: l}
	t.mu.Lock()
	if t.core.take(t.now(), r) {
		t.mu.Unlock()
		return r, nil
	}
	r.granted = make(chan struct{})
	t.serve()
	t.mu.Unlock()
	select {
	case <-r.granted:
		return r, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-r.granted:
		return r, nil
	default:
	}
	t.core.leave(r)
	return nil, context.Cause(ctx)
}

func (t *turns) end(r *turn) {
	if r == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.core.end(t.now(), r)
	t.serve()
}
