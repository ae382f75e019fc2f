package store

import (
	"bytes"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/shoal-registry/shoal/transfer/chunk"
	"github.com/shoal-registry/shoal/verify/digest"
)

// BenchmarkIngest is the claim that a large upload runs at the speed of sha256 and
// the disk: one pass, hashes beside the writing. Compare BenchmarkSHA256.
func BenchmarkIngest(b *testing.B) {
	for _, size := range []int{1 << 20, 256 << 20} {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			d := testDisk(b, DiskConfig{Fsync: true})
			content := random(size, 1)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				content[0], content[1] = byte(n), byte(n>>8)
				u, err := d.NewUpload(b.Context(), UploadOptions{})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := u.Append(b.Context(), onlyReader{bytes.NewReader(content)}); err != nil {
					b.Fatal(err)
				}
				in, err := u.Commit(b.Context(), "")
				if err != nil {
					b.Fatal(err)
				}
				_ = u.Close()
				b.StopTimer()
				if err := d.Remove(b.Context(), in.Root); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

type onlyReader struct{ io.Reader }

// BenchmarkSHA256 is the bound of BenchmarkIngest.
func BenchmarkSHA256(b *testing.B) {
	content := random(16<<20, 1)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		digest.FromBytes(content)
	}
}

// BenchmarkTinyCommits is the claim of small images: durable commits of 2 KB blobs,
// with the requests that a client makes of it (start, append, commit).
func BenchmarkTinyCommits(b *testing.B) {
	for _, writers := range []int{1, 8} {
		b.Run(fmt.Sprintf("%dwriters", writers), func(b *testing.B) {
			d := testDisk(b, DiskConfig{Fsync: true})
			var n atomic.Uint64
			b.ReportAllocs()
			b.SetParallelism(max(1, writers/2)) // times GOMAXPROCS, 2 where this was measured
			b.RunParallel(func(pb *testing.PB) {
				content := random(2000, 1)
				for pb.Next() {
					copy(content, fmt.Sprint(n.Add(1), " "))
					if _, err := tryPut(b.Context(), d, content); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
	}
}

// BenchmarkReadChunk reads the 4 MiB chunks of a large blob: with the hash, as a server
// does, without it as a cache does with what has just come, and from memory.
func BenchmarkReadChunk(b *testing.B) {
	for _, c := range []struct {
		name string
		hot  int64
		sync bool
		span int
	}{{"cold", -1, true, 16}, {"fresh", -1, false, 16}, {"hot", 64 << 20, true, 2}} {
		b.Run(c.name, func(b *testing.B) {
			d := testDisk(b, DiskConfig{HotBytes: c.hot, Fsync: c.sync})
			content := random(64<<20, 1)
			var chunks []chunk.Chunk
			for at := 0; at < len(content); at += chunk.MaxBytes {
				chunks = append(chunks, chunk.Chunk{ID: digest.Sum(content[at:][:chunk.MaxBytes]), Plain: chunk.MaxBytes, Stored: chunk.MaxBytes})
			}
			m, err := chunk.New(0, chunks)
			if err != nil {
				b.Fatal(err)
			}
			blob, err := d.Create(b.Context(), m)
			if err != nil {
				b.Fatal(err)
			}
			defer blob.Close()
			for i := range chunks {
				if err := blob.WriteChunk(b.Context(), i, content[i*chunk.MaxBytes:][:chunk.MaxBytes]); err != nil {
					b.Fatal(err)
				}
			}
			dst := make([]byte, chunk.MaxStoredBytes)
			b.SetBytes(chunk.MaxBytes)
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if _, err := blob.ReadChunk(b.Context(), n%c.span, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWriteChunk receives chunks of 256 KiB, as a wave does: hash, write, mark,
// and a copy for peers that ask next.
func BenchmarkWriteChunk(b *testing.B) {
	d := testDisk(b, DiskConfig{})
	const count = 64
	content := random(count*chunk.MinBytes, 1)
	m := chunk.Of(content)
	b.SetBytes(chunk.MinBytes)
	b.ReportAllocs()
	var blob Blob
	for n := 0; b.Loop(); n++ {
		i := n % count
		if i == 0 {
			b.StopTimer()
			if blob != nil {
				_ = blob.Close()
				if err := d.Remove(b.Context(), m.Root()); err != nil {
					b.Fatal(err)
				}
			}
			var err error
			if blob, err = d.Create(b.Context(), m); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		if err := blob.WriteChunk(b.Context(), i, content[i*chunk.MinBytes:][:chunk.MinBytes]); err != nil {
			b.Fatal(err)
		}
	}
	_ = blob.Close()
}

// BenchmarkOpen opens small blobs: one that was just used, and one of many.
func BenchmarkOpen(b *testing.B) {
	for _, count := range []int{1, 2 * idleEntries} {
		b.Run(fmt.Sprintf("of%d", count), func(b *testing.B) {
			d := testDisk(b, DiskConfig{})
			var roots []digest.CID
			for i := range count {
				roots = append(roots, put(b, d, fmt.Appendf(nil, "document %d", i)).Root)
			}
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				blob, err := d.Open(b.Context(), roots[n%count])
				if err != nil {
					b.Fatal(err)
				}
				if _, err := blob.ReadChunk(b.Context(), 0, nil); err != nil {
					b.Fatal(err)
				}
				_ = blob.Close()
			}
		})
	}
}
