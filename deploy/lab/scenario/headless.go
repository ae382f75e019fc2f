package scenario

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

// headless loses the registrar and the leader, which are the only server, once the
// server has sent each chunk, and brings an agent back that knows map and grant from
// before but no peer: its process is new and nobody is left to introduce it.
var headless = Scenario{
	Name:  "headless",
	Claim: "registrar and leader are killed once the blob is out: the wave ends; an agent that starts then finds the swarm by DHT",
	Full:  wave.Plan{Hosts: 9, Rate: 100e6, ServerRate: 400e6, Bytes: 128 << 20, Layers: 1},
	Quick: wave.Plan{Hosts: 4, Rate: 100e6, ServerRate: 400e6, Bytes: 32 << 20, Layers: 1},
	Run: func(ctx context.Context, l *Lab) error {
		c, err := l.Start(ctx)
		if err != nil {
			return err
		}
		img, err := c.Image(0, l.Plan.Layers, l.Plan.Bytes)
		if err != nil {
			return err
		}
		const name = wave.Repository + "/headless"
		if err := c.Push(ctx, name, "1", img); err != nil {
			return err
		}
		if err := c.Warm(ctx); err != nil {
			return err
		}
		last := len(c.Agents) - 1
		late, others := c.Agents[last], c.Agents[:last]
		if err := begun(ctx, l, c, late, name); err != nil {
			return err
		}

		results, err := c.Pull(ctx, others, name, img, &wave.Event{
			Due: allSent(c, l.Plan.Bytes),
			Do: func(context.Context) error {
				l.Say("killing %s", c.Origin().Name())
				c.Origin().Process().Kill()
				return nil
			},
		})
		if err != nil {
			return err
		}
		l.rightBytes(results)
		r := wave.Report{Results: results, BoundSec: c.Plan().Bound(img.Bytes()).Seconds()}
		l.Note("last host / bound, without a server most of the time", "%.2f", r.Ratio(maximum(r.Finishes())))

		l.Say("starting %s again, without a server", late.Name())
		if err := c.Restart(ctx, late); err != nil {
			return err
		}
		// Two of the largest chunks there are here show that a peer serves; what the agent
		// had from before comes from its disk.
		const enough = 512 << 10
		var found time.Duration
		start := time.Now()
		results, err = c.Pull(ctx, []*wave.Member{late}, name, img, &wave.Event{
			Due: func(moved wave.Counters) bool { return moved[late].Received > enough },
			Do: func(context.Context) error {
				found = time.Since(start)
				return nil
			},
		})
		if err != nil {
			return fmt.Errorf("the late agent: %w: %s", err, results[0].Error)
		}
		l.Must("the late agent has the right bytes", "yes", results[0].Error == "", "%s", cmp.Or(results[0].Error, "yes"))
		l.AtMost("from its first request to chunks of peers found by DHT, s", "%.2f", found.Seconds(), 2)
		return nil
	},
}

// allSent returns whether each byte of a blob has left the servers: each chunk leaves
// once before any leaves twice, and after that they are asked for nothing, or for second
// copies.
func allSent(c *wave.Cluster, bytes int64) func(wave.Counters) bool {
	var sent int64
	since := time.Now()
	return func(moved wave.Counters) bool {
		now := moved.Sum(c.Servers).Sent
		if now > sent+bytes/100 {
			sent, since = now, time.Now()
		}
		return now > bytes+bytes/8 || now > bytes && time.Since(since) > 300*time.Millisecond
	}
}

// begun lets an agent take the first chunks of an image and kills it then: map and
// grant are on its disk.
func begun(ctx context.Context, l *Lab, c *wave.Cluster, m *wave.Member, name string) error {
	before, err := c.Counters()
	if err != nil {
		return err
	}
	pulling, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = c.Registry(m, "").Pull(pulling, name, "1") // which the kill ends
	}()
	err = c.Await(ctx, "the first chunks", before, func(moved wave.Counters) bool { return moved[m].Received > 4<<20 })
	if err == nil {
		l.Say("killing %s", m.Name())
		m.Process().Kill()
	}
	stop()
	<-ended
	return err
}
