package scenario

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

// yield pre-warms a host beside a TCP connection of something else on the same links,
// which wants all it gets, and then alone.
var yield = Scenario{
	Name:  "yield",
	Claim: "what is pre-warmed gives way to other traffic of the host, and takes the link when there is none",
	Full:  wave.Plan{Hosts: 1, Rate: 100e6, Bytes: 192 << 20, Layers: 1},
	Quick: wave.Plan{Hosts: 1, Rate: 100e6, Bytes: 64 << 20, Layers: 1},
	Run: func(ctx context.Context, l *Lab) error {
		l.Plan.AgentArgs = []string{"--yield"}
		c, err := l.Start(ctx)
		if err != nil {
			return err
		}
		if err := c.Warm(ctx); err != nil {
			return err
		}
		_, name, err := pushed(ctx, l, c, 1)
		if err != nil {
			return err
		}
		agent := c.Agents[0]
		other, err := startBulk(ctx, c.Origin(), agent)
		if err != nil {
			return err
		}
		defer other.end()
		span := 5 * time.Second
		alone, _, err := rates(ctx, span, other, agent)
		if err != nil {
			return err
		}
		planned, err := createWave(ctx, c, name)
		if err != nil {
			return err
		}
		if err := pause(ctx, 3*time.Second); err != nil {
			return err
		}
		beside, warmed, err := rates(ctx, span, other, agent)
		if err != nil {
			return err
		}
		other.end()
		if err := pause(ctx, 3*time.Second); err != nil {
			return err
		}
		l.Say("the other traffic has ended")
		began := time.Now()
		before, err := fetched(ctx, c.Agents)
		if err != nil {
			return err
		}
		if _, err := planned.await(ctx, c.Origin(), "the wave to end", func(s waveStatus) bool { return s.ended() }); err != nil {
			return err
		}
		after, err := fetched(ctx, c.Agents)
		if err != nil {
			return err
		}
		l.AtLeast("other traffic beside a pre-warm, of what it has alone", "%.2f", beside/alone, 0.8)
		l.Note("it alone, MB/s", "%.2f", alone/1e6)
		l.Note("the pre-warm meanwhile, MB/s", "%.2f", warmed/1e6)
		l.Note("the pre-warm afterwards, MB/s", "%.2f", (after-before)/time.Since(began).Seconds()/1e6)
		return nil
	},
}

// rates measures, over a span, what other traffic and pre-warming get in bytes a second.
func rates(ctx context.Context, span time.Duration, other *bulk, agent *wave.Member) (others, warmed float64, err error) {
	before, err := fetched(ctx, []*wave.Member{agent})
	if err != nil {
		return 0, 0, err
	}
	began, had := time.Now(), other.moved.Load()
	if err := pause(ctx, span); err != nil {
		return 0, 0, err
	}
	moved, seconds := other.moved.Load()-had, time.Since(began).Seconds()
	after, err := fetched(ctx, []*wave.Member{agent})
	return float64(moved) / seconds, (after - before) / seconds, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// bulk is a TCP connection between two hosts that carries all it can. Its goroutines,
// one at each end, end with end.
type bulk struct {
	from, to net.Conn
	moved    atomic.Int64
	running  sync.WaitGroup
}

func startBulk(ctx context.Context, from, to *wave.Member) (*bulk, error) {
	listener, err := to.Host.Listen()
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	b := &bulk{}
	if b.from, err = from.Host.DialContext(ctx, "tcp", listener.Addr().String()); err != nil {
		return nil, err
	}
	if b.to, err = listener.Accept(); err != nil {
		b.from.Close()
		return nil, fmt.Errorf("accept: %w", err)
	}
	b.running.Go(func() { _, _ = io.Copy(b.from, zeros{}) })
	b.running.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := b.to.Read(buf)
			b.moved.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	return b, nil
}

// end closes the connection; it may be called again.
func (b *bulk) end() {
	b.from.Close()
	b.to.Close()
	b.running.Wait()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
