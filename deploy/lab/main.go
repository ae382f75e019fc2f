// Command lab runs the real binary in network namespaces and prints what the swarm
// makes of the links it has.
//
// `make lab HOSTS=8 RATE=100mbit SIZE=64MiB REGIONS=3` runs one launch wave of those
// hosts; `make lab SCENARIO=wave16` runs a scenario that prints figures against their
// goals, `make lab-all` all of them, as one table. The work is in packages wave,
// scenario and netns; this file reads flags and signals. It needs root, touches nothing
// outside its own namespaces and its folder, and leaves neither behind, however it ends.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/scenario"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
	"github.com/shoal-registry/shoal/deploy/proc"
)

func main() {
	ctx, stop := proc.UntilEnded()
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		stop()
		os.Exit(1)
	}
}

// command is what the flags say.
type command struct {
	bin, dir                                      string
	hosts, first, regions, servers, zones, layers int
	rate, serverRate, size, class                 string
	rtt                                           time.Duration
	seed                                          uint64
	scenario                                      string
	list, quick, asJSON, check                    bool
	timeout                                       time.Duration
	say                                           func(format string, args ...any)
	rateBits, serverBits, bytes                   int64
}

func run(ctx context.Context, args []string) error {
	var c command
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.StringVar(&c.bin, "bin", "bin/shoal", "the shoal `binary`")
	flags.StringVar(&c.dir, "dir", "", "`folder` for the nodes' data; by default in memory when the wave fits there, since the links are measured and not the disk")
	flags.StringVar(&c.scenario, "scenario", "", "`name` of a scenario, several with commas, or all; without it, one wave as the other flags say")
	flags.BoolVar(&c.list, "list", false, "print the scenarios and end")
	flags.BoolVar(&c.quick, "quick", false, "scenarios in a small form, which takes seconds")
	flags.IntVar(&c.hosts, "hosts", 0, "agents, one a host (8, or as the scenario has it)")
	flags.StringVar(&c.rate, "rate", "", "speed of every link, up and down (100mbit, or as the scenario has it)")
	flags.StringVar(&c.size, "size", "", "bytes of all layers (64MiB, or as the scenario has it)")
	flags.StringVar(&c.serverRate, "server-rate", "0", "speed of the servers' links when it is another")
	flags.IntVar(&c.regions, "regions", 1, "regions")
	flags.IntVar(&c.servers, "servers", 1, "servers of each region")
	flags.IntVar(&c.first, "first", 1, "first region with agents")
	flags.IntVar(&c.zones, "zones", 1, "zones of each region")
	flags.IntVar(&c.layers, "layers", 4, "layers of the image")
	flags.DurationVar(&c.rtt, "rtt", 0, "between regions, by a relay that costs processor time: not for figures of bandwidth")
	flags.StringVar(&c.class, "class", "cold", "class of the repository; cold leaves other regions empty until the wave")
	flags.Uint64Var(&c.seed, "seed", 1, "of the images' bytes")
	flags.BoolVar(&c.asJSON, "json", false, "print the report as JSON")
	flags.BoolVar(&c.check, "check", false, "fail when a promise is broken or a goal missed, not only when a host has wrong bytes")
	flags.DurationVar(&c.timeout, "timeout", 0, "for the wave; by default generous")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "lab runs shoal in network namespaces and prints figures. Scenarios:\n\n%s\nFlags:\n", scenarios())
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if c.list {
		fmt.Print(scenarios())
		return nil
	}
	var foreign []string
	flags.Visit(func(f *flag.Flag) {
		if c.scenario != "" && slices.Contains([]string{"regions", "servers", "first", "zones", "layers", "server-rate", "class", "timeout"}, f.Name) {
			foreign = append(foreign, "--"+f.Name)
		}
	})
	if len(foreign) > 0 {
		return fmt.Errorf("%s: a scenario has its own; of the plan --hosts, --rate, --size and --rtt can be changed", strings.Join(foreign, ", "))
	}
	return c.run(ctx)
}

