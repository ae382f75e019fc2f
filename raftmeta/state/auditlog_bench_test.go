package state

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// BenchmarkAudit: what the audit log costs a command, with it and without.
func BenchmarkAudit(b *testing.B) {
	for _, level := range []uint32{4, Level} {
		for name, command := range map[string]func(n int) Command{
			"labels": func(n int) Command {
				return SetLabels{Repo: appRef, Package: "api", Labels: map[string]string{"n": strconv.Itoa(n)}}
			},
			"publish": func(n int) Command {
				return tagged(image(fmt.Sprint("m", n), "layer"), fmt.Sprintf("v%06d", n), "latest")
			},
		} {
			b.Run(fmt.Sprintf("%s/level%d", name, level), func(b *testing.B) {
				m := &bench{TB: b, Machine: openMachine(b, b.TempDir())}
				m.must(Bootstrap{Cluster: meta.Cluster{ID: "c1", Level: level}, Node: server("eu-1", "eu"), Region: meta.Region{Name: "eu", Primary: true}})
				m.must(PutRegion{Region: meta.Region{Name: "us", Primary: true}})
				m.must(CreateRepository{Repository: app(), CreateTenant: true})
				m.must(link("layer", "eu-1"))
				var entries []Entry
				n := 0
				b.ReportAllocs()
				for b.Loop() {
					n++
					m.index++
					entries = append(entries, Entry{Index: m.index, Term: 1, Command: encoded(b, command(n))})
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
}
