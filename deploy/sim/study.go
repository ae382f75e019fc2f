package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/shoal-registry/shoal/deploy/sim/model"
)

const (
	kib = model.Size(1 << 10)
	mib = model.Size(1 << 20)
)

// schedules are ways to cut blobs by a function of the offset. The first is the
// product's; transfer/DESIGN.md has what the study showed.
var schedules = []struct {
	name  string
	steps []model.Step
}{
	{"256 each, to 4 MiB", nil},
	{"64 each, to 4 MiB", []model.Step{{Count: 64, Bytes: 256 * kib}, {Count: 64, Bytes: 512 * kib}, {Count: 64, Bytes: mib}, {Count: 64, Bytes: 2 * mib}, {Count: 1, Bytes: 4 * mib}}},
	{"512 each, to 4 MiB", []model.Step{{Count: 512, Bytes: 256 * kib}, {Count: 512, Bytes: 512 * kib}, {Count: 512, Bytes: mib}, {Count: 512, Bytes: 2 * mib}, {Count: 1, Bytes: 4 * mib}}},
	{"256 each, to 2 MiB", []model.Step{{Count: 256, Bytes: 256 * kib}, {Count: 256, Bytes: 512 * kib}, {Count: 256, Bytes: mib}, {Count: 1, Bytes: 2 * mib}}},
	{"1 MiB throughout", []model.Step{{Count: 1, Bytes: mib}}},
}

// studySchedules prints the last host and the last first byte of waves, as multiples of
// the bound, for each schedule: small to large blobs, few to many hosts, on two kinds of link.
// Each figure is the mean of seeds runs.
func studySchedules(w io.Writer, seeds int, full bool) error {
	type wave struct {
		blob  string
		hosts []int
	}
	waves := []wave{{"10MiB", []int{16, 100, 1000}}, {"100MiB", []int{16, 100, 1000}}, {"1GiB", []int{16, 100}}, {"10GiB", []int{16}}}
	if full {
		waves[2].hosts, waves[3].hosts = []int{16, 100, 1000}, []int{16, 100, 300}
	}
	for _, link := range []struct{ up, rtt string }{{"100mbit", "1ms"}, {"300MB/s", "1ms"}} {
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(table, "%s %s\t", link.up, link.rtt)
		for _, s := range schedules {
			fmt.Fprintf(table, "%s\t", s.name)
		}
		fmt.Fprintln(table)
		for _, wv := range waves {
			for _, hosts := range wv.hosts {
				fmt.Fprintf(table, "%s, %d hosts\t", wv.blob, hosts)
				for _, s := range schedules {
					var last, first float64
					for seed := range seeds {
						sc, err := model.Parse(fmt.Appendf(nil,
							`{"name":"study","blobs":[%q],"regions":[{"hosts":%d}],"up":%q,"rtt":%q,"noPEX":true}`, wv.blob, hosts, link.up, link.rtt))
						if err != nil {
							return err
						}
						sc.Schedule = s.steps
						r := model.Run(sc, uint64(seed)+1)
						l, _ := r.Figure("last")
						f, _ := r.Figure("first")
						last, first = last+l/float64(seeds), first+f/float64(seeds)
					}
					fmt.Fprintf(table, "%.3f %.3f\t", last, first)
				}
				fmt.Fprintln(table)
			}
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	return nil
}
