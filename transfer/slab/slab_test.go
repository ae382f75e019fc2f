package slab_test

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/slab"
)

// drain gives all free slabs back.
func drain() {
	slab.Trim()
	slab.Trim()
}

func TestASlabHoldsAnyChunk(t *testing.T) {
	for _, n := range []int{0, 1, slab.MinBytes, slab.MinBytes + chunk.MaxOverhead, slab.MinBytes + chunk.MaxOverhead + 1, 256 << 10, 1 << 20, chunk.MaxStoredBytes} {
		b := slab.Get(n)
		if len(b) != n || cap(b) < n || slab.Size(n) < n {
			t.Fatalf("%d bytes: length %d, capacity %d, size %d", n, len(b), cap(b), slab.Size(n))
		}
		for i := range b {
			b[i] = 1
		}
		slab.Put(b)
	}
	drain()
}

func TestSlabsAreUsedAgain(t *testing.T) {
	drain()
	b := slab.Get(256 << 10)
	slab.Put(b[:10])
	if slab.Free() != slab.Size(256<<10) {
		t.Errorf("%d bytes are free", slab.Free())
	}
	again := slab.Get(200 << 10)
	if &again[0] != &b[0] {
		t.Error("another slab was given out")
	}
	if n := testing.AllocsPerRun(100, func() { slab.Put(slab.Get(256 << 10)) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	slab.Put(again)
	slab.Put(make([]byte, 1000)) // not ours: for the collector
	drain()
	if slab.Free() != 0 {
		t.Errorf("%d bytes are still free", slab.Free())
	}
}

func TestTrimLeavesWhatIsNeeded(t *testing.T) {
	drain()
	busy, idle := slab.Get(1<<20), slab.Get(1<<20)
	slab.Put(busy)
	slab.Put(idle)
	slab.Trim() // from here on it counts
	slab.Put(slab.Get(1 << 20))
	slab.Trim()
	if slab.Free() != slab.Size(1<<20) {
		t.Errorf("%d bytes are free: one slab was in use, one not", slab.Free())
	}
	drain()
}

func TestFreeSlabsAreBounded(t *testing.T) {
	drain()
	var all [][]byte
	for range 12 {
		all = append(all, slab.Get(chunk.MaxStoredBytes))
	}
	for _, b := range all {
		slab.Put(b)
	}
	if slab.Free() > slab.MaxFree || slab.Free() < slab.MaxFree/2 {
		t.Errorf("%d bytes are free", slab.Free())
	}
	// Another length does not come on top of them.
	b := slab.Get(1 << 20)
	if slab.Free() > slab.Spare {
		t.Errorf("%d bytes are free while others are mapped", slab.Free())
	}
	slab.Put(b)
	drain()
}

func TestNobodyGetsASlabThatIsInUse(t *testing.T) {
	var group sync.WaitGroup
	for worker := range byte(8) {
		group.Go(func() {
			for range 300 {
				b := slab.Get(64<<10 + rand.IntN(1<<20))
				for i := 0; i < len(b); i += 4096 {
					b[i] = worker
				}
				for i := 0; i < len(b); i += 4096 {
					if b[i] != worker {
						t.Error("two have it")
						return
					}
				}
				slab.Put(b)
				if worker == 0 {
					slab.Trim()
				}
			}
		})
	}
	group.Wait()
	drain()
}
