package wave

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/netns"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// Counters are what passed the link of each member.
type Counters map[*Member]netns.Traffic

// Counters reads the counters of every member's link.
func (c *Cluster) Counters() (Counters, error) {
	now := make(Counters)
	for _, m := range c.Members() {
		var err error
		if now[m], err = m.Host.Traffic(); err != nil {
			return nil, err
		}
	}
	return now, nil
}

// Since returns what passed since earlier counters; members that came later count from
// their start.
func (n Counters) Since(earlier Counters) Counters {
	moved := make(Counters, len(n))
	for m, traffic := range n {
		moved[m] = traffic.Sub(earlier[m])
	}
	return moved
}

// Sum adds up what passed the links of some members.
func (n Counters) Sum(members []*Member) netns.Traffic {
	var sum netns.Traffic
	for _, m := range members {
		t := n[m]
		sum.Sent += t.Sent
		sum.Received += t.Received
		sum.Foreign += t.Foreign
		sum.OtherZone += t.OtherZone
	}
	return sum
}

// Image returns the image that number n of this plan's seed names, of the given size.
func (c *Cluster) Image(n uint64, layers int, bytes int64) (*image.Image, error) {
	return image.Make(c.plan.Seed<<8|n, layers, bytes)
}

// Push uploads an image to the origin as administrator.
func (c *Cluster) Push(ctx context.Context, name, tag string, img *image.Image) error {
	c.plan.Say("pushing %s, %d bytes in %d layers, to %s", name, img.Bytes(), len(img.Parsed.Layers), c.Origin().Name())
	return c.Registry(c.Origin(), c.AdminToken).Push(ctx, name, tag, img)
}

// Warm lets all agents pull a small image, so that connections, roster and grants are
// there when something is measured.
func (c *Cluster) Warm(ctx context.Context) error {
	img, err := c.Image(255, 1, 64<<10)
	if err != nil {
		return err
	}
	const name = Repository + "/warm"
	if err := c.Push(ctx, name, "1", img); err != nil {
		return err
	}
	c.plan.Say("warming %d agents up", len(c.Agents))
	return each(c.Agents, len(c.Agents)+1, func(m *Member) error {
		if _, err := c.Registry(m, "").Pull(ctx, name, "1"); err != nil {
			return fmt.Errorf("warm %s: %w", m.Name(), err)
		}
		return nil
	})
}

// Event is something that happens while members pull, and whom it excuses.
type Event struct {
	// Due is asked again and again with what passed the links since the start, until it
	// is true.
	Due func(moved Counters) bool
	// Do is called then, once.
	Do func(ctx context.Context) error
	// Excused members need not end: those that are not done when all others are, are cut
	// off. nil excuses nobody.
	Excused func(*Member) bool
}

// Await waits until due is true of what passed the links since some counters.
func (c *Cluster) Await(ctx context.Context, what string, since Counters, due func(moved Counters) bool) error {
	return proc.Await(ctx, what, func(context.Context) error {
		now, err := c.Counters()
		if err == nil && !due(now.Since(since)) {
			err = errors.New("not yet")
		}
		return err
	})
}

// Pull lets one client on each of the members pull an image at the same moment and
// returns what each got, in the order of members. A member may be listed several times.
//
// Clients stream manifest, layers and config and check sha256 of each. event, when not
// nil, happens on the way; it is an error when all end before it is due, and when it
// fails. What a client got, wrong or nothing, is in its result.
func (c *Cluster) Pull(ctx context.Context, members []*Member, name string, img *image.Image, event *Event) ([]Result, error) {
	if event == nil {
		return c.pull(ctx, members, name, img, nil), nil
	}
	before, err := c.Counters()
	if err != nil {
		return nil, err
	}
	watching, ended := context.WithCancelCause(ctx)
	done := make(chan error, 1)
	go func() {
		err := c.Await(watching, "the event", before, event.Due)
		if err == nil {
			err = event.Do(ctx)
		}
		done <- err
	}()
	results := c.pull(ctx, members, name, img, event.Excused)
	ended(errors.New("all ended before it"))
	return results, <-done
}

