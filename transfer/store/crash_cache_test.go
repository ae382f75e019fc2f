package store_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/store/storetest"
	"github.com/shoal-registry/shoal/verify/digest"
)

// crashCacheEnv makes the test binary an agent's cache that waits to be killed.
const crashCacheEnv = "SHOAL_STORE_CRASH_CACHE_DIR"

const crashCap = 8 << 20

// crashVersion is content that shares all but its end with the others.
func crashVersion(n int) []byte {
	return slices.Concat(storetest.Content(1<<20, 1), storetest.Content(300<<10+n%1000, byte(n)))
}

// crashCacheChild fills a cache that is too small, with new versions made of old ones,
// and prints a line for each blob that is complete.
func crashCacheChild(dir string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("fail", err)
			os.Exit(1)
		}
	}
	d, err := store.OpenDisk(store.DiskConfig{Dir: dir, CacheBytes: crashCap, Reserve: -1})
	fail(err)
	ctx := context.Background()
	go func() { fail(d.Run(ctx)) }()
	for w := range 2 {
		go func() {
			for n := os.Getpid()*1000 + w; ; n += 2 {
				content := crashVersion(n)
				m := chunk.Of(content)
				b, err := d.Create(ctx, m)
				fail(err)
				d.Reuse(ctx, b).Run(ctx, func(int, error) {}) // what fails is written below
				for i, c := range m.Chunks {
					at := m.StoredOffset(i)
					fail(b.WriteChunk(ctx, i, content[at:at+int64(c.Stored)]))
				}
				fail(b.Close())
				fmt.Println("blob", n, m.Root().Hex())
			}
		}()
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until killed, or the parent is
	os.Exit(1)
}

// A cache killed at any moment, between a copy and its bit, an eviction's files, a
// bitmap and a rename, has no chunk that is not right, keeps its cap, and goes on.
func TestKillACache(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED by -short: kills processes in a loop")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "store")
	whole, partial := 0, 0
	for range 8 {
		// The directory is kept: each child finds what the kills before left.
		if acked, _ := runAndKill(t, exe, crashCacheEnv, dir, 2+rand.IntN(12)); len(acked) == 0 {
			t.Fatal("nothing was acknowledged")
		}
		d := openDisk(t, store.DiskConfig{Dir: dir, CacheBytes: crashCap})
		checkAll(t, d)
		infos, err := d.List(t.Context(), digest.CID{}, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range infos {
			if info.Complete {
				whole++
			} else {
				partial++
			}
		}
		// The first new blob counts what is there and makes room.
		b, err := d.Create(t.Context(), chunk.Of(storetest.Content(4<<20, 9)))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		var sum int64
		if err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(_ string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			stat, err := e.Info()
			if err == nil {
				sum += (stat.Size() + 4095) &^ 4095
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if sum > crashCap {
			t.Errorf("%d bytes are there after a kill, of %d", sum, crashCap)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d whole and %d partial blobs were found right after 8 kills", whole, partial)
}
