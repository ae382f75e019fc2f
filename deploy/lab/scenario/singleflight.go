package scenario

import (
	"context"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

var singleflight = Scenario{
	Name:  "singleflight",
	Claim: "500 concurrent first pulls over three agents of a blob held only by another region",
	Full:  wave.Plan{Regions: 2, First: 2, Hosts: 3, Rate: 200e6, Bytes: 32 << 20, Layers: 1},
	Quick: wave.Plan{Regions: 2, First: 2, Hosts: 3, Rate: 200e6, Bytes: 8 << 20, Layers: 1},
	Run: func(ctx context.Context, l *Lab) error {
		clients := 500
		if l.Quick {
			clients = 60
		}
		c, err := l.Start(ctx)
		if err != nil {
			return err
		}
		img, err := c.Image(0, l.Plan.Layers, l.Plan.Bytes)
		if err != nil {
			return err
		}
		const name = wave.Repository + "/once"
		if err := c.Push(ctx, name, "1", img); err != nil {
			return err
		}
		if err := c.Warm(ctx); err != nil {
			return err
		}
		before, err := c.Counters()
		if err != nil {
			return err
		}
		var pulls []*wave.Member
		for i := range clients {
			pulls = append(pulls, c.Agents[i%len(c.Agents)])
		}
		l.Say("%d pulls", len(pulls))
		results, err := c.Pull(ctx, pulls, name, img, nil)
		if err != nil {
			return err
		}
		l.rightBytes(results)
		now, err := c.Counters()
		if err != nil {
			return err
		}
		moved := now.Since(before)
		inside := wave.Members(c.Members(), func(m *wave.Member) bool { return m.Region == "r2" })
		into := moved.Sum(inside).Foreign
		l.AtMost("copies into the region", "%.3f", float64(into)/float64(img.Bytes()), 1.02)
		l.Must("bytes agents took from another region, but for measuring how far it is", "0", moved.Sum(c.Agents).Foreign <= wave.ProbeBytes*int64(len(c.Agents)), "%d", moved.Sum(c.Agents).Foreign)
		l.Note("concurrent first pulls", "%d over %d agents", len(results), len(c.Agents))
		return nil
	},
}
