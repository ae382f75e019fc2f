// Command faults does to a cluster of real servers what machines, disks and networks do
// to it in years, under load, and says whether it lost anything or told anybody anything
// wrong.
//
// `make faults` is a short round; `make faults DURATION=1h PROFILE=wan SEED=7` a long one. The
// schedule follows from the seed and is printed as it goes. The work is in the packages
// beneath: round puts the parts together, nemesis has the faults, clients the load, history
// the checker. `faults --check FILE` judges a recorded history again. It needs root,
// touches nothing outside its own namespaces and folder, and leaves neither behind.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/disk"
	"github.com/shoal-registry/shoal/deploy/lab/faults/history"
	"github.com/shoal-registry/shoal/deploy/lab/faults/nemesis"
	"github.com/shoal-registry/shoal/deploy/lab/faults/round"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
	"github.com/shoal-registry/shoal/deploy/proc"
)

func main() {
	ctx, stop := proc.UntilEnded()
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	began := time.Now()
	c := round.Config{Say: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}}
	flags := flag.NewFlagSet("faults", flag.ContinueOnError)
	flags.StringVar(&c.Bin, "bin", "bin/shoal", "the shoal `binary`")
	flags.StringVar(&c.Dir, "dir", "", "`folder` that keeps the history, and the logs when something is wrong (default: a new one, removed unless something is wrong)")
	flags.StringVar(&c.Disks, "disks", "", "`folder` for the servers' disks (default: in memory when they fit)")
	flags.DurationVar(&c.Duration, "duration", time.Minute, "how long faults come")
	flags.IntVar(&c.Faults, "faults", 0, "end after so many faults; 0 is as many as fit")
	profile := flags.String("profile", "site", "site, or wan: an RTT of 60 ms between regions and timings for that")
	flags.Uint64Var(&c.Seed, "seed", uint64(time.Now().Unix()), "of the schedule and the clients")
	flags.IntVar(&c.Servers, "servers", 3, "servers, each in a region of its own")
	flags.IntVar(&c.Agents, "agents", 1, "agents")
	flags.IntVar(&c.Clients, "clients", 0, "clients (12, or 40 with wan, where each waits longer)")
	flags.IntVar(&c.Keys, "keys", 64, "keys in use at any time")
	flags.Float64Var(&c.Rate, "rate", 250, "operations a second of all clients, at most")
	flags.IntVar(&c.AtLeast, "at-least", 100, "acknowledged operations a second, for two seconds, before a fault counts")
	diskSize := flags.String("disk", "4GiB", "size of each server's disk, sparse")
	large := flags.String("large", "1MiB", "size of one in --large-every artifacts; others have up to 24 KiB")
	flags.IntVar(&c.LargeEvery, "large-every", 50, "see --large")
	only := flags.String("only", "", "only these faults, with commas")
	list := flags.Bool("list", false, "print the faults and end")
	check := flags.String("check", "", "judge the history in this `file` and end")
	flags.BoolVar(&c.UntilWrong, "until-wrong", false, "end as soon as something is wrong")
	mutants := flags.String("mutants", "", "build these `mutants` of the product, with commas, or all, and see that each is caught")
	asJSON := flags.Bool("json", false, "print the report as JSON")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *list {
		fmt.Print(nemesis.Describe())
		return nil
	}
	if *check != "" {
		return recheck(*check)
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces, disks and signals to servers need root")
	}
	if err := disk.Private(); err != nil {
		return err
	}
	var err error
	if c.DiskSize, err = wave.ParseSize(*diskSize); err != nil {
		return err
	}
	if c.Large, err = wave.ParseSize(*large); err != nil {
		return err
	}
	if *only != "" {
		c.Only = strings.Split(*only, ",")
	}
	for _, p := range round.Profiles {
		if p.Name == *profile {
			c.Profile = p
		}
	}
	if c.Clients == 0 {
		c.Clients = c.Profile.Clients
	}
	if c.Profile.Name == "" {
		return fmt.Errorf("no profile %q: site or wan", *profile)
	}
	if c.Disks == "" {
		c.Disks = wave.DataFolder(c.DiskSize * int64(c.Servers))
	}
	if *mutants != "" {
		return runMutants(ctx, c, *mutants)
	}
	if c.Bin, err = filepath.Abs(c.Bin); err != nil {
		return err
	}
	if _, err := os.Stat(c.Bin); err != nil {
		return fmt.Errorf("%w (make build)", err)
	}
	keep := c.Dir != ""
	if keep {
		err = os.MkdirAll(c.Dir, 0o755)
	} else {
		c.Dir, err = os.MkdirTemp("", "shoal-faults-")
	}
	if err != nil {
		return err
	}
	c.Say("profile %s, seed %d, %v", c.Profile.Name, c.Seed, c.Duration)
	r, err := round.Run(ctx, c)
	if r != nil {
		if *asJSON {
			encoder := json.NewEncoder(os.Stdout)
			encoder.SetIndent("", "  ")
			err = errors.Join(err, encoder.Encode(r))
		} else {
			r.Print(os.Stdout)
		}
		if r.Wrong() {
			err = errors.Join(err, errors.New("a promise was broken"))
		}
	}
	if err != nil {
		return fmt.Errorf("%w\nhistory and logs are in %s", err, c.Dir)
	}
	if !keep {
		return os.RemoveAll(c.Dir)
	}
	return nil
}

// recheck judges a recorded history.
func recheck(file string) error {
	totals, findings, err := history.Load(file, time.Minute)
	if err != nil {
		return err
	}
	r := round.Report{History: totals, Findings: findings}
	for _, f := range findings {
		fmt.Printf("%s %s:\n", f.Key, f.Result)
		for _, o := range f.Small {
			fmt.Printf("  %v\n", o)
		}
	}
	fmt.Printf("%d operations of %d keys, %d findings, %d undecided\n", totals.Operations, totals.Keys, len(findings), totals.Undecided)
	if r.Wrong() {
		return errors.New("a promise was broken")
	}
	return nil
}
