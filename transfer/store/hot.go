package store

import (
	"container/list"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// hotCache keeps verified chunks in memory, least recently used out first.
//
// Small chunks, which are documents, are slices that are never written again, so
// readers share them. Larger ones come and go at the rate of a link; they are in slabs
// of memory that the garbage collector does not see, used again for the next chunk of
// that length, and readers get a copy. So what the cache holds costs its bytes once,
// not twice as on the heap, and nothing is allocated for a chunk.
//
// A chunk read from disk is only kept when it was missed a short while before, within
// twice the cache's size of other misses: readers that pass through large blobs then
// do not empty the cache. Small chunks and chunks just received are kept at once.
type hotCache struct {
	hits, misses atomic.Int64

	mu       sync.Mutex
	maxBytes int64
	bytes    int64                    // of chunks in the cache
	mapped   int64                    // of all slabs, free ones too
	byKey    map[hotKey]*list.Element // of *hotChunk
	order    *list.List
	free     [slabClasses][][]byte
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
	pins int  // readers and the writer that copy now
	gone bool // to be freed with the last pin
}

const (
	hotMisses   = 4096     // misses remembered
	hotSmall    = 64 << 10 // chunks up to this are kept on the first miss
	hotOverhead = 256      // counted for each chunk besides its bytes
	slabClasses = 7        // 64 KiB << 1 to 64 KiB << 6, each with room for a seal
)

// slabBytes is the length of the slabs for chunks of n bytes, and their class.
func slabBytes(n int) (length, class int) {
	for hotSmall<<class+chunk.MaxOverhead < n {
		class++
	}
	return hotSmall<<class + chunk.MaxOverhead, class
}

// hotCost is what a chunk of n bytes counts as.
func hotCost(n int) int64 {
	if n > hotSmall {
		n, _ = slabBytes(n)
	}
	return int64(n + hotOverhead)
}

func newHotCache(maxBytes int64) *hotCache {
	return &hotCache{maxBytes: maxBytes, byKey: map[hotKey]*list.Element{}, order: list.New(), missed: map[hotKey]struct{}{}, queue: list.New()}
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

func (c *hotCache) fits(length int) bool { return 3*hotCost(length) <= c.maxBytes }

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
	if h.slab = len(data) > hotSmall; h.slab {
		if h.data = c.slab(len(data)); h.data == nil {
			c.mu.Unlock()
			return
		}
	}
	c.mu.Unlock()

	if h.slab {
		copy(h.data, data)
	} else {
		h.data = append([]byte(nil), data...)
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	if h.gone = c.byKey[key] != nil; !h.gone { // else another was faster
		c.makeRoom(hotCost(len(data)))
		c.byKey[key] = c.order.PushFront(h)
		c.bytes += hotCost(len(data))
	}
	c.unpin(h)
}

// makeRoom evicts until so many bytes fit.
func (c *hotCache) makeRoom(bytes int64) {
	for c.bytes+bytes > c.maxBytes && c.order.Len() > 0 {
		oldest := c.order.Remove(c.order.Back()).(*hotChunk)
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
	_, class := slabBytes(len(h.data))
	c.free[class] = append(c.free[class], h.data[:cap(h.data)])
	h.data = nil
}

// slab returns memory of length n, nil when the system gives none.
func (c *hotCache) slab(n int) []byte {
	length, class := slabBytes(n)
	if k := len(c.free[class]); k > 0 {
		b := c.free[class][k-1]
		c.free[class] = c.free[class][:k-1]
		return b[:n]
	}
	// Free slabs of other lengths go back to the system.
	for k := range c.free {
		for len(c.free[k]) > 0 && c.mapped+int64(length) > c.maxBytes {
			last := len(c.free[k]) - 1
			b := c.free[k][last]
			c.free[k] = c.free[k][:last]
			c.unmap(b)
		}
	}
	b, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil
	}
	c.mapped += int64(length)
	return b[:n]
}

func (c *hotCache) unmap(b []byte) {
	b = b[:cap(b)]
	c.mapped -= int64(len(b))
	_ = unix.Munmap(b) // it is a mapping of ours
}

// close gives all memory back; the cache stays usable.
func (c *hotCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.makeRoom(c.maxBytes)
	for k, slabs := range c.free {
		for _, b := range slabs {
			c.unmap(b)
		}
		c.free[k] = nil
	}
}

func (c *hotCache) size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}
