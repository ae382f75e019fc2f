package store

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/verify/digest"
)

const (
	freshFor  = 10 * time.Second
	maxFresh  = 8192 // chunks remembered
	rwfNoWait = 0x8  // RWF_NOWAIT: only what the page cache has
)

// fresh remembers which chunks this process has verified and written within freshFor.
// On a cache (a store without Fsync) such a chunk is relayed and read without being
// hashed once more, as long as the page cache has it: those bytes have not been on a
// disk's way back yet. Peers check what they receive, and the first reader of a blob
// checks its sha256.
type fresh struct {
	mu    sync.Mutex
	at    map[hotKey]time.Time
	queue []hotKey // in the order they were written
}

func (f *fresh) add(root digest.CID, i int) {
	key, now := hotKey{root, i}, time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.at == nil {
		f.at = map[hotKey]time.Time{}
	}
	for len(f.queue) > 0 && (len(f.queue) >= maxFresh || now.Sub(f.at[f.queue[0]]) > freshFor) {
		delete(f.at, f.queue[0])
		f.queue = f.queue[1:]
	}
	if _, again := f.at[key]; !again {
		f.queue = append(f.queue, key)
	}
	f.at[key] = now
}

func (f *fresh) has(root digest.CID, i int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.at[hotKey{root, i}]
	return ok && time.Since(at) <= freshFor
}

// readFresh reads chunk i if it is fresh and the page cache has it.
func (e *entry) readFresh(i int, b []byte) bool {
	if !e.d.fresh.has(e.root, i) {
		return false
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.file == nil || e.state != complete && (e.state != partial || !e.has(i)) {
		return false
	}
	raw, err := e.file.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { // short or failed: readDisk says why
		at := e.m.StoredOffset(i)
		if n, err = unix.Preadv2(int(fd), [][]byte{b}, at, rwfNoWait); err == unix.EOPNOTSUPP {
			n, _ = unix.Pread(int(fd), b, at) // as memory file systems answer
		}
	})
	return n == len(b)
}
