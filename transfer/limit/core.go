package limit

import (
	"cmp"
	"slices"
	"time"
)

// The deciding half: pure, time comes in as the duration since any fixed moment.

const (
	// maxPiece is the most that one Take lets through.
	maxPiece = 256 << 10
	// pieceTime is how long of the rate a piece of a slow budget is, burstTime how
	// long of it may pass at once after a pause: the 4 % of a second that a window can
	// hold more than its rate.
	pieceTime = 20 * time.Millisecond
	burstTime = 40 * time.Millisecond
	// keptFlows bounds the flows that nobody waits in but whose share is remembered.
	keptFlows = 1024
)

// floors is the share of a budget that a class gets while more urgent ones want all of it.
var floors = [classes]float64{Bulk: 0.05, Prewarm: 0.02}

// bucket is one budget in one direction.
type bucket struct {
	rate  float64       // bytes per second
	level float64       // bytes that may pass
	at    time.Duration // when level was true
	piece int           // the most that passes at once
	// waiting counts the requests that need this budget; credit is what a class has
	// earned of its floor, in bytes, by being passed over.
	waiting [classes]int
	credit  [classes]float64
	held    uint64 // the pass in which a request earlier in order waits for it
}

func newBucket(rate int64, now time.Duration) *bucket {
	b := &bucket{at: now}
	b.set(rate)
	b.level = b.burst()
	return b
}

func (b *bucket) burst() float64 { return b.rate * burstTime.Seconds() }

func (b *bucket) set(rate int64) {
	b.rate = float64(rate)
	b.piece = max(1, min(maxPiece, int(b.rate*pieceTime.Seconds())))
	b.level = min(b.level, b.burst())
}

func (b *bucket) refill(now time.Duration) {
	if now > b.at {
		b.level = min(b.burst(), b.level+b.rate*(now-b.at).Seconds())
		b.at = now
	}
}

// until returns how long it takes until bytes may pass.
func (b *bucket) until(bytes int) time.Duration {
	missing := float64(bytes) - b.level
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing/b.rate*float64(time.Second)) + 1
}

// path is the budgets of a flow.
type path struct {
	list [4]*bucket
	n    int
}

func (p *path) add(b *bucket) {
	if b != nil {
		p.list[p.n] = b
		p.n++
	}
}

func (p *path) buckets() []*bucket { return p.list[:p.n] }

// piece returns how many of the next most bytes pass at once.
func (p *path) piece(most int) int {
	if p.n == 0 {
		return most
	}
	n := min(most, maxPiece)
	for _, b := range p.buckets() {
		n = min(n, b.piece)
	}
	return n
}

// take lets n bytes through if every budget has them.
func (p *path) take(now time.Duration, n int) bool {
	for _, b := range p.buckets() {
		b.refill(now)
		if b.level < float64(n) {
			return false
		}
	}
	for _, b := range p.buckets() {
		b.level -= float64(n)
	}
	return true
}

// request is one waiting Take.
type request struct {
	flow       *flow
	most       int
	granted    int // 0 while it waits
	prev, next *request
	ready      chan struct{} // the shell's: gets a value once granted
}

// flow is the requests of one Flow, first come first served.
type flow struct {
	Flow
	path        path
	first, last *request
	place       int   // in core.active, -1 when nobody waits
	tag         int64 // start tag of the next piece, in bytes
	owed        bool  // due, as of the present pass
}

// core holds the budgets of one direction and who waits for them.
type core struct {
	host, zone, wan *bucket // nil: no limit
	tenants         map[string]*bucket
	classes         [classes]*bucket

	flows   map[Flow]*flow
	active  []*flow        // somebody waits
	order   []*flow        // of serve
	virtual [classes]int64 // the greatest start tag served
	waiting int
	pass    uint64
}

// set changes the limits; who waits keeps his place.
func (c *core) set(now time.Duration, host, zone, wan int64, tenants map[string]int64, byClass map[Class]int64) {
	change := func(b *bucket, rate int64) *bucket {
		switch {
		case rate == 0:
			return nil
		case b == nil:
			return newBucket(rate, now)
		}
		b.refill(now)
		b.set(rate)
		b.waiting = [classes]int{} // counted anew below
		return b
	}
	c.host, c.zone, c.wan = change(c.host, host), change(c.zone, zone), change(c.wan, wan)
	next := make(map[string]*bucket, len(tenants))
	for name, rate := range tenants {
		if b := change(c.tenants[name], rate); b != nil {
			next[name] = b
		}
	}
	c.tenants = next
	for i := range c.classes {
		c.classes[i] = change(c.classes[i], byClass[Class(i)])
	}
	for _, f := range c.flows {
		f.path = c.path(&f.Flow)
		for r := f.first; r != nil; r = r.next {
			f.count(1)
		}
	}
}

func (c *core) limited() bool {
	for _, b := range c.classes {
		if b != nil {
			return true
		}
	}
	return c.host != nil || c.zone != nil || c.wan != nil || len(c.tenants) > 0
}

// path finds the budgets of f.
func (c *core) path(f *Flow) (p path) {
	p.add(c.host)
	switch {
	case f.Beyond:
		p.add(c.wan)
	case f.Zone != "":
		p.add(c.zone)
	}
	if len(c.tenants) > 0 {
		p.add(c.tenants[f.Tenant])
	}
	p.add(c.classes[f.Class])
	return p
}

