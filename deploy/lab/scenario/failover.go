package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// failover pulls the cables of all servers of a region, its repository's home: nothing
// is refused, nothing answers, connections stay. Its agents keep theirs. Then the cables
// are back.
var failover = Scenario{
	Name:  "failover",
	Claim: "the servers of a region of three are cut off: reads go to another region in under 10 s, writes in under 5 s (wan profile 20 s), and return",
	Full:  wave.Plan{Hosts: 6, Regions: 3, Servers: 2, Class: "critical", Layers: 1, Bytes: 40 << 10},
	Quick: wave.Plan{Hosts: 3, Regions: 3, Servers: 1, Class: "critical", Layers: 1, Bytes: 40 << 10},
	Run: func(ctx context.Context, l *Lab) error {
		if err := cutOff(ctx, l, "site", 5); err != nil || l.Quick {
			return err
		}
		return cutOff(ctx, l, "wan", 20)
	},
}

// cutOff does it in a cluster of one Raft profile.
func cutOff(ctx context.Context, l *Lab, profile string, writesWithin float64) error {
	l.Plan.ServerArgs = []string{"--raft-profile", profile}
	c, err := l.Start(ctx)
	if err != nil {
		return err
	}
	const name = wave.Repository + "/failover"
	var images []*image.Image
	for i := range 2 * len(c.Agents) {
		img, err := c.Image(uint64(i), l.Plan.Layers, l.Plan.Bytes)
		if err != nil {
			return err
		}
		if err := c.Push(ctx, name, fmt.Sprint("before-", i), img); err != nil {
			return err
		}
		images = append(images, img)
	}
	// What every server can serve at home is in all regions.
	for _, s := range c.Servers {
		for _, img := range images {
			if _, err := c.Registry(s, c.AdminToken).Pull(ctx, name, img.Digest()); err != nil {
				return err
			}
		}
	}
	if err := c.Warm(ctx); err != nil {
		return err
	}
	seen := c.Servers[len(c.Servers)-1]
	if err := awaitVotes(ctx, c, seen); err != nil {
		return err
	}
	lost := c.ServersOf("r1")
	l.Say("%s profile: cutting off %d servers of r1", profile, len(lost))
	began := time.Now()
	for _, s := range lost {
		if err := s.Host.Cut(); err != nil {
			return err
		}
	}
	reads, err := firstOf(ctx, c, func(ctx context.Context, i int, m *wave.Member) error {
		_, err := c.Registry(m, "").Pull(ctx, name, images[i].Digest()) // one that no other host has
		return err
	})
	if err != nil {
		return err
	}
	writes, err := firstOf(ctx, c, func(ctx context.Context, i int, m *wave.Member) error {
		img, err := c.Image(uint64(1000+i), l.Plan.Layers, 4096)
		if err != nil {
			return err
		}
		return c.Registry(m, c.AdminToken).Push(ctx, name, fmt.Sprint("without-", i), img)
	})
	if err != nil {
		return err
	}
	// The writes of the second cut begin when the servers' connections are fresh.
	l.AtMost(profile+": longest read after the cut, s", "%.1f", reads.Seconds(), 10)
	l.Note(profile+": longest write after those reads, s", "%.1f", writes.Seconds())
	if err := awaitState(ctx, c, seen, "down"); err != nil {
		return err
	}
	l.Note(profile+": recorded as down, s after the cut", "%.1f", time.Since(began).Seconds())
	mended := time.Now()
	for _, s := range lost {
		if err := s.Host.Mend(); err != nil {
			return err
		}
	}
	if err := awaitState(ctx, c, seen, "healthy"); err != nil {
		return err
	}
	l.Note(profile+": recorded as healthy, s after the cables are back", "%.1f", time.Since(mended).Seconds())

	// Again, with writes first: they meet the cut, and perhaps the loss of the leader.
	for _, s := range lost {
		if err := s.Host.Cut(); err != nil {
			return err
		}
	}
	if writes, err = firstOf(ctx, c, func(ctx context.Context, i int, m *wave.Member) error {
		img, err := c.Image(uint64(2000+i), l.Plan.Layers, 4096)
		if err != nil {
			return err
		}
		return c.Registry(m, c.AdminToken).Push(ctx, name, fmt.Sprint("again-", i), img)
	}); err != nil {
		return err
	}
	l.AtMost(profile+": longest write after a cut, s", "%.1f", writes.Seconds(), writesWithin)
	for _, s := range lost {
		if err := s.Host.Mend(); err != nil {
			return err
		}
	}
	if err := awaitState(ctx, c, seen, "healthy"); err != nil {
		return err
	}
	// The second cut may have ended before anybody recorded it, so r1 may still be looking
	// for the others: its clients are told to try again.
	bad := 0
	patient, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("a minute with the cables back"))
	defer cancel()
	for _, s := range lost {
		for i := range c.Agents {
			for _, tag := range []string{"without-", "again-"} {
				if err := proc.Await(patient, fmt.Sprint(tag, i), func(ctx context.Context) error {
					_, err := c.Registry(s, c.AdminToken).Pull(ctx, name, fmt.Sprint(tag, i))
					return err
				}, s.Process()); err != nil {
					l.Say("%s: %v", s.Name(), err)
					bad++
				}
			}
		}
	}
	l.Must(profile+": what was pushed without r1 reads at r1", "all", bad == 0, "%d missing", bad)
	return nil
}