func (c *Cluster) pull(ctx context.Context, members []*Member, name string, img *image.Image, excused func(*Member) bool) []Result {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	results := make([]Result, len(members))
	var awaited, all sync.WaitGroup
	begin := make(chan struct{})
	for i, m := range members {
		waited := excused == nil || !excused(m)
		if waited {
			awaited.Add(1)
		}
		all.Add(1)
		go func() {
			defer all.Done()
			if waited {
				defer awaited.Done()
			}
			<-begin
			p, err := c.Registry(m, "").Pull(ctx, name, "1")
			results[i] = Result{Name: m.Name(), Region: m.Region, Zone: m.Zone, Excused: !waited,
				FirstByteSec: p.FirstByte.Seconds(), FinishSec: p.Total.Seconds(), GapSec: p.LongestGap.Seconds()}
			switch {
			case err != nil:
				results[i].Error = err.Error()
			case image.DigestOf(p.Manifest) != img.Digest():
				results[i].Error = fmt.Sprintf("manifest %s instead of %s", image.DigestOf(p.Manifest), img.Digest())
			}
		}()
	}
	close(begin)
	awaited.Wait()
	cancel(errors.New("the others are done"))
	all.Wait()
	return results
}

// Wave pushes a new image to the origin, warms every agent up with a small one, lets
// all agents pull the new one at the same moment, and reports.
//
// An error is a lab that did not run; a host that got wrong bytes or none is in the
// report. event is as for Pull.
func (c *Cluster) Wave(outer context.Context, event *Event) (Report, error) {
	ctx, cancel := context.WithTimeoutCause(outer, c.plan.Timeout, fmt.Errorf("the wave took more than %v", c.plan.Timeout))
	defer cancel()
	name := fmt.Sprintf("%s/image-%d", Repository, c.plan.Seed)
	img, err := c.Image(0, c.plan.Layers, c.plan.Bytes)
	if err != nil {
		return Report{}, err
	}
	if err := c.Push(ctx, name, "1", img); err != nil {
		return Report{}, err
	}
	if err := c.Warm(ctx); err != nil {
		return Report{}, err
	}
	before, err := c.Counters()
	if err != nil {
		return Report{}, err
	}
	r := Report{
		Regions: c.plan.Regions, Hosts: c.plan.Hosts, Layers: c.plan.Layers, Seed: c.plan.Seed,
		RateBitsPerSec: c.plan.Rate, Class: c.plan.Class, Bytes: img.Bytes(), Digest: img.Digest(),
		LoadBefore: LoadAverage(), Cores: runtime.NumCPU(),
	}
	c.plan.Say("go")
	start := time.Now()
	r.Results, err = c.Pull(ctx, c.Agents, name, img, event)
	r.ElapsedSec = time.Since(start).Seconds()
	r.LoadAfter = LoadAverage()
	if outer.Err() != nil {
		return r, context.Cause(outer) // an interrupted wave says nothing about the swarm
	}
	if err != nil {
		return r, err
	}
	return r, c.account(&r, before)
}

// account adds to the report what passed the links and what memory the nodes took.
func (c *Cluster) account(r *Report, before Counters) error {
	now, err := c.Counters()
	if err != nil {
		return err
	}
	moved := now.Since(before)
	for _, m := range c.Servers {
		r.Servers = append(r.Servers, Server{Name: m.Name(), Region: m.Region, Traffic: moved[m]})
	}
	for i, m := range c.Agents {
		r.Results[i].Traffic = moved[m]
	}
	for _, m := range c.Members() {
		if m.Ended() {
			continue
		}
		memory, err := m.Process().Memory()
		if err != nil {
			return err
		}
		if m.Role == "agent" {
			r.AgentPeakBytes = max(r.AgentPeakBytes, memory.Peak)
		} else {
			r.ServerPeakBytes = max(r.ServerPeakBytes, memory.Peak)
		}
	}
	r.Bound = c.plan.Bound(r.Bytes)
	r.BoundSec = r.Bound.Seconds()
	return nil
}

// Bound returns what the links of the plan allow at best for an image of so many bytes
// that all agents pull. A server of each region with agents relays into it.
func (p Plan) Bound(bytes int64) Bound {
	relays := p.Regions - p.First
	if p.First > 1 {
		relays++
	}
	b := Bound{Bytes: bytes, Receivers: p.Hosts + relays, SeedUp: p.ServerRate, Down: p.Rate,
		PeerUp: p.Rate*int64(p.Hosts) + p.ServerRate*int64(relays)}
	if relays > 0 && p.ServerRate > 0 && (p.Rate == 0 || p.ServerRate < p.Rate) {
		b.Down = p.ServerRate
	}
	return b
}

// LoadAverage returns the first three numbers of /proc/loadavg.
func LoadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], " ")
}

// Members returns those members of the list for which keep is true.
func Members(list []*Member, keep func(*Member) bool) []*Member {
	return slices.DeleteFunc(slices.Clone(list), func(m *Member) bool { return !keep(m) })
}
