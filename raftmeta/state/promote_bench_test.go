package state

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// withFiles returns a bench with open versions of so many files in all, each another blob,
// and the promotees.
func withFiles(t testing.TB, files int) (*bench, []Promotee) {
	b := newPromotions(t)
	var items []Promotee
	var entries []Entry
	add := func(c Command) {
		b.index++
		entries = append(entries, Entry{Index: b.index, Term: 1, Command: encoded(t, c)})
		if len(entries) == batchEntries {
			b.apply(entries)
			entries = entries[:0]
		}
	}
	for n := 0; n < files; {
		name := fmt.Sprint("v", len(items))
		p := Publish{Version: meta.Version{Repo: appRef, Package: "api", Name: name, State: meta.StateOpen}}
		for ; n < files && len(p.Files) < 100; n++ {
			content := fmt.Sprint("file ", n)
			add(link(content, "eu-1"))
			p.Files = append(p.Files, meta.File{Path: fmt.Sprintf("%06d", n), Digest: blob(content).Digest, Size: blob(content).PlainBytes})
		}
		add(p)
		items = append(items, Promotee{From: appRef.Name, Package: "api", Version: name})
	}
	b.apply(entries)
	return b, items
}

func (b *bench) apply(entries []Entry) {
	b.Helper()
	results, err := b.ApplyBatch(entries)
	if err != nil {
		b.Fatal(err)
	}
	for _, r := range results {
		if r.Err != nil {
			b.Fatal(r.Err)
		}
	}
}

// BenchmarkPromote: a promotion of the most files that one may have is one entry, during
// which nothing else is applied.
func BenchmarkPromote(b *testing.B) {
	for _, files := range []int{100, maxPromotedUses} {
		b.Run(strconv.Itoa(files), func(b *testing.B) {
			m, items := withFiles(b, files)
			for n := 0; b.Loop(); n++ {
				to := app()
				to.Ref.Name = fmt.Sprint("target-", n)
				b.StopTimer()
				m.must(CreateRepository{Repository: to})
				b.StartTimer()
				m.must(Promote{To: to.Ref, Items: items})
			}
		})
	}
}
