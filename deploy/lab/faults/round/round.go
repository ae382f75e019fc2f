// Package round runs one round of faults: a cluster of real servers on hosts and disks of
// its own, clients, a nemesis, and the judgement of everything that was said and kept.
//
// Start reading at Run; report.go prints what came out. The goroutines are the clients
// and those of the parts; all have ended when Run returns, and nothing is left behind.
// Linux and root only.
package round

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/disk"
	"github.com/shoal-registry/shoal/deploy/lab/faults/clients"
	"github.com/shoal-registry/shoal/deploy/lab/faults/history"
	"github.com/shoal-registry/shoal/deploy/lab/faults/nemesis"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// Profile is what a cluster is like.
type Profile struct {
	Name    string
	RTT     time.Duration // between regions
	Clients int
	Timeout time.Duration // of a client's request
	Scale   float64       // of how long faults last
	// Patience is how long the cluster may take to work again after a fault.
	Patience time.Duration
}

// Profiles are those that --profile takes.
var Profiles = []Profile{
	{Name: "site", Clients: 12, Timeout: 5 * time.Second, Scale: 1, Patience: 10 * time.Minute},
	{Name: "wan", RTT: 60 * time.Millisecond, Clients: 40, Timeout: 12 * time.Second, Scale: 3, Patience: 10 * time.Minute},
}

// Config is one round.
type Config struct {
	Bin      string // the shoal binary
	Dir      string // gets the history, and the logs when something is wrong
	Disks    string // parent of the disks' files
	Profile  Profile
	Servers  int // one a region
	Agents   int
	Duration time.Duration
	Faults   int // at most; 0 is as many as fit
	Only     []string
	Seed     uint64
	Clients  int
	Keys     int
	Rate     float64 // operations a second of all clients, at most
	AtLeast  int     // acknowledged operations a second before a fault counts
	DiskSize int64
	// Large is the size in bytes of one in LargeEvery artifacts.
	Large      int64
	LargeEvery int
	// UntilWrong ends the round as soon as something is known to be wrong.
	UntilWrong bool
	Say        func(format string, args ...any)
}

// judging is the time for one key.
const judging = 30 * time.Second

// load joins the clients to what the nemesis asks of them.
type load struct {
	*clients.Workload
}

func (l load) AwaitLoad(ctx context.Context, atLeast int) error {
	return l.Pulse.AwaitLoad(ctx, atLeast)
}

func (l load) SetMembers(members []*wave.Member) {
	var nodes []clients.Node
	for _, m := range members {
		nodes = append(nodes, node(m))
	}
	l.SetNodes(nodes)
}

func node(m *wave.Member) clients.Node {
	return clients.Node{Name: m.Name(), Base: "http://127.0.0.1:" + proc.GatewayPort, HTTP: m.HTTP(), Agent: m.Role == "agent"}
}

