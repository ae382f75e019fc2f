package catalog

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/shoal-registry/shoal/verify/digest"
)

// documentKey names plain bytes by what they hash to, within the context that
// they are sealed for: unlike a root, which changes when a blob is sealed anew,
// this stays true for ever. Whether a caller may see them is never decided here.
type documentKey struct {
	context string
	digest  digest.Digest // sha256
}

// documents is a cache of small files, bounded in bytes, least recently used
// first out. All bytes in it were checked against their digest on entry, and
// are never written to.
type documents struct {
	maxBytes int64

	mu      sync.Mutex // guards all below
	entries *simplelru.LRU[documentKey, []byte]
	bytes   int64
	loading map[documentKey]chan struct{} // closed when the load has ended
}

func newDocuments(maxBytes int64) *documents {
	d := &documents{maxBytes: maxBytes, loading: map[documentKey]chan struct{}{}}
	// The count is bounded too, so that a million empty files do not outgrow
	// their bytes: an entry costs at least 512 bytes beside its body.
	entries, err := simplelru.NewLRU(int(max(maxBytes/512, 16)), func(_ documentKey, body []byte) { d.bytes -= int64(len(body)) })
	if err != nil {
		panic(err) // the size is positive
	}
	d.entries = entries
	return d
}

// get returns the body, which the caller must not change.
func (d *documents) get(k documentKey) ([]byte, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.entries.Get(k)
}

// put keeps a body that hashes to k.digest. One larger than a quarter of the
// cache is not kept: it would push out what is read a thousand times as often.
func (d *documents) put(k documentKey, body []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if int64(len(body)) > d.maxBytes/4 || d.entries.Contains(k) {
		return
	}
	d.bytes += int64(len(body))
	d.entries.Add(k, body)
	for d.bytes > d.maxBytes {
		d.entries.RemoveOldest()
	}
}

// begin makes the caller the one that loads k, and then returns what ends that;
// or, while another loads it, a channel that is closed when that has ended.
func (d *documents) begin(k documentKey) (end func(), wait <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ch, ok := d.loading[k]; ok {
		return nil, ch
	}
	ch := make(chan struct{})
	d.loading[k] = ch
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.loading, k)
		close(ch)
	}, nil
}
