package scenario

import (
	"context"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

// One blob, all hosts at once, one server: how near the last host, the server's link,
// the first byte and the memory come to what the links allow.
var (
	wave16 = Scenario{
		Name:  "wave16",
		Claim: "16 hosts pull 256 MiB over 100 Mbit/s links from one server",
		Full:  wave.Plan{Hosts: 16, Rate: 100e6, Bytes: 256 << 20, Layers: 1},
		Quick: wave.Plan{Hosts: 4, Rate: 200e6, Bytes: 16 << 20, Layers: 1},
		Run:   func(ctx context.Context, l *Lab) error { return launch(ctx, l, 1.15) },
	}
	wave32 = Scenario{
		Name:  "wave32",
		Claim: "32 hosts pull 64 MiB over 50 Mbit/s links from one server",
		Full:  wave.Plan{Hosts: 32, Rate: 50e6, Bytes: 64 << 20, Layers: 1},
		Quick: wave.Plan{Hosts: 6, Rate: 100e6, Bytes: 8 << 20, Layers: 1},
		Run:   func(ctx context.Context, l *Lab) error { return launch(ctx, l, 1.25) },
	}
)

// launch runs a wave and holds its last host against a multiple of the bound.
func launch(ctx context.Context, l *Lab, last float64) error {
	r, err := l.wave(ctx, nil)
	if err != nil {
		return err
	}
	l.last(r, last)
	l.AtMost("copies the server sent", "%.2f", r.Copies(r.Servers[0].Traffic.Sent), 1.15)
	l.AtMost("first byte at every reader / bound", "%.3f", r.Ratio(maximum(r.FirstBytes())), 0.05)
	l.AtMost("memory of a host, MiB resident at most", "%.0f", mib(r.AgentPeakBytes), 80)
	l.Note("longest time a reader had no byte, s", "%.2f", maximum(r.Gaps()))
	return nil
}