// try lets some of the next most bytes of f through if nobody waits and they fit;
// 0 when f has to wait.
func (c *core) try(now time.Duration, f *Flow, most int) int {
	p := c.path(f)
	if p.n == 0 {
		return most
	}
	if c.waiting > 0 {
		return 0
	}
	if n := p.piece(most); p.take(now, n) {
		return n
	}
	return 0
}

func (f *flow) count(n int) {
	for _, b := range f.path.buckets() {
		b.waiting[f.Class] += n
	}
}

// add puts r, which wants some of the next most bytes of fl, in line.
func (c *core) add(fl Flow, r *request) {
	f := c.flows[fl]
	if f == nil {
		if len(c.flows) >= keptFlows+len(c.active) {
			for key, old := range c.flows {
				if old.place < 0 {
					delete(c.flows, key)
				}
			}
		}
		if c.flows == nil {
			c.flows = map[Flow]*flow{}
		}
		f = &flow{Flow: fl, place: -1}
		f.path = c.path(&f.Flow)
		c.flows[fl] = f
	}
	r.flow, r.granted, r.prev, r.next = f, 0, f.last, nil
	if f.last == nil {
		f.first = r
	} else {
		f.last.next = r
	}
	f.last = r
	if f.place < 0 {
		f.place = len(c.active)
		c.active = append(c.active, f)
	}
	f.count(1)
	c.waiting++
}

// remove takes r, which waits, out of line.
func (c *core) remove(r *request) {
	f := r.flow
	if r.prev == nil {
		f.first = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		f.last = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.prev, r.next = nil, nil
	f.count(-1)
	c.waiting--
	if f.first == nil {
		end := len(c.active) - 1
		c.active[f.place] = c.active[end]
		c.active[f.place].place = f.place
		c.active[end] = nil
		c.active = c.active[:end]
		f.place = -1
	}
}

// serve lets through what fits now, in order, and calls granted for each request that
// got something. It returns when to be called again, false when nobody waits. A
// request that has to wait for a budget keeps those behind it from it, so none is
// passed over for ever; it does not keep them from other budgets.
func (c *core) serve(now time.Duration, granted func(*request)) (again time.Duration, waiting bool) {
	c.pass++
	c.order = append(c.order[:0], c.active...)
	for _, f := range c.order {
		f.owed = f.due()
	}
	slices.SortFunc(c.order, before)
	for i := 0; i < len(c.order); {
		if c.host != nil && c.host.held == c.pass {
			break // it is in every path
		}
		f := c.order[i]
		r := f.first
		n := f.path.piece(r.most)
		var wait time.Duration
		held := false
		for _, b := range f.path.buckets() {
			b.refill(now)
			held = held || b.held == c.pass
			wait = max(wait, b.until(n))
		}
		if held || wait > 0 {
			for _, b := range f.path.buckets() {
				if b.until(n) > 0 {
					b.held = c.pass
				}
			}
			if !held && (!waiting || now+wait < again) {
				again = now + wait
			}
			waiting = true
			i++
			continue
		}
		f.path.take(now, n)
		c.account(f, n)
		c.remove(r)
		r.granted = n
		granted(r)
		if f.first == nil {
			i++
			continue
		}
		f.owed = f.due()
		for j := i; j+1 < len(c.order) && before(c.order[j+1], f) < 0; j++ {
			c.order[j], c.order[j+1] = c.order[j+1], f
		}
	}
	clear(c.order)
	return again, waiting
}

// before orders flows: who is owed his floor, then the more urgent class, then the
// flow that had least.
func before(a, b *flow) int {
	if a.owed != b.owed {
		if a.owed {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.Class, b.Class), cmp.Compare(a.tag, b.tag))
}

// due reports whether f has its floor to get: in each of its budgets that more urgent
// requests wait for, its class has earned the next piece.
func (f *flow) due() bool {
	if f.Class == Urgent {
		return false
	}
	contended := false
	n := float64(f.path.piece(f.first.most))
	for _, b := range f.path.buckets() {
		for more := range f.Class {
			if b.waiting[more] > 0 {
				contended = true
				if b.credit[f.Class] < n {
					return false
				}
				break
			}
		}
	}
	return contended
}

// account notes that n bytes of f pass: what its floor owes, what less urgent classes
// earn by it, and the flow's share among its like.
func (c *core) account(f *flow, n int) {
	for _, b := range f.path.buckets() {
		b.credit[f.Class] = max(0, b.credit[f.Class]-float64(n))
		if f.owed {
			continue // a floor is not a reason for another
		}
		for less := f.Class + 1; less < classes; less++ {
			if b.waiting[less] > 0 {
				b.credit[less] = min(2*float64(b.piece), b.credit[less]+floors[less]*float64(n))
			} else {
				b.credit[less] = 0
			}
		}
	}
	// Who was kept away by a budget of its own does not catch up for it.
	start := max(f.tag, c.virtual[f.Class]-maxPiece)
	c.virtual[f.Class] = max(c.virtual[f.Class], start)
	f.tag = start + int64(n)
}
