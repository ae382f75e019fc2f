package store

import (
	"container/list"
	"sync"
	"sync/atomic"

	"github.com/shoal-registry/shoal/verify/digest"
)

// hotCache keeps verified chunks in memory, least recently used out first. The
// slices in it are never written again, so readers share them without counting.
//
// A chunk read from disk is only kept when it was missed a short while before, within
// twice the cache's size of other misses: readers that pass through large blobs then
// neither allocate nor empty the cache. Small chunks and chunks just received are kept
// at once.
type hotCache struct {
	hits, misses atomic.Int64

	mu       sync.Mutex
	maxBytes int64
	bytes    int64
	byKey    map[hotKey]*list.Element // of *hotChunk
	order    *list.List
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
}

const (
	hotMisses   = 4096     // misses remembered
	hotSmall    = 64 << 10 // chunks up to this are kept on the first miss
	hotOverhead = 256      // counted for each chunk besides its bytes
)

func newHotCache(maxBytes int64) *hotCache {
	return &hotCache{maxBytes: maxBytes, byKey: map[hotKey]*list.Element{}, order: list.New(), missed: map[hotKey]struct{}{}, queue: list.New()}
}

// get returns the chunk or nil; then keep says whether the caller should read it into
// memory of its own and put it.
func (c *hotCache) get(root digest.CID, i, length int) (data []byte, keep bool) {
	key := hotKey{root, i}
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.byKey[key]; el != nil {
		c.order.MoveToFront(el)
		c.hits.Add(1)
		return el.Value.(*hotChunk).data, false
	}
	c.misses.Add(1)
	if !c.fits(length) {
		return nil, false
	}
	if length <= hotSmall {
		return nil, true
	}
	if _, again := c.missed[key]; again {
		return nil, true
	}
	c.queue.PushBack(hotMiss{key, length})
	c.missedBytes += int64(length)
	for c.queue.Len() > hotMisses || c.missedBytes > 2*c.maxBytes {
		oldest := c.queue.Remove(c.queue.Front()).(hotMiss)
		delete(c.missed, oldest.key)
		c.missedBytes -= int64(oldest.length)
	}
	c.missed[key] = struct{}{}
	return nil, false
}

func (c *hotCache) fits(length int) bool { return int64(length+hotOverhead)*4 <= c.maxBytes }

// put gives data, verified and never to be changed, to the cache.
func (c *hotCache) put(root digest.CID, i int, data []byte) {
	key := hotKey{root, i}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey[key] != nil || !c.fits(len(data)) {
		return
	}
	c.byKey[key] = c.order.PushFront(&hotChunk{key, data})
	c.bytes += int64(len(data) + hotOverhead)
	for c.bytes > c.maxBytes {
		oldest := c.order.Remove(c.order.Back()).(*hotChunk)
		delete(c.byKey, oldest.key)
		c.bytes -= int64(len(oldest.data) + hotOverhead)
	}
}

// putCopy is put of bytes that stay the caller's.
func (c *hotCache) putCopy(root digest.CID, i int, data []byte) {
	c.mu.Lock()
	wanted := c.fits(len(data)) && c.byKey[hotKey{root, i}] == nil
	c.mu.Unlock()
	if wanted {
		c.put(root, i, append([]byte(nil), data...))
	}
}

func (c *hotCache) size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}
