package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// prewarm plans waves with `shoal wave create`: one whose hosts then pull without any
// server, one whose server is killed while it drives it, and one that is cancelled.
var prewarm = Scenario{
	Name:  "prewarm",
	Claim: "hosts are pre-warmed, then pull without servers; a wave outlives its server; cancel stops one",
	Full:  wave.Plan{Servers: 3, Hosts: 16, Rate: 100e6, Bytes: 64 << 20, Layers: 2, Class: "standard"},
	Quick: wave.Plan{Servers: 3, Hosts: 4, Rate: 200e6, Bytes: 8 << 20, Layers: 2, Class: "standard"},
	Run: func(ctx context.Context, l *Lab) error {
		c, err := l.Start(ctx)
		if err != nil {
			return err
		}
		if err := c.Warm(ctx); err != nil {
			return err
		}
		for _, part := range []func(context.Context, *Lab, *wave.Cluster) error{withoutServers, withoutDriver, cancelled} {
			if err := part(ctx, l, c); err != nil {
				return err
			}
		}
		return nil
	},
}

// withoutServers pre-warms all agents, cuts the servers off and lets all agents pull.
func withoutServers(ctx context.Context, l *Lab, c *wave.Cluster) error {
	img, name, err := pushed(ctx, l, c, 1)
	if err != nil {
		return err
	}
	planned, err := createWave(ctx, c, name)
	if err != nil {
		return err
	}
	status, err := planned.await(ctx, c.Origin(), "the wave to end", func(s waveStatus) bool { return s.ended() })
	if err != nil {
		return err
	}
	l.Must("hosts that were pre-warmed", fmt.Sprint(len(c.Agents)), status.Hosts.Done == len(c.Agents), "%d", status.Hosts.Done)
	for _, m := range c.Servers {
		if err := m.Host.Cut(); err != nil {
			return err
		}
	}
	l.Say("the servers' links are cut")
	before, err := fetched(ctx, c.Agents)
	if err != nil {
		return err
	}
	results, err := c.Pull(ctx, c.Agents, name, img, nil)
	if err != nil {
		return err
	}
	after, err := fetched(ctx, c.Agents)
	if err != nil {
		return err
	}
	for _, m := range c.Servers {
		if err := m.Host.Mend(); err != nil {
			return err
		}
	}
	l.rightBytes(results)
	l.Must("bytes that they fetched with the servers cut off", "0", after == before, "%.0f", after-before)
	l.Note("slowest of these pulls, s", "%.2f", maximum(wave.Report{Results: results}.Finishes()))
	return nil
}

// withoutDriver kills the leader, which arbitrates a wave, when a host is done.
func withoutDriver(ctx context.Context, l *Lab, c *wave.Cluster) error {
	leader, err := quorum(ctx, c)
	if err != nil {
		return err
	}
	other := c.Servers[0]
	if other == leader {
		other = c.Servers[1]
	}
	_, name, err := pushed(ctx, l, c, 2)
	if err != nil {
		return err
	}
	planned, err := createWave(ctx, c, name, "--max-parallel", "2")
	if err != nil {
		return err
	}
	if _, err := planned.await(ctx, other, "the first host", func(s waveStatus) bool { return s.Hosts.Done > 0 }); err != nil {
		return err
	}
	l.Say("killing %s", leader.Name())
	leader.Process().Kill()
	status, err := planned.await(ctx, other, "the wave to end without its leader", func(s waveStatus) bool { return s.ended() })
	if err != nil {
		return err
	}
	l.Must("hosts that a wave reached although its leader was killed", fmt.Sprint(len(c.Agents)), status.Hosts.Done == len(c.Agents), "%d", status.Hosts.Done)
	return c.Restart(ctx, leader)
}

// quorum waits until all servers vote, so that one may go, and returns the one that
// leads.
func quorum(ctx context.Context, c *wave.Cluster) (leader *wave.Member, err error) {
	return leader, proc.Await(ctx, "a quorum that can lose a server", func(ctx context.Context) error {
		out, err := c.Shoal(ctx, "status", "--json")
		if err != nil {
			return err
		}
		var status struct {
			Servers []struct{ Voter bool }
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return fmt.Errorf("status: %w in %s", err, out)
		}
		voters := 0
		for _, s := range status.Servers {
			if s.Voter {
				voters++
			}
		}
		if voters < len(c.Servers) {
			return fmt.Errorf("%d of %d servers vote", voters, len(c.Servers))
		}
		for _, m := range c.Servers {
			if leads, err := m.Metric(ctx, "shoal_raft_leading"); err == nil && leads == 1 {
				leader = m
				return nil
			}
		}
		return errors.New("no server leads")
	})
}

