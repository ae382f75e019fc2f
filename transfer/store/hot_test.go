package store

import (
	"bytes"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/verify/digest"
)

// Slabs are written again while others still copy out of them: nobody may see it.
func TestHotChunksAreNotMixedUp(t *testing.T) {
	c := newHotCache(4 << 20)
	c.mostBytes = c.maxBytes
	defer c.close()
	root := digest.Sum(nil)
	lengths := []int{100, hotSmall, hotSmall + 1, 256 << 10, 256<<10 + 100, 512 << 10, 1 << 20}
	fill := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, lengths[i%len(lengths)]) }
	const chunks = 40
	var group sync.WaitGroup
	for worker := range 6 {
		group.Go(func() {
			dst := make([]byte, 0, 1<<20)
			for n := range 400 {
				i := (n*7 + worker*13) % chunks
				if got, _ := c.get(root, i, lengths[i%len(lengths)], dst); got == nil {
					c.put(root, i, fill(i))
				} else if !bytes.Equal(got, fill(i)) {
					t.Errorf("chunk %d is another", i)
					return
				}
			}
		})
	}
	group.Wait()
	if c.bytes > c.maxBytes {
		t.Errorf("%d bytes are kept, of %d", c.bytes, c.maxBytes)
	}
	if c.hits.Load() == 0 {
		t.Error("nothing was found")
	}
	c.close()
	if c.bytes != 0 || c.order.Len() != 0 {
		t.Errorf("closed: %d bytes", c.bytes)
	}
}

func TestHotChunksUseTheirMemoryAgain(t *testing.T) {
	c := newHotCache(2 << 20)
	defer c.close()
	root := digest.Sum(nil)
	data := make([]byte, 256<<10)
	dst := make([]byte, 0, len(data))
	i := 0
	put := func() {
		c.put(root, i, data)
		if got, _ := c.get(root, i, len(data), dst); &got[0] != &dst[:1][0] {
			t.Fatal("a reader did not get a copy")
		}
		i++
	}
	for range 20 {
		put()
	}
	// A list element and what describes the chunk, but no bytes of it.
	if n := testing.AllocsPerRun(100, put); n > 5 {
		t.Errorf("%v allocations", n)
	}
}

// On a fast link the cache holds what is relayed and read in the next moment; then it
// gives the memory back.
func TestHotChunksStayWhileTheyAreWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newHotCache(6 << 20)
		root := digest.Sum(nil)
		data := make([]byte, 1<<20)
		held := func(i int) bool {
			got, _ := c.get(root, i, len(data), nil)
			return got != nil
		}
		for i := range 40 { // 400 MB/s
			c.put(root, i, data)
			time.Sleep(2500 * time.Microsecond)
		}
		if size := c.size(); size < 40<<20 || size > c.mostBytes {
			t.Errorf("%d bytes are held", size)
		}
		if !held(0) {
			t.Error("a chunk of 100 ms ago is gone")
		}
		for i := range 100 {
			c.put(root, 100+i, data)
			if size := c.size(); size > c.mostBytes {
				t.Fatalf("%d bytes are held", size)
			}
		}
		time.Sleep(3 * hotHold)
		if size := c.size(); size > c.maxBytes || size < c.maxBytes/2 {
			t.Errorf("%d bytes are held when nothing comes any more", size)
		}
		for i := range 40 { // 10 MB/s
			c.put(root, 300+i, data)
			time.Sleep(100 * time.Millisecond)
			if size := c.size(); size > c.maxBytes {
				t.Fatalf("%d bytes are held on a slow link", size)
			}
		}
		c.close()
		time.Sleep(time.Second)
	})
}

func TestAChunkTooLargeIsNotHot(t *testing.T) {
	c := newHotCache(1 << 20)
	c.mostBytes = c.maxBytes
	defer c.close()
	root := digest.Sum(nil)
	c.put(root, 0, make([]byte, 512<<10))
	if got, keep := c.get(root, 0, 512<<10, nil); got != nil || keep || c.bytes != 0 {
		t.Errorf("%d bytes, keep %v", len(got), keep)
	}
}
