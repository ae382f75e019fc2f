package state

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// withTags returns a bench whose package api has that many versions and tags.
func withTags(b *testing.B, tags int) *bench {
	m := newBench(b)
	m.must(link("layer", "eu-1"))
	var entries []Entry
	flush := func() {
		if _, err := m.ApplyBatch(entries); err != nil {
			b.Fatal(err)
		}
		entries = entries[:0]
	}
	for i := range tags {
		m.index++
		entries = append(entries, Entry{Index: m.index, Term: 1, Command: encoded(b, tagged(image(fmt.Sprint("m", i), "layer"), fmt.Sprintf("v%06d", i)))})
		if len(entries) == batchEntries {
			flush()
		}
	}
	flush()
	return m
}

func encoded(b testing.TB, c Command) []byte {
	command, err := Encode(Origin{Principal: "user:ada", Time: 1_800_000_000_000_000_000}, c)
	if err != nil {
		b.Fatal(err)
	}
	return command
}

// BenchmarkPublish: the cost of a publish does not depend on the number of tags.
func BenchmarkPublish(b *testing.B) {
	for _, tags := range []int{100, 100_000} {
		b.Run(strconv.Itoa(tags), func(b *testing.B) {
			m := withTags(b, tags)
			n := tags
			var entries []Entry
			b.ReportAllocs()
			for b.Loop() {
				n++
				m.index++
				entries = append(entries, Entry{Index: m.index, Term: 1, Command: encoded(b, tagged(image(fmt.Sprint("m", n), "layer"), fmt.Sprintf("v%06d", n), "latest"))})
				if len(entries) == batchEntries {
					if _, err := m.ApplyBatch(entries); err != nil {
						b.Fatal(err)
					}
					entries = entries[:0]
				}
			}
		})
	}
}

// BenchmarkResolve: tag to version.
func BenchmarkResolve(b *testing.B) {
	m := withTags(b, 100_000)
	n := 0
	for b.Loop() {
		n = (n + 7919) % 100_000
		ask(m, Resolve{Repo: appRef, Package: "api", Alias: fmt.Sprintf("v%06d", n)})
	}
}

// BenchmarkListPage: a page of 100 tags in the middle of 100,000.
func BenchmarkListPage(b *testing.B) {
	m := withTags(b, 100_000)
	for b.Loop() {
		if got := ask(m, ListAliases{Repo: appRef, Package: "api", Page: Page{After: "v050000", Limit: 100}}); len(got) != 100 {
			b.Fatal(len(got))
		}
	}
}

// BenchmarkTakeBack: a refused command late in a full batch.
func BenchmarkTakeBack(b *testing.B) {
	m := newBench(b)
	for b.Loop() {
		var entries []Entry
		for i := range batchEntries {
			m.index++
			c := Command(CreateTenant{Name: meta.TenantName(fmt.Sprintf("t%d", m.index))})
			if i%2 == 1 {
				c = image(fmt.Sprint("m", m.index), "lost")
			}
			entries = append(entries, Entry{Index: m.index, Term: 1, Command: encoded(b, c)})
		}
		if _, err := m.ApplyBatch(entries); err != nil {
			b.Fatal(err)
		}
	}
}
