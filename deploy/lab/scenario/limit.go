package scenario

import (
	"context"
	"fmt"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/netns"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// limit caps what a node takes and sends, with links that are much faster, and changes
// the cap while it works. What passed is read from the link.
var limit = Scenario{
	Name:  "limit",
	Claim: "a host's cap on its link, changed while it fetches and serves",
	Full:  wave.Plan{Hosts: 2, Rate: 1e9, Bytes: 160 << 20, Layers: 1},
	Quick: wave.Plan{Hosts: 2, Rate: 1e9, Bytes: 24 << 20, Layers: 1},
	Run: func(ctx context.Context, l *Lab) error {
		c, err := l.Start(ctx)
		if err != nil {
			return err
		}
		if err := c.Warm(ctx); err != nil {
			return err
		}
		first, second := int64(20e6), int64(10e6) // bytes a second, each for some 5 s
		if l.Quick {
			first, second = 8e6, 4e6
		}
		agent := c.Agents[0]
		img, err := c.Image(0, l.Plan.Layers, l.Plan.Bytes)
		if err != nil {
			return err
		}
		const name = wave.Repository + "/capped"
		if err := c.Push(ctx, name, "1", img); err != nil {
			return err
		}
		if err := setLimit(ctx, c, agent, "--down", first); err != nil {
			return err
		}
		watch := watchLink(ctx, agent)
		defer watch.end()
		var changed time.Time
		started := time.Now()
		results, err := c.Pull(ctx, []*wave.Member{agent}, name, img, &wave.Event{
			Due: func(moved wave.Counters) bool { return moved[agent].Received > l.Plan.Bytes*6/10 },
			Do: func(ctx context.Context) error {
				l.Say("changing the cap of %s", agent.Name())
				err := setLimit(ctx, c, agent, "--down", second)
				changed = time.Now()
				return err
			},
		})
		if err != nil {
			return err
		}
		received := func(t netns.Traffic) int64 { return t.Received }
		samples := watch.end()
		capFigure(l, "down", first, samples.most(started, changed, received))
		capFigure(l, "down, changed while it fetched", second, samples.most(changed.Add(capSettles), time.Now(), received))

		origin, other := c.Origin(), c.Agents[1]
		if err := setLimit(ctx, c, origin, "--up", first); err != nil {
			return err
		}
		if img, err = c.Image(1, l.Plan.Layers, l.Plan.Bytes*6/10); err != nil {
			return err
		}
		if err := c.Push(ctx, name+"/up", "1", img); err != nil {
			return err
		}
		watch = watchLink(ctx, origin)
		defer watch.end()
		started = time.Now()
		more, err := c.Pull(ctx, []*wave.Member{other}, name+"/up", img, nil)
		if err != nil {
			return err
		}
		capFigure(l, "up, of the server", first, watch.end().most(started, time.Now(), func(t netns.Traffic) int64 { return t.Sent }))
		l.rightBytes(append(results, more...))
		return nil
	},
}

// capSettles is how long after a change what was let in before may still arrive.
const capSettles = 250 * time.Millisecond

// setLimit changes a member's limit at run time, as its operator does.
func setLimit(ctx context.Context, c *wave.Cluster, m *wave.Member, flag string, bytesPerSec int64) error {
	_, err := c.ShoalOn(ctx, m, "limit", "set", flag, fmt.Sprintf("%dMB/s", bytesPerSec/1e6),
		"--ops", "127.0.0.1:"+proc.OpsPort)
	return err
}

func capFigure(l *Lab, what string, goal, got int64) {
	l.AtMost(fmt.Sprintf("most over 1 s, cap %d MB/s %s", goal/1e6, what), "%.2f MB/s", float64(got)/1e6, float64(goal)*1.05/1e6)
}

// linkWatch reads a link's counters again and again.
type linkWatch struct {
	stop    context.CancelFunc
	ended   chan struct{}
	samples linkSamples // read after ended
}

type linkSamples []linkSample

type linkSample struct {
	at      time.Time
	traffic netns.Traffic
}

// watchLink samples a member's link every 10 ms, until end is called.
func watchLink(ctx context.Context, m *wave.Member) *linkWatch {
	ctx, stop := context.WithCancel(ctx)
	w := &linkWatch{stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for {
			if traffic, err := m.Host.Traffic(); err == nil {
				w.samples = append(w.samples, linkSample{time.Now(), traffic})
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
	return w
}

// end returns the samples; it may be called again.
func (w *linkWatch) end() linkSamples {
	w.stop()
	<-w.ended
	return w.samples
}

// most returns the largest count that passed between two samples of the given time that
// are at most a second apart.
func (s linkSamples) most(from, to time.Time, count func(netns.Traffic) int64) (most int64) {
	first := 0
	for last := range s {
		if s[last].at.After(to) {
			break
		}
		for s[first].at.Before(from) || s[last].at.Sub(s[first].at) > time.Second {
			if first == last {
				break
			}
			first++
		}
		if s[first].at.Before(from) {
			continue
		}
		most = max(most, count(s[last].traffic)-count(s[first].traffic))
	}
	return most
}