// cancelled stops a wave when a host is done; what fetches then stops.
func cancelled(ctx context.Context, l *Lab, c *wave.Cluster) error {
	_, name, err := pushed(ctx, l, c, 3)
	if err != nil {
		return err
	}
	planned, err := createWave(ctx, c, name, "--max-parallel", "1")
	if err != nil {
		return err
	}
	if _, err := planned.await(ctx, c.Origin(), "the first host", func(s waveStatus) bool { return s.Hosts.Done > 0 }); err != nil {
		return err
	}
	if _, err := c.Shoal(ctx, "wave", "cancel", planned.id, "--reason", "the lab has seen enough"); err != nil {
		return err
	}
	if err := settled(ctx, 2*time.Second, func() (float64, error) { return fetched(ctx, c.Agents) }); err != nil {
		return err
	}
	status, err := planned.await(ctx, c.Origin(), "the wave to be cancelled", func(s waveStatus) bool { return s.Wave.State == "cancelled" })
	if err != nil {
		return err
	}
	l.Must("hosts that a cancelled wave left alone", ">= 1", status.Hosts.Done < len(c.Agents), "%d of %d", len(c.Agents)-status.Hosts.Done, len(c.Agents))
	return nil
}

// pushed uploads image n of the scenario. It tries again while the servers are without a
// quorum, as clients do: their links may just have been mended.
func pushed(ctx context.Context, l *Lab, c *wave.Cluster, n uint64) (*image.Image, string, error) {
	img, err := c.Image(n, l.Plan.Layers, l.Plan.Bytes)
	if err != nil {
		return nil, "", err
	}
	name := fmt.Sprintf("%s/prewarm-%d", wave.Repository, n)
	var refused error
	err = proc.Await(ctx, "a push that is taken", func(ctx context.Context) error {
		err := c.Push(ctx, name, "1", img)
		if answer, ok := errors.AsType[*image.StatusError](err); ok && answer.Status == http.StatusServiceUnavailable {
			return err
		}
		refused = err
		return nil
	})
	return img, name, errors.Join(err, refused)
}

// fetched adds up the bytes of chunks that members count as received from peers.
func fetched(ctx context.Context, members []*wave.Member) (sum float64, err error) {
	for _, m := range members {
		n, err := m.Metric(ctx, "shoal_swarm_bytes_total", `direction="received"`)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// settled waits until a value has not changed for a while.
func settled(ctx context.Context, while time.Duration, read func() (float64, error)) error {
	last, since := -1.0, time.Now()
	return proc.Await(ctx, "nothing to change any more", func(context.Context) error {
		now, err := read()
		if err != nil {
			return err
		}
		if now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < while {
			return errors.New("it still changes")
		}
		return nil
	})
}

// plannedWave is a wave of the product.
type plannedWave struct {
	c  *wave.Cluster
	id string
}

// waveStatus is what `shoal wave status --json` prints, as far as it is read here.
type waveStatus struct {
	Wave struct {
		State  string `json:"state"`
		Reason string `json:"reason"`
	} `json:"wave"`
	Hosts struct {
		Targeted int `json:"targeted"`
		Done     int `json:"done"`
		Failed   int `json:"failed"`
	} `json:"hosts"`
}

func (s waveStatus) ended() bool {
	return s.Wave.State != "planned" && s.Wave.State != "running"
}

// createWave plans a wave of an image's tag 1 for all agents of the cluster.
func createWave(ctx context.Context, c *wave.Cluster, name string, flags ...string) (plannedWave, error) {
	out, err := c.Shoal(ctx, append([]string{"wave", "create", name + ":1"}, flags...)...)
	id, _, _ := strings.Cut(out, "\n")
	return plannedWave{c, strings.TrimSpace(id)}, err
}

// await asks a server for the wave's state until is holds of it.
func (p plannedWave) await(ctx context.Context, server *wave.Member, what string, is func(waveStatus) bool) (status waveStatus, err error) {
	return status, proc.Await(ctx, what, func(ctx context.Context) error {
		out, err := p.c.ShoalOn(ctx, server, "wave", "status", p.id, "--json")
		if err != nil {
			return err
		}
		status = waveStatus{}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return fmt.Errorf("wave status: %w in %s", err, out)
		}
		if !is(status) {
			return errors.New("not yet: " + out)
		}
		return nil
	})
}
