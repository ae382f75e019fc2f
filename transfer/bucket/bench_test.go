package bucket_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/shoal-registry/shoal/transfer/bucket/buckettest"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/transfer/store/storetest"
	"github.com/shoal-registry/shoal/verify/digest"
)

var benchSizes = []int{64 << 10, 16 << 20, 64 << 20}

// benchStores are a server's store on its disk, and one in a bucket of a service on the
// same disk and machine: what the way through the service costs, not what a network does.
func benchStores(b *testing.B, run func(b *testing.B, s store.Store, forget func(), size int)) {
	service := buckettest.Start(b)
	for _, size := range benchSizes {
		b.Run(fmt.Sprintf("%dKiB/disk", size>>10), func(b *testing.B) {
			disk, err := store.OpenDisk(store.DiskConfig{Dir: b.TempDir(), Fsync: true, HotBytes: -1, Reserve: -1})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = disk.Close() })
			run(b, disk, func() {}, size)
		})
		b.Run(fmt.Sprintf("%dKiB/bucket", size>>10), func(b *testing.B) {
			n := newNode(b, service, fmt.Sprintf("bench-%d", size))
			run(b, n.Bucket, func() {
				if _, _, err := n.Cache().Clear(b.Context()); err != nil {
					b.Fatal(err)
				}
			}, size)
		})
	}
}

// BenchmarkPush is one client that sends blobs one after the other.
func BenchmarkPush(b *testing.B) {
	sent := 0
	benchStores(b, func(b *testing.B, s store.Store, forget func(), size int) {
		content := storetest.Content(size, 1)
		b.SetBytes(int64(size))
		for b.Loop() {
			sent++
			copy(content, fmt.Appendf(nil, "%20d", sent)) // another blob each time
			u, err := s.NewUpload(b.Context(), store.UploadOptions{})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := u.Append(b.Context(), bytes.NewReader(content)); err != nil {
				b.Fatal(err)
			}
			if _, err := u.Commit(b.Context(), digest.Digest("")); err != nil {
				b.Fatal(err)
			}
			_ = u.Close() // its work is done
			b.StopTimer()
			forget()
			b.StartTimer()
		}
	})
}

// BenchmarkPull reads a blob, of a bucket with nothing cached.
func BenchmarkPull(b *testing.B) {
	benchStores(b, func(b *testing.B, s store.Store, forget func(), size int) {
		in := storetest.Put(b, s, storetest.Content(size, 1))
		b.SetBytes(int64(size))
		for b.Loop() {
			b.StopTimer()
			forget()
			b.StartTimer()
			storetest.Get(b, s, in.Root)
		}
	})
}
