package scenario

import (
	"context"
	"fmt"
	"syscall"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

var (
	regions = Scenario{
		Name:  "regions",
		Claim: "a wave in each of three regions at once, one server in each",
		Full:  wave.Plan{Regions: 3, Hosts: 12, Rate: 100e6, Bytes: 64 << 20, Layers: 1},
		Quick: wave.Plan{Regions: 3, Hosts: 3, Rate: 200e6, Bytes: 8 << 20, Layers: 1},
		Run: func(ctx context.Context, l *Lab) error {
			r, err := l.wave(ctx, nil)
			if err != nil {
				return err
			}
			l.AtMost("copies the origin sent in all", "%.2f", r.Copies(r.Servers[0].Traffic.Sent), 2.5)
			regionFigures(l, r)
			return nil
		},
	}
	regionsKill = Scenario{
		Name:  "regions-kill",
		Claim: "the same with two servers in each region, one of region r2 killed half-way",
		Full:  wave.Plan{Regions: 3, Servers: 2, Hosts: 12, Rate: 100e6, Bytes: 64 << 20, Layers: 1},
		Quick: wave.Plan{Regions: 2, Servers: 2, Hosts: 4, Rate: 100e6, Bytes: 16 << 20, Layers: 1},
		Run: func(ctx context.Context, l *Lab) error {
			r, err := l.wave(ctx, func(c *wave.Cluster) *wave.Event {
				servers := c.ServersOf("r2")
				return &wave.Event{
					Due: func(moved wave.Counters) bool { return moved.Sum(servers).Foreign > l.Plan.Bytes/2 },
					Do: func(context.Context) error {
						l.Say("killing %s", servers[1].Name())
						return servers[1].Process().Signal(syscall.SIGKILL)
					},
				}
			})
			if err != nil {
				return err
			}
			regionFigures(l, r)
			return nil
		},
	}
)

// regionFigures adds what a wave over several regions cost between them.
func regionFigures(l *Lab, r wave.Report) {
	into := make(map[string]int64)
	for _, s := range r.Servers {
		into[s.Region] += s.Traffic.Foreign
	}
	var foreign int64
	for _, result := range r.Results {
		foreign += result.Traffic.Foreign
		into[result.Region] += result.Traffic.Foreign
	}
	for n := 2; n <= r.Regions; n++ {
		region := fmt.Sprintf("r%d", n)
		l.AtMost("copies that entered region "+region, "%.2f", r.Copies(into[region]), 1.15)
	}
	l.Must("bytes agents took from another region, but for measuring how far it is", "0", foreign <= wave.ProbeBytes*int64(len(r.Results)), "%d", foreign)
	l.Note("last host / bound of the origin's link", "%.2f", r.Ratio(maximum(r.Finishes())))
}
