package store

import (
	"container/list"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/transfer/slab"
	"github.com/shoal-registry/shoal/verify/digest"
)

// hotCache keeps verified chunks in memory, least recently used out first.
//
// Small chunks, which are documents, are slices that are never written again, so
// readers share them. Larger ones come and go at the rate of a link; they are in slabs
// (package slab), and readers get a copy. So what the cache holds costs its bytes once,
// not twice as on the heap, and nothing is allocated for a chunk.
//
// Beyond maxBytes chunks stay that were used within hotHold, up to mostBytes: on a fast
// link what came is relayed and read in that time, and would be read from disk and
// hashed again for each.
//
// A chunk read from disk is only kept when it was missed a short while before, within
// twice the cache's size of other misses: readers that pass through large blobs then
// do not empty the cache. Small chunks and chunks just received are kept at once.
type hotCache struct {
	hits, misses atomic.Int64

	mu       sync.Mutex
	maxBytes int64
	// mostBytes is what chunks in use may take; at least maxBytes.
	mostBytes int64
	cooling   bool // cool is due
	now       func() time.Time
	bytes     int64                    // of chunks in the cache
	byKey     map[hotKey]*list.Element // of *hotChunk
	order     *list.List
	// missed are the recent misses, oldest first in queue.
	missed      map[hotKey]struct{}
	queue       *list.List // of hotMiss
	missedBytes int64
}

type hotMiss struct {
	key    hotKey
	length int
}

type hotKey struct {
	root digest.CID
	i    int
}

type hotChunk struct {
	key  hotKey
	data []byte
	slab bool // data is a slab's
	used time.Time
	pins int  // readers and the writer that copy now
	gone bool // to be freed with the last pin
}

const (
	hotMisses   = 4096          // misses remembered
	hotSmall    = slab.MinBytes // chunks up to this are kept on the first miss
	hotOverhead = 256           // counted for each chunk besides its bytes
	hotHold     = 250 * time.Millisecond
	hotGrowth   = 8 // mostBytes by maxBytes, while it is below hotMost
	hotMost     = 48 << 20
)

// hotCost is what a chunk of n bytes counts as.
func hotCost(n int) int64 {
	if n > hotSmall {
		n = slab.Size(n)
	}
	return int64(n + hotOverhead)
}

// newHotCache returns a cache; maxBytes of 0 or less is none.
func newHotCache(maxBytes int64) *hotCache {
	return &hotCache{maxBytes: maxBytes, mostBytes: min(hotGrowth*maxBytes, max(maxBytes, hotMost)), now: time.Now, byKey: map[hotKey]*list.Element{}, order: list.New(), missed: map[hotKey]struct{}{}, queue: list.New()}
}

// get returns the chunk, in dst[:0] if that has the capacity, or nil; then keep says
// whether the caller should put what it reads.
func (c *hotCache) get(root digest.CID, i, length int, dst []byte) (data []byte, keep bool) {
	key := hotKey{root, i}
	c.mu.Lock()
	el := c.byKey[key]
	if el == nil {
		defer c.mu.Unlock()
		return nil, c.miss(key, length)
	}
	c.order.MoveToFront(el)
	c.hits.Add(1)
	h := el.Value.(*hotChunk)
	h.used = c.now()
	if !h.slab {
		c.mu.Unlock()
		return h.data, false
	}
	h.pins++
	c.mu.Unlock()
	data = append(dst[:0], h.data...)
	c.mu.Lock()
	c.unpin(h)
	c.mu.Unlock()
	return data, false
}

// miss notes a miss and returns whether the chunk is worth keeping.
func (c *hotCache) miss(key hotKey, length int) bool {
	c.misses.Add(1)
	if !c.fits(length) {
		return false
	}
	if length <= hotSmall {
		return true
	}
	if _, again := c.missed[key]; again {
		return true
	}
	c.queue.PushBack(hotMiss{key, length})
	c.missedBytes += int64(length)
	for c.queue.Len() > hotMisses || c.missedBytes > 2*c.maxBytes {
		oldest := c.queue.Remove(c.queue.Front()).(hotMiss)
		delete(c.missed, oldest.key)
		c.missedBytes -= int64(oldest.length)
	}
	c.missed[key] = struct{}{}
	return false
}

func (c *hotCache) fits(length int) bool { return 3*hotCost(length) <= c.mostBytes }

// put keeps a copy of data, which is verified.
func (c *hotCache) put(root digest.CID, i int, data []byte) {
	key := hotKey{root, i}
	h := &hotChunk{key: key, pins: 1}
	c.mu.Lock()
	if c.byKey[key] != nil || !c.fits(len(data)) {
		c.mu.Unlock()
		return
	}
	c.makeRoom(hotCost(len(data)))
	c.mu.Unlock()

	if h.slab = len(data) > hotSmall; h.slab {
		h.data = slab.Get(len(data))
		copy(h.data, data)
	} else {
		h.data = append([]byte(nil), data...)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if h.gone = c.byKey[key] != nil; !h.gone { // else another was faster
		c.makeRoom(hotCost(len(data)))
		h.used = c.now()
		c.byKey[key] = c.order.PushFront(h)
		c.bytes += hotCost(len(data))
		if c.bytes > c.maxBytes && !c.cooling {
			c.cooling = true
			time.AfterFunc(2*hotHold, c.cool)
		}
	}
	c.unpin(h)
}

// makeRoom evicts until so many bytes fit.
func (c *hotCache) makeRoom(bytes int64) {
	warm := c.now().Add(-hotHold)
	for c.bytes+bytes > c.maxBytes && c.order.Len() > 0 {
		el := c.order.Back()
		oldest := el.Value.(*hotChunk)
		if c.bytes+bytes <= c.mostBytes && oldest.used.After(warm) {
			return
		}
		c.order.Remove(el)
		delete(c.byKey, oldest.key)
		c.bytes -= hotCost(len(oldest.data))
		oldest.gone = true
		oldest.pins++
		c.unpin(oldest)
	}
}

// unpin frees the slab of a chunk that is not in the cache any more and that nobody
// copies.
func (c *hotCache) unpin(h *hotChunk) {
	if h.pins--; h.pins > 0 || !h.gone || !h.slab {
		return
	}
	slab.Put(h.data)
	h.data = nil
}

// cool gives back what is above maxBytes and no longer in use.
func (c *hotCache) cool() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.makeRoom(0)
	if c.cooling = c.bytes > c.maxBytes; c.cooling {
		time.AfterFunc(2*hotHold, c.cool)
	}
}

// close gives all memory back; the cache stays usable.
func (c *hotCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.makeRoom(c.mostBytes) // all of it
}

func (c *hotCache) size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}
