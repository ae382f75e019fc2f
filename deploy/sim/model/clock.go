package model

// event is one thing to happen; kind says what the numbers mean. It is kept at 32
// bytes: a wave of 10,000 hosts makes hundreds of millions.
type event struct {
	at      int64 // ns of virtual time
	serial  uint32
	host    int32
	a, b, c int32
	kind    eventKind
	root    uint8
}

func (e *event) before(f *event) bool {
	return e.at < f.at || e.at == f.at && int32(e.serial-f.serial) < 0
}

const (
	bucketShift = 15 // a bucket is 32.8 us
	buckets     = 1 << 13
)

// clock is a queue of events by time, first in first out among equals: a ring of
// buckets for the next 268 ms, of which the present one is a heap, and a heap for what is
// later. So most events cost an append and a step in a small heap.
type clock struct {
	now     int64
	serial  uint32
	present []event
	end     int64 // of the present bucket
	ring    [buckets][]event
	ringed  int
	later   []event
}

// after adds an event at d ns from now.
func (c *clock) after(d int64, e event) { c.push(c.now+max(d, 0), e) }

// push adds an event at time at, which is not in the past.
func (c *clock) push(at int64, e event) {
	c.serial++
	e.at, e.serial = max(at, c.now), c.serial
	c.place(e)
}

func (c *clock) place(e event) {
	switch {
	case e.at < c.end:
		c.present = heapPush(c.present, e)
	case e.at < c.end+(buckets-1)<<bucketShift:
		i := e.at >> bucketShift & (buckets - 1)
		c.ring[i] = append(c.ring[i], e)
		c.ringed++
	default:
		c.later = heapPush(c.later, e)
	}
}

// pop takes the next event, ok false when there is none.
func (c *clock) pop() (e event, ok bool) {
	for len(c.present) == 0 {
		if c.ringed == 0 {
			if len(c.later) == 0 {
				return e, false
			}
			c.end = c.later[0].at >> bucketShift << bucketShift
		}
		i := c.end >> bucketShift & (buckets - 1)
		c.end += 1 << bucketShift
		c.present, c.ring[i] = c.ring[i], c.present[:0]
		c.ringed -= len(c.present)
		for k := len(c.present)/2 - 1; k >= 0; k-- {
			sink(c.present, k)
		}
		for len(c.later) > 0 && c.later[0].at < c.end+(buckets-1)<<bucketShift {
			c.place(c.later[0])
			c.later = heapPop(c.later)
		}
	}
	e = c.present[0]
	c.present = heapPop(c.present)
	c.now = e.at
	return e, true
}

func heapPush(h []event, e event) []event {
	h = append(h, e)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !e.before(&h[up]) {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = e
	return h
}

func heapPop(h []event) []event {
	n := len(h) - 1
	h[0] = h[n]
	h = h[:n]
	if n > 1 {
		sink(h, 0)
	}
	return h
}

func sink(h []event, i int) {
	e := h[i]
	for {
		k := 2*i + 1
		if k >= len(h) {
			break
		}
		if k+1 < len(h) && h[k+1].before(&h[k]) {
			k++
		}
		if !h[k].before(&e) {
			break
		}
		h[i] = h[k]
		i = k
	}
	h[i] = e
}
