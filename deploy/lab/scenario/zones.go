package scenario

import (
	"context"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

var zones = Scenario{
	Name:  "zones",
	Claim: "one region in four zones: where the bytes of a wave came from",
	Full:  wave.Plan{Hosts: 16, Zones: 4, Rate: 100e6, Bytes: 128 << 20, Layers: 1},
	Quick: wave.Plan{Hosts: 4, Zones: 2, Rate: 200e6, Bytes: 8 << 20, Layers: 1},
	Run: func(ctx context.Context, l *Lab) error {
		r, err := l.wave(ctx, nil)
		if err != nil {
			return err
		}
		var received, other int64
		into := make(map[string]int64)
		for _, result := range r.Results {
			received += result.Traffic.Received
			other += result.Traffic.OtherZone
			into[result.Zone] += result.Traffic.OtherZone
		}
		// Everything has to enter each zone once, so that is the most there can be.
		best := 1 - float64(l.Plan.Zones)/float64(l.Plan.Hosts)
		l.Note("bytes from the same zone, %", "%.0f (at most %.0f; without preference about %.0f)",
			100*(1-float64(other)/float64(received)), 100*best,
			100*(float64(l.Plan.Hosts)/float64(l.Plan.Zones)-1)/float64(l.Plan.Hosts))
		most := int64(0)
		for _, bytes := range into {
			most = max(most, bytes)
		}
		l.Note("copies that entered a zone, at most", "%.2f", r.Copies(most))
		l.last(r, 1.25)
		return nil
	},
}