// firstOf lets every agent try until it has done it once, as a client that gives an
// answer 10 s and tries again, and returns how long the last one took.
func firstOf(ctx context.Context, c *wave.Cluster, do func(ctx context.Context, i int, m *wave.Member) error) (time.Duration, error) {
	took := make([]time.Duration, len(c.Agents))
	errs := make([]error, len(c.Agents))
	var group sync.WaitGroup
	for i, m := range c.Agents {
		group.Go(func() {
			began := time.Now()
			errs[i] = proc.Await(ctx, m.Name()+" to get on", func(ctx context.Context) error {
				limited, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				return do(limited, i, m)
			}, m.Process())
			took[i] = time.Since(began)
		})
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return slices.Max(took), nil
}

// awaitVotes waits until two servers of each region vote, one where there is one: before
// that the loss of a region may be that of the quorum.
func awaitVotes(ctx context.Context, c *wave.Cluster, at *wave.Member) error {
	want := min(5, (len(c.Servers)+1)/2*2-1)
	return proc.Await(ctx, "votes for the servers", func(ctx context.Context) error {
		out, err := c.ShoalOn(ctx, at, "status", "--json")
		if err != nil {
			return err
		}
		var status struct{ Servers []struct{ Voter bool } }
		if err := json.NewDecoder(strings.NewReader(out)).Decode(&status); err != nil {
			return fmt.Errorf("status: %w in %s", err, out)
		}
		voters := 0
		for _, s := range status.Servers {
			if s.Voter {
				voters++
			}
		}
		if voters != want {
			return fmt.Errorf("%d servers vote, not %d", voters, want)
		}
		return nil
	}, at.Process())
}

// awaitState waits until r1 is recorded to be in a state.
func awaitState(ctx context.Context, c *wave.Cluster, at *wave.Member, state string) error {
	return proc.Await(ctx, "r1 to be recorded as "+state, func(ctx context.Context) error {
		out, err := c.ShoalOn(ctx, at, "region", "status", "r1", "--json")
		if err != nil {
			return err
		}
		var status struct {
			Regions []struct{ State, Why string }
		}
		if err := json.NewDecoder(strings.NewReader(out)).Decode(&status); err != nil || len(status.Regions) != 1 {
			return fmt.Errorf("region status: %w in %s", err, out)
		}
		if status.Regions[0].State != state {
			return fmt.Errorf("it is %+v", status.Regions[0])
		}
		return nil
	}, at.Process())
}