// scenarios lists names and claims.
func scenarios() string {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 4, 2, ' ', 0)
	for _, s := range scenario.All() {
		fmt.Fprintf(table, "  %s\t%s\n", s.Name, s.Claim)
	}
	table.Flush()
	return text.String()
}

func (c *command) run(ctx context.Context) (err error) {
	if c.rateBits, err = wave.ParseRate(c.rate); c.rate != "" && err != nil {
		return err
	}
	if c.serverBits, err = wave.ParseRate(c.serverRate); err != nil {
		return err
	}
	if c.bytes, err = wave.ParseSize(c.size); c.size != "" && err != nil {
		return err
	}
	if c.bin, err = filepath.Abs(c.bin); err != nil {
		return err
	}
	if _, err := os.Stat(c.bin); err != nil {
		return fmt.Errorf("%w (make build)", err)
	}
	began := time.Now()
	c.say = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	if c.scenario != "" {
		return c.runScenarios(ctx)
	}
	return c.runWave(ctx)
}

// runScenarios runs those that were named, one after another, and prints a table.
func (c *command) runScenarios(ctx context.Context) error {
	chosen := scenario.All()
	if c.scenario != "all" {
		chosen = nil
		for name := range strings.SplitSeq(c.scenario, ",") {
			s, err := scenario.Find(name)
			if err != nil {
				return err
			}
			chosen = append(chosen, s)
		}
	}
	var results []scenario.Result
	var failed []string
	for _, s := range chosen {
		r := scenario.Run(ctx, s, scenario.Options{Bin: c.bin, Dir: c.dir, Quick: c.quick, Seed: c.seed,
			Hosts: c.hosts, Bytes: c.bytes, Rate: c.rateBits, RTT: c.rtt, Say: c.say})
		results = append(results, r)
		if r.Error != "" || r.Broken() || c.check && !r.Kept() {
			failed = append(failed, s.Name)
		}
		if ctx.Err() != nil {
			break
		}
	}
	var err error
	if c.asJSON {
		err = printJSON(results)
	} else {
		err = scenario.Table(os.Stdout, results)
	}
	if len(failed) > 0 {
		err = errors.Join(err, fmt.Errorf("failed: %s", strings.Join(failed, ", ")))
	}
	return err
}

// runWave runs one wave as the flags say.
func (c *command) runWave(ctx context.Context) (err error) {
	plan := wave.Plan{Bin: c.bin, Hosts: c.hosts, Regions: c.regions, Servers: c.servers, First: c.first, Zones: c.zones,
		Rate: c.rateBits, ServerRate: c.serverBits, RTT: c.rtt, Layers: c.layers, Bytes: c.bytes, Class: c.class,
		Seed: c.seed, Timeout: c.timeout, Say: c.say}
	if plan.Hosts == 0 {
		plan.Hosts = 8
	}
	if c.rate == "" {
		plan.Rate = 100e6
	}
	if plan.Bytes == 0 {
		plan.Bytes = 64 << 20
	}
	dir := c.dir
	if dir == "" {
		dir = wave.DataFolder(plan.Kept())
	}
	if plan.Dir, err = os.MkdirTemp(dir, "shoal-lab-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(plan.Dir)) }()
	cluster, err := wave.Start(ctx, plan)
	if err != nil {
		return err
	}
	// Runs in a panic too; after kill -9 the kernel does it, but for the folder.
	defer func() { err = errors.Join(err, cluster.Close()) }()
	report, err := cluster.Wave(ctx, nil)
	if err != nil {
		return err
	}
	if c.asJSON {
		err = printJSON(report)
	} else {
		report.Print(os.Stdout)
	}
	if err != nil {
		return err
	}
	if !report.Verdicts()[0].Kept || c.check && !report.Kept() {
		return errors.New("the wave broke a promise")
	}
	return nil
}

func printJSON(v any) error {
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
