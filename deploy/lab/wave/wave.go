package wave

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/netns"
)

// Wave pushes a new image to the origin, warms every agent up with a small one, lets
// all agents pull the new one at the same moment, and reports.
//
// One client a host streams manifest, layers and config from its agent and checks
// sha256 of each. An error is a lab that did not run; a host that got wrong bytes or
// none is in the report.
func (c *Cluster) Wave(outer context.Context) (Report, error) {
	ctx, cancel := context.WithTimeoutCause(outer, c.plan.Timeout, fmt.Errorf("the wave took more than %v", c.plan.Timeout))
	defer cancel()
	name := fmt.Sprintf("%s/image-%d", Repository, c.plan.Seed)
	img, err := image.Make(c.plan.Seed<<1, c.plan.Layers, c.plan.Bytes)
	if err != nil {
		return Report{}, err
	}
	warm, err := image.Make(c.plan.Seed<<1|1, 1, 64<<10)
	if err != nil {
		return Report{}, err
	}
	origin := c.Registry(c.Origin(), c.AdminToken)
	c.plan.Say("pushing %d bytes in %d layers to %s", img.Bytes(), c.plan.Layers, c.Origin().Name())
	if err := origin.Push(ctx, name+"/warm", "1", warm); err != nil {
		return Report{}, err
	}
	if err := origin.Push(ctx, name, "1", img); err != nil {
		return Report{}, err
	}
	c.plan.Say("warming %d agents up", len(c.Agents))
	if err := each(c.Agents, len(c.Agents)+1, func(m *Member) error {
		_, err := c.Registry(m, "").Pull(ctx, name+"/warm", "1")
		if err != nil {
			return fmt.Errorf("warm %s: %w", m.Name(), err)
		}
		return nil
	}); err != nil {
		return Report{}, err
	}

	members := c.Members()
	before := make([]netns.Traffic, len(members))
	for i, m := range members {
		if before[i], err = m.Host.Traffic(); err != nil {
			return Report{}, err
		}
	}
	r := Report{
		Regions: c.plan.Regions, Hosts: c.plan.Hosts, Layers: c.plan.Layers,
		RateBitsPerSec: c.plan.Rate, Class: c.plan.Class, Bytes: img.Bytes(), Digest: img.Digest(),
		LoadBefore: loadAverage(), Cores: runtime.NumCPU(),
	}
	c.plan.Say("go")
	begin := make(chan struct{})
	r.Results = make([]Result, len(c.Agents))
	pulled := make(chan error, 1)
	go func() {
		pulled <- each(c.Agents, len(c.Agents)+1, func(m *Member) error {
			<-begin
			p, err := c.Registry(m, "").Pull(ctx, name, "1")
			result := Result{Name: m.Name(), Region: m.Region, Zone: m.Zone,
				FirstByteSec: p.FirstByte.Seconds(), FinishSec: p.Total.Seconds()}
			switch {
			case err != nil:
				result.Error = err.Error()
			case image.DigestOf(p.Manifest) != r.Digest:
				result.Error = fmt.Sprintf("manifest %s instead of %s", image.DigestOf(p.Manifest), r.Digest)
			}
			r.Results[slices.Index(c.Agents, m)] = result
			return nil
		})
	}()
	start := time.Now()
	close(begin)
	<-pulled
	r.ElapsedSec = time.Since(start).Seconds()
	r.LoadAfter = loadAverage()
	if outer.Err() != nil {
		return r, context.Cause(outer) // an interrupted wave says nothing about the swarm
	}

	for i, m := range members {
		after, err := m.Host.Traffic()
		if err != nil {
			return r, err
		}
		moved := after.Sub(before[i])
		if m.Role == "agent" {
			r.Results[i-len(c.Servers)].Traffic = moved
			continue
		}
		r.Servers = append(r.Servers, Server{Name: m.Name(), Region: m.Region, Traffic: moved})
	}
	for _, m := range members {
		memory, err := m.Process().Memory()
		if err != nil {
			return r, err
		}
		if m.Role == "agent" {
			r.AgentPeakBytes = max(r.AgentPeakBytes, memory.Peak)
		} else {
			r.ServerPeakBytes = max(r.ServerPeakBytes, memory.Peak)
		}
	}
	relays := c.plan.Regions - 1
	r.Bound = Bound{Bytes: r.Bytes, Receivers: c.plan.Hosts + relays, SeedUp: c.plan.Rate, Down: c.plan.Rate,
		PeerUp: c.plan.Rate * int64(c.plan.Hosts+relays)}
	r.BoundSec = r.Bound.Seconds()
	return r, nil
}

// loadAverage returns the first three numbers of /proc/loadavg.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
