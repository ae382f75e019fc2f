package state

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// withVersions returns a bench at level 6 whose package p has that many versions, each with
// a summary of 2 KiB and a file.
func withVersions(b *testing.B, versions int) (*bench, func(n int) Entry) {
	m := newPackages(b)
	l := link("tarball", "eu-1")
	l.Repo = npmRef("npm")
	m.must(l)
	file := blob("tarball")
	entry := func(n int) Entry {
		m.index++
		name := fmt.Sprintf("1.0.%d", n)
		return Entry{Index: m.index, Term: 1, Command: encoded(b, Publish{
			Version: meta.Version{Repo: npmRef("npm"), Package: "p", Name: name, State: meta.StateClosed, Digest: file.Digest, Size: file.PlainBytes, Summary: make([]byte, 2<<10)},
			Files:   []meta.File{{Path: "p-" + name + ".tgz", Digest: file.Digest, Size: file.PlainBytes, Sums: map[string]string{"sha1": "00112233"}}},
			Aliases: []string{"latest"}, Spelling: "p",
		})}
	}
	var entries []Entry
	for n := range versions {
		if entries = append(entries, entry(n)); len(entries) == batchEntries || n == versions-1 {
			if _, err := m.ApplyBatch(entries); err != nil {
				b.Fatal(err)
			}
			entries = entries[:0]
		}
	}
	return m, entry
}

// BenchmarkPublishVersion: the cost of a publish does not depend on the number of versions.
func BenchmarkPublishVersion(b *testing.B) {
	for _, versions := range []int{100, 100_000} {
		b.Run(strconv.Itoa(versions), func(b *testing.B) {
			m, entry := withVersions(b, versions)
			n := versions
			b.ReportAllocs()
			for b.Loop() {
				if r, err := m.ApplyBatch([]Entry{entry(n)}); err != nil || r[0].Err != nil {
					b.Fatal(err, r)
				}
				n++
			}
		})
	}
}

// BenchmarkSources: whose a name is, in a group.
func BenchmarkSources(b *testing.B) {
	m, _ := withVersions(b, 10_000)
	for b.Loop() {
		if a := ask(m, GetSources{Repo: npmRef("all"), Package: "p"}); len(a.Owners) != 1 {
			b.Fatal(a)
		}
	}
}
