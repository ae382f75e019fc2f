package apt_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocols/apt"
	"github.com/shoal-registry/shoal/gateway/publication/publicationtest"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// BenchmarkIndex builds the indexes of a distribution of 100,000 packages, one of which is
// new: how long after a publish they show it, and that memory does not grow with them.
func BenchmarkIndex(b *testing.B) {
	const packages = 100_000
	s := catalogtest.New(b, catalogtest.Options{}, func(*catalog.Catalog) []protocol.Protocol { return nil })
	repo := upstreamtest.Ref("acme/apt")
	s.Create(b, meta.Repository{Ref: repo, Format: apt.Format})
	up, err := s.Catalog.Begin(b.Context(), upstreamtest.By(), repo, false)
	if err != nil {
		b.Fatal(err)
	}
	stored, _, err := up.Commit(b.Context(), "")
	if err != nil {
		b.Fatal(err)
	}
	publish := func(i int) uint64 {
		name := fmt.Sprintf("package-%06d", i)
		control := fmt.Sprintf("Package: %s\nVersion: 1.0\nArchitecture: amd64\nMaintainer: Ada <ada@example.org>\nDepends: libc6 (>= 2.36), libssl3 (>= 3.0)\nDescription: number %d\n%0800d\n", name, i, i)
		summary, err := codec.Marshal(map[int]string{1: "stable", 2: "main", 3: control, 4: "amd64", 5: "1.0"})
		if err != nil {
			b.Fatal(err)
		}
		receipt, err := s.Metadata.Do(b.Context(), state.Origin{}, state.Publish{
			Version: meta.Version{Repo: repo, Package: name, Name: "1.0_amd64", Digest: stored.Blob.Digest, State: meta.StateClosed, Summary: summary},
			Files:   []meta.File{{Path: "pool/stable/main/" + name + "_1.0_amd64.deb", Digest: stored.Blob.Digest}},
		})
		if err != nil {
			b.Fatal(err)
		}
		return receipt.Token.Index
	}
	for i := range packages {
		publish(i)
	}
	publicationtest.Start(b, s, apt.Indexes{})
	await := func(index uint64) {
		for _, err := range s.Metadata.Watch(b.Context(), index-1) {
			if err != nil {
				b.Fatal(err)
			}
			if sets, _, err := s.Catalog.Sets(b.Context(), upstreamtest.By(), repo); err == nil && sets.Built >= index {
				return
			}
		}
	}
	await(1)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		await(publish(packages + i))
	}
	b.StopTimer()
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.Sys-before.Sys)/(1<<20), "MiB-more")
}
