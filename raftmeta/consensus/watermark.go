package consensus

import (
	"container/heap"
	"context"
	"sync"
)

// watermark is an index that only rises, and those who wait for it to.
type watermark struct {
	mu      sync.Mutex
	at      uint64
	waiters waiterHeap
}

type waiter struct {
	index uint64
	done  chan struct{}
	pos   int // in the heap, -1 when out of it
}

// get returns the index reached.
func (w *watermark) get() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at
}

// raise moves the mark to index, unless it is beyond.
func (w *watermark) raise(index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at = max(w.at, index)
	for len(w.waiters) > 0 && w.waiters[0].index <= w.at {
		close(heap.Pop(&w.waiters).(*waiter).done)
	}
}

var closedChan = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// reached returns a channel that closes when the mark is at index or beyond. stop
// forgets it; it must be called.
func (w *watermark) reached(index uint64) (done <-chan struct{}, stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.at >= index {
		return closedChan, func() {}
	}
	wt := &waiter{index: index, done: make(chan struct{})}
	heap.Push(&w.waiters, wt)
	return wt.done, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if wt.pos >= 0 {
			heap.Remove(&w.waiters, wt.pos)
		}
	}
}

// wait blocks until the mark is at index or beyond. Errors: of ctx.
func (w *watermark) wait(ctx context.Context, index uint64) error {
	done, stop := w.reached(index)
	defer stop()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// waiterHeap is a container/heap, lowest index first.
type waiterHeap []*waiter

func (h waiterHeap) Len() int           { return len(h) }
func (h waiterHeap) Less(i, j int) bool { return h[i].index < h[j].index }
func (h waiterHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i, j
}

func (h *waiterHeap) Push(x any) {
	wt := x.(*waiter)
	wt.pos = len(*h)
	*h = append(*h, wt)
}

func (h *waiterHeap) Pop() any {
	old := *h
	wt := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	wt.pos = -1
	return wt
}
