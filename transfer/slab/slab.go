// Package slab gives out memory for chunks that the garbage collector does not see.
//
// Chunks come and go at the rate of a link. On the heap they would double: the
// collector lets as much garbage gather as there is live memory, and each new buffer
// is zeroed and faulted in. Slabs are mapped, used again by whoever needs that length
// next, and given back to the system when another length is needed or after a while.
//
// Start reading at Get. A slab that was put back may be unmapped: who still reads it
// then crashes. Bounds on what is in use are the users' own. Safe for concurrent use;
// the package starts no goroutine.
package slab

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/shoal-registry/shoal/transfer/chunk"
)

const (
	// MinBytes is the shortest length worth a slab.
	MinBytes = 64 << 10
	// MaxFree bounds the free slabs that are kept; a new slab of a length of which
	// none is free is mapped at the cost of those above Spare.
	MaxFree = 32 << 20
	Spare   = 4 << 20
	// classes are MinBytes << k with room for a seal, to the longest chunk.
	classes = 7
)

// Size returns the bytes that a slab for n takes.
func Size(n int) int { return MinBytes<<class(n) + chunk.MaxOverhead }

func class(n int) int {
	k := 0
	for k < classes-1 && MinBytes<<k+chunk.MaxOverhead < n {
		k++
	}
	return k
}

// free are the slabs nobody uses, the one used last at the end.
var free struct {
	mu    sync.Mutex
	bytes int
	by    [classes][][]byte
	// low is the least that was free of each class since the last Trim: so many were
	// not needed.
	low [classes]int
}

// Get returns n bytes, at most chunk.MaxStoredBytes, with anything in them, that the
// caller gives back by Put. Where the system maps no memory it is the heap's.
func Get(n int) []byte {
	k := class(n)
	free.mu.Lock()
	if last := len(free.by[k]) - 1; last >= 0 {
		b := free.by[k][last]
		free.by[k][last] = nil
		free.by[k] = free.by[k][:last]
		free.bytes -= len(b)
		free.low[k] = min(free.low[k], last)
		free.mu.Unlock()
		return b[:n]
	}
	gone := spare()
	free.mu.Unlock()
	unmap(gone...)
	b, err := unix.Mmap(-1, 0, Size(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return make([]byte, n)
	}
	return b[:n]
}

// spare takes free slabs out until Spare is left. free is locked.
func spare() (gone [][]byte) {
	for k := classes - 1; k >= 0 && free.bytes > Spare; k-- {
		for last := len(free.by[k]) - 1; last >= 0 && free.bytes > Spare; last-- {
			gone = append(gone, free.by[k][last])
			free.bytes -= len(free.by[k][last])
			free.by[k] = free.by[k][:last]
			free.low[k] = min(free.low[k], last)
		}
	}
	return gone
}

// Put gives back what Get returned, whole or cut at its end.
func Put(b []byte) {
	b = b[:cap(b)]
	k := class(len(b))
	if len(b) != Size(len(b)) {
		return // of the heap
	}
	free.mu.Lock()
	kept := free.bytes+len(b) <= MaxFree
	if kept {
		free.by[k] = append(free.by[k], b)
		free.bytes += len(b)
	}
	free.mu.Unlock()
	if !kept {
		unmap(b)
	}
}

func unmap(slabs ...[]byte) {
	for _, b := range slabs {
		_ = unix.Munmap(b) // a mapping of ours
	}
}

// Trim gives back to the system the free slabs that were not needed since the last
// Trim. It is called now and then.
func Trim() {
	var gone [][]byte
	free.mu.Lock()
	for k := range free.by {
		n := min(free.low[k], len(free.by[k]))
		gone = append(gone, free.by[k][:n]...)
		free.by[k] = append([][]byte(nil), free.by[k][n:]...)
		free.low[k] = len(free.by[k])
	}
	for _, b := range gone {
		free.bytes -= len(b)
	}
	free.mu.Unlock()
	unmap(gone...)
}

// Free is how many bytes are kept for use.
func Free() int {
	free.mu.Lock()
	defer free.mu.Unlock()
	return free.bytes
}
