package scenario

import (
	"context"
	"syscall"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

var frozen = Scenario{
	Name:  "frozen",
	Claim: "a tenth of the hosts is stopped (SIGSTOP) in the middle of a wave",
	Full:  wave.Plan{Hosts: 20, Rate: 100e6, Bytes: 128 << 20, Layers: 1},
	Quick: wave.Plan{Hosts: 5, Rate: 100e6, Bytes: 16 << 20, Layers: 1},
	Run: func(ctx context.Context, l *Lab) error {
		r, err := l.wave(ctx, func(c *wave.Cluster) *wave.Event {
			stopped := make(map[*wave.Member]bool)
			for _, m := range c.Agents[:max(1, len(c.Agents)/10)] {
				stopped[m] = true
			}
			return &wave.Event{
				Due: func(moved wave.Counters) bool {
					return moved.Sum(c.Agents).Received > l.Plan.Bytes*int64(len(c.Agents))*4/10
				},
				Do: func(context.Context) error {
					for m := range stopped {
						l.Say("stopping %s", m.Name())
						if err := m.Process().Signal(syscall.SIGSTOP); err != nil {
							return err
						}
					}
					return nil
				},
				Excused: func(m *wave.Member) bool { return stopped[m] },
			}
		})
		if err != nil {
			return err
		}
		l.last(r, 1.25)
		l.AtMost("longest time a reader had no byte, s", "%.2f", maximum(r.Gaps()), 1)
		return nil
	},
}
