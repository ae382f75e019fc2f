package swarm

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"golang.org/x/sync/semaphore"

	"github.com/shoal-registry/shoal/transfer/limit"
	"github.com/shoal-registry/shoal/transfer/slab"
	"github.com/shoal-registry/shoal/transfer/wire"
)

const (
	streamIdle = time.Minute      // a data stream without a chunk for so long ends
	progress   = 10 * time.Second // something of a chunk, or of a message, must move within
	silence    = 20 * time.Second // a link without a message for so long is dead
	// Whoever moves less than slowBytes a second for slowFor while others wait for
	// memory gives his back.
	slowBytes = 64 << 10
	slowFor   = 3
	watchTick = time.Second
	trimTicks = 10
)

// memory bounds the chunks that are on their way in, or out, and knows whether
// others wait for some.
type memory struct {
	*semaphore.Weighted
	// less is what all but the urgent class may have: budgets can hold their chunks up
	// for long.
	less *semaphore.Weighted
	// waiting counts all who wait, waitingLess those who wait for less.
	waiting, waitingLess atomic.Int32
}

func newMemory(bytes int64) *memory {
	return &memory{
		Weighted: semaphore.NewWeighted(bytes),
		less:     semaphore.NewWeighted(max(bytes*3/4, wire.MaxChunkBytes)),
	}
}

// take waits for n bytes and notes in f that it has them. drop gives them back.
//
// Errors: ctx's.
func (m *memory) take(ctx context.Context, f *flow, class limit.Class, n int64) error {
	f.paused.Store(true)
	defer f.paused.Store(false)
	if class > limit.Urgent {
		if err := acquire(ctx, m.less, n, &m.waitingLess); err != nil {
			return err
		}
		f.less.Store(true)
	}
	if err := acquire(ctx, m.Weighted, n, &m.waiting); err != nil {
		m.dropLess(f, n)
		return err
	}
	f.holding.Store(m)
	return nil
}

func acquire(ctx context.Context, from *semaphore.Weighted, n int64, waiting *atomic.Int32) error {
	if from.TryAcquire(n) {
		return nil
	}
	waiting.Add(1)
	defer waiting.Add(-1)
	return from.Acquire(ctx, n)
}

func (m *memory) drop(f *flow, n int64) {
	f.holding.Store(nil)
	m.Release(n)
	m.dropLess(f, n)
}

func (m *memory) dropLess(f *flow, n int64) {
	if f.less.CompareAndSwap(true, false) {
		m.less.Release(n)
	}
}

// scarce reports whether others wait for what f has.
func (m *memory) scarce(f *flow) bool {
	return m != nil && (m.waiting.Load() > 0 || f.less.Load() && m.waitingLess.Load() > 0)
}

// flow is one direction of a stream, as the watchdog sees it: deadlines would cost a
// timer or two a piece.
type flow struct {
	link    *link
	st      network.Stream
	idle    time.Duration // how long it may rest between chunks or messages; 0 is for ever
	moved   atomic.Int64  // bytes, or messages, in all
	busy    atomic.Bool   // in the midst of a chunk or message
	paused  atomic.Bool   // it waits for something of this node's own
	holding atomic.Pointer[memory]
	less    atomic.Bool   // it has memory of what the less urgent share
	ended   chan struct{} // closed when the watchdog or the link has ended it

	// The watchdog's.
	once  sync.Once
	seen  int64 // moved at the last tick
	still time.Duration
	slow  int // ticks with less than slowBytes
}

// end makes whoever uses the stream fail.
func (f *flow) end() {
	f.once.Do(func() {
		close(f.ended)
		_ = f.st.Reset()
	})
}

// tick judges the flow after another watchTick; false when it is to end.
func (f *flow) tick() bool {
	moved, paused, memory := f.moved.Load(), f.paused.Load(), f.holding.Load()
	n := moved - f.seen
	f.seen = moved
	if n > 0 || paused {
		f.still = 0
	} else {
		f.still += watchTick
	}
	if n >= slowBytes || paused || memory == nil {
		f.slow = 0
	} else {
		f.slow++
	}
	if f.busy.Load() {
		return f.still < progress && (f.slow < slowFor || !memory.scarce(f))
	}
	return f.idle == 0 || f.still < f.idle
}

// flows are all that a Swarm has.
type flows struct {
	mu   sync.Mutex
	all  map[*flow]struct{}
	over bool
}

// begin watches st until finish. A stream that comes too late is ended at once.
func (fs *flows) begin(l *link, st network.Stream, idle time.Duration) *flow {
	f := &flow{link: l, st: st, idle: idle, ended: make(chan struct{})}
	fs.mu.Lock()
	over := fs.over
	if !over {
		fs.all[f] = struct{}{}
	}
	fs.mu.Unlock()
	if over {
		f.end()
	}
	return f
}

func (fs *flows) finish(f *flow) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.all, f)
}

// endOf ends the flows of a link.
func (fs *flows) endOf(l *link) { fs.endWhere(func(f *flow) bool { return f.link == l }) }

func (fs *flows) endWhere(bad func(*flow) bool) {
	var ending []*flow
	fs.mu.Lock()
	for f := range fs.all {
		if bad(f) {
			ending = append(ending, f)
		}
	}
	fs.mu.Unlock()
	for _, f := range ending { // a reset may wait for the connection
		f.end()
	}
}

// watch ends flows that stand still, and all of them with ctx. Memory for chunks that
// was not needed lately goes back to the system.
func (fs *flows) watch(ctx context.Context) {
	ticker := time.NewTicker(watchTick)
	defer ticker.Stop()
	for tick := 1; ; tick++ {
		select {
		case <-ticker.C:
			if tick%trimTicks == 0 {
				slab.Trim()
			}
			fs.endWhere(func(f *flow) bool { return !f.tick() })
		case <-ctx.Done():
			fs.mu.Lock()
			fs.over = true
			fs.mu.Unlock()
			fs.endWhere(func(*flow) bool { return true })
			return
		}
	}
}
