package state

import (
	"fmt"
	"strconv"
	"testing"
)

// BenchmarkForgetFetched: a page costs the same whether few or many went before it,
// although each begins where the first did.
func BenchmarkForgetFetched(b *testing.B) {
	for _, records := range []int{5_000, 20_000} {
		b.Run(strconv.Itoa(records), func(b *testing.B) {
			pages := 0
			for b.Loop() {
				b.StopTimer()
				m := newProxyBench(b)
				var entries []Entry
				for i := range records {
					m.index++
					entries = append(entries, Entry{Index: m.index, Term: 1, Command: encoded(b, fetchedBytes(fmt.Sprint("pkg/", i), "one"))})
					if len(entries) == batchEntries || i == records-1 {
						m.apply(entries)
						entries = entries[:0]
					}
				}
				b.StartTimer()
				for more := true; more; pages++ {
					more = m.must(ForgetFetched{Repo: proxyRef, Limit: 500}).Value.(ForgottenFetched).More
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(pages), "ns/page")
		})
	}
}