// Run runs a round. An error says that the round did not run to its end; what is wrong
// with the product is in the report.
func Run(ctx context.Context, c Config) (_ *Report, err error) {
	r := &Report{Profile: c.Profile.Name, Seed: c.Seed, Servers: c.Servers, Agents: c.Agents, Clients: c.Clients, LoadBefore: wave.LoadAverage()}
	dir, err := os.MkdirTemp(c.Disks, "shoal-faults-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	disks, err := c.makeDisks(dir)
	defer func() {
		for _, d := range disks {
			err = errors.Join(err, d.Close())
		}
	}()
	if err != nil {
		return nil, err
	}
	cluster, err := wave.Start(ctx, wave.Plan{Bin: c.Bin, Dir: dir, Regions: c.Servers, Hosts: c.Agents, RTT: c.Profile.RTT,
		ServerArgs: []string{"--raft-profile", c.Profile.Name}, Class: "critical", Say: c.Say})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil || r.Wrong() {
			err = errors.Join(err, c.keepLogs(dir))
		}
		err = errors.Join(err, cluster.Close())
	}()
	if err := errors.Join(nemesis.AwaitVoters(ctx, cluster), repositories(ctx, cluster)); err != nil {
		return nil, err
	}
	record, err := history.Create(filepath.Join(c.Dir, "history.jsonl.gz"), judging)
	if err != nil {
		return nil, err
	}
	work := clients.New(clients.Config{Clients: c.Clients, Keys: c.Keys, Rate: c.Rate, Timeout: c.Profile.Timeout,
		Seed: c.Seed, Token: cluster.AdminToken, LargeBytes: c.Large, LargeEvery: c.LargeEvery, Say: c.Say}, record)
	l := load{work}
	l.SetMembers(cluster.Members())
	bad := nemesis.New(nemesis.Config{Cluster: cluster, Disks: bind(cluster, disks), Load: l, AtLeast: c.AtLeast, Patience: c.Profile.Patience, Say: c.Say,
		Regions: c.Servers, MakeDisk: func(name string) (*disk.Disk, error) { return makeDisk(dir, name, c.DiskSize) }})
	steps, err := nemesis.Steps(c.Seed, c.Only, c.Profile.Scale)
	if err != nil {
		return nil, err
	}

	c.Say("%d clients begin", c.Clients)
	began := time.Now()
	working, rest := context.WithCancel(ctx)
	defer rest()
	var running sync.WaitGroup
	running.Go(func() { work.Run(working) })
	over, end := context.WithTimeout(ctx, c.Duration)
	defer end()
	watched := c.watch(working, end, work, record, &running)
	err = bad.Run(ctx, over.Done(), func(yield func(nemesis.Step) bool) {
		for s := range steps {
			if c.Faults > 0 && s.Number > c.Faults || !yield(s) {
				return
			}
		}
	})
	if err == nil {
		err = bad.Settle(ctx)
	}
	watched()
	ended := time.Now()
	rest()
	running.Wait()
	r.DurationSec = ended.Sub(began).Seconds()
	r.Availability = work.Pulse.Availability(began, ended)
	r.Rejoined, r.Flipped = bad.Rejoined, bad.Flipped
	r.Faults, r.Groups, r.Ended = maps.Clone(bad.Counts), bad.Groups(), maps.Clone(bad.Restarts)
	if err != nil {
		var late error
		r.History, r.Findings, late = record.Close()
		r.Seen = work.Faults()
		return r, errors.Join(err, late)
	}

	c.Say("all faults are healed; closing the keys")
	work.Finish(ctx)
	r.History, r.Findings, err = record.Close()
	if err != nil {
		return r, err
	}
	var servers []clients.Node
	for _, m := range cluster.Servers {
		servers = append(servers, node(m))
	}
	r.Seen = work.Faults()
	if c.UntilWrong && r.Wrong() {
		return r, nil
	}
	c.Say("reading every acknowledged artifact from every server")
	r.Audit = work.Audit(ctx, servers, c.Clients, c.Profile.Patience)
	r.Seen = work.Faults()
	r.LoadAfter = wave.LoadAverage()
	return r, ctx.Err()
}

// watch says now and then how far the round is, and calls end when the round is only
// until something is wrong and that is so. What it returns ends it.
func (c Config) watch(ctx context.Context, end func(), work *clients.Workload, record *history.Recorder, running *sync.WaitGroup) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	began := time.Now()
	running.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			totals, findings := record.Judged()
			seen := work.Faults()
			if c.UntilWrong && (len(findings) > 0 || seen.Any()) {
				end()
			}
			if n%60 == 0 {
				a := work.Pulse.Availability(began, time.Now())
				c.Say("%v: %d acknowledged, %d keys judged, %d findings, other faults: %v", time.Since(began).Round(time.Second), a.Acknowledged, totals.Keys, len(findings), seen.Any())
			}
		}
	})
	return cancel
}

// makeDisks makes a disk for each server, where wave.Start will look for its folder. It
// returns what it made, also on an error.
func (c Config) makeDisks(dir string) (map[string]*disk.Disk, error) {
	disks := make(map[string]*disk.Disk)
	for i := 1; i <= c.Servers; i++ {
		name := fmt.Sprintf("server-r%d", i)
		d, err := makeDisk(dir, name, c.DiskSize)
		if err != nil {
			return disks, err
		}
		disks[name] = d
	}
	return disks, nil
}

// makeDisk makes a disk and lets a node's folder of that name lie on it. The node's log
// stays outside: it would hang with a frozen disk.
func makeDisk(dir, name string, bytes int64) (*disk.Disk, error) {
	d, err := disk.Make(filepath.Join(dir, name+".img"), filepath.Join(dir, "disk-"+name), bytes)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(d.Mount, "data")
	return d, errors.Join(os.Mkdir(data, 0o700), os.Symlink(data, filepath.Join(dir, name)))
}

func bind(cluster *wave.Cluster, disks map[string]*disk.Disk) map[*wave.Member]*disk.Disk {
	bound := make(map[*wave.Member]*disk.Disk)
	for _, m := range cluster.Servers {
		bound[m] = disks[filepath.Base(m.Node.Data)]
	}
	return bound
}

// repositories creates what the clients use.
func repositories(ctx context.Context, cluster *wave.Cluster) error {
	if _, err := cluster.Shoal(ctx, "tenant", "create", "acme"); err != nil {
		return err
	}
	for repository, flags := range map[string]string{
		clients.Images:   "--format oci",
		clients.Files:    "--format generic",
		clients.Releases: "--format generic --immutable",
	} {
		args := append([]string{"repo", "create", repository, "--class", "critical", "--home", "r1"}, strings.Fields(flags)...)
		if _, err := cluster.Shoal(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// keepLogs copies the nodes' logs beside the history.
func (c Config) keepLogs(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		return err
	}
	for _, name := range logs {
		text, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(c.Dir, filepath.Base(name)), text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
